//! Judges a trace of a server that the ledger's publishers loaded: for every publish ack on a socket, a
//! write with the message ended before a sync of the same file began, and that sync ended before the ack
//! was handed to the socket.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;

use super::parse::Call;
use crate::jetstream::is_publish_ack;

/// Examples of violations that are spelled out.
const EXAMPLES: usize = 5;
const MESSAGE_ID: &[u8] = b"Nats-Msg-Id: p";

#[derive(Clone, Debug, Default, Serialize)]
pub struct Proof {
    /// Publish acks that were handed to sockets.
    pub acks: u64,
    /// Of these, how many left before a sync of their message had ended.
    pub unproven: u64,
    /// Writes that held messages, and their bytes.
    pub frames: u64,
    pub frame_bytes: u64,
    /// Messages in these writes; more than `acks` when some were written twice or never acked.
    pub messages: u64,
    /// Syncs of files that hold messages.
    pub syncs: u64,
    /// Bytes of each file below the data folder that got any, by path.
    pub files: BTreeMap<String, u64>,
    pub examples: Vec<String>,
}

impl Proof {
    /// Whether every ack came after its sync, and there were as many as were awaited.
    #[must_use]
    pub fn holds(&self, acks: u64) -> bool {
        self.unproven == 0 && self.acks >= acks && acks > 0
    }

    fn violation(&mut self, text: String) {
        self.unproven += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(text);
        }
    }
}

/// Publisher and number.
type Identity = (u64, u64);

/// Where a message was written: the file, and when the write had ended.
struct Written<'a> {
    file: &'a str,
    ended: usize,
}

pub fn judge(calls: &[Call], data: &Path) -> Proof {
    let mut proof = Proof::default();
    let mut written: HashMap<Identity, Written<'_>> = HashMap::new();
    // By file: begin and end of every sync that succeeded, in order of begin.
    let mut syncs: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
    for call in calls.iter().filter(|call| Path::new(&call.target).starts_with(data)) {
        match (call.name.as_str(), call.ended) {
            ("fdatasync" | "fsync", Some((ended, 0))) => {
                syncs.entry(&call.target).or_default().push((call.begun, ended));
            }
            (_, Some((ended, result))) if result > 0 => {
                let bytes = &call.data[..usize::try_from(result).unwrap_or(0).min(call.data.len())];
                *proof.files.entry(call.target.clone()).or_default() += bytes.len() as u64;
                let found = messages(bytes);
                if !found.is_empty() {
                    proof.frames += 1;
                    proof.frame_bytes += bytes.len() as u64;
                    proof.messages += found.len() as u64;
                }
                for identity in found {
                    written.entry(identity).or_insert(Written { file: &call.target, ended });
                }
            }
            _ => {}
        }
    }
    let holds_messages: std::collections::HashSet<&str> =
        written.values().map(|written| written.file).collect();
    proof.syncs = syncs
        .iter()
        .filter(|(file, _)| holds_messages.contains(*file))
        .map(|(_, syncs)| syncs.len() as u64)
        .sum();
    for (identity, handed_over) in acks(calls) {
        proof.acks += 1;
        let (publisher, number) = identity;
        let Some(written) = written.get(&identity) else {
            proof.violation(format!("{number} of publisher {publisher} was acked and never written"));
            continue;
        };
        let synced = syncs.get(written.file).is_some_and(|syncs| {
            let after = syncs.partition_point(|(begun, _)| *begun <= written.ended);
            syncs[after..]
                .iter()
                .take_while(|(begun, _)| *begun < handed_over)
                .any(|(_, ended)| *ended < handed_over)
        });
        if !synced {
            proof.violation(format!(
                "{number} of publisher {publisher} was written to {} by line {}, acked in line {}, \
                 and no sync began and ended between",
                written.file,
                written.ended + 1,
                handed_over + 1
            ));
        }
    }
    proof
}

/// The identities of the messages in bytes that were written to a file.
fn messages(bytes: &[u8]) -> Vec<Identity> {
    memchr::memmem::find_iter(bytes, MESSAGE_ID)
        .filter_map(|at| {
            let rest = &bytes[at + MESSAGE_ID.len()..];
            let (publisher, rest) = leading_number(rest)?;
            let (number, _) = leading_number(rest.strip_prefix(b"-")?)?;
            Some((publisher, number))
        })
        .collect()
}

/// What went to one socket, and at which byte each call began.
#[derive(Default)]
struct Sent {
    bytes: Vec<u8>,
    /// Position in `bytes`, and when the call began.
    begins: Vec<(usize, usize)>,
}

