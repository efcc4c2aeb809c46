//! Takes stored requests to their cells, and their answers into the store.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{debug, error, warn};

use super::DurableOptions;
use super::store::{self, Kept, Open, Reader, Settle, Store};
use crate::bus::Bus;
use crate::envelope::Envelope;
use crate::error::BusError;

/// How long a reader waits at a time, and so how long stopping may take.
const TURN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Threads that deliver. Dropping it ends them; what is on the way is finished.
pub struct Delivery {
    stopping: Arc<Stopping>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("threads", &self.threads.len()).finish()
    }
}

#[derive(Default)]
struct Stopping {
    is: Mutex<bool>,
    told: Condvar,
}

impl Stopping {
    fn is(&self) -> bool {
        *self.is.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until it is stopped, or the time is over.
    fn wait(&self, timeout: Duration) {
        let is = self.is.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.told.wait_timeout_while(is, timeout, |is| !*is).unwrap_or_else(PoisonError::into_inner));
    }

    fn stop(&self) {
        *self.is.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.told.notify_all();
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.stopping.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                error!("a thread that delivers stored requests panicked");
            }
        }
    }
}

impl Delivery {
    pub(super) fn start(
        store: &Arc<dyn Store>,
        bus: &Arc<dyn Bus>,
        options: DurableOptions,
    ) -> Result<Self, BusError> {
        let mut delivery = Self { stopping: Arc::default(), threads: Vec::new() };
        for _ in 0..options.at_once.max(1) {
            let reader = store.reader()?;
            let (store, bus) = (Arc::clone(store), Arc::clone(bus));
            let worker = Worker { store, bus, options, stopping: Arc::clone(&delivery.stopping) };
            let thread = std::thread::Builder::new()
                .name("beamlog-deliver".into())
                .spawn(move || worker.run(reader))
                .map_err(|problem| BusError::Internal(format!("starting to deliver: {problem}")))?;
            delivery.threads.push(thread);
        }
        Ok(delivery)
    }
}

struct Worker {
    store: Arc<dyn Store>,
    bus: Arc<dyn Bus>,
    options: DurableOptions,
    stopping: Arc<Stopping>,
}

impl Worker {
    fn run(&self, mut reader: Box<dyn Reader>) {
        while !self.stopping.is() {
            let done = match reader.next(TURN) {
                Ok(Some(open)) => self.deliver(open),
                Ok(None) => Ok(()),
                Err(problem) => Err(problem),
            };
            if let Err(problem) = done {
                warn!(err = %problem, "stored requests are not delivered now; it is tried again");
                self.stopping.wait(TURN);
            }
        }
    }

    fn deliver(&self, open: Open) -> Result<(), BusError> {
        let Open { payload, deliveries, settle } = open;
        let request = match Envelope::parse_strictly(&payload) {
            Ok(request) => request,
            Err(problem) => {
                // Somebody else wrote it there; it stays in the stream to be looked at.
                error!(err = %problem, "a stored request is no envelope: it is not delivered");
                return settle(Settle::Never);
            }
        };
        let (answer_subject, done) = (store::answer_subject(&request.id)?, store::done_subject(&request.id)?);
        if self.store.last(Kept::Answers, &answer_subject)?.is_none() {
            match self.bus.ask(&request) {
                // The id makes it the answer to this request, whatever the cell wrote there.
                Ok(answer) => {
                    let answer = Envelope { id: request.id, ..answer };
                    // When another one was faster, that one is the answer.
                    self.store.put_first(&answer_subject, answer.encode()?)?;
                }
                Err(problem) => {
                    debug!(id = request.id, err = %problem, deliveries, "a stored request waits for its cell");
                    return settle(Settle::Later(self.pause(deliveries)));
                }
            }
        }
        self.store.tell(&done);
        settle(Settle::Done)
    }

    fn pause(&self, deliveries: u32) -> Duration {
        let doublings = deliveries.saturating_sub(1).min(16);
        self.options.retry_first.saturating_mul(1 << doublings).min(RETRY_MAX)
    }
}
