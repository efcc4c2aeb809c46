//! Workers as the node can see them: subscriptions on an assignment subject, heartbeats on the same
//! connections, and what each was given.
//!
//! * All subscriptions of a subject are one queue. A plain one has one job at a time; a member of a queue
//!   group may have several.
//! * A shipped worker subscribes anew after every job and drops what is still buffered on the old
//!   subscription; the new one comes before the old one ends. So only the newest of a connection counts.
//! * A worker that never subscribes again is told from one that does by waiting once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::settings::Settings;
use crate::results::{Heartbeat, WorkerStatus};

/// A subscription as the interest index lists it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its number in the index: newer ones are higher.
    pub entry: u64,
    pub connection: u64,
    pub in_group: bool,
}

#[derive(Debug)]
struct Subscription {
    subject: Arc<str>,
    connection: u64,
    in_group: bool,
    /// The last job it was given, and when. Forgotten when the subscription is free again.
    given: Option<(u64, u64)>,
    /// When the result of that job came.
    settled_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Worker {
    id: Option<String>,
    status: WorkerStatus,
    load: f64,
    beat_at: Option<u64>,
    subscriptions: BTreeSet<u64>,
    /// What it has: task to the subscription that it was given on.
    jobs: BTreeMap<u64, u64>,
    /// It has subscribed anew after a job.
    resubscribes: bool,
    /// It had a job, and did not.
    stays: bool,
    /// Jobs that it was given and nothing was heard of.
    misses: u32,
    given_at: u64,
    gone_at: Option<u64>,
}

/// What became free, or must be looked at.
#[derive(Debug, Default)]
pub struct Change {
    /// Tasks whose worker has gone.
    pub lost: Vec<u64>,
    /// Look at the connection again then.
    pub look_at: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
pub struct Pool {
    subscriptions: BTreeMap<u64, Subscription>,
    workers: BTreeMap<u64, Worker>,
    by_subject: BTreeMap<Arc<str>, BTreeSet<u64>>,
    /// Subjects that a stream captures.
    captured: BTreeSet<Arc<str>>,
}

/// A worker as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    pub connection: u64,
    pub id: Option<String>,
    pub status: &'static str,
    pub load: f64,
    pub jobs: Vec<u64>,
    pub subscriptions: usize,
    pub misses: u32,
}

impl Pool {
    /// The subscriptions that a subject has now.
    pub fn members(
        &mut self,
        subject: &Arc<str>,
        now_there: &[Member],
        captured: bool,
        now: u64,
        settings: &Settings,
    ) -> Vec<Change> {
        if captured {
            self.captured.insert(Arc::clone(subject));
        } else {
            self.captured.remove(subject);
        }
        let known = self.by_subject.entry(Arc::clone(subject)).or_default();
        let there: BTreeSet<u64> = now_there.iter().map(|member| member.entry).collect();
        let ended: Vec<u64> = known.difference(&there).copied().collect();
        let begun: Vec<Member> =
            now_there.iter().filter(|member| !known.contains(&member.entry)).copied().collect();
        *known = there;
        for member in begun {
            let worker = self.workers.entry(member.connection).or_default();
            let had_job = worker.subscriptions.iter().any(|entry| {
                self.subscriptions
                    .get(entry)
                    .is_some_and(|old| old.subject == *subject && old.given.is_some())
            });
            worker.resubscribes |= had_job;
            worker.subscriptions.insert(member.entry);
            worker.gone_at = None;
            self.subscriptions.insert(
                member.entry,
                Subscription {
                    subject: Arc::clone(subject),
                    connection: member.connection,
                    in_group: member.in_group,
                    given: None,
                    settled_at: None,
                },
            );
        }
        ended.into_iter().map(|entry| self.ended(entry, now, settings)).collect()
    }

    fn ended(&mut self, entry: u64, now: u64, settings: &Settings) -> Change {
        let mut change = Change::default();
        let Some(subscription) = self.subscriptions.remove(&entry) else { return change };
        let Some(worker) = self.workers.get_mut(&subscription.connection) else { return change };
        worker.subscriptions.remove(&entry);
        if worker.subscriptions.is_empty() {
            if worker.jobs.is_empty() {
                self.workers.remove(&subscription.connection);
            } else {
                worker.gone_at = Some(now);
                change.look_at = Some((subscription.connection, now + settings.gone_millis));
            }
        }
        change
    }

