//! What ends with time: messages by age and by their own time to live, message ids by their window.

use beamlog_log::{Journal, Read, Sequence, StreamId, Timestamp};

use crate::engine::publish::Admitted;
use crate::engine::{Engine, Turn};
use crate::headers;
use crate::stream::publish_headers::PublishHeaders;
use crate::stream::publishing::Rollup;
use crate::stream::state::Stream;

/// Messages that expire in one step.
const EXPIRED_PER_STEP_MAX: usize = 4096;
/// Ids are forgotten in bulk: nobody counts them, and publishes with an id forget on their own.
const IDS_SLACK_NANOS: u64 = 10_000_000_000;
/// How far behind an unreadable message the next readable one is looked for.
const UNREADABLE_SKIPPED_MAX: u64 = 1024;
/// When to look again at what could not be read.
const UNREADABLE_RETRY_NANOS: u64 = 60_000_000_000;

/// When something of the stream ends next.
pub(super) fn stream_deadline(stream: &mut Stream, journal: &mut dyn Journal) -> Option<Timestamp> {
    let body = &mut stream.body;
    if body.moving.is_moving() {
        return None;
    }
    let ids = body.message_ids.oldest().map(|oldest| {
        Timestamp(oldest.0 + body.config.duplicate_window_nanos.unwrap_or(0) + IDS_SLACK_NANOS)
    });
    let own = body.ends.first().map(|(end, _)| *end);
    let age = body.config.max_age_nanos.filter(|_| body.messages > 0).map(|age| {
        let first = body.first_time(journal).unwrap_or(Timestamp(body.last_time.0 + UNREADABLE_RETRY_NANOS));
        Timestamp(first.0.saturating_add(age))
    });
    let batches = stream.batches.deadline();
    [ids, own, age, batches].into_iter().flatten().min()
}

impl Engine {
    /// Puts a stream's next deadline into the table anew.
    pub(super) fn rearm_stream(&mut self, turn: &mut Turn<'_>, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let due = stream_deadline(stream, turn.journal);
        if let Some(due) = due
            && stream.armed.is_none_or(|armed| due < armed)
        {
            if let Some(armed) = stream.armed.replace(due) {
                self.deadlines.remove(&(armed, id, None));
            }
            self.deadlines.insert((due, id, None));
        }
    }

    /// Handles the deadlines that have passed.
    pub(super) fn pass_deadlines(&mut self, turn: &mut Turn<'_>) {
        while let Some((due, id, consumer)) = self.deadlines.first().copied()
            && due <= turn.now
        {
            self.deadlines.pop_first();
            match consumer {
                Some(consumer) => self.pass_consumer_deadline(turn, id, consumer, due),
                None => {
                    if self.pass_stream_deadline(turn, id) {
                        // More is due: let others have their turn first.
                        break;
                    }
                }
            }
        }
    }

    /// Returns whether more is due at once.
    fn pass_stream_deadline(&mut self, turn: &mut Turn<'_>, id: StreamId) -> bool {
        if self.streams.get(&id).is_some_and(|stream| stream.body.moving.is_moving()) {
            return false;
        }
        self.give_up_batches(turn, id);
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        stream.armed = None;
        stream.body.expire_ids(turn.now);
        let marks = stream.body.config.subject_delete_marker_ttl_nanos;
        let mut gone = Vec::new();
        let mut more = expire_own(turn, stream, marks.is_some().then_some(&mut gone));
        let (aged, retry) = expire_aged(turn, stream, marks.is_some().then_some(&mut gone));
        more |= aged;
        if let Some(nanos) = marks {
            for subject in gone {
                self.mark_deleted(turn, id, &subject, nanos);
            }
        }
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let due = stream_deadline(stream, turn.journal)
            .map(|due| if retry { due.max(Timestamp(turn.now.0 + UNREADABLE_RETRY_NANOS)) } else { due });
        if let Some(due) = due {
            stream.armed = Some(due);
            self.deadlines.insert((due, id, None));
        }
        self.after_change(turn, id);
        more
    }

