//! The integration tests of the node, and the tests that hold the repository's own rules.
#![expect(clippy::unwrap_used, reason = "tests")]

mod admin;
mod cert;
mod cluster;
mod commands;
mod configuration;
#[path = "../dev_cluster/mod.rs"]
mod dev_cluster;
mod edges;
mod held;
mod hub;
mod hub_path;
mod hub_token;
mod link_configuration;
mod link_procedures;
mod links;
mod moves;
mod recording_rules;
mod references;
mod regressed;
mod replaced;
mod repository;
mod running;
mod serve;
mod shards;
mod site;
mod tidy;
mod witness;
