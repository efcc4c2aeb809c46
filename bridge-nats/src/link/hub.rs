//! Links to Beamlog hubs: the sessions are those of any link, but they come over a tunnel that somebody else
//! digs, and who is at the other end is known before the first word.
//!
//! The client library dials TCP addresses and nothing else. So each session has a `Loopback`: a listener on
//! 127.0.0.1 that takes one connection, carries it through the tunnel, and ends with it. Whoever else on this
//! machine connects to it first gains nothing: the connection is carried on only when its first line shows a token
//! that was made for this session and was told to nobody else.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::rules::Secret;
use crate::server::fresh_server_id;
use crate::session::ConnectOptions;

/// How long the hub may take for its first line, and the client for its connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one connection may take for its first line: ours has it ready.
const CANDIDATE: Duration = Duration::from_secs(1);
/// Longest first line of a hub or a client.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Carried at once.
const CHUNK: usize = 64 << 10;

/// What a tunnel carries, and so what goes first when the path is narrower than what waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Urgency {
    /// Streams and buckets that go to the hub; their acks come back.
    Outward,
    /// Streams and buckets that come from the hub; their acks go there, before what is stored.
    Inward,
    /// Core subjects and requests, before everything.
    Express,
}

pub type TunnelReader = Box<dyn AsyncRead + Send + Unpin>;
pub type TunnelWriter = Box<dyn AsyncWrite + Send + Unpin>;

/// Bytes both ways to a hub's endpoint.
pub struct Tunnel {
    pub reader: TunnelReader,
    pub writer: TunnelWriter,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

/// By what a hub knows an edge, and the edge its hub.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Pass {
    /// The folder with the edge's certificate and its authority's.
    Certificates(PathBuf),
    /// A token, and the file with the authorities that may have signed a hub's certificate.
    Token { token: Secret, authorities: PathBuf },
}

/// There is no tunnel; why, for people.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{0}")]
pub struct NoTunnel(pub String);

/// Digs tunnels to hubs.
pub trait Hubs: Send + Sync {
    /// A tunnel to the hub at `address` (`host:port`), which is shown this pass.
    ///
    /// *Cancel safety*: may be dropped.
    fn tunnel<'a>(
        &'a self,
        pass: &'a Pass,
        address: &'a str,
        urgency: Urgency,
    ) -> Pin<Box<dyn Future<Output = Result<Tunnel, NoTunnel>> + Send + 'a>>;
}

