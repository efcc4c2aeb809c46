//! Whether a peer's process has ended, when nobody told.
//!
//! QUIC hears nothing of a process that was killed: its connection is silent until it is idle for too long. The
//! machine that it ran on knows better: to a datagram for a port that nobody has, it answers so (ICMP "port
//! unreachable"), and that reaches a *connected* UDP socket as an error. A firewall that swallows the answer, or a
//! machine that is gone, says nothing, and nothing is learnt.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long an answer is waited for. Nothing that lives answers.
const ANSWER_MAX: Duration = Duration::from_millis(100);

/// No packet of QUIC: whoever listens drops it.
const QUESTION: &[u8] = &[0];

/// Whether somebody's machine says that nobody listens at this address.
pub(super) async fn nobody_listens(address: SocketAddr) -> bool {
    let any = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let asked = async {
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(address).await?;
        socket.send(QUESTION).await?;
        socket.recv(&mut [0; 1]).await
    };
    matches!(
        timeout(ANSWER_MAX, asked).await,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_closed_is_told_from_one_that_is_silent() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(silent) = UdpSocket::bind(any).await else { continue };
            let address = silent.local_addr().unwrap();
            assert!(!nobody_listens(address).await);
            drop(silent);
            assert!(nobody_listens(address).await);
        }
    }
}
