//! How a command ends: the exit codes, and the one line that says what happened and what to do.

use std::fmt;
use std::io;

/// The process's exit code. Part of the interface; `beamlog --help` lists them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Code {
    Done = 0,
    /// The command was understood and could not be done: refused, not found, timed out, damage found.
    Failed = 1,
    /// Wrong usage or configuration, or the node cannot start.
    CannotStart = 2,
    /// `cluster health`: it was asked, and is not.
    NotHealthy = 10,
    /// A second signal ended it at once.
    Interrupted = 130,
}

/// Why a command ends early. An empty message prints nothing (the reader of a pipe went away).
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: Code::Failed, message: message.into() }
    }

    pub(crate) fn cannot_start(message: impl Into<String>) -> Self {
        Self { code: Code::CannotStart, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Writing to stdout. A closed pipe is the reader saying "enough", not an error.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: Code::Done, message: String::new() };
        }
        Self::failed(format!("writing the output: {error}"))
    }
}

/// An error and its causes, in one line.
pub(crate) fn err_chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Some libraries print their cause themselves.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line.replace('\n', " ")
}
