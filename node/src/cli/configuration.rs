//! `config check|show`: what a node would run with, and why it would not.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::{Output, cell, columns};
use crate::cli::serve::ConfigArguments;
use crate::config::{Environment, KEYS, Layers, NodeOptions};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  beamlog config check --config node.toml
  beamlog config show --config node.toml -o json
  BEAMLOG_LISTEN=127.0.0.1:5222 beamlog config show")]
pub(crate) enum ConfigCommand {
    /// Say everything that is wrong; exit code 2 when something is.
    Check(Box<ConfigArguments>),
    /// Show the values that count and where each was said.
    Show(Box<ConfigArguments>),
}

/// The process's variables: ours, and those that links name.
///
/// # Errors
/// A variable of ours that is not text.
pub(crate) fn environment() -> Result<Environment, Failure> {
    let mut environment = Environment::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        match value.to_str() {
            Some(value) => drop(environment.insert(name.to_owned(), value.to_owned())),
            None if name.starts_with("BEAMLOG_") => {
                return Err(Failure::cannot_start(format!("{name} is not valid UTF-8")));
            }
            // Somebody else's.
            None => {}
        }
    }
    Ok(environment)
}

pub(crate) fn gather(arguments: ConfigArguments) -> Result<Layers, Failure> {
    let file: Option<PathBuf> = arguments.config;
    Layers::gather(file.as_deref(), &environment()?, arguments.flags)
        .map_err(|e| Failure::cannot_start(err_chain(&e)))
}

/// All errors in one failure, a line each.
pub(crate) fn resolve(layers: &Layers) -> Result<NodeOptions, Failure> {
    NodeOptions::resolve(layers).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(|e| err_chain(e)).collect();
        Failure::cannot_start(lines.join("\nbeamlog: "))
    })
}

pub(crate) fn config(command: ConfigCommand, output: Output) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check(arguments) => {
            let layers = gather(*arguments)?;
            resolve(&layers)?;
            output.value(&json!({ "valid": true }), |_| "the configuration is valid\n".to_owned())
        }
        ConfigCommand::Show(arguments) => {
            let layers = gather(*arguments)?;
            let values = serde_json::to_value(layers.merged())
                .map_err(|e| Failure::failed(format!("showing the configuration: {e}")))?;
            let mut shown = serde_json::Map::new();
            for key in KEYS {
                let origin = layers.origin(key.name).to_string();
                shown.insert(key.name.to_owned(), json!({ "value": values[key.name], "origin": origin }));
            }
            // What is wrong with links is said below.
            let links = layers.links().unwrap_or_default();
            let links = serde_json::to_value(&links)
                .map_err(|e| Failure::failed(format!("showing the configuration: {e}")))?;
            shown.insert("link".to_owned(), links);
            output.value(&Value::Object(shown), |shown| {
                let mut rows: Vec<Vec<String>> = KEYS
                    .iter()
                    .map(|key| {
                        let row = &shown[key.name];
                        vec![key.name.to_owned(), cell(&row["value"]), cell(&row["origin"])]
                    })
                    .collect();
                for link in shown["link"].as_array().into_iter().flatten() {
                    for (key, value) in link.as_object().into_iter().flatten() {
                        let name = format!("link.{}.{key}", cell(&link["name"]));
                        rows.push(vec![name, cell(value), "file".to_owned()]);
                    }
                }
                columns(&["key", "value", "origin"], &rows)
            })?;
            resolve(&layers).map(drop)
        }
    }
}
