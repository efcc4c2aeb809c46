//! Tasks in a node: their options from the configuration, policies from files, where they run in a cluster, and
//! the small address where gateways ask for back-pressure.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beamlog_router::Router;
use beamlog_router::replica::Role;
use beamlog_tasks::engine::degraded::Degraded;
use beamlog_tasks::engine::settings::{ControlToken, Settings};
use beamlog_tasks::intake::IntakeRules;
use beamlog_tasks::service::{Outpost, Service, ServiceOptions, TasksStats};
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::cli::err_chain;

use crate::config::{NodeOptions, TasksOptions};
use crate::otlp::{Counts, Exporter};

/// The folder of policies that every tenant has.
const EVERYBODY: &str = "_all";
/// Policies of all tenants together; more are a mistake of the folder.
const POLICIES_MAX: usize = 10_000;
const POLICY_BYTES_MAX: u64 = 1 << 20;

/// Why a node with tasks does not start.
#[derive(Debug, Error)]
pub enum TasksError {
    #[error("reading {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} is not JSON", path.display())]
    Malformed { path: PathBuf, source: serde_json::Error },
    #[error("{} holds more than {POLICIES_MAX} policies", path.display())]
    TooMany { path: PathBuf },
    #[error("{} is larger than {POLICY_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("listening for gateways on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("starting the outpost of tasks")]
    Outpost(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] beamlog_tasks::service::StartError),
}

/// Between two attempts to begin at a node that leads.
const AGAIN: Duration = Duration::from_millis(200);

/// What a node knows of tasks, whether they run here or where the cluster is led.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    here: RwLock<Option<Arc<Service>>>,
    outpost: Option<Outpost>,
    spans: Option<Arc<Counts>>,
}

impl Serving {
    fn here(&self) -> Option<Arc<Service>> {
        self.here.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, service: Option<Arc<Service>>) -> Option<Arc<Service>> {
        std::mem::replace(&mut *self.here.write().unwrap_or_else(PoisonError::into_inner), service)
    }

    /// What is counted here; nothing where tasks do not run.
    pub(crate) fn stats(&self) -> TasksStats {
        self.here().map(|service| service.stats()).unwrap_or_default()
    }

    /// What of tasks does not work as it should, as far as this node knows.
    pub(crate) fn degraded(&self) -> Vec<Degraded> {
        match (self.here(), &self.outpost) {
            (Some(service), _) => service.stats().degraded,
            (None, Some(outpost)) if outpost.seen().leader.is_none() => vec![Degraded::of_leader()],
            (None, _) => Vec::new(),
        }
    }

    /// Spans that were exported, and those that were not.
    pub(crate) fn spans(&self) -> (u64, u64) {
        self.spans.as_ref().map_or((0, 0), |counts| (counts.exported(), counts.dropped()))
    }

    /// Whether they run here.
    pub(crate) fn is_here(&self) -> bool {
        self.here().is_some()
    }

    /// How loaded they are, wherever they run: 0 not, 1 a warning, 2 overloaded; and how many tasks wait.
    pub(crate) fn pressure(&self) -> (u64, u64) {
        match (self.here(), &self.outpost) {
            (Some(service), _) => {
                let stats = service.stats();
                (stats.counters.backpressure, stats.queued)
            }
            (None, Some(outpost)) => {
                let seen = outpost.seen();
                (seen.pressure, seen.queued)
            }
            (None, None) => (0, 0),
        }
    }

    /// Ends what runs here; `finish`: what was taken in first.
    fn end(&self, finish: bool) {
        let Some(service) = self.set(None) else { return };
        if finish {
            service.close();
        } else {
            service.stand_down();
        }
        service.wait();
    }
}

/// Running tasks of a node.
#[derive(Debug)]
pub(crate) struct Tasks {
    serving: Arc<Serving>,
    following: Option<JoinHandle<()>>,
    _exporter: Option<Exporter>,
    backpressure: Option<(SocketAddr, JoinHandle<()>)>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.following.iter().chain(self.backpressure.iter().map(|(_, task)| task)) {
            task.abort();
        }
    }
}

impl Tasks {
    /// `role`: of a node in a cluster, where they run while it leads.
    pub(crate) async fn start(
        router: &Router,
        options: &TasksOptions,
        node: &NodeOptions,
        role: Option<watch::Receiver<Role>>,
    ) -> Result<Self, TasksError> {
        let policies = match &options.policies {
            Some(folder) => read_policies(folder)?,
            None => Vec::new(),
        };
        let intake = IntakeRules { strict: options.strict, payload_bytes_max: node.payload_bytes_max };
        let (exporter, sink) = match options.spans.clone() {
            None => (None, None),
            Some(endpoint) => {
                let (exporter, sink) = Exporter::start(endpoint, router.node_id().to_string());
                (Some(exporter), Some(sink))
            }
        };
        let spans = exporter.as_ref().map(|exporter| Arc::clone(exporter.counts()));
        let service_options = ServiceOptions {
            spans: sink,
            settings: Settings {
                intake,
                open_tasks_max: usize::try_from(options.open_max).unwrap_or(usize::MAX),
                control_token: options
                    .control_token
                    .as_ref()
                    .map(|token| ControlToken(token.0.as_str().into())),
                control_tenant: options.control_tenant.clone(),
                ..Settings::default()
            },
            policies,
            ..ServiceOptions::default()
        };
        let listener = match options.backpressure {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address).await;
                Some((listener.map_err(|source| TasksError::Listen { address, source })?, address))
            }
        };
        let (serving, following) = match role {
            None => {
                let service = begin(router, service_options, None).await?;
                (Arc::new(Serving { here: RwLock::new(Some(service)), outpost: None, spans }), None)
            }
            Some(role) => {
                let outpost = Outpost::start(router).map_err(TasksError::Outpost)?;
                let serving = Arc::new(Serving { outpost: Some(outpost), spans, ..Serving::default() });
                let following = follow(role, Arc::clone(&serving), router.clone(), service_options);
                (serving, Some(tokio::spawn(following)))
            }
        };
        let backpressure = listener.map(|(listener, asked)| {
            let address = listener.local_addr().unwrap_or(asked);
            (address, tokio::spawn(tell_gateways(listener, Arc::clone(&serving))))
        });
        Ok(Self { serving, following, _exporter: exporter, backpressure })
    }

    pub(crate) fn serving(&self) -> &Arc<Serving> {
        &self.serving
    }

    pub(crate) fn backpressure_address(&self) -> Option<SocketAddr> {
        self.backpressure.as_ref().map(|(address, _)| *address)
    }

    /// Finishes what was taken in and writes the state.
    pub(crate) async fn stop(self) {
        let serving = Arc::clone(&self.serving);
        // Nothing begins here any more.
        drop(self);
        let ending = tokio::task::spawn_blocking(move || serving.end(true));
        ending.await.expect("ending is not cancelled, and does not panic");
    }
}

