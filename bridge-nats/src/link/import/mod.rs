//! Streams from there to here. A durable consumer there delivers; each message is stored here with its
//! provenance in the same record, and acked there when that is durable. What comes again is known for ever.

pub(super) mod upstream;

use std::collections::VecDeque;
use std::future::IntoFuture as _;
use std::time::Duration;

use beamlog_router::api::error::PublishRefusal;
use beamlog_router::api::request::{PublishOutcome, Published, Request, Response};
use beamlog_router::stream::{Provenance, StreamConfig};
use beamlog_router::{Full, PublishTicket, StreamId, StreamPublish, TicketFuture};
use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::time::Instant;

use self::upstream::{Arrived, Upstream};
use super::connection::Session;
use super::context::{Backoff, RuleContext, explained};
use super::dead::{self, Letter};
use super::export::age_seconds;
use super::rules::{ImportStream, Rule};
use super::trail::{self, StreamKey, Trail};
use super::window::{After, Phase, Send, Verdict, Window};
use super::{local, mapping};

/// Messages in hand at once, and bytes of them.
const WINDOW_MESSAGES: usize = 2048;
const WINDOW_BYTES: usize = 16 << 20;
const TICK: Duration = Duration::from_millis(500);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often the other side is asked how far behind we are.
const MEASURE: Duration = Duration::from_secs(2);

/// Why a transfer ended.
enum Ended {
    Stopping,
    Lost,
    Again(String),
}

/// A message in hand.
#[derive(Clone, Debug)]
struct InHand {
    arrived: Arrived,
    from: StreamKey,
    subject: Bytes,
}

pub(crate) async fn run(mut context: RuleContext, rule: ImportStream) {
    let label = Rule::ImportStream(rule.clone()).label();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut importer = Importer::new(rule, label);
    loop {
        let Some(session) = context.session().await else { return };
        match importer.over(&mut context, &session, &mut backoff).await {
            Ended::Stopping => return,
            Ended::Lost => {}
            Ended::Again(cause) => {
                context.degraded(&importer.label, explained(&session, cause));
                if !context.wait(backoff.next()).await {
                    return;
                }
            }
        }
    }
}

struct Importer {
    rule: ImportStream,
    label: String,
    window: Window<InHand>,
    /// Whose messages are in the window.
    from: Option<StreamKey>,
    /// Stores on their way to the log, in order.
    storing: Storing,
    /// The last sequence that came, to see what is missing.
    last: Option<u64>,
    begun: Instant,
    /// It is to begin at the watermark again.
    resync: bool,
}

/// What was handed to the log. It answers in the order in which it was asked, so only the first is looked at.
#[derive(Debug, Default)]
struct Storing {
    tickets: VecDeque<(u64, TicketFuture<PublishOutcome>)>,
}

impl Storing {
    fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    fn push(&mut self, sequence: u64, ticket: PublishTicket) {
        self.tickets.push_back((sequence, ticket.into_future()));
    }

    /// What became of the first, when that is known; `None` when there is none. *Cancel safety*: may be dropped.
    async fn next(&mut self) -> Option<(u64, PublishOutcome)> {
        let (sequence, ticket) = self.tickets.front_mut()?;
        let told = (*sequence, ticket.await);
        self.tickets.pop_front();
        Some(told)
    }
}

/// The stream here that takes them in.
#[derive(Clone, Debug)]
struct Target {
    id: StreamId,
    key: StreamKey,
}

impl Importer {
    fn new(rule: ImportStream, label: String) -> Self {
        Self {
            rule,
            label,
            window: Window::new(WINDOW_MESSAGES, WINDOW_BYTES),
            from: None,
            storing: Storing::default(),
            last: None,
            begun: Instant::now(),
            resync: false,
        }
    }

