//! The stream that is imported and our durable consumer of it: where to begin, and what a stream that was
//! made anew or set back means.
//!
//! Invariant: a message is acked there only if every message that the consumer delivered before it came here.
//! What is delivered is counted by the consumer (its own sequence in each delivery). A count that jumps, or a
//! consumer that has delivered more than came, means that a connection took messages with it: they would
//! never come again once a later one is acked, so they are delivered anew first.

use async_nats::jetstream::consumer::pull::{Config, Stream};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, StreamError};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{RawMessageErrorKind, RetentionPolicy};
use async_nats::{HeaderMap, Subject};
use beamlog_router::stream::OriginInfo;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use std::time::Duration;

use crate::link::connection::Session;
use crate::link::export::epoch;
use crate::link::rules::{ImportStream, StartFrom};
use crate::link::trail::StreamKey;

/// Messages of one pull.
const PULL_MAX: usize = 4000;
/// Bytes of one pull: on a slow way more would not be here before it is taken for lost, or before the server
/// takes us for too slow. One message is asked for even if it has more.
const PULL_BYTES: usize = 2 << 20;
/// What is counted to a message besides its headers and payload: subject, reply.
const AROUND_PAYLOAD: usize = 64 << 10;
/// Deliveries without an ack.
const UNACKED_MAX: i64 = 8192;
/// What is in hand is stored long before, unless we are gone.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// The same where the consumer must stay, and what was lost on the way is waited for.
const ACK_WAIT_INTEREST: Duration = Duration::from_secs(10);
/// A pull that hears nothing for twice this long has been forgotten there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What must be known of a stream there.
#[derive(Clone, Debug)]
pub(super) struct There {
    pub(super) name: String,
    pub(super) epoch: u64,
    pub(super) subjects: Vec<String>,
    pub(super) last: u64,
    retention: RetentionPolicy,
}

pub(super) async fn stream(session: &Session, name: &str) -> Result<There, String> {
    let stream = session.jetstream.get_stream(name).await;
    let stream = stream.map_err(|error| format!("stream {name} there: {error}"))?;
    let info = stream.cached_info();
    Ok(There {
        name: name.to_owned(),
        epoch: epoch(info),
        subjects: info.config.subjects.clone(),
        last: info.state.last_sequence,
        retention: info.config.retention,
    })
}

/// From where, and under which name, a stream is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Plan {
    pub(super) key: StreamKey,
    /// Where to begin if there is no consumer there, or it has gone astray.
    begin: Begin,
    /// The consumer there knows a past that is no more.
    pub(super) discard: bool,
    /// What an operator should know.
    pub(super) note: Option<String>,
    retention: RetentionPolicy,
}

