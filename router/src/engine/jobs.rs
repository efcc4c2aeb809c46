//! Removals that are too many for one turn: each turn does a bounded step, publishes go on between.

use beamlog_log::{Journal, Read, Sequence, StreamId};
use bytes::Bytes;

use crate::api::error::ApiError;
use crate::api::request::{Answer, Purge, Response};
use crate::engine::{Engine, Output, Turn};
use crate::stream::Retention;
use crate::stream::state::Stream;
use crate::subject;

#[derive(Debug)]
pub(super) enum Job {
    Purge(PurgeJob),
    /// Removes from the front until the stream is within its limits.
    Trim {
        stream: StreamId,
    },
    /// Removes the oldest of each subject until it is within the limit per subject.
    TrimSubjects {
        stream: StreamId,
        subjects: Vec<Bytes>,
    },
    /// The rest of a roll-up of one subject.
    RollUp {
        stream: StreamId,
        subject: Bytes,
        before: Sequence,
    },
    /// Removes what no consumer wants (retention by interest).
    DropUnwanted {
        stream: StreamId,
        from: Sequence,
    },
}

#[derive(Debug)]
pub(super) struct PurgeJob {
    token: u64,
    stream: StreamId,
    /// Empty is everything.
    filter: Bytes,
    at: Sequence,
    /// The first sequence that stays in any case.
    end: Sequence,
    /// How many may go.
    left: u64,
    purged: u64,
}

/// What became of a step.
enum Step {
    Done(Option<(u64, Answer)>),
    More(Job),
}

impl Engine {
    pub(super) fn purge(&mut self, turn: &mut Turn<'_>, token: u64, name: &str, purge: Purge) {
        match self.begin_purge(turn, token, name, purge) {
            Ok(Some(job)) => {
                // Small ones are answered at once; others go behind the jobs that are waiting.
                self.jobs.push_back(Job::Purge(job));
                if self.jobs.len() == 1 {
                    self.step_job(turn, 4096);
                }
            }
            Ok(None) => {}
            Err(refusal) => self.outputs.push_back(Output::Answer { token, answer: Err(refusal) }),
        }
    }

    fn begin_purge(
        &mut self,
        turn: &mut Turn<'_>,
        token: u64,
        name: &str,
        purge: Purge,
    ) -> Result<Option<PurgeJob>, ApiError> {
        let stream = self.stream(name)?;
        if stream.body.config.sealed {
            return Err(ApiError::StreamSealed);
        }
        if stream.body.config.deny_purge {
            return Err(ApiError::PurgeFailed("stream purge not permitted".into()));
        }
        if purge.before.is_some_and(|before| before > Sequence(0)) && purge.keep.is_some_and(|keep| keep > 0)
        {
            return Err(ApiError::BadRequest);
        }
        if !purge.filter.is_empty() {
            subject::check_filter(purge.filter.as_bytes()).map_err(|_invalid| ApiError::BadRequest)?;
        }
        let everything = purge.filter.is_empty() || purge.filter == ">";
        let before = purge.before.filter(|before| *before > Sequence(0));
        let keep = purge.keep.unwrap_or(0);
        let id = stream.body.id;
        if everything && keep == 0 && before.is_none_or(|before| before > stream.body.last) {
            let count = stream.remove_all(turn.journal);
            self.commit_wanted = true;
            self.after_change(turn, id);
            self.outputs.push_back(Output::Answer { token, answer: Ok(Response::Purged { count }) });
            return Ok(None);
        }
        let mut matching = 0;
        if everything {
            matching = stream.body.messages;
        } else {
            stream
                .body
                .subjects
                .matching(purge.filter.as_bytes(), &mut |_, found| matching += found.messages);
        }
        Ok(Some(PurgeJob {
            token,
            stream: id,
            filter: if everything { Bytes::new() } else { purge.filter.into() },
            at: stream.body.first,
            end: before.unwrap_or(stream.body.last.next()).min(stream.body.last.next()),
            left: matching.saturating_sub(keep),
            purged: 0,
        }))
    }

    pub(super) fn delete_message(&mut self, turn: &mut Turn<'_>, name: &str, sequence: Sequence) -> Answer {
        let stream = self.stream(name)?;
        if stream.body.config.sealed {
            return Err(ApiError::StreamSealed);
        }
        if stream.body.config.deny_delete {
            return Err(ApiError::MessageDeleteFailed("message delete not permitted".into()));
        }
        if !stream.body.lives(sequence) {
            let inside = sequence >= stream.body.first && sequence <= stream.body.last;
            return Err(if inside {
                ApiError::SequenceNotFound(sequence)
            } else {
                ApiError::MessageDeleteFailed("no message found".into())
            });
        }
        stream.remove(turn.journal, sequence);
        let id = stream.body.id;
        self.commit_wanted = true;
        self.after_change(turn, id);
        Ok(Response::Deleted)
    }

