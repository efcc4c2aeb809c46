//! Where a consumer begins, and how many messages lie before it.

use beamlog_log::{Damage, Read, Sequence, Timestamp};
use roaring::RoaringTreemap;

use crate::consumer::filters::Filters;
use crate::consumer::{ConsumerConfig, DeliverPolicy};
use crate::stream::{StreamView, SubjectFigures};

/// The first message to read, and for "last per subject" those to deliver before it.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) first: Sequence,
    pub(super) chosen: RoaringTreemap,
}

pub(super) fn decide(
    config: &ConsumerConfig,
    filters: &Filters,
    view: &mut StreamView<'_>,
) -> Result<Start, Damage> {
    let after_last = view.last.next();
    let mut chosen = RoaringTreemap::new();
    let first = match config.deliver_policy {
        DeliverPolicy::All => view.first,
        DeliverPolicy::New => after_last,
        DeliverPolicy::ByStartSequence(start) => start.max(view.first),
        DeliverPolicy::ByStartTime(time) => first_at(view, time)?,
        DeliverPolicy::Last if filters.is_everything() => view.last.max(view.first),
        DeliverPolicy::Last => {
            let mut last = None;
            each_subject(filters, view, &mut |figures| last = last.max(Some(figures.last)));
            last.unwrap_or(view.first)
        }
        DeliverPolicy::LastPerSubject => {
            // Where each subject has one message, all of them are the last of their subjects.
            let mut all_single = true;
            each_subject(filters, view, &mut |figures| {
                all_single &= figures.messages == 1;
                chosen.insert(figures.last.0);
            });
            if all_single {
                chosen.clear();
                view.first
            } else {
                after_last
            }
        }
    };
    Ok(Start { first, chosen })
}

/// The first message stored at or after a time: timestamps of a stream never go back.
fn first_at(view: &mut StreamView<'_>, time: Timestamp) -> Result<Sequence, Damage> {
    let (mut low, mut high) = (view.first, view.last.next());
    while low < high {
        let middle = Sequence(low.0 + (high.0 - low.0) / 2);
        let found = match view.journal.next(view.id, middle, &mut |_| true) {
            Read::Found(sequence) if sequence < high => sequence,
            Read::Found(_) | Read::Absent => {
                high = middle;
                continue;
            }
            Read::Unreadable(damage) => return Err(damage),
        };
        match view.journal.entry(view.id, found) {
            Read::Found(entry) if entry.timestamp >= time => high = middle,
            Read::Found(_) | Read::Absent => low = found.next(),
            Read::Unreadable(damage) => return Err(damage),
        }
    }
    Ok(low)
}

fn each_subject(filters: &Filters, view: &StreamView<'_>, found: &mut dyn FnMut(SubjectFigures)) {
    if filters.is_everything() {
        view.last_by_subject.for_each(&mut |_, figures| found(figures));
        return;
    }
    for literal in filters.literals() {
        if let Some(figures) = view.last_by_subject.figures(literal) {
            found(figures);
        }
    }
    if filters.has_wildcards() {
        view.last_by_subject.for_each(&mut |subject, figures| {
            if filters.wildcard_matches(subject) {
                found(figures);
            }
        });
    }
}

/// How many messages at or after `from` match. Reads subjects only where the figures do not tell.
pub(super) fn count(filters: &Filters, from: Sequence, view: &mut StreamView<'_>) -> Result<u64, Damage> {
    let from = from.max(view.first);
    if from > view.last || view.messages == 0 {
        return Ok(0);
    }
    if from == view.first && filters.is_everything() {
        return Ok(view.messages);
    }
    if filters.is_everything() {
        let deleted = view.deleted.rank(view.last.0) - view.deleted.rank(from.0 - 1);
        return Ok(view.last.0 - from.0 + 1 - deleted);
    }
    let (mut certain, mut unsure) = (0, false);
    each_subject(filters, view, &mut |figures| {
        if figures.first_bound >= from || from == view.first {
            certain += figures.messages;
        } else if figures.last >= from {
            unsure = true;
        }
    });
    if !unsure {
        return Ok(certain);
    }
    let (mut total, mut at) = (0, from);
    loop {
        match view.journal.next(view.id, at, &mut |subject| filters.matches(subject)) {
            Read::Found(sequence) => {
                total += 1;
                at = sequence.next();
            }
            Read::Absent => return Ok(total),
            Read::Unreadable(damage) => return Err(damage),
        }
    }
}

/// Whether a message that was there once is gone.
pub(super) fn is_gone(view: &StreamView<'_>, sequence: Sequence) -> bool {
    sequence < view.first || sequence > view.last || view.deleted.contains(sequence.0)
}
