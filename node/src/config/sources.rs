//! Where configuration comes from, layer by layer, and which layer decided each key.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::edges::EdgeTable;
use crate::config::error::ConfigError;
use crate::config::keys::{Bounds, KEYS, Key, NodeConfig};
use crate::config::links::{LinkError, LinkTable, Variables};

/// Where the value of a key was said.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    Default,
    File,
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// The `BEAMLOG_…` variables of a process, handed in so that tests need not change their own.
pub type Environment = BTreeMap<String, String>;

const PREFIX: &str = "BEAMLOG_";
/// Variables with the prefix that are not keys: the file's name, the client commands' server, tests.
const OTHERS: [&str; 2] = ["BEAMLOG_CONFIG", "BEAMLOG_URL"];
const TEST_PREFIX: &str = "BEAMLOG_TEST_";
/// Secrets that links name by `…_env`.
const LINK_PREFIX: &str = "BEAMLOG_LINK_";

#[derive(Clone, Debug)]
pub struct Layer {
    pub origin: Origin,
    pub config: NodeConfig,
}

/// All layers, the strongest last, and the links and edges, which only the file has.
#[derive(Clone, Debug)]
pub struct Layers {
    layers: Vec<Layer>,
    links: Vec<toml::Table>,
    edges: Vec<EdgeTable>,
    variables: Variables,
}

/// `[tasks]`: another way to say the keys that begin with `tasks`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TasksSection {
    enabled: Option<bool>,
    policies: Option<PathBuf>,
    strict: Option<bool>,
    backpressure: Option<std::net::SocketAddr>,
}

/// The shape of the file: everything of this node is in `[node]`, each link in a `[[link]]`,
/// each edge of a hub in an `[[edge]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    node: NodeConfig,
    #[serde(default)]
    link: Vec<toml::Table>,
    #[serde(default)]
    edge: Vec<EdgeTable>,
    #[serde(default)]
    tasks: TasksSection,
}

impl Layers {
    /// Reads the file (if one is named by the flag or by `BEAMLOG_CONFIG`) and the variables.
    pub fn gather(
        file: Option<&Path>,
        environment: &Environment,
        flags: NodeConfig,
    ) -> Result<Self, ConfigError> {
        let named = environment.get("BEAMLOG_CONFIG").map(PathBuf::from);
        let (mut links, mut edges) = (Vec::new(), Vec::new());
        let mut layers = vec![Layer { origin: Origin::Default, config: defaults() }];
        if let Some(path) = file.map(Path::to_path_buf).or(named) {
            let file = read_file(&path)?;
            layers.push(Layer { origin: Origin::File, config: file.node });
            (links, edges) = (file.link, file.edge);
        }
        layers.push(Layer { origin: Origin::Environment, config: read_environment(environment)? });
        layers.push(Layer { origin: Origin::Flag, config: flags });
        Ok(Self { layers, links, edges, variables: Variables::new(environment.clone()) })
    }

    /// The values that count.
    #[must_use]
    pub fn merged(&self) -> NodeConfig {
        self.layers.iter().fold(NodeConfig::default(), |lower, layer| layer.config.clone().over(lower))
    }

    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        let says = |layer: &&Layer| layer.config.said().contains(&key);
        self.layers.iter().rev().find(says).map_or(Origin::Default, |layer| layer.origin)
    }
}

impl Layers {
    /// The links as the file has them.
    ///
    /// # Errors
    /// Every key that is unknown and every value of the wrong kind.
    pub fn links(&self) -> Result<Vec<LinkTable>, Vec<LinkError>> {
        let (mut links, mut errors) = (Vec::new(), Vec::new());
        for table in &self.links {
            match LinkTable::read(table.clone()) {
                Ok(link) => links.push(link),
                Err(more) => errors.extend(more),
            }
        }
        if errors.is_empty() { Ok(links) } else { Err(errors) }
    }

    /// The edges as the file has them.
    pub(super) fn edges(&self) -> &[EdgeTable] {
        &self.edges
    }

    /// The variables that links may name.
    #[must_use]
    pub fn variables(&self) -> &Variables {
        &self.variables
    }
}

fn defaults() -> NodeConfig {
    let mut table = toml::Table::new();
    for key in KEYS {
        if let Some(text) = key.default {
            table.insert(key.name.to_owned(), typed(key, text).expect("defaults are written as their kind"));
        }
    }
    table.try_into().expect("defaults are legal values")
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let file: File = toml::from_str(&text)
        .map_err(|e| ConfigError::Malformed { path: path.to_owned(), problem: in_one_line(&text, &e) })?;
    let TasksSection { enabled, policies, strict, backpressure } = file.tasks;
    let section = NodeConfig {
        tasks: enabled,
        tasks_policies: policies,
        tasks_strict: strict,
        tasks_backpressure: backpressure,
        ..NodeConfig::default()
    };
    Ok(File {
        node: section.over(file.node),
        link: file.link,
        edge: file.edge,
        tasks: TasksSection::default(),
    })
}

/// `line 3: unknown field …`, without the excerpt that toml draws over several lines.
fn in_one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
            format!("line {line}: {message}")
        }
        None => message,
    }
}

fn read_environment(environment: &Environment) -> Result<NodeConfig, ConfigError> {
    let mut config = NodeConfig::default();
    for (variable, text) in environment {
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        let is_other = OTHERS.contains(&variable.as_str());
        if is_other || variable.starts_with(TEST_PREFIX) || variable.starts_with(LINK_PREFIX) {
            continue;
        }
        let name = rest.to_ascii_lowercase();
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err(ConfigError::UnknownVariable { variable: variable.clone(), nearest: nearest(&name) });
        };
        let refused = |problem: String| ConfigError::Variable { variable: variable.clone(), problem };
        let mut table = toml::Table::new();
        table.insert(name, typed(key, text).map_err(refused)?);
        let one: NodeConfig =
            table.try_into().map_err(|e: toml::de::Error| refused(e.message().replace('\n', " ")))?;
        config = one.over(config);
    }
    Ok(config)
}

/// A text as the TOML value of the key's kind.
fn typed(key: &Key, text: &str) -> Result<toml::Value, String> {
    if matches!(key.bounds, Bounds::Count { .. }) {
        return text
            .parse()
            .map(toml::Value::Integer)
            .map_err(|_unparsed| format!("{text:?} is not a whole number"));
    }
    if key.kind == "boolean" {
        return text
            .parse()
            .map(toml::Value::Boolean)
            .map_err(|_unparsed| format!("{text:?} is neither true nor false"));
    }
    Ok(toml::Value::String(text.to_owned()))
}

/// The key that shares the most of its beginning and end with a misspelt one.
fn nearest(name: &str) -> Option<String> {
    let likeness = |key: &str| {
        let front = key.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let back = key.bytes().rev().zip(name.bytes().rev()).take_while(|(a, b)| a == b).count();
        (front + back).min(key.len())
    };
    let best = KEYS.iter().max_by_key(|key| likeness(key.name))?;
    let enough = 2 * likeness(best.name) >= best.name.len();
    enough.then(|| format!("{PREFIX}{}", best.name.to_ascii_uppercase()))
}
