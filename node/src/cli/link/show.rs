//! Links as tables.

use serde_json::{Value, json};

use crate::cli::output::{cell, columns};

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn sum(link: &Value, figure: &str) -> Value {
    json!(items(&link["rules"]).iter().filter_map(|rule| rule[figure].as_u64()).sum::<u64>())
}

fn largest(link: &Value, figure: &str) -> Value {
    json!(items(&link["rules"]).iter().filter_map(|rule| rule[figure].as_u64()).max().unwrap_or(0))
}

/// `link ls`: a line each.
pub(super) fn list(links: &Value) -> String {
    let row = |link: &Value| {
        let rules = ["import", "export", "requests"].map(|list| items(&link["config"][list]).len());
        [
            link["name"].clone(),
            link["state"].clone(),
            link["config"]["urls"].clone(),
            json!(rules.iter().sum::<usize>()),
            sum(link, "lag_messages"),
            link["source"].clone(),
            link["cause"].clone(),
        ]
        .iter()
        .map(cell)
        .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = items(links).iter().map(row).collect();
    columns(&["name", "state", "urls", "rules", "lag", "source", "cause"], &rows)
}

/// `link status` of all.
pub(super) fn statuses(links: &Value) -> String {
    items(links).iter().map(status).collect::<Vec<_>>().join("\n")
}

/// `link status NAME`: the link, then a line for each rule, then what operators should know.
pub(super) fn status(link: &Value) -> String {
    let mut text = String::new();
    let shown = [
        ("link", link["name"].clone()),
        ("kind", link["kind"].clone()),
        ("state", link["state"].clone()),
        ("cause", link["cause"].clone()),
        ("server", link["server"].clone()),
        ("source", link["source"].clone()),
        ("reconnects", link["reconnects"].clone()),
        ("lag bytes", sum(link, "lag_bytes")),
        ("lag seconds", largest(link, "lag_seconds")),
        ("last error", link["last_error"].clone()),
    ];
    for (name, value) in shown.iter().filter(|(_, value)| !value.is_null()) {
        text.push_str(&format!("{name:<12} {}\n", cell(value)));
    }
    let figures =
        ["state", "lag_messages", "transferred", "duplicates_refused", "dropped", "parked", "missed"];
    let row = |rule: &Value| {
        let mut row = vec![cell(&rule["rule"])];
        row.extend(figures.iter().map(|figure| cell(&rule[*figure])));
        row.push(cell(rule.get("cause").unwrap_or(&rule["last_error"])));
        row
    };
    let rows: Vec<Vec<String>> = items(&link["rules"]).iter().map(row).collect();
    if !rows.is_empty() {
        let heading =
            ["rule", "state", "lag", "carried", "duplicates", "dropped", "parked", "missed", "cause"];
        text.push('\n');
        text.push_str(&columns(&heading, &rows));
    }
    for rule in items(&link["rules"]) {
        for note in items(&rule["notes"]) {
            text.push_str(&format!("note: {}: {}\n", cell(&rule["rule"]), cell(note)));
        }
    }
    text
}

/// `link diff NAME`.
pub(super) fn diff(diff: &Value) -> String {
    let side = |rule: &Value, side: &str| {
        let side = &rule[side];
        match side.is_null() {
            true => "not there".to_owned(),
            false => {
                format!("{} ({} to {})", cell(&side["messages"]), cell(&side["first"]), cell(&side["last"]))
            }
        }
    };
    let row = |rule: &Value| {
        vec![
            cell(&rule["rule"]),
            side(rule, "here"),
            side(rule, "there"),
            cell(&rule["missing"]),
            cell(&rule["examples"]),
            cell(&rule["problem"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(&diff["rules"]).iter().map(row).collect();
    columns(&["rule", "here", "there", "missing", "examples", "problem"], &rows)
}
