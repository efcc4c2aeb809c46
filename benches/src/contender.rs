//! The servers that are measured: Beamlog and nats-server, started on free ports and stopped by pid.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::{ClientError, Connection};
use crate::figures::Durability;

/// A server that has not said INFO by then is not going to.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// A server that is asked to stop and has not by then gets SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum ContenderError {
    #[error("starting {program}")]
    Start { program: PathBuf, source: io::Error },
    #[error("preparing {path}")]
    Prepare { path: PathBuf, source: io::Error },
    #[error("{program} ended before it served: {status}; its output: {output}")]
    Ended { program: PathBuf, status: String, output: String },
    #[error("{program} did not say INFO within {START_TIMEOUT:?}")]
    Silent { program: PathBuf },
    #[error("no {name} at {path}: {remedy}")]
    Missing { name: &'static str, path: PathBuf, remedy: &'static str },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Who is measured, and with which promise.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Contender {
    Beamlog,
    NatsDefault,
    NatsAlways,
}

impl Contender {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Beamlog => "beamlog",
            Self::NatsDefault => "nats-server",
            Self::NatsAlways => "nats-server always",
        }
    }

    /// What an ack of this server means for a stored message.
    #[must_use]
    pub fn durability(self) -> Durability {
        match self {
            Self::Beamlog | Self::NatsAlways => Durability::Disk,
            Self::NatsDefault => Durability::Os,
        }
    }
}

/// Where the two programs are.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    pub beamlog: PathBuf,
    pub nats_server: PathBuf,
    /// Set for every server that is started.
    pub environment: Vec<(String, String)>,
}

impl Programs {
    #[must_use]
    pub fn of(&self, contender: Contender) -> &Path {
        match contender {
            Contender::Beamlog => &self.beamlog,
            Contender::NatsDefault | Contender::NatsAlways => &self.nats_server,
        }
    }

    /// An error that says how to get a program that is not there.
    pub fn check(&self, contender: Contender) -> Result<(), ContenderError> {
        let path = self.of(contender).to_path_buf();
        if path.is_file() {
            return Ok(());
        }
        Err(match contender {
            Contender::Beamlog => ContenderError::Missing {
                name: "beamlog",
                path,
                remedy: "cargo build --release, or give --beamlog PATH",
            },
            Contender::NatsDefault | Contender::NatsAlways => ContenderError::Missing {
                name: "nats-server",
                path,
                remedy: "scripts/test puts one into .venv, or give --nats-server PATH",
            },
        })
    }
}

/// A running server. Killed when dropped.
pub struct Server {
    child: Child,
    program: PathBuf,
    /// What it printed.
    output: PathBuf,
    start: Instant,
    contender: Contender,
    address: SocketAddr,
    admin: SocketAddr,
    started_in: Duration,
}

impl Server {
    /// Starts a server over `data` (which may hold an earlier run's data) and waits for its INFO.
    pub fn start(programs: &Programs, contender: Contender, data: &Path) -> Result<Self, ContenderError> {
        Self::launch(programs, contender, data, None)?.serving()
    }

    /// As `start`, with the process under strace, which writes into `trace`.
    pub fn start_traced(
        programs: &Programs,
        contender: Contender,
        data: &Path,
        trace: &Path,
    ) -> Result<Self, ContenderError> {
        Self::launch(programs, contender, data, Some(trace))?.serving()
    }

    /// Starts a server and kills it `after` a while, wherever it is then.
    pub fn start_and_kill(
        programs: &Programs,
        contender: Contender,
        data: &Path,
        after: Duration,
    ) -> Result<(), ContenderError> {
        let mut server = Self::launch(programs, contender, data, None)?;
        thread::sleep(after);
        server.end();
        Ok(())
    }

    /// Starts the process and does not wait for it.
    fn launch(
        programs: &Programs,
        contender: Contender,
        data: &Path,
        trace: Option<&Path>,
    ) -> Result<Self, ContenderError> {
        let address = free_address(data)?;
        let admin = free_address(data)?;
        let program = programs.of(contender).to_path_buf();
        let mut command = match trace {
            None => Command::new(&program),
            Some(trace) => {
                // With -D the server and not strace is our child: its pid is the one to be stopped.
                let mut command = Command::new("strace");
                command.args(crate::trace::STRACE).arg("-o").arg(trace).arg(&program);
                command
            }
        };
        match contender {
            Contender::Beamlog => {
                command.arg("serve");
                command.args(["--listen", &address.to_string(), "--admin", &admin.to_string()]);
                command.arg("--data-dir").arg(data);
            }
            Contender::NatsDefault | Contender::NatsAlways => {
                command.arg("-c").arg(write_nats_config(contender, address, data)?);
            }
        }
        // stdout is where beamlog may print; both log to stderr. A file, because a full pipe would block.
        let output = data.with_extension("log");
        let log = fs::File::create(&output).map_err(|source| prepare(&output, source))?;
        let errors = log.try_clone().map_err(|source| prepare(&output, source))?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        command.envs(programs.environment.iter().map(|(name, value)| (name, value)));
        let start = Instant::now();
        let child =
            command.spawn().map_err(|source| ContenderError::Start { program: program.clone(), source })?;
        Ok(Self { child, program, output, contender, address, admin, start, started_in: Duration::ZERO })
    }

    /// Waits for the INFO.
    fn serving(mut self) -> Result<Self, ContenderError> {
        while !says_info(self.address) {
            let program = self.program.clone();
            if let Ok(Some(status)) = self.child.try_wait() {
                let output = fs::read_to_string(&self.output).unwrap_or_default();
                return Err(ContenderError::Ended { program, status: status.to_string(), output });
            }
            if self.start.elapsed() > START_TIMEOUT {
                return Err(ContenderError::Silent { program });
            }
            thread::sleep(Duration::from_micros(500));
        }
        self.started_in = self.start.elapsed();
        Ok(self)
    }

    pub fn connect(&self) -> Result<Connection, ClientError> {
        Connection::open(self.address)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn contender(&self) -> Contender {
        self.contender
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// From the start of the process to its INFO line at a client.
    #[must_use]
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// SIGTERM, and how long the process took to end.
    pub fn stop(mut self) -> Duration {
        let start = Instant::now();
        self.signal(Signal::TERM);
        while start.elapsed() < STOP_TIMEOUT {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return start.elapsed();
            }
            thread::sleep(Duration::from_millis(1));
        }
        start.elapsed()
    }

    /// SIGKILL, and the process is gone.
    pub fn kill(mut self) {
        self.end();
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It fails only when the process has ended, which is what is asked for.
            kill_process(pid, signal).ok();
        }
    }

    fn end(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether a server at this address sends its first line.
fn says_info(address: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect(address) else { return false };
    if stream.set_read_timeout(Some(START_TIMEOUT)).is_err() {
        return false;
    }
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO ")
}

fn free_address(data: &Path) -> Result<SocketAddr, ContenderError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(|source| prepare(data, source))
}

fn prepare(path: &Path, source: io::Error) -> ContenderError {
    ContenderError::Prepare { path: path.to_path_buf(), source }
}

fn write_nats_config(
    contender: Contender,
    address: SocketAddr,
    data: &Path,
) -> Result<PathBuf, ContenderError> {
    let path = data.with_extension("conf");
    let sync = if contender == Contender::NatsAlways { ", sync_interval: always" } else { "" };
    let config =
        format!("listen: \"{address}\"\njetstream {{ store_dir: {:?}{sync} }}\n", data.display().to_string());
    fs::write(&path, config).map_err(|source| prepare(&path, source))?;
    Ok(path)
}