    /// A connection without subscriptions is looked at again: is it finishing, or gone?
    pub fn look_at(&mut self, connection: u64, now: u64, settings: &Settings) -> Change {
        let mut change = Change::default();
        let Some(worker) = self.workers.get_mut(&connection) else { return change };
        let Some(gone_at) = worker.gone_at else { return change };
        // It said that it drains, and still says so.
        let is_finishing = worker.status == WorkerStatus::Draining
            && worker.beat_at.is_some_and(|at| now.saturating_sub(at) < settings.heartbeat_millis);
        if is_finishing && !worker.jobs.is_empty() {
            change.look_at = Some((connection, now + settings.gone_millis));
        } else if now.saturating_sub(gone_at) < settings.gone_millis {
            change.look_at = Some((connection, gone_at + settings.gone_millis));
        } else if let Some(worker) = self.workers.remove(&connection) {
            change.lost = worker.jobs.into_keys().collect();
        }
        change
    }

    /// A heartbeat came on this connection.
    pub fn heartbeat(&mut self, connection: u64, beat: &Heartbeat, now: u64) -> Change {
        let mut change = Change::default();
        // Only those that have had a subscription: heartbeats are free to send.
        let Some(worker) = self.workers.get_mut(&connection) else { return change };
        worker.id = Some(beat.worker_id.clone());
        worker.status = beat.status;
        worker.load = beat.load;
        worker.beat_at = Some(now);
        if beat.status == WorkerStatus::Stopped {
            change.lost = std::mem::take(&mut worker.jobs).into_keys().collect();
        }
        change
    }

    /// The result of a task came from this connection, or from wherever.
    pub fn settled(&mut self, task: u64, holder: u64, now: u64) {
        let Some(worker) = self.workers.get_mut(&holder) else { return };
        worker.misses = 0;
        let Some(entry) = worker.jobs.remove(&task) else { return };
        if let Some(subscription) = self.subscriptions.get_mut(&entry)
            && subscription.given.is_some_and(|(given, _)| given == task)
        {
            subscription.settled_at = Some(now);
        }
        if worker.subscriptions.is_empty() && worker.jobs.is_empty() {
            self.workers.remove(&holder);
        }
    }

    /// Nothing was heard of a task in time: its subscription is free, and its worker less trusted.
    pub fn missed(&mut self, task: u64, holder: u64) {
        let Some(worker) = self.workers.get_mut(&holder) else { return };
        worker.misses = worker.misses.saturating_add(1);
        let Some(entry) = worker.jobs.remove(&task) else { return };
        if let Some(subscription) = self.subscriptions.get_mut(&entry)
            && subscription.given.is_some_and(|(given, _)| given == task)
        {
            subscription.given = None;
            subscription.settled_at = None;
        }
    }

    /// Chooses who gets a task, and gives it. `Err` says when somebody may become free by time alone.
    ///
    /// # Errors
    /// Nobody is free.
    pub fn give(
        &mut self,
        subject: &str,
        task: u64,
        avoid: &[u64],
        now: u64,
        settings: &Settings,
    ) -> Result<(u64, u64), Option<u64>> {
        let mut best: Option<((bool, u32, usize, u64), u64)> = None;
        let mut wake: Option<u64> = None;
        for entry in self.by_subject.get(subject).into_iter().flatten() {
            match self.is_free(*entry, now, settings) {
                Err(at) => wake = wake.into_iter().chain(at).min(),
                Ok(()) => {
                    let Some(subscription) = self.subscriptions.get(entry) else { continue };
                    let Some(worker) = self.workers.get(&subscription.connection) else { continue };
                    let rank = (
                        avoid.contains(&subscription.connection),
                        worker.misses,
                        worker.jobs.len(),
                        worker.given_at,
                    );
                    if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                        best = Some((rank, *entry));
                    }
                }
            }
        }
        let Some((_, entry)) = best else { return Err(wake) };
        let subscription = self.subscriptions.get_mut(&entry).ok_or(None)?;
        let is_the_same_again = subscription.settled_at.take().is_some();
        subscription.given = Some((task, now));
        let connection = subscription.connection;
        let worker = self.workers.get_mut(&connection).ok_or(None)?;
        worker.stays |= is_the_same_again;
        worker.jobs.insert(task, entry);
        worker.given_at = now;
        Ok((entry, connection))
    }

