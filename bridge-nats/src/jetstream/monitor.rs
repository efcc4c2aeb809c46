//! Streams and consumers as `/jsz` shows them: the API's own spelling, with the name in front.

use beamlog_router::Timestamp;
use beamlog_router::api::request::StreamInfo;
use beamlog_router::consumer::ConsumerInfo;

use super::cluster_view::{ClusterView, Whereabouts};
use super::json::Object;
use super::{consumer_config, stream_config};

/// One element of `stream_detail`, without its consumers.
#[must_use]
pub fn stream_detail(info: &StreamInfo, leader: &str, view: Option<&ClusterView>) -> String {
    let mut out = String::new();
    Object::write(&mut out, |object| {
        object.text("name", &info.config.name);
        stream_config::write_info(info, false, whereabouts(leader, view), true, object);
    });
    out
}

/// One element of `consumer_detail`.
#[must_use]
pub fn consumer_detail(info: &ConsumerInfo, now: Timestamp, view: Option<&ClusterView>) -> String {
    let mut out = String::new();
    let whereabouts = whereabouts("", view);
    Object::write(&mut out, |object| consumer_config::write_info(info, now, false, whereabouts, object));
    out
}

fn whereabouts<'a>(name: &'a str, view: Option<&'a ClusterView>) -> Whereabouts<'a> {
    view.map_or(Whereabouts::Alone(name), Whereabouts::Cluster)
}
