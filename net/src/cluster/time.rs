//! What time it is, as a quorum's wall clocks agree (DR17, `docs/adr/0020-clocks-of-a-quorum.md`).
//!
//! Every node asks the other voters what their wall clocks say, and reckons with the way there and back. What at
//! least a quorum of clocks supports, and a quorum of clocks that are no more than a minute apart, is what a leader's
//! time follows; a minority that is wrong decides nothing, in whichever direction. Without such an agreement time goes
//! on from the log's as the monotonic clock says: nothing expires early.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use beamlog_log::Timestamp;
use beamlog_router::replica::TimeSource;
use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;

use super::Inner;
use crate::{
    peer::{Lane, PeerId},
    raft::{
        Shard, StorageError, last_membership,
        wire::{Answer, Request},
    },
    runtime::{self, Moment},
};

/// Clocks further apart than this do not agree.
const APART_MAX_NANOS: i128 = 60_000_000_000;
/// Between two rounds of questions when every voter answered the last one.
const AGAIN: Duration = Duration::from_secs(2);
/// And when one did not.
const SOON: Duration = Duration::from_millis(250);
/// For one answer. One that took longer says too little.
const ASK: Duration = Duration::from_millis(500);
/// What was heard longer ago counts no more: that clock may have been set since.
const FRESH: Duration = Duration::from_secs(15);

/// What a peer's wall clock said.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Its nanoseconds since the epoch less ours of the monotonic clock, at one moment: half-way between question and
    /// answer.
    ahead: i128,
    at: Moment,
}

fn nanos(moment: Moment) -> i128 {
    i128::try_from(moment.0.as_nanos()).unwrap_or(i128::MAX)
}

/// A node that is the only voter goes by its own clock from the first entry on.
pub(super) async fn begin(shard: &dyn Shard, me: PeerId) -> Result<(), StorageError> {
    let state = shard.state().await?;
    let membership = last_membership(shard, &state).await?;
    if membership.is_some_and(|membership| membership.voter_ids().eq([me.0])) {
        shard.keep_time(TimeSource::Own);
    }
    Ok(())
}

/// Asks, and tells the driver, until this node's part ends.
pub(super) async fn keep(inner: Arc<Inner>) {
    let mut readings: BTreeMap<u64, Reading> = BTreeMap::new();
    let mut agreed = true;
    loop {
        let configs = {
            let metrics = inner.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().clone()
        };
        let others: BTreeSet<u64> =
            configs.iter().flatten().copied().filter(|id| *id != inner.me.0).collect();
        readings.retain(|id, _| others.contains(id));
        let answers = join_all(others.iter().map(|peer| ask(&inner, *peer))).await;
        let all = answers.iter().all(Option::is_some);
        readings.extend(others.iter().copied().zip(answers).filter_map(|(id, reading)| Some((id, reading?))));
        if inner.ended() {
            return;
        }
        let now = runtime::now();
        readings.retain(|_, reading| now - reading.at < FRESH);
        let own = Reading { ahead: i128::from(runtime::wall()) - nanos(now), at: now };
        let source = source(&configs, inner.me.0, own, &readings);
        let agrees = source != TimeSource::Nobody;
        if agreed && !agrees && all && !configs.is_empty() {
            tracing::warn!("the wall clocks of a quorum are more than a minute apart: none is followed");
        }
        agreed = agrees;
        inner.shard.keep_time(source);
        runtime::sleep(if all { AGAIN } else { SOON }).await;
    }
}

async fn ask(inner: &Inner, peer: u64) -> Option<Reading> {
    let asked = runtime::now();
    let request = Request::Time.encode(inner.shard.id());
    let answer = inner.transport.call(PeerId(peer), Lane::Vote, request, ASK).await.ok()?;
    let Ok(Answer::Time(time)) = Answer::decode(answer) else { return None };
    let at = runtime::now();
    let middle = asked + (at - asked) / 2;
    Some(Reading { ahead: i128::from(time.0) - nanos(middle), at })
}

