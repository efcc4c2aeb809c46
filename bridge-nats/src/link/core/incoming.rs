//! Messages from the other side, handed to who is here: subscribers, and the stream that captures them.

use beamlog_router::interest::{Envelope, RouteCache};
use beamlog_router::{Full, Health, Router, StreamPublish, subject};
use bytes::Bytes;

/// Headers + payload of a message that is taken from the other side.
pub(super) const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Hands in messages; remembers where subjects go.
pub(super) struct Incoming {
    router: Router,
    cache: RouteCache,
}

/// Who took a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Handed {
    ToSomebody,
    ToNobody,
}

impl Incoming {
    pub(super) fn new(router: Router) -> Self {
        Self { router, cache: RouteCache::new() }
    }

    /// Hands in one message. Waits while a stream that captures it has no room. Whoever reads it may do so
    /// only after [`Self::flush`]. *Cancel safety*: when dropped, subscribers may have it and the stream not.
    pub(super) async fn hand_in(
        &mut self,
        subject: Bytes,
        reply: Bytes,
        headers: Bytes,
        payload: Bytes,
    ) -> Handed {
        let envelope =
            Envelope { subject: &subject, reply: &reply, headers: &headers, payload: &payload, origin: 0 };
        let routed = self.router.interest().route(&mut self.cache, &subject, &envelope);
        if let Some(stream) = routed.capture {
            let mut publish = StreamPublish { stream, subject, reply, headers, payload };
            while let Err(Full(back)) = self.router.offer_publish(publish) {
                publish = back;
                self.flush();
                self.router.when_ready().await;
                if matches!(self.router.health(), Health::LogFailed { .. } | Health::Closed) {
                    break;
                }
            }
            return Handed::ToSomebody;
        }
        if routed.receivers > 0 { Handed::ToSomebody } else { Handed::ToNobody }
    }

    /// The batch ends.
    pub(super) fn flush(&mut self) {
        self.cache.flush();
    }
}

/// Whether a subject from the other side can be one here.
pub(super) fn is_acceptable(name: &[u8]) -> bool {
    subject::check_subject(name).is_ok() && !super::outgoing::is_of_system(name)
}
