//! Header blocks here and header maps of the client library there.

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use beamlog_router::headers::{self, Builder};

/// Headers that tell the receiving side what to do with a message. What an unstored message from elsewhere
/// says about storing is not for this side.
const COMMANDS: [&str; 6] =
    ["Nats-Expected-", "Nats-Rollup", "Nats-TTL", "Nats-Schedule", "Nats-Batch-", "Beamlog-"];

fn is_command(name: &str) -> bool {
    COMMANDS
        .iter()
        .any(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

/// A block as the other side takes it, without commands and with what `more` adds. Lines that the other
/// side would refuse are left out.
pub(crate) fn outward(block: &[u8], more: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers::iter(block) {
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else { continue };
        if is_command(name) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    }
    for (name, value) in more {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.insert(name, value);
        }
    }
    map
}

/// A map as a block, without commands and with what `more` adds.
pub(crate) fn inward(map: Option<&HeaderMap>, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Builder::new();
    let mut is_empty = true;
    for (name, values) in map.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        if is_command(name) {
            continue;
        }
        for value in values {
            block = block.header(name, value.as_str());
            is_empty = false;
        }
    }
    for (name, value) in more {
        block = block.header(name, value);
        is_empty = false;
    }
    if is_empty { Vec::new() } else { block.finish() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_go_there_and_back_without_commands() {
        let block = Builder::new()
            .header("K", "v")
            .header("K", "w")
            .header("Nats-Msg-Id", "7")
            .header("Nats-Rollup", "all")
            .header("nats-expected-stream", "S")
            .header("Beamlog-Path", "x")
            .finish();
        let map = outward(&block, &[("Beamlog-Path", "y")]);
        let back = inward(Some(&map), &[("Extra", "e")]);
        let values: Vec<_> =
            headers::iter(&back).filter(|(name, _)| *name == b"K").map(|(_, value)| value).collect();
        assert_eq!(values, [b"v", b"w"]);
        assert_eq!(headers::find(&back, b"Nats-Msg-Id"), Some(&b"7"[..]));
        assert_eq!(headers::find(&back, b"Nats-Rollup"), None);
        assert_eq!(headers::find(&back, b"nats-expected-stream"), None);
        assert_eq!(headers::find(&back, b"Extra"), Some(&b"e"[..]));
        assert_eq!(map.get("Beamlog-Path").map(HeaderValue::as_str), Some("y"));
    }

    #[test]
    fn no_headers_are_no_block() {
        assert_eq!(inward(None, &[]), b"");
        assert!(outward(b"", &[]).is_empty());
    }
}
