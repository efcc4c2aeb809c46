//! Records: what a frame carries, each checked on its own, so that one can be read alone.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bytes::Bytes;

use crate::{
    DamageReason, Message, MessageRef, SegmentId, Sequence, ShardId, StreamId, Timestamp,
    format::fields::{Fields, Filler},
};

/// Checksum, length, kind, flags, subject length.
pub(crate) const RECORD_HEADER_BYTES: usize = 12;
/// The header, stream, sequence, timestamp, headers length.
pub(crate) const MESSAGE_HEADER_BYTES: usize = 36;

/// The message has a `Nats-Msg-Id` header.
pub(crate) const WITH_MESSAGE_ID: u8 = 1;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Message,
    Control,
    Snapshot,
    Manifest,
    Retired,
    /// Of replication, which alone knows what it says.
    Replication,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Control => 2,
            Self::Snapshot => 3,
            Self::Manifest => 4,
            Self::Retired => 5,
            Self::Replication => 6,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Message),
            2 => Some(Self::Control),
            3 => Some(Self::Snapshot),
            4 => Some(Self::Manifest),
            5 => Some(Self::Retired),
            6 => Some(Self::Replication),
            _ => None,
        }
    }
}

/// What begins the checksum of every record of a shard, so that another shard's never fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordSalt(u32);

impl RecordSalt {
    pub(crate) fn new(shard: ShardId) -> Self {
        Self(crc32fast::hash(&shard.0.to_le_bytes()))
    }

    fn checksum(self, bytes: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new_with_initial(self.0);
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// Appends a message. Returns its length.
pub(crate) fn put_message(out: &mut Vec<u8>, salt: RecordSalt, message: &MessageRef<'_>, flags: u8) -> u32 {
    let start = out.len();
    let sum = [message.subject.len(), message.headers.len(), message.payload.len()]
        .iter()
        .fold(MESSAGE_HEADER_BYTES, |sum, len| sum.saturating_add(*len));
    let len = u32::try_from(sum).expect("a message is far below 4 GiB");
    out.reserve(sum);
    let mut head = [0; MESSAGE_HEADER_BYTES];
    {
        let [_, _, _, _, head @ ..] = &mut head;
        let (fixed, rest) = head.split_at_mut(8);
        let subject = u16::try_from(message.subject.len()).expect("a subject is at most 65535 bytes");
        let [l0, l1, l2, l3] = len.to_le_bytes();
        let [s0, s1] = subject.to_le_bytes();
        fixed.copy_from_slice(&[l0, l1, l2, l3, Kind::Message.code(), flags, s0, s1]);
        let (stream, rest) = rest.split_at_mut(4);
        stream.copy_from_slice(&message.stream.0.to_le_bytes());
        let (sequence, rest) = rest.split_at_mut(8);
        sequence.copy_from_slice(&message.sequence.0.to_le_bytes());
        let (timestamp, headers) = rest.split_at_mut(8);
        timestamp.copy_from_slice(&message.timestamp.0.to_le_bytes());
        let headers_len = u32::try_from(message.headers.len()).expect("less than the sum");
        headers.copy_from_slice(&headers_len.to_le_bytes());
    }
    out.extend_from_slice(&head);
    out.extend_from_slice(message.subject);
    out.extend_from_slice(message.headers);
    out.extend_from_slice(message.payload);
    seal_record(out, start, salt);
    len
}

/// Appends a record that is not a message. Returns its length.
pub(crate) fn put_other(out: &mut Vec<u8>, salt: RecordSalt, kind: Kind, body: &[u8]) -> u32 {
    let start = out.len();
    let len =
        u32::try_from(body.len().saturating_add(RECORD_HEADER_BYTES)).expect("a record is far below 4 GiB");
    Filler::new(out).u32(0).u32(len).u8(kind.code()).u8(0).u16(0).bytes(body);
    seal_record(out, start, salt);
    len
}

fn seal_record(out: &mut [u8], start: usize, salt: RecordSalt) {
    let (_, record) = out.split_at_mut(start);
    let (own, checked) = record.split_first_chunk_mut::<4>().expect("a record begins with its checksum");
    *own = salt.checksum(checked).to_le_bytes();
}

/// Whether these headers have a `Nats-Msg-Id`, in any case.
pub(crate) fn has_message_id(headers: &[u8]) -> bool {
    const NAME: &[u8] = b"nats-msg-id:";
    headers
        .split(|byte| *byte == b'\n')
        .any(|line| line.get(..NAME.len()).is_some_and(|name| name.eq_ignore_ascii_case(NAME)))
}

/// A record in its bytes, lengths checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordView<'a> {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    /// All of it.
    pub(crate) bytes: &'a [u8],
    /// Of a message: how long its subject is.
    subject_bytes: usize,
}

/// What stands before the bytes of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MessageView<'a> {
    pub(crate) stream: StreamId,
    pub(crate) sequence: Sequence,
    pub(crate) timestamp: Timestamp,
    pub(crate) subject: &'a [u8],
    pub(crate) headers: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// The record at the beginning of these bytes. Does not look at the checksum.
    pub(crate) fn first(bytes: &'a [u8]) -> Result<Self, DamageReason> {
        let mut fields = Fields::new(bytes);
        let head = (|| {
            fields.u32()?;
            Some((fields.u32()?, fields.u8()?, fields.u8()?, fields.u16()?))
        })();
        let (len, kind, flags, subject) = head.ok_or(DamageReason::Length)?;
        let kind = Kind::of(kind).ok_or(DamageReason::Checksum)?;
        let least = if kind == Kind::Message { MESSAGE_HEADER_BYTES } else { RECORD_HEADER_BYTES };
        let len = usize::try_from(len).map_err(|_too_long| DamageReason::Length)?;
        let record = bytes.get(..len).filter(|_| len >= least).ok_or(DamageReason::Length)?;
        Ok(Self { kind, flags, bytes: record, subject_bytes: usize::from(subject) })
    }

