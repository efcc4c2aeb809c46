//! The bytes of the handshake. Little-endian, each message `kind u8, length u32, body`. A refusal is not
//! among them: whoever refuses closes the connection with the reason.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{BufMut, Bytes, BytesMut};

use crate::certificates::NAME_BYTES_MAX;
use crate::peer::{PeerId, Role};

/// The largest body. Known before anything is buffered.
pub const MESSAGE_BYTES_MAX: usize = 40 << 10;
/// The most that a node may claim about itself.
pub const CLAIMS_BYTES_MAX: usize = 32 << 10;
const ADVERTISE_BYTES_MAX: usize = 255;
const MAGIC: [u8; 4] = *b"BMLG";

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const CONFIRM: u8 = 3;

/// What a node says of itself.
#[derive(Clone, Eq, PartialEq)]
pub struct Hello {
    pub version_lowest: u16,
    pub version_highest: u16,
    pub id: PeerId,
    pub incarnation: u64,
    /// Counts this process's dialling: of two connections from it, the higher is the one it means.
    pub dial: u64,
    pub role: Role,
    pub cluster: String,
    pub name: String,
    pub advertise: String,
    /// Of an edge without a certificate: its token.
    pub claims: Bytes,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the claims: there may be a secret in them.
        f.debug_struct("Hello")
            .field("versions", &(self.version_lowest..=self.version_highest))
            .field("id", &self.id)
            .field("incarnation", &self.incarnation)
            .field("dial", &self.dial)
            .field("role", &self.role)
            .field("cluster", &self.cluster)
            .field("name", &self.name)
            .field("advertise", &self.advertise)
            .field("claims_bytes", &self.claims.len())
            .finish()
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message {
    /// From who dialled.
    Hello(Hello),
    /// The other side's, which has no objection.
    Welcome(Hello),
    /// From who dialled: no objection either. With the version that is spoken from now on.
    Confirm { version: u16 },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a message of the handshake: {0}")]
pub struct Malformed(pub &'static str);

/// Length of what stands before the body.
pub(crate) const HEADER_BYTES: usize = 5;

impl Message {
    /// Header and body.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::new();
        let kind = match self {
            Self::Hello(hello) => {
                hello.encode(&mut body);
                HELLO
            }
            Self::Welcome(hello) => {
                hello.encode(&mut body);
                WELCOME
            }
            Self::Confirm { version } => {
                body.put_u16_le(*version);
                CONFIRM
            }
        };
        let mut all = BytesMut::with_capacity(body.len().saturating_add(HEADER_BYTES));
        all.put_u8(kind);
        all.put_u32_le(u32::try_from(body.len()).expect("a hello is checked before it is sent"));
        all.put_slice(&body);
        all.freeze()
    }

    /// Kind and length of the body, from a header. The length is within [`MESSAGE_BYTES_MAX`].
    ///
    /// # Errors
    /// No such message, or longer than any is.
    pub fn header(bytes: [u8; HEADER_BYTES]) -> Result<(u8, usize), Malformed> {
        let [kind, a, b, c, d] = bytes;
        if !(HELLO..=CONFIRM).contains(&kind) {
            return Err(Malformed("unknown kind"));
        }
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MESSAGE_BYTES_MAX {
            return Err(Malformed("too long"));
        }
        Ok((kind, length))
    }

    /// # Errors
    /// The body is not of this kind; nothing may follow it.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, Malformed> {
        let mut input = Input(body);
        let message = match kind {
            HELLO => Self::Hello(Hello::decode(&mut input)?),
            WELCOME => Self::Welcome(Hello::decode(&mut input)?),
            CONFIRM => Self::Confirm { version: input.u16()? },
            _ => return Err(Malformed("unknown kind")),
        };
        if input.0.is_empty() { Ok(message) } else { Err(Malformed("bytes follow it")) }
    }
}

impl Hello {
    /// Whether every part is within what may be sent.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.cluster.len() <= NAME_BYTES_MAX
            && self.name.len() <= NAME_BYTES_MAX
            && self.advertise.len() <= ADVERTISE_BYTES_MAX
            && self.claims.len() <= CLAIMS_BYTES_MAX
    }

    fn encode(&self, into: &mut BytesMut) {
        into.put_slice(&MAGIC);
        into.put_u16_le(self.version_lowest);
        into.put_u16_le(self.version_highest);
        into.put_u64_le(self.id.0);
        into.put_u64_le(self.incarnation);
        into.put_u64_le(self.dial);
        into.put_u8(match self.role {
            Role::Node => 0,
            Role::Witness => 1,
            Role::Edge => 2,
        });
        for text in [&self.cluster, &self.name, &self.advertise] {
            into.put_u8(u8::try_from(text.len()).expect("a hello is checked before it is sent"));
            into.put_slice(text.as_bytes());
        }
        into.put_u32_le(u32::try_from(self.claims.len()).expect("a hello is checked before it is sent"));
        into.put_slice(&self.claims);
        // A later version may put more here.
    }

    fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        if input.take(4)? != MAGIC {
            return Err(Malformed("no magic"));
        }
        let version_lowest = input.u16()?;
        let version_highest = input.u16()?;
        if version_lowest > version_highest {
            return Err(Malformed("versions in disorder"));
        }
        let id = PeerId(input.u64()?);
        let incarnation = input.u64()?;
        let dial = input.u64()?;
        let role = match input.u8()? {
            0 => Role::Node,
            1 => Role::Witness,
            2 => Role::Edge,
            _ => return Err(Malformed("unknown role")),
        };
        let cluster = input.text(NAME_BYTES_MAX)?;
        let name = input.text(NAME_BYTES_MAX)?;
        let advertise = input.text(ADVERTISE_BYTES_MAX)?;
        let length = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
        if length > CLAIMS_BYTES_MAX {
            return Err(Malformed("claims too long"));
        }
        let claims = Bytes::copy_from_slice(input.take(length)?);
        if id.0 == 0 {
            return Err(Malformed("peer 0 is nobody"));
        }
        // Whoever speaks later versions only may say more; it is refused for its version.
        if version_lowest > super::VERSION_HIGHEST {
            input.0 = &[];
        }
        Ok(Self {
            version_lowest,
            version_highest,
            id,
            incarnation,
            dial,
            role,
            cluster,
            name,
            advertise,
            claims,
        })
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed("too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_error| Malformed("too short"))
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, max: usize) -> Result<String, Malformed> {
        let length = usize::from(self.u8()?);
        if length > max {
            return Err(Malformed("text too long"));
        }
        let text = std::str::from_utf8(self.take(length)?).map_err(|_error| Malformed("not text"))?;
        if text.chars().any(char::is_control) {
            return Err(Malformed("control characters"));
        }
        Ok(text.to_owned())
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may fail")]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            version_lowest: 1,
            version_highest: 1,
            id: PeerId(0x0102_0304_0506_0708),
            incarnation: 9,
            dial: 3,
            role: Role::Witness,
            cluster: "c1".to_owned(),
            name: "n1".to_owned(),
            advertise: "n1.example:6222".to_owned(),
            claims: Bytes::from_static(b"\x01\x02"),
        }
    }

    fn read(bytes: &[u8]) -> Result<Message, Malformed> {
        let (header, body) = bytes.split_first_chunk().ok_or(Malformed("too short"))?;
        let (kind, length) = Message::header(*header)?;
        assert_eq!(length, body.len());
        Message::decode(kind, body)
    }

    #[test]
    fn the_bytes_of_a_hello_are_these() {
        let expected = "01 3d000000 424d4c47 0100 0100 0807060504030201 0900000000000000 0300000000000000 01 \
                        026331 026e31 0f6e312e6578616d706c653a36323232 02000000 0102";
        let bytes = Message::Hello(hello()).encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
    }

    #[test]
    fn what_is_said_is_heard() {
        for message in [Message::Hello(hello()), Message::Welcome(hello()), Message::Confirm { version: 1 }] {
            assert_eq!(read(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let bytes = Message::Hello(hello()).encode();
        let (_, body) = bytes.split_at(HEADER_BYTES);
        for length in 0..body.len() {
            assert!(Message::decode(HELLO, &body[..length]).is_err(), "{length}");
        }
        let longer: Vec<u8> = body.iter().copied().chain([0]).collect();
        assert_eq!(Message::decode(HELLO, &longer), Err(Malformed("bytes follow it")));
    }

    #[test]
    fn sizes_are_refused_before_they_are_believed() {
        for length in [u32::try_from(MESSAGE_BYTES_MAX).unwrap() + 1, 1 << 31, u32::MAX] {
            let mut header = [HELLO, 0, 0, 0, 0];
            header[1..].copy_from_slice(&length.to_le_bytes());
            assert_eq!(Message::header(header), Err(Malformed("too long")));
        }
        let mut hello = hello();
        hello.claims = Bytes::from(vec![0; CLAIMS_BYTES_MAX + 1]);
        assert!(!hello.fits());
        assert_eq!(read(&Message::Hello(hello).encode()), Err(Malformed("claims too long")));
    }

    #[test]
    fn a_later_version_is_understood_as_far_as_it_must_be() {
        let mut later = hello();
        (later.version_lowest, later.version_highest) = (7, 9);
        let bytes = Message::Hello(later.clone()).encode();
        let body: Vec<u8> = bytes[HEADER_BYTES..].iter().copied().chain(*b"more").collect();
        assert_eq!(Message::decode(HELLO, &body), Ok(Message::Hello(later)));
    }
}
