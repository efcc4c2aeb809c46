//! Streams, imported.

use super::rules::ImportStream;
use super::runtime::RuleContext;

pub(crate) async fn run(context: RuleContext, rule: ImportStream) {
    context.meter.degraded(format!("stream {} is not transferred yet", rule.stream));
    context.stopping().await;
}
