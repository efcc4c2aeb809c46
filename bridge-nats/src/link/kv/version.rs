//! Versions of keys: which write a value is, wherever it lies, and which of two wins.

use beamlog_router::headers;
use bytes::Bytes;

/// The header of a copy: when it was written, in nanoseconds since 1970, and in which bucket.
pub(in crate::link) const VERSION: &str = "Beamlog-Bucket";
/// How far in the future of its own storing a write may claim to be: clocks differ by less.
const SKEW_NANOS_MAX: u64 = 60_000_000_000;

/// Which bucket, of all there are: made of its name and the time at which it was made.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::link) struct BucketId(u64);

impl BucketId {
    pub(in crate::link) fn new(stream: &str, created_nanos: u64) -> Self {
        // FNV-1a: all versions of this program must agree on it.
        let bytes = stream.bytes().chain(created_nanos.to_le_bytes());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }
}

/// One write of one key. The later one is greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::link) struct Version {
    pub(in crate::link) time: u64,
    pub(in crate::link) bucket: BucketId,
}

impl Version {
    /// The version of a message that was stored in `bucket` at `stored`: its own, or the one that it copies.
    pub(in crate::link) fn of(header: Option<&[u8]>, bucket: BucketId, stored: u64) -> Self {
        let native = Self { time: stored, bucket };
        // Whoever claims to come from the future would win for ever.
        header
            .and_then(Self::parse)
            .filter(|version| version.time <= stored.saturating_add(SKEW_NANOS_MAX))
            .unwrap_or(native)
    }

    pub(in crate::link) fn text(self) -> String {
        format!("{} {:016x}", self.time, self.bucket.0)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (time, bucket) = std::str::from_utf8(text).ok()?.split_once(' ')?;
        let time = time.parse().ok()?;
        let bucket = u64::from_str_radix(bucket, 16).ok().filter(|_| bucket.len() == 16)?;
        Some(Self { time, bucket: BucketId(bucket) })
    }
}

/// Who wins when both sides wrote a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Policy {
    LastWriter,
    /// What was written at the source replaces what was written at the target.
    SourceOwns,
    /// What was written at the target stays.
    TargetOwns,
}

/// Whether `new`, which the source has, replaces `old`, which the target has.
pub(super) fn may_replace(new: Version, old: Option<Version>, target: BucketId, policy: Policy) -> bool {
    let Some(old) = old else { return true };
    // Its own value that went to the source and comes back: the target knows better.
    if new == old || new.bucket == target {
        return false;
    }
    match policy {
        Policy::LastWriter => new > old,
        Policy::SourceOwns => true,
        Policy::TargetOwns => old.bucket != target,
    }
}

/// What happened to the key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Operation {
    Put,
    Delete,
    Purge,
}

impl Operation {
    pub(super) const HEADER: &str = "KV-Operation";

    /// From the operation header, or from why the server itself left a marker.
    pub(super) fn of(operation: Option<&[u8]>, marker: Option<&[u8]>) -> Self {
        match (operation, marker) {
            (Some(b"DEL"), _) => Self::Delete,
            (Some(b"PURGE"), _) | (None, Some(b"MaxAge" | b"Purge")) => Self::Purge,
            (None, Some(b"Remove")) => Self::Delete,
            (Some(_), _) | (None, _) => Self::Put,
        }
    }

    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Put => None,
            Self::Delete => Some("DEL"),
            Self::Purge => Some("PURGE"),
        }
    }
}

/// A version with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) version: Version,
    pub(super) operation: Operation,
    /// A block as this node has it.
    pub(super) headers: Bytes,
    pub(super) value: Bytes,
    /// Its revision in the source.
    pub(super) sequence: u64,
    /// When it was stored there.
    pub(super) stored: u64,
    /// Entries behind it that are waiting, as far as the source knows.
    pub(super) pending: u64,
}

impl Entry {
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.headers.len() + self.value.len()
    }
}

/// What a block of a stored message says of version and operation.
pub(super) fn read_block(block: &[u8], bucket: BucketId, stored: u64) -> (Version, Operation) {
    let find = |name: &str| if block.is_empty() { None } else { headers::find(block, name.as_bytes()) };
    let version = Version::of(find(VERSION), bucket, stored);
    (version, Operation::of(find(Operation::HEADER), find("Nats-Marker-Reason")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: BucketId = BucketId(1);
    const THERE: BucketId = BucketId(2);

    fn version(time: u64, bucket: BucketId) -> Version {
        Version { time, bucket }
    }

    #[test]
    fn a_version_is_read_as_it_was_written() {
        let written = version(7, THERE);
        assert_eq!(Version::of(Some(written.text().as_bytes()), HERE, 9), written);
        for broken in
            [&b""[..], b"7", b"7 2", b"x 0000000000000002", b"7 000000000000000g", b"\xff 0000000000000002"]
        {
            assert_eq!(Version::of(Some(broken), HERE, 9), version(9, HERE));
        }
        assert_eq!(Version::of(None, HERE, 9), version(9, HERE));
    }

    #[test]
    fn nobody_wins_by_coming_from_the_future() {
        let future = version(10 * SKEW_NANOS_MAX, THERE).text();
        assert_eq!(Version::of(Some(future.as_bytes()), HERE, 9), version(9, HERE));
    }

    #[test]
    fn the_policies_decide() {
        use Policy::{LastWriter, SourceOwns, TargetOwns};
        let (old, new) = (version(5, HERE), version(4, THERE));
        for policy in [LastWriter, SourceOwns, TargetOwns] {
            assert!(may_replace(new, None, HERE, policy));
            assert!(!may_replace(new, Some(new), HERE, policy), "a copy is not copied back");
            assert!(!may_replace(version(4, HERE), Some(old), HERE, policy), "nor an old one of ours");
        }
        assert!(!may_replace(new, Some(old), HERE, LastWriter));
        assert!(may_replace(version(6, THERE), Some(old), HERE, LastWriter));
        assert!(may_replace(new, Some(old), HERE, SourceOwns));
        assert!(!may_replace(version(6, THERE), Some(old), HERE, TargetOwns));
        assert!(may_replace(version(6, THERE), Some(version(5, THERE)), HERE, TargetOwns));
    }

    #[test]
    fn of_two_writes_at_one_moment_both_sides_choose_the_same() {
        let (here, there) = (version(5, HERE), version(5, THERE));
        let to_here = may_replace(there, Some(here), HERE, Policy::LastWriter);
        let to_there = may_replace(here, Some(there), THERE, Policy::LastWriter);
        assert!(to_here != to_there);
    }

    #[test]
    fn operations_are_told_apart() {
        assert_eq!(Operation::of(None, None), Operation::Put);
        assert_eq!(Operation::of(Some(b"DEL"), None), Operation::Delete);
        assert_eq!(Operation::of(Some(b"PURGE"), None), Operation::Purge);
        assert_eq!(Operation::of(None, Some(b"MaxAge")), Operation::Purge);
    }
}
