//! `cluster dev`: a cluster on this machine, in the foreground: certificates, one process for each node, and a
//! new process for each that dies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use beamlog_net::certificates::{
    Authority, IDENTITY_FILE, Identity, ROOTS_FILE, read_secret, write_atomically,
};
use beamlog_net::peer::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::cli::cluster::http;
use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::raw;

/// A node that dies again within this time is given a pause first.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a node may take until it serves.
const READY: Duration = Duration::from_secs(60);
/// After SIGTERM.
const STOP: Duration = Duration::from_secs(20);
/// Ten years: a development cluster should not stop by itself.
const VALID: Duration = Duration::from_secs(3_650 * 86_400);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Starts a cluster on 127.0.0.1 with certificates of its own and prints one JSON line for each node when it serves:
  {\"name\":\"n1\",\"pid\":4242,\"nats\":\"127.0.0.1:14222\",\"admin\":\"127.0.0.1:15222\"}
A node that dies is started again on its data, and its line is printed again. SIGTERM or SIGINT stops them all.

Examples:
  beamlog cluster dev
  beamlog cluster dev --nodes 5 --data-dir /var/tmp/five --base-port 24222
  beamlog stream add ORDERS --subjects 'orders.>' --replicas 3 --server nats://127.0.0.1:14222

Ports: node i (from 0) serves NATS on base + i (TCP), its admin pages on base + 1000 + i (TCP), and its peers on
base + 2000 + i (UDP).")]
pub(crate) struct DevArguments {
    /// How many nodes: 1 to 7.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    /// Folder for the nodes' data and certificates; what is there is used again.
    #[arg(long, value_name = "FOLDER", default_value = "./beamlog-dev-cluster")]
    data_dir: PathBuf,
    /// NATS port of the first node.
    #[arg(long, value_name = "PORT", default_value_t = 14222, value_parser = clap::value_parser!(u16).range(1024..=63000))]
    base_port: u16,
    /// Serve BeamLine's tasks.
    #[arg(long)]
    tasks: bool,
}

/// Where a node is.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    nats: SocketAddr,
    admin: SocketAddr,
    peers: SocketAddr,
    data: PathBuf,
    certificates: PathBuf,
    tasks: bool,
}

impl Place {
    fn of(arguments: &DevArguments, number: u16) -> Self {
        let name = format!("n{}", number + 1);
        let at = |offset: u16| {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), arguments.base_port + offset + number)
        };
        Self {
            nats: at(0),
            admin: at(1000),
            peers: at(2000),
            data: arguments.data_dir.join(&name),
            certificates: arguments.data_dir.join("certificates").join(&name),
            tasks: arguments.tasks,
            name,
        }
    }

    fn command(&self, first: &Self) -> Result<Command, Failure> {
        let program = std::env::current_exe()
            .map_err(|e| Failure::cannot_start(format!("finding this program's own file: {e}")))?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--announce");
        command.arg("--listen").arg(self.nats.to_string()).arg("--admin").arg(self.admin.to_string());
        command.arg("--data-dir").arg(&self.data).arg("--server-name").arg(&self.name);
        command.arg("--cluster-listen").arg(self.peers.to_string());
        command.arg("--cluster-certificates").arg(&self.certificates);
        if self.name != first.name {
            command.arg("--cluster-join").arg(first.peers.to_string());
        }
        if self.tasks {
            command.arg("--tasks");
        }
        // A configuration of the shell is for one node, not for three.
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("BEAMLOG_")) {
            command.env_remove(key);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(command)
    }

    fn line(&self, pid: u32) -> Value {
        json!({
            "name": self.name,
            "pid": pid,
            "nats": self.nats.to_string(),
            "admin": self.admin.to_string(),
        })
    }
}

/// What the keepers tell.
enum News {
    Ready { node: usize, pid: u32 },
    Broken(Failure),
}

