//! How requests, answers and one-way frames lie in a stream.
//!
//! A call is a stream of two directions: `lane u8, length u32, request`; answered by `status u8, length u32,
//! answer`, where status 0 is an answer and 1 a refusal (`code u16, reason`). One-way frames of a lane
//! share a stream: `lane u8`, then for each `length u32, frame`. All little-endian.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::{BufMut, Bytes, BytesMut};

use crate::peer::{Lane, Refusal};

/// In place of a lane: a question that only asks for an answer.
pub(super) const PING: u8 = 0xff;
const ANSWERED: u8 = 0;
const REFUSED: u8 = 1;
/// Reserved at once for a frame, whatever length it claims.
const RESERVED_MAX: usize = 64 << 10;
/// Of a refusal.
const REASON_BYTES_MAX: usize = 1024;

/// The peer broke the protocol; its connection is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("no such lane: {0}")]
    Lane(u8),
    #[error("a frame of {bytes} bytes; {max} is the most")]
    TooLarge { bytes: usize, max: usize },
    #[error("neither answer nor refusal: {0}")]
    Status(u8),
    #[error("a refusal too short for its code")]
    Refusal,
    #[error("lane {0:?} is not for this kind of stream")]
    WrongLane(Lane),
    #[error("a second stream for one-way frames of a lane")]
    SecondStream,
    #[error("the stream goes on after its end")]
    Trailing,
}

pub(super) const fn number(lane: Lane) -> u8 {
    match lane {
        Lane::Vote => 1,
        Lane::Append => 2,
        Lane::Mesh => 3,
        Lane::Admin => 4,
        Lane::CatchUp => 5,
    }
}

pub(super) fn lane(byte: u8) -> Result<Lane, Violation> {
    Lane::ALL.into_iter().find(|lane| number(*lane) == byte).ok_or(Violation::Lane(byte))
}

/// What stands before a body.
pub(super) fn header(first: u8, length: usize) -> Bytes {
    let mut header = BytesMut::with_capacity(5);
    header.put_u8(first);
    put_length(&mut header, length);
    header.freeze()
}

pub(super) fn put_length(into: &mut BytesMut, length: usize) {
    into.put_u32_le(u32::try_from(length).expect("no lane takes as much"));
}

/// The head and body of an answer.
pub(super) fn encode_answer(answer: Result<Bytes, Refusal>) -> (Bytes, Bytes) {
    match answer {
        Ok(body) => (header(ANSWERED, body.len()), body),
        Err(refusal) => {
            let mut end = refusal.reason.len().min(REASON_BYTES_MAX);
            while !refusal.reason.is_char_boundary(end) {
                end = end.saturating_sub(1);
            }
            let mut body = BytesMut::new();
            body.put_u16_le(refusal.code);
            body.put_slice(refusal.reason.as_bytes().get(..end).unwrap_or_default());
            (header(REFUSED, body.len()), body.freeze())
        }
    }
}

/// Reads the body of an answer by its status.
///
/// # Errors
/// It is neither.
pub fn decode_answer(status: u8, body: Bytes) -> Result<Result<Bytes, Refusal>, Violation> {
    match status {
        ANSWERED => Ok(Ok(body)),
        REFUSED => {
            let (code, reason) = body.split_first_chunk().ok_or(Violation::Refusal)?;
            // It ends in a log line.
            let reason = String::from_utf8_lossy(reason).replace(char::is_control, " ");
            Ok(Err(Refusal { code: u16::from_le_bytes(*code), reason }))
        }
        other => Err(Violation::Status(other)),
    }
}

/// Puts frames together from the pieces of a stream. Holds one piece and at most one frame; a length is
/// checked before a byte of its frame is kept.
#[derive(Debug, Default)]
pub struct Frames {
    piece: Bytes,
    held: BytesMut,
    /// Of the frame that is being read.
    length: Option<usize>,
}

