//! Streams from here to there. Our durable consumer is the cursor; it moves when their publish ack came, and
//! never before. Several messages are on their way at once; what is sent again was looked for there first,
//! so that nothing depends on how long their window of ids is. Where nobody else writes, one publish ack speaks for
//! a run of messages ([`super::window`]).

pub(super) mod remote;

pub(super) use self::remote::epoch;

use std::time::Duration;

use async_nats::header::{self, HeaderValue};
use beamlog_router::api::error::ApiError;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use self::remote::Remote;
use super::connection::Session;
use super::context::{Backoff, RuleContext, explained};
use super::dead::{self, Letter};
use super::local::{self, Delivered, LocalConsumer, LocalError};
use super::mapping;
use super::rules::{ExportStream, Rule};
use super::trail::{self, StreamKey, Trail};
use super::window::{After, Phase, Runs, Send, Settled, Verdict, Window};

/// Messages on their way at once, and bytes of them.
pub(super) const WINDOW_MESSAGES: usize = 2048;
pub(super) const WINDOW_BYTES: usize = 16 << 20;
/// Of a run only the last message asks for a publish ack. Times are milliseconds.
pub(super) const RUNS: Runs = Runs {
    messages_max: 32,
    bytes_max: 128 << 10,
    age_max: 200,
    careful: 1024,
    bytes_min: 64 << 10,
    quick: 300,
    slow: 1000,
};
/// How long their publish ack may take.
pub(super) const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the lag is measured and answers are missed.
const TICK: Duration = Duration::from_millis(500);
/// Waits between attempts, when something cannot be done now.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Messages that are asked for beyond the room there is, so that they are here when there is.
const AHEAD: usize = 1024;
/// Messages that are sent before answers are looked at.
pub(super) const BURST: usize = 256;

/// Why a transfer ended.
enum Ended {
    Stopping,
    Lost,
    /// It is tried again over the same connection.
    There(String),
    /// Our own side has to be opened anew.
    Here(String),
}

pub(crate) async fn run(mut context: RuleContext, rule: ExportStream) {
    let label = Rule::ExportStream(rule.clone()).label();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    let mut open: Option<Exporter> = None;
    loop {
        let mut exporter = match open.take() {
            Some(exporter) => exporter,
            None => match Exporter::open(&context, &rule, &label).await {
                Ok(exporter) => exporter,
                Err(error) => {
                    context.degraded(&label, format!("stream {} here: {error}", rule.stream));
                    if !context.wait(backoff.next()).await {
                        return;
                    }
                    continue;
                }
            },
        };
        let Some(session) = exporter.session(&mut context).await else { return };
        let ended = exporter.over(&mut context, &session, &mut backoff).await;
        exporter.window.offline();
        match ended {
            Ended::Stopping => return,
            Ended::Lost => {}
            Ended::There(cause) => {
                context.degraded(&label, explained(&session, cause));
                if !context.wait(backoff.next()).await {
                    return;
                }
            }
            Ended::Here(cause) => {
                context.degraded(&label, cause);
                if !context.wait(backoff.next()).await {
                    return;
                }
                continue;
            }
        }
        open = Some(exporter);
    }
}

struct Exporter {
    rule: ExportStream,
    label: String,
    local: LocalConsumer,
    key: StreamKey,
    window: Window<Delivered>,
    begun: Instant,
}

impl Exporter {
    async fn open(context: &RuleContext, rule: &ExportStream, label: &str) -> Result<Self, ApiError> {
        let mapped = rule.mapping.as_ref().map(|mapping| mapping.destination.as_str()).unwrap_or_default();
        let filter = rule.filter.as_deref();
        let name = local::consumer_name(&[&context.link, "export", filter.unwrap_or_default(), mapped]);
        let (local, held) =
            LocalConsumer::open(&context.router, &rule.stream, &name, filter, rule.start).await?;
        let mut window = Window::in_runs(WINDOW_MESSAGES, WINDOW_BYTES, RUNS);
        for message in held {
            window.push(message.sequence, size(&message), message, true);
        }
        let key = local::key(&local.stream);
        Ok(Self { rule: rule.clone(), label: label.to_owned(), local, key, window, begun: Instant::now() })
    }