impl Plan {
    /// Whether a consumer may be deleted and made anew: where interest keeps messages, what it has not acked
    /// would be deleted with it.
    pub(super) fn may_recreate(&self) -> bool {
        !matches!(self.retention, RetentionPolicy::Interest)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Begin {
    All,
    New,
    Sequence(u64),
    /// Nanoseconds since 1970.
    Time(u64),
}

/// Epochs of one stream that was set back are counted up from when it was made.
const SETBACKS_MAX: u64 = 1000;

/// Decides from what is there and what came from there so far. Pure.
pub(super) fn plan(rule: &ImportStream, there: &There, origins: &[OriginInfo]) -> Plan {
    let of_stream = |origin: &&OriginInfo| origin.stream == there.name;
    let current = origins
        .iter()
        .filter(of_stream)
        .filter(|origin| (there.epoch..there.epoch.saturating_add(SETBACKS_MAX)).contains(&origin.epoch))
        .max_by_key(|origin| origin.epoch);
    let plan = Plan {
        key: StreamKey { name: there.name.clone(), epoch: there.epoch },
        begin: Begin::All,
        discard: false,
        note: None,
        retention: there.retention,
    };
    match current {
        None if origins.iter().any(|origin| origin.stream == there.name) => Plan {
            note: Some(format!("stream {} was made anew there: its messages are new ones", there.name)),
            discard: true,
            ..plan
        },
        None => Plan {
            begin: match rule.start {
                StartFrom::All => Begin::All,
                StartFrom::New => Begin::New,
                StartFrom::Sequence(sequence) => Begin::Sequence(sequence.max(1)),
                StartFrom::Time(time) => Begin::Time(time),
            },
            ..plan
        },
        Some(current) if there.last < current.highest.0 => set_back(plan, current),
        Some(current) => Plan {
            key: StreamKey { epoch: current.epoch, ..plan.key.clone() },
            begin: Begin::Sequence(current.contiguous.0 + 1),
            ..plan
        },
    }
}

/// It lost its end (a backup was put in place, or a disk lied): what it stores now has sequences that we
/// know with other messages. A new epoch, or all of that would be taken for duplicates.
fn set_back(plan: Plan, current: &OriginInfo) -> Plan {
    Plan {
        key: StreamKey { epoch: current.epoch + 1, ..plan.key.clone() },
        begin: Begin::Time(current.highest_time.0 + 1),
        discard: true,
        note: Some(format!(
            "stream {} there is behind what came from it (sequence {}): it was set back; what it stores now is imported as new",
            plan.key.name, current.highest
        )),
        ..plan
    }
}

/// A stream that was set back and has grown past our watermark shows by the message at the watermark.
pub(super) async fn verify(session: &Session, plan: Plan, origins: &[OriginInfo]) -> Result<Plan, String> {
    let of_plan =
        origins.iter().find(|origin| origin.stream == plan.key.name && origin.epoch == plan.key.epoch);
    let Some(current) = of_plan else { return Ok(plan) };
    let name = &plan.key.name;
    let explain = |error: &dyn std::fmt::Display| format!("stream {name} there: {error}");
    let stream = session.jetstream.get_stream_no_info(name).await.map_err(|error| explain(&error))?;
    match stream.get_raw_message(current.highest.0).await {
        Ok(message) => {
            let time = u64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(0);
            Ok(if time == current.highest_time.0 { plan } else { set_back(plan, current) })
        }
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(plan),
        Err(error) => Err(explain(&error)),
    }
}

/// Where a delivery says that it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::link) struct Position {
    pub(in crate::link) sequence: u64,
    /// Deliveries of the consumer up to this one.
    pub(in crate::link) delivery: u64,
    /// Nanoseconds since 1970.
    pub(in crate::link) time: u64,
}

impl Position {
    /// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>[.<token>]`
    pub(in crate::link) fn parse(reply: &str) -> Option<Self> {
        let mut tokens = reply.split('.');
        let count = tokens.clone().count();
        // Without a domain there are nine; with one, newer servers may add to the end.
        let at = match count {
            9 => 5,
            11.. => 7,
            _ => return None,
        };
        let mut number = |skip: usize| tokens.nth(skip)?.parse().ok();
        let sequence = number(at).filter(|sequence| *sequence > 0)?;
        Some(Self { sequence, delivery: number(0)?, time: number(0)? })
    }
}

/// A message that was delivered.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) sequence: u64,
    /// Deliveries of the consumer up to this one.
    delivery: u64,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) subject: Subject,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
    pub(super) reply: Subject,
}

impl Arrived {
    fn read(message: async_nats::Message) -> Option<Self> {
        let reply = message.reply?;
        let Position { sequence, delivery, time } = Position::parse(&reply)?;
        Some(Self {
            sequence,
            delivery,
            time,
            subject: message.subject,
            headers: message.headers,
            payload: message.payload,
            reply,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let headers = self.headers.iter().flat_map(HeaderMap::iter);
        let headers: usize = headers
            .map(|(name, values)| {
                values
                    .iter()
                    .map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len())
                    .sum::<usize>()
            })
            .sum();
        self.subject.len() + headers + self.payload.len()
    }
}

/// Our consumer there.
pub(super) struct Upstream {
    pub(super) key: StreamKey,
    session: Session,
    consumer: Consumer<Config>,
    messages: Stream,
    all_acks: bool,
    /// Deliveries that came, or were made before us and are all acked.
    deliveries: u64,
    /// An error that came while nobody waited.
    failed: Option<String>,
    /// The count at the last look, if more was delivered by then than came.
    stalled: Option<u64>,
    pull: Pull,
    /// The count at the last look, if nothing was delivered by then although there is more.
    unheard: Option<u64>,
}

/// How much is asked for at a time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pull {
    Bytes(usize),
    /// The next message, whatever its size: it was stored when larger ones were allowed there.
    One,
}

