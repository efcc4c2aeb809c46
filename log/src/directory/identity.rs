//! The `identity` file: whose store this is, and whether there is a log in it.
//!
//! Text, so that an operator can read it, and small enough to be one sector:
//!
//! ```text
//! beamlog store 1
//! node 6f1d…32 hexadecimal digits
//! created 1795232323000000000
//! log yes
//! crc32 0badcafe
//! ```
//!
//! The last line has the CRC-32 of the lines above it, with their ends. The first line keeps its form in
//! every version, so that an older build can say what it cannot read.

use std::fmt;

use crate::Timestamp;

/// Version of the store's layout that this build reads and writes.
pub const STORE_FORMAT: u32 = 1;

/// More than any version's file has.
pub(super) const BYTES_MAX: usize = 4096;

/// A node, for ever. Chosen at random at the first start, never reused (DR13).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub [u8; 16]);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the file says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Identity {
    pub node: NodeId,
    pub created: Timestamp,
    /// A log was created here: if there is none now, it was lost (DR8).
    pub has_log: bool,
}

/// Why a file is not an identity.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityError {
    #[error("its checksum does not match")]
    Checksum,
    #[error("line {line} is not `{expected}`")]
    Line { line: usize, expected: &'static str },
    #[error("it is longer than {BYTES_MAX} bytes")]
    TooLong,
    #[error("it is not spelled as this build spells it")]
    Spelling,
    #[error("it has store format {version}; this build reads format {STORE_FORMAT}")]
    Format { version: u32 },
}

impl Identity {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { node, created, has_log } = self;
        let log = if *has_log { "yes" } else { "no" };
        let mut text = format!("beamlog store {STORE_FORMAT}\nnode {node}\ncreated {created}\nlog {log}\n");
        let checksum = crc32fast::hash(text.as_bytes());
        text.push_str(&format!("crc32 {checksum:08x}\n"));
        text.into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        if bytes.len() > BYTES_MAX {
            return Err(IdentityError::TooLong);
        }
        // The checksum first: a flipped bit must not read as another version or another node.
        let text = verified(bytes).ok_or(IdentityError::Checksum)?;
        let mut lines = text.lines();
        let version =
            field(&mut lines, 1, "beamlog store <number>", "beamlog store ", |value| value.parse().ok())?;
        if version != STORE_FORMAT {
            return Err(IdentityError::Format { version });
        }
        let identity = Self {
            node: field(&mut lines, 2, "node <32 hexadecimal digits>", "node ", node)?,
            created: field(&mut lines, 3, "created <nanoseconds>", "created ", |value| {
                value.parse().ok().map(Timestamp)
            })?,
            has_log: field(&mut lines, 4, "log yes|no", "log ", |value| match value {
                "yes" => Some(true),
                "no" => Some(false),
                _ => None,
            })?,
        };
        // Numbers have more than one spelling, and nothing may follow.
        if identity.encode() == bytes { Ok(identity) } else { Err(IdentityError::Spelling) }
    }
}

/// The lines above the checksum, if it matches and is the end.
fn verified(bytes: &[u8]) -> Option<&str> {
    const LAST_BYTES: usize = "crc32 00000000\n".len();
    let (text, last) = bytes.split_at_checked(bytes.len().checked_sub(LAST_BYTES)?)?;
    let expected = format!("crc32 {:08x}\n", crc32fast::hash(text));
    (last == expected.as_bytes()).then(|| std::str::from_utf8(text).ok()).flatten()
}

fn field<'a, T>(
    lines: &mut impl Iterator<Item = &'a str>,
    line: usize,
    expected: &'static str,
    prefix: &str,
    parse: impl FnOnce(&'a str) -> Option<T>,
) -> Result<T, IdentityError> {
    lines
        .next()
        .and_then(|text| text.strip_prefix(prefix))
        .and_then(parse)
        .ok_or(IdentityError::Line { line, expected })
}

fn node(digits: &str) -> Option<NodeId> {
    let digits = digits.as_bytes();
    let mut id = [0; 16];
    // `from_str_radix` would take a sign.
    if digits.len() != 2 * id.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(NodeId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str =
        "beamlog store 1\nnode 000102030405060708090a0b0c0d0eff\ncreated 17\nlog yes\ncrc32 878e654b\n";

    fn identity() -> Identity {
        let mut node = [0; 16];
        for (byte, value) in node.iter_mut().zip(0..) {
            *byte = value;
        }
        node[15] = 0xff;
        Identity { node: NodeId(node), created: Timestamp(17), has_log: true }
    }

    #[test]
    fn the_bytes_are_pinned() {
        assert_eq!(String::from_utf8(identity().encode()).unwrap(), GOLDEN);
        assert_eq!(Identity::decode(GOLDEN.as_bytes()), Ok(identity()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for bit in 0..GOLDEN.len() * 8 {
            let mut bytes = GOLDEN.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Identity::decode(&bytes), Err(IdentityError::Checksum), "bit {bit}");
        }
        for len in 0..GOLDEN.len() {
            let cut = &GOLDEN.as_bytes()[..len];
            assert_eq!(Identity::decode(cut), Err(IdentityError::Checksum), "length {len}");
        }
    }

    fn sealed(text: &str) -> Vec<u8> {
        format!("{text}crc32 {:08x}\n", crc32fast::hash(text.as_bytes())).into_bytes()
    }

    #[test]
    fn a_newer_store_is_named_whatever_follows() {
        let newer = sealed("beamlog store 2\nsomething else\n");
        assert_eq!(Identity::decode(&newer), Err(IdentityError::Format { version: 2 }));
    }

    #[test]
    fn lines_must_be_what_they_are() {
        for (text, line) in [
            ("", 1),
            ("beamlog store x\n", 1),
            ("beamlog store 1\nnode 00\n", 2),
            ("beamlog store 1\nnode 000102030405060708090a0b0c0d0e+f\ncreated 17\nlog yes\n", 2),
            ("beamlog store 1\nnode 000102030405060708090a0b0c0d0eff\ncreated -1\n", 3),
            ("beamlog store 1\nnode 000102030405060708090a0b0c0d0eff\ncreated 1\nlog maybe\n", 4),
        ] {
            match Identity::decode(&sealed(text)) {
                Err(IdentityError::Line { line: found, .. }) => assert_eq!(found, line, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(Identity::decode(&[b'x'; 5000]), Err(IdentityError::TooLong));
    }

    #[test]
    fn there_is_one_spelling() {
        let node = "node 000102030405060708090a0b0c0d0eff";
        for text in [
            format!("beamlog store 1\n{node}\ncreated 1\nlog no\nmore\n"),
            format!("beamlog store +1\n{node}\ncreated 1\nlog no\n"),
            format!("beamlog store 1\n{node}\ncreated 01\nlog no\n"),
            format!("beamlog store 1\r\n{node}\ncreated 1\nlog no\n"),
            format!("beamlog store 1\n{}\ncreated 1\nlog no\n", node.replace('a', "A")),
        ] {
            assert_eq!(Identity::decode(&sealed(&text)), Err(IdentityError::Spelling), "{text}");
        }
    }
}
