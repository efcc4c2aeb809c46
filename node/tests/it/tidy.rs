//! Rules of the repository that a reader would otherwise have to remember.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::repository::{files, root, texts};

/// Lines a source file may have. A file with one subject rarely needs more.
const LINES_MAX: usize = 800;
/// Files that are longer, and how long they may be: a ratchet, these numbers only go down.
const LONGER: [(&str, usize); 2] = [("bridge-nats/src/jetstream/call.rs", 840), ("log/src/recovery.rs", 860)];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 8] = ["utils", "util", "helpers", "helper", "common", "misc", "manager", "shared"];

#[test]
fn source_files_have_one_subject() {
    let mut too_long = Vec::new();
    for (path, text) in texts(".rs") {
        let lines = text.lines().count();
        let name = path.to_str().unwrap();
        let allowed = LONGER.iter().find(|(longer, _)| *longer == name).map(|(_, lines)| *lines);
        if lines > allowed.unwrap_or(LINES_MAX) {
            too_long.push(format!("{name}: {lines}"));
        }
        if allowed.is_some() && lines <= LINES_MAX {
            too_long.push(format!("{name} has {lines} lines now: take it off the list"));
        }
    }
    assert_eq!(
        too_long,
        Vec::<String>::new(),
        "more than {LINES_MAX} lines: split where a part has its own invariant"
    );
}

#[test]
fn names_say_what_is_inside() {
    let is_empty = |path: &&PathBuf| {
        path.iter().any(|part| {
            let stem = Path::new(part).file_stem().unwrap_or_default();
            EMPTY_NAMES.iter().any(|name| stem == *name)
        })
    };
    let found = files();
    let found: Vec<_> = found.iter().filter(is_empty).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Put together here, so that this file does not contain what it looks for.
    let words: Vec<String> =
        [("TO", "DO"), ("FIX", "ME"), ("#[ign", "ore"), ("todo", "!("), ("unimplemented", "!(")]
            .map(|(front, back)| format!("{front}{back}"))
            .to_vec();
    let mut found = Vec::new();
    for (path, text) in texts(".rs") {
        for (number, line) in text.lines().enumerate() {
            found.extend(
                words
                    .iter()
                    .filter(|word| line.contains(word.as_str()))
                    .map(|word| format!("{}:{}: {word}", path.display(), number + 1)),
            );
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn no_path_of_one_machine_is_named() {
    let paths: Vec<String> = ["root", "work", "home", "Users"].map(|folder| format!("/{folder}/")).to_vec();
    let mut found = Vec::new();
    for ending in [".rs", ".md", ".toml", ".py", ".sh", "scripts/test", "scripts/faults", ".ci/run", ".txt"] {
        for (path, text) in texts(ending) {
            for (number, line) in text.lines().enumerate() {
                // A folder at the start of a path, not in the middle of one.
                let is_named = |folder: &String| {
                    line.match_indices(folder.as_str()).any(|(at, _)| {
                        !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-}>*~".contains(c))
                    })
                };
                if paths.iter().any(is_named) {
                    found.push(format!("{}:{}: {line}", path.display(), number + 1));
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn links_between_documents_resolve() {
    let mut broken = Vec::new();
    for (path, text) in texts(".md") {
        for target in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let target_path = match file {
                "" => root().join(&path),
                file => root().join(path.parent().unwrap()).join(file),
            };
            if !target_path.exists() {
                broken.push(format!("{}: {target}", path.display()));
            } else if !anchor.is_empty() && !anchors(&target_path).contains(anchor) {
                broken.push(format!("{}: {target} (no such heading)", path.display()));
            }
        }
    }
    assert_eq!(broken, Vec::<String>::new());
}

/// Targets of `[text](target)` outside of code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            if let Some(end) = rest.find(')') {
                found.push(rest[..end].to_owned());
            }
        }
    }
    found
}

/// The anchors that headings make: lower case, spaces as hyphens, other signs dropped.
fn anchors(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

#[test]
fn a_crate_root_is_a_table_of_contents() {
    for (path, text) in texts("src/lib.rs") {
        let is_code = |line: &&str| {
            let line = line.trim_start();
            ["fn ", "pub fn ", "impl", "struct ", "pub struct ", "enum ", "pub enum "]
                .iter()
                .any(|start| line.starts_with(start))
        };
        let code: Vec<&str> = text.lines().filter(is_code).collect();
        assert!(code.is_empty(), "{}: {code:?}", path.display());
    }
}
