//! Guests: clients that come by another way than the listener, and were proved by it to be who they are. They
//! speak the same protocol; what they may do can be narrowed to what is named for them.

use std::io;
use std::net::SocketAddr;

use beamlog_router::subject;
use thiserror::Error;
use tokio::net::UnixStream;

use super::Server;
use super::serve::{self, Way};

/// Filters of one grant.
const FILTERS_MAX: usize = 4096;
const INBOX: &[u8] = b"_INBOX.";

/// Who a guest is.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Shown as its user.
    pub name: String,
    /// Where it is, for people.
    pub address: SocketAddr,
    /// What it may do; `None` is what every client may.
    pub grant: Option<Grant>,
}

/// What a guest may publish and subscribe to: exactly what links need to carry what is named.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Grant {
    publish: Vec<Vec<u8>>,
    subscribe: Vec<Vec<u8>>,
}

/// A grant that cannot be made.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum GrantError {
    #[error("{0:?} is not a legal name of a stream or bucket: give names without wildcards and dots")]
    Name(String),
    #[error("{0:?} is not a legal subject filter")]
    Filter(String),
    #[error(
        "subjects that begin with $ or _INBOX are the system's: name the stream or bucket instead of {0:?}"
    )]
    System(String),
    #[error("too much is named for one edge: use wildcards")]
    TooMuch,
}

impl Grant {
    /// A grant for links that carry these streams, buckets and subjects (of core messages, of requests, and those that
    /// exported streams land on).
    ///
    /// # Errors
    /// A name or a filter is not legal.
    pub fn new(streams: &[String], buckets: &[String], subjects: &[String]) -> Result<Self, GrantError> {
        let mut grant = Self::default();
        // Answers to requests that the guest took over.
        grant.publish.push(b"_INBOX.>".to_vec());
        for general in ["$JS.API.INFO", "$JS.API.STREAM.NAMES", "$SYS.REQ.USER.INFO"] {
            grant.publish.push(general.into());
        }
        for stream in streams {
            grant.stream(named(stream)?);
        }
        for bucket in buckets {
            let stream = format!("KV_{}", named(bucket)?);
            grant.stream(&stream);
            // A bucket that is missing is made.
            grant.publish.push(format!("$JS.API.STREAM.CREATE.{stream}").into());
            grant.publish.push(format!("$KV.{bucket}.>").into());
        }
        for filter in subjects {
            if subject::check_filter(filter.as_bytes()).is_err() {
                return Err(GrantError::Filter(filter.clone()));
            }
            let first = filter.split('.').next().unwrap_or_default();
            if first.starts_with('$') || first == "_INBOX" {
                return Err(GrantError::System(filter.clone()));
            }
            grant.publish.push(filter.clone().into());
            grant.subscribe.push(filter.clone().into());
        }
        if grant.publish.len() + grant.subscribe.len() > FILTERS_MAX {
            return Err(GrantError::TooMuch);
        }
        Ok(grant)
    }

    /// Reading a stream by consumers and by sequence, and acknowledging what was read.
    fn stream(&mut self, stream: &str) {
        for (before, after) in [
            ("$JS.API.STREAM.INFO", ""),
            ("$JS.API.STREAM.MSG.GET", ""),
            ("$JS.API.DIRECT.GET", ""),
            ("$JS.API.DIRECT.GET", ".>"),
            ("$JS.API.CONSUMER.*", ""),
            ("$JS.API.CONSUMER.*", ".>"),
            ("$JS.API.CONSUMER.DURABLE.CREATE", ".>"),
            ("$JS.API.CONSUMER.MSG.NEXT", ".>"),
            ("$JS.ACK", ".>"),
            // With a domain and an account, as newer clients write acks.
            ("$JS.ACK.*.*", ".>"),
        ] {
            self.publish.push(format!("{before}.{stream}{after}").into());
        }
    }

    /// Whether a message may be published there. Wildcards of `$`-subjects do not reach the system: `>` is the user's.
    pub(crate) fn allows_publish(&self, subject: &[u8]) -> bool {
        self.publish.iter().any(|filter| {
            let of_system = |raw: &[u8]| raw.first() == Some(&b'$') || raw.starts_with(INBOX);
            of_system(filter) == of_system(subject) && subject::matches(filter, subject)
        })
    }

