//! Three servers that replicate each other: `beamlog cluster dev`, or three nats-server processes with routes.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::client::{ClientError, Connection};
use crate::contender::{Contender, Programs};

const NODES: u16 = 3;
/// A cluster that has not formed by then is not going to.
const FORM_MAX: Duration = Duration::from_secs(120);
/// After this a server that was asked to stop gets SIGKILL.
const STOP_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum TrioError {
    #[error("preparing {path}")]
    Prepare { path: PathBuf, source: io::Error },
    #[error("starting {program}")]
    Start { program: PathBuf, source: io::Error },
    #[error("the cluster did not form: {0}")]
    NotFormed(String),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Three servers. Stopped when dropped.
pub struct Trio {
    children: Vec<Child>,
    pids: Vec<u32>,
    addresses: Vec<SocketAddr>,
    /// Beamlog's `cluster dev` writes a line each time a node comes back: it is read to the end.
    _output: Option<BufReader<ChildStdout>>,
}

impl Trio {
    /// Starts three servers with data below `folder`, and waits until each takes clients.
    pub fn start(programs: &Programs, contender: Contender, folder: &Path) -> Result<Self, TrioError> {
        match contender {
            Contender::Beamlog => Self::beamlog(programs, folder),
            Contender::NatsDefault => Self::nats(programs, folder, ""),
            Contender::NatsAlways => Self::nats(programs, folder, ", sync_interval: always"),
        }
    }

    fn beamlog(programs: &Programs, folder: &Path) -> Result<Self, TrioError> {
        let program = programs.beamlog.clone();
        let base = free_base().map_err(|source| prepare(folder, source))?;
        let mut child = Command::new(&program)
            .args(["cluster", "dev", "--nodes", &NODES.to_string(), "--base-port", &base.to_string()])
            .arg("--data-dir")
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log(folder, "cluster")?)
            .spawn()
            .map_err(|source| TrioError::Start { program, source })?;
        let mut output = child.stdout.take().map(BufReader::new);
        let mut trio = Self { children: vec![child], pids: Vec::new(), addresses: Vec::new(), _output: None };
        while let Some(lines) = output.as_mut()
            && trio.pids.len() < usize::from(NODES)
        {
            let mut line = String::new();
            lines.read_line(&mut line).map_err(|source| prepare(folder, source))?;
            let node: Value = serde_json::from_str(&line)
                .map_err(|_ended| TrioError::NotFormed(tail(folder, "cluster")))?;
            let address = node["nats"].as_str().and_then(|text| text.parse().ok());
            let pid = node["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
            let (Some(address), Some(pid)) = (address, pid) else { return Err(TrioError::NotFormed(line)) };
            trio.addresses.push(address);
            trio.pids.push(pid);
        }
        trio._output = output;
        Ok(trio)
    }

    fn nats(programs: &Programs, folder: &Path, sync: &str) -> Result<Self, TrioError> {
        let program = programs.nats_server.clone();
        let ports = free_ports(2 * usize::from(NODES)).map_err(|source| prepare(folder, source))?;
        let (clients, routes) = ports.split_at(usize::from(NODES));
        let all: Vec<String> = routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        let mut trio = Self { children: Vec::new(), pids: Vec::new(), addresses: Vec::new(), _output: None };
        for (number, (client, route)) in clients.iter().zip(routes).enumerate() {
            let name = format!("n{number}");
            let config = format!(
                "listen: \"127.0.0.1:{client}\"\nserver_name: {name}\njetstream {{ store_dir: {:?}{sync} }}\n\
                 cluster {{ name: bench, listen: \"127.0.0.1:{route}\", routes: [{}] }}\n",
                folder.join(&name).display().to_string(),
                all.join(", "),
            );
            let path = folder.join(format!("{name}.conf"));
            fs::write(&path, config).map_err(|source| prepare(&path, source))?;
            let child = Command::new(&program)
                .arg("-c")
                .arg(&path)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log(folder, &name)?)
                .spawn()
                .map_err(|source| TrioError::Start { program: program.clone(), source })?;
            trio.pids.push(child.id());
            trio.children.push(child);
            trio.addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, *client)));
        }
        let begun = Instant::now();
        for (number, address) in trio.addresses.iter().enumerate() {
            while Connection::open(*address).is_err() {
                if begun.elapsed() > FORM_MAX {
                    return Err(TrioError::NotFormed(tail(folder, &format!("n{number}"))));
                }
                thread::sleep(LOOK);
            }
        }
        Ok(trio)
    }

    /// A client of one of the servers, the next one for the next number, that waits for an answer no longer than
    /// this: nobody answers the API of a cluster that is being formed.
    pub fn connect(&self, number: usize, patience: Duration) -> Result<Connection, TrioError> {
        let connection = Connection::open(self.addresses[number % self.addresses.len()])?;
        let limited = connection.stream()?.set_read_timeout(Some(patience));
        limited.map_err(|source| TrioError::Client(ClientError::Read(source)))?;
        Ok(connection)
    }

    #[must_use]
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        for child in &self.children {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // One that has ended is as good.
                kill_process(pid, Signal::TERM).ok();
            }
        }
        let begun = Instant::now();
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < STOP_MAX {
                thread::sleep(LOOK);
            }
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Asks again until it is done: a cluster that is being formed refuses.
pub fn patiently<T, E: std::fmt::Display>(mut ask: impl FnMut() -> Result<T, E>) -> Result<T, TrioError> {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(done) => return Ok(done),
            Err(error) if begun.elapsed() > FORM_MAX => return Err(TrioError::NotFormed(error.to_string())),
            Err(_not_yet) => thread::sleep(LOOK),
        }
    }
}

fn prepare(path: &Path, source: io::Error) -> TrioError {
    TrioError::Prepare { path: path.to_path_buf(), source }
}

fn log(folder: &Path, name: &str) -> Result<fs::File, TrioError> {
    let path = folder.join(format!("{name}.log"));
    fs::File::create(&path).map_err(|source| prepare(&path, source))
}

/// The end of what a server said.
fn tail(folder: &Path, name: &str) -> String {
    let text = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("; ")
}

fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// A port with those free that `cluster dev` derives from it.
fn free_base() -> io::Result<u16> {
    loop {
        let base = free_ports(1)?[0];
        let is_free = |port: u16| {
            let (nats, admin) = (port, port.saturating_add(1000));
            TcpListener::bind((Ipv4Addr::LOCALHOST, nats)).is_ok()
                && TcpListener::bind((Ipv4Addr::LOCALHOST, admin)).is_ok()
                && UdpSocket::bind((Ipv4Addr::LOCALHOST, port.saturating_add(2000))).is_ok()
        };
        if base < 60_000 && (base..base + NODES).all(is_free) {
            return Ok(base);
        }
    }
}
