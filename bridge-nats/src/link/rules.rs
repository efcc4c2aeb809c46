//! What a link is told to do: names, addresses, credentials, and the rules for streams, core subjects,
//! requests and buckets. Plain data as it is written down, and [`LinkConfig::check`], which says everything
//! that is wrong with it at once.

use std::path::PathBuf;

use beamlog_router::stream::SubjectMapping;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::hub::{self, Pass};

/// Rules of one link, of all kinds together.
pub const RULES_MAX: usize = 256;
/// Addresses of one link.
pub const URLS_MAX: usize = 32;

/// One link, as it is configured.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// Its name here; durable consumers there are named after it.
    pub name: String,
    /// Where it may connect; tried in random order.
    pub urls: Vec<String>,
    #[serde(skip_serializing_if = "Credentials::is_none")]
    pub credentials: Credentials,
    pub tls: LinkTls,
    /// Of a hub: the folder with this edge's certificate and its authority's. Else a token, and `tls.ca_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<PathBuf>,
    /// The JetStream domain there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The prefix of the JetStream API there, if it is not `$JS.API`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_prefix: Option<String>,
    /// What stored messages may take in each direction. `None` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Configured, but doing nothing until it is resumed.
    pub paused: bool,
    pub import: Vec<RuleConfig>,
    pub export: Vec<RuleConfig>,
    pub requests: Vec<RequestConfig>,
}

/// Whose transport a link uses: told by its URLs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// `nats://`, `tls://`, `ws://`, `wss://`: a NATS cluster.
    Nats,
    /// `quic://`: a Beamlog hub.
    Beamlog,
}

impl LinkKind {
    /// `None`: not the URL of a link.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        match url.split_once("://")?.0 {
            "nats" | "tls" | "ws" | "wss" => Some(Self::Nats),
            "quic" => Some(Self::Beamlog),
            _ => None,
        }
    }
}

/// A secret, or the file that holds it. A file is read again at every connection.
#[derive(Clone, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Secret {
    Value(String),
    File(PathBuf),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(_) => f.write_str("Value(hidden)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// How a link shows who it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    #[default]
    None,
    User {
        user: String,
        password: Secret,
    },
    Token(Secret),
    /// The seed of a user key.
    NKey(Secret),
    /// The text of a `.creds` file: a JWT and the seed of its key.
    Creds(Secret),
}

impl Credentials {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// TLS of a link. `tls://` and `wss://` ask for it too.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkTls {
    pub required: bool,
    /// The handshake comes before the server says anything.
    pub first: bool,
    /// Whom to trust; else the system's authorities.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// Where an import or export of a stream begins when nothing of it was transferred yet.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    #[default]
    All,
    /// What is stored after the link first connects.
    New,
    Sequence(u64),
    /// Nanoseconds since 1970.
    Time(u64),
}

/// Who wins when both sides of a bucket wrote a key.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BucketConflict {
    #[default]
    LastWriter,
    /// What was written here wins, whenever that was.
    Here,
    There,
}

/// One import or export, as it is written down: exactly one of `stream`, `subject`, `bucket`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// The subjects on the other end, by the grammar of subject mappings; the source is `filter` of a
    /// stream (default `>`) or `subject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Of a stream: only these subjects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Of an imported stream or bucket: its name here. Default: the same. Of an exported bucket: its name
    /// there. An exported stream lands where its subjects are captured.
    #[serde(skip_serializing_if = "Option::is_none", rename = "as")]
    pub target: Option<String>,
    /// Of a core subject: one of those that share this name gets each message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// Of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartFrom>,
    /// Of an imported stream that nobody else writes: messages keep the sequence they have there.
    pub keep_sequence: bool,
    /// Of a bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<BucketConflict>,
}

