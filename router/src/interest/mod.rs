//! Interest: who wants which subject now. Read-mostly, shared by all connections and the driver;
//! unstored messages go from here straight into subscribers' buffers.

/// A message on its way to subscribers. Nothing is copied until a subscriber takes it.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The subject the receiver sees (not always the one it was routed by).
    pub subject: &'a [u8],
    /// Empty is none.
    pub reply: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
    /// The connection it came from, so that a session without echo can refuse it; 0 is nobody.
    pub origin: u64,
}

/// What a subscriber did with a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offered {
    Taken,
    /// It does not want this one (no echo), or its subscription has ended.
    Refused,
}

/// Who receives: a session of the endpoint, or an embedded subscription.
pub trait Subscriber: Send + Sync {
    /// Copies the message into its own bounded buffer. Never blocks and never calls back into interest.
    fn offer(&self, subscription: u64, message: &Envelope<'_>) -> Offered;

    /// The sender's batch ends here: write out what was taken.
    fn flush(&self);
}
