//! Where an unstored message has been, so that it lands once on each side: a header with the clusters and
//! nodes it passed. A node refuses what it has sent before; nothing is sent to a cluster it came from.
//!
//! Both are named by short hashes: a peer learns nothing by them, and two accounts of one cluster are two.

use std::time::Duration;

use async_nats::Client;
use beamlog_router::headers;

/// The header. Its value is a list of hexadecimal names, separated by commas.
pub(crate) const PATH: &str = "Beamlog-Path";
/// Sides that a message passes at most.
const HOPS_MAX: usize = 16;
/// How long the server may take to say which account this is.
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// A node or a cluster on the path. Fixed in size.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Waypoint(u64);

impl Waypoint {
    pub(crate) fn of(kind: &str, name: &str) -> Self {
        // FNV-1a: all versions of this program must agree on it.
        let bytes = kind.bytes().chain([0]).chain(name.bytes());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// The cluster (or the server that stands alone) that a client is connected to, and its account there.
    pub(crate) async fn of_cluster(client: &Client) -> Self {
        let info = client.server_info();
        let cluster = info.cluster.filter(|name| !name.is_empty()).unwrap_or(info.server_name);
        let asked = client.request("$SYS.REQ.USER.INFO", "".into());
        // A server that does not say it, or may not be asked, has one account for us.
        let account = match tokio::time::timeout(ACCOUNT_TIMEOUT, asked).await {
            Ok(Ok(answer)) => serde_json::from_slice::<serde_json::Value>(&answer.payload)
                .ok()
                .and_then(|info| info["data"]["account"].as_str().map(str::to_owned))
                .unwrap_or_default(),
            Ok(Err(_)) | Err(_) => String::new(),
        };
        Self::of("cluster", &format!("{cluster}\n{account}"))
    }

    pub(super) fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Whether the message has been there. Whatever cannot be read was nowhere.
pub(crate) fn has_been(block: &[u8], place: Waypoint) -> bool {
    value(block).is_some_and(|path| is_in(path, place))
}

/// Whether a path has the place on it.
pub(crate) fn is_in(path: &[u8], place: Waypoint) -> bool {
    let name = place.text();
    path.split(|byte| *byte == b',').any(|hop| hop.trim_ascii() == name.as_bytes())
}

fn value(block: &[u8]) -> Option<&[u8]> {
    if block.is_empty() { None } else { headers::find(block, PATH.as_bytes()) }
}

/// The path with one place more; `None` when it is long enough to be a loop that nobody saw.
pub(crate) fn longer(path: Option<&[u8]>, place: Waypoint) -> Option<String> {
    let path = path.unwrap_or_default();
    let hops = path.split(|byte| *byte == b',').filter(|hop| !hop.is_empty()).count();
    if hops >= HOPS_MAX || path.len() > 17 * HOPS_MAX {
        return None;
    }
    let mut text = String::from_utf8_lossy(path).into_owned();
    if !text.is_empty() {
        text.push(',');
    }
    text.push_str(&place.text());
    Some(text)
}

/// As [`longer`], of the path in a header block.
pub(crate) fn longer_of(block: &[u8], place: Waypoint) -> Option<String> {
    longer(value(block), place)
}

#[cfg(test)]
mod tests {
    use beamlog_router::headers::Builder;

    use super::*;

    #[test]
    fn a_path_remembers_where_it_was() {
        let (here, there) = (Waypoint::of("node", "a"), Waypoint::of("cluster", "a"));
        assert_ne!(here, there);
        let path = longer(None, here).expect("short");
        let block = Builder::new().header(PATH, &path).finish();
        assert!(has_been(&block, here) && !has_been(&block, there));
        let block = Builder::new().header(PATH, longer_of(&block, there).expect("short")).finish();
        assert!(has_been(&block, here) && has_been(&block, there));
        assert!(!has_been(b"", here) && !has_been(b"NATS/1.0\r\nBeamlog-Path: ,,x\r\n\r\n", here));
    }

    #[test]
    fn a_path_ends() {
        let hops = |path: &str| path.split(',').count();
        let mut path = longer(None, Waypoint::of("node", "0")).expect("short");
        for hop in 1..HOPS_MAX {
            path = longer(Some(path.as_bytes()), Waypoint::of("node", &hop.to_string())).expect("short");
            assert_eq!(hops(&path), hop + 1, "each hop is remembered");
        }
        assert_eq!(longer(Some(path.as_bytes()), Waypoint::of("node", "last")), None);
        assert_eq!(longer(Some(&[b'x'; 4096]), Waypoint::of("node", "a")), None);
    }
}
