//! What other nodes of a cluster send to the streams of this one: it waits for room, in its order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use beamlog_router::headers::Builder;
use beamlog_router::interest::{Envelope, Interest, RouteCache};
use beamlog_router::{Full, PublishBatch, StreamId};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::{ApiRequest, Handled};
use crate::server::JetStream;

/// What may wait for the router, of all peers together. More is dropped, and counted: a publisher that
/// gets no ack publishes again, an ack that is lost leads to a redelivery.
const WAITING_BYTES_MAX: usize = 64 << 20;
const WAITING_MAX: usize = 64 << 10;
/// What one item costs beside its bytes.
const OVERHEAD: usize = 128;
/// Publishes handed to the router in one piece.
const BATCH_MAX: usize = 512;

/// Takes what peers sent for the streams of this node, in their order, and hands it to the router as there is room.
#[derive(Clone, Debug)]
pub struct FromPeers(Arc<Queue>);

#[derive(Debug)]
struct Queue {
    items: mpsc::Sender<Item>,
    bytes: Arc<AtomicUsize>,
    taken: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FromPeersStats {
    pub taken: u64,
    pub dropped: u64,
    pub waiting_bytes: usize,
}

/// A message of a peer: a request of the API, or a publish that a stream captures.
#[derive(Debug)]
struct Item {
    stream: Option<StreamId>,
    subject: Bytes,
    reply: Bytes,
    headers: Bytes,
    payload: Bytes,
    cost: usize,
}

impl FromPeers {
    /// Starts the task that hands over. It ends with the last clone. Within a tokio runtime.
    #[must_use]
    pub fn start(jetstream: Arc<dyn JetStream>, interest: Arc<Interest>) -> Self {
        let (items, receiver) = mpsc::channel(WAITING_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let worker = Worker { jetstream, interest, bytes: Arc::clone(&bytes) };
        tokio::spawn(worker.run(receiver));
        Self(Arc::new(Queue { items, bytes, taken: AtomicU64::new(0), dropped: AtomicU64::new(0) }))
    }

    /// A publish to a subject of the API. Never blocks.
    pub fn request(&self, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) {
        self.put(None, [subject, reply, headers, payload]);
    }

    /// A publish that a stream captures. Never blocks.
    pub fn publish(&self, stream: StreamId, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) {
        self.put(Some(stream), [subject, reply, headers, payload]);
    }

    #[must_use]
    pub fn stats(&self) -> FromPeersStats {
        FromPeersStats {
            taken: self.0.taken.load(Ordering::Relaxed),
            dropped: self.0.dropped.load(Ordering::Relaxed),
            waiting_bytes: self.0.bytes.load(Ordering::Relaxed),
        }
    }

    fn put(&self, stream: Option<StreamId>, parts: [&[u8]; 4]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let cost = length + OVERHEAD;
        if self.0.bytes.fetch_add(cost, Ordering::AcqRel) + cost > WAITING_BYTES_MAX {
            return self.dropped(cost);
        }
        let mut all = BytesMut::with_capacity(length);
        for part in parts {
            all.extend_from_slice(part);
        }
        let mut all = all.freeze();
        let [subject, reply, headers, payload] = parts.map(|part| all.split_to(part.len()));
        match self.0.items.try_send(Item { stream, subject, reply, headers, payload, cost }) {
            Ok(()) => {
                self.0.taken.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => self.dropped(cost),
        }
    }

    fn dropped(&self, cost: usize) {
        self.0.bytes.fetch_sub(cost, Ordering::AcqRel);
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

struct Worker {
    jetstream: Arc<dyn JetStream>,
    interest: Arc<Interest>,
    bytes: Arc<AtomicUsize>,
}

impl Worker {
    async fn run(self, mut items: mpsc::Receiver<Item>) {
        let mut taken = Vec::with_capacity(BATCH_MAX);
        while items.recv_many(&mut taken, BATCH_MAX).await > 0 {
            let mut batch = PublishBatch::default();
            let mut cost = 0;
            for item in taken.drain(..) {
                cost += item.cost;
                let Item { stream, subject, reply, headers, payload, .. } = &item;
                match stream {
                    Some(stream) => batch.push(*stream, subject, reply, headers, payload),
                    None => {
                        // Nothing overtakes: an ack stands behind the publishes before it.
                        if !self.publish(std::mem::take(&mut batch)).await || !self.request(&item).await {
                            return;
                        }
                    }
                }
            }
            if !self.publish(batch).await {
                return;
            }
            self.bytes.fetch_sub(cost, Ordering::AcqRel);
        }
    }

    /// False when there never will be room again.
    async fn publish(&self, mut batch: PublishBatch) -> bool {
        while !batch.is_empty() {
            match self.jetstream.offer(batch) {
                Ok(()) => return true,
                Err(Full(back)) => batch = back,
            }
            if !self.jetstream.when_ready().await {
                return false;
            }
        }
        true
    }

    async fn request(&self, item: &Item) -> bool {
        let request = ApiRequest {
            subject: &item.subject,
            reply: &item.reply,
            headers: &item.headers,
            payload: &item.payload,
            // Its own node does not say; clients of today do ask for it.
            no_responders: true,
        };
        loop {
            match self.jetstream.handle(&request) {
                Handled::Done | Handled::Elsewhere => return true,
                Handled::NoResponders => {
                    self.nobody(item);
                    return true;
                }
                Handled::Full => {}
            }
            if !self.jetstream.when_ready().await {
                return false;
            }
        }
    }

    fn nobody(&self, item: &Item) {
        if item.reply.is_empty() || self.interest.has_interest(&item.subject) {
            return;
        }
        let headers = Builder::status(503, "").header("Nats-Subject", &item.subject).finish();
        let answer =
            Envelope { subject: &item.reply, reply: b"", headers: &headers, payload: b"", origin: 0 };
        self.interest.route(&mut RouteCache::new(), &item.reply, &answer);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Mutex;

    use super::*;

    /// Has room for so many, and remembers what it was given.
    #[derive(Default)]
    struct Recorder {
        room: AtomicUsize,
        ready: tokio::sync::Notify,
        got: Mutex<Vec<String>>,
        changed: tokio::sync::Notify,
    }

    impl Recorder {
        fn has_room(&self) -> bool {
            self.room.fetch_update(Ordering::AcqRel, Ordering::Acquire, |room| room.checked_sub(1)).is_ok()
        }

        fn note(&self, what: String) {
            self.got.lock().unwrap().push(what);
            self.changed.notify_one();
        }

        fn make_room(&self, count: usize) {
            self.room.fetch_add(count, Ordering::AcqRel);
            self.ready.notify_one();
        }

        async fn until(&self, count: usize) -> Vec<String> {
            loop {
                let got = self.got.lock().unwrap().clone();
                if got.len() >= count {
                    return got;
                }
                self.changed.notified().await;
            }
        }
    }

    struct Storage(Arc<Recorder>);

    impl JetStream for Storage {
        fn handle(&self, request: &ApiRequest<'_>) -> Handled {
            if !self.0.has_room() {
                return Handled::Full;
            }
            self.0.note(String::from_utf8(request.subject.to_vec()).unwrap());
            Handled::Done
        }

        fn offer(&self, batch: PublishBatch) -> Result<(), Full<PublishBatch>> {
            if !self.0.has_room() {
                return Err(Full(batch));
            }
            for publish in batch.into_publishes() {
                self.0.note(String::from_utf8(publish.subject.to_vec()).unwrap());
            }
            Ok(())
        }

        fn when_ready(&self) -> Pin<Box<dyn Future<Output = bool> + Send>> {
            let recorder = Arc::clone(&self.0);
            Box::pin(async move {
                recorder.ready.notified().await;
                true
            })
        }
    }

    #[tokio::test]
    async fn what_peers_sent_keeps_its_order_while_there_is_no_room() {
        let recorder = Arc::new(Recorder::default());
        let queue = FromPeers::start(Arc::new(Storage(Arc::clone(&recorder))), Arc::new(Interest::new()));
        let mut expected = Vec::new();
        for n in 0..100 {
            let subject = format!("s.{n}");
            if n % 10 == 9 {
                queue.request(subject.as_bytes(), b"r", b"", b"");
            } else {
                queue.publish(StreamId(1), subject.as_bytes(), b"r", b"", b"x");
            }
            expected.push(subject);
        }
        for _ in 0..20 {
            recorder.make_room(1);
            tokio::task::yield_now().await;
        }
        assert_eq!(recorder.until(100).await, expected);
        assert_eq!(queue.stats().taken, 100);
    }

    #[tokio::test]
    async fn more_than_may_wait_is_dropped_and_counted() {
        let recorder = Arc::new(Recorder::default());
        let queue = FromPeers::start(Arc::new(Storage(recorder)), Arc::new(Interest::new()));
        let payload = vec![0; WAITING_BYTES_MAX / 4];
        for _ in 0..5 {
            queue.publish(StreamId(1), b"s", b"", b"", &payload);
        }
        assert_eq!((queue.stats().taken, queue.stats().dropped), (3, 2));
        assert!(queue.stats().waiting_bytes <= WAITING_BYTES_MAX);
    }
}
