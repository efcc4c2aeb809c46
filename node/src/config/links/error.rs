//! Why a link is refused: which link, which of its rules, and what is wrong with it.

use std::fmt;

use thiserror::Error;

/// One thing that is wrong with one link.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("link {link:?}{place}: {problem}")]
pub struct LinkError {
    pub link: String,
    pub place: Place,
    pub problem: LinkProblem,
}

/// Where in the link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    Link,
    /// The list, the position in it from 1, and the rule as it is written.
    Rule {
        list: &'static str,
        number: usize,
        text: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => Ok(()),
            Self::Rule { list, number, text } => write!(f, ", {list} {number} {text}"),
        }
    }
}

#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum LinkProblem {
    #[error("{key} is not a key here; there are {known}")]
    UnknownKey { key: String, known: String },
    #[error("{key}: {problem}")]
    WrongKind { key: String, problem: String },
    #[error("a secret is not written here: name a file in {key}_file or a variable in {key}_env")]
    InlineSecret { key: String },
    #[error("{key} is missing")]
    Missing { key: &'static str },
    #[error("a name is 1 to 64 letters, digits, `-` and `_`")]
    Name,
    #[error("another link has this name")]
    NameTaken,
    #[error("{what} are at most {max}")]
    TooMany { what: &'static str, max: usize },
    #[error(
        "{url} is not a URL of a NATS server, like nats://host:4222, tls://, ws:// or wss://, or of a hub, like quic://host:4433"
    )]
    Url { url: String },
    #[error("urls names a NATS server and a Beamlog hub: a link goes to one or the other")]
    TwoKinds,
    #[error(
        "{url} needs certificates: the folder that `beamlog cert edge` wrote; or token_file and tls_ca_file: what \
         `beamlog cert token` wrote"
    )]
    NoCertificates { url: String },
    #[error("{key} does not go with {scheme} URLs")]
    KeyOfOtherTransport { key: &'static str, scheme: &'static str },
    #[error("the certificates in {path}: {problem}")]
    Certificates { path: String, problem: String },
    #[error("the token for the hub: {problem}")]
    Token { problem: String },
    #[error(
        "{url} has a user or password in it: use user with password_file or password_env, or token_file or \
         token_env"
    )]
    UrlWithSecret { url: String },
    #[error("{first} and {second} are both set: give one of them")]
    Conflict { first: &'static str, second: &'static str },
    #[error("{key} is set, {missing} is not: give both or neither")]
    Incomplete { key: &'static str, missing: &'static str },
    #[error("reading {key} from {path}: {problem}")]
    FileUnreadable { key: &'static str, path: String, problem: String },
    #[error("{key}: the variable {variable} is not set, or empty")]
    VariableMissing { key: &'static str, variable: String },
    #[error("domain and api_prefix name the same thing: give one of them")]
    DomainAndPrefix,
    #[error("a rule names one of stream, subject or bucket")]
    Kind,
    #[error("{key} does not go with {kind}")]
    KeyOfOtherKind { key: &'static str, kind: &'static str },
    #[error("{value:?} is not a legal {what}")]
    Illegal { what: &'static str, value: String },
    #[error(
        "{subject:?} belongs to the system of one side; links carry no subjects that begin with $ or _INBOX"
    )]
    SystemSubject { subject: String },
    #[error("{from:?} cannot become {to:?}: {problem}")]
    Mapping { from: String, to: String, problem: String },
    #[error("give one of start, start_sequence and start_time")]
    StartTwice,
    #[error("{value:?} is not a time like 2026-01-31T12:00:00Z")]
    StartTime { value: String },
    #[error("both carry {subject:?}, so that a message would come twice: {other}")]
    Overlap { subject: String, other: String },
    #[error("both fill {what} {name:?}: {other}")]
    SameTarget { what: &'static str, name: String, other: String },
    #[error("what goes out by one comes back by the other, a loop: {other}")]
    Loop { other: String },
    #[error("bytes_per_second is at least 1KiB")]
    Bandwidth,
    /// What the runtime of links refuses.
    #[error("{rule}: {problem}")]
    Refused { rule: String, problem: String },
    #[error("nothing to carry: give import, export or requests")]
    Empty,
}
