//! The bytes of `docs/design/format.md`, encoded and decoded. Nothing here touches a disk.

pub(crate) mod fields;
pub(crate) mod frame;
pub(crate) mod hash;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod vote;
