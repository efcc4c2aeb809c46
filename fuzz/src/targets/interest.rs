//! The interest index against a list: scripts of subscriptions, captures and messages.

use std::sync::{Arc, Mutex};

use beamlog_log::StreamId;
use beamlog_router::{
    interest::{Envelope, Interest, Offered, RouteCache, Subscriber, SubscriptionKey},
    subject::{self, check_filter, check_subject},
};

pub const WORDS: &[&[u8]] = &[
    b"\n+", b"\n-", b"\n=", b"\n?", b"+a.*\n", b"+>\n", b"+a.> q\n", b"+a.b q\n", b"=a.b\n", b"=c\n", b"-0\n", b"-1\n", b"@a.*\n",
    b"!a.*\n",
];

/// Subscriptions in one script.
const SUBSCRIPTIONS_MAX: usize = 64;

#[derive(Default)]
struct Mailbox {
    received: Mutex<Vec<u64>>,
}

impl Subscriber for Mailbox {
    fn offer(&self, subscription: u64, _: &Envelope<'_>) -> Offered {
        self.received.lock().expect("no panic while held").push(subscription);
        Offered::Taken
    }

    fn flush(&self) {}
}

struct Subscription {
    key: SubscriptionKey,
    filter: Vec<u8>,
    queue: Option<Vec<u8>>,
}

/// Lines: `+filter[ queue]` subscribes, `-n` unsubscribes the n-th, `=subject` routes, `@filter` captures,
/// `!filter` releases.
pub fn run(data: &[u8]) {
    let interest = Interest::new();
    let mailbox = Arc::new(Mailbox::default());
    let mut cache = RouteCache::new();
    let mut subscriptions: Vec<Option<Subscription>> = Vec::new();
    let mut captured: Option<Vec<u8>> = None;
    for line in data.split(|byte| *byte == b'\n') {
        match line {
            [b'+', rest @ ..] if subscriptions.len() < SUBSCRIPTIONS_MAX => {
                let mut parts = rest.splitn(2, |byte| *byte == b' ');
                let filter = parts.next().unwrap_or_default().to_vec();
                let queue = parts.next().filter(|queue| !queue.is_empty()).map(<[u8]>::to_vec);
                let id = subscriptions.len() as u64;
                let subscriber: Arc<dyn Subscriber> = Arc::<Mailbox>::clone(&mailbox);
                let key = interest.subscribe(&filter, queue.as_deref(), subscriber, id);
                assert_eq!(key.is_ok(), check_filter(&filter).is_ok());
                subscriptions.push(key.ok().map(|key| Subscription { key, filter, queue }));
            }
            [b'-', rest @ ..] => {
                let number = std::str::from_utf8(rest).ok().and_then(|text| text.parse::<usize>().ok());
                let slot = number.and_then(|number| subscriptions.get_mut(number));
                if let Some(subscription) = slot.and_then(Option::take) {
                    interest.unsubscribe(&subscription.key);
                }
            }
            [b'@', filter @ ..]
                if captured.is_none() && interest.capture(filter, StreamId(9)).is_ok() =>
            {
                captured = Some(filter.to_vec());
            }
            [b'!', ..] => {
                if let Some(filter) = captured.take() {
                    interest.release(&filter, StreamId(9));
                }
            }
            [b'=', subject @ ..] if check_subject(subject).is_ok() => {
                let message = Envelope { subject, reply: b"", headers: b"", payload: b"x", origin: 0 };
                let routed = interest.route(&mut cache, subject, &message);
                cache.flush();
                let received = std::mem::take(&mut *mailbox.received.lock().expect("no panic while held"));
                assert_eq!(routed.receivers, received.len());
                check(subject, &subscriptions, received);
                let stored = captured.as_ref().is_some_and(|filter| subject::matches(filter, subject));
                assert_eq!(routed.capture, stored.then_some(StreamId(9)));
            }
            _ => {}
        }
        let alive = subscriptions.iter().flatten().count();
        assert_eq!(interest.subscriptions(), alive);
    }
}

/// Every plain subscription that matches, once; of every queue group that matches, one.
fn check(subject: &[u8], subscriptions: &[Option<Subscription>], mut received: Vec<u64>) {
    received.sort_unstable();
    let mut groups: Vec<(&[u8], usize)> = Vec::new();
    let mut plain = Vec::new();
    for (id, subscription) in (0_u64..).zip(subscriptions) {
        let Some(Subscription { filter, queue, .. }) = subscription else { continue };
        if !subject::matches(filter, subject) {
            continue;
        }
        let taken = received.iter().filter(|receiver| **receiver == id).count();
        match queue {
            None => plain.push(id),
            Some(queue) => match groups.iter_mut().find(|(name, _)| name == queue) {
                Some((_, count)) => *count += taken,
                None => groups.push((queue, taken)),
            },
        }
    }
    for id in &plain {
        assert_eq!(received.iter().filter(|receiver| *receiver == id).count(), 1, "{id}");
    }
    assert!(groups.iter().all(|(_, count)| *count == 1), "{groups:?}");
    assert_eq!(received.len(), plain.len() + groups.len(), "somebody got what is not theirs");
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "+a.*\n+a.b\n+>\n=a.b\n-1\n=a.b\n=c",
        "+a.> q\n+a.b q\n+a.* r\n+a.b\n=a.b\n=a.b\n=a.b\n-0\n=a.b.c",
        "@a.*\n+a.b\n=a.b\n=b\n!\n=a.b",
        "+bad..filter\n+.\n+a.>.b\n=a\n-0\n-7\n-x",
        "+a\n=a\n+a\n=a\n-0\n=a\n-1\n=a\n+a q\n=a",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
