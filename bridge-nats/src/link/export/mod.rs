//! Streams, exported.

use super::rules::ExportStream;
use super::runtime::RuleContext;

pub(crate) async fn run(context: RuleContext, rule: ExportStream) {
    context.meter.degraded(format!("stream {} is not transferred yet", rule.stream));
    context.stopping().await;
}
