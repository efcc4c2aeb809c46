//! What a client's commands do. Called with whatever was read; never waits, never reads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use beamlog_router::interest::{Envelope, RouteCache, Subscriber};
use beamlog_router::stream::ORIGIN_HEADER;
use beamlog_router::{PublishBatch, headers, subject};

use super::connection::Refused;
use super::{ConnectOptions, Connection, encode};
use crate::jetstream::{ApiRequest, Handled, is_api_subject};
use crate::protocol::{Command, Limits, Parsed, Publish, Violation, parse};
use crate::server::{Context, Grant};

/// Captured publishes that are handed to the router in one piece; and their bytes, about.
const BATCH_PUBLISHES_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 256 << 10;

const USER_INFO: &[u8] = b"$SYS.REQ.USER.INFO";

/// The state of one client's conversation.
pub(crate) struct Interpreter {
    connection: Arc<Connection>,
    context: Arc<Context>,
    cache: RouteCache,
    limits: Limits,
    options: ConnectOptions,
    /// CONNECT must come first, and did not come yet.
    awaiting_auth: bool,
    connected: bool,
    /// PONG was said once; `connect_info` follows the first.
    ponged: bool,
    /// The connection's buffer has words of ours that nobody promised to flush.
    spoke: bool,
    /// Captured publishes of what is being processed.
    captured: PublishBatch,
    /// How many there were the last time, and their bytes: the next are likely as many.
    captured_before: (usize, usize),
    messages: u64,
    bytes: u64,
}

/// A command that cannot be done now.
struct Stop {
    blocked: Blocked,
    /// It was not begun, and is to be read again.
    again: bool,
}

/// Where the interpreter stopped.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Everything whole was done; at least this many bytes are missing.
    Incomplete {
        missing: usize,
    },
    /// The router takes no more now: wait for room, hand this in, then go on with the rest.
    Blocked(Blocked),
    Close(Violation),
}

/// What the router had no room for. It must not be lost, and nothing behind it may overtake it.
#[derive(Debug)]
pub(crate) enum Blocked {
    Publishes(PublishBatch),
    /// An API publish; it is read again from the same bytes.
    Api,
}

impl Interpreter {
    pub(crate) fn new(connection: Arc<Connection>, context: Arc<Context>) -> Self {
        let options = &context.options;
        let limits = Limits {
            control_line_max: options.control_line_max,
            payload_max: options.payload_max,
            headers: false,
        };
        // A guest has shown who it is.
        let awaiting_auth = options.auth.is_required() && connection.guest.is_none();
        Self {
            connection,
            context,
            cache: RouteCache::new(),
            limits,
            options: ConnectOptions::default(),
            awaiting_auth,
            connected: false,
            ponged: false,
            spoke: false,
            captured: PublishBatch::default(),
            captured_before: (0, 0),
            messages: 0,
            bytes: 0,
        }
    }

    pub(crate) fn awaiting_auth(&self) -> bool {
        self.awaiting_auth
    }

    /// Does what `input` says, as far as it goes. Returns how many bytes were consumed.
    pub(crate) fn process(&mut self, input: &[u8]) -> (usize, Progress) {
        let mut rest = input;
        let progress = loop {
            if self.awaiting_auth && !matches!(rest.first(), None | Some(b'C' | b'c')) {
                break Progress::Close(Violation::Authorization);
            }
            match parse(rest, &self.limits) {
                Ok(Parsed::Command(command, after)) => match self.command(&command) {
                    Ok(None) => rest = after,
                    Ok(Some(Stop { blocked, again })) => {
                        if !again {
                            rest = after;
                        }
                        break Progress::Blocked(blocked);
                    }
                    Err(violation) => break Progress::Close(violation),
                },
                Ok(Parsed::Incomplete { missing }) => break Progress::Incomplete { missing },
                Err(violation) => break Progress::Close(violation),
            }
        };
        // Whoever waits for room comes back, and finds how it goes on from the same bytes.
        let progress = match progress {
            Progress::Incomplete { .. } | Progress::Close(_) => {
                self.hand_over().map_or(progress, Progress::Blocked)
            }
            Progress::Blocked(_) => progress,
        };
        (input.len() - rest.len(), progress)
    }

    /// Gives the router what was captured. Nothing that goes there by another way may overtake it.
    fn hand_over(&mut self) -> Option<Blocked> {
        if self.captured.is_empty() {
            return None;
        }
        let batch = std::mem::take(&mut self.captured);
        self.captured_before = (batch.len(), batch.content_bytes());
        let jetstream = self.context.jetstream.as_ref()?;
        jetstream.offer(batch).err().map(|full| Blocked::Publishes(full.0))
    }