/// Every publish ack that went to a socket, and when the call began that held its first byte.
fn acks(calls: &[Call]) -> Vec<(Identity, usize)> {
    // A message may be spread over two calls, so each socket's calls are laid behind each other.
    let mut sockets: BTreeMap<&str, Sent> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.target.starts_with("socket:")) {
        let sent = match call.ended {
            Some((_, result)) => usize::try_from(result).unwrap_or(0),
            // It may have gone out before the end: that it was tried is enough.
            None => call.data.len(),
        };
        let Sent { bytes, begins } = sockets.entry(&call.target).or_default();
        begins.push((bytes.len(), call.begun));
        bytes.extend_from_slice(&call.data[..sent.min(call.data.len())]);
    }
    let mut found = Vec::new();
    for Sent { bytes, begins } in sockets.values() {
        for at in memchr::memmem::find_iter(bytes, b"MSG _I.") {
            if let Some(identity) = ack(&bytes[at..]) {
                let call = begins.partition_point(|(offset, _)| *offset <= at) - 1;
                found.push((identity, begins[call].1));
            }
        }
    }
    found
}

/// `MSG _I.<connection>.p<publisher>.<number> <sid> <bytes>\r\n<publish ack>`.
fn ack(message: &[u8]) -> Option<Identity> {
    let line_end = memchr::memmem::find(message, b"\r\n")?;
    let line = std::str::from_utf8(&message[..line_end]).ok()?;
    let mut words = line.split(' ').skip(1);
    let mut tokens = words.next()?.split('.').skip(2);
    let publisher = tokens.next()?.strip_prefix('p')?.parse().ok()?;
    let number = tokens.next()?.parse().ok()?;
    let bytes: usize = words.last()?.parse().ok()?;
    let body = message.get(line_end + 2..line_end + 2 + bytes)?;
    is_publish_ack(body).then_some((publisher, number))
}

fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()?, &bytes[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::parse;

    const WRITE: &str = r#"5 pwrite64(7</d/1.log>, "..Nats-Msg-Id: p2-41\r\n\r\n2 41 abc", 40, 0) = 31"#;
    const SYNC: &str = "5 fdatasync(7</d/1.log>) = 0";
    const ACK: &str =
        r#"6 sendto(9<socket:[1]>, "MSG _I.77.p2.41 2 9\r\n{\"seq\":1}\r\n", 31, 0, NULL, 0) = 31"#;

    /// How many acks there are, and how many of them are unproven.
    fn check(lines: &[&str], acks: u64, unproven: u64) {
        let calls = parse(lines.join("\n").as_bytes()).unwrap();
        let proof = judge(&calls, Path::new("/d"));
        assert_eq!((proof.acks, proof.unproven), (acks, unproven), "{lines:#?}\n{:#?}", proof.examples);
        assert_eq!(proof.holds(acks), unproven == 0 && acks > 0);
    }

    #[test]
    fn written_synced_acked_is_proven() {
        check(&[WRITE, SYNC, ACK], 1, 0);
    }

    #[test]
    fn an_ack_before_the_sync_is_found() {
        check(&[WRITE, ACK, SYNC], 1, 1);
        check(&[WRITE, ACK], 1, 1);
        check(&[SYNC, WRITE, ACK], 1, 1);
        check(&[ACK], 1, 1);
    }

    #[test]
    fn a_sync_that_began_before_the_write_ended_does_not_count() {
        let (begin, end) =
            WRITE.split_once(", 40").map(|(begin, _)| (begin, "5 <... pwrite64 resumed>) = 31")).unwrap();
        let begin = format!("{begin}, 40, 0 <unfinished ...>");
        let other = "8 fdatasync(7</d/1.log>) = 0";
        check(&[&begin, other, end, ACK], 1, 1);
        check(&[&begin, end, other, ACK], 1, 0);
    }

    #[test]
    fn a_sync_that_has_not_ended_or_failed_does_not_count() {
        let (begin, end) = ("5 fdatasync(7</d/1.log> <unfinished ...>", "5 <... fdatasync resumed>) = 0");
        check(&[WRITE, begin, ACK, end], 1, 1);
        check(&[WRITE, begin, end, ACK], 1, 0);
        check(&[WRITE, "5 fdatasync(7</d/1.log>) = -1 EIO (Input/output error)", ACK], 1, 1);
    }

    #[test]
    fn a_sync_of_another_file_does_not_count() {
        check(&[WRITE, "5 fdatasync(8</d/2.log>) = 0", ACK], 1, 1);
    }

    #[test]
    fn an_ack_spread_over_two_sends_counts_from_the_first() {
        let first = r#"6 sendto(9<socket:[1]>, "MSG _I.77.p2.", 13, 0, NULL, 0) = 13"#;
        let second = r#"6 sendto(9<socket:[1]>, "41 2 9\r\n{\"seq\":1}\r\n", 18, 0, NULL, 0) = 18"#;
        check(&[WRITE, first, SYNC, second], 1, 1);
        check(&[WRITE, SYNC, first, second], 1, 0);
    }

    #[test]
    fn an_error_is_no_ack() {
        let refusal = r#"6 sendto(9<socket:[1]>, "MSG _I.77.p2.41 2 20\r\n{\"error\":1,\"seq\":0}0\r\n", 42, 0, NULL, 0) = 42"#;
        check(&[refusal], 0, 0);
    }
}
