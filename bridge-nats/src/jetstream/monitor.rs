//! Streams and consumers as `/jsz` shows them: the API's own spelling, with the name in front.

use beamlog_router::Timestamp;
use beamlog_router::api::request::StreamInfo;
use beamlog_router::consumer::ConsumerInfo;

use super::json::Object;
use super::{consumer_config, stream_config};

/// One element of `stream_detail`, without its consumers.
#[must_use]
pub fn stream_detail(info: &StreamInfo, leader: &str) -> String {
    let mut out = String::new();
    Object::write(&mut out, |object| {
        object.text("name", &info.config.name);
        stream_config::write_info(info, false, Some(leader), object);
    });
    out
}

/// One element of `consumer_detail`.
#[must_use]
pub fn consumer_detail(info: &ConsumerInfo, now: Timestamp) -> String {
    let mut out = String::new();
    Object::write(&mut out, |object| consumer_config::write_info(info, now, false, object));
    out
}
