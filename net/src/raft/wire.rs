//! What nodes say to each other about the log, in bytes. All numbers are little-endian.
//!
//! A request is `version 1 · kind 1 · shard 4` and the fields of its kind; an answer is `version 1 · kind 1` and
//! its fields. The bodies of entries stand in them as they lie in the log. Nothing of a request or an answer is
//! used before all of it was decoded and checked: lengths are bounded before anything is taken, indexes and
//! terms must ascend as they do in a log, no byte may be left over. Kinds and versions that are not known are
//! refused. `docs/design/replication.md` has the table.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use beamlog_log::{EntryId, Index, LogEntry, ShardId, Term, Timestamp};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version of this encoding.
pub const VERSION: u8 = 1;
/// Entries in one append.
pub const ENTRIES_MAX: usize = 1024;
/// Peers in a list.
const PEERS_MAX: usize = 64;
/// Terms beyond this are a lie: no cluster elects so often.
const TERM_MAX: u64 = 1 << 56;
/// Indexes beyond this are a lie.
const INDEX_MAX: u64 = 1 << 62;
/// Bytes of a name, a reason, a membership.
const TEXT_MAX: usize = 1024;
/// Bytes of files in one answer.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Bytes of a list of files.
const LIST_MAX: usize = 960 << 10;
/// Bytes of a membership.
const MEMBERSHIP_MAX: usize = 64 << 10;

/// Whom a node votes for, or follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WireVote {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

/// A request of one node to another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    Vote {
        vote: WireVote,
        last: EntryId,
        transfer: bool,
    },
    PreVote {
        vote: WireVote,
        last: EntryId,
        transfer: bool,
    },
    Append(Append),
    Transfer {
        from: WireVote,
        to: u64,
        last: EntryId,
    },
    /// "My log is too far behind yours": what the leader sends when its history does not reach back.
    Offer {
        vote: WireVote,
        state: CopyOf,
    },
    /// What stands at an index: a node whose log ends in doubt asks (DR5).
    Have {
        index: Index,
    },
    /// What its wall clock says.
    Time,
    /// Who the members are, as a node knows it that no change can undo.
    Members,
    /// What files hold the state.
    Files,
    /// Bytes of one of them.
    Chunk {
        file: String,
        offset: u64,
        bytes: u32,
    },
}

/// A state that is copied as files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CopyOf {
    pub last: EntryId,
}

/// Entries of a leader, or only its word that it leads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Append {
    pub vote: WireVote,
    /// The entry before the first.
    pub previous: EntryId,
    pub commit: EntryId,
    /// What peers are known to have held of what is committed.
    pub held: Vec<(u64, Index)>,
    pub entries: Vec<LogEntry>,
}

/// An answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    Vote {
        vote: WireVote,
        last: EntryId,
        granted: bool,
    },
    Append {
        outcome: Outcome,
        durable: EntryId,
    },
    Transfer(Result<(), TransferRefused>),
    Offer(OfferState),
    /// The list as the log encodes it, and the membership that governs its last entry.
    Files {
        membership_id: EntryId,
        membership: Bytes,
        list: Bytes,
    },
    Chunk(Bytes),
    Have(Have),
    /// Nanoseconds since the epoch, by its wall clock.
    Time(Timestamp),
    /// The entry that says who the members are, and what it says.
    Members {
        membership_id: EntryId,
        membership: Bytes,
    },
}

/// What a node says of an index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Have {
    /// Its log ends before, and that is certain.
    Never,
    Entry(LogEntry),
    /// It cannot say, or not any more.
    Unknown,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    Taken,
    /// Only up to here.
    Partly(EntryId),
    /// The entry before the first is another one here.
    Conflict,
    HigherVote(WireVote),
}

/// Why leadership is not taken over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TransferRefused {
    VoteChanged { expected: WireVote, actual: WireVote },
    NotFlushed { expected: EntryId, actual: EntryId },
}