    /// Whether a subscription may be given a job now; if not, when time alone may change that.
    fn is_free(&self, entry: u64, now: u64, settings: &Settings) -> Result<(), Option<u64>> {
        let subscription = self.subscriptions.get(&entry).ok_or(None)?;
        let worker = self.workers.get(&subscription.connection).ok_or(None)?;
        let is_heard = worker.beat_at.is_none_or(|at| now.saturating_sub(at) <= settings.heartbeat_millis);
        let takes_more = worker.load < 0.999;
        if !is_heard || !takes_more || matches!(worker.status, WorkerStatus::Draining | WorkerStatus::Stopped)
        {
            return Err(None);
        }
        if subscription.in_group {
            let here = worker.jobs.values().filter(|given_on| **given_on == entry).count();
            return if here < settings.group_jobs_max { Ok(()) } else { Err(None) };
        }
        let is_newest = worker.subscriptions.range(entry + 1..).all(|newer| {
            self.subscriptions
                .get(newer)
                .is_none_or(|other| other.subject != subscription.subject || other.in_group)
        });
        if !is_newest {
            return Err(None);
        }
        let Some((_, given_at)) = subscription.given else { return Ok(()) };
        if let Some(settled_at) = subscription.settled_at {
            if worker.stays {
                return Ok(());
            }
            if !worker.resubscribes {
                let due = settled_at + settings.resubscribe_millis;
                return if now < due { Err(Some(due)) } else { Ok(()) };
            }
        }
        // Its load says that it takes more, long enough after the delivery to know of it.
        let due = given_at + settings.quiet_millis;
        match worker.beat_at {
            Some(beat_at) if beat_at > given_at && now >= due => Ok(()),
            Some(_) if now < due => Err(Some(due)),
            Some(_) | None => Err(None),
        }
    }

    /// Whether anybody is subscribed, busy or not.
    #[must_use]
    pub fn has_members(&self, subject: &str) -> bool {
        self.by_subject.get(subject).is_some_and(|members| !members.is_empty())
    }

    #[must_use]
    pub fn worker_id(&self, connection: u64) -> Option<String> {
        self.workers.get(&connection)?.id.clone()
    }

    /// The subscription on which its holder was given a task.
    #[must_use]
    pub fn given_on(&self, task: u64, holder: u64) -> Option<u64> {
        self.workers.get(&holder)?.jobs.get(&task).copied()
    }

    /// Whether only a stream can take assignments of this subject now.
    #[must_use]
    pub fn is_for_stream(&self, subject: &str) -> bool {
        self.captured.contains(subject) && self.by_subject.get(subject).is_none_or(BTreeSet::is_empty)
    }