impl Pull {
    fn of(session: &Session) -> Self {
        let payload = session.client.server_info().max_payload;
        Self::Bytes(PULL_BYTES.max(payload.saturating_add(AROUND_PAYLOAD)))
    }

    async fn from(self, consumer: &Consumer<Config>) -> Result<Stream, StreamError> {
        let pulls = consumer.stream().heartbeat(HEARTBEAT);
        let pulls = match self {
            Self::Bytes(bytes) => pulls.max_messages_per_batch(PULL_MAX).max_bytes_per_batch(bytes),
            Self::One => pulls.max_messages_per_batch(1),
        };
        pulls.messages().await
    }
}

impl Upstream {
    /// Finds the consumer there or makes it. `last` is the last sequence that came and is still known here,
    /// `None` if nothing is: what it delivered behind that has to be delivered again, in order.
    pub(super) async fn open(
        session: &Session,
        rule: &ImportStream,
        name: &str,
        plan: &Plan,
        last: Option<u64>,
    ) -> Result<Self, String> {
        let explain =
            |error: &dyn std::fmt::Display| format!("our consumer of stream {} there: {error}", rule.stream);
        let stream =
            session.jetstream.get_stream_no_info(&rule.stream).await.map_err(|error| explain(&error))?;
        let found = match stream.consumer_info(name).await {
            Ok(info) => Some(info),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => None,
            Err(error) => return Err(explain(&error)),
        };
        let all_acks = matches!(plan.retention, RetentionPolicy::Limits);
        let policy = if all_acks { AckPolicy::All } else { AckPolicy::Explicit };
        let may_recreate = plan.may_recreate();
        let mut begin = plan.begin;
        let mut deliveries = None;
        if let Some(info) = &found {
            let fits = info.config.ack_policy == policy
                && info.config.filter_subject == rule.filter.clone().unwrap_or_default();
            let lost =
                info.num_ack_pending > 0 && last.is_none_or(|last| info.delivered.stream_sequence > last);
            // Acks may have been lost too. Where each is for itself, no later one makes up for them.
            let unacked = info.num_ack_pending > 0 && !all_acks;
            if plan.discard || !fits || ((lost || unacked) && may_recreate) {
                if !plan.discard {
                    begin = resume(plan, last, info.ack_floor.stream_sequence);
                }
                stream.delete_consumer(name).await.map_err(|error| explain(&error))?;
            } else {
                if lost {
                    // When nobody asks for new ones, these come first.
                    tokio::time::sleep(ACK_WAIT_INTEREST + Duration::from_secs(1)).await;
                }
                deliveries = Some(info.delivered.consumer_sequence);
            }
        } else if let Some(last) = last {
            begin = resume(plan, Some(last), 0);
        }
        // A work queue has only what is not acked, and its consumers begin nowhere else.
        if matches!(plan.retention, RetentionPolicy::WorkQueue) {
            begin = Begin::All;
        }
        let config = Config {
            durable_name: Some(name.to_owned()),
            description: Some("a Beamlog link".to_owned()),
            deliver_policy: match begin {
                Begin::All => DeliverPolicy::All,
                Begin::New => DeliverPolicy::New,
                Begin::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
                Begin::Time(time) => DeliverPolicy::ByStartTime { start_time: time_of(time) },
            },
            ack_policy: policy,
            ack_wait: if may_recreate { ACK_WAIT } else { ACK_WAIT_INTEREST },
            max_ack_pending: UNACKED_MAX,
            filter_subject: rule.filter.clone().unwrap_or_default(),
            ..Config::default()
        };
        let consumer = if deliveries.is_some() {
            stream.get_consumer(name).await.map_err(|error| explain(&error))?
        } else {
            stream.create_consumer(config).await.map_err(|error| explain(&error))?
        };
        let messages = Pull::of(session).from(&consumer).await.map_err(|error| explain(&error))?;
        Ok(Self {
            key: plan.key.clone(),
            session: session.clone(),
            consumer,
            messages,
            all_acks,
            deliveries: deliveries.unwrap_or(0),
            failed: None,
            stalled: None,
            pull: Pull::of(session),
            unheard: None,
        })
    }