/// How far a node is with copying the state that it was offered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum OfferState {
    Fetching { done: u64, total: u64 },
    Installed { vote: WireVote, last: EntryId },
    Failed { reason: String },
    HigherVote(WireVote),
}

/// Why bytes are not a request or an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WireError {
    #[error("it ends too early")]
    Short,
    #[error("{0} bytes are left over")]
    LeftOver(usize),
    #[error("version {0} is not spoken here")]
    Version(u8),
    #[error("kind {0} is not known")]
    Kind(u8),
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
    #[error("the entries do not follow each other")]
    Order,
    #[error("text is not UTF-8")]
    Text,
}

const VOTE: u8 = 1;
const PRE_VOTE: u8 = 2;
const APPEND: u8 = 3;
const TRANSFER: u8 = 4;
const OFFER: u8 = 5;
const FILES: u8 = 6;
const CHUNK: u8 = 7;
const HAVE: u8 = 8;
const TIME: u8 = 9;
const MEMBERS: u8 = 10;

impl Request {
    #[must_use]
    pub fn encode(&self, shard: ShardId) -> Bytes {
        let mut out = BytesMut::new();
        let mut head = |kind: u8| {
            out.put_u8(VERSION);
            out.put_u8(kind);
            out.put_u32_le(shard.0);
        };
        match self {
            Self::Vote { vote, last, transfer } | Self::PreVote { vote, last, transfer } => {
                head(if matches!(self, Self::Vote { .. }) { VOTE } else { PRE_VOTE });
                put_vote(&mut out, *vote);
                put_id(&mut out, *last);
                out.put_u8(u8::from(*transfer));
            }
            Self::Append(append) => {
                head(APPEND);
                out.reserve(append.entries.iter().map(|entry| entry.body.len().saturating_add(36)).sum());
                put_vote(&mut out, append.vote);
                put_id(&mut out, append.previous);
                put_id(&mut out, append.commit);
                put_count(&mut out, append.held.len());
                for (peer, index) in &append.held {
                    out.put_u64_le(*peer);
                    out.put_u64_le(index.0);
                }
                put_count(&mut out, append.entries.len());
                for entry in &append.entries {
                    put_entry(&mut out, entry);
                }
            }
            Self::Transfer { from, to, last } => {
                head(TRANSFER);
                put_vote(&mut out, *from);
                out.put_u64_le(*to);
                put_id(&mut out, *last);
            }
            Self::Offer { vote, state } => {
                head(OFFER);
                put_vote(&mut out, *vote);
                put_id(&mut out, state.last);
            }
            Self::Files => head(FILES),
            Self::Time => head(TIME),
            Self::Members => head(MEMBERS),
            Self::Have { index } => {
                head(HAVE);
                out.put_u64_le(index.0);
            }
            Self::Chunk { file, offset, bytes } => {
                head(CHUNK);
                put_bytes(&mut out, file.as_bytes());
                out.put_u64_le(*offset);
                out.put_u32_le(*bytes);
            }
        }
        out.freeze()
    }

    /// Which shard a request is about, before the rest of it is looked at.
    ///
    /// # Errors
    /// It is not a request of this version.
    pub fn shard_of(bytes: &Bytes) -> Result<ShardId, WireError> {
        head(&mut Input(bytes.clone())).map(|(_kind, shard)| shard)
    }

