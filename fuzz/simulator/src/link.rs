//! What a link does to a cluster: it brings the messages of another stream in their order, each with where it came
//! from, and where it does not know how far it came it asks. Nothing of it may land twice, and nothing be left out.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use beamlog_log::{SeededRandom, Sequence, Timestamp};
use beamlog_net::runtime::{sleep, timeout};
use beamlog_router::Router;
use beamlog_router::api::request::{PublishOutcome, Request, Response};
use beamlog_router::stream::{ORIGIN_HEADER, Provenance};

use crate::clients::Nodes;
use crate::note;
use crate::oracle::Violation;
use crate::trace::Trace;

const PATIENCE: Duration = Duration::from_secs(2);
/// What the source is called, and the only one there ever was of that name.
const ORIGIN: (&str, u64) = ("FAR", 1);
/// Messages that are on their way at once.
const AHEAD: u64 = 4;

/// A link, and how far it was told that it came.
pub struct Link {
    pub stream: &'static str,
    nodes: Arc<dyn Nodes>,
    trace: Arc<Trace>,
    acked: AtomicU64,
    busy: AtomicBool,
}

impl Link {
    #[must_use]
    pub fn new(stream: &'static str, nodes: Arc<dyn Nodes>, trace: Arc<Trace>) -> Self {
        Self { stream, nodes, trace, acked: AtomicU64::new(0), busy: AtomicBool::new(false) }
    }

    /// Up to where it was told that everything is stored.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.busy.load(Ordering::Relaxed)
    }

    /// Brings one message after another until told to stop.
    pub async fn bring(self: Arc<Self>, mut random: SeededRandom, think: Duration, go_on: Arc<AtomicBool>) {
        self.busy.store(true, Ordering::Relaxed);
        while go_on.load(Ordering::Relaxed) {
            let place = random.index(self.nodes.count());
            if let Some(router) = self.nodes.router(place)
                && let Some(from) = self.watermark(&router).await
            {
                note!(self.trace, "the link goes on behind {from} through n{place}");
                self.session(&router, from, think, &go_on).await;
            }
            sleep(Duration::from_millis(20 + random.below(100))).await;
        }
        self.busy.store(false, Ordering::Relaxed);
    }

    /// Up to where everything is there; `None` if nobody can say.
    async fn watermark(&self, router: &Router) -> Option<u64> {
        let info = Request::StreamInfo {
            stream: self.stream.to_owned(),
            subjects_filter: None,
            offset: 0,
            deleted_details: false,
        };
        let ticket = router.request(info).ok()?;
        let Ok(Ok(Response::Stream { info, .. })) = timeout(PATIENCE, ticket.into_future()).await else {
            return None;
        };
        let of = info.origins.iter().find(|origin| (origin.stream.as_str(), origin.epoch) == ORIGIN);
        Some(of.map_or(0, |origin| origin.contiguous.0))
    }

    /// Sends what comes behind `from` until something is not acked.
    async fn session(&self, router: &Router, from: u64, think: Duration, go_on: &AtomicBool) {
        let mut next = from + 1;
        loop {
            let mut tickets = Vec::new();
            for sequence in next..next + AHEAD {
                let provenance = Provenance {
                    stream: ORIGIN.0.to_owned(),
                    epoch: ORIGIN.1,
                    sequence: Sequence(sequence),
                    time: Timestamp(sequence),
                    keep_sequence: false,
                    after: (sequence > 1).then_some(Sequence(sequence - 1)),
                };
                let headers = format!("NATS/1.0\r\n{ORIGIN_HEADER}: {}\r\n\r\n", provenance.to_header());
                match router.publish("link.far", headers, format!("{sequence} far")) {
                    Ok(ticket) => tickets.push((sequence, ticket)),
                    Err(_) => return,
                }
            }
            for (sequence, ticket) in tickets {
                match timeout(PATIENCE, ticket.into_future()).await {
                    Ok(PublishOutcome { result: Ok(_), .. }) => {
                        self.acked.fetch_max(sequence, Ordering::Relaxed);
                    }
                    Ok(PublishOutcome { result: Err(_), .. }) | Err(_) => return,
                }
            }
            next += AHEAD;
            if !go_on.load(Ordering::Relaxed) {
                return;
            }
            sleep(think).await;
        }
    }

    /// Compares with the messages of its stream, by sequence.
    pub fn check(&self, stored: &BTreeMap<u64, u64>) -> Result<(), Violation> {
        let mut last = 0;
        for (sequence, from) in stored {
            if *from != last + 1 {
                let text = format!("message {from} of the link stands at {sequence}, behind {last}");
                return Err(Violation::Other(text));
            }
            last = *from;
        }
        let acked = self.acked.load(Ordering::Relaxed);
        if last < acked {
            return Err(Violation::Other(format!(
                "the link was told that {acked} is stored, and {last} is the last"
            )));
        }
        Ok(())
    }
}
