//! The subscriptions of one client: its sids (any token, 0 too), automatic ends, counts.
//!
//! A subscription is known to the interest index by a number made of its place here and how often the
//! place was used, so a message that comes late finds nothing instead of a stranger.

use beamlog_router::interest::SubscriptionKey;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

#[derive(Default)]
pub(super) struct Subscriptions {
    places: Vec<Place>,
    free: Vec<u32>,
    by_sid: HashMap<Box<[u8]>, u32, RandomState>,
    /// Ended by reaching their maximum; to be taken out of the interest index.
    ended: Vec<SubscriptionKey>,
}

#[derive(Default)]
struct Place {
    uses: u32,
    subscription: Option<Subscription>,
}

struct Subscription {
    sid: Box<[u8]>,
    /// Set once the interest index has it.
    key: Option<SubscriptionKey>,
    delivered: usize,
    max: Option<usize>,
}

/// A subscription as `/connz?subs=detail` shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubscriptionSnapshot {
    pub filter: Vec<u8>,
    pub queue: Option<Vec<u8>>,
    pub sid: Vec<u8>,
    pub delivered: u64,
    pub max: Option<u64>,
}

fn place_of(id: u64) -> (usize, u32) {
    let bytes = id.to_be_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_be_bytes([e, f, g, h]) as usize, u32::from_be_bytes([a, b, c, d]))
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.by_sid.len()
    }

    /// Takes a place for a new sid. `None` when the sid is in use: nats-server keeps the first.
    pub(super) fn begin(&mut self, sid: &[u8]) -> Option<u64> {
        if self.by_sid.contains_key(sid) {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.places.push(Place::default());
                u32::try_from(self.places.len() - 1).expect("a session's subscriptions are bounded")
            }
        };
        let place = &mut self.places[index as usize];
        place.uses = place.uses.wrapping_add(1);
        place.subscription = Some(Subscription { sid: sid.into(), key: None, delivered: 0, max: None });
        self.by_sid.insert(sid.into(), index);
        Some(u64::from(place.uses) << 32 | u64::from(index))
    }

    /// The interest index has it now, under this key.
    pub(super) fn begun(&mut self, id: u64, key: SubscriptionKey) {
        let (index, uses) = place_of(id);
        let place = self.places.get_mut(index).filter(|place| place.uses == uses);
        match place.and_then(|place| place.subscription.as_mut()) {
            Some(subscription) => subscription.key = Some(key),
            None => self.ended.push(key),
        }
    }

    /// Ends a subscription, now or after `max` deliveries in all.
    pub(super) fn end(&mut self, sid: &[u8], max: Option<usize>) {
        let Some(&index) = self.by_sid.get(sid) else { return };
        let Some(subscription) = self.places[index as usize].subscription.as_mut() else { return };
        match max {
            Some(max) if subscription.delivered < max => subscription.max = Some(max),
            Some(_) | None => self.remove(index),
        }
    }

    /// The sid to deliver to, counted. `None` when the subscription has ended. `last` says that it ends
    /// with this message: call [`Self::delivered_last`] after writing.
    pub(super) fn deliver(&mut self, id: u64) -> Option<(&[u8], bool)> {
        let (index, uses) = place_of(id);
        let place = self.places.get_mut(index).filter(|place| place.uses == uses)?;
        let subscription = place.subscription.as_mut()?;
        subscription.delivered += 1;
        let last = subscription.max.is_some_and(|max| subscription.delivered >= max);
        Some((&subscription.sid, last))
    }

    pub(super) fn delivered_last(&mut self, id: u64) {
        self.remove(u32::try_from(place_of(id).0).expect("made of 32 bits"));
    }

    /// What the interest index still has and should not.
    pub(super) fn take_ended(&mut self) -> Vec<SubscriptionKey> {
        std::mem::take(&mut self.ended)
    }

    /// Ends all of them.
    pub(super) fn take_all(&mut self) -> Vec<SubscriptionKey> {
        let mut keys = self.take_ended();
        keys.extend(self.places.drain(..).filter_map(|place| place.subscription?.key));
        self.free = Vec::new();
        self.by_sid = HashMap::default();
        keys
    }

    pub(super) fn snapshot(&self) -> Vec<SubscriptionSnapshot> {
        let living = self.places.iter().filter_map(|place| place.subscription.as_ref());
        living
            .filter_map(|subscription| {
                let key = subscription.key.as_ref()?;
                Some(SubscriptionSnapshot {
                    filter: key.filter().to_vec(),
                    queue: key.queue().map(<[u8]>::to_vec),
                    sid: subscription.sid.to_vec(),
                    delivered: subscription.delivered as u64,
                    max: subscription.max.map(|max| max as u64),
                })
            })
            .collect()
    }

    fn remove(&mut self, index: u32) {
        let Some(subscription) = self.places[index as usize].subscription.take() else { return };
        self.by_sid.remove(&subscription.sid);
        self.ended.extend(subscription.key);
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use beamlog_router::interest::{Envelope, Interest, Offered, Subscriber};

    use super::*;

    struct Nobody;
    impl Subscriber for Nobody {
        fn offer(&self, _: u64, _: &Envelope<'_>) -> Offered {
            Offered::Refused
        }
        fn flush(&self) {}
    }

    fn subscribe(subscriptions: &mut Subscriptions, sid: &[u8]) -> Option<u64> {
        let id = subscriptions.begin(sid)?;
        let key = Interest::new().subscribe(sid, None, Arc::new(Nobody), id).unwrap();
        subscriptions.begun(id, key);
        Some(id)
    }

    #[test]
    fn a_sid_in_use_is_kept() {
        let mut subscriptions = Subscriptions::default();
        assert!(subscribe(&mut subscriptions, b"0").is_some());
        assert!(subscribe(&mut subscriptions, b"0").is_none());
        assert_eq!(subscriptions.len(), 1);
    }

    #[test]
    fn a_late_message_does_not_reach_the_next_in_its_place() {
        let mut subscriptions = Subscriptions::default();
        let old = subscribe(&mut subscriptions, b"a").unwrap();
        subscriptions.end(b"a", None);
        let new = subscribe(&mut subscriptions, b"b").unwrap();
        assert_ne!(old, new);
        assert!(subscriptions.deliver(old).is_none());
        assert_eq!(subscriptions.deliver(new), Some((&b"b"[..], false)));
        assert_eq!(subscriptions.take_ended().len(), 1);
    }

    #[test]
    fn the_maximum_counts_what_was_delivered_before() {
        let mut subscriptions = Subscriptions::default();
        let id = subscribe(&mut subscriptions, b"a").unwrap();
        assert_eq!(subscriptions.deliver(id), Some((&b"a"[..], false)));
        subscriptions.end(b"a", Some(3));
        assert_eq!(subscriptions.deliver(id), Some((&b"a"[..], false)));
        assert_eq!(subscriptions.deliver(id), Some((&b"a"[..], true)));
        subscriptions.delivered_last(id);
        assert!(subscriptions.deliver(id).is_none());
        assert_eq!((subscriptions.len(), subscriptions.take_ended().len()), (0, 1));

        let id = subscribe(&mut subscriptions, b"b").unwrap();
        assert!(subscriptions.deliver(id).is_some());
        subscriptions.end(b"b", Some(1));
        assert!(subscriptions.deliver(id).is_none(), "one was delivered already");
    }
}
