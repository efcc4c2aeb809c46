//! What is asked of stored messages: one by the API, one or many directly.

use std::ops::Bound;

use beamlog_router::Sequence;
use beamlog_router::api::request::{BatchSelector, MessageSelector, Request};

use super::super::answer::{Form, Kind};
use super::super::errors::ErrorBody;
use super::super::json::{Fields, Malformed};
use super::super::version;
use super::bodies::is_empty_object;
use super::{Call, Wanted, status};

/// The members that message and direct gets share.
#[derive(Debug, Default)]
struct Get {
    sequence: u64,
    last_on: String,
    next_on: String,
    start: Option<beamlog_router::Timestamp>,
    batch: i64,
    max_bytes: i64,
    last_of_each: Vec<String>,
    up_to: u64,
    up_to_time: Option<beamlog_router::Timestamp>,
    no_headers: bool,
}

impl Get {
    fn read(fields: &mut Fields) -> Result<Self, Malformed> {
        Ok(Self {
            sequence: fields.unsigned("seq")?,
            last_on: fields.string("last_by_subj")?,
            next_on: fields.string("next_by_subj")?,
            start: fields.time("start_time")?,
            batch: fields.signed("batch")?,
            max_bytes: fields.signed("max_bytes")?,
            last_of_each: fields.strings("multi_last")?,
            up_to: fields.unsigned("up_to_seq")?,
            up_to_time: fields.time("up_to_time")?,
            no_headers: fields.boolean("no_hdr")?,
        })
    }

    /// Sequence, last-by-subject and start time exclude each other; next-by-subject goes with the first
    /// and the third.
    fn contradicts(&self) -> bool {
        let (by_sequence, by_last, by_time) =
            (self.sequence > 0, !self.last_on.is_empty(), self.start.is_some());
        let starts = [by_sequence, by_last, by_time].iter().filter(|given| **given).count();
        starts > 1 || (by_last && !self.next_on.is_empty())
    }

    fn is_empty(&self) -> bool {
        self.sequence == 0 && self.last_on.is_empty() && self.next_on.is_empty() && self.start.is_none()
    }

    /// The one message that is meant.
    fn selector(self) -> MessageSelector {
        if let Some(time) = self.start {
            MessageSelector::NextAfter { filter: self.next_on, time }
        } else if !self.next_on.is_empty() {
            MessageSelector::NextOn { filter: self.next_on, from: Sequence(self.sequence.max(1)) }
        } else if self.sequence > 0 {
            MessageSelector::At(Sequence(self.sequence))
        } else {
            MessageSelector::LastOn(self.last_on)
        }
    }
}

pub(super) fn get_message(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    if payload.is_empty() || is_empty_object(payload) {
        return Err(ErrorBody::bad_request());
    }
    let mut fields = Fields::parse(payload)?;
    let get = Get::read(&mut fields)?;
    fields.finish()?;
    if get.batch > 0 || get.max_bytes > 0 || get.contradicts() || get.is_empty() {
        return Err(ErrorBody::bad_request());
    }
    let no_headers = get.no_headers;
    let request = Request::GetMessage { stream: stream.to_owned(), selector: get.selector() };
    Ok(Wanted { request, no_headers })
}

pub(super) fn delete_message(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    if payload.is_empty() || is_empty_object(payload) {
        return Err(ErrorBody::bad_request());
    }
    let mut fields = Fields::parse(payload)?;
    let (sequence, no_erase) = (fields.unsigned("seq")?, fields.boolean("no_erase")?);
    fields.finish()?;
    let sequence = Sequence(sequence);
    Ok(Request::DeleteMessage { stream: stream.to_owned(), sequence, erase: !no_erase }.into())
}

/// Direct get: answered by raw messages and statuses, and lenient with what it does not know.
pub(super) fn direct(stream: &str, subject: &[&str], headers: &[u8], payload: &[u8]) -> Call {
    if version::level_is_missing(headers) {
        return status(412, "Required Api Level");
    }
    let by_subject = !subject.is_empty();
    if payload.is_empty() && !by_subject {
        return status(408, "Empty Request");
    }
    let Ok(get) = Fields::parse(payload).and_then(|mut fields| Get::read(&mut fields)) else {
        return status(408, "Malformed Request");
    };
    if by_subject {
        let key = subject.join(".");
        let other = !get.is_empty() || !get.last_of_each.is_empty() || get.batch != 0;
        if key.is_empty() || other || get.up_to != 0 || get.up_to_time.is_some() {
            return status(408, "Bad Request");
        }
        let form = Form { kind: Kind::Direct, no_headers: get.no_headers, of_each: false };
        let selector = MessageSelector::LastOn(key);
        return Call::Engine {
            request: Box::new(Request::DirectGet { stream: stream.to_owned(), selector }),
            form,
        };
    }
    if get.is_empty() && get.last_of_each.is_empty() {
        return status(408, "Empty Request");
    }
    let multiple = !get.last_of_each.is_empty();
    if get.contradicts()
        || (!get.last_on.is_empty() && (get.batch > 0 || multiple))
        || (!get.next_on.is_empty() && multiple)
        || (get.up_to > 0 && get.up_to_time.is_some())
        // A lower bound for the last of each subject is not something the router can say.
        || (multiple && (get.sequence > 0 || get.start.is_some()))
    {
        return status(408, "Bad Request");
    }
    let form = Form { kind: Kind::Direct, no_headers: get.no_headers, of_each: multiple };
    let batch = u32::try_from(get.batch).unwrap_or(0);
    let max_bytes = u64::try_from(get.max_bytes).ok().filter(|&bytes| bytes > 0);
    let stream = stream.to_owned();
    let request = if multiple {
        let up_to = if get.up_to > 0 { Bound::Included(Sequence(get.up_to)) } else { Bound::Unbounded };
        let selector =
            BatchSelector::LastOfEach { filters: get.last_of_each, up_to, up_to_time: get.up_to_time };
        // 0 is "all there are", which the router bounds.
        Request::DirectGetBatch { stream, selector, batch, max_bytes }
    } else if batch > 0 {
        let from = Sequence(get.sequence.max(1));
        let selector = BatchSelector::Next { filter: get.next_on, from, from_time: get.start };
        Request::DirectGetBatch { stream, selector, batch, max_bytes }
    } else {
        Request::DirectGet { stream, selector: get.selector() }
    };
    Call::Engine { request: Box::new(request), form }
}