    #[must_use]
    pub fn views(&self) -> Vec<WorkerView> {
        self.workers
            .iter()
            .map(|(connection, worker)| WorkerView {
                connection: *connection,
                id: worker.id.clone(),
                status: worker.status.as_str(),
                load: worker.load,
                jobs: worker.jobs.keys().copied().collect(),
                subscriptions: worker.subscriptions.len(),
                misses: worker.misses,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECT: &str = "caf.exec.assign.v1";

    struct Scene {
        pool: Pool,
        members: Vec<Member>,
        settings: Settings,
    }

    impl Scene {
        fn new() -> Self {
            Self { pool: Pool::default(), members: Vec::new(), settings: Settings::default() }
        }

        fn tell(&mut self, now: u64) -> Vec<Change> {
            self.pool.members(&SUBJECT.into(), &self.members, false, now, &self.settings)
        }

        fn subscribe(&mut self, entry: u64, connection: u64, now: u64) {
            self.members.push(Member { entry, connection, in_group: false });
            self.tell(now);
        }

        fn unsubscribe(&mut self, entry: u64, now: u64) -> Vec<Change> {
            self.members.retain(|member| member.entry != entry);
            self.tell(now)
        }

        fn give(&mut self, task: u64, now: u64) -> Result<u64, Option<u64>> {
            self.pool.give(SUBJECT, task, &[], now, &self.settings).map(|(entry, _)| entry)
        }

        fn beat(&mut self, connection: u64, status: WorkerStatus, load: f64, now: u64) -> Change {
            self.pool.heartbeat(connection, &Heartbeat { worker_id: "w".into(), status, load }, now)
        }
    }

    #[test]
    fn the_shipped_worker_gets_the_next_job_when_it_subscribes_again() {
        let mut scene = Scene::new();
        scene.subscribe(1, 7, 0);
        assert_eq!(scene.give(1, 0), Ok(1));
        assert_eq!(scene.give(2, 0), Err(None), "one job at a time");
        scene.pool.settled(1, 7, 50);
        assert_eq!(scene.give(2, 60), Err(Some(1_550)), "it may subscribe again");
        // The new subscription comes before the old one ends, and only it counts.
        scene.subscribe(2, 7, 1_050);
        assert_eq!(scene.give(2, 1_050), Ok(2));
        scene.unsubscribe(1, 1_051);
        assert_eq!(scene.give(3, 1_060), Err(None));
        scene.pool.settled(2, 7, 1_100);
        assert_eq!(scene.give(3, 9_000), Err(None), "this one always subscribes again");
    }

    #[test]
    fn a_worker_that_stays_gets_the_next_job_after_its_result() {
        let mut scene = Scene::new();
        scene.subscribe(1, 7, 0);
        scene.give(1, 0).unwrap();
        scene.pool.settled(1, 7, 10);
        assert_eq!(scene.give(2, 1_510), Ok(1));
        scene.pool.settled(2, 7, 1_520);
        assert_eq!(scene.give(3, 1_520), Ok(1), "known by now");
    }

    #[test]
    fn load_and_status_open_and_shut_it() {
        let mut scene = Scene::new();
        scene.subscribe(1, 7, 0);
        scene.beat(7, WorkerStatus::Busy, 1.0, 1);
        assert_eq!(scene.give(1, 2), Err(None), "it is full");
        scene.beat(7, WorkerStatus::Idle, 0.0, 3);
        assert_eq!(scene.give(1, 4), Ok(1));
        scene.beat(7, WorkerStatus::Busy, 0.2, 2_000);
        assert_eq!(scene.give(2, 2_500), Err(Some(3_004)));
        assert_eq!(scene.give(2, 3_004), Ok(1), "its load says that it takes more");
        scene.beat(7, WorkerStatus::Draining, 0.1, 4_000);
        assert_eq!(scene.give(3, 9_000), Err(None));
        scene.beat(7, WorkerStatus::Idle, 0.0, 10_000);
        assert_eq!(scene.give(3, 40_000), Err(None), "nothing was heard of it for too long");
    }

    #[test]
    fn work_goes_round_and_away_from_those_who_do_not_answer() {
        let mut scene = Scene::new();
        for worker in 1..=3 {
            scene.subscribe(worker, worker, 0);
        }
        let mut given: Vec<u64> = (1..=3).map(|task| scene.give(task, task).unwrap()).collect();
        given.sort_unstable();
        assert_eq!(given, [1, 2, 3]);
        scene.pool.missed(1, 1);
        scene.pool.settled(2, 2, 10);
        assert_eq!(scene.give(4, 1_600), Ok(2), "the other one has missed a job");
        assert_eq!(scene.give(5, 1_600), Ok(1), "but is better than nobody");
        let mut scene = Scene::new();
        scene.subscribe(1, 1, 0);
        scene.subscribe(2, 2, 0);
        let settings = scene.settings.clone();
        assert_eq!(scene.pool.give(SUBJECT, 1, &[1], 0, &settings), Ok((2, 2)), "it had this one before");
    }

    #[test]
    fn a_connection_that_went_loses_its_jobs_and_one_that_drains_keeps_them() {
        let mut scene = Scene::new();
        scene.subscribe(1, 7, 0);
        scene.give(1, 0).unwrap();
        let change = scene.unsubscribe(1, 100);
        assert_eq!(change[0].look_at, Some((7, 3_100)));
        let settings = scene.settings.clone();
        assert_eq!(scene.pool.look_at(7, 3_100, &settings).lost, [1]);

        scene.subscribe(2, 8, 0);
        scene.give(2, 0).unwrap();
        scene.unsubscribe(2, 100);
        scene.beat(8, WorkerStatus::Draining, 0.1, 200);
        assert_eq!(scene.pool.look_at(8, 3_100, &settings).look_at, Some((8, 6_100)));
        assert_eq!(scene.beat(8, WorkerStatus::Stopped, 0.0, 4_000).lost, [2]);
    }

    #[test]
    fn members_of_a_group_have_several_jobs() {
        let mut scene = Scene::new();
        scene.members.push(Member { entry: 1, connection: 7, in_group: true });
        scene.tell(0);
        let given = (0..20).filter(|task| scene.give(*task, 0).is_ok()).count();
        assert_eq!(given, scene.settings.group_jobs_max);
    }
}