    /// The last message of a subject has expired: a marker says so to those who watch.
    fn mark_deleted(&mut self, turn: &mut Turn<'_>, id: StreamId, subject: &[u8], ttl_nanos: u64) {
        let block = headers::Builder::new()
            .header("Nats-Marker-Reason", "MaxAge")
            .header("Nats-TTL", format!("{}s", ttl_nanos / 1_000_000_000))
            .header("Nats-Rollup", "sub")
            .finish();
        let stream = &self.streams[&id];
        let hash = stream.body.subjects.hash(subject);
        if stream.body.subjects.find(hash, subject).is_some() {
            return;
        }
        let headers = PublishHeaders::parse(&block);
        let admitted =
            Admitted { subject, hash, block: &block, headers: &headers, payload: &[], rollup: Rollup::None };
        self.store(turn, id, &admitted);
    }
}

/// Removes messages whose own time has come.
fn expire_own(turn: &mut Turn<'_>, stream: &mut Stream, mut gone: Option<&mut Vec<Vec<u8>>>) -> bool {
    for _ in 0..EXPIRED_PER_STEP_MAX {
        let Some((end, sequence)) = stream.body.ends.first().copied() else { return false };
        if end > turn.now {
            return false;
        }
        stream.body.ends.pop_first();
        if stream.body.lives(sequence) {
            expire(turn, stream, sequence, gone.as_deref_mut());
        }
    }
    true
}

/// Removes messages that are older than the stream keeps them. Says whether more are due at once, and
/// whether one that cannot be read is in the way.
fn expire_aged(
    turn: &mut Turn<'_>,
    stream: &mut Stream,
    mut gone: Option<&mut Vec<Vec<u8>>>,
) -> (bool, bool) {
    let Some(age) = stream.body.config.max_age_nanos else { return (false, false) };
    let horizon = Timestamp(turn.now.0.saturating_sub(age));
    for _ in 0..EXPIRED_PER_STEP_MAX {
        if stream.body.messages == 0 {
            return (false, false);
        }
        let first = stream.body.first;
        let stored = match stream.body.first_time(turn.journal) {
            Some(stored) => stored,
            // A later message that is old enough says that this one is too.
            None => match next_readable_time(turn.journal, stream, first) {
                Some(stored) => stored,
                None => return (false, true),
            },
        };
        if stored > horizon {
            return (false, false);
        }
        expire(turn, stream, first, gone.as_deref_mut());
    }
    (true, false)
}

fn next_readable_time(journal: &mut dyn Journal, stream: &Stream, after: Sequence) -> Option<Timestamp> {
    let mut at = after.next();
    for _ in 0..UNREADABLE_SKIPPED_MAX {
        let sequence = stream.body.living_from(at)?;
        match journal.entry(stream.body.id, sequence) {
            Read::Found(entry) => return Some(entry.timestamp),
            Read::Absent | Read::Unreadable(_) => at = sequence.next(),
        }
    }
    None
}

fn expire(turn: &mut Turn<'_>, stream: &mut Stream, sequence: Sequence, gone: Option<&mut Vec<Vec<u8>>>) {
    let Some(gone) = gone else {
        stream.remove(turn.journal, sequence);
        return;
    };
    let subject = match turn.journal.read(stream.body.id, sequence) {
        // A marker that expires leaves none behind.
        Read::Found(message) if headers::find(&message.headers, b"Nats-Marker-Reason").is_none() => {
            Some(message.subject)
        }
        Read::Found(_) | Read::Absent | Read::Unreadable(_) => None,
    };
    stream.remove(turn.journal, sequence);
    if let Some(subject) = subject
        && stream.body.subjects.find(stream.body.subjects.hash(&subject), &subject).is_none()
    {
        gone.push(subject.to_vec());
    }
}
