//! What the nodes of a cluster say to each other about tasks: a line of JSON, then the length of a header block
//! (4 bytes, little-endian), the block, and a payload. Both are empty where a word carries no message.

use serde::{Deserialize, Serialize};

/// To the leader.
pub const LEADER: &str = "$TASKS.leader";
/// To every node.
pub const NODES: &str = "$TASKS.nodes";
/// To one node; its id follows.
pub const NODE: &str = "$TASKS.node.";

/// Subscriptions of one subject at one node; a leader takes no more.
pub const MEMBERS_MAX: usize = 4_096;
const LINE_BYTES_MAX: usize = 256 << 10;

/// `term` is that of the leader who speaks, or who is spoken to: words of another one are not for this one.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "word")]
pub enum Word {
    /// The leader, once a second: who it is, whose members it wants to know, and how loaded it is.
    Leads { term: u64, node: String, subjects: Vec<String>, pressure: u64, queued: u64 },
    /// All subscriptions of a subject at a node: entry, connection, whether in a queue group.
    Members { term: u64, node: String, subject: String, members: Vec<(u64, u64, bool)> },
    /// What a worker said there; the message follows.
    Said { term: u64, node: String, connection: u64, subject: String },
    /// An assignment for one subscription there; the message follows.
    Job { term: u64, task: u64, entry: u64, subject: String },
    /// The subscription did not take it.
    NotTaken { term: u64, node: String, task: u64, entry: u64 },
}

/// A word and the message that it carries.
#[derive(Clone, Debug, PartialEq)]
pub struct Said<'a> {
    pub word: Word,
    pub headers: &'a [u8],
    pub payload: &'a [u8],
}

/// Why bytes are no word.
#[derive(Debug, thiserror::Error)]
pub enum NotAWord {
    #[error("it has no line, or too long a one")]
    Line,
    #[error("the line")]
    Json(#[source] serde_json::Error),
    #[error("it ends within its header block")]
    Short,
    #[error("more than {MEMBERS_MAX} subscriptions")]
    TooMany,
}

#[must_use]
pub fn encode(word: &Word, headers: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut raw = serde_json::to_vec(word).expect("strings and numbers are JSON");
    raw.reserve(5 + headers.len() + payload.len());
    raw.push(b'\n');
    raw.extend_from_slice(&u32::try_from(headers.len()).unwrap_or(u32::MAX).to_le_bytes());
    raw.extend_from_slice(headers);
    raw.extend_from_slice(payload);
    raw
}

/// # Errors
/// It is none.
pub fn decode(raw: &[u8]) -> Result<Said<'_>, NotAWord> {
    // JSON has no line feed but between its tokens, and we write none there.
    let at = raw.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n').ok_or(NotAWord::Line)?;
    let (line, rest) = raw.split_at(at);
    let word: Word = serde_json::from_slice(line).map_err(NotAWord::Json)?;
    if matches!(&word, Word::Members { members, .. } if members.len() > MEMBERS_MAX) {
        return Err(NotAWord::TooMany);
    }
    let rest = rest.strip_prefix(b"\n").ok_or(NotAWord::Line)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(NotAWord::Short)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (headers, payload) = rest.split_at_checked(length).ok_or(NotAWord::Short)?;
    Ok(Said { word, headers, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_said() {
        let word = Word::Job { term: 3, task: 7, entry: 9, subject: "a\nb".into() };
        let raw = encode(&word, b"NATS/1.0\r\n\r\n", b"{}\n");
        let said = decode(&raw).unwrap();
        assert_eq!((said.word, said.headers, said.payload), (word, &b"NATS/1.0\r\n\r\n"[..], &b"{}\n"[..]));
    }

    #[test]
    fn what_is_cut_or_foreign_is_none() {
        let raw = encode(&Word::NotTaken { term: 1, node: "n".into(), task: 1, entry: 2 }, b"hh", b"");
        for end in 0..raw.len() {
            assert!(decode(&raw[..end]).is_err(), "{end}");
        }
        assert!(decode(b"{\"word\":\"other\"}\n\0\0\0\0").is_err());
    }

    #[test]
    fn the_bytes_of_a_word_stay_as_they_are() {
        let raw =
            encode(&Word::Said { term: 2, node: "n".into(), connection: 5, subject: "s".into() }, b"h", b"p");
        assert_eq!(
            raw,
            b"{\"word\":\"said\",\"term\":2,\"node\":\"n\",\"connection\":5,\"subject\":\"s\"}\n\x01\0\0\0hp"
        );
    }
}