    /// Waits for a session, measuring what gathers meanwhile.
    async fn session(&mut self, context: &mut RuleContext) -> Option<Session> {
        loop {
            let waited = tokio::time::timeout(TICK, context.session()).await;
            if let Ok(session) = waited {
                return session;
            }
            // Of a stream that is gone the next step tells.
            drop(self.measure(context).await);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn over(&mut self, context: &mut RuleContext, session: &Session, backoff: &mut Backoff) -> Ended {
        let stopping = context.clone();
        let stopping = stopping.stopping();
        let lost = session.lost();
        tokio::pin!(stopping, lost);
        let destinations = self.destinations();
        let remote = tokio::select! {
            remote = Remote::find(session, &destinations) => remote,
            () = &mut lost => return Ended::Lost,
            () = &mut stopping => return Ended::Stopping,
        };
        let mut remote = match remote {
            Ok(remote) => remote,
            Err(cause) => return Ended::There(cause),
        };
        let inbox = session.client.new_inbox();
        let Ok(mut answers) = session.client.subscribe(format!("{inbox}.*")).await else {
            return Ended::Lost;
        };
        self.window.online();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut rest: Option<Instant> = None;
        let mut draining = false;
        loop {
            match self.window.phase() {
                Phase::Compare => {
                    let suspects: Vec<(u64, String)> = self
                        .window
                        .suspects()
                        .filter_map(|(sequence, message)| Some((sequence, self.subject(message)?)))
                        .collect();
                    let compared = tokio::select! {
                        compared = remote.compare(session, &self.key, &suspects) => compared,
                        () = &mut lost => return Ended::Lost,
                    };
                    match compared {
                        Ok(compared) => {
                            let found =
                                self.window.compared(|at| compared.arrived.contains(&at), compared.chain());
                            context.meter.duplicates(found);
                            if found == 0 && suspects.is_empty() {
                                context.running(&self.label);
                            }
                        }
                        Err(cause) => return Ended::There(cause),
                    }
                }
                Phase::Resting if rest.is_none() => rest = Some(Instant::now() + backoff.next()),
                Phase::Offline | Phase::Sending | Phase::Settling { .. } | Phase::Resting => {}
            }
            if !draining {
                let sending = self.send(context, session, &remote, &inbox);
                let sent = tokio::select! {
                    biased;
                    sent = sending => sent,
                    () = &mut lost => return Ended::Lost,
                };
                match sent {
                    Ok(()) => {}
                    Err(ended) => return ended,
                }
            }
            if let Err(error) = self.advance().await {
                return Ended::Here(format!("stream {} here: {error}", self.rule.stream));
            }
            if draining && self.window.in_flight() == 0 {
                return Ended::Stopping;
            }
            if !draining && let Err(error) = self.local.ask(self.window.room() + AHEAD).await {
                return Ended::Here(format!("stream {} here: {error}", self.rule.stream));
            }
            let more = self.window.phase() == Phase::Compare;
            tokio::select! {
                biased;
                () = std::future::ready(()), if more => {}
                answer = answers.next() => {
                    let Some(answer) = answer else { return Ended::Lost };
                    let mut next = Some(answer);
                    while let Some(answer) = next {
                        if let Err(ended) =
                            self.answer(context, session, &mut remote, &inbox, answer, backoff).await
                        {
                            return ended;
                        }
                        next = answers.next().now_or_never().flatten();
                    }
                }
                message = self.local.next(), if !draining && self.window.room() > 0 => {
                    let mut next = Some(message);
                    while let Some(message) = next {
                        if let Err(error) = message.map(|message| self.take(message)) {
                            return Ended::Here(format!("stream {} here: {error}", self.rule.stream));
                        }
                        next = if self.window.room() > 0 { self.local.try_next() } else { None };
                    }
                }
                () = sleep_until(rest), if rest.is_some() => {
                    rest = None;
                    self.window.rested();
                }
                _ = tick.tick() => {
                    let limit = u64::try_from(ACK_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
                    let since = self.now().saturating_sub(limit);
                    if self.window.give_up(since) {
                        let cause = "their publish acks do not come".to_owned();
                        context.degraded(&self.label, explained(session, cause));
                    }
                    if let Err(error) = self.measure(context).await {
                        return Ended::Here(format!("stream {} here: {error}", self.rule.stream));
                    }
                }
                () = context.resync_wanted() => {
                    return Ended::There("comparing both sides, as asked".to_owned());
                }
                () = &mut lost => return Ended::Lost,
                () = &mut stopping, if !draining => {
                    draining = true;
                    self.window.end_run();
                }
            }
        }
    }

    fn take(&mut self, message: Delivered) {
        let bytes = size(&message);
        // One that comes again is in the window, or has arrived there.
        self.window.push(message.sequence, bytes, message, false);
    }

    /// Sends what may be sent now, up to a burst.
    async fn send(
        &mut self,
        context: &RuleContext,
        session: &Session,
        remote: &Remote,
        inbox: &str,
    ) -> Result<(), Ended> {
        let now = self.now();
        for _ in 0..BURST {
            let Some(Send { sequence, message, after, asks }) = self.window.next_send(now) else {
                return Ok(());
            };
            let trail = Trail::of_block(&message.headers);
            let subject = mapping::apply(self.rule.mapping.as_ref(), &message.subject)
                .and_then(|subject| String::from_utf8(subject.into()).ok());
            let Some(subject) = subject else {
                // The rule is not about it.
                self.window.done(sequence);
                continue;
            };
            if remote.targets.iter().any(|target| trail.has_been_in(&target.key)) {
                context.meter.duplicates(1);
                self.window.done(sequence);
                continue;
            }
            let reason = if trail.is_too_long() {
                Some("it has passed too many links".to_owned())
            } else if remote.captures(&subject) {
                None
            } else {
                Some(format!("no stream there captures {subject}"))
            };
            if let Some(reason) = reason {
                let message = message.clone();
                self.park(context, sequence, &message, &reason).await?;
                continue;
            }
            let mut headers = trail::outward(&message.headers, &trail, &self.key, sequence, message.time);
            match after {
                After::Anything => {}
                After::Theirs(last) => {
                    headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(last))
                }
                After::Ours(last) => headers.insert(header::NATS_EXPECTED_LAST_MESSAGE_ID, self.key.id(last)),
            }
            let payload = message.payload.clone();
            context.limit.pass(size(message)).await;
            let client = &session.client;
            let sent = if asks {
                let reply = format!("{inbox}.{sequence}");
                client.publish_with_reply_and_headers(subject, reply, headers, payload).await
            } else {
                client.publish_with_headers(subject, headers, payload).await
            };
            if let Err(error) = sent {
                if error.kind() == async_nats::client::PublishErrorKind::Send {
                    return Err(Ended::Lost);
                }
                // Larger than the server takes, or a subject it would not take.
                let reason = error.to_string();
                let Some(message) = self.message(sequence) else { continue };
                self.park(context, sequence, &message, &reason).await?;
            }
        }
        Ok(())
    }

    fn message(&self, sequence: u64) -> Option<Delivered> {
        self.window.get(sequence).cloned()
    }

    async fn answer(
        &mut self,
        context: &RuleContext,
        session: &Session,
        remote: &mut Remote,
        inbox: &str,
        answer: async_nats::Message,
        backoff: &mut Backoff,
    ) -> Result<(), Ended> {
        let sequence = answer.subject.strip_prefix(inbox).and_then(|rest| rest.strip_prefix('.'));
        let Some(sequence) = sequence.and_then(|text| text.parse().ok()) else { return Ok(()) };
        let now = self.now();
        match remote::verdict(&answer) {
            remote::Answer::Stored(place) => {
                if let Some(Settled { messages, bytes }) =
                    self.window.answered_at(sequence, Verdict::Stored(place), now)
                {
                    backoff.reset();
                    context.meter.transferred(messages, bytes);
                    context.running(&self.label);
                }
            }
            remote::Answer::Duplicate => {
                if self.window.answered_at(sequence, Verdict::Arrived, now).is_some() {
                    backoff.reset();
                    context.meter.duplicates(1);
                    context.running(&self.label);
                }
            }
            remote::Answer::NoStream => {
                // Which streams there are is looked at anew; a subject without one is told by that.
                self.window.answered_at(sequence, Verdict::Again, now);
                match Remote::find(session, &self.destinations()).await {
                    Ok(found) => *remote = found,
                    Err(cause) => return Err(Ended::There(cause)),
                }
            }
            remote::Answer::OutOfOrder => {
                self.window.answered_at(sequence, Verdict::OutOfOrder, now);
            }
            remote::Answer::Again(cause) => {
                if self.window.answered_at(sequence, Verdict::Again, now).is_some() {
                    context.degraded(&self.label, cause);
                }
            }
            remote::Answer::Never(reason) => {
                let Some(message) = self.message(sequence) else { return Ok(()) };
                if self.window.answered_at(sequence, Verdict::Never, now).is_some() {
                    self.park(context, sequence, &message, &reason).await?;
                }
            }
        }
        Ok(())
    }

    /// Puts a message aside that they take never.
    async fn park(
        &mut self,
        context: &RuleContext,
        sequence: u64,
        message: &Delivered,
        reason: &str,
    ) -> Result<(), Ended> {
        let from = trail::provenance(&self.key, sequence, message.time.0, false, None);
        let letter = Letter {
            link: &context.link,
            subject: &message.subject,
            headers: &message.headers,
            payload: &message.payload,
            reason,
            from: &from,
        };
        dead::park(&context.router, &letter).await.map_err(Ended::There)?;
        context.meter.parked(1);
        context.meter.note(format!("message {sequence} was put aside: {reason}"));
        self.window.done(sequence);
        Ok(())
    }

    /// Moves the cursor over what has arrived.
    async fn advance(&mut self) -> Result<(), ApiError> {
        let mut done = Vec::new();
        if self.window.take_done(|sequence, _| done.push(sequence)).is_some() {
            self.local.ack(&done).await?;
        }
        Ok(())
    }

    async fn measure(&self, context: &RuleContext) -> Result<(), LocalError> {
        let pending = self.local.pending().await?;
        let here = self.window.len() as u64;
        // What the window holds tells how large the others are.
        let bytes = self.window.bytes() as u64;
        let bytes = bytes + bytes.checked_div(here).unwrap_or(0) * pending;
        let seconds = self.window.oldest().map_or(0, |message| age_seconds(message.time.0));
        context.meter.lag(here + pending, bytes, seconds);
        Ok(())
    }

    fn subject(&self, message: &Delivered) -> Option<String> {
        let subject = mapping::apply(self.rule.mapping.as_ref(), &message.subject)?;
        String::from_utf8(subject.into()).ok()
    }

    /// The filters of what the rule yields there.
    fn destinations(&self) -> Vec<String> {
        match &self.rule.mapping {
            Some(mapping) => vec![mapping::image(&mapping.destination)],
            None => match &self.rule.filter {
                Some(filter) => vec![filter.clone()],
                None => self.local.stream.config.subjects.clone(),
            },
        }
    }
}

fn size(message: &Delivered) -> usize {
    message.subject.len() + message.headers.len() + message.payload.len()
}

async fn sleep_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// How long ago that was, in nanoseconds since 1970.
pub(super) fn age_seconds(nanos: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(nanos / 1_000_000_000)
}