    async fn over(&mut self, context: &mut RuleContext, session: &Session, backoff: &mut Backoff) -> Ended {
        let stopping = context.clone();
        let stopping = stopping.stopping();
        let lost = session.lost();
        tokio::pin!(stopping, lost);
        let (mut upstream, target) = tokio::select! {
            opened = self.open(context, session) => match opened {
                Ok(opened) => opened,
                Err(cause) => return Ended::Again(cause),
            },
            () = &mut lost => return Ended::Lost,
            () = &mut stopping => return Ended::Stopping,
        };
        if self.window.phase() == Phase::Offline {
            self.window.online();
        }
        context.running(&self.label);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut measured = Instant::now();
        let mut rest: Option<Instant> = None;
        let mut draining = false;
        loop {
            match self.window.phase() {
                // Our own log knows what is there: everything may be offered again.
                Phase::Compare => {
                    self.window.compared(|_| false, Some(After::Anything));
                }
                Phase::Resting if rest.is_none() => rest = Some(Instant::now() + backoff.next()),
                Phase::Offline | Phase::Sending | Phase::Settling { .. } | Phase::Resting => {}
            }
            if !draining && let Err(ended) = self.store(context, &target).await {
                return ended;
            }
            self.acknowledge(&upstream).await;
            if draining && self.storing.is_empty() {
                // What was acked leaves with the connection that it is acked over.
                drop(tokio::time::timeout(TICK, session.client.flush()).await);
                return Ended::Stopping;
            }
            let more = self.window.phase() == Phase::Compare;
            tokio::select! {
                biased;
                () = std::future::ready(()), if more => {}
                Some((sequence, outcome)) = self.storing.next(), if !self.storing.is_empty() => {
                    let mut next = Some((sequence, outcome));
                    while let Some((sequence, outcome)) = next {
                        if let Err(ended) = self.stored(context, sequence, outcome, backoff).await {
                            return ended;
                        }
                        next = self.storing.next().now_or_never().flatten();
                    }
                }
                arrived = upstream.next(), if !draining && self.window.room() > 0 => match arrived {
                    Ok(arrived) => {
                        let mut next = Some(arrived);
                        while let Some(arrived) = next {
                            if let Err(ended) = self.take(context, &upstream, &target, arrived).await {
                                return ended;
                            }
                            next = (self.window.room() > 0).then(|| upstream.try_next()).flatten();
                        }
                    }
                    Err(cause) => return if session.is_lost() { Ended::Lost } else { Ended::Again(cause) },
                },
                () = sleep_until(rest), if rest.is_some() => {
                    rest = None;
                    self.window.rested();
                }
                _ = tick.tick() => {
                    if measured.elapsed() > MEASURE {
                        measured = Instant::now();
                        if let Err(cause) = self.measure(context, &mut upstream).await {
                            return if session.is_lost() { Ended::Lost } else { Ended::Again(cause) };
                        }
                    }
                }
                () = context.resync_wanted() => {
                    self.resync = true;
                    return Ended::Again("reading again from the watermark, as asked".to_owned());
                }
                () = &mut lost => return Ended::Lost,
                () = &mut stopping, if !draining => draining = true,
            }
        }
    }

    /// Both ends: the consumer there and the stream here.
    async fn open(&mut self, context: &RuleContext, session: &Session) -> Result<(Upstream, Target), String> {
        let info = upstream::stream(session, &self.rule.stream).await?;
        let here = match local::stream(&context.router, &self.rule.target).await {
            Ok(here) => here,
            Err(beamlog_router::api::error::ApiError::StreamNotFound) => {
                self.create(context, &info.subjects).await?
            }
            Err(error) => return Err(format!("stream {} here: {error}", self.rule.target)),
        };
        let target = Target { id: here.id, key: local::key(&here) };
        let plan = upstream::plan(&self.rule, &info, &here.origins);
        let mut plan = upstream::verify(session, plan, &here.origins).await?;
        if std::mem::take(&mut self.resync) {
            // What is in hand comes again, and what of it is stored is known then.
            plan.discard = plan.may_recreate();
            self.window = Window::new(WINDOW_MESSAGES, WINDOW_BYTES);
            self.from = None;
        }
        if let Some(note) = &plan.note {
            context.meter.note(note.clone());
            tracing::warn!(link = %context.link, rule = self.label, note, "what is imported has changed");
        }
        // Of the same stream the window goes on where it is; what it holds is in order.
        let anew = self.from.as_ref() != Some(&plan.key);
        if anew && !self.window.is_empty() {
            return self.finish_old(context).await.and(Err("the stream there is another one now".to_owned()));
        }
        if anew {
            self.window = Window::new(WINDOW_MESSAGES, WINDOW_BYTES);
            (self.from, self.last) = (Some(plan.key.clone()), None);
        }
        // In a cluster whoever runs the link next goes on with the same consumer.
        let owner = match context.is_clustered {
            true => target.key.to_string(),
            false => context.router.node_id().to_string(),
        };
        let name = local::consumer_name(&[
            &context.link,
            "import",
            &owner,
            &self.rule.target,
            self.rule.filter.as_deref().unwrap_or_default(),
        ]);
        let upstream = Upstream::open(session, &self.rule, &name, &plan, self.last).await?;
        Ok((upstream, target))
    }

