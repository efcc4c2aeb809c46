//! `bench`: a quick look at what a server does with one client. Not a benchmark to publish: the
//! harness in `benches/` runs peers side by side and says under which conditions.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use bytes::Bytes;
use clap::Subcommand;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::cli::client::{ServerArguments, Session, request_failure, sending};
use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::{Output, fields};
use crate::config::ByteSize;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog bench publish --messages 100000 --size 128B
  beamlog bench stream --messages 10000 --in-flight 256      # waits for durable publish acks
  beamlog bench request --messages 10000

`stream` makes the stream BENCH, and deletes it afterwards.")]
pub(crate) struct BenchArguments {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Load {
    /// How many messages.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) messages: u64,
    /// Payload of each.
    #[arg(long, value_name = "SIZE", default_value = "128B")]
    pub(crate) size: ByteSize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Publish to one subscriber and count what arrives.
    Publish {
        #[command(flatten)]
        load: Load,
    },
    /// Publish to a stream and wait for every publish ack.
    Stream {
        #[command(flatten)]
        load: Load,
        /// Publishes that wait for their ack at a time.
        #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
        in_flight: u64,
    },
    /// Requests one after the other, each answered by this process.
    Request {
        #[command(flatten)]
        load: Load,
    },
}

pub(crate) async fn bench(arguments: BenchArguments, output: Output) -> Result<(), Failure> {
    let session = arguments.server.connect().await?;
    let result = match arguments.command {
        BenchCommand::Publish { load } => publish(&session, load).await?,
        BenchCommand::Stream { load, in_flight } => {
            let context = jetstream::new(session.client.clone());
            let config = jetstream::stream::Config {
                name: "BENCH".to_owned(),
                subjects: vec!["beamlog-bench.stream.>".to_owned()],
                ..Default::default()
            };
            context
                .create_stream(config)
                .await
                .map_err(|e| Failure::failed(format!("creating the stream BENCH: {}", err_chain(&e))))?;
            let result = stream(&session, load, in_flight).await;
            let removed = context.delete_stream("BENCH").await;
            let result = result?;
            removed.map_err(|e| Failure::failed(format!("deleting the stream BENCH: {}", err_chain(&e))))?;
            result
        }
        BenchCommand::Request { load } => request(&session, load).await?,
    };
    output.value(&result, fields)
}

fn filler(load: Load) -> Result<Bytes, Failure> {
    let size = usize::try_from(load.size.0).unwrap_or(usize::MAX);
    if size > 8 << 20 {
        return Err(Failure::cannot_start("--size is at most 8MiB"));
    }
    Ok(Bytes::from(vec![b'x'; size]))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn figures(what: &str, load: Load, took: Duration, latencies: Option<&Histogram<u64>>) -> Value {
    let seconds = took.as_secs_f64().max(1e-9);
    let mut value = json!({
        "what": what,
        "messages": load.messages,
        "payload_bytes": load.size.0,
        "seconds": (seconds * 1e6).round() / 1e6,
        "messages_per_second": (load.messages as f64 / seconds).round(),
        "mib_per_second": ((load.messages * load.size.0) as f64 / seconds / (1 << 20) as f64 * 10.0).round() / 10.0,
    });
    if let Some(latencies) = latencies {
        let micros = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
        value["latency_micros"] =
            json!({ "p50": micros(0.5), "p99": micros(0.99), "max": latencies.max() as f64 / 1e3 });
    }
    value
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constants that the histogram takes")
}

fn record(latencies: &mut Histogram<u64>, since: Instant) {
    latencies.saturating_record(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

async fn publish(session: &Session, load: Load) -> Result<Value, Failure> {
    let payload = filler(load)?;
    let subject = "beamlog-bench.publish";
    let mut received = session.client.subscribe(subject).await.map_err(|e| sending(&e))?;
    session.settle().await?;
    let start = Instant::now();
    let client = session.client.clone();
    let sender = async {
        for _ in 0..load.messages {
            client.publish(subject, payload.clone()).await.map_err(|e| sending(&e))?;
        }
        session.flush().await
    };
    let receiver = async {
        for arrived in 0..load.messages {
            match tokio::time::timeout(session.timeout, received.next()).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let all = load.messages;
                    return Err(Failure::failed(format!(
                        "{arrived} of {all} messages arrived, then none in time"
                    )));
                }
            }
        }
        Ok(())
    };
    tokio::try_join!(sender, receiver)?;
    Ok(figures("publish to one subscriber", load, start.elapsed(), None))
}

async fn stream(session: &Session, load: Load, in_flight: u64) -> Result<Value, Failure> {
    let payload = filler(load)?;
    let one = || async {
        let sent = Instant::now();
        let answer = session.client.request("beamlog-bench.stream.one", payload.clone()).await;
        let answer = answer.map_err(|e| request_failure(&e, "the publish ack"))?;
        crate::cli::messages::publish_ack(&answer.payload)?;
        Ok::<Instant, Failure>(sent)
    };
    let mut latencies = histogram();
    let start = Instant::now();
    let mut waiting: FuturesUnordered<_> = (0..in_flight.min(load.messages)).map(|_| one()).collect();
    let mut sent = in_flight.min(load.messages);
    while let Some(acked) = waiting.next().await {
        record(&mut latencies, acked?);
        if sent < load.messages {
            sent += 1;
            waiting.push(one());
        }
    }
    Ok(figures("durable publish acks", load, start.elapsed(), Some(&latencies)))
}

async fn request(session: &Session, load: Load) -> Result<Value, Failure> {
    let payload = filler(load)?;
    let subject = "beamlog-bench.request";
    let mut requests = session.client.subscribe(subject).await.map_err(|e| sending(&e))?;
    session.settle().await?;
    let client = session.client.clone();
    let service = async {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                client.publish(reply, request.payload).await.map_err(|e| sending(&e))?;
            }
        }
        Ok::<(), Failure>(())
    };
    let mut latencies = histogram();
    let start = Instant::now();
    let asking = async {
        for _ in 0..load.messages {
            let sent = Instant::now();
            let answer = session.client.request(subject, payload.clone()).await;
            answer.map_err(|e| request_failure(&e, subject))?;
            record(&mut latencies, sent);
        }
        Ok::<(), Failure>(())
    };
    tokio::select! {
        done = asking => done?,
        ended = service => ended?,
    }
    Ok(figures("requests, one after the other", load, start.elapsed(), Some(&latencies)))
}
