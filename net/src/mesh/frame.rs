//! The bytes of a mesh frame: operations, one behind another. Little-endian.
//!
//! | kind | operation | fields |
//! |---|---|---|
//! | 1 | begin | version u16, epoch u64: what was said before is void |
//! | 2 | wanted | filter u16 + bytes, group u16 + bytes |
//! | 3 | not wanted | as 2 |
//! | 4 | message | group, routed by, subject, reply: each u16 + bytes; headers, payload: each u32 + bytes |
//!
//! An empty group is none; an empty subject is the one it was routed by.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{BufMut, BytesMut};

pub(super) const VERSION: u16 = 1;
const BEGIN: u8 = 1;
const WANTED: u8 = 2;
const NOT_WANTED: u8 = 3;
const MESSAGE: u8 = 4;

/// One operation of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Operation<'a> {
    Begin {
        version: u16,
        epoch: u64,
    },
    Wanted {
        filter: &'a [u8],
        group: &'a [u8],
    },
    NotWanted {
        filter: &'a [u8],
        group: &'a [u8],
    },
    Message {
        group: &'a [u8],
        routed_by: &'a [u8],
        subject: &'a [u8],
        reply: &'a [u8],
        headers: &'a [u8],
        payload: &'a [u8],
    },
}

/// A peer's frame is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a frame of the mesh: {0}")]
pub struct Malformed(&'static str);

impl Operation<'_> {
    /// Appends it. False, and nothing is appended, when a part is longer than can be said.
    pub fn encode(&self, into: &mut BytesMut) -> bool {
        let begin = into.len();
        let done = match *self {
            Self::Begin { version, epoch } => {
                into.put_u8(BEGIN);
                into.put_u16_le(version);
                into.put_u64_le(epoch);
                true
            }
            Self::Wanted { filter, group } => {
                into.put_u8(WANTED);
                put_short(into, filter) && put_short(into, group)
            }
            Self::NotWanted { filter, group } => {
                into.put_u8(NOT_WANTED);
                put_short(into, filter) && put_short(into, group)
            }
            Self::Message { group, routed_by, subject, reply, headers, payload } => {
                into.put_u8(MESSAGE);
                let shown = if subject == routed_by { &[][..] } else { subject };
                [group, routed_by, shown, reply].into_iter().all(|part| put_short(into, part))
                    && [headers, payload].into_iter().all(|part| put_long(into, part))
            }
        };
        if !done {
            into.truncate(begin);
        }
        done
    }
}

fn put_short(into: &mut BytesMut, part: &[u8]) -> bool {
    let Ok(length) = u16::try_from(part.len()) else { return false };
    into.put_u16_le(length);
    into.put_slice(part);
    true
}

fn put_long(into: &mut BytesMut, part: &[u8]) -> bool {
    let Ok(length) = u32::try_from(part.len()) else { return false };
    into.put_u32_le(length);
    into.put_slice(part);
    true
}

/// The operations of a frame, one by one; nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Operations<'a>(&'a [u8]);

impl<'a> Operations<'a> {
    #[must_use]
    pub fn new(frame: &'a [u8]) -> Self {
        Self(frame)
    }

    /// # Errors
    /// What comes next is no operation.
    pub fn read(&mut self) -> Result<Option<Operation<'a>>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let [kind] = self.array()?;
        Ok(Some(match kind {
            BEGIN => Operation::Begin {
                version: u16::from_le_bytes(self.array()?),
                epoch: u64::from_le_bytes(self.array()?),
            },
            WANTED => Operation::Wanted { filter: self.short()?, group: self.short()? },
            NOT_WANTED => Operation::NotWanted { filter: self.short()?, group: self.short()? },
            MESSAGE => {
                let (group, routed_by, shown, reply) =
                    (self.short()?, self.short()?, self.short()?, self.short()?);
                if routed_by.is_empty() {
                    return Err(Malformed("a message without a subject"));
                }
                let subject = if shown.is_empty() { routed_by } else { shown };
                Operation::Message {
                    group,
                    routed_by,
                    subject,
                    reply,
                    headers: self.long()?,
                    payload: self.long()?,
                }
            }
            _ => return Err(Malformed("unknown operation")),
        }))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_error| Malformed("too short"))
    }

    fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(usize::from(length))
    }

    fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let length = u32::from_le_bytes(self.array()?);
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may fail")]
mod tests {
    use super::*;

    fn all() -> [Operation<'static>; 5] {
        [
            Operation::Begin { version: VERSION, epoch: 7 },
            Operation::Wanted { filter: b"a.*", group: b"" },
            Operation::NotWanted { filter: b"a.>", group: b"g" },
            Operation::Message {
                group: b"",
                routed_by: b"a.b",
                subject: b"a.b",
                reply: b"_INBOX.1",
                headers: b"",
                payload: b"x",
            },
            Operation::Message {
                group: b"g",
                routed_by: b"deliver",
                subject: b"a.b",
                reply: b"",
                headers: b"NATS/1.0\r\n\r\n",
                payload: b"",
            },
        ]
    }

    fn read(bytes: &[u8]) -> Result<Vec<Operation<'_>>, Malformed> {
        let mut operations = Operations::new(bytes);
        let mut found = Vec::new();
        while let Some(operation) = operations.read()? {
            found.push(operation);
        }
        Ok(found)
    }

    #[test]
    fn what_is_said_is_heard_and_a_cut_is_noticed() {
        let mut bytes = BytesMut::new();
        let mut ends = vec![0];
        for operation in all() {
            assert!(operation.encode(&mut bytes));
            ends.push(bytes.len());
        }
        assert_eq!(read(&bytes).unwrap(), all());
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]).is_ok(), ends.contains(&length), "{length}");
        }
    }

    #[test]
    fn the_bytes_are_these() {
        let mut bytes = BytesMut::new();
        all()[0].encode(&mut bytes);
        all()[1].encode(&mut bytes);
        all()[3].encode(&mut bytes);
        let expected: &[u8] = b"\x01\x01\x00\x07\0\0\0\0\0\0\0\x02\x03\0a.*\0\0\x04\0\0\x03\0a.b\0\0\x08\0_INBOX.1\0\0\0\0\x01\0\0\0x";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_cannot_be_said_leaves_nothing_behind() {
        let mut bytes = BytesMut::from(&b"before"[..]);
        let long = vec![b'a'; 65_536];
        assert!(!Operation::Wanted { filter: b"a", group: &long }.encode(&mut bytes));
        assert_eq!(bytes, &b"before"[..]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b"\x00"[..], b"\x05", b"\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"\x02\xff\xff"] {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
