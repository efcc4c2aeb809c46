//! As much of an HTTP client as commands need: one request to a loopback address, one JSON answer.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cli::exit::Failure;
use crate::cli::link::arguments::AdminArguments;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub(crate) struct AdminClient {
    address: String,
    authorization: Option<String>,
    timeout: Duration,
}

impl AdminClient {
    pub(crate) fn new(arguments: &AdminArguments) -> Result<Self, Failure> {
        let wrong = |text: &str| Failure::cannot_start(text.to_owned());
        let address = arguments.admin.trim_start_matches("http://").trim_end_matches('/').to_owned();
        if address == "off" {
            return Err(wrong("the node's admin server is off (BEAMLOG_ADMIN=off): links cannot be changed"));
        }
        let authorization = match (&arguments.user, &arguments.password, &arguments.token) {
            (None, None, None) => None,
            (None, None, Some(token)) => Some(format!("Bearer {token}")),
            (Some(user), Some(password), None) => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            (Some(_), None, None) => return Err(wrong("--user needs --password")),
            (None, Some(_), None) => return Err(wrong("--password needs --user")),
            (_, _, Some(_)) => return Err(wrong("give either --token or --user with --password, not both")),
        };
        Ok(Self { address, authorization, timeout: arguments.timeout.0 })
    }

    pub(crate) async fn request(&self, method: &str, path: &str) -> Result<Value, Failure> {
        self.send(method, path, "", "").await
    }

    /// `only_new`: refused when there is one of this name.
    pub(crate) async fn put(&self, path: &str, body: &Value, only_new: bool) -> Result<Value, Failure> {
        let condition = if only_new { "If-None-Match: *\r\n" } else { "" };
        self.send("PUT", path, condition, &body.to_string()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.send("POST", path, "", &body.to_string()).await
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Result<Value, Failure> {
        let authorization = self
            .authorization
            .as_ref()
            .map(|value| format!("Authorization: {value}\r\n"))
            .unwrap_or_default();
        // HTTP/1.0: the answer comes whole, and the connection ends after it.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n{authorization}\
             {headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let exchange = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = match tokio::time::timeout(self.timeout, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                return Err(Failure::failed(format!(
                    "cannot ask the admin server at {}: {error}; is a node running? --admin names another address",
                    self.address
                )));
            }
            Err(_) => {
                return Err(Failure::failed("the node did not answer in time; --timeout gives it longer"));
            }
        };
        read(&answer)
    }
}

fn read(answer: &[u8]) -> Result<Value, Failure> {
    let unclear = || Failure::failed("the answer is not one of a beamlog admin server");
    let text = std::str::from_utf8(answer).map_err(|_not_text| unclear())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(unclear)?;
    let status: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(unclear)?;
    let value: Value = serde_json::from_str(body).unwrap_or_else(|_not_json| Value::from(body.trim()));
    if status == 200 {
        return Ok(value);
    }
    let errors: Vec<&str> = match value["errors"].as_array() {
        Some(errors) => errors.iter().filter_map(Value::as_str).collect(),
        None => vec![value.as_str().unwrap_or("refused without a reason")],
    };
    let message = errors.join("\nbeamlog: ");
    // What is wrong with the link itself is wrong usage; the rest could not be done now.
    Err(match status {
        400 => Failure::cannot_start(message),
        401 => Failure::failed(format!("{message}; give --user and --password, or --token")),
        _ => Failure::failed(message),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Code;

    #[test]
    fn answers_become_results() {
        assert_eq!(read(b"HTTP/1.0 200 OK\r\n\r\n{\"a\":1}").map_err(|e| e.message).expect("fine")["a"], 1);
        let code = |answer: &[u8]| read(answer).map(drop).expect_err("refused").code;
        assert_eq!(code(b"HTTP/1.0 400 Bad\r\n\r\n{\"errors\":[\"no\"]}"), Code::CannotStart);
        assert_eq!(code(b"HTTP/1.0 404 Not Found\r\n\r\n"), Code::Failed);
        assert_eq!(code(b"garbage"), Code::Failed);
    }
}