    /// What is still in hand of a stream that is no more is stored first, under its own name.
    async fn finish_old(&mut self, context: &RuleContext) -> Result<(), String> {
        let here = local::stream(&context.router, &self.rule.target).await;
        let here = here.map_err(|error| format!("stream {} here: {error}", self.rule.target))?;
        let target = Target { id: here.id, key: local::key(&here) };
        self.window.online();
        self.window.compared(|_| false, Some(After::Anything));
        let mut unused = Backoff::new(BACKOFF.0, BACKOFF.1);
        while !self.window.is_empty() {
            let stored = async {
                self.store(context, &target).await?;
                while let Some((sequence, outcome)) = self.storing.next().await {
                    self.stored(context, sequence, outcome, &mut unused).await?;
                }
                Ok::<(), Ended>(())
            };
            if let Err(Ended::Again(cause)) = stored.await {
                return Err(cause);
            }
            self.window.take_done(|_, _| {});
            if self.window.phase() != Phase::Sending {
                return Err(format!("stream {} here takes nothing now", self.rule.target));
            }
        }
        Ok(())
    }

    async fn create(
        &mut self,
        context: &RuleContext,
        subjects: &[String],
    ) -> Result<beamlog_router::api::request::StreamInfo, String> {
        let subjects = match &self.rule.mapping {
            Some(mapping) => vec![mapping::image(&mapping.destination)],
            None => self.rule.filter.clone().map_or_else(|| subjects.to_vec(), |filter| vec![filter]),
        };
        let config = StreamConfig {
            name: self.rule.target.clone(),
            subjects,
            description: format!("imported by link {}", context.link),
            ..StreamConfig::default()
        };
        match local::request(&context.router, Request::CreateStream(Box::new(config))).await {
            Ok(Response::Stream { info, .. }) => Ok(*info),
            Ok(_) => Err("an answer of another kind".to_owned()),
            Err(error) => Err(format!("making stream {} here: {error}", self.rule.target)),
        }
    }

    async fn take(
        &mut self,
        context: &RuleContext,
        upstream: &Upstream,
        target: &Target,
        arrived: Arrived,
    ) -> Result<(), Ended> {
        let sequence = arrived.sequence;
        if self.last.is_some_and(|last| sequence <= last) {
            return self.take_again(context, upstream, target, arrived).await;
        }
        let missing = self.last.map_or(0, |last| sequence.saturating_sub(last + 1));
        if missing > 0 && self.rule.filter.is_none() {
            context.meter.missed(missing);
        }
        self.last = self.last.max(Some(sequence));
        let trail = Trail::of_map(arrived.headers.as_ref());
        let from = upstream.key.clone();
        let bytes = arrived.bytes();
        let subject = mapping::apply(self.rule.mapping.as_ref(), arrived.subject.as_bytes());
        // A message that has been here is not stored again, and one that the rule is not about neither.
        let skip = trail.has_been_in(&target.key) || subject.is_none();
        let subject = subject.unwrap_or_default();
        context.limit.pass(bytes).await;
        self.window.push(sequence, bytes, InHand { arrived, from, subject }, false);
        if skip {
            context.meter.duplicates(1);
            self.window.done(sequence);
        }
        Ok(())
    }

