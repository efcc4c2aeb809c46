//! Core subjects and requests, both ways.

use super::rules::{RequestRule, SubjectRule};
use super::runtime::RuleContext;

pub(crate) async fn run_import(context: RuleContext, rule: SubjectRule) {
    context.meter.degraded(format!("subject {} is not transferred yet", rule.subject));
    context.stopping().await;
}

pub(crate) async fn run_export(context: RuleContext, rule: SubjectRule) {
    context.meter.degraded(format!("subject {} is not transferred yet", rule.subject));
    context.stopping().await;
}

pub(crate) async fn run_requests(context: RuleContext, rule: RequestRule) {
    context.meter.degraded(format!("requests to {} are not carried yet", rule.subject));
    context.stopping().await;
}
