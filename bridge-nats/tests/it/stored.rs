//! Publishes that a stream captures, and storage that is slower than its clients.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use beamlog_nats::jetstream::{ApiRequest, Handled};
use beamlog_nats::{JetStream, Server};
use beamlog_router::interest::Interest;
use beamlog_router::{Full, PublishBatch, StreamId, StreamPublish};
use tokio::sync::Notify;

use crate::raw::{Raw, options};

/// Storage with room for very little.
#[derive(Default)]
struct Narrow {
    waiting: Mutex<VecDeque<StreamPublish>>,
    requests: Mutex<Vec<String>>,
    room: Arc<Notify>,
    arrival: Notify,
    closed: Mutex<bool>,
}

const ROOM: usize = 3;

impl Narrow {
    async fn take(&self) -> StreamPublish {
        loop {
            if let Some(publish) = self.waiting.lock().unwrap().pop_front() {
                self.room.notify_one();
                return publish;
            }
            self.arrival.notified().await;
        }
    }
}

impl JetStream for Narrow {
    fn handle(&self, request: &ApiRequest<'_>) -> Handled {
        if self.waiting.lock().unwrap().len() >= ROOM {
            return Handled::Full;
        }
        self.requests.lock().unwrap().push(String::from_utf8_lossy(request.subject).into_owned());
        if request.subject.ends_with(b"UNKNOWN") { Handled::NoResponders } else { Handled::Done }
    }

    fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
        let mut waiting = self.waiting.lock().unwrap();
        if waiting.len() >= ROOM || *self.closed.lock().unwrap() {
            return Err(Full(batch));
        }
        waiting.extend(batch.into_publishes());
        self.arrival.notify_one();
        Ok(())
    }

    fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let (room, closed) = (Arc::clone(&self.room), *self.closed.lock().unwrap());
        Box::pin(async move {
            if !closed {
                room.notified().await;
            }
            !closed
        })
    }
}

async fn narrow() -> (Server, Arc<Narrow>) {
    let interest = Arc::new(Interest::new());
    interest.capture(b"orders.>", StreamId(4)).unwrap();
    let storage = Arc::new(Narrow::default());
    let jetstream = Arc::clone(&storage) as Arc<dyn JetStream>;
    (Server::start(interest, Some(jetstream), options()).await.unwrap(), storage)
}

#[tokio::test]
async fn a_captured_publish_reaches_storage_whole_and_subscribers_too() {
    let (server, storage) = narrow().await;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send("SUB orders.* 1\r\nHPUB orders.eu in.1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n").await;
    client.expect("HMSG orders.eu 1 in.1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n").await;
    let publish = storage.take().await;
    assert_eq!(publish.stream, StreamId(4));
    assert_eq!((&publish.subject[..], &publish.reply[..]), (&b"orders.eu"[..], &b"in.1"[..]));
    assert_eq!((&publish.headers[..], &publish.payload[..]), (&b"NATS/1.0\r\nA: b\r\n\r\n"[..], &b"hi"[..]));
}

#[tokio::test]
async fn a_stream_counts_as_a_responder() {
    let (server, storage) = narrow().await;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send("SUB in.* 1\r\nPUB orders.eu in.1 1\r\nx\r\nPUB bills in.2 1\r\ny\r\nPING\r\n").await;
    let block = "NATS/1.0 503\r\nNats-Subject: bills\r\n\r\n";
    client.expect(format!("HMSG in.2 1 {0} {0}\r\n{block}\r\nPONG\r\n", block.len())).await;
    storage.take().await;
}

#[tokio::test]
async fn a_client_is_not_read_while_there_is_no_room_and_nothing_is_lost_or_overtaken() {
    let (server, storage) = narrow().await;
    let mut client = Raw::ready(server.local_addr()).await;
    let mut script = String::new();
    for number in 0..100 {
        script += &format!("PUB orders.n {}\r\n{number}\r\n", number.to_string().len());
        if number % 10 == 9 {
            script += "PUB $JS.ACK.x 0\r\n\r\n";
        }
    }
    client.send(script + "PING\r\n").await;
    for number in 0..100 {
        assert_eq!(storage.take().await.payload, number.to_string());
    }
    client.expect("PONG\r\n").await;
    assert_eq!(storage.requests.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn api_requests_can_be_listened_to_and_unknown_ones_are_unheard() {
    let (server, _storage) = narrow().await;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send("SUB in 1\r\nPUB $JS.API.UNKNOWN in 0\r\n\r\nPUB $JS.API.INFO in 0\r\n\r\nPING\r\n").await;
    let block = "NATS/1.0 503\r\nNats-Subject: $JS.API.UNKNOWN\r\n\r\n";
    client.expect(format!("HMSG in 1 {0} {0}\r\n{block}\r\nPONG\r\n", block.len())).await;
    client.send("SUB $JS.API.> 2\r\nPUB $JS.API.INFO in 2\r\n{}\r\n").await;
    client.expect("MSG $JS.API.INFO 2 in 2\r\n{}\r\n").await;
}

#[tokio::test]
async fn when_storage_is_closed_its_publishers_are_let_go() {
    let (server, storage) = narrow().await;
    *storage.closed.lock().unwrap() = true;
    let mut client = Raw::ready(server.local_addr()).await;
    client.send("PUB orders.eu in.1 1\r\nx\r\n").await;
    assert_eq!(client.until_end().await, "");
}
