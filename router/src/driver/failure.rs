//! After a failed write or sync: nothing of the batch gets out, nothing more is stored, and of what can be
//! read only that which was durable before is served (DR2).

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::PoisonError;

use beamlog_log::{Sequence, StreamId};

use crate::api::error::{ApiError, PublishRefusal};
use crate::api::request::{Answer, PublishOutcome, Request, Response};
use crate::driver::Driver;
use crate::driver::command::{Command, PublishReply};
use crate::driver::release::Held;
use crate::driver::replica::Replicated;
use crate::engine::{Input, Output};
use crate::stats::Health;
use crate::stream::ConsumerNames;
use crate::wire::DeliveryStatus;

/// Why the log stopped, and what is known not to be durable.
#[derive(Debug)]
pub(super) struct Failure {
    /// The first sequence of each stream whose durability is unknown.
    doubtful: BTreeMap<StreamId, Sequence>,
}

/// Why somebody's wait ends without what it was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GiveUp {
    LogFailed,
    NotLeader,
}

impl GiveUp {
    pub(super) fn api_error(self) -> ApiError {
        match self {
            Self::LogFailed => ApiError::LogFailed,
            Self::NotLeader => ApiError::NotLeader,
        }
    }

    fn refusal(self) -> PublishRefusal {
        match self {
            Self::LogFailed => PublishRefusal::LogFailed,
            Self::NotLeader => PublishRefusal::NotLeader,
        }
    }
}

impl Driver {
    /// The log has failed: everybody who waits is told, and the handles too.
    pub(super) fn fail(&mut self, error: &dyn Error) {
        let reason = chain(error);
        tracing::error!(err = reason, "the log has failed: nothing more is stored by this process");
        *self.shared.health.lock().unwrap_or_else(PoisonError::into_inner) = Health::LogFailed { reason };
        let mut doubtful: BTreeMap<StreamId, Sequence> = BTreeMap::new();
        let held = std::mem::take(&mut self.held);
        for (stream, sequence) in self.unsynced.drain(..) {
            let first = doubtful.entry(stream).or_insert(sequence);
            *first = (*first).min(sequence);
        }
        self.failure = Some(Failure { doubtful });
        for one in held {
            self.give_up(one, GiveUp::LogFailed);
        }
        if self.replica.as_deref().is_some_and(Replicated::leads) {
            self.withdraw(GiveUp::LogFailed, Input::StepDown);
            self.tell_role();
        }
        for (_, then) in std::mem::take(&mut self.asked) {
            then(Err(ApiError::LogFailed));
        }
        self.routes.flush();
    }

    /// Tells whoever waits for a held output that it will not come.
    pub(super) fn give_up(&mut self, held: Held, why: GiveUp) {
        match held {
            Held::PublishAck { reply, stream, .. } => {
                self.ack_publish(&reply, stream, Err(why.refusal()));
            }
            Held::Outcome { ticket, outcome: PublishOutcome { stream, .. } } => {
                // Who dropped its ticket does not want the outcome.
                drop(ticket.send(PublishOutcome { stream, result: Err(why.refusal()) }));
            }
            Held::Answer { then, .. } => then(Err(why.api_error())),
            // Who waits for the word on its ack must not take silence for it.
            Held::AckReply { to } if why == GiveUp::NotLeader => {
                let names = ConsumerNames { stream: String::new(), consumer: String::new() };
                self.tell_status(&names, &to, None, &DeliveryStatus::NobodyToAck);
            }
            Held::Deliver { .. }
            | Held::Status { .. }
            | Held::AckReply { .. }
            | Held::Advisory(_)
            | Held::Capture { .. }
            | Held::Release { .. }
            | Held::Watch { .. }
            | Held::Unwatch { .. }
            | Held::Republish { .. } => {}
        }
    }

    /// What waits is refused, but for reads.
    pub(super) fn refuse_all(&mut self) {
        drop(self.shared.queue.take_interest());
        for command in std::mem::take(&mut self.commands) {
            self.refuse(command);
        }
        self.routes.flush();
    }

    pub(super) fn refuse(&mut self, command: Command) {
        match command {
            Command::Publish { publish, reply } => {
                self.refuse_publish(publish.stream, reply, GiveUp::LogFailed)
            }
            Command::PublishAll(batch) => {
                let (bytes, rows) = batch.into_rows();
                for row in rows {
                    self.refuse_publish(row.stream, PublishReply::Wire(row.reply(&bytes)), GiveUp::LogFailed);
                }
            }
            Command::Request { request, then } => {
                let answer = self.read_durable(*request);
                then(answer);
            }
            Command::Acknowledge(_) | Command::Pull(_) | Command::FlowControl(_) => {}
        }
    }

    pub(super) fn refuse_publish(&mut self, stream: StreamId, reply: PublishReply, why: GiveUp) {
        self.refused_full += 1;
        self.hold_outcome(reply, stream, Err(why.refusal()), true);
        if let Some(held) = self.held.pop() {
            self.give_up(held, why);
        }
    }

    /// The engine's state may be ahead of the log: a message is served when it was durable before the
    /// failure. What is not found may only have been removed by what failed, and is no answer.
    fn read_durable(&mut self, request: Request) -> Answer {
        if self.replica.is_some() {
            // What was durable here may not have been committed; others know.
            return Err(ApiError::LogFailed);
        }
        let stream = match &request {
            Request::GetMessage { stream, .. } | Request::DirectGet { stream, .. } => stream.clone(),
            Request::AccountInfo
            | Request::CreateStream(_)
            | Request::UpdateStream(_)
            | Request::DeleteStream { .. }
            | Request::StreamInfo { .. }
            | Request::StreamNames { .. }
            | Request::StreamList { .. }
            | Request::PurgeStream { .. }
            | Request::DirectGetBatch { .. }
            | Request::DeleteMessage { .. }
            | Request::CreateConsumer { .. }
            | Request::ConsumerInfo { .. }
            | Request::ConsumerNames { .. }
            | Request::ConsumerList { .. }
            | Request::DeleteConsumer { .. }
            | Request::PauseConsumer { .. }
            | Request::Reserve(_)
            | Request::Release { .. }
            | Request::PutShard(_)
            | Request::Shards
            | Request::Rearrange(_)
            | Request::Move(_)
            | Request::Arrive(_)
            | Request::MovingHere
            | Request::Reservations => return Err(ApiError::LogFailed),
        };
        let mut answered = Err(ApiError::LogFailed);
        let now = self.clock.now();
        let mut turn = crate::engine::Turn { now, journal: &mut self.log, has_interest: &|_| false };
        self.engine.handle(&mut turn, Input::Request { token: 0, request });
        while let Some(output) = self.engine.poll_output() {
            if let Output::Answer { answer, .. } = output {
                answered = answer;
            }
        }
        let Ok(Response::Message(message)) = answered else { return Err(ApiError::LogFailed) };
        let doubtful = self.failure.as_ref().and_then(|failure| failure.doubtful.get(&message.stream));
        let is_durable = doubtful.is_none_or(|first| message.sequence < *first);
        // A stream that was not there before has no durable messages, whatever its name was before.
        if is_durable && self.engine.stream_name(message.stream) == Some(&stream) {
            Ok(Response::Message(message))
        } else {
            Err(ApiError::LogFailed)
        }
    }
}

/// An error with its causes, as one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