/// Why a tunnel is of no use.
#[derive(Debug, Error)]
pub(super) enum LoopbackError {
    #[error("the hub said nothing in time")]
    Silent,
    #[error("the hub ended the session: {0}")]
    Ended(String),
    #[error("the hub does not begin as a server of NATS clients does")]
    Foreign,
    #[error("listening on 127.0.0.1")]
    Listen(#[source] io::Error),
}

/// Where the client library finds the tunnel, once.
pub(super) struct Loopback {
    pub(super) address: SocketAddr,
    /// To be shown as the token of CONNECT.
    pub(super) token: String,
}

impl Loopback {
    /// Waits until the hub speaks, and opens the door. `ended` is told why the tunnel ended, if the hub's side did.
    pub(super) async fn open(
        mut tunnel: Tunnel,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self, LoopbackError> {
        let greeting = match timeout(PATIENCE, first_line(&mut tunnel.reader)).await {
            Err(_) => return Err(LoopbackError::Silent),
            Ok(Err(error)) => return Err(LoopbackError::Ended(in_words(&error))),
            Ok(Ok(greeting)) => greeting,
        };
        if !greeting.starts_with(b"INFO ") {
            return Err(LoopbackError::Foreign);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(LoopbackError::Listen)?;
        let address = listener.local_addr().map_err(LoopbackError::Listen)?;
        let token = fresh_server_id();
        let expected = token.clone();
        // Ends with either side; the client that does not come in time ends it too.
        drop(tokio::spawn(async move {
            let Some((client, first)) = let_in(listener, &greeting, &expected).await else { return };
            if let Err(problem) = carry(client, tunnel, &first).await {
                ended(problem);
            }
        }));
        Ok(Self { address, token })
    }
}

/// The connection that shows the token, and what it said with it.
async fn let_in(listener: TcpListener, greeting: &[u8], token: &str) -> Option<(TcpStream, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (mut client, _) = timeout_at(deadline, listener.accept()).await.ok()?.ok()?;
        let introduction = async {
            client.set_nodelay(true)?;
            client.write_all(greeting).await?;
            first_line(&mut client).await
        };
        match timeout(CANDIDATE, introduction).await {
            Ok(Ok(first)) if shows(&first, token) => return Some((client, first)),
            // Somebody else.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Whether the first line is a CONNECT with this token. The time it takes tells nothing of the token.
fn shows(first: &[u8], token: &str) -> bool {
    let line = first.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Some(json) = line.strip_prefix(b"CONNECT ") else { return false };
    let Some(options) = ConnectOptions::parse(json.trim_ascii()) else { return false };
    let shown = options.auth_token.0.as_bytes();
    shown.len() == token.len()
        && shown.iter().zip(token.as_bytes()).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)))
            == 0
}

/// Everything up to the end of the first line, and what came with it.
async fn first_line(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(1024);
    while !line.contains(&b'\n') {
        if line.len() >= LINE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if from.read_buf(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(line)
}

/// Carries both directions until one ends. An error is one of the hub's side.
async fn carry(client: TcpStream, tunnel: Tunnel, first: &[u8]) -> Result<(), String> {
    let (mut from_client, mut to_client) = client.into_split();
    let Tunnel { mut reader, mut writer } = tunnel;
    let outward = async {
        writer.write_all(first).await.map_err(|error| in_words(&error))?;
        pump(&mut from_client, &mut writer).await.map_err(Broken::of_writer)
    };
    let inward = async { pump(&mut reader, &mut to_client).await.map_err(Broken::of_reader) };
    tokio::select! {
        ended = outward => ended,
        ended = inward => ended.and(Err("the hub closed it".to_owned())),
    }
}

/// Which end of a pump failed.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

impl Broken {
    /// What is to be told when the hub is written to.
    fn of_writer(self) -> String {
        match self {
            Self::Reading(_) => String::new(),
            Self::Writing(error) => in_words(&error),
        }
    }

    /// What is to be told when the hub is read from.
    fn of_reader(self) -> String {
        match self {
            Self::Reading(error) => in_words(&error),
            Self::Writing(_) => String::new(),
        }
    }
}

/// Carries bytes until the source ends: what came together leaves together.
pub(crate) async fn pump_all(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    pump(from, to).await.map_err(|broken| match broken {
        Broken::Reading(error) | Broken::Writing(error) => error,
    })
}

async fn pump(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Broken> {
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        if from.read_buf(&mut chunk).await.map_err(Broken::Reading)? == 0 {
            return Ok(());
        }
        to.write_all(&chunk).await.map_err(Broken::Writing)?;
        chunk.clear();
    }
}

/// An error and its causes, in one line.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // An error of I/O often repeats the one in it.
        if !line.ends_with(&cause_text) {
            line.push_str(": ");
            line.push_str(&cause_text);
        }
        source = cause.source();
    }
    line
}

/// Carries a guest's bytes between its tunnel and the endpoint, until either ends.
pub async fn join(tunnel: Tunnel, endpoint: tokio::net::UnixStream) {
    let (mut from_endpoint, mut to_endpoint) = endpoint.into_split();
    let Tunnel { mut reader, mut writer } = tunnel;
    // Whatever ended it, nothing is left to do: the other end learns of it by the end of its bytes.
    tokio::select! {
        _ = pump_all(&mut reader, &mut to_endpoint) => {}
        _ = pump_all(&mut from_endpoint, &mut writer) => {}
    }
    drop(writer.shutdown().await);
}

/// `host:port` of a hub's URL.
#[must_use]
pub fn address_of(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("quic://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':')?;
    let is_host =
        !host.is_empty() && !host.contains(['/', '@', '?', '#']) && !host.contains(char::is_whitespace);
    (is_host && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(rest)
}

/// What a session may be made with.
pub(super) type SharedHubs = Option<Arc<dyn Hubs>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hubs() {
        assert_eq!(address_of("quic://hub.example:4433"), Some("hub.example:4433"));
        assert_eq!(address_of("quic://[::1]:4433/"), Some("[::1]:4433"));
        for wrong in [
            "quic://hub",
            "quic://:1",
            "quic://a@b:1",
            "quic://h:0",
            "quic://h:x",
            "quic://h/x:1",
            "nats://h:1",
        ] {
            assert_eq!(address_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_the_token_opens() {
        let line = b"CONNECT {\"verbose\":false,\"auth_token\":\"geheim\"}\r\nPING\r\n";
        assert!(shows(line, "geheim"));
        for (line, token) in [
            (&line[..], "geheiM"),
            (line, "geheimer"),
            (line, ""),
            (b"CONNECT {}\r\n", "geheim"),
            (b"CONNECT geheim\r\n", "geheim"),
            (b"PING geheim\r\n", "geheim"),
            (b"", "geheim"),
        ] {
            assert!(!shows(line, token), "{token}");
        }
    }

    fn tunnel() -> (Tunnel, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(CHUNK);
        let (reader, writer) = tokio::io::split(near);
        (Tunnel { reader: Box::new(reader), writer: Box::new(writer) }, far)
    }

    #[tokio::test]
    async fn a_stranger_on_the_loopback_is_not_carried_and_does_not_keep_the_client_out() {
        let (near, mut hub) = tunnel();
        hub.write_all(b"INFO {}\r\n").await.unwrap();
        let loopback = Loopback::open(near, drop).await.unwrap();
        let mut stranger = TcpStream::connect(loopback.address).await.unwrap();
        stranger.write_all(b"CONNECT {\"auth_token\":\"guess\"}\r\nPUB a 0\r\n\r\n").await.unwrap();
        let mut all = Vec::new();
        drop(stranger.read_to_end(&mut all).await);
        assert!(all.is_empty() || all == b"INFO {}\r\n");
        let mut client = TcpStream::connect(loopback.address).await.unwrap();
        let connect = format!("CONNECT {{\"auth_token\":\"{}\"}}\r\nPING\r\n", loopback.token);
        client.write_all(connect.as_bytes()).await.unwrap();
        let mut heard = vec![0; connect.len()];
        hub.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, connect.as_bytes());
        hub.write_all(b"PONG\r\n").await.unwrap();
        let mut heard = [0; 15];
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"INFO {}\r\nPONG\r\n");
        drop(client);
        let mut rest = Vec::new();
        hub.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn what_is_no_endpoint_is_told() {
        let (near, mut hub) = tunnel();
        hub.write_all(b"HTTP/1.1 400\r\n").await.unwrap();
        assert!(matches!(Loopback::open(near, drop).await, Err(LoopbackError::Foreign)));
        let (near, hub) = tunnel();
        drop(hub);
        assert!(matches!(Loopback::open(near, drop).await, Err(LoopbackError::Ended(_))));
        let (near, mut hub) = tunnel();
        let endless = tokio::spawn(async move { while hub.write_all(&[b'x'; 1024]).await.is_ok() {} });
        assert!(matches!(Loopback::open(near, drop).await, Err(LoopbackError::Ended(_))));
        endless.await.unwrap();
    }
}
