//! The client side of commands that speak to a running node (or to any NATS server).

use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use serde_json::Value;

use crate::cli::exit::{Failure, err_chain};
use crate::config::Span;

/// Which server, and as whom.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ServerArguments {
    /// Server to speak to.
    #[arg(
        short,
        long,
        global = true,
        env = "BEAMLOG_URL",
        value_name = "URL",
        default_value = "nats://127.0.0.1:4222"
    )]
    pub(crate) server: String,
    /// User to log in as.
    #[arg(long, global = true, env = "BEAMLOG_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Password of the user. The variable keeps it out of the process list.
    #[arg(long, global = true, env = "BEAMLOG_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    pub(crate) password: Option<String>,
    /// Token to log in with.
    #[arg(long, global = true, env = "BEAMLOG_TOKEN", value_name = "TEXT", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Certificate authorities to trust, in PEM; asks for TLS.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) tls_ca: Option<std::path::PathBuf>,
    /// How long to wait for the server and for each answer.
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s")]
    pub(crate) timeout: Span,
}

/// A connected client and how patient it is.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) timeout: Duration,
}

impl ServerArguments {
    /// Connects once; a command does not wait for a server that is not there.
    pub(crate) async fn connect(&self) -> Result<Session, Failure> {
        let timeout = self.timeout.0;
        let mut options = ConnectOptions::new()
            .name("beamlog")
            .connection_timeout(timeout)
            .request_timeout(Some(timeout))
            .max_reconnects(10);
        match (&self.user, &self.password, &self.token) {
            (Some(user), Some(password), None) => {
                options = options.user_and_password(user.clone(), password.clone());
            }
            (None, None, Some(token)) => options = options.token(token.clone()),
            (None, None, None) => {}
            (_, _, Some(_)) => {
                return Err(Failure::cannot_start("give either --token or --user with --password, not both"));
            }
            (Some(_), None, None) => return Err(Failure::cannot_start("--user needs --password")),
            (None, Some(_), None) => return Err(Failure::cannot_start("--password needs --user")),
        }
        if let Some(authorities) = &self.tls_ca {
            options = options.add_root_certificates(authorities.clone()).require_tls(true);
        }
        let client = options.connect(self.server.as_str()).await.map_err(|e| {
            let problem = err_chain(&e);
            let remedy = if problem.contains("authorization") {
                "check --user and --password, or --token"
            } else {
                "is a node running there? `beamlog serve` starts one; --server names another address"
            };
            Failure::failed(format!("cannot connect to {}: {problem}; {remedy}", shown(&self.server)))
        })?;
        Ok(Session { client, timeout })
    }
}

/// A URL without its password.
fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        (None | Some(_), None | Some(_)) => url.to_owned(),
    }
}

impl Session {
    /// One request of the JetStream API.
    pub(crate) async fn api(&self, name: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let payload = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let message = self
            .client
            .request(format!("$JS.API.{name}"), payload)
            .await
            .map_err(|e| request_failure(&e, "the JetStream API"))?;
        let answer: Value = serde_json::from_slice(&message.payload)
            .map_err(|e| Failure::failed(format!("the server's answer to {name} is not JSON: {e}")))?;
        match answer.get("error") {
            None => Ok(answer),
            Some(error) => Err(api_failure(error)),
        }
    }

    /// All pages of a list: the array that each page holds under `field`.
    pub(crate) async fn pages(&self, name: &str, field: &str, body: Value) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        loop {
            let mut body = body.clone();
            body["offset"] = items.len().into();
            let page = self.api(name, Some(&body)).await?;
            let total = page["total"].as_u64().unwrap_or(0);
            let found = page[field].as_array().cloned().unwrap_or_default();
            let is_last = found.is_empty();
            items.extend(found);
            if is_last || items.len() as u64 >= total {
                return Ok(items);
            }
        }
    }

    /// Sends what is buffered; afterwards the server has it.
    pub(crate) async fn flush(&self) -> Result<(), Failure> {
        match tokio::time::timeout(self.timeout, self.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Failure::failed(format!("sending to the server: {}", err_chain(&e)))),
            Err(_) => Err(Failure::failed("sending to the server timed out; --timeout gives it longer")),
        }
    }

    /// As `flush`, and waits until the server has read everything (a round trip).
    pub(crate) async fn settle(&self) -> Result<(), Failure> {
        self.flush().await?;
        let inbox = self.client.new_inbox();
        let mut echo = self.client.subscribe(inbox.clone()).await.map_err(|e| sending(&e))?;
        self.client.publish(inbox, Bytes::new()).await.map_err(|e| sending(&e))?;
        self.flush().await?;
        match tokio::time::timeout(self.timeout, futures_util::StreamExt::next(&mut echo)).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(Failure::failed("the server closed the connection")),
            Err(_) => Err(Failure::failed("the server did not answer in time; --timeout gives it longer")),
        }
    }
}

pub(crate) fn sending(error: &dyn std::error::Error) -> Failure {
    Failure::failed(format!("sending to the server: {}", err_chain(error)))
}

pub(crate) fn request_failure(error: &async_nats::RequestError, whom: &str) -> Failure {
    use async_nats::RequestErrorKind::{InvalidSubject, MaxPayloadExceeded, NoResponders, Other, TimedOut};
    match error.kind() {
        NoResponders => Failure::failed(format!("nobody answers for {whom}: no responders")),
        TimedOut => Failure::failed(format!("no answer from {whom} in time; --timeout gives it longer")),
        InvalidSubject => {
            Failure::cannot_start("the subject is not valid: tokens separated by dots, no white space")
        }
        MaxPayloadExceeded | Other => Failure::failed(err_chain(error)),
    }
}

fn api_failure(error: &Value) -> Failure {
    let code = error["err_code"].as_u64().unwrap_or_default();
    let text = error["description"].as_str().unwrap_or("refused without a reason");
    let remedy = match code {
        10_059 => "; `beamlog stream ls` shows what there is",
        10_014 => "; `beamlog consumer ls STREAM` shows what there is",
        10_058 => "; `beamlog stream edit` changes a stream",
        10_065 => "; `beamlog stream ls` shows who captures which subjects",
        _ => "",
    };
    Failure::failed(format!("{text} ({code}){remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_password() {
        assert_eq!(shown("nats://joe:secret@host:1"), "nats://host:1");
        assert_eq!(shown("nats://host:1"), "nats://host:1");
        assert_eq!(shown("host:1"), "host:1");
    }
}