    /// One that is not behind the last that came: it came before, or was lost then.
    async fn take_again(
        &mut self,
        context: &RuleContext,
        upstream: &Upstream,
        target: &Target,
        arrived: Arrived,
    ) -> Result<(), Ended> {
        let sequence = arrived.sequence;
        if self.window.get(sequence).is_some() {
            return Ok(());
        }
        if upstream.acks_all() && self.window.is_past(sequence) {
            // Our ack was lost on the way.
            context.meter.duplicates(1);
            upstream.ack(std::slice::from_ref(&arrived.reply)).await;
            return Ok(());
        }
        // Whether it was stored before, the stream here knows.
        let reply = arrived.reply.clone();
        let subject = mapping::apply(self.rule.mapping.as_ref(), arrived.subject.as_bytes());
        let has_been_here = Trail::of_map(arrived.headers.as_ref()).has_been_in(&target.key);
        let (Some(subject), false) = (subject, has_been_here) else {
            context.meter.duplicates(1);
            upstream.ack(&[reply]).await;
            return Ok(());
        };
        let bytes = arrived.bytes();
        context.limit.pass(bytes).await;
        let message = InHand { arrived, from: upstream.key.clone(), subject };
        let from =
            trail::provenance(&message.from, sequence, message.arrived.time, self.rule.keep_sequence, None);
        let outcome = local::store(&context.router, to_store(target, &message, &from)).await;
        match outcome.result {
            Ok(Published::Stored(_)) => context.meter.transferred(1, bytes as u64),
            Ok(Published::Duplicate(_)) => context.meter.duplicates(1),
            Ok(Published::Waiting | Published::Batch { .. }) => unreachable!("it has an origin"),
            Err(PublishRefusal::WrongLastSequence { .. }) if self.rule.keep_sequence => {
                self.park(context, sequence, &message, "it came too late to keep its sequence").await?;
            }
            Err(refusal) if is_for_ever(&refusal) => {
                self.park(context, sequence, &message, &refusal.to_string()).await?;
            }
            Err(refusal) => {
                return Err(Ended::Again(format!("stream {} here: {refusal}", self.rule.target)));
            }
        }
        if !upstream.acks_all() {
            upstream.ack(&[reply]).await;
        }
        Ok(())
    }

    /// Hands to the log what may be handed to it now.
    async fn store(&mut self, context: &RuleContext, target: &Target) -> Result<(), Ended> {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        while let Some(Send { sequence, message, after, .. }) = self.window.next_send(now) {
            let after = match after {
                After::Ours(after) => Some(after),
                After::Anything | After::Theirs(_) => None,
            };
            let keep = self.rule.keep_sequence;
            let from = trail::provenance(&message.from, sequence, message.arrived.time, keep, after);
            let mut publish = to_store(target, message, &from);
            let ticket = loop {
                match context.router.store(publish) {
                    Ok(ticket) => break ticket,
                    Err(Full(back)) => {
                        publish = back;
                        local::wait_for_room(&context.router)
                            .await
                            .map_err(|error| Ended::Again(error.to_string()))?;
                    }
                }
            };
            self.storing.push(sequence, ticket);
        }
        Ok(())
    }

    async fn stored(
        &mut self,
        context: &RuleContext,
        sequence: u64,
        outcome: PublishOutcome,
        backoff: &mut Backoff,
    ) -> Result<(), Ended> {
        let bytes = self.window.get(sequence).map_or(0, |message| message.arrived.bytes()) as u64;
        match outcome.result {
            Ok(Published::Stored(_)) => {
                backoff.reset();
                if self.window.answered(sequence, Verdict::Arrived).is_some() {
                    context.meter.transferred(1, bytes);
                    context.running(&self.label);
                }
            }
            Ok(Published::Duplicate(_)) => {
                self.window.answered(sequence, Verdict::Arrived);
                context.meter.duplicates(1);
            }
            Ok(Published::Waiting | Published::Batch { .. }) => unreachable!("it has an origin"),
            Err(PublishRefusal::WrongLastSequence { .. }) if !self.rule.keep_sequence => {
                self.window.answered(sequence, Verdict::OutOfOrder);
            }
            Err(refusal) if is_for_ever(&refusal) => {
                let Some(message) = self.window.get(sequence).cloned() else { return Ok(()) };
                if self.window.answered(sequence, Verdict::Never).is_some() {
                    let reason = refusal.to_string();
                    self.park(context, sequence, &message, &reason).await?;
                }
            }
            Err(PublishRefusal::StreamNotFound) => {
                self.window.answered(sequence, Verdict::Again);
                return Err(Ended::Again(format!("stream {} is not here any more", self.rule.target)));
            }
            Err(refusal) => {
                self.window.answered(sequence, Verdict::Again);
                context.degraded(&self.label, format!("stream {} here: {refusal}", self.rule.target));
            }
        }
        Ok(())
    }

