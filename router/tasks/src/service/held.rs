//! What workers said while the log took no events: it will not be said again, so it waits here, and is taken in
//! as soon as the log takes events. Bounded; a result that finds no room is made up for by its ack wait.

use std::collections::VecDeque;

use super::inbox::{Incoming, NODES, WORKERS};
use super::nodes::words::{self, Word};
use crate::engine::settings::subjects;

const MESSAGES_MAX: usize = 20_000;
const BYTES_MAX: usize = 64 << 20;
/// Taken in at a time.
const AGAIN_MAX: usize = 1_024;
/// How often a message may fail for another reason than a log that takes nothing at all.
const TRIES_MAX: u8 = 3;

#[derive(Default)]
pub(super) struct Held {
    messages: VecDeque<(Incoming, u8)>,
    bytes: usize,
    dropped: u64,
}

impl Held {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How many found no room, since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Keeps what workers said of these. `is_tried`: the log was asked, and may take them the next time.
    pub(super) fn take_from(&mut self, messages: Vec<Incoming>, is_tried: bool) {
        let messages = messages.into_iter().filter(is_of_worker);
        self.put_back(messages.map(|message| (message, 0)).collect(), is_tried);
    }

    pub(super) fn put_back(&mut self, messages: Vec<(Incoming, u8)>, is_tried: bool) {
        for (message, tries) in messages {
            let tries = tries + u8::from(is_tried);
            let weight = message.weight();
            let has_room = self.messages.len() < MESSAGES_MAX && self.bytes + weight <= BYTES_MAX;
            if !has_room || tries > TRIES_MAX {
                self.dropped += 1;
                continue;
            }
            self.bytes += weight;
            self.messages.push_back((message, tries));
        }
    }

    /// The oldest, to be taken in.
    pub(super) fn again(&mut self) -> Vec<(Incoming, u8)> {
        let count = self.messages.len().min(AGAIN_MAX);
        let messages: Vec<_> = self.messages.drain(..count).collect();
        self.bytes -= messages.iter().map(|(message, _)| message.weight()).sum::<usize>();
        messages
    }
}

/// Results, acks, dead letters: of workers here, and of those at other nodes. Heartbeats are of the moment.
pub(super) fn is_of_worker(message: &Incoming) -> bool {
    match message.subscription {
        WORKERS => !subjects::HEARTBEATS.iter().any(|beat| message.subject == beat.as_bytes()),
        NODES => words::decode(&message.payload).is_ok_and(|said| match said.word {
            Word::Said { subject, .. } => !subjects::HEARTBEATS.contains(&subject.as_str()),
            Word::NotTaken { .. } => true,
            Word::Members { .. } | Word::Leads { .. } | Word::Job { .. } => false,
        }),
        _ => false,
    }
}
