//! Where a stored message has been, for streams: the id it is published with, the streams it has passed, and
//! which headers cross a link.
//!
//! * `Nats-Msg-Id: <stream>@<epoch>:<sequence>`: the message of the stream it is exported from. What arrived
//!   there is told by it, long after the window of ids.
//! * `Beamlog-Hops`: the streams it was in before that one, as such ids, oldest first; most were in none. Both only
//!   keep a message from being carried back, so they need not be believed: who forges one harms his own message.
//! * `Beamlog-Origin` ([`ORIGIN_HEADER`]): where a link brought it from. Written here, never taken over.
//! * `Beamlog-Origin-Time`: when it was first stored, in nanoseconds since 1970.
//! * `Beamlog-Msg-Id`: the id its own publisher gave it.
//!
//! An epoch is the time at which the stream was made, in nanoseconds: the same for all who look at it, and
//! another one when it is made anew.

use std::fmt;

use async_nats::header::{self, HeaderMap, HeaderName, HeaderValue};
use beamlog_router::stream::{ORIGIN_HEADER, Provenance};
use beamlog_router::{Sequence, Timestamp, headers};

use super::headers as crossing;

pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";
const HOPS: &str = "Beamlog-Hops";
const ORIGIN_TIME: &str = "Beamlog-Origin-Time";
const KEPT_ID: &str = "Beamlog-Msg-Id";

/// Streams that a message may pass. Longer ways are mistakes.
const HOPS_MAX: usize = 8;

/// Bytes of a stream's name.
const NAME_MAX: usize = 255;

/// One stream, among all of that name that there ever were anywhere.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct StreamKey {
    pub(crate) name: String,
    pub(crate) epoch: u64,
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.epoch)
    }
}

impl StreamKey {
    /// The id of its message with this sequence.
    pub(crate) fn id(&self, sequence: u64) -> String {
        // Once for each message: in one piece.
        let (mut epoch, mut number) = (itoa::Buffer::new(), itoa::Buffer::new());
        [&self.name, "@", epoch.format(self.epoch), ":", number.format(sequence)].concat()
    }

    /// The sequence of an id of this stream.
    pub(crate) fn sequence_of(&self, id: &str) -> Option<u64> {
        let (key, sequence) = parse(id)?;
        (key == *self).then_some(sequence)
    }
}

/// No stream is called otherwise. A list of hops with another name could not be sent on as a header: the message
/// would go round for ever.
fn is_name(name: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || c == ',';
    !name.is_empty() && name.len() <= NAME_MAX && !name.contains(is_odd)
}

fn parse(id: &str) -> Option<(StreamKey, u64)> {
    let (name, rest) = id.rsplit_once('@')?;
    let (epoch, sequence) = rest.split_once(':')?;
    if !is_name(name) {
        return None;
    }
    Some((StreamKey { name: name.to_owned(), epoch: epoch.parse().ok()? }, sequence.parse().ok()?))
}

/// The way of a message up to here.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Trail {
    hops: Vec<(StreamKey, u64)>,
    time: Option<u64>,
}

impl Trail {
    /// Of a message that is stored here.
    pub(crate) fn of_block(block: &[u8]) -> Self {
        let text = |name: &str| {
            headers::find(block, name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok())
        };
        let mut trail = Self::read(text(HOPS), text(MESSAGE_ID), text(ORIGIN_TIME));
        let from = text(ORIGIN_HEADER).and_then(|value| Provenance::parse(value.as_bytes()));
        if let Some(from) = from.filter(|from| is_name(&from.stream)) {
            trail.time = trail.time.or(Some(from.time.0));
            trail.hops.push((StreamKey { name: from.stream, epoch: from.epoch }, from.sequence.0));
        }
        trail
    }

    /// Of a message that is stored there.
    pub(crate) fn of_map(map: Option<&HeaderMap>) -> Self {
        let text = |name: &str| map.and_then(|map| map.get(name)).map(|value| value.as_str());
        Self::read(text(HOPS), text(MESSAGE_ID), text(ORIGIN_TIME))
    }