/// Whom the driver goes by now. In a change of members both the old and the new voters must agree; the earlier time
/// counts.
fn source(configs: &[BTreeSet<u64>], me: u64, own: Reading, readings: &BTreeMap<u64, Reading>) -> TimeSource {
    if let [only] = configs
        && only.len() == 1
        && only.contains(&me)
    {
        return TimeSource::Own;
    }
    let of = |voters: &BTreeSet<u64>| {
        let known =
            voters.iter().filter_map(|id| if *id == me { Some(own) } else { readings.get(id).copied() });
        agreed(known.map(|reading| reading.ahead).collect(), voters.len() / 2 + 1)
    };
    let ahead = configs.iter().map(of).collect::<Option<Vec<i128>>>().and_then(|all| all.into_iter().min());
    let time = ahead.and_then(|ahead| u64::try_from(ahead + nanos(own.at)).ok());
    time.map_or(TimeSource::Nobody, |time| TimeSource::Quorum(Timestamp(time)))
}

/// The latest time that a quorum of clocks shows or has passed, all of which are close together.
fn agreed(mut clocks: Vec<i128>, quorum: usize) -> Option<i128> {
    clocks.sort_unstable_by(|a, b| b.cmp(a));
    let close = clocks.windows(quorum).find(|some| some[0] - some[quorum - 1] <= APART_MAX_NANOS)?;
    close.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;
    const HOUR: i128 = 3_600 * SECOND;

    fn check(quorum: usize, clocks: &[i128], expected: Option<i128>) {
        assert_eq!(agreed(clocks.to_vec(), quorum), expected, "{clocks:?}");
    }

    #[test]
    fn a_minority_that_is_wrong_decides_nothing() {
        check(2, &[0, SECOND, HOUR], Some(0));
        check(2, &[0, SECOND, -HOUR], Some(0));
        check(2, &[0, SECOND, 2 * SECOND], Some(SECOND));
        check(3, &[0, SECOND, 2 * SECOND, HOUR, HOUR], Some(0));
        check(3, &[0, SECOND, 2 * SECOND, -HOUR, HOUR], Some(0));
        check(3, &[0, SECOND, 2 * SECOND, -HOUR, -HOUR], Some(0));
        check(3, &[0, 0, SECOND, SECOND], Some(0));
    }

    #[test]
    fn too_few_and_too_far_apart_is_no_agreement() {
        check(2, &[], None);
        check(2, &[0], None);
        check(2, &[0, HOUR], None);
        check(2, &[-HOUR, 0, HOUR], None);
        check(3, &[0, SECOND], None);
        check(1, &[5], Some(5));
        check(2, &[0, 60 * SECOND], Some(0));
        check(2, &[0, 60 * SECOND + 1], None);
    }

    #[test]
    fn readings_are_of_voters_and_run_on() {
        let at = |seconds| Moment(Duration::from_secs(seconds));
        let reading = |ahead| Reading { ahead, at: at(1) };
        let own = Reading { ahead: HOUR, at: at(3) };
        let readings = BTreeMap::from([(2, reading(0)), (3, reading(SECOND)), (4, reading(HOUR))]);
        let three = BTreeSet::from([1, 2, 3]);
        let other = BTreeSet::from([1, 4]);
        let of = |configs: &[BTreeSet<u64>]| source(configs, 1, own, &readings);
        assert_eq!(of(std::slice::from_ref(&three)), TimeSource::Quorum(Timestamp(3_000_000_000)));
        assert_eq!(of(std::slice::from_ref(&other)), TimeSource::Quorum(Timestamp(3_603_000_000_000)));
        assert_eq!(of(&[three, other]), TimeSource::Quorum(Timestamp(3_000_000_000)), "joint: the earlier");
        assert_eq!(of(&[BTreeSet::from([1])]), TimeSource::Own);
        assert_eq!(of(&[BTreeSet::from([2])]), TimeSource::Quorum(Timestamp(3_000_000_000)));
        assert_eq!(of(&[BTreeSet::from([1, 5])]), TimeSource::Nobody);
        assert_eq!(of(&[]), TimeSource::Nobody);
    }
}