    async fn park(
        &mut self,
        context: &RuleContext,
        sequence: u64,
        message: &InHand,
        reason: &str,
    ) -> Result<(), Ended> {
        let from = trail::provenance(&message.from, sequence, message.arrived.time, false, None);
        let headers = trail::inward(message.arrived.headers.as_ref(), &from);
        let letter = Letter {
            link: &context.link,
            subject: message.arrived.subject.as_bytes(),
            headers: &headers,
            payload: &message.arrived.payload,
            reason,
            from: &from,
        };
        dead::park(&context.router, &letter).await.map_err(Ended::Again)?;
        context.meter.parked(1);
        context.meter.note(format!("message {sequence} was put aside: {reason}"));
        self.window.done(sequence);
        Ok(())
    }

    /// Acks there what is durable here.
    async fn acknowledge(&mut self, upstream: &Upstream) {
        let mut replies = Vec::new();
        self.window.take_done(|_, message| replies.push(message.arrived.reply));
        upstream.ack(&replies).await;
    }

    async fn measure(&mut self, context: &RuleContext, upstream: &mut Upstream) -> Result<(), String> {
        let pending = upstream.pending(self.window.is_empty()).await?;
        let here = self.window.len() as u64;
        let bytes = self.window.bytes() as u64;
        let bytes = bytes + bytes.checked_div(here).unwrap_or(0) * pending;
        let seconds = self.window.oldest().map_or(0, |message| age_seconds(message.arrived.time));
        context.meter.lag(here + pending, bytes, seconds);
        Ok(())
    }
}

/// A message as it is stored here.
fn to_store(target: &Target, message: &InHand, from: &Provenance) -> StreamPublish {
    StreamPublish {
        stream: target.id,
        subject: message.subject.clone(),
        reply: Bytes::new(),
        headers: trail::inward(message.arrived.headers.as_ref(), from).into(),
        payload: message.arrived.payload.clone(),
    }
}

/// Refusals that the same message would meet again.
fn is_for_ever(refusal: &PublishRefusal) -> bool {
    match refusal {
        PublishRefusal::TooLarge
        | PublishRefusal::HeadersTooLarge
        | PublishRefusal::HeadersMalformed
        | PublishRefusal::TtlInvalid
        | PublishRefusal::RollupInvalid { .. }
        | PublishRefusal::MessageIdReused { .. } => true,
        PublishRefusal::WrongStream
        | PublishRefusal::WrongLastSequence { .. }
        | PublishRefusal::WrongLastMessageId { .. }
        | PublishRefusal::MissingExpectedSequence
        | PublishRefusal::MaxMessages
        | PublishRefusal::MaxBytes
        | PublishRefusal::MaxMessagesPerSubject
        | PublishRefusal::Sealed
        | PublishRefusal::RollupNotPermitted
        | PublishRefusal::TtlDisabled
        | PublishRefusal::Batch(_)
        | PublishRefusal::CountersDisabled
        | PublishRefusal::SchedulesDisabled
        | PublishRefusal::InsufficientStorage
        | PublishRefusal::LogFailed
        | PublishRefusal::TooManyRequests
        | PublishRefusal::TooManyOrigins
        | PublishRefusal::StreamNotFound
        // Whether it was stored is unknown; what is stored is known when it is offered again.
        | PublishRefusal::NotLeader
        | PublishRefusal::Unreadable(_) => false,
    }
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
