//! What was decided becomes durable, and is let out then. While one batch is being synced the next is decided; when
//! one is not stored, neither is any behind it, and all of them did not happen.

use std::task::{Context, Poll};

use tracing::{info, warn};

use super::inbox::{Incoming, REQUESTS};
use super::journal::{JournalError, Writing};
use super::worker::Worker;
use super::{SpanSink, chain};
use crate::engine::Effect;
use crate::state::event::Event;
use crate::trace::Span;

/// Batches that were decided and are not durable yet. One is synced, and one is there when that ends.
pub(super) const UNSETTLED_MAX: usize = 2;
/// To those who asked while the log took nothing.
const NOT_STORED: &[u8] =
    br#"{"ok":false,"error":{"code":"internal","message":"the decision could not be stored"},"context":{}}"#;

/// A batch that was decided.
pub(super) struct Unsettled {
    has_events: bool,
    /// Without events it waits for those before it only.
    writing: Writing,
    effects: Vec<Effect>,
    spans: Vec<Span>,
    /// The number of the first usage that came after it.
    usage_below: u64,
    /// What it was decided from.
    messages: Vec<Incoming>,
    /// The same, of those that were held before.
    again: Vec<(Incoming, u8)>,
}

impl Worker {
    /// Makes what was decided durable, and lets it out; until nothing follows from that any more.
    pub(super) fn commit(&mut self) {
        self.conclude(Vec::new(), Vec::new(), 0);
    }

    /// Hands what was decided from these messages to the log, and lets out what is durable. Returns when at most
    /// `most` batches are not, and nothing is decided that is in none.
    pub(super) fn conclude(&mut self, messages: Vec<Incoming>, again: Vec<(Incoming, u8)>, most: usize) {
        let (mut messages, mut again) = (messages, again);
        let mut is_cut = false;
        loop {
            if self.engine.has_more() || !messages.is_empty() || !again.is_empty() {
                let (events, effects) = self.engine.take();
                let spans = self.spans(&events);
                let writing = self.journal.submit(&events);
                is_cut = writing.is_cut();
                self.unsettled.push_back(Unsettled {
                    has_events: !events.is_empty(),
                    writing,
                    effects,
                    spans,
                    usage_below: self.engine.state().next_usage,
                    messages: std::mem::take(&mut messages),
                    again: std::mem::take(&mut again),
                });
            }
            self.settle(if is_cut { 0 } else { most });
            if !self.engine.has_more() {
                break;
            }
        }
        self.snapshot_when_due();
    }

    /// Lets out what is durable, in order, until at most `most` batches are not: waits for the others.
    pub(super) fn settle(&mut self, most: usize) {
        let mut has_waited = false;
        while let Some(batch) = self.unsettled.front_mut() {
            match batch.writing.poll(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Ok(())) => {
                    if let Some(batch) = self.unsettled.pop_front() {
                        self.let_out(batch);
                    }
                }
                Poll::Ready(Err(problem)) => self.give_up(&problem),
                Poll::Pending if self.unsettled.len() > most => {
                    self.inbox.wait_woken();
                    has_waited = true;
                }
                Poll::Pending => break,
            }
        }
        if has_waited {
            // It may have been woken for something else too: that is looked at in the next turn.
            self.waker.wake_by_ref();
        }
    }

    fn let_out(&mut self, batch: Unsettled) {
        if batch.has_events && self.failed.take().is_some() {
            info!("tasks are stored again");
        }
        if let Some(SpanSink(take)) = &self.options.spans
            && !batch.spans.is_empty()
        {
            take(batch.spans);
        }
        self.carry_out(batch.effects);
        self.usage_below = batch.usage_below;
        self.store_usage();
        let now = self.now();
        for message in batch.messages.iter().filter(|message| message.subscription == REQUESTS) {
            let micros = u64::try_from(message.at.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.engine.answered_after(now, micros);
        }
    }

    /// What these events say, to be told when they are durable.
    fn spans(&mut self, events: &[Event]) -> Vec<Span> {
        let mut spans = Vec::new();
        if self.options.spans.is_some() {
            let state = self.engine.state();
            let begun = events.iter().filter(|event| event.begins_task()).count() as u64;
            self.tracer.see(events, state, state.next_task - begun, &mut spans);
        }
        spans
    }

    /// The log did not take a batch: those who wait for it, or for one behind it, are told, what workers said is kept,
    /// and the engine begins anew from what is durable.
    fn give_up(&mut self, problem: &JournalError) {
        let text = chain(problem);
        warn!(err = %text, "tasks are not stored: nothing is decided until they are");
        self.failed = Some(text);
        let batches = std::mem::take(&mut self.unsettled);
        for effect in batches.iter().flat_map(|batch| &batch.effects) {
            // Only to those who asked: everything else did not happen.
            if let Effect::Publish { subject, .. } = effect
                && subject.starts_with(b"_INBOX.")
            {
                self.route(subject, b"", b"", NOT_STORED);
            }
        }
        self.routes.flush();
        self.storing.clear();
        self.keeping.clear();
        self.stale = true;
        self.begin_anew();
        let is_tried = !self.engine.is_unstored();
        for batch in batches {
            // Inboxes were told by their effects.
            self.tell_unstored(
                batch.messages.iter().filter(|message| !message.reply.starts_with(b"_INBOX.")),
            );
            self.held.put_back(batch.again, is_tried);
            self.held.take_from(batch.messages, is_tried);
        }
    }

    /// To those who asked, and are not answered.
    pub(super) fn tell_unstored<'a>(&mut self, messages: impl Iterator<Item = &'a Incoming>) {
        for message in messages {
            if message.subscription == REQUESTS && !message.reply.is_empty() {
                self.route(&message.reply, b"", b"", NOT_STORED);
            }
        }
        self.routes.flush();
    }
}