    /// # Errors
    /// It is not a request of this version, or one that no honest node sends.
    pub fn decode(bytes: Bytes) -> Result<(ShardId, Self), WireError> {
        let mut bytes = Input(bytes);
        let (kind, shard) = head(&mut bytes)?;
        let request = match kind {
            VOTE | PRE_VOTE => {
                let vote = bytes.vote()?;
                let last = bytes.id()?;
                let transfer = bytes.flag()?;
                if vote.committed || last.term.0 > vote.term {
                    return Err(WireError::Bounds("a candidate's term"));
                }
                if kind == VOTE {
                    Self::Vote { vote, last, transfer }
                } else {
                    Self::PreVote { vote, last, transfer }
                }
            }
            APPEND => Self::Append(append(&mut bytes)?),
            TRANSFER => {
                let from = bytes.vote()?;
                Self::Transfer { from, to: bytes.u64()?, last: bytes.id()? }
            }
            OFFER => {
                let vote = bytes.vote()?;
                let last = bytes.id()?;
                if !vote.committed || last.term.0 > vote.term || last.index.0 == 0 {
                    return Err(WireError::Bounds("an offered state"));
                }
                Self::Offer { vote, state: CopyOf { last } }
            }
            FILES => Self::Files,
            TIME => Self::Time,
            MEMBERS => Self::Members,
            HAVE => match bytes.u64()? {
                index @ 1..=INDEX_MAX => Self::Have { index: Index(index) },
                _ => return Err(WireError::Bounds("an index")),
            },
            CHUNK => {
                let file = bytes.text(TEXT_MAX)?;
                let offset = bytes.u64()?;
                let wanted = bytes.u32()?;
                if usize::try_from(wanted).map_or(true, |wanted| wanted > CHUNK_BYTES_MAX) {
                    return Err(WireError::Bounds("a chunk"));
                }
                Self::Chunk { file, offset, bytes: wanted }
            }
            kind => return Err(WireError::Kind(kind)),
        };
        bytes.end()?;
        Ok((shard, request))
    }
}

fn head(bytes: &mut Input) -> Result<(u8, ShardId), WireError> {
    version(bytes)?;
    Ok((bytes.u8()?, ShardId(bytes.u32()?)))
}

fn append(bytes: &mut Input) -> Result<Append, WireError> {
    let vote = bytes.vote()?;
    let previous = bytes.id()?;
    let commit = bytes.id()?;
    if !vote.committed || previous.term.0 > vote.term || commit.term.0 > vote.term {
        return Err(WireError::Bounds("a leader's term"));
    }
    let mut held = Vec::new();
    for _ in 0..bytes.count(PEERS_MAX)? {
        held.push((bytes.u64()?, Index(bytes.u64()?)));
    }
    let mut entries = Vec::new();
    let mut before = previous;
    for _ in 0..bytes.count(ENTRIES_MAX)? {
        let entry = bytes.entry()?;
        let id = entry.id;
        if id.index != before.index.next() || id.term < before.term || id.term.0 > vote.term {
            return Err(WireError::Order);
        }
        entries.push(entry);
        before = id;
    }
    Ok(Append { vote, previous, commit, held, entries })
}

