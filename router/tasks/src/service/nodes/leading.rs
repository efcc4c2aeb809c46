//! What the thread of tasks does beside its work when it leads a cluster: it says so, and gives jobs to workers
//! of other nodes through their outposts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::super::inbox::Incoming;
use super::super::instant;
use super::super::worker::Worker;
use super::roster::Roster;
use super::words::{self, Word};
use crate::engine::pool::Member;
use crate::engine::settings::subjects;
use crate::engine::{Input, Message};

/// Between two words to everybody.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(in crate::service) struct Leading {
    term: u64,
    me: String,
    roster: Roster,
    told: Option<Instant>,
}

impl Leading {
    pub(in crate::service) fn new(term: u64, me: String) -> Self {
        Self { term, me, roster: Roster::default(), told: None }
    }

    /// Everybody is to know soon of what changed.
    pub(in crate::service) fn tell_soon(&mut self) {
        self.told = None;
    }

    /// Workers of other nodes that are subscribed to a subject.
    pub(in crate::service) fn members(&self, subject: &str) -> impl Iterator<Item = Member> + use<'_> {
        self.roster.members(subject)
    }
}

impl Worker {
    /// Says who leads, when it is time, and forgets nodes of which nothing was heard.
    pub(in crate::service) fn lead(&mut self, now: u64) {
        let Some(leading) = &mut self.leading else { return };
        if leading.told.is_some_and(|told| told.elapsed() < EVERY) {
            return;
        }
        leading.told = Some(instant());
        let word = Word::Leads {
            term: leading.term,
            node: leading.me.clone(),
            subjects: self.engine.watched().map(|subject| subject.to_string()).collect(),
            pressure: self.engine.counters().backpressure,
            queued: self.engine.ready_count() as u64,
        };
        let changed = leading.roster.forget_silent(now);
        self.say(words::NODES.as_bytes(), &words::encode(&word, b"", b""));
        self.routes.flush();
        for subject in changed {
            self.tell_members(now, &subject);
        }
    }

    /// An outpost says something.
    pub(in crate::service) fn heard(&mut self, now: u64, message: &Incoming) {
        // From this node's outpost or through the mesh; what a client here says is nothing.
        if message.origin != 0 {
            return;
        }
        let Some(leading) = &mut self.leading else { return };
        let said = match words::decode(&message.payload) {
            Ok(said) => said,
            Err(problem) => {
                debug!(err = %problem, "not understood what a node says of tasks");
                return;
            }
        };
        match said.word {
            Word::Members { term, node, subject, members } if term == leading.term && node != leading.me => {
                let subject: Arc<str> = subject.into();
                if self.engine.watches(&subject) && leading.roster.report(now, &node, &subject, &members) {
                    self.tell_members(now, &subject);
                }
            }
            Word::Said { term, node, connection, subject } if term == leading.term => {
                let is_of_workers = subject == subjects::RESULT
                    || subject == super::super::ASSIGN_ACK
                    || subjects::HEARTBEATS.contains(&subject.as_str());
                if !is_of_workers {
                    return;
                }
                let origin = if node == leading.me {
                    connection
                } else {
                    leading.roster.connection(&node, connection).unwrap_or_default()
                };
                let (headers, payload) = (said.headers, said.payload);
                let message = Message { subject: subject.as_bytes(), reply: b"", headers, payload, origin };
                self.engine.handle(now, Input::Message(message));
            }
            Word::NotTaken { term, node, task, entry } if term == leading.term => {
                // It may have been given to somebody else since.
                let given = self.engine.given_on(task).and_then(|entry| leading.roster.place(entry));
                if given == Some((node.as_str(), entry)) {
                    self.engine.handle(now, Input::NotTaken { task });
                }
            }
            Word::Members { .. }
            | Word::Said { .. }
            | Word::NotTaken { .. }
            | Word::Leads { .. }
            | Word::Job { .. } => {}
        }
    }

    /// Offers a job to a subscription of another node. `None`: the subscription is of this one.
    pub(in crate::service) fn offer_far(
        &mut self,
        subject: &str,
        entry: u64,
        task: u64,
        headers: &[u8],
        payload: &[u8],
    ) -> Option<bool> {
        if !Roster::is_far(entry) {
            return None;
        }
        let Some(leading) = &self.leading else { return Some(false) };
        let Some((node, there)) = leading.roster.place(entry) else { return Some(false) };
        let word = Word::Job { term: leading.term, task, entry: there, subject: subject.to_owned() };
        let to = format!("{}{node}", words::NODE);
        Some(self.say(to.as_bytes(), &words::encode(&word, headers, payload)) > 0)
    }
}
