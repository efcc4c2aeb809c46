//! From a checked table to what the link runs with: credentials named by files (read at each connection)
//! and by variables (read once), and the rules as the runtime knows them.

use std::fs;
use std::path::{Path, PathBuf};

use beamlog_nats::link::hub::Pass;
use beamlog_nats::link::rules::{
    Credentials, LinkConfig, LinkKind, LinkTls, RequestConfig, RuleConfig, Secret, StartFrom,
};
use beamlog_net::peer::Role;

use crate::config::links::error::{LinkError, LinkProblem, Place};
use crate::config::links::table::{LinkTable, RequestTable, RuleTable, StartName};
use crate::config::sources::Environment;

/// What the link runs with.
///
/// # Errors
/// Credentials that are incomplete, contradict each other, or cannot be read now.
pub(super) fn resolve(link: &LinkTable, environment: &Environment) -> Result<LinkConfig, Vec<LinkError>> {
    let mut problems = Vec::new();
    let credentials = credentials(link, environment, &mut problems);
    let tls = tls(link, &mut problems);
    certificates(link, &mut problems);
    if !problems.is_empty() {
        let error = |problem| LinkError { link: link.name.clone(), place: Place::Link, problem };
        return Err(problems.into_iter().map(error).collect());
    }
    let config = LinkConfig {
        name: link.name.clone(),
        urls: link.urls.clone(),
        credentials,
        tls,
        certificates: link.certificates.clone(),
        domain: link.domain.clone(),
        api_prefix: link.api_prefix.clone(),
        bytes_per_second: link.bytes_per_second.map(|limit| limit.0),
        paused: link.paused,
        import: link.import.iter().map(rule).collect(),
        export: link.export.iter().map(rule).collect(),
        requests: link.requests.iter().filter_map(request).collect(),
    };
    match token_for_hub(&config) {
        None => Ok(config),
        Some(problem) => Err(vec![LinkError { link: link.name.clone(), place: Place::Link, problem }]),
    }
}

/// Read again when it changes; what is wrong with it now is told now.
fn token_for_hub(config: &LinkConfig) -> Option<LinkProblem> {
    let is_hub = config.urls.iter().any(|url| LinkKind::of_url(url) == Some(LinkKind::Beamlog));
    let pass = config.pass().filter(|pass| is_hub && matches!(pass, Pass::Token { .. }))?;
    let error = crate::edges::load_pass(&pass).err()?;
    Some(LinkProblem::Token { problem: crate::cli::err_chain(&error) })
}

/// A secret by file or by variable, under the names of its two keys.
struct Named<'a> {
    file_key: &'static str,
    file: &'a Option<PathBuf>,
    variable_key: &'static str,
    variable: &'a Option<String>,
}

impl Named<'_> {
    fn is_said(&self) -> bool {
        self.file.is_some() || self.variable.is_some()
    }

    fn read(&self, environment: &Environment, problems: &mut Vec<LinkProblem>) -> Option<Secret> {
        match (self.file, self.variable) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                problems.push(LinkProblem::Conflict { first: self.file_key, second: self.variable_key });
                None
            }
            (Some(path), None) => {
                readable(self.file_key, path, problems);
                Some(Secret::File(path.clone()))
            }
            (None, Some(variable)) => match environment.get(variable).filter(|value| !value.is_empty()) {
                Some(value) => Some(Secret::Value(value.clone())),
                None => {
                    let variable = variable.clone();
                    problems.push(LinkProblem::VariableMissing { key: self.variable_key, variable });
                    None
                }
            },
        }
    }
}

fn readable(key: &'static str, path: &Path, problems: &mut Vec<LinkProblem>) {
    if let Err(error) = fs::File::open(path) {
        let (path, problem) = (path.display().to_string(), error.to_string());
        problems.push(LinkProblem::FileUnreadable { key, path, problem });
    }
}

