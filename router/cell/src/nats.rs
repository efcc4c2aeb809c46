//! The bus over a NATS URL: a Beamlog node, or any NATS server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tracing::error;

use crate::answering::{self, Reply};
use crate::bus::{Bus, Handler};
use crate::envelope::Envelope;
use crate::error::BusError;
use crate::subjects;

/// Where the bus is, and how long it is waited for. Defaults are those of CBS.
#[derive(Clone, Debug)]
pub struct NatsBusOptions {
    /// Default nats://localhost:4222.
    pub url: String,
    /// Default 5 s.
    pub request_timeout: Duration,
    /// Default 10 s.
    pub connection_timeout: Duration,
}

impl Default for NatsBusOptions {
    fn default() -> Self {
        Self {
            url: "nats://localhost:4222".to_owned(),
            request_timeout: Duration::from_secs(5),
            connection_timeout: Duration::from_secs(10),
        }
    }
}

/// The handlers that subjects have now; a subscription looks its own up for every request.
type Handlers = Arc<Mutex<BTreeMap<String, Handler>>>;

/// The bus over a NATS connection, which connects again by itself. It has threads of its own, so that it serves
/// programs with and without a runtime. Dropping it ends what it serves.
pub struct NatsBus {
    client: Client,
    options: NatsBusOptions,
    handlers: Handlers,
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the URL: it may have a password.
        f.debug_struct("NatsBus").finish_non_exhaustive()
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting here is not allowed in somebody else's runtime.
            runtime.shutdown_background();
        }
    }
}

impl NatsBus {
    /// Connects.
    ///
    /// # Errors
    /// `Connection`, with what kept it from that.
    pub fn connect(options: NatsBusOptions) -> Result<Self, BusError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("beamlog-cells")
            .enable_all()
            .build()
            .map_err(|problem| BusError::Connection(format!("starting the bus: {problem}")))?;
        let (url, limit) = (options.url.clone(), options.connection_timeout);
        let connecting = async move {
            let connect = ConnectOptions::new().connection_timeout(limit).connect(url);
            match timeout(limit, connect).await {
                Ok(Ok(client)) => Ok(client),
                Ok(Err(problem)) => Err(BusError::Connection(format!("NATS connection failed: {problem}"))),
                Err(_) => Err(BusError::Connection("Connection timeout".to_owned())),
            }
        };
        let client = wait(&runtime, connecting)?;
        Ok(Self { client, options, handlers: Handlers::default(), runtime: Some(runtime) })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn options(&self) -> &NatsBusOptions {
        &self.options
    }

    /// Has this done on the bus's own threads, and waits for it.
    pub(crate) fn block<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, BusError>> + Send + 'static,
    ) -> Result<T, BusError> {
        let Some(runtime) = &self.runtime else { return Err(stopped()) };
        wait(runtime, work)
    }
}

/// `Runtime::block_on` panics inside of another runtime; this only blocks.
fn wait<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = Result<T, BusError>> + Send + 'static,
) -> Result<T, BusError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    // Nobody waits any more: what it says is not needed.
    runtime.spawn(async move { drop(sender.send(work.await)) });
    receiver.recv().unwrap_or_else(|_| Err(stopped()))
}

fn stopped() -> BusError {
    BusError::Connection("the bus has stopped".to_owned())
}

impl Bus for NatsBus {
    fn ask(&self, envelope: &Envelope) -> Result<Envelope, BusError> {
        envelope.check_names().map_err(|problem| BusError::BadRequest(problem.to_string()))?;
        let (subject, payload) = (envelope.subject(), envelope.encode()?);
        let (client, limit) = (self.client.clone(), self.options.request_timeout);
        self.block(async move {
            let asking = ask(&client, subject, payload);
            timeout(limit, asking).await.unwrap_or(Err(BusError::Timeout))
        })
    }

    fn subscribe(&self, subject: &str, handler: Handler) -> Result<(), BusError> {
        let of = subject.to_owned();
        let known = self.handlers.lock().unwrap_or_else(PoisonError::into_inner).insert(of.clone(), handler);
        if known.is_some() {
            return Ok(());
        }
        let (client, handlers) = (self.client.clone(), Arc::clone(&self.handlers));
        let group = subjects::queue_group(subject).to_owned();
        let limit = self.options.connection_timeout;
        let subscribed = self.block(async move {
            let failed = |problem: &dyn std::fmt::Display| {
                BusError::Connection(format!("Failed to subscribe: {problem}"))
            };
            let subscriber =
                client.queue_subscribe(of.clone(), group).await.map_err(|problem| failed(&problem))?;
            match timeout(limit, round_trip(&client)).await {
                Ok(heard) => heard.map_err(|problem| failed(&problem))?,
                Err(_) => return Err(BusError::Timeout),
            }
            tokio::spawn(serve(client, of, subscriber, handlers));
            Ok(())
        });
        if subscribed.is_err() {
            self.handlers.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
        }
        subscribed
    }
}

/// Until the server has read what was sent to it so far: a flush only says that it was written.
pub(crate) async fn round_trip(client: &Client) -> Result<(), String> {
    let inbox = client.new_inbox();
    let mut heard = client.subscribe(inbox.clone()).await.map_err(|problem| problem.to_string())?;
    client.publish(inbox, Bytes::new()).await.map_err(|problem| problem.to_string())?;
    heard.next().await.map(drop).ok_or_else(|| "the connection was closed".to_owned())
}

async fn ask(client: &Client, subject: String, payload: Vec<u8>) -> Result<Envelope, BusError> {
    let failed =
        |problem: &dyn std::fmt::Display| BusError::Connection(format!("NATS request failed: {problem}"));
    // An inbox for each request: the ack of a stream that captures the subject may come before the answer.
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|problem| failed(&problem))?;
    client.publish_with_reply(subject, inbox, payload.into()).await.map_err(|problem| failed(&problem))?;
    while let Some(message) = answers.next().await {
        let status = message.status.map(|status| status.as_u16());
        match answering::reply(status, &message.payload) {
            Reply::Answer(answer) => return answer.map(|answer| *answer),
            Reply::NoSubscribers => return Err(BusError::no_subscribers()),
            Reply::Stored => {}
        }
    }
    Err(failed(&"the connection was closed"))
}

/// One request after another.
async fn serve(client: Client, subject: String, mut requests: async_nats::Subscriber, handlers: Handlers) {
    while let Some(message) = requests.next().await {
        let handler = handlers.lock().unwrap_or_else(PoisonError::into_inner).get(&subject).cloned();
        let Some(handler) = handler else { continue };
        let (of, payload) = (subject.clone(), message.payload);
        let answering = tokio::task::spawn_blocking(move || answering::answer(&of, &payload, &handler));
        let (Ok(Some(answer)), Some(reply)) = (answering.await, message.reply) else { continue };
        if let Err(problem) = client.publish(reply, answer.into()).await {
            error!(subject, err = %problem, "an answer was not sent");
        }
    }
}