    /// Does a bounded step of the first job.
    pub(super) fn step_job(&mut self, turn: &mut Turn<'_>, budget: usize) {
        let Some(job) = self.jobs.pop_front() else { return };
        let id = job.stream();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let step = job.step(turn.journal, stream, budget);
        self.after_change(turn, id);
        match step {
            Step::More(job) => self.jobs.push_front(job),
            Step::Done(None) => {}
            Step::Done(Some((token, answer))) => {
                self.commit_wanted = true;
                self.outputs.push_back(Output::Answer { token, answer });
            }
        }
    }

    pub(super) fn has_jobs(&self, stream: StreamId) -> bool {
        self.jobs.iter().any(|job| job.stream() == stream)
    }

    /// The stream is gone: whoever waits for a job on it is told.
    pub(super) fn drop_jobs(&mut self, stream: StreamId) {
        let jobs = std::mem::take(&mut self.jobs);
        for job in jobs {
            if job.stream() != stream {
                self.jobs.push_back(job);
            } else if let Job::Purge(purge) = job {
                let answer = Err(ApiError::StreamNotFound);
                self.outputs.push_back(Output::Answer { token: purge.token, answer });
            }
        }
    }
}

impl Job {
    fn stream(&self) -> StreamId {
        match self {
            Self::Purge(purge) => purge.stream,
            Self::Trim { stream }
            | Self::TrimSubjects { stream, .. }
            | Self::RollUp { stream, .. }
            | Self::DropUnwanted { stream, .. } => *stream,
        }
    }

    fn step(self, journal: &mut dyn Journal, stream: &mut Stream, budget: usize) -> Step {
        match self {
            Self::Purge(purge) => purge.step(journal, stream, budget),
            Self::Trim { stream: id } => {
                if stream.enforce_limits(journal, budget) {
                    Step::Done(None)
                } else {
                    Step::More(Self::Trim { stream: id })
                }
            }
            Self::TrimSubjects { stream: id, mut subjects } => {
                for _ in 0..budget.min(64) {
                    let Some(subject) = subjects.pop() else { return Step::Done(None) };
                    let hash = stream.body.subjects.hash(&subject);
                    stream.enforce_subject_limit(journal, &subject, hash);
                }
                Step::More(Self::TrimSubjects { stream: id, subjects })
            }
            Self::RollUp { stream: id, subject, before } => {
                let hash = stream.body.subjects.hash(&subject);
                match stream.remove_older_on(journal, &subject, hash, before, budget) {
                    Ok(true) => Step::More(Self::RollUp { stream: id, subject, before }),
                    Ok(false) | Err(_) => Step::Done(None),
                }
            }
            Self::DropUnwanted { stream: id, from } => drop_unwanted(journal, stream, id, from, budget),
        }
    }
}

fn drop_unwanted(
    journal: &mut dyn Journal,
    stream: &mut Stream,
    id: StreamId,
    from: Sequence,
    budget: usize,
) -> Step {
    if stream.body.config.retention != Retention::Interest {
        return Step::Done(None);
    }
    if stream.consumers.is_empty() {
        stream.remove_all(journal);
        return Step::Done(None);
    }
    let mut at = from;
    for _ in 0..budget {
        let Some(sequence) = stream.body.living_from(at) else { return Step::Done(None) };
        stream.acked(journal, sequence);
        at = sequence.next();
    }
    Step::More(Job::DropUnwanted { stream: id, from: at })
}

impl PurgeJob {
    fn step(mut self, journal: &mut dyn Journal, stream: &mut Stream, budget: usize) -> Step {
        for _ in 0..budget {
            if self.left == 0 || self.at >= self.end {
                return self.done();
            }
            let found = if self.filter.is_empty() {
                stream.body.living_from(self.at)
            } else {
                let filter = &self.filter;
                let from = self.at.max(stream.body.first);
                match journal.next(self.stream, from, &mut |name| subject::matches(filter, name)) {
                    Read::Found(sequence) => Some(sequence),
                    Read::Absent => None,
                    // It cannot be told which messages the filter means (DR14).
                    Read::Unreadable(damage) => {
                        return Step::Done(Some((self.token, Err(ApiError::Unreadable(damage)))));
                    }
                }
            };
            match found {
                Some(sequence) if sequence < self.end => {
                    stream.remove(journal, sequence);
                    self.at = sequence.next();
                    self.left -= 1;
                    self.purged += 1;
                }
                Some(_) | None => return self.done(),
            }
        }
        Step::More(Job::Purge(self))
    }

    fn done(self) -> Step {
        Step::Done(Some((self.token, Ok(Response::Purged { count: self.purged }))))
    }
}
