//! Where imported messages come from, and which of them are here already.
//!
//! A message that a link brings carries a [`Provenance`] as a header of its own, so that data and watermark
//! are one record. What was stored from an origin is a set of its sequences: a message in it is a duplicate
//! for ever, not only within the window of message ids. A set, and not only the highest sequence, because
//! two links may bring different parts of one stream, each at its own pace. Runs of neighbours cost
//! nothing in it.
//!
//! The header is only believed from whoever holds a router: the endpoint takes it out of what clients send.

use std::collections::BTreeMap;

use beamlog_log::{Sequence, Timestamp};
use roaring::RoaringTreemap;

use crate::stream::body::not_in;

/// The header of a stored message that says where it came from: stream, epoch, sequence, time in
/// nanoseconds, `keep` if it has the sequence that it had there, and `after=` the one that came before it.
pub const ORIGIN_HEADER: &str = "Beamlog-Origin";

/// Origins that one stream takes messages from.
pub(crate) const ORIGINS_MAX: usize = 1024;
/// Bytes of the name of an origin.
const NAME_MAX: usize = 255;

/// Where a message was before it came here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Provenance {
    /// The stream that it was read from.
    pub stream: String,
    /// Which stream of that name: one that was made anew counts its sequences anew.
    pub epoch: u64,
    pub sequence: Sequence,
    /// When it was stored there.
    pub time: Timestamp,
    /// It is to have its sequence of there here too; what is missing before it is skipped.
    pub keep_sequence: bool,
    /// It is only stored when this one of the same origin is here: a message is not overtaken by those that
    /// were sent behind it.
    pub after: Option<Sequence>,
}

impl Provenance {
    /// The value of [`ORIGIN_HEADER`].
    #[must_use]
    pub fn to_header(&self) -> String {
        let Self { stream, epoch, sequence, time, keep_sequence, after } = self;
        let keep = if *keep_sequence { " keep" } else { "" };
        let after = after.map(|after| format!(" after={}", after.0)).unwrap_or_default();
        format!("{stream} {epoch} {} {}{keep}{after}", sequence.0, time.0)
    }

    /// Reads a value of [`ORIGIN_HEADER`].
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(value).ok()?.split(' ');
        let stream = parts.next().filter(|name| !name.is_empty() && name.len() <= NAME_MAX)?.to_owned();
        let epoch = parts.next()?.parse().ok()?;
        // Zero is no sequence, and behind the last one there must be room.
        let sequence = parts.next()?.parse().ok().filter(|at| *at > 0 && *at < u64::MAX / 2)?;
        let time = parts.next()?.parse().ok()?;
        let (mut keep_sequence, mut after) = (false, None);
        for part in parts {
            match (part, part.strip_prefix("after=")) {
                ("keep", _) if !keep_sequence => keep_sequence = true,
                (_, Some(sequence)) if after.is_none() => after = Some(Sequence(sequence.parse().ok()?)),
                _ => return None,
            }
        }
        let (sequence, time) = (Sequence(sequence), Timestamp(time));
        Some(Self { stream, epoch, sequence, time, keep_sequence, after })
    }
}

/// What a stream has of one origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OriginInfo {
    pub stream: String,
    pub epoch: u64,
    /// The highest sequence that is here.
    pub highest: Sequence,
    /// When that message was stored there.
    pub highest_time: Timestamp,
    pub messages: u64,
    /// Everything from the lowest sequence that is here up to this one is here.
    pub contiguous: Sequence,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) sequences: RoaringTreemap,
    /// The highest of these, or 0: to look for it costs much more than to know it.
    highest: u64,
    pub(crate) highest_time: Timestamp,
}

impl Seen {
    pub(crate) fn new(sequences: RoaringTreemap, highest_time: Timestamp) -> Self {
        Self { highest: sequences.max().unwrap_or(0), sequences, highest_time }
    }

    fn contiguous(&self) -> Sequence {
        let Some(lowest) = self.sequences.min() else { return Sequence(0) };
        Sequence(not_in(&self.sequences, lowest) - 1)
    }
}

/// What a stream has of all origins.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Origins {
    /// By stream and epoch.
    pub(crate) seen: BTreeMap<(String, u64), Seen>,
    /// Changed since the last checkpoint.
    pub(crate) dirty: bool,
}

/// What is to become of a message with provenance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Known {
    New,
    Duplicate,
    /// The one that came before it is not here.
    OutOfOrder,
    TooManyOrigins,
}