impl Answer {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let mut head = |kind: u8| {
            out.put_u8(VERSION);
            out.put_u8(kind);
        };
        match self {
            Self::Vote { vote, last, granted } => {
                head(VOTE);
                put_vote(&mut out, *vote);
                put_id(&mut out, *last);
                out.put_u8(u8::from(*granted));
            }
            Self::Append { outcome, durable } => {
                head(APPEND);
                put_id(&mut out, *durable);
                match outcome {
                    Outcome::Taken => out.put_u8(0),
                    Outcome::Partly(last) => {
                        out.put_u8(1);
                        put_id(&mut out, *last);
                    }
                    Outcome::Conflict => out.put_u8(2),
                    Outcome::HigherVote(vote) => {
                        out.put_u8(3);
                        put_vote(&mut out, *vote);
                    }
                }
            }
            Self::Transfer(result) => {
                head(TRANSFER);
                match result {
                    Ok(()) => out.put_u8(0),
                    Err(TransferRefused::VoteChanged { expected, actual }) => {
                        out.put_u8(1);
                        put_vote(&mut out, *expected);
                        put_vote(&mut out, *actual);
                    }
                    Err(TransferRefused::NotFlushed { expected, actual }) => {
                        out.put_u8(2);
                        put_id(&mut out, *expected);
                        put_id(&mut out, *actual);
                    }
                }
            }
            Self::Offer(state) => {
                head(OFFER);
                match state {
                    OfferState::Fetching { done, total } => {
                        out.put_u8(0);
                        out.put_u64_le(*done);
                        out.put_u64_le(*total);
                    }
                    OfferState::Installed { vote, last } => {
                        out.put_u8(1);
                        put_vote(&mut out, *vote);
                        put_id(&mut out, *last);
                    }
                    OfferState::Failed { reason } => {
                        out.put_u8(2);
                        put_bytes(&mut out, short(reason).as_bytes());
                    }
                    OfferState::HigherVote(vote) => {
                        out.put_u8(3);
                        put_vote(&mut out, *vote);
                    }
                }
            }
            Self::Files { membership_id, membership, list } => {
                head(FILES);
                put_id(&mut out, *membership_id);
                put_bytes(&mut out, membership);
                put_bytes(&mut out, list);
            }
            Self::Chunk(bytes) => {
                head(CHUNK);
                put_bytes(&mut out, bytes);
            }
            Self::Have(have) => {
                head(HAVE);
                match have {
                    Have::Never => out.put_u8(0),
                    Have::Entry(entry) => {
                        out.put_u8(1);
                        put_entry(&mut out, entry);
                    }
                    Have::Unknown => out.put_u8(2),
                }
            }
            Self::Time(time) => {
                head(TIME);
                out.put_u64_le(time.0);
            }
            Self::Members { membership_id, membership } => {
                head(MEMBERS);
                put_id(&mut out, *membership_id);
                put_bytes(&mut out, membership);
            }
        }
        out.freeze()
    }

    /// # Errors
    /// It is not an answer of this version, or one that no honest node gives.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let mut bytes = Input(bytes);
        version(&mut bytes)?;
        let answer = match bytes.u8()? {
            VOTE => Self::Vote { vote: bytes.vote()?, last: bytes.id()?, granted: bytes.flag()? },
            APPEND => {
                let durable = bytes.id()?;
                let outcome = match bytes.u8()? {
                    0 => Outcome::Taken,
                    1 => Outcome::Partly(bytes.id()?),
                    2 => Outcome::Conflict,
                    3 => Outcome::HigherVote(bytes.vote()?),
                    _ => return Err(WireError::Bounds("an outcome")),
                };
                Self::Append { outcome, durable }
            }
            TRANSFER => Self::Transfer(match bytes.u8()? {
                0 => Ok(()),
                1 => Err(TransferRefused::VoteChanged { expected: bytes.vote()?, actual: bytes.vote()? }),
                2 => Err(TransferRefused::NotFlushed { expected: bytes.id()?, actual: bytes.id()? }),
                _ => return Err(WireError::Bounds("an outcome")),
            }),
            OFFER => Self::Offer(match bytes.u8()? {
                0 => OfferState::Fetching { done: bytes.u64()?, total: bytes.u64()? },
                1 => OfferState::Installed { vote: bytes.vote()?, last: bytes.id()? },
                2 => OfferState::Failed { reason: bytes.text(TEXT_MAX)? },
                3 => OfferState::HigherVote(bytes.vote()?),
                _ => return Err(WireError::Bounds("an outcome")),
            }),
            FILES => Self::Files {
                membership_id: bytes.id()?,
                membership: bytes.bytes(MEMBERSHIP_MAX)?,
                list: bytes.bytes(LIST_MAX)?,
            },
            CHUNK => Self::Chunk(bytes.bytes(CHUNK_BYTES_MAX)?),
            TIME => Self::Time(Timestamp(bytes.u64()?)),
            MEMBERS => match bytes.id()? {
                membership_id if membership_id.index.0 == 0 => {
                    return Err(WireError::Bounds("an entry's id"));
                }
                membership_id => Self::Members { membership_id, membership: bytes.bytes(MEMBERSHIP_MAX)? },
            },
            HAVE => Self::Have(match bytes.u8()? {
                0 => Have::Never,
                1 => match bytes.entry()? {
                    entry if entry.id.index.0 == 0 => return Err(WireError::Bounds("an index")),
                    entry => Have::Entry(entry),
                },
                2 => Have::Unknown,
                _ => return Err(WireError::Bounds("an outcome")),
            }),
            kind => return Err(WireError::Kind(kind)),
        };
        bytes.end()?;
        Ok(answer)
    }
}

