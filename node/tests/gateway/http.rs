//! HTTP/1.1 by hand: a request on a connection of its own, as the gateway's clients make it.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Request<'a> {
    method: String,
    path: &'a str,
    headers: String,
    body: String,
}

impl<'a> Request<'a> {
    pub(crate) fn new(method: &str, path: &'a str) -> Self {
        Self { method: method.to_owned(), path, headers: String::new(), body: String::new() }
    }

    pub(crate) fn header(mut self, line: &str) -> Self {
        self.headers.push_str(line);
        self.headers.push_str("\r\n");
        self
    }

    pub(crate) fn body(self, body: &str) -> Self {
        Self { body: body.to_owned(), ..self }
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.body(&body.to_string())
    }

    fn write(&self, stream: &mut TcpStream) {
        let Self { method, path, headers, body } = self;
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        // A request that is refused early may not be read to its end.
        drop(stream.write_all(text.as_bytes()));
    }

    /// Sends it, and goes on reading.
    pub(crate) fn open(self, mut stream: TcpStream) -> impl Iterator<Item = String> {
        self.write(&mut stream);
        let lines: Lines<BufReader<TcpStream>> = BufReader::new(stream).lines();
        lines.map_while(Result::ok)
    }

    pub(crate) fn send(self, address: &str) -> Answer {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.write(&mut stream);
        let mut reader = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("{status:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let header = line();
            let Some((name, value)) = header.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length").unwrap();
        let mut body = vec![0; length.1.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        Answer { status, headers, body }
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}
