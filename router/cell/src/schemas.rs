//! JSON schemas of payloads, by the names that envelopes carry.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::Value;
use thiserror::Error;

use crate::envelope::Envelope;
use crate::error::BusError;
use crate::subjects;

/// Schemas of one folder; more are a mistake.
const SCHEMAS_MAX: usize = 10_000;
const SCHEMA_BYTES_MAX: u64 = 1 << 20;
/// Problems that an error names.
const PROBLEMS_MAX: usize = 5;

/// Why there are no schemas.
#[derive(Debug, Error)]
pub enum SchemaError {
    #[error("reading {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not JSON", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("{} is not a JSON schema: {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("{} is not the name of a schema: put it where demo/v1/Name.json would be", path.display())]
    Name { path: PathBuf },
    #[error("{} holds more than {SCHEMAS_MAX} schemas", path.display())]
    TooMany { path: PathBuf },
    #[error("{} is larger than {SCHEMA_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{name:?} is not the name of a schema: it must look like demo/v1/Name")]
    BadName { name: String },
    #[error("{name} is not a JSON schema: {problem}")]
    BadSchema { name: String, problem: String },
}

/// Schemas by name. What has none is not checked.
#[derive(Debug, Default)]
pub struct Schemas {
    by_name: BTreeMap<String, Validator>,
}

impl Schemas {
    /// All of a folder: `demo/v1/Name.json` is the schema of payloads named `demo/v1/Name`.
    ///
    /// # Errors
    /// A file there is no schema, or cannot be read.
    pub fn read(folder: &Path) -> Result<Self, SchemaError> {
        let mut schemas = Self::default();
        for family in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
            for version in entries(&family)?.into_iter().filter(|path| path.is_dir()) {
                for path in entries(&version)? {
                    if path.extension().is_none_or(|ending| ending != "json") {
                        continue;
                    }
                    if schemas.by_name.len() >= SCHEMAS_MAX {
                        return Err(SchemaError::TooMany { path: folder.to_owned() });
                    }
                    let (name, schema) = read_one(&path)?;
                    let validator = compile(&schema)
                        .map_err(|problem| SchemaError::Invalid { path: path.clone(), problem })?;
                    schemas.by_name.insert(name, validator);
                }
            }
        }
        Ok(schemas)
    }

    /// Adds one, or puts it in the place of the one with this name.
    ///
    /// # Errors
    /// It is none, or has no name.
    pub fn insert(&mut self, name: &str, schema: &Value) -> Result<(), SchemaError> {
        let name = name.to_owned();
        if !subjects::is_schema(&name) {
            return Err(SchemaError::BadName { name });
        }
        match compile(schema) {
            Ok(validator) => {
                self.by_name.insert(name, validator);
                Ok(())
            }
            Err(problem) => Err(SchemaError::BadSchema { name, problem }),
        }
    }

    /// Whether a request is what the envelope and the schema that it names allow.
    ///
    /// # Errors
    /// `BadRequest`, with where the payload is wrong, but not with what it has there.
    pub fn check(&self, envelope: &Envelope) -> Result<(), BusError> {
        envelope.check().map_err(|problem| BusError::BadRequest(problem.to_string()))?;
        let (Some(validator), Some(payload)) = (self.by_name.get(&envelope.schema), &envelope.payload) else {
            return Ok(());
        };
        let problems: Vec<String> = validator
            .iter_errors(payload)
            .take(PROBLEMS_MAX)
            .map(|problem| {
                let at = problem.instance_path().to_string();
                let at = if at.is_empty() { "/".to_owned() } else { at };
                format!("{at} ({})", problem.schema_path())
            })
            .collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(BusError::BadRequest(format!("the payload is not {}: {}", envelope.schema, problems.join(", "))))
    }
}

/// Nothing is fetched: a schema that refers to another document is refused.
fn compile(schema: &Value) -> Result<Validator, String> {
    jsonschema::validator_for(schema).map_err(|problem| problem.to_string())
}

fn read_one(path: &Path) -> Result<(String, Value), SchemaError> {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_stem).and_then(|stem| stem.to_str()).unwrap_or_default().to_owned()
    };
    let (version, family) = (path.parent(), path.parent().and_then(Path::parent));
    let name = format!("{}/{}/{}", part(family), part(version), part(Some(path)));
    if !subjects::is_schema(&name) {
        return Err(SchemaError::Name { path: path.to_owned() });
    }
    let unreadable = |source| SchemaError::Unreadable { path: path.to_owned(), source };
    if fs::metadata(path).map_err(unreadable)?.len() > SCHEMA_BYTES_MAX {
        return Err(SchemaError::TooLarge { path: path.to_owned() });
    }
    let text = fs::read(path).map_err(unreadable)?;
    let schema = serde_json::from_slice(&text)
        .map_err(|source| SchemaError::Malformed { path: path.to_owned(), source })?;
    Ok((name, schema))
}

/// The entries of a folder, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, SchemaError> {
    let unreadable = |source| SchemaError::Unreadable { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_payload_is_checked_by_the_schema_it_names() {
        let mut schemas = Schemas::default();
        let schema = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}});
        schemas.insert("demo/v1/Name", &schema).unwrap();
        let check =
            |name: &str, payload| schemas.check(&Envelope::request("greeter", "say_hello", name, payload));
        assert_eq!(check("demo/v1/Name", json!({"name": "Ada"})), Ok(()));
        assert_eq!(check("demo/v1/Other", json!({"name": 1})), Ok(()), "it has no schema");
        for payload in [json!({}), json!({"name": ""}), json!({"name": 7})] {
            let problem = check("demo/v1/Name", payload).unwrap_err();
            assert!(
                matches!(&problem, BusError::BadRequest(text) if text.contains("demo/v1/Name")),
                "{problem}"
            );
        }
        let secret = check("demo/v1/Name", json!({"name": {"password": "hunter2"}})).unwrap_err();
        assert!(!secret.to_string().contains("hunter2"), "{secret}");
        assert!(matches!(check("Name", json!({})), Err(BusError::BadRequest(_))));
        assert!(matches!(
            schemas.insert("demo/v1/Bad", &json!({"type": 7})),
            Err(SchemaError::BadSchema { .. })
        ));
        assert!(matches!(
            schemas.insert("demo/v1/Far", &json!({"$ref": "https://example.invalid/x.json"})),
            Err(SchemaError::BadSchema { .. })
        ));
        assert!(matches!(schemas.insert("demo", &json!({})), Err(SchemaError::BadName { .. })));
    }

    #[test]
    fn a_folder_gives_schemas_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let version = folder.path().join("demo/v1");
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join("Name.json"), r#"{"required":["name"]}"#).unwrap();
        fs::write(version.join("README.md"), "not a schema").unwrap();
        let schemas = Schemas::read(folder.path()).unwrap();
        assert!(schemas.check(&Envelope::request("a", "b", "demo/v1/Name", json!({}))).is_err());
        fs::write(version.join("Worse.json"), "{").unwrap();
        assert!(matches!(Schemas::read(folder.path()), Err(SchemaError::Malformed { .. })));
        fs::remove_file(version.join("Worse.json")).unwrap();
        fs::write(version.join("1.json"), "{}").unwrap();
        assert!(matches!(Schemas::read(folder.path()), Err(SchemaError::Name { .. })));
    }
}
