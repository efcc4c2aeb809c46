//! Random lives with power cuts, against a model of what was promised.
//!
//! Promised: a stored message is there, with its bytes, until something removes it; a confirmed removal is
//! final; nothing appears that was never published. What was under way when the power went may be there
//! or not.

use std::collections::{BTreeMap, BTreeSet};

use beamlog_log::sim_disk::Crash;
use beamlog_log::{SeededRandom, Sequence};
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{Published, Purge};

use crate::world::{World, s};

#[derive(Default)]
struct Model {
    /// Promised messages: subject and payload.
    stored: BTreeMap<u64, (String, String)>,
    /// Published without an answer.
    doubtful: BTreeSet<String>,
    /// Removals without an answer.
    maybe_removed: BTreeSet<u64>,
    last: u64,
    published: u64,
}

impl Model {
    fn publish(&mut self, world: &World, random: &mut SeededRandom) {
        let count = 1 + random.below(12);
        let tickets: Vec<_> = (0..count)
            .map(|_| {
                self.published += 1;
                let subject = format!("s.{}", random.below(5));
                let size = usize::try_from(random.below(400)).unwrap();
                let payload = format!("{}-{}", self.published, "d".repeat(size));
                (world.begin(&subject, &[], &payload), subject, payload)
            })
            .collect();
        for (ticket, subject, payload) in tickets {
            match ticket.wait().result {
                Ok(Published::Stored(Sequence(sequence))) => {
                    assert!(sequence > self.last, "sequences ascend");
                    self.last = sequence;
                    self.stored.insert(sequence, (subject, payload));
                }
                Ok(Published::Duplicate(_)) => panic!("no ids are used"),
                Ok(Published::Waiting | Published::Batch { .. }) => panic!("no batches are published"),
                Err(_) => {
                    self.doubtful.insert(payload);
                }
            }
        }
    }

    fn delete(&mut self, world: &World, random: &mut SeededRandom) {
        let sequence = 1 + random.below(self.last + 1);
        match world.delete(sequence) {
            Ok(()) => {
                self.stored.remove(&sequence);
            }
            Err(ApiError::MessageDeleteFailed(_)) => {
                assert!(!self.stored.contains_key(&sequence), "{sequence} was promised");
            }
            Err(_) => {
                self.maybe_removed.insert(sequence);
            }
        }
    }

    fn purge(&mut self, world: &World, random: &mut SeededRandom) {
        let subject = format!("s.{}", random.below(5));
        let before = random.below(self.last + 2);
        let purge = Purge { filter: subject.clone(), before: Some(Sequence(before)), keep: None };
        let request = beamlog_router::api::request::Request::PurgeStream { stream: "S".into(), purge };
        let meant: Vec<u64> = self
            .stored
            .iter()
            .filter(|(at, (of, _))| *of == subject && (before == 0 || **at < before))
            .map(|(at, _)| *at)
            .collect();
        let done = world.request(request).is_ok();
        for sequence in meant {
            if done {
                self.stored.remove(&sequence);
            } else {
                self.maybe_removed.insert(sequence);
            }
        }
    }

    /// Compares with what is there, and takes it for the truth.
    fn check(&mut self, world: &World, what: &str) {
        let content: BTreeMap<u64, String> = world.content().into_iter().collect();
        for (sequence, (_, payload)) in &self.stored {
            match content.get(sequence) {
                Some(found) => assert_eq!(found, payload, "{what}: {sequence}"),
                None => assert!(self.maybe_removed.contains(sequence), "{what}: {sequence} was promised"),
            }
        }
        for (sequence, payload) in &content {
            if !self.stored.contains_key(sequence) {
                assert!(self.doubtful.contains(payload), "{what}: {sequence} was never published");
            }
        }
        let mut now = BTreeMap::new();
        for (sequence, payload) in content {
            let subject = String::from_utf8_lossy(&world.get(sequence).unwrap().subject).into_owned();
            now.insert(sequence, (subject, payload));
        }
        let by_subject = |subject: &str| now.values().filter(|(of, _)| of == subject).count() as u64;
        let info = world.info();
        for (subject, count) in info.subjects.unwrap().items {
            assert_eq!(count, by_subject(&subject), "{what}: {subject}");
        }
        assert_eq!(info.state.messages, now.len() as u64, "{what}");
        assert!(info.state.last_sequence.0 >= self.last, "{what}: sequences are not used again");
        self.last = info.state.last_sequence.0;
        self.stored = now;
        self.maybe_removed.clear();
    }
}

#[test]
fn promises_hold_across_power_cuts_at_any_moment() {
    for seed in 0..24 {
        let mut random = SeededRandom::new(seed);
        let mut world = World::with(s());
        let mut model = Model::default();
        for life in 0..6 {
            let what = format!("seed {seed} life {life}");
            if life % 2 == 1 {
                world.disk.power_off_at(1 + random.below(60));
            }
            for _ in 0..random.below(40) {
                match random.below(8) {
                    0 => model.delete(&world, &mut random),
                    1 => model.purge(&world, &mut random),
                    _ => model.publish(&world, &mut random),
                }
            }
            if random.one_in(4) && !world.disk.is_off() && life % 2 == 0 {
                world.reopen();
            } else {
                let crashes = Crash::sample(seed * 31 + life);
                let crash = crashes[random.index(crashes.len())];
                world.crash(crash);
            }
            model.check(&world, &what);
        }
    }
}
