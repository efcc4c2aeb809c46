//! What we say we are, and the metadata by which clients and tools see it.

use std::collections::BTreeMap;

use super::json::Object;

// Level 1 is that of nats-server 2.11 (message TTL, delete markers, pause). Levels 2 and above mean
// counters, schedules and batches, which we refuse.
pub(super) use crate::server::{API_LEVEL, VERSION as SERVER_VERSION};

const REQUIRED_LEVEL: &str = "_nats.req.level";
const VERSION: &str = "_nats.ver";
const LEVEL: &str = "_nats.level";

/// A client's metadata without the members that servers put in.
pub(super) fn without_ours(members: Vec<(String, String)>) -> BTreeMap<String, String> {
    members.into_iter().filter(|(key, _)| ![REQUIRED_LEVEL, VERSION, LEVEL].contains(&key.as_str())).collect()
}

/// Writes metadata with the level that the configuration needs and, with `server`, who answers.
pub(super) fn write_metadata(
    metadata: &BTreeMap<String, String>,
    level: u8,
    server: bool,
    object: &mut Object<'_>,
) {
    object.object("metadata", |inner| {
        if server {
            inner.text(LEVEL, &API_LEVEL.to_string());
        }
        inner.text(REQUIRED_LEVEL, &level.to_string());
        if server {
            inner.text(VERSION, SERVER_VERSION);
        }
        for (key, value) in metadata {
            inner.text(key, value);
        }
    });
}

/// Whether a request asks, by header, for a level we do not have.
pub(super) fn level_is_missing(headers: &[u8]) -> bool {
    let Some(level) = beamlog_router::headers::find(headers, b"Nats-Required-Api-Level") else {
        return false;
    };
    // An empty value asks for nothing.
    !level.is_empty()
        && std::str::from_utf8(level)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
            .is_none_or(|wanted| wanted > i64::from(API_LEVEL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_levels_we_have_are_granted() {
        let asks = |value: &str| {
            level_is_missing(format!("NATS/1.0\r\nNats-Required-Api-Level: {value}\r\n\r\n").as_bytes())
        };
        assert!(!level_is_missing(b""));
        assert!(!level_is_missing(b"NATS/1.0\r\nOther: 9\r\n\r\n"));
        assert!(!asks("0") && !asks(&API_LEVEL.to_string()) && !asks(""));
        assert!(asks(&(API_LEVEL + 1).to_string()) && asks("x") && asks("99"));
    }
}
