//! The envelope of control records: what every encoded command, snapshot row and metadata file wears.
//!
//! The body is bincode 1's default format (little-endian, fixed width, `u64` lengths, `u32` enum tags),
//! written by `wincode`; `tests/it/envelope.rs` holds it to `bincode` 1.3.3 byte for byte. In front of it:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format of the envelope and codec of the body, 1 |
//! | 1 | 1 | version of the schema |
//! | 2 | 2 | kind: which schema |
//! | 4 | 4 | length of the body |
//! | 8 | 4 | CRC-32 of bytes 0 to 7 and the body |
//! | 12 | … | body |
//!
//! Decoding looks at the format, the length and the checksum, in this order, before the body is
//! parsed; a body that does not use all its bytes is refused.
//!
//! # How to use it
//!
//! Derive the two schema traits and say which record it is. A kind is given out once, for ever; a
//! change of the fields or variants that old bytes would not survive takes a new version. (A variant
//! added at the end of an enum does not change old bytes, but old readers refuse it: new version too.)
//!
//! ```
//! use beamlog_log::envelope::{self, Enveloped};
//!
//! #[derive(Debug, PartialEq, wincode::SchemaRead, wincode::SchemaWrite)]
//! enum Command {
//!     Create { name: String, replicas: u8 },
//!     Remove { name: String },
//! }
//!
//! impl Enveloped for Command {
//!     const KIND: u16 = 7;
//!     const VERSION: u8 = 1;
//! }
//!
//! let bytes = envelope::encode(&Command::Remove { name: "orders".into() })?;
//! assert_eq!(envelope::peek(&bytes)?.kind, Command::KIND);
//! assert_eq!(envelope::decode::<Command>(&bytes)?, Command::Remove { name: "orders".into() });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! To read an older version, keep its type (`CommandV1`), ask [`peek`] and decode accordingly.

use wincode::{SchemaRead, SchemaWrite, config::DefaultConfig};

/// Bytes before the body.
pub const HEADER_BYTES: usize = 12;
/// Largest body. A larger state is several records.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

const FORMAT: u8 = 1;

/// A type that travels in an envelope.
pub trait Enveloped {
    /// Which schema it is; unique in the project (table in `docs/design/format.md`).
    const KIND: u16;
    /// The version of that schema which this type reads and writes.
    const VERSION: u8;
}

/// What an envelope says of its body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    pub kind: u16,
    pub version: u8,
}

/// Why a record cannot be put into an envelope.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("record of kind {kind} has {bytes} bytes, more than {BODY_BYTES_MAX}")]
    TooLarge { kind: u16, bytes: usize },
    #[error("record of kind {kind} cannot be encoded")]
    Unencodable { kind: u16, source: wincode::WriteError },
}

/// Why bytes are not the record they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("an envelope has at least {HEADER_BYTES} bytes, this has {bytes}")]
    Truncated { bytes: usize },
    #[error("envelope format {found} is unknown, this version reads format {FORMAT}")]
    Format { found: u8 },
    #[error("envelope says {claimed} bytes of body and has {actual}")]
    Length { claimed: u32, actual: usize },
    #[error("envelope checksum is {computed:08x}, not {stored:08x} as stored")]
    Checksum { stored: u32, computed: u32 },
    #[error("record is of kind {found}, not {expected}")]
    Kind { expected: u16, found: u16 },
    #[error("record of kind {kind} has version {found}, this version reads {known}")]
    Version { kind: u16, known: u8, found: u8 },
    #[error("record of kind {kind} does not follow its schema")]
    Malformed { kind: u16, source: wincode::ReadError },
}

/// Encodes a record with its envelope.
pub fn encode<T>(record: &T) -> Result<Vec<u8>, EncodeError>
where
    T: Enveloped + SchemaWrite<DefaultConfig, Src = T>,
{
    let mut bytes = Vec::new();
    encode_into(&mut bytes, record)?;
    Ok(bytes)
}

/// Encodes a record with its envelope into a buffer that is used again; what it held is dropped.
pub fn encode_into<T>(bytes: &mut Vec<u8>, record: &T) -> Result<(), EncodeError>
where
    T: Enveloped + SchemaWrite<DefaultConfig, Src = T>,
{
    let unencodable = |source| EncodeError::Unencodable { kind: T::KIND, source };
    bytes.clear();
    bytes.extend_from_slice(&[FORMAT, T::VERSION]);
    bytes.extend_from_slice(&T::KIND.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    wincode::serialize_into(&mut *bytes, record).map_err(unencodable)?;

    let body = bytes.len() - HEADER_BYTES;
    let length = u32::try_from(body)
        .ok()
        .filter(|_| body <= BODY_BYTES_MAX)
        .ok_or(EncodeError::TooLarge { kind: T::KIND, bytes: body })?;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(&bytes[..8], &bytes[HEADER_BYTES..]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// Verifies an envelope without decoding its body: which record is this?
pub fn peek(bytes: &[u8]) -> Result<Header, DecodeError> {
    open(bytes).map(|(header, _)| header)
}

/// Where the envelope that these bytes begin with says that it ends.
#[must_use]
pub fn length(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, _, l0, l1, l2, l3, ..] = *bytes else { return None };
    usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok()?.checked_add(HEADER_BYTES)
}

/// Verifies an envelope and decodes its body.
pub fn decode<T>(bytes: &[u8]) -> Result<T, DecodeError>
where
    T: Enveloped + for<'de> SchemaRead<'de, DefaultConfig, Dst = T>,
{
    let (header, body) = open(bytes)?;
    if header.kind != T::KIND {
        return Err(DecodeError::Kind { expected: T::KIND, found: header.kind });
    }
    if header.version != T::VERSION {
        return Err(DecodeError::Version { kind: T::KIND, known: T::VERSION, found: header.version });
    }
    wincode::deserialize_exact(body).map_err(|source| DecodeError::Malformed { kind: T::KIND, source })
}

fn open(bytes: &[u8]) -> Result<(Header, &[u8]), DecodeError> {
    let truncated = DecodeError::Truncated { bytes: bytes.len() };
    // The format comes first: another format may have another header.
    let Some(&format) = bytes.first() else {
        return Err(truncated);
    };
    if format != FORMAT {
        return Err(DecodeError::Format { found: format });
    }
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(truncated);
    };
    let [_, version, k0, k1, l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    let claimed = u32::from_le_bytes([l0, l1, l2, l3]);
    if body.len() > BODY_BYTES_MAX || u32::try_from(body.len()) != Ok(claimed) {
        return Err(DecodeError::Length { claimed, actual: body.len() });
    }
    let stored = u32::from_le_bytes([c0, c1, c2, c3]);
    let computed = checksum(&bytes[..8], body);
    if stored != computed {
        return Err(DecodeError::Checksum { stored, computed });
    }
    let kind = u16::from_le_bytes([k0, k1]);
    Ok((Header { kind, version }, body))
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}
