//! The recording rules that an operator loads name metrics that there are.

use std::collections::BTreeSet;

use crate::repository::root;

#[test]
fn every_metric_that_a_recording_rule_reads_is_exported() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let reference = read("docs/reference/metrics.md");
    let rules = read("docs/operations/beamline-rules.yml");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let used: BTreeSet<&str> =
        rules.split(|c| !is_name(c)).filter(|word| word.starts_with("beamlog_")).collect();
    assert!(used.len() > 20, "{used:?}");
    let missing: Vec<&&str> = used.iter().filter(|name| !reference.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "no such metric: {missing:?}");
    let recorded: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    assert!(recorded.iter().all(|name| name.starts_with("router_")), "{recorded:?}");
}