/// Reads the log and answers requests.
async fn begin(
    router: &Router,
    options: ServiceOptions,
    leads: Option<u64>,
) -> Result<Arc<Service>, beamlog_tasks::service::StartError> {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let seed = u64::try_from(seed & u128::from(u64::MAX)).unwrap_or_default();
    let (router, options) = (router.clone(), ServiceOptions { seed, leads, ..options });
    let starting = tokio::task::spawn_blocking(move || Service::start(&router, options));
    Ok(Arc::new(starting.await.expect("starting is not cancelled, and does not panic")?))
}

/// Has tasks run here while this node leads. Ends with the cluster.
async fn follow(
    mut role: watch::Receiver<Role>,
    serving: Arc<Serving>,
    router: Router,
    options: ServiceOptions,
) {
    let mut told = String::new();
    loop {
        let now = *role.borrow_and_update();
        // Whatever ran here ran for another term.
        let (ended, leads) = (Arc::clone(&serving), matches!(now, Role::Leader { .. }));
        let ending = tokio::task::spawn_blocking(move || {
            ended.end(false);
            if let Some(outpost) = &ended.outpost {
                outpost.watch(!leads);
            }
        });
        ending.await.expect("ending is not cancelled, and does not panic");
        if let Role::Leader { term } = now {
            match begin(&router, options.clone(), Some(term.0)).await {
                Ok(service) => {
                    info!(term = term.0, "tasks run here");
                    told.clear();
                    serving.set(Some(service));
                }
                Err(error) => {
                    let problem = err_chain(&error);
                    if problem != told {
                        warn!(err = problem, "tasks cannot begin here yet");
                        told = problem;
                    }
                    // Also when the role changes: then all begins anew.
                    tokio::select! {
                        _ = role.changed() => {}
                        () = tokio::time::sleep(AGAIN) => {}
                    }
                    if role.has_changed().is_err() {
                        return;
                    }
                    continue;
                }
            }
        }
        if role.changed().await.is_err() {
            return;
        }
    }
}

/// All policies of a folder: tenant, id, document.
fn read_policies(folder: &Path) -> Result<Vec<(String, String, Value)>, TasksError> {
    let mut policies = Vec::new();
    for tenant in entries(folder)? {
        if !tenant.is_dir() {
            continue;
        }
        for path in entries(&tenant)? {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            if policies.len() >= POLICIES_MAX {
                return Err(TasksError::TooMany { path: folder.to_owned() });
            }
            let unreadable = |source| TasksError::Unreadable { path: path.clone(), source };
            if fs::metadata(&path).map_err(unreadable)?.len() > POLICY_BYTES_MAX {
                return Err(TasksError::TooLarge { path });
            }
            let text = fs::read(&path).map_err(unreadable)?;
            let document = serde_json::from_slice(&text)
                .map_err(|source| TasksError::Malformed { path: path.clone(), source })?;
            let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let owner = tenant.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let owner = if owner == EVERYBODY { "*".to_owned() } else { owner };
            policies.push((owner, name(&path), document));
        }
    }
    Ok(policies)
}

/// The entries of a folder, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, TasksError> {
    let unreadable = |source| TasksError::Unreadable { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        paths.push(entry.map_err(unreadable)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Answers every connection at once, before it asks: the gateway reads right after it wrote, without
/// waiting, and takes the first occurrence of the metric's name for the sample.
async fn tell_gateways(listener: TcpListener, serving: Arc<Serving>) {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(err = %error, "a gateway could not be let in");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = backpressure_page(&serving);
        tokio::spawn(async move {
            let told = async {
                stream.write_all(answer.as_bytes()).await?;
                // What it asks is read and not looked at, or closing would reset the connection.
                let mut request = [0; 4096];
                while stream.read(&mut request).await? == request.len() {}
                stream.shutdown().await
            };
            // A gateway that hangs up or hangs is its own loss: it asks again.
            drop(tokio::time::timeout(Duration::from_secs(2), told).await);
        });
    }
}

fn backpressure_page(serving: &Serving) -> String {
    let (pressure, queued) = serving.pressure();
    let active = u8::from(pressure >= 2);
    let subject = "beamline.router.v1.decide";
    let mut body = format!("router_intake_backpressure_active{{subject=\"{subject}\"}} {active}\n");
    // Its mere presence is a warning to the gateway.
    if pressure == 1 {
        body.push_str(&format!("router_jetstream_pending_messages{{subject=\"{subject}\"}} {queued}\n"));
    }
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