    fn read(hops: Option<&str>, id: Option<&str>, time: Option<&str>) -> Self {
        let hops = hops.into_iter().flat_map(|hops| hops.split(',')).filter_map(|hop| parse(hop.trim()));
        let mut hops: Vec<_> = hops.take(HOPS_MAX + 1).collect();
        let last = id.and_then(parse).filter(|last| hops.last() != Some(last) && hops.len() <= HOPS_MAX);
        hops.extend(last);
        Self { hops, time: time.and_then(|time| time.parse().ok()) }
    }

    pub(crate) fn has_been_in(&self, stream: &StreamKey) -> bool {
        self.hops.iter().any(|(hop, _)| hop == stream)
    }

    pub(crate) fn hops(&self) -> impl Iterator<Item = (&StreamKey, u64)> {
        self.hops.iter().map(|(key, sequence)| (key, *sequence))
    }

    pub(crate) fn is_too_long(&self) -> bool {
        self.hops.len() >= HOPS_MAX
    }
}

/// The headers with which a message of `stream` goes out.
pub(crate) fn outward(
    block: &[u8],
    trail: &Trail,
    stream: &StreamKey,
    sequence: u64,
    stored: Timestamp,
) -> HeaderMap {
    let id = stream.id(sequence);
    // The oldest of its own ids is kept.
    let text =
        |name: &str| headers::find(block, name.as_bytes()).and_then(|own| std::str::from_utf8(own).ok());
    let own = text(KEPT_ID).or_else(|| text(MESSAGE_ID));
    let kept = own.map(|own| (KEPT_ID, own));
    let mut map = crossing::outward(block, kept.as_slice());
    // All of these are legal: ours, or numbers, or names that were looked at.
    map.insert(header::NATS_MESSAGE_ID, id);
    if !trail.hops.is_empty() {
        let hops: Vec<String> = trail.hops.iter().map(|(hop, sequence)| hop.id(*sequence)).collect();
        map.insert(HeaderName::from_static(HOPS), hops.join(","));
    }
    map.insert(HeaderName::from_static(ORIGIN_TIME), HeaderValue::from(trail.time.unwrap_or(stored.0)));
    map
}

/// The header block with which a message from elsewhere is stored.
pub(crate) fn inward(map: Option<&HeaderMap>, from: &Provenance) -> Vec<u8> {
    let text = |name: &str| map.and_then(|map| map.get(name)).map(|value| value.as_str().to_owned());
    let origin = from.to_header();
    let kept: Vec<(&str, String)> = [HOPS, ORIGIN_TIME, KEPT_ID]
        .into_iter()
        .filter_map(|name| text(name).map(|value| (name, value)))
        .collect();
    let mut more: Vec<(&str, &str)> = kept.iter().map(|(name, value)| (*name, value.as_str())).collect();
    more.push((ORIGIN_HEADER, &origin));
    crossing::inward(map, &more)
}

/// What an imported message says of itself when it is stored.
pub(crate) fn provenance(
    stream: &StreamKey,
    sequence: u64,
    time: u64,
    keep_sequence: bool,
    after: Option<u64>,
) -> Provenance {
    Provenance {
        stream: stream.name.clone(),
        epoch: stream.epoch,
        sequence: Sequence(sequence),
        time: Timestamp(time),
        keep_sequence,
        after: after.map(Sequence),
    }
}

#[cfg(test)]
mod tests {
    use beamlog_router::headers::Builder;

    use super::*;

    fn key(name: &str) -> StreamKey {
        StreamKey { name: name.into(), epoch: 17 }
    }

