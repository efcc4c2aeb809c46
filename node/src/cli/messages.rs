//! `pub`, `sub`, `request`, `reply`: messages without a stream, and publishes that wait for one.

use async_nats::Subscriber;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::cli::client::{ServerArguments, Session, request_failure, sending};
use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::Output;
use crate::cli::subjects::{headers, message_text, message_value, payload};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog pub greetings.anna 'hello'
  beamlog pub orders.eu '{\"id\":1}' --ack --message-id order-1
  date | beamlog pub clock.now")]
pub(crate) struct PublishArguments {
    /// Subject to publish to.
    pub(crate) subject: String,
    /// Payload; read from stdin when absent or `-`.
    pub(crate) payload: Option<String>,
    /// A header, as "Name: value"; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// Subject that answers go to.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) reply: Option<String>,
    /// Publish this many times.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(crate) count: u64,
    /// Wait for the publish ack of the stream that captures the subject: the message is durable then.
    #[arg(long)]
    pub(crate) ack: bool,
    /// Message id for deduplication; implies --ack.
    #[arg(long, value_name = "ID")]
    pub(crate) message_id: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog sub 'greetings.>'
  beamlog sub work --queue workers
  beamlog sub 'orders.*' --count 10 -o json | jq .payload")]
pub(crate) struct SubscribeArguments {
    /// Filter: `*` stands for one token, `>` for all that follow.
    pub(crate) filter: String,
    /// Share the messages with all other members of this queue group.
    #[arg(long, value_name = "GROUP")]
    pub(crate) queue: Option<String>,
    /// Stop after this many messages.
    #[arg(long, value_name = "COUNT")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog request time.now ''
  beamlog request time.now '' --timeout 500ms -o json")]
pub(crate) struct RequestArguments {
    /// Subject of the service.
    pub(crate) subject: String,
    /// Payload; read from stdin when absent or `-`.
    pub(crate) payload: Option<String>,
    /// A header, as "Name: value"; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog reply time.now 'half past nine'
  beamlog reply echo --queue echoers          # answers with what it was sent")]
pub(crate) struct ReplyArguments {
    /// Filter of the requests to answer.
    pub(crate) filter: String,
    /// The answer; the request's own payload when absent.
    pub(crate) payload: Option<String>,
    /// Share the requests with all other members of this queue group.
    #[arg(long, value_name = "GROUP")]
    pub(crate) queue: Option<String>,
    /// Stop after this many requests.
    #[arg(long, value_name = "COUNT")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

pub(crate) async fn publish(arguments: PublishArguments, output: Output) -> Result<(), Failure> {
    let mut headers = headers(&arguments.headers)?;
    if let Some(id) = &arguments.message_id {
        headers.insert("Nats-Msg-Id", id.as_str());
    }
    let body = payload(arguments.payload)?;
    let session = arguments.server.connect().await?;
    let subject = arguments.subject;
    if arguments.ack || arguments.message_id.is_some() {
        if arguments.reply.is_some() {
            return Err(Failure::cannot_start(
                "--reply cannot go with --ack: the reply is where the ack goes",
            ));
        }
        for _ in 0..arguments.count {
            let request = async_nats::Request::new().headers(headers.clone()).payload(body.clone());
            let whom = format!("{subject} (does a stream capture it?)");
            let answer = session
                .client
                .send_request(subject.clone(), request)
                .await
                .map_err(|e| request_failure(&e, &whom))?;
            let ack = publish_ack(&answer.payload)?;
            output.line(&ack, |ack| {
                let sequence = &ack["sequence"];
                let suffix = if ack["duplicate"] == true { " (duplicate, not stored again)" } else { "" };
                format!("stored in {} at {sequence}{suffix}", ack["stream"].as_str().unwrap_or_default())
            })?;
        }
        return Ok(());
    }
    for _ in 0..arguments.count {
        let (subject, headers, body) = (subject.clone(), headers.clone(), body.clone());
        let sent = match &arguments.reply {
            Some(reply) => {
                session.client.publish_with_reply_and_headers(subject, reply.clone(), headers, body).await
            }
            None => session.client.publish_with_headers(subject, headers, body).await,
        };
        sent.map_err(|e| sending(&e))?;
    }
    session.settle().await?;
    let value = json!({ "subject": subject, "bytes": body.len(), "count": arguments.count });
    output.line(&value, |_| format!("published {} x {} bytes to {subject}", arguments.count, body.len()))
}

/// A publish ack, in our words.
pub(crate) fn publish_ack(payload: &[u8]) -> Result<Value, Failure> {
    let ack: Value = serde_json::from_slice(payload).map_err(|_not_json| {
        Failure::failed("the answer is not a publish ack: a service answered, not a stream")
    })?;
    if let Some(error) = ack.get("error") {
        let text = error["description"].as_str().unwrap_or("refused without a reason");
        return Err(Failure::failed(format!("not stored: {text} ({})", error["err_code"])));
    }
    Ok(json!({
        "stream": ack["stream"],
        "sequence": ack["seq"],
        "duplicate": ack["duplicate"].as_bool().unwrap_or(false),
    }))
}

async fn subscribe(session: &Session, filter: &str, queue: Option<String>) -> Result<Subscriber, Failure> {
    let client = &session.client;
    let subscribed = match queue {
        Some(queue) => client.queue_subscribe(filter.to_owned(), queue).await,
        None => client.subscribe(filter.to_owned()).await,
    };
    let subscription =
        subscribed.map_err(|e| Failure::failed(format!("subscribing to {filter}: {}", err_chain(&e))))?;
    session.settle().await?;
    eprintln!("subscribed to {filter}");
    Ok(subscription)
}

pub(crate) async fn sub(arguments: SubscribeArguments, output: Output) -> Result<(), Failure> {
    let session = arguments.server.connect().await?;
    let mut messages = subscribe(&session, &arguments.filter, arguments.queue).await?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(message) = next_or_interrupt(&mut messages).await else { break };
        output.line(&message_value(&message), message_text)?;
        left -= 1;
    }
    Ok(())
}

pub(crate) async fn request(arguments: RequestArguments, output: Output) -> Result<(), Failure> {
    let headers = headers(&arguments.headers)?;
    let body = payload(arguments.payload)?;
    let session = arguments.server.connect().await?;
    let request = async_nats::Request::new().headers(headers).payload(body);
    let answer = session
        .client
        .send_request(arguments.subject.clone(), request)
        .await
        .map_err(|e| request_failure(&e, &arguments.subject))?;
    output.line(&message_value(&answer), message_text)
}

pub(crate) async fn reply(arguments: ReplyArguments, output: Output) -> Result<(), Failure> {
    let session = arguments.server.connect().await?;
    let mut requests = subscribe(&session, &arguments.filter, arguments.queue).await?;
    let mut left = arguments.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(request) = next_or_interrupt(&mut requests).await else { break };
        let Some(reply) = request.reply.clone() else { continue };
        let body = arguments.payload.clone().map_or_else(|| request.payload.clone(), Bytes::from);
        session.client.publish(reply, body).await.map_err(|e| sending(&e))?;
        session.flush().await?;
        output.line(&message_value(&request), message_text)?;
        left -= 1;
    }
    session.settle().await
}

/// The next message; `None` when the user has had enough or the connection is gone.
async fn next_or_interrupt(messages: &mut Subscriber) -> Option<async_nats::Message> {
    tokio::select! {
        message = messages.next() => message,
        _ = tokio::signal::ctrl_c() => None,
    }
}
