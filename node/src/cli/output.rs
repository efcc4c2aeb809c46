//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::exit::Failure;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
}

/// Writes results to stdout; everything else a command says goes to stderr.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// One result: as JSON, or what `table` makes of it.
    pub(crate) fn value(self, value: &Value, table: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => format!("{value:#}\n"),
            Format::Table => table(value),
        };
        raw(text.as_bytes())
    }

    /// One of many results, as they come: a JSON line, or text.
    pub(crate) fn line(self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        let line = match self.format {
            Format::Json => format!("{value}\n"),
            Format::Table => format!("{}\n", text(value)),
        };
        raw(line.as_bytes())
    }
}

pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()?;
    Ok(())
}

/// Aligned columns under a heading.
pub(crate) fn columns(heading: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([heading[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let mut text = String::new();
    let heading: Vec<String> = heading.iter().map(|name| name.to_uppercase()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A value's fields, one a line, nested ones indented.
pub(crate) fn fields(value: &Value) -> String {
    let mut text = String::new();
    nested(value, 0, &mut text);
    text
}

fn nested(value: &Value, depth: usize, text: &mut String) {
    let Value::Object(map) = value else { return };
    let width = map.keys().map(|key| key.len()).max().unwrap_or(0);
    let indent = "  ".repeat(depth);
    for (key, value) in map {
        if let Value::Object(inner) = value
            && !inner.is_empty()
        {
            text.push_str(&format!("{indent}{key}\n"));
            nested(value, depth + 1, text);
        } else {
            text.push_str(&format!("{indent}{key:<width$}  {}\n", cell(value)));
        }
    }
}

/// A value in one cell of a table. Control characters of other people's names do not reach the terminal.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text =
            columns(&["name", "n"], &[vec!["a-long-name".into(), "1".into()], vec!["b".into(), "22".into()]]);
        assert_eq!(text, "NAME         N\na-long-name  1\nb            22\n");
    }

    #[test]
    fn names_from_outside_cannot_move_the_cursor() {
        assert_eq!(cell(&Value::from("a\u{1b}[2Jb\nc")), "a\u{fffd}[2Jb\u{fffd}c");
    }
}
