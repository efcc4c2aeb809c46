//! Messages to one who is known by a name: a literal filter below [`NAMES`], which nobody else may subscribe to. Who
//! looks on by a wildcard gets nothing.

use super::index::Target;
use super::route::offer;
use super::{Envelope, Interest, RouteCache};

/// What every name begins with: see [`Interest::is_internal`].
pub const NAMES: &[u8] = b"_BEAMLOG.";

impl Interest {
    /// Whether there is somebody of this name, here or at a peer.
    #[must_use]
    pub fn is_named(&self, name: &[u8]) -> bool {
        self.index.has_named(name)
    }

    /// Offers a message, which shows a subject of its own, to those of this name, and says how many took it. Nobody is
    /// flushed before [`RouteCache::flush`].
    pub fn send_to(&self, cache: &mut RouteCache, name: &[u8], message: &Envelope<'_>) -> usize {
        self.send_to_some(cache, name, message, |_| true)
    }

    /// As [`Self::send_to`], for a message that came from a peer: it goes to nobody but those of this node.
    pub fn send_to_here(&self, cache: &mut RouteCache, name: &[u8], message: &Envelope<'_>) -> usize {
        self.send_to_some(cache, name, message, Target::is_local)
    }

    fn send_to_some(
        &self,
        cache: &mut RouteCache,
        name: &[u8],
        message: &Envelope<'_>,
        wanted: impl Fn(&Target) -> bool,
    ) -> usize {
        let named = self.index.named(name);
        let (touched, congested) = cache.touched_and_congested();
        let wanted = named.iter().filter(|target| wanted(target));
        wanted.filter(|target| offer(target, name, message, touched, congested)).count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use super::super::{Offered, Subscriber, SubscriberKind};
    use super::*;

    #[derive(Default)]
    struct Heard {
        subjects: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
        flushes: AtomicU32,
    }

    impl Subscriber for Heard {
        fn offer(&self, _: u64, message: &Envelope<'_>) -> Offered {
            self.subjects.lock().unwrap().push((Vec::new(), message.subject.to_vec()));
            Offered::Taken
        }

        fn offer_to_peer(&self, _: u64, routed_by: &[u8], message: &Envelope<'_>) -> Offered {
            self.subjects.lock().unwrap().push((routed_by.to_vec(), message.subject.to_vec()));
            Offered::Taken
        }

        fn flush(&self) {
            self.flushes.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_who_has_the_name_is_told() {
        let interest = Interest::new();
        let [here, peer, curious, other] = std::array::from_fn(|_| Arc::new(Heard::default()));
        let name = b"_BEAMLOG.STREAM.s";
        assert!(!interest.is_named(name));
        interest.subscribe(b">", None, Arc::clone(&curious) as _, 1).unwrap();
        interest.subscribe(b"_BEAMLOG.*.s", None, Arc::clone(&curious) as _, 2).unwrap();
        interest.subscribe(b"_BEAMLOG.STREAM.t", None, Arc::clone(&other) as _, 3).unwrap();
        assert!(!interest.is_named(name));
        let key = interest.subscribe(name, None, Arc::clone(&here) as _, 4).unwrap();
        let kind = SubscriberKind::Peer { weight: 1 };
        interest.subscribe_as(kind, name, None, Arc::clone(&peer) as _, 5).unwrap();
        assert!(interest.is_named(name));

        let message = Envelope { subject: b"shown", reply: b"", headers: b"", payload: b"", origin: 0 };
        let mut cache = RouteCache::new();
        assert_eq!(interest.send_to(&mut cache, name, &message), 2);
        assert_eq!(interest.send_to_here(&mut cache, name, &message), 1);
        assert_eq!(interest.send_to(&mut cache, b"_BEAMLOG.STREAM.u", &message), 0);
        cache.flush();
        let heard = |heard: &Heard| heard.subjects.lock().unwrap().clone();
        let shown = |routed_by: &[u8]| (routed_by.to_vec(), b"shown".to_vec());
        assert_eq!(heard(&here), [shown(b""), shown(b"")]);
        assert_eq!(heard(&peer), [shown(name)]);
        assert!(heard(&curious).is_empty() && heard(&other).is_empty());
        assert!(here.flushes.load(Ordering::Relaxed) > 0);

        interest.unsubscribe(&key);
        assert!(interest.is_named(name));
        assert_eq!(interest.send_to_here(&mut cache, name, &message), 0);
    }
}