    /// The end of a batch: everything that was put into buffers is written. Returns whether some receiver
    /// takes less than comes, so that this client should be read more slowly.
    pub(crate) fn flush(&mut self) -> bool {
        let input = &self.connection.input;
        input.messages.fetch_add(std::mem::take(&mut self.messages), Ordering::Relaxed);
        input.bytes.fetch_add(std::mem::take(&mut self.bytes), Ordering::Relaxed);
        self.cache.flush();
        if std::mem::take(&mut self.spoke) {
            self.connection.flush();
        }
        self.cache.take_congested()
    }

    fn say(&mut self, lines: &[u8]) {
        self.connection.say(lines);
        self.spoke = true;
    }

    fn say_error(&mut self, text: &str) {
        self.connection.say_error(text);
        self.spoke = true;
    }

    fn ok(&mut self) {
        if self.options.verbose {
            self.say(encode::OK);
        }
    }

    fn command(&mut self, command: &Command<'_>) -> Result<Option<Stop>, Violation> {
        match command {
            Command::Publish(publish) => return Ok(self.publish(publish)),
            Command::Ping => self.ping(),
            Command::Pong => self.connection.pong(),
            Command::Subscribe { filter, queue, sid } => self.subscribe(filter, *queue, sid),
            Command::Unsubscribe { sid, max } => {
                self.connection.unsubscribe(&self.context.interest, sid, *max);
                self.ok();
            }
            Command::Connect(json) => self.connect(json)?,
            Command::Ignored => {}
        }
        Ok(None)
    }

    fn connect(&mut self, json: &[u8]) -> Result<(), Violation> {
        let mut options = ConnectOptions::parse(json).ok_or(Violation::Malformed)?;
        if self.connection.guest.is_none() && !self.context.options.auth.allows(&options) {
            return Err(Violation::Authorization);
        }
        if !matches!(options.protocol, 0 | 1) {
            return Err(Violation::InvalidClientProtocol);
        }
        if options.no_responders && !options.headers {
            return Err(Violation::NoRespondersWithoutHeaders);
        }
        options.forget_secrets();
        if let Some(guest) = &self.connection.guest {
            options.user.0.clone_from(&guest.name);
        }
        self.awaiting_auth = false;
        self.connected = true;
        self.limits.headers = options.headers;
        self.options = options.clone();
        self.connection.set_options(options);
        self.connection.input.connected.store(true, Ordering::Release);
        self.ok();
        Ok(())
    }

    fn ping(&mut self) {
        self.say(encode::PONG);
        if !std::mem::replace(&mut self.ponged, true) && self.connected && self.options.protocol >= 1 {
            let info = self.context.info.connected_line(&self.connection);
            self.say(&info);
        }
    }

    fn grant(&self) -> Option<&Grant> {
        self.connection.guest.as_ref()?.grant.as_ref()
    }

    fn subscribe(&mut self, filter: &[u8], queue: Option<&[u8]>, sid: &[u8]) {
        if self.grant().is_some_and(|grant| !grant.allows_subscribe(filter)) {
            let filter = String::from_utf8_lossy(filter);
            return self.say_error(&format!("Permissions Violation for Subscription to \"{filter}\""));
        }
        if self.context.interest.is_internal(filter) {
            let filter = String::from_utf8_lossy(filter);
            return self.say_error(&format!("Permissions Violation for Subscription to \"{filter}\""));
        }
        let max = self.context.options.subscriptions_max;
        match self.connection.subscribe(&self.context.interest, filter, queue, sid, max) {
            Ok(()) => self.ok(),
            Err(Refused::InvalidSubject) => self.say_error("Invalid Subject"),
            Err(Refused::TooMany) => self.say_error("maximum subscriptions exceeded"),
        }
    }

