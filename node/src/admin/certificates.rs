//! The certificates in use, for `/healthz` and `/metrics`: whose they are, and when the first of what each needs ends.

use std::time::SystemTime;

use beamlog_net::certificates::{CertificateStatus, Severity};
use serde_json::{Value, json};

use crate::admin::monitor::{Monitor, shown};

/// One folder of certificates in use.
#[derive(Debug)]
pub(super) struct InUse {
    /// `cluster`, `edges`, or the folder that a link names.
    what: String,
    status: CertificateStatus,
}

impl Monitor {
    pub(super) async fn certificates(&self) -> Vec<InUse> {
        let cluster = self.cluster.iter().map(|member| ("cluster".to_owned(), member.certificates.status()));
        let hub = self.hub.iter().map(|hub| ("edges".to_owned(), hub.certificates()));
        let of_links = self.links.certificates().await;
        let links = of_links.into_iter().map(|(folder, status)| (folder.display().to_string(), status));
        cluster.chain(hub).chain(links).map(|(what, status)| InUse { what, status }).collect()
    }
}

/// Seconds until the first one ends; below zero afterwards, infinite without any.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows floats only")]
pub(super) fn seconds_left(all: &[InUse], now: SystemTime) -> f64 {
    let left = |one: &InUse| match one.status.ends().duration_since(now) {
        Ok(left) => left.as_secs() as f64,
        Err(over) => -(over.duration().as_secs() as f64),
    };
    all.iter().map(left).fold(f64::INFINITY, f64::min)
}

/// What somebody should look after, a sentence each.
pub(super) fn problems(all: &[InUse], now: SystemTime) -> Vec<String> {
    let mut problems = Vec::new();
    for InUse { what, status } in all {
        let name = &status.identity.name;
        let ends = shown(status.ends());
        match status.severity(now) {
            Severity::Fine => {}
            Severity::Soon | Severity::Near | Severity::Imminent => {
                problems.push(format!("the certificate of {name} for {what} ends at {ends}"));
            }
            Severity::Expired => {
                problems.push(format!("the certificate of {name} for {what} ended at {ends}"));
            }
        }
        if let Some(error) = &status.reload_error {
            problems
                .push(format!("the certificate of {name} for {what} as it lies there is not used: {error}"));
        }
    }
    problems
}

pub(super) fn details(all: &[InUse]) -> Value {
    let one = |InUse { what, status }: &InUse| {
        json!({
            "for": what,
            "name": status.identity.name,
            "ends": shown(status.ends()),
            "reload_error": status.reload_error,
        })
    };
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use beamlog_net::certificates::{Identity, OwnStatus};
    use beamlog_net::peer::Role;

    use super::*;

    fn ending(what: &str, at: u64) -> InUse {
        let status = CertificateStatus {
            identity: Identity::new("c1", Role::Node, "n1").unwrap(),
            own: Some(OwnStatus {
                serial: "1".to_owned(),
                not_before: SystemTime::UNIX_EPOCH,
                not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            }),
            roots: Vec::new(),
            revoked: 0,
            generation: 1,
            reload_error: None,
        };
        InUse { what: what.to_owned(), status }
    }

    #[test]
    fn the_first_one_that_ends_is_told() {
        const DAY: u64 = 86_400;
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100 * DAY);
        let all = [ending("cluster", 200 * DAY), ending("edges", 120 * DAY), ending("old", 99 * DAY)];
        assert!((seconds_left(&all[..2], now) - 20.0 * 86_400.0).abs() < 1.0);
        assert!((seconds_left(&all, now) + 86_400.0).abs() < 1.0);
        assert!(seconds_left(&[], now).is_infinite());
        let said = problems(&all, now);
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("n1 for edges ends at 1970-05-01"), "{said:?}");
        assert!(said[1].contains("old ended at"), "{said:?}");
    }
}