pub(crate) async fn dev(arguments: DevArguments) -> Result<(), Failure> {
    let places: Vec<Place> = (0..arguments.nodes).map(|number| Place::of(&arguments, number)).collect();
    make_certificates(&arguments.data_dir, &places)?;
    let cannot_listen = |e: std::io::Error| Failure::cannot_start(format!("listening for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_listen)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_listen)?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (tell, mut news) = mpsc::channel(16);
    let keepers: Vec<_> = (0..places.len())
        .map(|node| tokio::spawn(keep(node, places.clone(), stopped.clone(), tell.clone())))
        .collect();
    drop(tell);
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        result = announce(&places, &mut news) => result,
    };
    // Receivers live as long as the keepers.
    stop.send_replace(true);
    for keeper in keepers {
        // A keeper that panicked has nothing left to stop: its child died with it.
        drop(keeper.await);
    }
    result
}

/// Prints a line for each node: the first time when the whole cluster serves, later as nodes come back.
async fn announce(places: &[Place], news: &mut mpsc::Receiver<News>) -> Result<(), Failure> {
    let mut waiting: Vec<Option<u32>> = vec![None; places.len()];
    let mut formed = false;
    while let Some(news) = news.recv().await {
        match news {
            News::Broken(failure) => return Err(failure),
            News::Ready { node, pid } if formed => print(&places[node], pid)?,
            News::Ready { node, pid } => {
                waiting[node] = Some(pid);
                if waiting.iter().all(Option::is_some) {
                    formed = true;
                    until_formed(places).await?;
                    for (place, pid) in places.iter().zip(&waiting) {
                        print(place, pid.unwrap_or_default())?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn print(place: &Place, pid: u32) -> Result<(), Failure> {
    raw(format!("{}\n", place.line(pid)).as_bytes())
}

/// Waits until every node votes and one leads.
async fn until_formed(places: &[Place]) -> Result<(), Failure> {
    let formed = async {
        loop {
            if let Ok(status) = http::get(places[0].admin, "/cluster").await
                && status["healthy"] == true
                && status["members"].as_array().is_some_and(|members| {
                    members.iter().filter(|member| member["role"] == "voter").count() == places.len()
                })
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(READY, formed)
        .await
        .map_err(|_late| Failure::failed(format!("the cluster did not form within {READY:?}")))
}

/// Keeps one node running until told to stop.
async fn keep(
    node: usize,
    places: Vec<Place>,
    mut stop: tokio::sync::watch::Receiver<bool>,
    tell: mpsc::Sender<News>,
) {
    loop {
        let begun = tokio::time::Instant::now();
        let mut child = match spawn(&places[node], &places[0]) {
            Ok(child) => child,
            Err(failure) => {
                // The other end is gone only when everything stops.
                drop(tell.send(News::Broken(failure)).await);
                return;
            }
        };
        let output = child.stdout.take();
        let pid = child.id().unwrap_or_default();
        let told = tell.clone();
        let reading = tokio::spawn(async move {
            let Some(output) = output else { return };
            let mut lines = BufReader::new(output).lines();
            // The announcement is the only line that `serve` prints.
            if let Ok(Some(_line)) = lines.next_line().await {
                drop(told.send(News::Ready { node, pid }).await);
            }
        });
        let ended = tokio::select! {
            ended = child.wait() => Some(ended),
            () = until_true(&mut stop) => None,
        };
        let Some(ended) = ended else {
            end(child, pid).await;
            return;
        };
        reading.abort();
        let code = ended.ok().and_then(|status| status.code());
        if code == Some(2) {
            let text = format!("{} cannot start; it said why above", places[node].name);
            drop(tell.send(News::Broken(Failure::cannot_start(text))).await);
            return;
        }
        if begun.elapsed() < PAUSE {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn until_true(stop: &mut tokio::sync::watch::Receiver<bool>) {
    // A sender that is gone means the same.
    drop(stop.wait_for(|stop| *stop).await);
}

fn spawn(place: &Place, first: &Place) -> Result<Child, Failure> {
    place.command(first)?.spawn().map_err(|e| Failure::cannot_start(format!("starting {}: {e}", place.name)))
}

/// SIGTERM, and SIGKILL for a node that does not go.
async fn end(mut child: Child, pid: u32) {
    let asked = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = asked
        && rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok()
        && tokio::time::timeout(STOP, child.wait()).await.is_ok()
    {
        return;
    }
    // It may have gone meanwhile.
    drop(child.kill().await);
}

/// An authority and a certificate for each node, unless they are there.
fn make_certificates(folder: &Path, places: &[Place]) -> Result<(), Failure> {
    let failed =
        |what: &str, e: &dyn std::error::Error| Failure::cannot_start(format!("{what}: {}", err_chain(e)));
    if places.iter().all(|place| place.certificates.join(IDENTITY_FILE).exists()) {
        return Ok(());
    }
    let certificates = folder.join("certificates");
    std::fs::create_dir_all(&certificates).map_err(|e| failed("making the folder of certificates", &e))?;
    let authority_file = certificates.join("authority.pem");
    let now = SystemTime::now();
    if !authority_file.exists() {
        let issued = Authority::create("dev", now, VALID).map_err(|e| failed("making an authority", &e))?;
        write_atomically(&authority_file, issued.pem.as_bytes())
            .map_err(|e| failed("writing the authority", &e))?;
    }
    let pem = read_secret(&authority_file).map_err(|e| failed("reading the authority", &e))?;
    let authority = Authority::from_pem(&pem).map_err(|e| failed("reading the authority", &e))?;
    for place in places.iter().filter(|place| !place.certificates.join(IDENTITY_FILE).exists()) {
        let identity =
            Identity::new("dev", Role::Node, &place.name).map_err(|e| failed("naming a node", &e))?;
        let issued =
            authority.issue(&identity, now, VALID).map_err(|e| failed("issuing a certificate", &e))?;
        write_atomically(&place.certificates.join(ROOTS_FILE), roots(&pem))
            .and_then(|()| write_atomically(&place.certificates.join(IDENTITY_FILE), issued.pem.as_bytes()))
            .map_err(|e| failed("writing a certificate", &e))?;
    }
    Ok(())
}

/// The certificate of an authority's text, without its key.
fn roots(authority: &[u8]) -> &[u8] {
    const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----";
    let end = authority.windows(KEY.len()).position(|window| window == KEY).unwrap_or(authority.len());
    &authority[..end]
}
