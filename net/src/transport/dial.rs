//! The address book, and keeping a connection with everybody in it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::endpoint::Inner;
use super::introduce::Failed;
use super::session::{Live, reason_of};
use super::settings::{BACKOFF_MAX, BACKOFF_MIN, BACKOFF_REFUSED, HANDSHAKE_MAX, STABLE};
use crate::certificates::chain;
use crate::handshake::Reason;
use crate::peer::PeerId;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// A peer to keep connected with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAddress {
    /// `None` before the first contact: then whoever answers, if it is of the cluster.
    pub id: Option<PeerId>,
    /// `host:port`, tried in this order. Names are resolved again at each attempt.
    pub addresses: Vec<String>,
}

/// One attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the address {address} cannot be resolved")]
    Resolve { address: String, source: std::io::Error },
    #[error("{address} has no address that this endpoint can reach")]
    NoAddress { address: String },
    #[error("connecting to {address}")]
    Connect { address: SocketAddr, source: quinn::ConnectError },
    #[error("the connection to {address} failed")]
    Lost { address: SocketAddr, source: quinn::ConnectionError },
    #[error("{address} did not finish the handshake in time")]
    Slow { address: SocketAddr },
    #[error("we refused {address}: {reason} {detail}")]
    Refused { address: SocketAddr, reason: Reason, detail: String },
    #[error("refused by {address}: {reason} {detail}")]
    RefusedByPeer { address: SocketAddr, reason: Reason, detail: String },
    #[error("the transport is closed")]
    Closed,
}

impl DialError {
    /// Whether trying again soon is of no use.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Refused { reason, .. } | Self::RefusedByPeer { reason, .. } => reason.is_lasting(),
            // A certificate that one side does not believe.
            Self::Lost { source, .. } => matches!(source, quinn::ConnectionError::TransportError(_)),
            Self::Resolve { .. }
            | Self::NoAddress { .. }
            | Self::Connect { .. }
            | Self::Slow { .. }
            | Self::Closed => false,
        }
    }
}

/// Tasks that keep connections up, one for each entry.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<BTreeMap<String, (PeerAddress, JoinHandle<()>)>>);

impl Book {
    pub(super) fn set(&self, inner: &Arc<Inner>, peers: Vec<PeerAddress>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wanted: BTreeMap<String, PeerAddress> = BTreeMap::new();
        for peer in peers {
            if peer.id != Some(inner.options.id) && !peer.addresses.is_empty() {
                wanted.insert(peer.id.map_or_else(|| peer.addresses.join(","), |id| id.to_string()), peer);
            }
        }
        tasks.retain(|key, (entry, task)| {
            let stays = wanted.get(key) == Some(entry) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, entry) in wanted {
            tasks.entry(key).or_insert_with(|| {
                let task = tokio::spawn(keep(Arc::clone(inner), entry.clone()));
                (entry, task)
            });
        }
    }

    pub(super) fn clear(&self) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, task) in std::mem::take(&mut *tasks).into_values() {
            task.abort();
        }
    }
}

/// Keeps a connection with one peer, whoever dialled it.
async fn keep(inner: Arc<Inner>, entry: PeerAddress) {
    let mut id = entry.id;
    let mut failures = 0_u32;
    // Of two that would dial each other at once, one lets the other begin.
    if id.is_some_and(|peer| peer < inner.options.id) {
        sleep(jittered(BACKOFF_MIN)).await;
    }
    loop {
        if let Some(live) = id.and_then(|id| inner.table.get(id)) {
            live.gone().await;
            if live.age() >= STABLE {
                failures = 0;
            }
            // Not at once: a session that ends as soon as it begins must not make a storm.
            sleep(jittered(BACKOFF_MIN)).await;
            continue;
        }
        match inner.dial_any(&entry.addresses, id).await {
            Ok(live) => id = Some(live.session.peer),
            Err(error) => {
                // An address of our own in a list that all nodes share.
                if matches!(&error, DialError::Refused { reason: Reason::Itself, .. }) && id.is_none() {
                    return;
                }
                failures = failures.saturating_add(1);
                debug!(addresses = ?entry.addresses, failures, err = %chain(&error), "a peer was not reached");
                if let Some(counts) = id.and_then(|id| inner.table.counts(id)) {
                    counts.failed(&chain(&error));
                }
                let most = if error.is_lasting() { BACKOFF_REFUSED } else { BACKOFF_MAX };
                sleep(jittered(backoff(failures, most))).await;
            }
        }
    }
}

fn backoff(failures: u32, most: Duration) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(12)).min(most)
}

/// Between half of it and all of it.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

impl Inner {
    /// Tries addresses until one leads to a session. The last failure is told.
    pub(super) async fn dial_any(
        self: &Arc<Self>,
        addresses: &[String],
        expected: Option<PeerId>,
    ) -> Result<Arc<Live>, DialError> {
        let mut failure = DialError::Closed;
        for address in addresses {
            match self.dial(address, expected).await {
                Ok(live) => return Ok(live),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn dial(self: &Arc<Self>, address: &str, expected: Option<PeerId>) -> Result<Arc<Live>, DialError> {
        let resolve = |source| DialError::Resolve { address: address.to_owned(), source };
        let only_v4 = self.endpoint.local_addr().is_ok_and(|local| local.is_ipv4());
        let found: Vec<SocketAddr> = tokio::net::lookup_host(address)
            .await
            .map_err(resolve)?
            .filter(|found| found.is_ipv4() || !only_v4)
            .take(ADDRESSES_MAX)
            .collect();
        let mut failure = DialError::NoAddress { address: address.to_owned() };
        for address in found {
            match timeout(HANDSHAKE_MAX, self.dial_one(address, expected)).await {
                Ok(Ok(live)) => return Ok(live),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = DialError::Slow { address },
            }
        }
        Err(failure)
    }

    async fn dial_one(
        self: &Arc<Self>,
        address: SocketAddr,
        expected: Option<PeerId>,
    ) -> Result<Arc<Live>, DialError> {
        if *self.closing.borrow() {
            return Err(DialError::Closed);
        }
        let client = self.configs().client;
        // The name plays no part: see `certificates::verify`.
        let connecting = self
            .endpoint
            .connect_with(client, address, "beamlog")
            .map_err(|source| DialError::Connect { address, source })?;
        let connection = connecting.await.map_err(|source| DialError::Lost { address, source })?;
        self.introduce_to(connection, expected).await.map_err(|failed| match failed {
            Failed::Refused { reason, name, detail } => {
                // That one of two connections goes is no fault of the peer's.
                if reason != Reason::AlreadyConnected {
                    self.refusals.refused(reason, &name, address, &detail);
                }
                DialError::Refused { address, reason, detail }
            }
            Failed::Lost(source) => match reason_of(&source) {
                Some((reason, detail)) => DialError::RefusedByPeer { address, reason, detail },
                None => DialError::Lost { address, source },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_most_and_vary() {
        let most = Duration::from_secs(2);
        let waits: Vec<u128> = (1..8).map(|failures| backoff(failures, most).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff(u32::MAX, most), most);
        let all: Vec<Duration> = (0..100).map(|_| jittered(most)).collect();
        assert!(all.iter().all(|wait| (most / 2..=most).contains(wait)));
        assert!(all.iter().any(|wait| *wait != all[0]));
    }
}
