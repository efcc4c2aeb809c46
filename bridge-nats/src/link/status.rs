//! How a link is: what `link status`, metrics and `/healthz` are told. Rules count on a [`Meter`]; a status
//! is a copy of what the meters say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::rules::LinkKind;

/// A link, or one of its rules.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum LinkState {
    /// Never connected since it was started or resumed.
    Connecting,
    Connected,
    /// It waits, for the cause to go; local work goes on.
    Degraded {
        cause: String,
    },
    /// Another node of the cluster runs it.
    Standby,
    Paused,
    Stopped,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LinkStatus {
    pub name: String,
    pub kind: LinkKind,
    #[serde(flatten)]
    pub state: LinkState,
    /// The server it is connected to, without credentials.
    pub server: Option<String>,
    pub reconnects: u64,
    pub last_error: Option<String>,
    pub rules: Vec<RuleStatus>,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RuleStatus {
    /// [`super::rules::Rule::label`].
    pub rule: String,
    #[serde(flatten)]
    pub state: LinkState,
    #[serde(flatten)]
    pub figures: RuleFigures,
    pub last_error: Option<String>,
    /// Gaps, deletions and new epochs of the other side, newest last; bounded.
    pub notes: Vec<String>,
}

/// Counters and lag of one rule.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct RuleFigures {
    pub lag_messages: u64,
    pub lag_bytes: u64,
    pub lag_seconds: u64,
    /// Messages that arrived at the other end, each once.
    pub transferred: u64,
    pub transferred_bytes: u64,
    pub duplicates_refused: u64,
    /// Unstored messages only.
    pub dropped: u64,
    /// Messages put into the dead-letter stream.
    pub parked: u64,
    /// Messages there that were deleted before they could be imported.
    pub missed: u64,
}

/// Notes kept for a rule.
const NOTES_MAX: usize = 16;
/// Bytes of an error or a note that are kept: some of it is a peer's text.
const TEXT_MAX: usize = 512;

#[derive(Debug, Default)]
struct Words {
    cause: Option<String>,
    started: bool,
    last_error: Option<String>,
    notes: Vec<String>,
}

/// What one rule counts. Shared by its tasks.
#[derive(Debug, Default)]
pub struct Meter {
    lag_messages: AtomicU64,
    lag_bytes: AtomicU64,
    lag_seconds: AtomicU64,
    transferred: AtomicU64,
    transferred_bytes: AtomicU64,
    duplicates: AtomicU64,
    dropped: AtomicU64,
    parked: AtomicU64,
    missed: AtomicU64,
    words: Mutex<Words>,
}

impl Meter {
    pub fn transferred(&self, messages: u64, bytes: u64) {
        self.transferred.fetch_add(messages, Ordering::Relaxed);
        self.transferred_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn duplicates(&self, messages: u64) {
        self.duplicates.fetch_add(messages, Ordering::Relaxed);
    }

    pub fn dropped(&self, messages: u64) {
        self.dropped.fetch_add(messages, Ordering::Relaxed);
    }

    pub fn parked(&self, messages: u64) {
        self.parked.fetch_add(messages, Ordering::Relaxed);
    }

    pub fn missed(&self, messages: u64) {
        self.missed.fetch_add(messages, Ordering::Relaxed);
    }

    pub fn lag(&self, messages: u64, bytes: u64, seconds: u64) {
        self.lag_messages.store(messages, Ordering::Relaxed);
        self.lag_bytes.store(bytes, Ordering::Relaxed);
        self.lag_seconds.store(seconds, Ordering::Relaxed);
    }

    /// The rule does what it should.
    ///
    /// Returns whether that is news.
    pub fn running(&self) -> bool {
        let mut words = self.words();
        words.started = true;
        words.cause.take().is_some()
    }

    /// The rule cannot do its work now; it keeps trying.
    ///
    /// Returns whether that is news.
    pub fn degraded(&self, cause: impl Into<String>) -> bool {
        let cause = cut(cause.into());
        let mut words = self.words();
        let is_news = words.cause.as_ref() != Some(&cause);
        words.last_error = Some(cause.clone());
        words.cause = Some(cause);
        is_news
    }

    /// Something of the other side that an operator should know: a gap, a new epoch.
    pub fn note(&self, text: impl Into<String>) {
        let mut words = self.words();
        if words.notes.len() == NOTES_MAX {
            words.notes.remove(0);
        }
        words.notes.push(cut(text.into()));
    }

    /// An error that did not stop the rule.
    pub fn error(&self, text: impl Into<String>) {
        self.words().last_error = Some(cut(text.into()));
    }

    #[must_use]
    pub fn figures(&self) -> RuleFigures {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        RuleFigures {
            lag_messages: load(&self.lag_messages),
            lag_bytes: load(&self.lag_bytes),
            lag_seconds: load(&self.lag_seconds),
            transferred: load(&self.transferred),
            transferred_bytes: load(&self.transferred_bytes),
            duplicates_refused: load(&self.duplicates),
            dropped: load(&self.dropped),
            parked: load(&self.parked),
            missed: load(&self.missed),
        }
    }

    /// The status of a rule whose link is in `link`.
    #[must_use]
    pub fn status(&self, rule: String, link: &LinkState) -> RuleStatus {
        let words = self.words();
        let state = match (link, &words.cause) {
            (LinkState::Connected, Some(cause)) => LinkState::Degraded { cause: cause.clone() },
            (LinkState::Connected, None) if !words.started => LinkState::Connecting,
            (link, _) => link.clone(),
        };
        RuleStatus {
            rule,
            state,
            figures: self.figures(),
            last_error: words.last_error.clone(),
            notes: words.notes.clone(),
        }
    }

    fn words(&self) -> std::sync::MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}
