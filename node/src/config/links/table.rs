//! `[[link]]` as it is written: in the configuration file, in `links.toml`, and in the body of
//! `PUT /links/NAME`. Every unknown key and every value of the wrong kind is found, not only the first.

use std::path::PathBuf;

use beamlog_nats::link::rules::{BucketConflict, Direction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::links::error::{LinkError, LinkProblem, Place};
use crate::config::links::keys::{LINK_KEYS, LinkKey, REQUEST_KEYS, RULE_KEYS, names};
use crate::config::units::{ByteSize, Span};

/// One link. What was not said is `None`, empty or false.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct LinkTable {
    pub name: String,
    pub urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creds_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "is_false")]
    pub tls_first: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteSize>,
    #[serde(skip_serializing_if = "is_false")]
    pub paused: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub import: Vec<RuleTable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<RuleTable>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestTable>,
}

/// One rule of `import` or `export`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct RuleTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// `as`: its name on the receiving side.
    #[serde(rename = "as", skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    pub keep_sequence: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<BucketConflict>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StartName {
    All,
    New,
}

/// One rule of `requests`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct RequestTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands in a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What a link without a name is called in errors.
pub(super) const NAMELESS: &str = "(without a name)";

/// Secrets that people write where they do not belong.
const SECRETS: [&str; 5] = ["password", "token", "nkey", "creds", "credentials"];

/// Takes the keys out of one table, and keeps what is wrong with them.
struct Reader<'a> {
    link: &'a str,
    place: Place,
    table: Table,
    errors: &'a mut Vec<LinkError>,
}

impl<'a> Reader<'a> {
    fn new(
        link: &'a str,
        place: Place,
        table: Table,
        keys: &[LinkKey],
        errors: &'a mut Vec<LinkError>,
    ) -> Self {
        let mut reader = Self { link, place, table, errors };
        let unknown: Vec<String> =
            reader.table.keys().filter(|name| keys.iter().all(|key| key.name != *name)).cloned().collect();
        for key in unknown {
            reader.table.remove(&key);
            reader.refuse(if SECRETS.contains(&key.as_str()) {
                LinkProblem::InlineSecret { key: key.replace("credentials", "creds") }
            } else {
                LinkProblem::UnknownKey { key, known: names(keys) }
            });
        }
        reader
    }

    fn refuse(&mut self, problem: LinkProblem) {
        self.errors.push(LinkError { link: self.link.to_owned(), place: self.place.clone(), problem });
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.table.remove(key)?;
        match value.try_into() {
            Ok(value) => Some(value),
            Err(error) => {
                let problem = error.message().replace('\n', " ");
                self.refuse(LinkProblem::WrongKind { key: key.to_owned(), problem });
                None
            }
        }
    }

    /// The tables of a list of rules.
    fn rules(&mut self, list: &'static str) -> Vec<(Place, Table)> {
        let Some(value) = self.table.remove(list) else { return Vec::new() };
        let Value::Array(items) = value else {
            let problem = "expected a list of rules in braces".to_owned();
            self.refuse(LinkProblem::WrongKind { key: list.to_owned(), problem });
            return Vec::new();
        };
        let mut rules = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            let place = Place::Rule { list, number: at + 1, text: item.to_string() };
            match item {
                Value::Table(table) => rules.push((place, table)),
                Value::String(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Boolean(_)
                | Value::Datetime(_)
                | Value::Array(_) => {
                    let problem = "expected a rule in braces, like { subject = \"a.>\" }".to_owned();
                    self.refuse(LinkProblem::WrongKind { key: format!("{list} {}", at + 1), problem });
                }
            }
        }
        rules
    }
}

impl LinkTable {
    /// Reads one table.
    ///
    /// # Errors
    /// Every key that is unknown and every value of the wrong kind.
    pub fn read(table: Table) -> Result<Self, Vec<LinkError>> {
        let mut errors = Vec::new();
        let link = table.get("name").and_then(Value::as_str).unwrap_or(NAMELESS).to_owned();
        let mut reader = Reader::new(&link, Place::Link, table, LINK_KEYS, &mut errors);
        let imports = reader.rules("import");
        let exports = reader.rules("export");
        let requests = reader.rules("requests");
        let mut read = Self {
            name: reader.take("name").unwrap_or_default(),
            urls: reader.take("urls").unwrap_or_default(),
            user: reader.take("user"),
            password_file: reader.take("password_file"),
            password_env: reader.take("password_env"),
            token_file: reader.take("token_file"),
            token_env: reader.take("token_env"),
            nkey_file: reader.take("nkey_file"),
            nkey_env: reader.take("nkey_env"),
            creds_file: reader.take("creds_file"),
            creds_env: reader.take("creds_env"),
            tls_ca_file: reader.take("tls_ca_file"),
            tls_cert_file: reader.take("tls_cert_file"),
            tls_key_file: reader.take("tls_key_file"),
            tls_first: reader.take("tls_first").unwrap_or_default(),
            certificates: reader.take("certificates"),
            domain: reader.take("domain"),
            api_prefix: reader.take("api_prefix"),
            bytes_per_second: reader.take("bytes_per_second"),
            paused: reader.take("paused").unwrap_or_default(),
            ..Self::default()
        };
        read.import =
            imports.into_iter().map(|(place, table)| rule(&link, place, table, &mut errors)).collect();
        read.export =
            exports.into_iter().map(|(place, table)| rule(&link, place, table, &mut errors)).collect();
        read.requests =
            requests.into_iter().map(|(place, table)| request(&link, place, table, &mut errors)).collect();
        if errors.is_empty() { Ok(read) } else { Err(errors) }
    }

    /// As TOML has it; what [`Self::read`] reads back.
    #[must_use]
    pub fn to_table(&self) -> Table {
        Table::try_from(self).expect("a link is a table of texts, numbers and lists")
    }
}

fn rule(link: &str, place: Place, table: Table, errors: &mut Vec<LinkError>) -> RuleTable {
    let mut reader = Reader::new(link, place, table, RULE_KEYS, errors);
    RuleTable {
        stream: reader.take("stream"),
        subject: reader.take("subject"),
        bucket: reader.take("bucket"),
        target: reader.take("as"),
        filter: reader.take("filter"),
        to: reader.take("to"),
        queue: reader.take("queue"),
        start: reader.take("start"),
        start_sequence: reader.take("start_sequence"),
        start_time: reader.take("start_time"),
        keep_sequence: reader.take("keep_sequence").unwrap_or_default(),
        conflict: reader.take("conflict"),
    }
}

fn request(link: &str, place: Place, table: Table, errors: &mut Vec<LinkError>) -> RequestTable {
    let mut reader = Reader::new(link, place, table, REQUEST_KEYS, errors);
    RequestTable {
        subject: reader.take("subject"),
        direction: reader.take("direction"),
        to: reader.take("to"),
        queue: reader.take("queue"),
        timeout: reader.take("timeout"),
    }
}