fn credentials(link: &LinkTable, environment: &Environment, problems: &mut Vec<LinkProblem>) -> Credentials {
    let named = |file_key, file, variable_key, variable| Named { file_key, file, variable_key, variable };
    let password = named("password_file", &link.password_file, "password_env", &link.password_env);
    let token = named("token_file", &link.token_file, "token_env", &link.token_env);
    let nkey = named("nkey_file", &link.nkey_file, "nkey_env", &link.nkey_env);
    let creds = named("creds_file", &link.creds_file, "creds_env", &link.creds_env);
    let kinds = [
        ("user", link.user.is_some() || password.is_said()),
        ("token", token.is_said()),
        ("nkey", nkey.is_said()),
        ("creds", creds.is_said()),
    ];
    let said: Vec<&'static str> =
        kinds.iter().filter(|(_, is_said)| *is_said).map(|(name, _)| *name).collect();
    if let [first, second, ..] = said[..] {
        problems.push(LinkProblem::Conflict { first, second });
        return Credentials::None;
    }
    let credentials = match &link.user {
        Some(user) => match password.read(environment, problems) {
            Some(password) => Some(Credentials::User { user: user.clone(), password }),
            None if password.is_said() => None,
            None => {
                problems.push(LinkProblem::Incomplete { key: "user", missing: "password_file" });
                None
            }
        },
        None if password.is_said() => {
            problems.push(LinkProblem::Incomplete { key: password.said_key(), missing: "user" });
            None
        }
        None => token
            .read(environment, problems)
            .map(Credentials::Token)
            .or_else(|| nkey.read(environment, problems).map(Credentials::NKey))
            .or_else(|| creds.read(environment, problems).map(Credentials::Creds)),
    };
    credentials.unwrap_or_default()
}

impl Named<'_> {
    fn said_key(&self) -> &'static str {
        if self.file.is_some() { self.file_key } else { self.variable_key }
    }
}

/// They are read again when they change; what is wrong with them now is told now.
fn certificates(link: &LinkTable, problems: &mut Vec<LinkProblem>) {
    let Some(folder) = &link.certificates else { return };
    let problem = match crate::edges::load(folder) {
        Ok(certificates) => match certificates.current().identity.role {
            Role::Edge => return,
            role @ (Role::Node | Role::Witness) => {
                format!("{} is named there, an edge is needed: `beamlog cert edge`", role.with_article())
            }
        },
        Err(error) => crate::cli::err_chain(&error),
    };
    problems.push(LinkProblem::Certificates { path: folder.display().to_string(), problem });
}

fn tls(link: &LinkTable, problems: &mut Vec<LinkProblem>) -> LinkTls {
    match (&link.tls_cert_file, &link.tls_key_file) {
        (Some(_), None) => {
            problems.push(LinkProblem::Incomplete { key: "tls_cert_file", missing: "tls_key_file" });
        }
        (None, Some(_)) => {
            problems.push(LinkProblem::Incomplete { key: "tls_key_file", missing: "tls_cert_file" });
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    for (key, file) in [
        ("tls_ca_file", &link.tls_ca_file),
        ("tls_cert_file", &link.tls_cert_file),
        ("tls_key_file", &link.tls_key_file),
    ] {
        if let Some(path) = file {
            readable(key, path, problems);
        }
    }
    LinkTls {
        required: link.tls_ca_file.is_some() || link.tls_cert_file.is_some() || link.tls_first,
        first: link.tls_first,
        ca_file: link.tls_ca_file.clone(),
        cert_file: link.tls_cert_file.clone(),
        key_file: link.tls_key_file.clone(),
    }
}

fn rule(rule: &RuleTable) -> RuleConfig {
    let start = match (rule.start, rule.start_sequence, &rule.start_time) {
        (Some(StartName::All), _, _) => Some(StartFrom::All),
        (Some(StartName::New), _, _) => Some(StartFrom::New),
        (None, Some(sequence), _) => Some(StartFrom::Sequence(sequence)),
        (None, None, Some(time)) => super::start_time(time).map(StartFrom::Time),
        (None, None, None) => None,
    };
    RuleConfig {
        stream: rule.stream.clone(),
        subject: rule.subject.clone(),
        bucket: rule.bucket.clone(),
        to: rule.to.clone(),
        filter: rule.filter.clone(),
        target: rule.target.clone(),
        queue: rule.queue.clone(),
        start,
        keep_sequence: rule.keep_sequence,
        conflict: rule.conflict,
    }
}

/// A rule without subject or direction was refused before.
fn request(rule: &RequestTable) -> Option<RequestConfig> {
    Some(RequestConfig {
        subject: rule.subject.clone()?,
        direction: rule.direction?,
        to: rule.to.clone(),
        queue: rule.queue.clone(),
        timeout_ms: rule.timeout.map(|timeout| u64::try_from(timeout.0.as_millis()).unwrap_or(u64::MAX)),
    })
}
