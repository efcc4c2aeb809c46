//! Streams and consumers as `/jsz` shows them: the API's own spelling, with the name in front.

use beamlog_router::Timestamp;
use beamlog_router::api::request::StreamInfo;
use beamlog_router::consumer::ConsumerInfo;

use super::cluster_view::{ClusterView, Whereabouts};
use super::json::Object;
use super::{consumer_config, stream_config};

/// One element of `stream_detail` of a node that stands alone, without its consumers.
#[must_use]
pub fn stream_detail(info: &StreamInfo, leader: &str) -> String {
    let mut out = String::new();
    Object::write(&mut out, |object| {
        object.text("name", &info.config.name);
        stream_config::write_info(info, false, Whereabouts::Alone(leader), true, object);
    });
    out
}

/// One element of a list of streams, as `STREAM.LIST` answers.
#[must_use]
pub fn stream_listed(info: &StreamInfo, view: &ClusterView) -> String {
    let mut out = String::new();
    stream_config::push_info(info, Whereabouts::Cluster(view), &mut out);
    out
}

/// One element of `consumer_detail` there.
#[must_use]
pub fn consumer_detail(info: &ConsumerInfo, now: Timestamp) -> String {
    let mut out = String::new();
    let alone = Whereabouts::Alone("");
    Object::write(&mut out, |object| consumer_config::write_info(info, now, false, alone, object));
    out
}