fn short(text: &str) -> &str {
    let end = text.char_indices().map(|(at, _)| at).take_while(|at| *at <= TEXT_MAX / 2).last().unwrap_or(0);
    if text.len() <= TEXT_MAX { text } else { text.get(..end).unwrap_or_default() }
}

fn put_vote(out: &mut BytesMut, vote: WireVote) {
    out.put_u64_le(vote.term);
    out.put_u64_le(vote.node);
    out.put_u8(u8::from(vote.committed));
}

fn put_id(out: &mut BytesMut, id: EntryId) {
    out.put_u64_le(id.index.0);
    out.put_u64_le(id.term.0);
}

fn put_entry(out: &mut BytesMut, entry: &LogEntry) {
    put_id(out, entry.id);
    out.put_u64_le(entry.timestamp.0);
    out.put_u32_le(entry.records);
    put_bytes(out, &entry.body);
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u32_le(u32::try_from(count).expect("lists are bounded far below"));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_count(out, bytes.len());
    out.put_slice(bytes);
}

fn version(bytes: &mut Input) -> Result<(), WireError> {
    match bytes.u8()? {
        VERSION => Ok(()),
        other => Err(WireError::Version(other)),
    }
}

struct Input(Bytes);

impl Input {
    fn need(&self, bytes: usize) -> Result<(), WireError> {
        if self.0.remaining() < bytes { Err(WireError::Short) } else { Ok(()) }
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Bounds("a flag")),
        }
    }

    fn count(&mut self, max: usize) -> Result<usize, WireError> {
        let count = usize::try_from(self.u32()?).map_err(|_long| WireError::Bounds("a count"))?;
        if count > max { Err(WireError::Bounds("a count")) } else { Ok(count) }
    }

    fn bytes(&mut self, max: usize) -> Result<Bytes, WireError> {
        let len = self.count(max)?;
        self.need(len)?;
        Ok(self.0.split_to(len))
    }

    fn text(&mut self, max: usize) -> Result<String, WireError> {
        let bytes = self.bytes(max)?;
        std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_not_text| WireError::Text)
    }

    fn vote(&mut self) -> Result<WireVote, WireError> {
        let vote = WireVote { term: self.u64()?, node: self.u64()?, committed: self.flag()? };
        if vote.term > TERM_MAX { Err(WireError::Bounds("a term")) } else { Ok(vote) }
    }

    /// 0 and 0, or neither.
    fn id(&mut self) -> Result<EntryId, WireError> {
        let (index, term) = (self.u64()?, self.u64()?);
        if index > INDEX_MAX || term > TERM_MAX || (index == 0) != (term == 0) {
            return Err(WireError::Bounds("an entry's id"));
        }
        Ok(EntryId { index: Index(index), term: Term(term) })
    }

    fn entry(&mut self) -> Result<LogEntry, WireError> {
        let id = self.id()?;
        let timestamp = Timestamp(self.u64()?);
        let records = self.u32()?;
        // Bounded by what is there.
        let body = self.bytes(usize::MAX)?;
        Ok(LogEntry { id, timestamp, records, body })
    }

    fn end(&self) -> Result<(), WireError> {
        match self.0.remaining() {
            0 => Ok(()),
            left => Err(WireError::LeftOver(left)),
        }
    }
}
