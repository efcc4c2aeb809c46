//! Buckets, both ways.

use super::rules::BucketRule;
use super::runtime::RuleContext;

pub(crate) async fn run_import(context: RuleContext, rule: BucketRule) {
    context.meter.degraded(format!("bucket {} is not transferred yet", rule.bucket));
    context.stopping().await;
}

pub(crate) async fn run_export(context: RuleContext, rule: BucketRule) {
    context.meter.degraded(format!("bucket {} is not transferred yet", rule.bucket));
    context.stopping().await;
}
