//! Reading a segment from its bytes, and the tail table (DR4): what may be cut, what may not.
//!
//! Pure: bytes in, findings out. An image may lack the zeros at its end.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::{
    Damage, DamageReason, Index, SegmentId, ShardId, Term,
    format::{
        frame::{
            COMPACTED, END_BYTES, FRAME_HEADER_BYTES, FRAME_MAGIC, FrameHeader, HeaderFault, SEAL,
            SECTOR_BYTES,
        },
        record::Records,
        segment::{FRAMES_AT, SegmentHeader},
    },
};

/// What the next frame must say of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    shard: ShardId,
    segment: SegmentId,
    compacted: bool,
    /// Of the last ordinary frame.
    pub(crate) last_index: Index,
    pub(crate) last_checksum: u32,
    /// Of the last ordinary frame; frames that take no index repeat it.
    pub(crate) last_term: Term,
}

impl Order {
    /// The order at the beginning of a segment.
    pub(crate) fn of(header: &SegmentHeader) -> Self {
        Self {
            shard: header.shard,
            segment: header.segment,
            compacted: header.compacted,
            last_index: Index(header.segment.0.saturating_sub(1)),
            last_checksum: header.previous_checksum,
            last_term: Term(0),
        }
    }

    fn is_ours(&self, frame: &FrameHeader) -> bool {
        frame.shard == self.shard && frame.segment == self.segment && frame.has(COMPACTED) == self.compacted
    }

    pub(crate) fn accepts(&self, frame: &FrameHeader) -> bool {
        let index_fits = if frame.is_ordinary() {
            frame.index == self.last_index.next()
        } else {
            self.compacted || frame.index == self.last_index
        };
        self.is_ours(frame) && index_fits && frame.previous == self.last_checksum
    }

    /// Whether a frame that is not the next one belongs behind this place all the same.
    fn is_behind(&self, frame: &FrameHeader) -> bool {
        self.is_ours(frame) && frame.index >= self.last_index
    }

    pub(crate) fn follow(&mut self, frame: &FrameHeader) {
        self.last_term = frame.term;
        if frame.is_ordinary() {
            self.last_index = frame.index;
            self.last_checksum = frame.checksum;
        } else if !self.compacted {
            self.last_index = frame.index;
            self.last_checksum = frame.previous;
        }
    }
}

/// What stands at a place.
#[derive(Clone, Copy, Debug)]
enum At {
    /// A whole frame.
    Frame(FrameHeader),
    /// A header that can be trusted, and a body that does not fit it.
    Header(FrameHeader),
    Version(u8),
    Garbage,
}

fn look(image: &[u8], offset: usize) -> At {
    let bytes = image.get(offset..).unwrap_or_default();
    // Zeros that were not kept of the image may belong to a frame.
    let padded;
    let head = match bytes.first_chunk::<FRAME_HEADER_BYTES>() {
        Some(head) => head.as_slice(),
        None => {
            padded = pad(bytes, FRAME_HEADER_BYTES);
            &padded
        }
    };
    let header = match FrameHeader::decode(head) {
        Ok(header) => header,
        Err(HeaderFault::Version(version)) => return At::Version(version),
        Err(HeaderFault::Bytes) => return At::Garbage,
    };
    let body = body_of(bytes, &header);
    if header.matches(head, &body) && records_fit(&header, &body) {
        At::Frame(header)
    } else {
        At::Header(header)
    }
}

fn pad(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut padded = bytes.get(..len).unwrap_or(bytes).to_vec();
    padded.resize(len, 0);
    padded
}

/// The body of the frame that begins these bytes, with the zeros that the image may lack.
fn body_of<'a>(bytes: &'a [u8], header: &FrameHeader) -> std::borrow::Cow<'a, [u8]> {
    let len = usize::try_from(header.body_bytes).unwrap_or(usize::MAX);
    let stored = bytes.get(FRAME_HEADER_BYTES..).unwrap_or_default();
    match stored.get(..len) {
        Some(body) => std::borrow::Cow::Borrowed(body),
        None => std::borrow::Cow::Owned(pad(stored, len.min(stored.len().saturating_add(PADDING_MAX)))),
    }
}

/// More zeros than this at the end of the last frame are not made up in memory: that frame is then not
/// whole for us, and suspect.
const PADDING_MAX: usize = 256 << 20;

fn records_fit(header: &FrameHeader, body: &[u8]) -> bool {
    let mut count = 0u32;
    for record in Records::new(body) {
        if record.is_err() {
            return false;
        }
        count = count.saturating_add(1);
    }
    count == header.records
}

/// How the frames of an image end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// Nothing stands behind the last frame.
    Here,
    /// A write was under way.
    Torn,
    /// A frame that may have been acknowledged cannot be read.
    Suspect,
    /// A frame of a format version that is not known.
    Version(u8),
}