impl Frames {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next piece. Only after what was there gave nothing more.
    pub fn feed(&mut self, piece: Bytes) {
        debug_assert!(self.piece.is_empty(), "the last piece was not used up");
        self.piece = piece;
    }

    /// One byte, if it is there.
    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).and_then(|byte| byte.first().copied())
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// It is longer than `max`.
    pub fn frame(&mut self, max: usize) -> Result<Option<Bytes>, Violation> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let Some(bytes) = self.take(4) else { return Ok(None) };
                let bytes: [u8; 4] = bytes.as_ref().try_into().unwrap_or([0xff; 4]);
                let length = usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
                if length > max {
                    return Err(Violation::TooLarge { bytes: length, max });
                }
                self.length = Some(length);
                length
            }
        };
        let frame = self.take(length);
        if frame.is_some() {
            self.length = None;
        }
        Ok(frame)
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.piece.is_empty() && self.held.is_empty() && self.length.is_none()
    }

    /// So many bytes, if they are there; without copying when they are of one piece.
    fn take(&mut self, count: usize) -> Option<Bytes> {
        if self.held.is_empty() && self.piece.len() >= count {
            return Some(self.piece.split_to(count));
        }
        let missing = count.saturating_sub(self.held.len()).min(self.piece.len());
        if self.held.is_empty() {
            self.held.reserve(count.min(RESERVED_MAX));
        }
        self.held.extend_from_slice(&self.piece.split_to(missing));
        (self.held.len() == count).then(|| self.held.split().freeze())
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may fail")]
mod tests {
    use super::*;

    fn stream(frames: &[&[u8]]) -> Vec<u8> {
        let mut all = BytesMut::new();
        for frame in frames {
            put_length(&mut all, frame.len());
            all.put_slice(frame);
        }
        all.to_vec()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let sent: [&[u8]; 4] = [b"one", b"", b"a longer one", b"x"];
        let bytes = stream(&sent);
        for size in 1..=bytes.len() {
            let mut frames = Frames::new();
            let mut got = Vec::new();
            for piece in bytes.chunks(size) {
                frames.feed(Bytes::copy_from_slice(piece));
                while let Some(frame) = frames.frame(64).unwrap() {
                    got.push(frame.to_vec());
                }
            }
            assert_eq!(got, sent, "pieces of {size}");
            assert!(frames.is_between());
        }
    }

    #[test]
    fn a_length_is_refused_before_anything_is_kept() {
        for claimed in [65, 1 << 31, u32::MAX] {
            let mut frames = Frames::new();
            frames.feed(Bytes::copy_from_slice(&claimed.to_le_bytes()));
            let bytes = claimed as usize;
            assert_eq!(frames.frame(64), Err(Violation::TooLarge { bytes, max: 64 }));
        }
        // A large one that is allowed reserves little until it comes.
        let mut frames = Frames::new();
        frames.feed(Bytes::copy_from_slice(&(16_u32 << 20).to_le_bytes()));
        assert_eq!(frames.frame(16 << 20), Ok(None));
        assert!(frames.held.capacity() <= 2 * RESERVED_MAX);
    }

    #[test]
    fn an_answer_is_read_as_it_was_given() {
        let refusal = Refusal { code: 7, reason: "not the leader".to_owned() };
        for answer in [Ok(Bytes::from_static(b"yes")), Ok(Bytes::new()), Err(refusal)] {
            let (head, body) = encode_answer(answer.clone());
            assert_eq!(decode_answer(head[0], body), Ok(answer));
        }
        assert_eq!(decode_answer(9, Bytes::new()), Err(Violation::Status(9)));
        assert_eq!(decode_answer(REFUSED, Bytes::from_static(b"x")), Err(Violation::Refusal));
    }

    #[test]
    fn every_lane_has_its_number() {
        for each in Lane::ALL {
            assert_eq!(lane(number(each)), Ok(each));
        }
        assert_eq!(lane(0), Err(Violation::Lane(0)));
        assert_eq!(lane(PING), Err(Violation::Lane(PING)));
    }
}
