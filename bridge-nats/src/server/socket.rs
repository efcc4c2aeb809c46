//! The writing side of a socket, plain or TLS. Nothing here waits, except [`Socket::writable`].

use std::io::{self, Write as _};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConnection;
use socket2::SockRef;
use tokio::net::{tcp, unix};
use tracing::debug;

/// TLS state, shared by the task that reads and whoever writes.
pub(super) type Tls = Arc<Mutex<ServerConnection>>;

/// The writing half of what a client came by.
pub(super) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    /// One end of a pair, whose other end somebody carries on.
    Pair(unix::OwnedWriteHalf),
}

pub(crate) struct Socket {
    half: WriteHalf,
    tls: Option<Tls>,
}

impl Socket {
    pub(super) fn new(half: WriteHalf, tls: Option<Tls>) -> Self {
        Self { half, tls }
    }

    /// Turns what is to be sent into what goes over the wire. Chunks must be written in the order in which
    /// they were encrypted.
    pub(crate) fn encrypt(&self, chunk: &mut Vec<u8>) -> io::Result<()> {
        match &self.tls {
            None => Ok(()),
            Some(tls) => {
                *chunk = seal(&mut tls.lock().unwrap_or_else(PoisonError::into_inner), chunk)?;
                Ok(())
            }
        }
    }

    /// As [`Self::encrypt`], for the last chunk.
    pub(crate) fn encrypt_last(&self, chunk: &mut Vec<u8>) -> io::Result<()> {
        self.encrypt(chunk)?;
        if let Some(tls) = &self.tls {
            let mut tls = tls.lock().unwrap_or_else(PoisonError::into_inner);
            tls.send_close_notify();
            chunk.extend(seal(&mut tls, b"")?);
        }
        Ok(())
    }

    /// Writes until everything is out or the socket is full. Returns how much went.
    pub(crate) fn write(&self, chunk: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while let Some(rest) = chunk.get(written..).filter(|rest| !rest.is_empty()) {
            let went = match &self.half {
                WriteHalf::Tcp(half) => half.try_write(rest),
                WriteHalf::Pair(half) => half.try_write(rest),
            };
            match went {
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Resolves when the socket may take bytes. *Cancel safety*: nothing is lost.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match &self.half {
            WriteHalf::Tcp(half) => half.writable().await,
            WriteHalf::Pair(half) => half.writable().await,
        }
    }

    /// Ends both directions: the task that reads sees the end.
    pub(crate) fn shut(&self) {
        let socket = match &self.half {
            WriteHalf::Tcp(half) => SockRef::from(half.as_ref()),
            WriteHalf::Pair(half) => SockRef::from(half.as_ref()),
        };
        if let Err(error) = socket.shutdown(Shutdown::Both) {
            debug!(err = %error, "socket was gone already");
        }
    }
}

fn seal(tls: &mut ServerConnection, mut plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut sealed = Vec::with_capacity(plain.len() + 64);
    loop {
        let taken = tls.writer().write(plain)?;
        plain = plain.get(taken..).unwrap_or_default();
        while tls.wants_write() {
            tls.write_tls(&mut sealed)?;
        }
        if plain.is_empty() {
            return Ok(sealed);
        }
        if taken == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
}
