//! The client protocol as bytes: enough to be any of the programs that the contract records, and no more.

use std::io::BufRead;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// A message as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) subject: String,
    pub(crate) sid: String,
    pub(crate) reply: Option<String>,
    pub(crate) has_headers: bool,
    pub(crate) headers: String,
    pub(crate) payload: Vec<u8>,
}

/// How a program connects.
pub(crate) enum Connect {
    /// libnats 3.4.1.
    C,
    /// async-nats 0.33, with its nulls.
    Rust,
    /// Neither headers nor no_responders, as an old or a small client has it.
    WithoutHeaders,
}

impl Connect {
    fn line(&self) -> &'static str {
        match self {
            Self::C => concat!(
                r#"CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"name":"","lang":"C","#,
                r#""version":"3.4.1","protocol":1,"echo":true,"headers":true,"no_responders":true}"#
            ),
            Self::Rust => concat!(
                r#"CONNECT {"verbose":false,"pedantic":false,"jwt":null,"nkey":null,"sig":null,"name":null,"#,
                r#""echo":true,"lang":"rust","version":"0.33.0","protocol":1,"tls_required":false,"user":null,"#,
                r#""pass":null,"auth_token":null,"headers":true,"no_responders":true}"#
            ),
            Self::WithoutHeaders => {
                r#"CONNECT {"verbose":false,"pedantic":false,"lang":"dart","version":"0.1"}"#
            }
        }
    }
}

pub(crate) struct Wire {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Wire {
    /// Connects and waits for the PONG, as every one of them does.
    pub(crate) fn open(address: &str, connect: &Connect) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut wire = Self { reader: BufReader::new(stream.try_clone()?), writer: stream };
        wire.send(&format!("{}\r\nPING\r\n", connect.line()))?;
        loop {
            let line = wire.line()?;
            if line.starts_with("PONG") {
                return Ok(wire);
            }
            if line.starts_with("-ERR") {
                return Err(io::Error::other(line));
            }
        }
    }

    /// A second handle to write with, for a thread of its own.
    pub(crate) fn writer(&self) -> io::Result<TcpStream> {
        self.writer.try_clone()
    }

    pub(crate) fn patience(&self, patience: Duration) -> io::Result<()> {
        self.writer.set_read_timeout(Some(patience))
    }

    pub(crate) fn send(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(text.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }

    /// The next message; PINGs are answered on the way.
    pub(crate) fn next(&mut self) -> io::Result<Received> {
        loop {
            if let Some(message) = self.step()? {
                return Ok(message);
            }
        }
    }

    /// As [`Self::next`], but gives up when nothing comes for a while. What has begun to come is read whole.
    pub(crate) fn next_within(&mut self, idle: Duration) -> io::Result<Option<Received>> {
        loop {
            if self.reader.buffer().is_empty() {
                self.patience(idle)?;
                match self.reader.fill_buf() {
                    Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
                    {
                        return Ok(None);
                    }
                    Err(error) => return Err(error),
                }
                self.patience(Duration::from_secs(10))?;
            }
            if let Some(message) = self.step()? {
                return Ok(Some(message));
            }
        }
    }

    /// One operation of the server.
    fn step(&mut self) -> io::Result<Option<Received>> {
        let line = self.line()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["PING"] => self.send("PONG\r\n")?,
            ["MSG", subject, sid, bytes] => return self.body(subject, sid, None, None, bytes).map(Some),
            ["MSG", subject, sid, reply, bytes] => {
                return self.body(subject, sid, Some(reply), None, bytes).map(Some);
            }
            ["HMSG", subject, sid, headers, bytes] => {
                return self.body(subject, sid, None, Some(headers), bytes).map(Some);
            }
            ["HMSG", subject, sid, reply, headers, bytes] => {
                return self.body(subject, sid, Some(reply), Some(headers), bytes).map(Some);
            }
            ["-ERR", ..] => return Err(io::Error::other(line)),
            _ => {}
        }
        Ok(None)
    }

    fn body(
        &mut self,
        subject: &str,
        sid: &str,
        reply: Option<&str>,
        headers: Option<&str>,
        bytes: &str,
    ) -> io::Result<Received> {
        let number = |text: &str| text.parse::<usize>().map_err(io::Error::other);
        let (total, split) = (number(bytes)?, headers.map(number).transpose()?.unwrap_or(0));
        let mut raw = vec![0; total + 2];
        self.reader.read_exact(&mut raw)?;
        raw.truncate(total);
        let payload = raw.split_off(split);
        Ok(Received {
            subject: subject.to_owned(),
            sid: sid.to_owned(),
            reply: reply.map(str::to_owned),
            has_headers: headers.is_some(),
            headers: String::from_utf8_lossy(&raw).into_owned(),
            payload,
        })
    }

    /// As when the process is killed: no UNSUB, nothing more is sent.
    pub(crate) fn vanish(&self) {
        // It may be gone already.
        drop(self.writer.shutdown(Shutdown::Both));
    }
}

/// A publish, as a line and its payload.
pub(crate) fn publish(subject: &str, reply: &str, payload: &str) -> String {
    if reply.is_empty() {
        format!("PUB {subject} {}\r\n{payload}\r\n", payload.len())
    } else {
        format!("PUB {subject} {reply} {}\r\n{payload}\r\n", payload.len())
    }
}