    #[test]
    fn an_id_names_one_message_of_one_stream() {
        assert_eq!(key("S").id(5), "S@17:5");
        assert_eq!(key("S").sequence_of("S@17:5"), Some(5));
        for other in ["S@18:5", "T@17:5", "S@17", "5", "", "S@17:x", "@17:5"] {
            assert_eq!(key("S").sequence_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_trail_grows_by_what_brought_it_and_by_where_it_is() {
        let from = provenance(&key("UP"), 3, 99, false, Some(2));
        let stored = Builder::new()
            .header(HOPS, "FIRST@17:1")
            .header(MESSAGE_ID, "own")
            .header(ORIGIN_HEADER, from.to_header())
            .header("User", "u")
            .finish();
        let trail = Trail::of_block(&stored);
        assert!(trail.has_been_in(&key("UP")) && trail.has_been_in(&key("FIRST")));
        assert!(!trail.has_been_in(&key("HERE")));
        let map = outward(&stored, &trail, &key("HERE"), 7, Timestamp(100));
        let value = |name: &str| map.get(name).map(|value| value.as_str());
        assert_eq!(value(HOPS), Some("FIRST@17:1,UP@17:3"));
        assert_eq!(value(MESSAGE_ID), Some("HERE@17:7"));
        assert_eq!(value(KEPT_ID), Some("own"));
        assert_eq!(value(ORIGIN_TIME), Some("99"));
        assert_eq!(value(ORIGIN_HEADER), None);
        assert_eq!(value("User"), Some("u"));

        let block = inward(Some(&map), &provenance(&key("THERE"), 9, 101, false, None));
        let trail = Trail::of_block(&block);
        assert!(trail.has_been_in(&key("HERE")) && trail.has_been_in(&key("THERE")));
        assert_eq!(headers::find(&block, KEPT_ID.as_bytes()), Some(&b"own"[..]));
    }

    /// A hop that no header can have must not take the others with it.
    #[test]
    fn what_cannot_be_sent_on_is_left_out_of_the_way() {
        let stored = Builder::new().header("User", "u").finish();
        let odd = [&stored[..stored.len() - 2], b"Beamlog-Hops: A@17:1,B\rB@17:2\r\n\r\n"].concat();
        let trail = Trail::of_block(&odd);
        assert_eq!(trail.hops().map(|(key, _)| key.name.as_str()).collect::<Vec<_>>(), ["A"]);
        let map = outward(&odd, &trail, &key("HERE"), 7, Timestamp(100));
        assert_eq!(map.get(HOPS).map(|value| value.as_str()), Some("A@17:1"));
        assert_eq!(map.get(MESSAGE_ID).map(|value| value.as_str()), Some("HERE@17:7"));
    }

    /// The last one is in the id, and was in both once.
    #[test]
    fn a_message_that_was_nowhere_before_has_its_id_and_no_list() {
        let map = outward(b"", &Trail::default(), &key("HERE"), 7, Timestamp(100));
        assert_eq!((map.get(HOPS), map.len()), (None, 2));
        let hops = |trail: Trail| trail.hops().map(|(key, at)| key.id(at)).collect::<Vec<_>>();
        assert_eq!(hops(Trail::of_map(Some(&map))), ["HERE@17:7"]);
        let mut both = map.clone();
        both.insert(HOPS, "A@17:1,HERE@17:7");
        assert_eq!(hops(Trail::of_map(Some(&both))), ["A@17:1", "HERE@17:7"]);
        // On the way back it is known.
        let block = inward(Some(&map), &provenance(&key("THERE"), 9, 101, false, None));
        assert_eq!(hops(Trail::of_block(&block)), ["HERE@17:7", "THERE@17:9"]);
        let map = outward(&block, &Trail::of_block(&block), &key("NEXT"), 3, Timestamp(102));
        assert_eq!(hops(Trail::of_map(Some(&map))), ["HERE@17:7", "THERE@17:9", "NEXT@17:3"]);
    }

    #[test]
    fn what_a_peer_says_of_its_way_is_bounded_and_never_its_origin() {
        let mut map = HeaderMap::new();
        map.insert(HOPS, "S@17:1,".repeat(1000).as_str());
        map.insert(ORIGIN_HEADER, "FORGED 1 1 1");
        let trail = Trail::of_map(Some(&map));
        assert!(trail.is_too_long());
        assert!(trail.hops.len() <= HOPS_MAX + 1);
        let block = inward(Some(&map), &provenance(&key("UP"), 1, 1, false, None));
        let origins: Vec<_> =
            headers::iter(&block).filter(|(name, _)| *name == ORIGIN_HEADER.as_bytes()).collect();
        assert_eq!(origins, [(ORIGIN_HEADER.as_bytes(), &b"UP 17 1 1"[..])]);
    }
}
