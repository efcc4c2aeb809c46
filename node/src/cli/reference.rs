//! `docs/reference/cli.md`, made from the commands' own help; a test fails when the file differs.

use std::fmt::Write;

use clap::{Command, CommandFactory};

use crate::cli::arguments::Arguments;

const HEAD: &str = "\
# Commands

Made from the commands' own `--help`; do not edit: a test writes it
(`BEAMLOG_TEST_UPDATE=1 cargo test -p beamlog`).

";

#[must_use]
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    let mut command = Arguments::command().term_width(100);
    command.build();
    section(&mut command, &mut out);
    out
}

fn section(command: &mut Command, out: &mut String) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    writeln!(out, "## `{name}`\n\n```text\n{}\n```\n", lines.join("\n").trim_end())
        .expect("a String takes everything");
    for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
        section(inner, out);
    }
}
