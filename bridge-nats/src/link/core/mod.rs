//! Core subjects and requests, both ways: unstored, at most once, while both sides are there.
//!
//! * `import`, `export`: messages. `requests`: requests and their answers.
//! * `outgoing`: a bounded buffer of what is meant for the other side. `incoming`: handing in what came.
//! * `path`: where a message has been, so that it lands once on each side.

mod export;
mod import;
mod incoming;
mod outgoing;
pub(crate) mod path;
mod requests;

use std::time::Duration;

pub(crate) use export::run_export;
pub(crate) use import::run_import;
pub(crate) use requests::run_requests;

use self::path::Waypoint;
use super::connection::Session;
use super::context::RuleContext;

/// How long a rule that the other side refused waits before it tries again: from the first to the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Messages that are handled before receivers are flushed and others get their turn.
const BATCH_MAX: usize = 256;

/// How the work over one session ended.
#[derive(Debug)]
enum Ended {
    /// The link stops; everything was finished.
    Stopping,
    /// The connection was lost.
    Lost,
    /// The other side does not let the rule work.
    Refused(String),
}

/// This node on a path.
fn this_node(context: &RuleContext) -> Waypoint {
    Waypoint::of("node", &context.router.node_id().to_string())
}

/// The queue group that the links of this node share there: of several that import one subject from one
/// cluster, one gets each message.
fn group_there(context: &RuleContext) -> String {
    format!("beamlog-{}", context.router.node_id())
}

/// The queue group that the links of this node share here, for one cluster.
fn group_here(kind: &str, cluster: Waypoint) -> String {
    format!("_LINK.{kind}.{}", cluster.text())
}

/// A round trip, after which errors about what was asked before have come; and who answered.
async fn cluster_of(session: &Session) -> Waypoint {
    Waypoint::of_cluster(&session.client).await
}

/// Whether an error of the server is about a subscription to this filter.
fn is_about_subscription(error: &str, filter: &str) -> bool {
    error.contains("Subscription") && error.contains(&format!("\"{filter}\""))
}

/// Whether an error of the server is about publishing to a subject that the filter matches.
fn is_about_publish(error: &str, filter: &str) -> bool {
    let subject = error.split_once("Publish to \"").and_then(|(_, rest)| rest.split('"').next());
    subject.is_some_and(|subject| beamlog_router::subject::matches(filter.as_bytes(), subject.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_server_find_their_rule() {
        let subscription = "nats: Permissions Violation for Subscription to \"a.>\" using queue \"q\"";
        assert!(is_about_subscription(subscription, "a.>") && !is_about_subscription(subscription, "a.b"));
        let publish = "nats: Permissions Violation for Publish to \"a.b\"";
        assert!(is_about_publish(publish, "a.*") && !is_about_publish(publish, "b.>"));
        assert!(!is_about_publish(subscription, "a.>") && !is_about_subscription(publish, "a.b"));
    }
}