/// What a segment's frames are.
#[derive(Clone, Debug)]
pub(crate) struct Scan {
    /// Behind the last whole frame.
    pub(crate) end: u64,
    pub(crate) ending: End,
    pub(crate) order: Order,
    pub(crate) frames: u32,
    pub(crate) ordinary: u64,
    pub(crate) records: u64,
    /// The last frame is a seal.
    pub(crate) sealed: bool,
    /// Of the last entry before the first frame.
    pub(crate) base_term: Term,
    /// Places in front of `end` where no frame stands that continues the order.
    pub(crate) gaps: Vec<Damage>,
}

/// Reads the frames of an image from [`FRAMES_AT`] on, and calls with each whole one: its header, place and body.
pub(crate) fn scan(
    image: &[u8],
    header: &SegmentHeader,
    frame: &mut dyn FnMut(&FrameHeader, u64, &[u8]),
) -> Scan {
    let mut scan = Scan {
        end: FRAMES_AT,
        ending: End::Here,
        order: Order::of(header),
        frames: 0,
        ordinary: 0,
        records: 0,
        sealed: false,
        base_term: Term(0),
        gaps: Vec::new(),
    };
    let mut offset = usize::try_from(FRAMES_AT).expect("a few thousand");
    loop {
        let at = look(image, offset);
        let header = match at {
            At::Frame(header) if scan.order.accepts(&header) => header,
            At::Frame(_) | At::Header(_) | At::Garbage | At::Version(_) => {
                let Some((place, header)) = find_behind(image, offset, &scan.order) else {
                    scan.ending = classify(image, offset, at, &scan.order);
                    return scan;
                };
                let reason = match at {
                    At::Frame(_) => DamageReason::Chain,
                    At::Header(_) | At::Garbage | At::Version(_) => DamageReason::Checksum,
                };
                scan.gaps.push(Damage { segment: header.segment, offset: offset as u64, reason });
                offset = place;
                header
            }
        };
        let body = body_of(image.get(offset..).unwrap_or_default(), &header);
        frame(&header, offset as u64, &body);
        if scan.frames == 0 && !header.is_ordinary() {
            scan.base_term = header.term;
        }
        scan.order.follow(&header);
        scan.frames = scan.frames.saturating_add(1);
        scan.ordinary = scan.ordinary.saturating_add(u64::from(header.is_ordinary()));
        scan.records = scan.records.saturating_add(u64::from(header.records));
        scan.sealed = header.has(SEAL);
        scan.end = (offset as u64).saturating_add(header.frame_bytes());
        offset = usize::try_from(scan.end).expect("a place in an image that is in memory");
    }
}

/// The first whole frame of this segment at or behind `from` that belongs there.
fn find_behind(image: &[u8], from: usize, order: &Order) -> Option<(usize, FrameHeader)> {
    let mut at = from;
    loop {
        let rest = image.get(at..)?;
        let [first, ..] = FRAME_MAGIC;
        at = at.saturating_add(rest.iter().position(|byte| *byte == first)?);
        if image.get(at..)?.starts_with(&FRAME_MAGIC)
            && let At::Frame(header) = look(image, at)
            && order.is_behind(&header)
        {
            return Some((at, header));
        }
        at = at.saturating_add(1);
    }
}

/// The rows of the tail table that have no valid frame behind F.
fn classify(image: &[u8], offset: usize, at: At, order: &Order) -> End {
    let rest = image.get(offset..).unwrap_or_default();
    if rest.iter().all(|byte| *byte == 0) {
        return End::Here;
    }
    match at {
        At::Version(version) => End::Version(version),
        At::Header(header) if order.accepts(&header) => {
            let body = body_of(rest, &header);
            let body_at = (offset as u64).saturating_add(FRAME_HEADER_BYTES as u64);
            let whole = body.len() as u64 == u64::from(header.body_bytes);
            let nothing_behind = usize::try_from(header.frame_bytes())
                .ok()
                .and_then(|len| rest.get(len..))
                .is_none_or(|behind| behind.iter().all(|byte| *byte == 0));
            let never_written = header.shows_missing_part(&body, body_at);
            if nothing_behind && (never_written || !whole) { End::Torn } else { End::Suspect }
        }
        At::Garbage => {
            let head = pad(rest, FRAME_HEADER_BYTES);
            let past = offset.checked_rem(SECTOR_BYTES).unwrap_or_default();
            let (first, second) = head.split_at(SECTOR_BYTES.saturating_sub(past).min(FRAME_HEADER_BYTES));
            // A shorter piece could be zeros but for a changed bit.
            let is_zero = |piece: &[u8]| piece.len() >= END_BYTES && piece.iter().all(|byte| *byte == 0);
            let without_checksum = rest.len() <= FRAME_HEADER_BYTES.saturating_sub(4);
            if is_zero(first) || is_zero(second) || without_checksum { End::Torn } else { End::Suspect }
        }
        At::Header(_) | At::Frame(_) => End::Suspect,
    }
}
