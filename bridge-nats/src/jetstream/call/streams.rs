//! What is asked of streams.

use beamlog_router::Sequence;
use beamlog_router::api::request::{Purge, Request};

use super::super::errors::ErrorBody;
use super::super::json::Malformed;
use super::super::stream_config;
use super::Wanted;
use super::bodies::{object_or_nothing, offset};

pub(super) fn create_stream(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let config = stream_config::read(payload)?;
    check_stream_name(stream, &config.name)?;
    if config.sealed {
        return Err(ErrorBody::stream_config("stream configuration for create can not be sealed"));
    }
    if config.mirror_direct {
        return Err(ErrorBody::stream_config("stream has no mirror but does have mirror direct"));
    }
    Ok(Request::CreateStream(Box::new(config)).into())
}

pub(super) fn update_stream(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let config = stream_config::read(payload)?;
    check_stream_name(stream, &config.name)?;
    Ok(Request::UpdateStream(Box::new(config)).into())
}

fn check_stream_name(in_subject: &str, in_config: &str) -> Result<(), ErrorBody> {
    if in_subject != in_config {
        return Err(ErrorBody::new(400, 10056, "stream name in subject does not match request"));
    }
    if in_subject.contains(['/', '\\']) {
        return Err(ErrorBody::path_separators_in_stream());
    }
    Ok(())
}

pub(super) fn stream_info(stream: &str, payload: &[u8]) -> Result<Wanted, Malformed> {
    let mut request = (None, 0, false);
    if let Some(mut fields) = object_or_nothing(payload)? {
        let filter = fields.string("subjects_filter")?;
        let offset = offset(&mut fields)?;
        request = ((!filter.is_empty()).then_some(filter), offset, fields.boolean("deleted_details")?);
        fields.finish()?;
    }
    let (subjects_filter, offset, deleted_details) = request;
    Ok(Request::StreamInfo { stream: stream.to_owned(), subjects_filter, offset, deleted_details }.into())
}

pub(super) fn purge(stream: &str, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let mut purge = Purge::default();
    if let Some(mut fields) = object_or_nothing(payload)? {
        let (before, keep) = (fields.unsigned("seq")?, fields.unsigned("keep")?);
        purge.filter = fields.string("filter")?;
        fields.finish()?;
        if before > 0 && keep > 0 {
            return Err(ErrorBody::bad_request());
        }
        purge.before = (before > 0).then_some(Sequence(before));
        purge.keep = (keep > 0).then_some(keep);
    }
    Ok(Request::PurgeStream { stream: stream.to_owned(), purge }.into())
}
