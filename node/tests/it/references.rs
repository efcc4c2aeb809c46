//! The generated references are what the code says. `BEAMLOG_TEST_UPDATE=1 cargo test -p beamlog`
//! writes them anew.

use std::{env, fs};

use crate::repository::root;

fn check(path: &str, made: &str) {
    let path = root().join(path);
    if env::var_os("BEAMLOG_TEST_UPDATE").is_some() {
        fs::write(&path, made).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == made,
        "{} is not what the code says; BEAMLOG_TEST_UPDATE=1 cargo test -p beamlog writes it anew",
        path.display()
    );
}

#[test]
fn the_reference_of_the_configuration_is_true() {
    check("docs/reference/config.md", &beamlog::config::reference::markdown());
}

#[test]
fn the_reference_of_the_commands_is_true() {
    check("docs/reference/cli.md", &beamlog::cli::reference::markdown());
}

#[test]
fn the_reference_of_the_metrics_is_true() {
    check("docs/reference/metrics.md", &beamlog::admin::metrics::markdown());
}
