//! `links.toml` in the data directory: the links that were added while the node ran, and which links of the
//! configuration file are paused. Replaced as a whole, and durable before the change is answered.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;
use toml::{Table, Value};

use crate::config::links::error::LinkError;
use crate::config::links::table::LinkTable;

const FILE: &str = "links.toml";
const TEMPORARY: &str = "links.toml.new";
const VERSION: i64 = 1;
/// 64 links of 256 rules fit many times.
const BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Error)]
pub enum StoredError {
    #[error("reading {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("writing {}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("{} is not valid: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{} has version {version}, this program knows {VERSION}", path.display())]
    Version { path: PathBuf, version: i64 },
}

/// What the file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StoredLinks {
    pub links: Vec<LinkTable>,
    /// Links of the configuration file that were paused.
    pub paused: BTreeSet<String>,
}

impl StoredLinks {
    /// Reads what is in the data directory; nothing there is no links.
    ///
    /// # Errors
    /// The file is there and is not what [`Self::save`] wrote.
    pub fn load(data_dir: &Path) -> Result<Self, StoredError> {
        let path = data_dir.join(FILE);
        let unreadable = |source| StoredError::Unreadable { path: path.clone(), source };
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(unreadable(error)),
            Ok(metadata) if metadata.len() > BYTES_MAX => {
                return Err(unreadable(io::Error::other("it is too large")));
            }
            Ok(_) => fs::read_to_string(&path).map_err(unreadable)?,
        };
        Self::read(&text).map_err(|problem| match problem {
            Problem::Version(version) => StoredError::Version { path: path.clone(), version },
            Problem::Text(problem) => StoredError::Malformed { path: path.clone(), problem },
        })
    }

    fn read(text: &str) -> Result<Self, Problem> {
        let mut table: Table =
            text.parse().map_err(|e: toml::de::Error| Problem::Text(e.message().replace('\n', " ")))?;
        match table.remove("version").and_then(|version| version.as_integer()) {
            Some(VERSION) => {}
            other => return Err(Problem::Version(other.unwrap_or_default())),
        }
        let paused = match table.remove("paused") {
            None => BTreeSet::new(),
            Some(value) => value.try_into().map_err(|e: toml::de::Error| Problem::Text(e.to_string()))?,
        };
        let mut links = Vec::new();
        if let Some(value) = table.remove("link") {
            let tables: Vec<Table> =
                value.try_into().map_err(|e: toml::de::Error| Problem::Text(e.to_string()))?;
            for table in tables {
                links.push(LinkTable::read(table).map_err(|errors| Problem::Text(joined(&errors)))?);
            }
        }
        Ok(Self { links, paused })
    }

    /// Replaces the file. On return it is on stable storage.
    ///
    /// # Errors
    /// The old file is still there then.
    pub fn save(&self, data_dir: &Path) -> Result<(), StoredError> {
        let (path, temporary) = (data_dir.join(FILE), data_dir.join(TEMPORARY));
        let write = || -> io::Result<()> {
            // Readable by this user only: it names files with secrets.
            let mut options = fs::OpenOptions::new();
            let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            fs::File::open(data_dir)?.sync_all()
        };
        write().map_err(|source| StoredError::Unwritable { path: path.clone(), source })
    }

    fn text(&self) -> String {
        let mut table = Table::new();
        table.insert("version".to_owned(), Value::Integer(VERSION));
        if !self.paused.is_empty() {
            let names = self.paused.iter().cloned().map(Value::String).collect();
            table.insert("paused".to_owned(), Value::Array(names));
        }
        let links: Vec<Value> = self.links.iter().map(|link| Value::Table(link.to_table())).collect();
        if !links.is_empty() {
            table.insert("link".to_owned(), Value::Array(links));
        }
        format!("# Links that were added while the node ran. `beamlog link` changes this file.\n{table}")
    }
}

enum Problem {
    Version(i64),
    Text(String),
}

fn joined(errors: &[LinkError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::links::table::RuleTable;

    fn links() -> StoredLinks {
        let import =
            vec![RuleTable { stream: Some("ORDERS".into()), start_sequence: Some(7), ..Default::default() }];
        let link = LinkTable {
            name: "core".into(),
            urls: vec!["nats://127.0.0.1:4222".into()],
            creds_file: Some("a.creds".into()),
            import,
            ..Default::default()
        };
        StoredLinks { links: vec![link], paused: BTreeSet::from(["other".to_owned()]) }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(StoredLinks::load(folder.path()).expect("nothing there"), StoredLinks::default());
        links().save(folder.path()).expect("saved");
        assert_eq!(StoredLinks::load(folder.path()).expect("loaded"), links());
        let mode =
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder.path().join(FILE)).expect("a file"));
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_of_another_version_or_shape_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for (text, word) in [
            ("version = 2\n", "version 2"),
            ("", "version 0"),
            ("version = 1\nlink = 3\n", "not valid"),
            ("version = 1\n[[link]]\nname = \"x\"\nnmae = \"y\"\n", "nmae"),
            ("not toml", "not valid"),
        ] {
            fs::write(folder.path().join(FILE), text).expect("written");
            let error = StoredLinks::load(folder.path()).expect_err(text);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