impl Origins {
    pub(crate) fn judge(&self, from: &Provenance) -> Known {
        match self.seen.get(&(from.stream.clone(), from.epoch)) {
            Some(seen) if seen.sequences.contains(from.sequence.0) => Known::Duplicate,
            Some(seen) if from.after.is_some_and(|after| !seen.sequences.contains(after.0)) => {
                Known::OutOfOrder
            }
            Some(_) => Known::New,
            None if from.after.is_some() => Known::OutOfOrder,
            None if self.seen.len() >= ORIGINS_MAX => Known::TooManyOrigins,
            None => Known::New,
        }
    }

    /// A message with this header value was stored.
    pub(crate) fn stored(&mut self, value: &[u8]) {
        // One that cannot be read was not judged either: it is an ordinary header of an old message.
        let Some(from) = Provenance::parse(value) else { return };
        let seen = self.seen.entry((from.stream, from.epoch)).or_default();
        if seen.highest < from.sequence.0 {
            (seen.highest, seen.highest_time) = (from.sequence.0, from.time);
        }
        seen.sequences.insert(from.sequence.0);
        // A block of 65,536 neighbours became full: it need not cost 8 KiB.
        if from.sequence.0 & 0xffff == 0xffff {
            seen.sequences.optimize();
        }
        self.dirty = true;
    }

    /// Takes in what another shard had of an origin.
    pub(crate) fn merge(
        &mut self,
        origin: String,
        epoch: u64,
        sequences: &RoaringTreemap,
        highest_time: Timestamp,
    ) {
        let seen = self.seen.entry((origin, epoch)).or_default();
        seen.sequences |= sequences;
        seen.highest_time = seen.highest_time.max(highest_time);
        self.dirty = true;
    }

    pub(crate) fn infos(&self) -> Vec<OriginInfo> {
        self.seen
            .iter()
            .map(|((stream, epoch), seen)| OriginInfo {
                stream: stream.clone(),
                epoch: *epoch,
                highest: Sequence(seen.highest),
                highest_time: seen.highest_time,
                messages: seen.sequences.len(),
                contiguous: seen.contiguous(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(sequence: u64) -> Provenance {
        Provenance {
            stream: "S".into(),
            epoch: 7,
            sequence: Sequence(sequence),
            time: Timestamp(sequence * 10),
            keep_sequence: false,
            after: None,
        }
    }

    #[test]
    fn a_header_says_what_it_was_made_of() {
        let kept = Provenance { keep_sequence: true, ..from(5) };
        assert_eq!(kept.to_header(), "S 7 5 50 keep");
        let behind = Provenance { after: Some(Sequence(4)), ..kept.clone() };
        for provenance in [from(1), kept, behind] {
            assert_eq!(Provenance::parse(provenance.to_header().as_bytes()), Some(provenance));
        }
        for broken in [
            "",
            "S",
            "S 7",
            "S 7 5",
            "S 7 0 50",
            "S 7 5 50 x",
            "S 7 5 50 keep x",
            "S 7 5 50 after=",
            " 7 5 50",
            "S -7 5 50",
        ] {
            assert_eq!(Provenance::parse(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn a_message_does_not_overtake_the_one_before_it() {
        let mut origins = Origins::default();
        let behind = Provenance { after: Some(Sequence(1)), ..from(2) };
        assert_eq!(origins.judge(&behind), Known::OutOfOrder);
        origins.stored(from(1).to_header().as_bytes());
        assert_eq!(origins.judge(&behind), Known::New);
    }

    #[test]
    fn a_sequence_is_known_once_it_was_stored_and_one_beside_it_is_not() {
        let mut origins = Origins::default();
        for sequence in [1, 2, 5] {
            assert_eq!(origins.judge(&from(sequence)), Known::New);
            origins.stored(from(sequence).to_header().as_bytes());
            assert_eq!(origins.judge(&from(sequence)), Known::Duplicate);
        }
        assert_eq!(origins.judge(&from(3)), Known::New);
        assert_eq!(origins.judge(&Provenance { epoch: 8, ..from(5) }), Known::New);
        origins.stored(from(3).to_header().as_bytes());
        let info = origins.infos().remove(0);
        assert_eq!(info.contiguous, Sequence(3));
        assert_eq!((info.highest, info.highest_time, info.messages), (Sequence(5), Timestamp(50), 4));
    }
}
