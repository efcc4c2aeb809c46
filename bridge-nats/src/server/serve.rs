//! The task of one connection: greet, read, interpret, and clean up whatever happens.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConnection;
use tokio::io::AsyncReadExt as _;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpStream, UnixStream, unix};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::socket::{Socket, Tls, WriteHalf};
use super::{Context, Guest, TlsOptions};
use crate::protocol::Violation;
use crate::session::{Blocked, CloseReason, Connection, Interpreter, Output, Progress};

/// What is read into at first, and all that an unauthenticated client gets: one control line.
const READ_MIN: usize = 4 << 10;
/// What is read at once from a busy client.
const READ_MAX: usize = 64 << 10;
/// Quiet reads after which a large buffer is given back.
const QUIET_READS: u32 = 64;
/// How long a client waits whose receivers are congested, as nats-server stalls fast producers.
const STALL: Duration = Duration::from_millis(2);

/// How a client came.
pub(super) enum Way {
    Listener(TcpStream, SocketAddr),
    Guest(UnixStream, Guest),
}

pub(super) async fn serve(context: Arc<Context>, way: Way) {
    let id = context.next_id();
    let (peer, guest, source, socket, greeting) = match way {
        Way::Listener(stream, peer) => {
            let greeting = context.info.line(id, peer, false);
            let (stream, tls, greeting) = match greet(&context, stream, greeting).await {
                Ok(ready) => ready,
                Err(error) => {
                    debug!(session = id, %peer, err = %error, "TLS handshake failed");
                    return;
                }
            };
            let (read, write) = stream.into_split();
            let socket = Socket::new(WriteHalf::Tcp(write), tls.clone());
            let source = match tls {
                None => Source::Plain(read),
                Some(tls) => Source::Tls { read, tls, wire: Vec::new() },
            };
            (peer, None, source, socket, greeting)
        }
        Way::Guest(stream, guest) => {
            let greeting = context.info.line(id, guest.address, true);
            let (read, write) = stream.into_split();
            let socket = Socket::new(WriteHalf::Pair(write), None);
            (guest.address, Some(guest), Source::Pair(read), socket, greeting)
        }
    };
    let socket = Arc::new(socket);
    let options = &context.options;
    let limits = Output { pending_max: options.pending_max, write_deadline: options.write_deadline };
    let connection = Connection::new(id, peer, guest, socket, limits, context.runtime.clone(), &greeting);
    let mut guard = Guard { context: &context, connection: &connection, reason: CloseReason::Internal };
    if !context.enter(&connection) {
        guard.reason = CloseReason::Violation(Violation::MaxConnections);
        return;
    }
    connection.flush_now();
    guard.reason = read_all(&context, &connection, source).await;
}

/// Runs when the task ends, and when it panics: then the reason is still `Internal`.
struct Guard<'a> {
    context: &'a Arc<Context>,
    connection: &'a Arc<Connection>,
    reason: CloseReason,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.context.leave(self.connection, self.reason);
    }
}

/// Makes the connection ready for INFO: returns what of the greeting is still to be sent.
async fn greet(
    context: &Context,
    stream: TcpStream,
    greeting: Vec<u8>,
) -> io::Result<(TcpStream, Option<Tls>, Vec<u8>)> {
    let Some(tls) = &context.options.tls else { return Ok((stream, None, greeting)) };
    let _handshake = Handshake::begin(context)?;
    if tls.handshake_first {
        let (stream, state) = handshake(tls, stream).await?;
        return Ok((stream, Some(state), greeting));
    }
    // INFO goes out in the clear; a client that wants TLS answers with its hello.
    write_all(&stream, &greeting).await?;
    if !tls.required {
        let mut first = [0_u8];
        let peeked = tokio::time::timeout(context.options.auth_timeout, stream.peek(&mut first)).await??;
        if peeked == 0 || first != [TLS_HANDSHAKE_RECORD] {
            return Ok((stream, None, Vec::new()));
        }
    }
    let (stream, state) = handshake(tls, stream).await?;
    Ok((stream, Some(state), Vec::new()))
}

