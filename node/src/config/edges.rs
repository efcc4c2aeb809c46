//! `[[edge]]`: the edges that a hub lets in, and what each may carry.

use std::collections::BTreeMap;

use beamlog_nats::Grant;
use serde::Deserialize;

use crate::config::error::ConfigError;

/// Edges of one hub.
const EDGES_MAX: usize = 4096;

/// One edge, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EdgeTable {
    name: String,
    #[serde(default)]
    streams: Vec<String>,
    #[serde(default)]
    buckets: Vec<String>,
    #[serde(default)]
    subjects: Vec<String>,
    #[serde(default)]
    unrestricted: bool,
}

/// What each edge may do.
pub(super) fn grants(tables: &[EdgeTable], errors: &mut Vec<ConfigError>) -> BTreeMap<String, Option<Grant>> {
    let mut grants = BTreeMap::new();
    let mut refuse = |edge: &str, problem: String| {
        errors.push(ConfigError::Edge { edge: edge.to_owned(), problem });
    };
    for table in tables {
        let names_something =
            !table.streams.is_empty() || !table.buckets.is_empty() || !table.subjects.is_empty();
        let grant = match (table.unrestricted, names_something) {
            (true, false) => None,
            (true, true) => {
                refuse(&table.name, "unrestricted excludes streams, buckets and subjects".to_owned());
                continue;
            }
            (false, false) => {
                let problem =
                    "names nothing it may carry: give streams, buckets or subjects, or unrestricted = true";
                refuse(&table.name, problem.to_owned());
                continue;
            }
            (false, true) => match Grant::new(&table.streams, &table.buckets, &table.subjects) {
                Ok(grant) => Some(grant),
                Err(error) => {
                    refuse(&table.name, error.to_string());
                    continue;
                }
            },
        };
        if table.name.is_empty() {
            refuse(
                &table.name,
                "the name is missing; it is the one in the edge's certificate or token".to_owned(),
            );
        } else if grants.insert(table.name.clone(), grant).is_some() {
            refuse(&table.name, "another edge has this name".to_owned());
        }
    }
    if grants.len() > EDGES_MAX {
        refuse("", format!("edges are at most {EDGES_MAX}"));
    }
    grants
}
