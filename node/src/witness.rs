//! A witness: a node that votes in its cluster and keeps no messages. What `beamlog serve --witness` runs.
//!
//! It has no clients and no router; of a node it has the cluster and the admin pages about that.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use beamlog_log::{StdDisk, Timestamp};
use beamlog_net::cluster::{Standing, Witness, WitnessError};
use beamlog_net::peer::Role;
use thiserror::Error;
use tokio::net::TcpListener;
use tracing::info;

use crate::admin::WitnessAdmin;
use crate::cluster::{self, ClusterError, NodeCluster, SHARD};
use crate::config::NodeOptions;

/// Why a witness does not start.
#[derive(Debug, Error)]
pub enum WitnessStartError {
    #[error("a witness needs a cluster")]
    Alone,
    #[error("opening the witness's store in {}", path.display())]
    Store { path: PathBuf, source: Box<WitnessError> },
    #[error("taking part in the cluster")]
    Cluster(#[from] ClusterError),
    #[error("listening for admin requests on {address}")]
    Admin { address: SocketAddr, source: io::Error },
}

impl WitnessStartError {
    /// What an operator can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Alone => "give --cluster-listen and --cluster-join",
            Self::Store { source, .. } => match &**source {
                WitnessError::Directory(directory) => directory.remedy(),
                WitnessError::Kept(_) | WitnessError::Decode(_) => {
                    "give it an empty --data-dir, and take its old self out with `beamlog cluster remove`"
                }
                WitnessError::Disk(_) | WitnessError::Random(_) | WitnessError::Thread(_) => {
                    "check that this user may read and write there, and the disk"
                }
            },
            Self::Cluster(error) => error.remedy(),
            Self::Admin { .. } => "choose another address for --admin, or stop who listens there",
        }
    }
}

/// A running witness.
#[derive(Debug)]
pub struct WitnessNode {
    member: NodeCluster,
    admin: Option<WitnessAdmin>,
}

impl WitnessNode {
    /// Opens its store, or begins one, and votes.
    ///
    /// # Errors
    /// What keeps it from starting.
    ///
    /// *Cancel safety*: when dropped before it returns, what was opened is closed again.
    pub async fn start(options: &NodeOptions) -> Result<Self, WitnessStartError> {
        let of_cluster = options.cluster.as_ref().ok_or(WitnessStartError::Alone)?;
        let prepared = cluster::prepare(of_cluster, Role::Witness)?;
        let path = options.data_dir.clone();
        let opening = tokio::task::spawn_blocking(move || {
            Witness::open(&path, Arc::new(StdDisk), SHARD, wall_clock())
                .map_err(|source| WitnessStartError::Store { path, source: Box::new(source) })
        });
        let witness = opening.await.expect("opening is not cancelled, and does not panic")?;
        let member = prepared.start_witness(witness).await?;
        let admin = match options.admin {
            None => None,
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .map_err(|source| WitnessStartError::Admin { address, source })?;
                Some(WitnessAdmin::start(listener, address, member.clone()))
            }
        };
        info!(
            version = env!("CARGO_PKG_VERSION"),
            name = member.member.name,
            cluster = %member.transport.local_address(),
            admin = admin.as_ref().map(|admin| admin.local_addr().to_string()),
            data_dir = %options.data_dir.display(),
            "ready: a witness"
        );
        Ok(Self { member, admin })
    }

    /// Where the admin server listens, if it does.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(WitnessAdmin::local_addr)
    }

    /// Waits until its part in the cluster has failed, and says why. *Cancel safety*: may be called again.
    pub async fn failed(&self) -> String {
        let mut state = self.member.cluster.state();
        loop {
            if let Standing::Failed { reason } = &state.borrow_and_update().standing {
                return reason.clone();
            }
            if state.changed().await.is_err() {
                return "its part in the cluster has ended".to_owned();
            }
        }
    }

    /// Stops voting. *Cancel safety*: it stops all the same.
    pub async fn stop(self) {
        drop(self.admin);
        self.member.stop().await;
        info!("stopped");
    }
}

/// Of when the store was begun; nothing depends on it.
fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
