//! Tunnels: streams of an edge's session that carry another protocol, byte by byte, in both directions. What is in
//! them is not this crate's business. An edge opens them, its hub serves them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::dial::DialError;
use super::endpoint::{Inner, Transport};
use super::session::Live;
use crate::peer::{BoxFuture, Introduction, PeerId};

/// How long a tunnel may wait for others of its session to end.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// The first byte of its stream.
const OUTWARD: u8 = 0x40;
const EXPRESS: u8 = 0x41;
const INWARD: u8 = 0x42;

/// What a tunnel carries, and so what goes first in each direction when the path is narrower than what waits: what
/// somebody waits for, then what keeps the other direction going, then what is stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// What is stored goes from the edge to the hub, acks come back.
    Outward,
    /// What is stored comes from the hub to the edge, acks go there.
    Inward,
    /// What somebody waits for, both ways.
    Express,
}

/// Which end of a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Edge,
    Hub,
}

impl Urgency {
    const ALL: [Self; 3] = [Self::Outward, Self::Inward, Self::Express];

    const fn byte(self) -> u8 {
        match self {
            Self::Outward => OUTWARD,
            Self::Inward => INWARD,
            Self::Express => EXPRESS,
        }
    }

    /// `None`: the first byte is not that of a tunnel.
    pub(super) fn of_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|urgency| urgency.byte() == byte)
    }

    /// Of what this end sends.
    const fn priority(self, end: End) -> i32 {
        match (self, end) {
            (Self::Outward, End::Edge) | (Self::Inward, End::Hub) => 0,
            (Self::Outward, End::Hub) | (Self::Inward, End::Edge) => 1,
            (Self::Express, End::Edge | End::Hub) => 2,
        }
    }
}

/// The reading half of a tunnel.
pub type TunnelReader = Box<dyn AsyncRead + Send + Unpin>;
/// The writing half of a tunnel. Dropping it ends that direction.
pub type TunnelWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// Bytes both ways, in order, until either side or the session ends.
pub struct Tunnel {
    send: SendStream,
    recv: RecvStream,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("stream", &self.send.id()).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// At the hub. `None` when the session has just ended.
    pub(super) fn new(send: SendStream, recv: RecvStream, urgency: Urgency) -> Option<Self> {
        send.set_priority(urgency.priority(End::Hub)).ok()?;
        Some(Self { send, recv })
    }

    #[must_use]
    pub fn into_split(self) -> (TunnelReader, TunnelWriter) {
        (Box::new(self.recv), Box::new(self.send))
    }
}

/// Serves tunnels at a hub.
pub trait TunnelHandler: Send + Sync {
    /// One tunnel of `peer`, which is at `address` now. The future is the tunnel: it is dropped when the session ends.
    fn serve(&self, peer: &Introduction, address: SocketAddr, tunnel: Tunnel) -> BoxFuture<'static, ()>;
}

/// There is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{address} takes no more tunnels from this edge: let others of its links end first")]
    Busy { address: String },
    #[error("the session with {address} ended")]
    Ended { address: String },
}

/// Which hub was found where. As many as addresses were asked for: those of the configuration.
#[derive(Debug, Default)]
pub(super) struct Hubs(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<PeerId>>>>>);

impl Hubs {
    fn at(&self, address: &str) -> Arc<tokio::sync::Mutex<Option<PeerId>>> {
        let mut hubs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(hubs.entry(address.to_owned()).or_default())
    }
}

impl Transport {
    /// Says who serves tunnels. Before [`Self::start`]; without it they are a violation. Once.
    pub fn serve_tunnels(&self, handler: Arc<dyn TunnelHandler>) {
        // A second one changes nothing, as with `start`.
        drop(self.0.tunnels.set(handler));
    }

    /// Opens a tunnel to the hub at `address` (`host:port`), over the session there is or a new one.
    ///
    /// *Cancel safety*: a session that was being made is given up; one that there is stays.
    ///
    /// # Errors
    /// There is no tunnel, and why.
    pub async fn tunnel(&self, address: &str, urgency: Urgency) -> Result<Tunnel, TunnelError> {
        let ended = || TunnelError::Ended { address: address.to_owned() };
        let live = self.0.hub(address).await?;
        let (mut send, recv) = timeout(OPEN_MAX, live.connection.open_bi())
            .await
            .map_err(|_late| TunnelError::Busy { address: address.to_owned() })?
            .map_err(|_lost| ended())?;
        send.set_priority(urgency.priority(End::Edge)).map_err(|_lost| ended())?;
        send.write_all(&[urgency.byte()]).await.map_err(|_lost| ended())?;
        Ok(Tunnel { send, recv })
    }
}

impl Inner {
    /// The session with the hub at an address. One attempt at a time: of two connections one would go again.
    async fn hub(self: &Arc<Self>, address: &str) -> Result<Arc<Live>, DialError> {
        let slot = self.hubs.at(address);
        let mut known = slot.lock().await;
        if let Some(live) = known.and_then(|id| self.table.get(id))
            && live.connection.close_reason().is_none()
        {
            return Ok(live);
        }
        let live = self.dial_any(&[address.to_owned()], None).await?;
        *known = Some(live.session.peer);
        Ok(live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::frames;

    #[test]
    fn a_tunnel_is_told_from_everything_else_by_its_first_byte() {
        for urgency in Urgency::ALL {
            assert_eq!(Urgency::of_byte(urgency.byte()), Some(urgency));
            assert!(frames::lane(urgency.byte()).is_err());
        }
        assert_eq!((0..=u8::MAX).filter(|byte| Urgency::of_byte(*byte).is_some()).count(), 3);
        assert_eq!(Urgency::of_byte(frames::PING), None);
    }

    #[test]
    fn acks_go_before_what_is_stored_and_what_is_waited_for_before_both() {
        for (end, stored, acks) in
            [(End::Edge, Urgency::Outward, Urgency::Inward), (End::Hub, Urgency::Inward, Urgency::Outward)]
        {
            assert!(acks.priority(end) > stored.priority(end));
            assert!(Urgency::Express.priority(end) > acks.priority(end));
        }
    }
}
