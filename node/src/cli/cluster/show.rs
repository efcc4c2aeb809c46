//! How a cluster is printed for people.

use serde_json::Value;

use crate::cli::cluster::shard;
use crate::cli::output::{cell, columns};

pub(super) fn status(value: &Value) -> String {
    let mut text = format!(
        "cluster {}  node {}  {}  term {}  committed {}\n",
        cell(&value["cluster"]),
        cell(&value["name"]),
        cell(&value["standing"]),
        value["term"],
        value["committed"],
    );
    text.push_str(&health(value));
    text.push('\n');
    let rows: Vec<Vec<String>> = value["members"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| {
            let yes =
                |key: &str, word: &str| if member[key] == true { word.to_owned() } else { String::new() };
            vec![
                cell(&member["name"]),
                cell(&member["id"]),
                cell(&member["role"]),
                yes("leader", "leader"),
                if member["connected"] == true { "yes".to_owned() } else { "NO".to_owned() },
                cell(&member["durable"]),
                cell(&member["lag"]),
                cell(&member["address"]),
            ]
        })
        .collect();
    text.push_str(&columns(
        &["name", "id", "role", "leads", "connected", "durable", "lag", "address"],
        &rows,
    ));
    let held: Vec<String> = value["held"].as_array().into_iter().flatten().map(cell).collect();
    if !held.is_empty() {
        text.push_str(&format!("streams that {} holds alone: {}\n", cell(&value["name"]), held.join(", ")));
    }
    for one in value["moving"].as_array().into_iter().flatten() {
        let behind = match (&one["exchanged"], &one["copied"]) {
            (Value::Bool(true), _) => ", which forgets its copy".to_owned(),
            (_, Value::Null) => String::new(),
            (_, copied) => format!(", copied up to {copied}"),
        };
        let (stream, from, to) = (cell(&one["stream"]), cell(&one["from"]), cell(&one["to"]));
        text.push_str(&format!("moving: {stream} to {to}, from {from}{behind}\n"));
    }
    if value["shards"].as_array().is_some_and(|shards| !shards.is_empty()) {
        text.push_str(&shard::list(&value["shards"]));
    }
    text
}

pub(super) fn health(value: &Value) -> String {
    if value["healthy"] == true {
        return "healthy\n".to_owned();
    }
    let problems = value["problems"].as_array().into_iter().flatten();
    problems.map(|problem| format!("NOT HEALTHY: {}\n", cell(problem))).collect()
}