/// Which way requests go.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Asked here, answered there.
    Out,
    /// Asked there, answered here.
    In,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RequestConfig {
    pub subject: String,
    pub direction: Direction,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A link whose configuration makes sense.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CheckedLink {
    pub config: LinkConfig,
    pub kind: LinkKind,
    /// In the order in which they are written: imports, exports, requests.
    pub rules: Vec<Rule>,
}

/// One rule, checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rule {
    ImportStream(ImportStream),
    ExportStream(ExportStream),
    ImportSubject(SubjectRule),
    ExportSubject(SubjectRule),
    ImportBucket(BucketRule),
    ExportBucket(BucketRule),
    Requests(RequestRule),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImportStream {
    /// Its name there.
    pub stream: String,
    /// Its name here.
    pub target: String,
    pub filter: Option<String>,
    /// From subjects there to subjects here.
    pub mapping: Option<SubjectMapping>,
    pub start: StartFrom,
    pub keep_sequence: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExportStream {
    /// Its name here.
    pub stream: String,
    pub filter: Option<String>,
    /// From subjects here to subjects there.
    pub mapping: Option<SubjectMapping>,
    pub start: StartFrom,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SubjectRule {
    pub subject: String,
    pub mapping: Option<SubjectMapping>,
    pub queue: Option<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BucketRule {
    pub bucket: String,
    pub target: String,
    pub conflict: BucketConflict,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequestRule {
    pub subject: String,
    pub direction: Direction,
    pub mapping: Option<SubjectMapping>,
    pub queue: Option<String>,
    pub timeout_ms: u64,
}

impl Rule {
    /// Whether it carries from there to here.
    #[must_use]
    pub fn is_inward(&self) -> bool {
        match self {
            Self::ImportStream(_) | Self::ImportSubject(_) | Self::ImportBucket(_) => true,
            Self::ExportStream(_) | Self::ExportSubject(_) | Self::ExportBucket(_) => false,
            Self::Requests(rule) => rule.direction == Direction::In,
        }
    }

    /// How the rule is called in errors, status and metrics: `import stream ORDERS`.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::ImportStream(rule) => format!("import stream {}", rule.stream),
            Self::ExportStream(rule) => format!("export stream {}", rule.stream),
            Self::ImportSubject(rule) => format!("import subject {}", rule.subject),
            Self::ExportSubject(rule) => format!("export subject {}", rule.subject),
            Self::ImportBucket(rule) => format!("import bucket {}", rule.bucket),
            Self::ExportBucket(rule) => format!("export bucket {}", rule.bucket),
            Self::Requests(rule) => match rule.direction {
                Direction::Out => format!("requests out {}", rule.subject),
                Direction::In => format!("requests in {}", rule.subject),
            },
        }
    }
}

/// One thing that is wrong; `rule` names where.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("link {link}: {rule}: {problem}")]
pub struct RuleError {
    pub link: String,
    /// `name`, `urls[0]`, `import[2]`, …
    pub rule: String,
    pub problem: String,
}

impl LinkConfig {
    /// What a hub is shown; `None` where that is not said, or said in two ways.
    #[must_use]
    pub fn pass(&self) -> Option<Pass> {
        let LinkTls { required: _, first, ca_file, cert_file, key_file } = &self.tls;
        let has_keys = *first || cert_file.is_some() || key_file.is_some();
        match (&self.certificates, &self.credentials, ca_file) {
            (Some(folder), Credentials::None, None) if !has_keys => Some(Pass::Certificates(folder.clone())),
            (None, Credentials::Token(token), Some(authorities)) if !has_keys => {
                Some(Pass::Token { token: token.clone(), authorities: authorities.clone() })
            }
            _ => None,
        }
    }

    /// Whether the bucket of a rule comes back by one of the others.
    fn is_pair(&self, rule: &RuleConfig, others: &[RuleConfig]) -> bool {
        let target = |rule: &RuleConfig| rule.target.clone().or_else(|| rule.bucket.clone());
        rule.bucket.is_some()
            && others.iter().any(|other| other.bucket == target(rule) && rule.bucket == target(other))
    }

    /// Checks everything that can be told from the text alone.
    ///
    /// # Errors
    /// Every problem, each with the rule that has it.
    pub fn check(&self) -> Result<CheckedLink, Vec<RuleError>> {
        let mut errors = Vec::new();
        let mut refuse = |rule: String, problem: String| {
            errors.push(RuleError { link: self.name.clone(), rule, problem });
        };
        if self.name.is_empty()
            || self.name.len() > 64
            || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            refuse("name".into(), "must be 1 to 64 letters, digits, - and _".into());
        }
        let mut kind = None;
        if self.urls.is_empty() || self.urls.len() > URLS_MAX {
            refuse("urls".into(), format!("must be 1 to {URLS_MAX} addresses"));
        }
        for (at, url) in self.urls.iter().enumerate() {
            let Some(this) = LinkKind::of_url(url) else {
                refuse(format!("urls[{at}]"), "must begin with nats, tls, ws, wss or quic ://".into());
                continue;
            };
            if this == LinkKind::Beamlog && hub::address_of(url).is_none() {
                refuse(format!("urls[{at}]"), "must be quic://host:port".into());
            }
            if *kind.get_or_insert(this) != this {
                refuse(format!("urls[{at}]"), "a link is either to NATS or to a Beamlog hub".into());
            }
        }
        match kind {
            Some(LinkKind::Beamlog) if self.pass().is_none() => {
                let problem = "a hub knows an edge by its certificate, or by a token and nothing else";
                refuse("certificates".into(), problem.into());
            }
            Some(LinkKind::Nats) if self.certificates.is_some() => {
                let problem = "is for quic:// URLs only; TLS to NATS has keys of its own";
                refuse("certificates".into(), problem.into());
            }
            Some(LinkKind::Beamlog | LinkKind::Nats) | None => {}
        }
        if self.import.len() + self.export.len() + self.requests.len() > RULES_MAX {
            refuse("rules".into(), format!("must be at most {RULES_MAX}"));
        }
        let mut rules = Vec::new();
        for (at, rule) in self.import.iter().enumerate() {
            match rule.checked(true, self.is_pair(rule, &self.export)) {
                Ok(rule) => rules.push(rule),
                Err(problem) => refuse(format!("import[{at}]"), problem),
            }
        }
        for (at, rule) in self.export.iter().enumerate() {
            match rule.checked(false, self.is_pair(rule, &self.import)) {
                Ok(rule) => rules.push(rule),
                Err(problem) => refuse(format!("export[{at}]"), problem),
            }
        }
        for rule in &self.requests {
            rules.push(Rule::Requests(RequestRule {
                subject: rule.subject.clone(),
                direction: rule.direction,
                mapping: mapping(&rule.subject, rule.to.as_deref()),
                queue: rule.queue.clone(),
                timeout_ms: rule.timeout_ms.unwrap_or(5_000),
            }));
        }
        match (errors.is_empty(), kind) {
            (true, Some(kind)) => Ok(CheckedLink { config: self.clone(), kind, rules }),
            _ => Err(errors),
        }
    }
}

fn mapping(source: &str, to: Option<&str>) -> Option<SubjectMapping> {
    to.map(|to| SubjectMapping { source: source.into(), destination: to.into() })
}

impl RuleConfig {
    /// `is_pair`: the same bucket goes the other way too.
    fn checked(&self, import: bool, is_pair: bool) -> Result<Rule, String> {
        match (&self.stream, &self.subject, &self.bucket) {
            (Some(stream), None, None) => {
                let mapping = mapping(self.filter.as_deref().unwrap_or(">"), self.to.as_deref());
                let (filter, start) = (self.filter.clone(), self.start.unwrap_or_default());
                let stream = stream.clone();
                Ok(if import {
                    let target = self.target.clone().unwrap_or_else(|| stream.clone());
                    let keep_sequence = self.keep_sequence;
                    Rule::ImportStream(ImportStream { stream, target, filter, mapping, start, keep_sequence })
                } else {
                    Rule::ExportStream(ExportStream { stream, filter, mapping, start })
                })
            }
            (None, Some(subject), None) => {
                let rule = SubjectRule {
                    subject: subject.clone(),
                    mapping: mapping(subject, self.to.as_deref()),
                    queue: self.queue.clone(),
                };
                Ok(if import { Rule::ImportSubject(rule) } else { Rule::ExportSubject(rule) })
            }
            (None, None, Some(bucket)) => {
                let rule = BucketRule {
                    bucket: bucket.clone(),
                    target: self.target.clone().unwrap_or_else(|| bucket.clone()),
                    conflict: self.conflict.unwrap_or(match (is_pair, import) {
                        (true, _) => BucketConflict::LastWriter,
                        (false, true) => BucketConflict::There,
                        (false, false) => BucketConflict::Here,
                    }),
                };
                Ok(if import { Rule::ImportBucket(rule) } else { Rule::ExportBucket(rule) })
            }
            _ => Err("needs exactly one of stream, subject, bucket".into()),
        }
    }
}
