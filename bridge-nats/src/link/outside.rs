//! What a link reads of bytes from outside, laid open for the fuzz targets. Nothing else uses it.

use beamlog_router::{Timestamp, headers};

use super::core::path::{self, Waypoint};
use super::import::upstream::Position;
use super::kv::version::{BucketId, VERSION, Version};
use super::trail::{self, StreamKey, Trail};

/// Stream sequence, consumer sequence and time of storing that a delivery from there says it has.
#[must_use]
pub fn position(reply: &str) -> Option<(u64, u64, u64)> {
    Position::parse(reply).map(|at| (at.sequence, at.delivery, at.time))
}

/// The streams that a stored message was in: name, epoch, sequence.
#[must_use]
pub fn hops(block: &[u8]) -> Vec<(String, u64, u64)> {
    Trail::of_block(block).hops().map(|(key, at)| (key.name.clone(), key.epoch, at)).collect()
}

/// The block of a message after it went there as `7` of stream `HERE@17`, and came back as `9` of `THERE@18`.
#[must_use]
pub fn there_and_back(block: &[u8]) -> Vec<u8> {
    let key = |name: &str, epoch| StreamKey { name: name.into(), epoch };
    let map = trail::outward(block, &Trail::of_block(block), &key("HERE", 17), 7, Timestamp(100));
    trail::inward(Some(&map), &trail::provenance(&key("THERE", 18), 9, 101, false, None))
}

/// When a value of a bucket was written, and in which bucket, as its block says; stored at `stored` in bucket 1.
#[must_use]
pub fn version(block: &[u8], stored: u64) -> (u64, String) {
    let header = if block.is_empty() { None } else { headers::find(block, VERSION.as_bytes()) };
    let version = Version::of(header, BucketId::new("KV_a", 1), stored);
    let again = Version::of(Some(version.text().as_bytes()), BucketId::new("KV_b", 2), stored);
    assert_eq!(version, again, "a version is read as it is written");
    (version.time, version.text())
}

/// The path of an unstored message with one place more, and whether that place is on the path before and after.
#[must_use]
pub fn path(block: &[u8]) -> Option<(bool, bool)> {
    let place = Waypoint::of("node", "fuzz");
    let value = if block.is_empty() { None } else { headers::find(block, path::PATH.as_bytes()) };
    let longer = path::longer(value, place)?;
    Some((path::has_been(block, place), path::is_in(longer.as_bytes(), place)))
}
