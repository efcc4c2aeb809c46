//! Tasks in a node: their options from the configuration, policies from files, and the small address where
//! gateways ask for back-pressure.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beamlog_router::Router;
use beamlog_tasks::engine::settings::Settings;
use beamlog_tasks::intake::IntakeRules;
use beamlog_tasks::service::{Service, ServiceOptions};
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::config::{NodeOptions, TasksOptions};

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
    #[error(transparent)]
    Start(#[from] beamlog_tasks::service::StartError),
}

/// Running tasks of a node.
#[derive(Debug)]
pub(crate) struct Tasks {
    service: Arc<Service>,
    backpressure: Option<(SocketAddr, JoinHandle<()>)>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.backpressure {
            task.abort();
        }
    }
}

impl Tasks {
    pub(crate) async fn start(
        router: &Router,
        options: &TasksOptions,
        node: &NodeOptions,
    ) -> Result<Self, TasksError> {
        let policies = match &options.policies {
            Some(folder) => read_policies(folder)?,
            None => Vec::new(),
        };
        let intake = IntakeRules { strict: options.strict, payload_bytes_max: node.payload_bytes_max };
        let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let service_options = ServiceOptions {
            settings: Settings { intake, ..Settings::default() },
            policies,
            seed: u64::try_from(seed & u128::from(u64::MAX)).unwrap_or_default(),
            ..ServiceOptions::default()
        };
        let router = router.clone();
        // It reads the log.
        let starting = tokio::task::spawn_blocking(move || Service::start(&router, service_options));
        let service = Arc::new(starting.await.expect("starting is not cancelled, and does not panic")?);
        let backpressure = match options.backpressure {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|source| TasksError::Listen { address, source })?;
                let address = listener.local_addr().unwrap_or(address);
                Some((address, tokio::spawn(tell_gateways(listener, Arc::clone(&service)))))
            }
        };
        Ok(Self { service, backpressure })
    }

    pub(crate) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(crate) fn backpressure_address(&self) -> Option<SocketAddr> {
        self.backpressure.as_ref().map(|(address, _)| *address)
    }

    /// Finishes what was taken in and writes the state.
    pub(crate) async fn stop(self) {
        self.service.close();
        let service = Arc::clone(&self.service);
        drop(self);
        let waiting = tokio::task::spawn_blocking(move || service.wait());
        waiting.await.expect("waiting is not cancelled, and does not panic");
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
async fn tell_gateways(listener: TcpListener, service: Arc<Service>) {
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(err = %error, "a gateway could not be let in");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = backpressure_page(&service);
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

fn backpressure_page(service: &Service) -> String {
    let stats = service.stats();
    let active = u8::from(stats.counters.backpressure >= 2);
    let subject = "beamline.router.v1.decide";
    let mut body = format!("router_intake_backpressure_active{{subject=\"{subject}\"}} {active}\n");
    // Its mere presence is a warning to the gateway.
    if stats.counters.backpressure == 1 {
        body.push_str(&format!(
            "router_jetstream_pending_messages{{subject=\"{subject}\"}} {}\n",
            stats.queued
        ));
    }
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
