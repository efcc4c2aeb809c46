//! A node under test: the real binary, on free ports, in a folder of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use crate::dev_cluster::beamlog;

pub(crate) struct Node {
    pub(crate) child: Child,
    pub(crate) listen: String,
    pub(crate) admin: String,
    folder: TempDir,
}

impl Node {
    pub(crate) fn start() -> Self {
        Self::start_with(TempDir::new().unwrap(), &[])
    }

    /// Starts over a folder that may hold a store; its log goes to `log` beside it.
    pub(crate) fn start_with(folder: TempDir, flags: &[&str]) -> Self {
        Self::start_with_env(folder, flags, &[])
    }

    /// The same with variables.
    pub(crate) fn start_with_env(folder: TempDir, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.path().join("log")).unwrap();
        let mut child = beamlog()
            .args(["serve", "--announce", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(flags)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || fs::read_to_string(folder.path().join("log")).unwrap();
        let announced: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("not started: {}", log()));
        assert_eq!(announced["pid"], child.id());
        let text = |key: &str| announced[key].as_str().unwrap_or_default().to_owned();
        Self { listen: text("listen"), admin: text("admin"), child, folder }
    }

    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// A command against this node.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = beamlog();
        command.env("BEAMLOG_URL", format!("nats://{}", self.listen)).args(arguments);
        command
    }

    /// Runs a command to its end; stdout when it did what it was asked.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, String> {
        outcome(&self.command(arguments).output().unwrap())
    }

    /// Runs a command with `-o json`, and reads what it printed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(&[arguments, &["-o", "json"]].concat()).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?} printed {text:?}: {e}"))
    }

    /// `GET` from the admin server: status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        get(&self.admin, path, "localhost")
    }

    pub(crate) fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(self) -> (Option<i32>, TempDir) {
        self.signal("-TERM");
        self.stop_ended()
    }

    /// Waits for the end that somebody else brings about; the folder for the next start.
    pub(crate) fn stop_ended(mut self) -> (Option<i32>, TempDir) {
        let status = self.child.wait().unwrap();
        (status.code(), std::mem::replace(&mut self.folder, TempDir::new().unwrap()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn outcome(output: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        code => Err(format!("{code:?}: {}", text(&output.stderr))),
    }
}

/// Expects exit code 2 and one line that contains all the words.
pub(crate) fn check_cannot_start(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    let line = error.lines().find(|line| line.starts_with("beamlog: ")).unwrap_or_else(|| panic!("{error}"));
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
    assert!(!error.contains("panicked") && !error.contains("backtrace"), "{error}");
}

pub(crate) fn get(address: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, unchunked(head, body))
}

/// The body without the lengths of its chunks.
fn unchunked(head: &str, body: &str) -> String {
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut text, mut rest) = (String::new(), body);
    while let Some((length, tail)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap();
        if length == 0 {
            break;
        }
        text.push_str(&tail[..length]);
        rest = tail[length..].trim_start_matches("\r\n");
    }
    text
}

/// A file that somebody else's program might have left.
pub(crate) fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
