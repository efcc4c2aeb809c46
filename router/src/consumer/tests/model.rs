//! Random histories against what must hold in every one of them.

use std::collections::{BTreeMap, BTreeSet};

use super::scene::{SECOND, Said, Scene, expires, explicit, no_wait};
use crate::api::request::AckKind;
use crate::consumer::{AckPolicy, ConsumerConfig};
use crate::wire::Advisory;

/// A small generator, so that a seed is all it takes to see a history again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What the client knows, and what the stream was told.
#[derive(Default)]
struct Seen {
    /// Deliveries by message, in the life of this process.
    deliveries: BTreeMap<u64, u64>,
    /// Acks that were confirmed.
    confirmed: BTreeSet<u64>,
    /// Acks that were said, confirmed or not.
    said: BTreeSet<u64>,
    given_up: BTreeSet<u64>,
    removed: BTreeSet<u64>,
}

const ACK_WAIT: u64 = 30 * SECOND;
const DELIVERIES_MAX: u64 = 4;

fn take(scene: &Scene, seen: &mut Seen, said: Vec<Said>, told: &str) {
    for said in said {
        match said {
            Said::Message(_, sequence, count) => {
                assert!(!seen.confirmed.contains(&sequence), "{told}: {sequence} was confirmed");
                assert!(!seen.given_up.contains(&sequence), "{told}: {sequence} was given up");
                assert!(!seen.removed.contains(&sequence), "{told}: {sequence} was removed");
                assert!(!seen.said.contains(&sequence), "{told}: {sequence} was acked");
                assert!(count <= DELIVERIES_MAX, "{told}: {sequence} was delivered {count} times");
                *seen.deliveries.entry(sequence).or_default() += 1;
            }
            Said::Advisory(Advisory::MaxDeliveries { stream_sequence, .. }) => {
                seen.given_up.insert(stream_sequence.0);
            }
            Said::Status(..) | Said::Acked(_) | Said::AckReply(_) | Said::Advisory(_) => {}
            Said::Blocked(_) | Said::Expired => panic!("{told}: {said:?}"),
        }
    }
    assert!(scene.now.0 > 0);
}

fn history(seed: u64, ack_policy: AckPolicy, filtered: bool) {
    let mut dice = Dice(seed * 2 + 1);
    let filter_subjects = if filtered { vec!["a".to_owned()] } else { vec![] };
    let config = ConsumerConfig {
        ack_policy,
        filter_subjects,
        max_ack_pending: Some(6),
        max_deliver: Some(u32::try_from(DELIVERIES_MAX).unwrap()),
        ..explicit()
    };
    let mut scene = Scene::with(&[], config);
    let mut seen = Seen::default();
    let (mut floor, mut stored) = (0, 0);
    for step in 0..400 {
        let told = format!("seed {seed} {ack_policy:?} filtered {filtered} step {step}");
        let some = if stored == 0 { 1 } else { 1 + dice.roll(stored) };
        let was_delivered = seen.deliveries.contains_key(&some);
        let said = match dice.roll(16) {
            0..=2 => {
                let subject = if dice.roll(3) == 0 { "b" } else { "a" };
                stored = scene.store(subject, b"x");
                scene.deliver()
            }
            3..=4 => scene.pull("i", no_wait(u32::try_from(1 + dice.roll(4)).unwrap())),
            5 => scene.pull("j", expires(3, 2 * SECOND)),
            6..=8 => {
                let reply = (dice.roll(2) == 0).then_some("r");
                let said = scene.say(some, AckKind::Ack, reply);
                if was_delivered {
                    let first = if ack_policy == AckPolicy::All { 1 } else { some };
                    for sequence in (first..=some).filter(|n| seen.deliveries.contains_key(n)) {
                        seen.said.insert(sequence);
                        seen.given_up.remove(&sequence);
                    }
                }
                if said.contains(&Said::AckReply("r".to_owned())) {
                    // Whatever was acked until now was flushed with it.
                    seen.confirmed.extend(&seen.said);
                }
                said
            }
            9 => scene.say(some, AckKind::Nak { delay_nanos: None }, None),
            10 => scene.say(some, AckKind::Nak { delay_nanos: Some(dice.roll(40) * SECOND) }, None),
            11 => scene.say(some, AckKind::InProgress, None),
            12 => scene.pass(dice.roll(20) * SECOND),
            13 if dice.roll(3) == 0 && stored > 0 => {
                scene.remove(some);
                seen.removed.insert(some);
                scene.deliver()
            }
            14 if dice.roll(4) == 0 => {
                scene.roll();
                Vec::new()
            }
            14 if dice.roll(8) == 0 && stored > 0 => {
                scene.purge(some);
                seen.removed.extend(1..=some);
                scene.deliver()
            }
            15 if dice.roll(3) == 0 => {
                let lost_nothing = dice.roll(2) == 0;
                if lost_nothing {
                    scene.flush();
                    let live = scene.figures();
                    scene.restart();
                    let folded = scene.figures();
                    assert!(folded.1.1 >= live.1.1, "{told}: {folded:?} {live:?}");
                    let figures = |f: ((u64, u64), (u64, u64), u64, u64)| (f.0, f.1.0, f.2, f.3);
                    assert_eq!(figures(folded), figures(live), "{told}: the fold is the live state");
                } else {
                    scene.restart();
                    // What no record told of did not happen, as far as the log knows.
                    seen.said = seen.confirmed.clone();
                    let pending: BTreeSet<_> = seen.given_up.iter().copied().collect();
                    seen.given_up = pending.into_iter().filter(|n| scene.is_given_up(*n)).collect();
                    let ((_, delivered), (_, folded), ..) = scene.figures();
                    seen.deliveries.retain(|sequence, _| *sequence <= delivered);
                    floor = folded.min(floor);
                }
                Vec::new()
            }
            _ => scene.deliver(),
        };
        take(&scene, &mut seen, said, &told);
        let ((delivered, delivered_stream), (floor_consumer, floor_stream), pending, _) = scene.figures();
        assert!(floor_consumer <= delivered && floor_stream <= delivered_stream, "{told}");
        assert!(floor_stream >= floor, "{told}: the floor moved back from {floor} to {floor_stream}");
        floor = floor_stream;
        assert!(pending <= 6, "{told}");
    }
    drain(&mut scene, &mut seen, seed);
}

/// With nobody acking, every message that is not done comes within an ack wait, until it is given up.
fn drain(scene: &mut Scene, seen: &mut Seen, seed: u64) {
    let told = format!("seed {seed} at the end");
    let mut open: BTreeSet<u64> = scene.open();
    // Some were asked to come late, by at most 40 s.
    let mut rounds = 0;
    while !open.is_empty() {
        let said = scene.pull("end", expires(100, ACK_WAIT));
        let more = scene.pass(ACK_WAIT + 40 * SECOND);
        for sequence in super::scene::sequences(&said).iter().chain(&super::scene::sequences(&more)) {
            open.remove(sequence);
        }
        take(scene, seen, said, &told);
        take(scene, seen, more, &told);
        open.retain(|sequence| !scene.is_given_up(*sequence));
        // Six at a time, and each up to four times.
        rounds += 1;
        assert!(rounds < 400, "{told}: {open:?} never came");
    }
}

#[test]
fn in_random_histories_nothing_confirmed_comes_again_and_nothing_unacked_is_forgotten() {
    for seed in 1..=150 {
        for ack_policy in [AckPolicy::Explicit, AckPolicy::All] {
            for filtered in [false, true] {
                history(seed, ack_policy, filtered);
            }
        }
    }
}