    /// Checks the checksum.
    pub(crate) fn verify(&self, salt: RecordSalt) -> Result<(), DamageReason> {
        let (own, checked) = self.bytes.split_first_chunk::<4>().ok_or(DamageReason::Length)?;
        if salt.checksum(checked).to_le_bytes() == *own { Ok(()) } else { Err(DamageReason::Checksum) }
    }

    /// What follows the header of a record that is not a message.
    pub(crate) fn body(&self) -> &'a [u8] {
        self.bytes.get(RECORD_HEADER_BYTES..).unwrap_or_default()
    }

    pub(crate) fn message(&self) -> Result<MessageView<'a>, DamageReason> {
        let mut fields = Fields::new(self.body());
        (|| {
            let stream = StreamId(fields.u32()?);
            let sequence = Sequence(fields.u64()?);
            let timestamp = Timestamp(fields.u64()?);
            let headers = usize::try_from(fields.u32()?).ok()?;
            let subject = fields.take(self.subject_bytes)?;
            let headers = fields.take(headers)?;
            Some(MessageView { stream, sequence, timestamp, subject, headers, payload: fields.rest() })
        })()
        .ok_or(DamageReason::Length)
    }
}

/// The message in a buffer that holds exactly its record, sharing that buffer.
pub(crate) fn message_of(record: &Bytes) -> Result<Message, DamageReason> {
    let view = RecordView::first(record)?.message()?;
    Ok(Message {
        stream: view.stream,
        sequence: view.sequence,
        timestamp: view.timestamp,
        subject: record.slice_ref(view.subject),
        headers: record.slice_ref(view.headers),
        payload: record.slice_ref(view.payload),
    })
}

/// The body of a manifest or retired record.
pub(crate) fn segment_list(segments: impl Iterator<Item = SegmentId>) -> Vec<u8> {
    let mut body = Vec::new();
    for segment in segments {
        Filler::new(&mut body).u64(segment.0);
    }
    body
}

pub(crate) fn segments_of(body: &[u8]) -> Vec<SegmentId> {
    let (ids, _) = body.as_chunks::<8>();
    ids.iter().map(|id| SegmentId(u64::from_le_bytes(*id))).collect()
}

/// The records of a frame's body, in their order. Ends after the first fault.
pub(crate) struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    pub(crate) const fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordView<'a>, DamageReason>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = RecordView::first(self.rest);
        self.rest = match &record {
            Ok(record) => self.rest.get(record.bytes.len()..).unwrap_or_default(),
            Err(_) => &[],
        };
        Some(record)
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;

    fn salt() -> RecordSalt {
        RecordSalt::new(ShardId(7))
    }

    fn message() -> Vec<u8> {
        let mut out = Vec::new();
        let message = MessageRef {
            stream: StreamId(2),
            sequence: Sequence(3),
            timestamp: Timestamp(4),
            subject: b"orders.eu",
            headers: b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n",
            payload: b"payload",
        };
        put_message(&mut out, salt(), &message, WITH_MESSAGE_ID);
        out
    }

    #[test]
    fn a_message_comes_back_sharing_its_buffer() {
        let record = Bytes::from(message());
        let decoded = message_of(&record).unwrap();
        assert_eq!(decoded.subject, "orders.eu");
        assert_eq!(decoded.payload, "payload");
        assert_eq!(
            (decoded.stream, decoded.sequence, decoded.timestamp),
            (StreamId(2), Sequence(3), Timestamp(4))
        );
        RecordView::first(&record).unwrap().verify(salt()).unwrap();
    }

    #[test]
    fn golden_bytes() {
        let hex: String = message().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/message.hex").trim());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let record = message();
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = RecordView::first(&flipped).and_then(|view| {
                view.verify(salt())?;
                Ok(view.bytes.len())
            });
            assert!(read.is_err(), "bit {bit}");
        }
        for cut in 0..record.len() {
            assert!(RecordView::first(&record[..cut]).is_err());
        }
    }

    #[test]
    fn another_shards_record_does_not_fit() {
        let record = message();
        assert_eq!(
            RecordView::first(&record).unwrap().verify(RecordSalt::new(ShardId(8))),
            Err(DamageReason::Checksum)
        );
    }

    #[test]
    fn a_message_id_is_found_in_any_case_and_only_as_a_name() {
        assert!(has_message_id(b"NATS/1.0\r\nnats-MSG-id: 7\r\n\r\n"));
        assert!(!has_message_id(b"NATS/1.0\r\nX: Nats-Msg-Id: 7\r\n\r\n"));
        assert!(!has_message_id(b""));
    }
}