const TLS_HANDSHAKE_RECORD: u8 = 0x16;

/// One of the handshakes under way. They are bounded like connections, which they are not yet.
struct Handshake<'a>(&'a Context);

impl<'a> Handshake<'a> {
    fn begin(context: &'a Context) -> io::Result<Self> {
        let begun = Self(context);
        if context.handshakes.fetch_add(1, Ordering::Relaxed) >= context.options.connections_max {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(begun)
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn handshake(tls: &TlsOptions, stream: TcpStream) -> io::Result<(TcpStream, Tls)> {
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let stream = tokio::time::timeout(tls.timeout, acceptor.accept(stream)).await??;
    let (stream, state) = stream.into_inner();
    Ok((stream, Arc::new(Mutex::new(state))))
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Where a connection's bytes come from.
enum Source {
    Plain(OwnedReadHalf),
    Pair(unix::OwnedReadHalf),
    Tls { read: OwnedReadHalf, tls: Tls, wire: Vec<u8> },
}

/// What was read.
enum Got {
    Bytes(usize),
    End,
}

impl Source {
    /// Appends to `into` as much as its free capacity takes. *Cancel safety*: with TLS, bytes may be lost.
    async fn read(&mut self, connection: &Connection, into: &mut Vec<u8>) -> io::Result<Got> {
        let (read, tls, wire) = match self {
            Self::Plain(read) => {
                let count = read.read_buf(into).await?;
                return Ok(if count == 0 { Got::End } else { Got::Bytes(count) });
            }
            Self::Pair(read) => {
                let count = read.read_buf(into).await?;
                return Ok(if count == 0 { Got::End } else { Got::Bytes(count) });
            }
            Self::Tls { read, tls, wire } => (read, tls, wire),
        };
        // The handshake may have brought data along.
        if let count @ 1.. = decrypted(&mut lock(tls), into)? {
            return Ok(Got::Bytes(count));
        }
        loop {
            wire.clear();
            wire.reserve(into.capacity().max(READ_MIN));
            if read.read_buf(wire).await? == 0 {
                return Ok(Got::End);
            }
            let (count, urged, ended) = open(&mut lock(tls), wire, into)?;
            if urged {
                connection.urge();
                connection.flush_now();
            }
            if count > 0 {
                return Ok(Got::Bytes(count));
            }
            if ended {
                return Ok(Got::End);
            }
        }
    }
}

fn lock(tls: &Tls) -> std::sync::MutexGuard<'_, ServerConnection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Decrypts all of `wire`. Returns how much came out, whether TLS wants to write, and whether the peer is done.
fn open(tls: &mut ServerConnection, mut wire: &[u8], into: &mut Vec<u8>) -> io::Result<(usize, bool, bool)> {
    let mut count = 0;
    let mut ended = false;
    while !wire.is_empty() {
        tls.read_tls(&mut wire)?;
        let state =
            tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        ended = state.peer_has_closed();
        count += decrypted(tls, into)?;
        if ended {
            break;
        }
    }
    Ok((count, tls.wants_write(), ended))
}

fn decrypted(tls: &mut ServerConnection, into: &mut Vec<u8>) -> io::Result<usize> {
    let before = into.len();
    match tls.reader().read_to_end(into) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        // The peer went without saying goodbye; what it said before counts.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    Ok(into.len() - before)
}

/// Whether many connections are being read in turn, each saying little. Then it pays to let the others go
/// first: what all of them put into one receiver's buffer leaves in one write. With few connections it
/// would only cost time.
struct Crowd {
    reads_seen: u64,
}

impl Crowd {
    /// Reads of others between two of ours, from which on it is a crowd.
    const OTHERS_MIN: u64 = 8;
    /// A read of this size is a batch of its own.
    const BATCH_BYTES: usize = 8 << 10;

    fn after_read(&mut self, context: &Context, bytes: usize) -> bool {
        let reads = context.reads.fetch_add(1, Ordering::Relaxed);
        let others = reads.saturating_sub(std::mem::replace(&mut self.reads_seen, reads + 1));
        others >= Self::OTHERS_MIN && bytes < Self::BATCH_BYTES
    }
}

async fn read_all(context: &Arc<Context>, connection: &Arc<Connection>, mut source: Source) -> CloseReason {
    let mut interpreter = Interpreter::new(Arc::clone(connection), Arc::clone(context));
    let mut buffer: Vec<u8> = Vec::new();
    let mut wanted = READ_MIN;
    let mut quiet = 0;
    let mut crowd = Crowd { reads_seen: context.reads.load(Ordering::Relaxed) };
    loop {
        if buffer.capacity() - buffer.len() < wanted.min(READ_MIN) || buffer.capacity() < wanted {
            buffer.reserve(wanted.saturating_sub(buffer.len()).max(READ_MIN));
        }
        let room = buffer.capacity() - buffer.len();
        let count = match source.read(connection, &mut buffer).await {
            Ok(Got::Bytes(count)) => count,
            Ok(Got::End) => return connection.closed().unwrap_or(CloseReason::ClientClosed),
            Err(error) => {
                debug!(session = connection.id, err = %error, "read failed");
                return connection.closed().unwrap_or(CloseReason::ReadError);
            }
        };
        let millis = u64::try_from(connection.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        connection.input.active_millis.store(millis, Ordering::Relaxed);

        let crowded = crowd.after_read(context, count);
        let mut consumed = 0;
        let missing = loop {
            let (more, progress) = interpreter.process(buffer.get(consumed..).unwrap_or_default());
            consumed += more;
            if crowded && matches!(progress, Progress::Incomplete { .. }) {
                tokio::task::yield_now().await;
            }
            let congested = interpreter.flush();
            match progress {
                Progress::Incomplete { missing } => {
                    if congested {
                        tokio::time::sleep(STALL).await;
                    }
                    break missing;
                }
                Progress::Blocked(blocked) => {
                    if !wait_for_room(context, blocked).await {
                        return CloseReason::ServerShutdown;
                    }
                }
                Progress::Close(violation) => return CloseReason::Violation(violation),
            }
        };

        if consumed == buffer.len() {
            buffer.clear();
        } else {
            buffer.drain(..consumed);
        }
        // A large payload grows the buffer as it comes, not as it is declared.
        let grown = (buffer.len() * 2).min(buffer.len() + missing);
        if interpreter.awaiting_auth() {
            wanted = READ_MIN.max(context.options.control_line_max + 64);
        } else if count == room {
            wanted = (wanted * 2).min(READ_MAX).max(grown);
            quiet = 0;
        } else {
            quiet = if count < READ_MIN { quiet + 1 } else { 0 };
            wanted = if quiet >= QUIET_READS { READ_MIN.max(grown) } else { wanted.min(READ_MAX).max(grown) };
        }
        if buffer.is_empty() && buffer.capacity() > wanted.max(READ_MAX) || quiet == QUIET_READS {
            buffer.shrink_to(wanted);
            quiet = 0;
        }
    }
}

/// The router takes no more now: this client is not read until it does. `false` when it never will.
async fn wait_for_room(context: &Context, blocked: Blocked) -> bool {
    let Some(jetstream) = &context.jetstream else { return false };
    let mut held = match blocked {
        // It is read again from the same bytes.
        Blocked::Api => return jetstream.when_ready().await,
        Blocked::Publishes(batch) => batch,
    };
    while jetstream.when_ready().await {
        match jetstream.offer(held) {
            Ok(()) => return true,
            Err(full) => held = full.0,
        }
    }
    false
}