    /// Whether a filter may be subscribed to. An inbox only by its name, which nobody guesses.
    pub(crate) fn allows_subscribe(&self, filter: &[u8]) -> bool {
        if let Some(inbox) = filter.strip_prefix(INBOX) {
            let name = inbox.split(|byte| *byte == b'.').next().unwrap_or_default();
            return name.len() >= 16 && subject::is_literal(name);
        }
        filter.first() != Some(&b'$') && self.subscribe.iter().any(|named| subject::is_subset(filter, named))
    }
}

fn named(name: &str) -> Result<&str, GrantError> {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    if name.is_empty() || name.len() > 255 || name.contains(is_bad) {
        return Err(GrantError::Name(name.to_owned()));
    }
    Ok(name)
}

impl Server {
    /// Serves a guest over one end of a pair of sockets; the other end is handed back. The guest is served until
    /// either end is closed. Within a runtime.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn receive(&self, guest: Guest) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        drop(tokio::spawn(serve::serve(self.context(), Way::Guest(ours, guest))));
        Ok(theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Grant::new(&texts(&["ORDERS"]), &texts(&["state"]), &texts(&["telemetry.site7.>", "rpc.*"])).unwrap()
    }

    #[test]
    fn what_is_named_may_be_done_and_nothing_else() {
        let grant = grant();
        for allowed in [
            "telemetry.site7.a.b",
            "rpc.x",
            "_INBOX.abc.1",
            "$JS.API.STREAM.INFO.ORDERS",
            "$JS.API.CONSUMER.INFO.ORDERS.link",
            "$JS.API.CONSUMER.CREATE.ORDERS.link.a.b",
            "$JS.API.CONSUMER.DURABLE.CREATE.ORDERS.link",
            "$JS.API.CONSUMER.MSG.NEXT.ORDERS.link",
            "$JS.ACK.ORDERS.link.1.2.3.4.5",
            "$KV.state.key",
            "$JS.API.DIRECT.GET.KV_state.$KV.state.key",
        ] {
            assert!(grant.allows_publish(allowed.as_bytes()), "{allowed}");
        }
        for refused in [
            "telemetry.site8.a",
            "rpc.x.y",
            "$JS.API.STREAM.DELETE.ORDERS",
            "$JS.API.STREAM.PURGE.ORDERS",
            "$JS.API.STREAM.INFO.OTHER",
            "$JS.API.STREAM.CREATE.ORDERS",
            "$JS.API.CONSUMER.MSG.NEXT.OTHER.link",
            "$JS.API.CONSUMER.CREATE.OTHER.ORDERS",
            "$JS.ACK.OTHER.link.1.2.3.4.5",
            "$KV.other.key",
            "$SYS.REQ.SERVER.PING",
        ] {
            assert!(!grant.allows_publish(refused.as_bytes()), "{refused}");
        }
        for allowed in ["telemetry.site7.>", "telemetry.site7.a.*", "rpc.x", "_INBOX.abcdefghijklmnop.>"] {
            assert!(grant.allows_subscribe(allowed.as_bytes()), "{allowed}");
        }
        for refused in
            [">", "telemetry.>", "rpc.>", "_INBOX.>", "_INBOX.*.>", "_INBOX.abc", "$JS.>", "*.>", "orders.a"]
        {
            assert!(!grant.allows_subscribe(refused.as_bytes()), "{refused}");
        }
    }

    #[test]
    fn a_wildcard_does_not_reach_the_system() {
        let all = Grant::new(&[], &[], &[">".to_owned()]).unwrap();
        assert!(all.allows_publish(b"a.b") && all.allows_subscribe(b">"));
        assert!(!all.allows_publish(b"$JS.API.STREAM.DELETE.X") && !all.allows_subscribe(b"$SYS.>"));
        assert!(!all.allows_subscribe(b"_INBOX.>"));
    }

    #[test]
    fn what_cannot_be_granted_is_refused() {
        let one = |text: &str| vec![text.to_owned()];
        assert_eq!(Grant::new(&one("A.B"), &[], &[]), Err(GrantError::Name("A.B".into())));
        assert_eq!(Grant::new(&[], &one("*"), &[]), Err(GrantError::Name("*".into())));
        assert_eq!(Grant::new(&[], &[], &one("a..b")), Err(GrantError::Filter("a..b".into())));
        assert_eq!(Grant::new(&[], &[], &one("$KV.x.>")), Err(GrantError::System("$KV.x.>".into())));
    }
}
