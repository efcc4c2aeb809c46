//! The links of a running node: those of its configuration and those that were added while it ran. Checks
//! every change as a start would, keeps it in the data directory before it says so, and hands it to the
//! runtime of links.
//!
//! A link of the configuration wins over an added one of the same name; the added one stays in the file, is
//! shown as refused, and comes back when the configuration no longer has the name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beamlog_nats::link::status::LinkStatus;
use beamlog_nats::link::{LinkError as RuntimeError, Links};
use beamlog_net::certificates::CertificateStatus;
use beamlog_net::peer::PeerId;
use beamlog_router::Router;
use beamlog_router::replica::Role;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::NodeOptions;
use crate::config::links::{LinkError, LinkProblem, LinkTable, Place, StoredError, StoredLinks, Variables};
use crate::config::links::{check, resolve};
use crate::edges::EdgeDialer;

/// Why a change was not made. What was before still is.
#[derive(Debug, Error)]
pub enum ChangeError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<LinkError>),
    #[error("there is a link named {0}")]
    Exists(String),
    #[error("there is no link named {0}")]
    Unknown(String),
    #[error("link {0} is in the configuration file: change it there and restart, or pause it")]
    OfFile(String),
    #[error("keeping the change")]
    Stored(#[from] StoredError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Where a link was said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    File,
    Added,
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Added => "added",
        }
    }
}

/// One link as the pages show it.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) table: LinkTable,
    pub(crate) source: Source,
    /// Why it does not run at all, if it does not.
    pub(crate) refused: Option<String>,
    pub(crate) status: Option<LinkStatus>,
}

#[derive(Debug)]
pub(crate) struct NodeLinks {
    running: Links,
    dialer: EdgeDialer,
    data_dir: PathBuf,
    variables: Variables,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    file: Vec<LinkTable>,
    stored: StoredLinks,
    /// Added links that do not run, and why: an operator has to look, the node goes on.
    refused: BTreeMap<String, String>,
}

impl NodeLinks {
    /// Starts all links. None is waited for. `role`: of a node in a cluster, which runs them while it leads.
    ///
    /// # Errors
    /// `links.toml` cannot be read, or a link of the configuration cannot be started.
    pub(crate) fn start(
        router: Router,
        options: &NodeOptions,
        role: Option<watch::Receiver<Role>>,
    ) -> Result<Self, ChangeError> {
        let stored = StoredLinks::load(&options.data_dir)?;
        let dialer = EdgeDialer::new(PeerId::of_store(&router.node_id().0));
        let running = if role.is_some() { Links::in_cluster(router) } else { Links::new(router) };
        let links = Self {
            running: running.reaching(Arc::new(dialer.clone())),
            dialer,
            data_dir: options.data_dir.clone(),
            variables: options.variables.clone(),
            known: Mutex::new(Known { file: options.links.clone(), stored, refused: BTreeMap::new() }),
        };
        links.start_all()?;
        if let Some(role) = role {
            tokio::spawn(follow(role, links.running.clone()));
        }
        Ok(links)
    }

    fn start_all(&self) -> Result<(), ChangeError> {
        let mut known = self.known();
        for table in &known.file {
            let mut table = table.clone();
            table.paused |= known.stored.paused.contains(&table.name);
            self.run(&table)?;
        }
        let mut accepted = known.file.clone();
        for table in known.stored.links.clone() {
            match self.start_stored(&table, &accepted) {
                Ok(()) => accepted.push(table),
                Err(error) => {
                    let cause = error.to_string();
                    warn!(link = table.name, cause, "an added link is not started");
                    known.refused.insert(table.name, cause);
                }
            }
        }
        Ok(())
    }

    fn start_stored(&self, table: &LinkTable, accepted: &[LinkTable]) -> Result<(), ChangeError> {
        check_beside(table, accepted)?;
        self.run(table)
    }

