//! Who may know whom: `node → {bridge-nats, net, tasks} → router → log`, nothing upwards, and no runtime,
//! no sockets and no TLS below the endpoint. Read from cargo's own resolution, not from a promise.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use crate::repository;

/// A package and what it is built from (dependencies of its tests are not counted).
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Our crates by height; an edge goes down. Those of the same height do not know each other.
const HEIGHTS: [(&str, u8); 7] = [
    ("beamlog", 3),
    ("beamlog-nats", 2),
    ("beamlog-net", 2),
    ("beamlog-tasks", 2),
    ("beamlog-cell", 2),
    ("beamlog-router", 1),
    ("beamlog-log", 0),
];
/// What stands beside the node and may know everything, and that nobody may know.
const BESIDE: [&str; 3] = ["beamlog-bench", "beamlog-fuzz", "beamlog-simulator"];
/// Crates that must not be compiled into the two cores.
const SHELL_ONLY: [&str; 12] = [
    "tokio",
    "mio",
    "socket2",
    "quinn",
    "rustls",
    "tokio-rustls",
    "async-nats",
    "hyper",
    "axum",
    "openraft",
    "async-std",
    "rand",
];
const CORES: [&str; 3] = ["beamlog-log", "beamlog-router", "beamlog-tasks"];

fn resolved() -> Graph {
    let output = Command::new(env!("CARGO"))
        // Of this platform only: crates of others were never fetched.
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host()])
        .current_dir(repository::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let mut graph = Graph::new();
    for node in metadata["resolve"]["nodes"].as_array().unwrap() {
        let is_built = |dependency: &&Value| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
        };
        let dependencies = node["deps"].as_array().unwrap().iter().filter(is_built);
        let names = dependencies.map(|dependency| name_of[dependency["pkg"].as_str().unwrap()].to_owned());
        graph.entry(name_of[node["id"].as_str().unwrap()].to_owned()).or_default().extend(names);
    }
    graph
}

/// The platform this test was built on, as cargo names it.
fn host() -> String {
    let output = Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

/// Every edge that the layout forbids, in words.
fn violations(graph: &Graph) -> Vec<String> {
    let height = |name: &str| HEIGHTS.iter().find(|(known, _)| *known == name).map(|(_, height)| *height);
    let is_ours = |name: &str| name == "beamlog" || name.starts_with("beamlog-");
    let mut found = Vec::new();
    for (package, dependencies) in graph {
        if !is_ours(package) {
            found.extend(
                dependencies.iter().filter(|name| is_ours(name)).map(|name| format!("{package} → {name}")),
            );
            continue;
        }
        if height(package).is_none() && !BESIDE.contains(&package.as_str()) {
            found.push(format!("{package} has no place in the layout"));
        }
        for dependency in dependencies.iter().filter(|name| is_ours(name)) {
            let goes_down = match (height(package), height(dependency)) {
                (Some(above), Some(below)) => above > below,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            if !goes_down {
                found.push(format!("{package} → {dependency}"));
            }
        }
    }
    for core in CORES {
        let reached = reachable(graph, core);
        found.extend(
            SHELL_ONLY.iter().filter(|name| reached.contains(**name)).map(|name| format!("{core} ⇒ {name}")),
        );
    }
    found
}

fn reachable(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(package) = open.pop() {
        for dependency in graph.get(&package).into_iter().flatten() {
            if reached.insert(dependency.clone()) {
                open.push(dependency.clone());
            }
        }
    }
    reached
}

#[test]
fn dependencies_go_down_and_the_cores_know_no_shell() {
    let graph = resolved();
    for (name, _) in HEIGHTS {
        assert!(graph.contains_key(name), "{name} is not in the workspace");
    }
    assert_eq!(violations(&graph), Vec::<String>::new());
}

#[test]
fn each_forbidden_edge_would_be_caught() {
    let legal = resolved();
    let mut forbidden = vec![("serde".to_owned(), "beamlog-log".to_owned())];
    for (low, low_height) in HEIGHTS {
        for (high, high_height) in HEIGHTS {
            if low_height <= high_height {
                forbidden.push((low.to_owned(), high.to_owned()));
            }
        }
        forbidden.extend(BESIDE.map(|beside| (low.to_owned(), beside.to_owned())));
    }
    for (package, dependency) in forbidden {
        let mut graph = legal.clone();
        graph.entry(package.clone()).or_default().insert(dependency.clone());
        assert!(
            violations(&graph).contains(&format!("{package} → {dependency}")),
            "{package} → {dependency}"
        );
    }
    for core in CORES {
        for shell in SHELL_ONLY {
            let mut graph = legal.clone();
            // Not directly: through a crate that looks harmless.
            graph.entry(core.to_owned()).or_default().insert("harmless".to_owned());
            graph.insert("harmless".to_owned(), BTreeSet::from([shell.to_owned()]));
            assert!(violations(&graph).contains(&format!("{core} ⇒ {shell}")), "{core} ⇒ {shell}");
        }
    }
    let mut graph = legal;
    graph.insert("beamlog-newcomer".to_owned(), BTreeSet::new());
    assert_eq!(violations(&graph), ["beamlog-newcomer has no place in the layout"]);
}

#[test]
fn the_cores_use_no_sockets() {
    for (path, text) in repository::texts(".rs") {
        if ["log/src", "router/src", "router/tasks/src"].iter().any(|core| path.starts_with(core)) {
            assert!(!text.contains("std::net"), "{} uses std::net", path.display());
        }
    }
}
