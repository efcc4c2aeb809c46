//! The subscriptions of one subject, for who gives each message to exactly one of them by rules of its own
//! (tasks give jobs to workers). Costs a subscription one load while nobody observes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use beamlog_log::StreamId;
use bytes::Bytes;

use super::index::{Matches, Target};
use super::{Envelope, Interest, Offered, Subscriber};

/// One subscription of this node whose filter is the subject itself.
#[derive(Clone)]
pub struct Member {
    /// Higher than that of every subscription before it.
    pub entry: u64,
    pub queue: Option<Bytes>,
    pub subscriber: Arc<dyn Subscriber>,
    /// What to offer with.
    pub id: u64,
}

impl Member {
    /// Hands it a message for nobody else. False: it is gone. One that cannot read now has had it all the same.
    #[must_use]
    pub fn give(&self, envelope: &Envelope<'_>) -> bool {
        match self.subscriber.offer(self.id, envelope) {
            Offered::Taken | Offered::Joined => {
                self.subscriber.flush();
                true
            }
            Offered::Congested => true,
            Offered::Refused => false,
        }
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("entry", &self.entry)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// Is called when the members of an observed subject may have changed, on the thread that changed them; must
/// not block and must not call back into interest.
pub type OnMembers = Arc<dyn Fn(&[u8]) + Send + Sync>;

#[derive(Default)]
pub(super) struct Observed {
    count: AtomicUsize,
    subjects: RwLock<BTreeMap<Vec<u8>, OnMembers>>,
}

impl Observed {
    /// A subscription with this filter came or went.
    pub(super) fn changed(&self, filter: &[u8]) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let subjects = self.subjects.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tell) = subjects.get(filter) {
            tell(filter);
        }
    }
}

impl Interest {
    /// Asks to be told when the members of a subject change. One observer for each subject: the last.
    pub fn observe(&self, subject: &[u8], tell: OnMembers) {
        let mut subjects = self.observed.subjects.write().unwrap_or_else(PoisonError::into_inner);
        if subjects.insert(subject.to_vec(), tell).is_none() {
            self.observed.count.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub fn unobserve(&self, subject: &[u8]) {
        let mut subjects = self.observed.subjects.write().unwrap_or_else(PoisonError::into_inner);
        if subjects.remove(subject).is_some() {
            self.observed.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The subscriptions of this node whose filter is this very subject; those by wildcards only look on.
    #[must_use]
    pub fn members(&self, subject: &[u8]) -> Vec<Member> {
        let mut members: Vec<Member> = Vec::new();
        self.index.each_exact(subject, &mut |queue, target| {
            members.push(Member {
                entry: target.entry(),
                queue: queue.cloned(),
                subscriber: Arc::clone(&target.subscriber),
                id: target.id,
            });
        });
        members
    }

    /// The stream that captures a subject.
    #[must_use]
    pub fn capture_of(&self, subject: &[u8]) -> Option<StreamId> {
        struct Capture(Option<StreamId>);
        impl Matches for Capture {
            fn plain(&mut self, _: &[Target]) {}
            fn group(&mut self, _: &Bytes, _: &[Target]) {}
            fn capture(&mut self, stream: StreamId) {
                self.0 = Some(stream);
            }
        }
        let mut capture = Capture(None);
        self.index.collect(subject, &mut capture);
        capture.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::super::{Envelope, Offered};
    use super::*;

    struct Nobody;
    impl Subscriber for Nobody {
        fn offer(&self, _: u64, _: &Envelope<'_>) -> Offered {
            Offered::Refused
        }
        fn flush(&self) {}
    }

    #[test]
    fn members_are_those_of_the_very_subject_and_changes_are_told() {
        let interest = Interest::new();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        interest.observe(
            b"jobs",
            Arc::new(move |_| {
                counted.fetch_add(1, Ordering::SeqCst);
            }),
        );
        let subscribe = |filter: &[u8], queue: Option<&[u8]>, id| {
            interest.subscribe(filter, queue, Arc::new(Nobody), id).unwrap()
        };
        let first = subscribe(b"jobs", None, 1);
        subscribe(b"jobs", Some(b"g"), 2);
        subscribe(b"*", None, 3);
        subscribe(b"other", None, 4);
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        let members = interest.members(b"jobs");
        assert_eq!(members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2]);
        assert!(members[0].entry < members[1].entry && members[1].queue.as_deref() == Some(b"g"));
        interest.unsubscribe(&first);
        assert_eq!((calls.load(Ordering::SeqCst), interest.members(b"jobs").len()), (3, 1));
        interest.unobserve(b"jobs");
        subscribe(b"jobs", None, 5);
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn the_capture_of_a_subject_is_found_through_wildcards() {
        let interest = Interest::new();
        interest.capture(b"a.>", StreamId(7)).unwrap();
        assert_eq!(interest.capture_of(b"a.b"), Some(StreamId(7)));
        assert_eq!(interest.capture_of(b"b"), None);
    }
}