    fn run(&self, table: &LinkTable) -> Result<(), ChangeError> {
        let config = resolve(table, &self.variables).map_err(ChangeError::Refused)?;
        Ok(self.running.add(config)?)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a link, or (if `replace`) puts it in place of an added one. Durable when it returns. Blocks on
    /// the disk.
    pub(crate) fn put(&self, table: LinkTable, replace: bool) -> Result<(), ChangeError> {
        let mut known = self.known();
        let name = table.name.clone();
        if known.file.iter().any(|link| link.name == name) {
            return Err(ChangeError::OfFile(name));
        }
        let is_there = known.stored.links.iter().any(|link| link.name == name);
        if is_there && !replace {
            return Err(ChangeError::Exists(name));
        }
        let mut stored = known.stored.clone();
        stored.links.retain(|link| link.name != name);
        let others: Vec<LinkTable> = known.file.iter().chain(&stored.links).cloned().collect();
        check_beside(&table, &others)?;
        let config = resolve(&table, &self.variables).map_err(ChangeError::Refused)?;
        stored.links.push(table);
        stored.save(&self.data_dir)?;
        known.stored = stored;
        known.refused.remove(&name);
        match self.running.remove(&name) {
            Ok(()) | Err(RuntimeError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.running.add(config)?;
        info!(link = name, "a link was added");
        Ok(())
    }

    /// Ends and forgets an added link. Durable when it returns. Blocks on the disk.
    pub(crate) fn remove(&self, name: &str) -> Result<(), ChangeError> {
        let mut known = self.known();
        let is_added = known.stored.links.iter().any(|link| link.name == name);
        if !is_added {
            return Err(if known.file.iter().any(|link| link.name == name) {
                ChangeError::OfFile(name.to_owned())
            } else {
                ChangeError::Unknown(name.to_owned())
            });
        }
        let mut stored = known.stored.clone();
        stored.links.retain(|link| link.name != name);
        stored.save(&self.data_dir)?;
        known.stored = stored;
        known.refused.remove(name);
        // The running one of this name may be the file's.
        if known.file.iter().all(|link| link.name != name) {
            match self.running.remove(name) {
                Ok(()) | Err(RuntimeError::Unknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        info!(link = name, "a link was removed");
        Ok(())
    }

    /// Pauses or resumes a link, also over restarts. Durable when it returns. Blocks on the disk.
    pub(crate) fn set_paused(&self, name: &str, paused: bool) -> Result<(), ChangeError> {
        let mut known = self.known();
        let mut stored = known.stored.clone();
        if known.file.iter().any(|link| link.name == name) {
            if paused {
                stored.paused.insert(name.to_owned());
            } else {
                stored.paused.remove(name);
            }
        } else {
            let link = stored.links.iter_mut().find(|link| link.name == name);
            link.ok_or_else(|| ChangeError::Unknown(name.to_owned()))?.paused = paused;
        }
        if stored != known.stored {
            stored.save(&self.data_dir)?;
            known.stored = stored;
        }
        if paused {
            self.running.pause(name)?
        } else {
            self.running.resume(name)?
        }
        info!(link = name, paused, "a link was changed");
        Ok(())
    }

    /// Has both sides compared anew.
    pub(crate) fn resync(&self, name: &str) -> Result<(), ChangeError> {
        Ok(self.running.resync(name)?)
    }

    pub(crate) fn running(&self) -> &Links {
        &self.running
    }

    /// All links, by name.
    pub(crate) fn all(&self) -> Vec<Shown> {
        let known = self.known();
        let mut status: BTreeMap<String, LinkStatus> =
            self.running.status().into_iter().map(|status| (status.name.clone(), status)).collect();
        let mut shown: Vec<Shown> = known
            .file
            .iter()
            .map(|table| Shown {
                table: table.clone(),
                source: Source::File,
                refused: None,
                status: status.remove(&table.name),
            })
            .collect();
        shown.extend(known.stored.links.iter().map(|table| Shown {
            table: table.clone(),
            source: Source::Added,
            refused: known.refused.get(&table.name).cloned(),
            status: status.remove(&table.name),
        }));
        shown.sort_by(|left, right| left.table.name.cmp(&right.table.name));
        shown
    }

    /// What hubs were shown, by file or folder.
    pub(crate) async fn certificates(&self) -> Vec<(PathBuf, CertificateStatus)> {
        self.dialer.certificates().await
    }

    /// Stops all links within `grace`. *Cancel safety*: they are told to stop at once.
    pub(crate) async fn drain(&self, grace: Duration) {
        self.running.drain(grace).await;
        self.dialer.close().await;
    }
}

/// Has links run here while this node leads. Ends with the cluster.
async fn follow(mut role: watch::Receiver<Role>, links: Links) {
    loop {
        let leads = matches!(*role.borrow_and_update(), Role::Leader { .. });
        links.lead(leads);
        if role.changed().await.is_err() {
            links.lead(false);
            return;
        }
    }
}

/// What is wrong with `table` beside links that are accepted.
fn check_beside(table: &LinkTable, others: &[LinkTable]) -> Result<(), ChangeError> {
    if others.iter().any(|link| link.name == table.name) {
        let (link, problem) = (table.name.clone(), LinkProblem::NameTaken);
        return Err(ChangeError::Refused(vec![LinkError { link, place: Place::Link, problem }]));
    }
    let all: Vec<LinkTable> = others.iter().chain([table]).cloned().collect();
    // The others were accepted: whatever is wrong now is this one's.
    let errors: Vec<LinkError> = check(&all).into_iter().filter(|error| error.link == table.name).collect();
    if errors.is_empty() { Ok(()) } else { Err(ChangeError::Refused(errors)) }
}
