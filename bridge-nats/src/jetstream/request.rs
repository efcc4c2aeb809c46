//! What a session hands to the API, and what it is told.

/// A publish whose subject is the API's, as it came from a client. Borrowed from the read buffer.
#[derive(Clone, Copy, Debug)]
pub struct ApiRequest<'a> {
    pub subject: &'a [u8],
    /// Where the answer goes; empty when the client wants none.
    pub reply: &'a [u8],
    /// The raw header block, or empty.
    pub headers: &'a [u8],
    pub payload: &'a [u8],
    /// The client asked, in CONNECT, to be told when nobody answers (503).
    pub no_responders: bool,
}

/// What became of an API request. The answer itself goes to the reply subject when there is one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use = "a request that was not taken has to be offered again"]
pub enum Handled {
    /// Taken, refused with an answer, or of no meaning. Nothing is left to do.
    Done,
    /// The engine's queue is full and this one must not be lost (an ack, a pull, a flow-control
    /// answer). Keep the message, read no more from this client, and offer it again soon.
    Full,
    /// Taken, by who has its stream: whoever else hears requests of the API as such must not get it.
    Elsewhere,
    /// Nobody answers this subject: the client gets what an unheard request gets (503, if it asked).
    NoResponders,
}

/// Whether a publish to this subject is for the API and not for subscribers.
#[must_use]
pub fn is_api_subject(subject: &[u8]) -> bool {
    let Some(rest) = subject.strip_prefix(b"$JS.") else { return false };
    rest.starts_with(b"API.") || rest.starts_with(b"ACK.") || rest.starts_with(b"FC.")
}

#[cfg(test)]
mod tests {
    use super::is_api_subject;

    #[test]
    fn only_the_three_prefixes_are_the_api() {
        for subject in ["$JS.API.INFO", "$JS.ACK.s.c.1.1.1.1.0", "$JS.FC.s.c.x"] {
            assert!(is_api_subject(subject.as_bytes()), "{subject}");
        }
        for subject in
            ["$JS", "$JS.API", "$JS.EVENT.ADVISORY.API", "$js.API.INFO", "$JSAPI.INFO", "a.$JS.API.INFO"]
        {
            assert!(!is_api_subject(subject.as_bytes()), "{subject}");
        }
    }
}
