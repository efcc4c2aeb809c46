//! An endpoint to talk to, and a socket that speaks bytes. No test waits for time to pass: they read
//! until the bytes they expect are there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use beamlog_nats::{Server, ServerOptions};
use beamlog_router::interest::Interest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Nothing in these tests takes this long; a test that waits for it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn options() -> ServerOptions {
    ServerOptions { listen: "127.0.0.1:0".parse().unwrap(), ..ServerOptions::default() }
}

pub(crate) async fn start(options: ServerOptions) -> Server {
    Server::start(Arc::new(Interest::new()), None, options).await.unwrap()
}

pub(crate) struct Raw {
    stream: TcpStream,
    got: Vec<u8>,
}

impl Raw {
    /// Connects and reads past INFO.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut raw = Self { stream: TcpStream::connect(address).await.unwrap(), got: Vec::new() };
        let info = raw.line().await;
        assert!(info.starts_with("INFO {"), "{info}");
        raw
    }

    /// Connects, quietly and with headers, and is answered.
    pub(crate) async fn ready(address: SocketAddr) -> Self {
        let mut raw = Self::connect(address).await;
        raw.send("CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n")
            .await;
        raw.expect("PONG\r\n").await;
        raw
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Reads exactly these bytes.
    #[track_caller]
    pub(crate) fn expect(&mut self, expected: impl Into<String>) -> impl Future<Output = ()> {
        let expected = expected.into();
        async move {
            while self.got.len() < expected.len() && self.more().await {}
            let got: Vec<u8> = self.got.drain(..expected.len().min(self.got.len())).collect();
            assert_eq!(String::from_utf8_lossy(&got), expected);
        }
    }

    /// Reads up to the end of a line, without it.
    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.got.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.got.drain(..end + 2).collect();
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            assert!(self.more().await, "ended after {:?}", String::from_utf8_lossy(&self.got));
        }
    }

    /// Reads until the other side ends the connection, and returns what came.
    pub(crate) async fn until_end(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.got)).into_owned()
    }

    async fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk)).await.expect("an answer in time") {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.got.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }
}
