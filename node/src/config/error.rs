//! Why a configuration is refused. Each names the key and where its value came from.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::links::LinkError;
use crate::config::sources::Origin;

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("reading the configuration file {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the configuration file {} is not valid: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{variable}: {problem}")]
    Variable { variable: String, problem: String },
    #[error(
        "{variable} is not a configuration key{}; `beamlog config show` lists them",
        did_you_mean(nearest)
    )]
    UnknownVariable { variable: String, nearest: Option<String> },
    #[error("{key} = {value} ({origin}) is out of range: at least {min}, at most {max}")]
    OutOfRange { key: &'static str, value: String, origin: Origin, min: String, max: String },
    #[error("{key} is set, {missing} is not: give both or neither")]
    Incomplete { key: &'static str, missing: &'static str },
    #[error("{first} and {second} are both set: give one of them")]
    Conflict { first: &'static str, second: &'static str },
    #[error("reading {key} from {}", path.display())]
    SecretUnreadable { key: &'static str, path: PathBuf, source: io::Error },
    #[error("{key} ({}) is empty", path.display())]
    SecretEmpty { key: &'static str, path: PathBuf },
    #[error("{key}: {problem}")]
    Invalid { key: &'static str, problem: &'static str },
    #[error(
        "listen = {address} is open to other machines and nothing authenticates them: set auth_token_file, or \
         auth_user with auth_password_file, or pass --insecure if that is what you want"
    )]
    OpenWithoutAuthentication { address: SocketAddr },
    #[error(
        "admin = {address} is open to other machines and has no authentication: bind it to loopback, or pass \
         --insecure if that is what you want"
    )]
    AdminOpen { address: SocketAddr },
    #[error("edge {edge:?}: {problem}")]
    Edge { edge: String, problem: String },
    #[error(
        "{key} = {address} is open to other machines and does not authenticate: bind it to loopback behind what \
         does, or pass --insecure if that is what you want"
    )]
    GatewayOpen { key: &'static str, address: SocketAddr },
    #[error(transparent)]
    Link(Box<LinkError>),
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}