    /// Whether an ack is one of everything before it too. Otherwise what was lost on the way comes again
    /// behind what came since.
    pub(super) fn acks_all(&self) -> bool {
        self.all_acks
    }

    /// Counts a delivery; an error if one before it went elsewhere.
    fn count(&mut self, message: async_nats::Message) -> Result<Option<Arrived>, String> {
        let Some(arrived) = Arrived::read(message) else { return Ok(None) };
        if arrived.delivery != self.deliveries + 1 {
            return Err(format!(
                "stream {} there: delivery {} came behind delivery {}; what was lost on the way is asked for again",
                self.key.name, arrived.delivery, self.deliveries
            ));
        }
        self.deliveries = arrived.delivery;
        Ok(Some(arrived))
    }

    /// The next message. *Cancel safety*: may be dropped.
    pub(super) async fn next(&mut self) -> Result<Arrived, String> {
        if let Some(cause) = self.failed.take() {
            return Err(cause);
        }
        loop {
            match self.messages.next().await {
                Some(Ok(message)) => {
                    if let Some(arrived) = self.count(message.message)? {
                        return Ok(arrived);
                    }
                }
                Some(Err(error)) => return Err(format!("reading stream {} there: {error}", self.key.name)),
                None => return Err(format!("reading stream {} there ended", self.key.name)),
            }
        }
    }

    /// The next message, if it is here.
    pub(super) fn try_next(&mut self) -> Option<Arrived> {
        match self.messages.next().now_or_never() {
            Some(Some(Ok(message))) => self.count(message.message).unwrap_or_else(|cause| {
                self.failed = Some(cause);
                None
            }),
            Some(Some(Err(error))) => {
                self.failed = Some(format!("reading stream {} there: {error}", self.key.name));
                None
            }
            Some(None) | None => None,
        }
    }

    /// Acks messages in order. An ack that is lost makes the message come again, and it is known then.
    pub(super) async fn ack(&self, replies: &[Subject]) {
        let of_all = replies.last().map(std::slice::from_ref).unwrap_or_default();
        for reply in if self.all_acks { of_all } else { replies } {
            // A connection that is gone is told of elsewhere.
            drop(self.session.client.publish(reply.clone(), Bytes::new()).await);
        }
    }

    /// How many messages there are that were not delivered yet. `is_idle`: everything that came is stored.
    ///
    /// # Errors
    /// It cannot be asked, or something was delivered that did not come since the last look.
    pub(super) async fn pending(&mut self, is_idle: bool) -> Result<u64, String> {
        let info = self.consumer.info().await;
        let info =
            info.map_err(|error| format!("our consumer of stream {} there: {error}", self.key.name))?;
        let is_behind =
            is_idle && info.num_ack_pending > 0 && info.delivered.consumer_sequence > self.deliveries;
        if is_behind && self.stalled == Some(self.deliveries) {
            return Err(format!(
                "stream {} there: delivery {} did not come; what was lost on the way is asked for again",
                self.key.name,
                self.deliveries + 1
            ));
        }
        self.stalled = is_behind.then_some(self.deliveries);
        let is_unheard = is_idle && info.num_pending > 0 && info.num_ack_pending == 0;
        let pending = info.num_pending;
        let pull = match self.unheard == Some(self.deliveries) && is_unheard {
            true => Pull::One,
            false => Pull::of(&self.session),
        };
        self.unheard = is_unheard.then_some(self.deliveries);
        if pull != self.pull {
            let messages = pull.from(&self.consumer).await;
            let explain = |error| format!("reading stream {} there: {error}", self.key.name);
            self.messages = messages.map_err(explain)?;
            self.pull = pull;
        }
        Ok(pending)
    }
}

/// Where a consumer that is made anew begins: behind what came, or else behind what is durable here.
fn resume(plan: &Plan, last: Option<u64>, ack_floor: u64) -> Begin {
    match last.unwrap_or(ack_floor) {
        0 => plan.begin,
        known => Begin::Sequence(known + 1),
    }
}

fn time_of(nanos: u64) -> async_nats::datetime::DateTime {
    async_nats::datetime::from_nanos(i128::from(nanos)).unwrap_or_else(|_| unreachable!("64 bits fit"))
}