    fn publish(&mut self, publish: &Publish<'_>) -> Option<Stop> {
        // An answer would be said by us where its asker may not speak.
        let internal = [publish.subject, publish.reply];
        if let Some(subject) = internal.into_iter().find(|subject| self.context.interest.is_internal(subject))
        {
            let subject = String::from_utf8_lossy(subject);
            self.say_error(&format!("Permissions Violation for Publish to \"{subject}\""));
            return None;
        }
        if self.grant().is_some_and(|grant| !grant.allows_publish(publish.subject)) {
            let subject = String::from_utf8_lossy(publish.subject);
            self.say_error(&format!("Permissions Violation for Publish to \"{subject}\""));
            return None;
        }
        // Where a message comes from is known to links alone: a client that could say it would have later
        // messages of that origin taken for duplicates.
        if claims_origin(publish.headers) {
            let headers = headers::without(publish.headers, |name| name == ORIGIN_HEADER.as_bytes());
            return self.publish_unclaimed(&Publish { headers: &headers, ..*publish });
        }
        self.publish_unclaimed(publish)
    }

    fn publish_unclaimed(&mut self, publish: &Publish<'_>) -> Option<Stop> {
        let envelope = Envelope {
            subject: publish.subject,
            reply: publish.reply,
            headers: publish.headers,
            payload: publish.payload,
            origin: self.connection.id,
        };
        if publish.subject.first() == Some(&b'$')
            && self.context.jetstream.is_some()
            && is_api_subject(publish.subject)
        {
            if let Some(blocked) = self.hand_over() {
                return Some(Stop { blocked, again: true });
            }
            let jetstream = self.context.jetstream.as_ref()?;
            let request = ApiRequest {
                subject: publish.subject,
                reply: publish.reply,
                headers: publish.headers,
                payload: publish.payload,
                no_responders: self.options.no_responders,
            };
            let handled = jetstream.handle(&request);
            if handled == Handled::Full {
                return Some(Stop { blocked: Blocked::Api, again: true });
            }
            self.accept(publish);
            if handled == Handled::Elsewhere {
                return None;
            }
            // Requests can be listened to; acks are too many to look for listeners each time.
            let heard = publish.subject.starts_with(b"$JS.API.")
                && self.context.interest.route(&mut self.cache, publish.subject, &envelope).receivers > 0;
            if handled == Handled::NoResponders && !heard {
                self.no_responders(publish);
            }
            return None;
        }
        self.accept(publish);
        let routed = self.context.interest.route(&mut self.cache, publish.subject, &envelope);
        if let Some(stream) = routed.capture
            && self.context.jetstream.is_some()
        {
            if self.captured.is_empty() {
                let (publishes, bytes) = self.captured_before;
                self.captured = PublishBatch::with_capacity(publishes, bytes);
            }
            let Publish { subject, reply, headers, payload, .. } = publish;
            self.captured.push(stream, subject, reply, headers, payload);
            let is_large = self.captured.len() >= BATCH_PUBLISHES_MAX
                || self.captured.content_bytes() >= BATCH_BYTES_MAX;
            let blocked = if is_large { self.hand_over() } else { None };
            return blocked.map(|blocked| Stop { blocked, again: false });
        }
        if routed.receivers == 0 && !publish.reply.is_empty() {
            if publish.subject == USER_INFO {
                let body = self.context.info.user_info(&self.options.user.0);
                let answer =
                    Envelope { subject: publish.reply, reply: b"", headers: b"", payload: &body, origin: 0 };
                self.context.interest.route(&mut self.cache, publish.reply, &answer);
            } else {
                self.no_responders(publish);
            }
        }
        None
    }

    /// Counts a publish, and says what pedantic and verbose clients want to hear.
    fn accept(&mut self, publish: &Publish<'_>) {
        self.messages += 1;
        self.bytes += (publish.headers.len() + publish.payload.len()) as u64;
        if self.options.pedantic && subject::check_subject(publish.subject).is_err() {
            self.say_error("Invalid Publish Subject");
        }
        self.ok();
    }

    /// Nobody hears the request: its sender learns it at once, if it asked for that.
    fn no_responders(&mut self, publish: &Publish<'_>) {
        if !self.options.no_responders || publish.reply.is_empty() {
            return;
        }
        let me = Arc::clone(&self.connection) as Arc<dyn Subscriber>;
        let Some(id) = self.context.interest.plain_subscription(publish.reply, &me) else { return };
        let headers = headers::Builder::status(503, "").header("Nats-Subject", publish.subject).finish();
        // From nobody: it is meant for its own requester, echo or not.
        let answer =
            Envelope { subject: publish.reply, reply: b"", headers: &headers, payload: b"", origin: 0 };
        me.offer(id, &answer);
        self.spoke = true;
    }
}

fn claims_origin(block: &[u8]) -> bool {
    !block.is_empty() && memchr::memmem::find(block, ORIGIN_HEADER.as_bytes()).is_some()
}
