//! Bodies that may be missing, and what several requests have in them.

use super::super::errors::ErrorBody;
use super::super::json::{Fields, Malformed};

/// The body of list requests: a filter and where to begin. What is no object is no body.
pub(super) fn list(payload: &[u8]) -> Result<(Option<String>, usize), ErrorBody> {
    let Some(mut fields) = object_or_nothing(payload)? else { return Ok((None, 0)) };
    let subject = fields.string("subject")?;
    let offset = offset(&mut fields)?;
    fields.finish()?;
    Ok(((!subject.is_empty()).then_some(subject), offset))
}

pub(super) fn offset(fields: &mut Fields) -> Result<usize, Malformed> {
    Ok(usize::try_from(fields.signed("offset")?).unwrap_or(0))
}

/// Some requests take a body that is an object (or an array, which is an error), and overlook others.
pub(super) fn object_or_nothing(payload: &[u8]) -> Result<Option<Fields>, Malformed> {
    match payload.trim_ascii_start().first() {
        Some(b'{' | b'[') => Fields::parse(payload).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// For requests that want no body: nothing, or an object without members.
pub(super) fn empty(payload: &[u8]) -> Result<(), ErrorBody> {
    let is_empty = payload.is_empty() || is_empty_object(payload);
    if is_empty { Ok(()) } else { Err(ErrorBody::not_empty_request()) }
}

pub(super) fn is_empty_object(payload: &[u8]) -> bool {
    let starts = payload.trim_ascii_start().first() == Some(&b'{');
    starts && Fields::parse(payload).is_ok_and(|fields| fields.finish().is_ok())
}
