//! What happened, in order: hashed always, kept on request. Two runs of one seed have the same hash.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use beamlog_net::runtime::{Moment, now};

/// The trace of a run.
#[derive(Debug)]
pub struct Trace {
    begun: Moment,
    told: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hash: u64,
    events: u64,
}

impl Trace {
    /// Begins now, by the clock of the simulation. `told` prints every event to standard error.
    #[must_use]
    pub fn begin(told: bool) -> Self {
        Self { begun: now(), told, inner: Mutex::default() }
    }

    /// Adds an event.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let at = self.elapsed();
        let text = event.to_string();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // FNV-1a, 64 bit, over the time and the text of every event.
        let bytes = at.as_nanos().to_le_bytes();
        for byte in bytes.iter().chain(text.as_bytes()) {
            inner.hash = (inner.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        inner.events += 1;
        drop(inner);
        if self.told {
            eprintln!("{:>12.6} {text}", at.as_secs_f64());
        }
    }

    /// Simulated time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        now() - self.begun
    }

    /// The hash and the number of events so far.
    #[must_use]
    pub fn summary(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.hash, inner.events)
    }
}

/// `note!(trace, "text {value}")`.
#[macro_export]
macro_rules! note {
    ($trace:expr, $($text:tt)*) => { $trace.note(format_args!($($text)*)) };
}
