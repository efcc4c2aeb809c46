//! `app.yaml` and `body.yaml`.

use std::collections::BTreeSet;

use beamlog_cell::{App, BodyPlan, subjects};

pub const WORDS: &[&[u8]] =
    &[b"cells:", b"  - name: a", b"    path: cells/a", b"dependencies: [a, b]", b"&a", b"*a", b"<<: *a", b"..", b"!!binary"];

pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(app) = App::parse(text) {
        let order = app.start_order().expect("was looked at");
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), app.cells.len());
        for cell in &app.cells {
            let at = |name: &str| order.iter().position(|other| *other == name);
            for on in &cell.dependencies {
                assert!(at(on).is_none_or(|before| Some(before) < at(&cell.name)), "{} before {on}", cell.name);
            }
        }
    }
    if let Ok(plan) = BodyPlan::parse(text) {
        assert!(plan.cells.iter().flat_map(|cell| &cell.subjects).all(|subject| subjects::is_request(subject)));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "name: greeter\nversion: 1.0.0\ndescription: d\ncells:\n  - name: a\n    path: cells/a\n  - name: b\n    path: cells/b\n    dependencies: [a]\nshared_cells: []\n",
        "cells:\n  - id: greeter\n    subjects: [cbs.greeter.say_hello]\n  - id: ui\n    subjects: []\n    language: dart\n",
        "a: &a [x]\nb: *a\n",
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
