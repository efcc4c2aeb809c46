//! The pages of a witness: whether it is well, and how the cluster stands as it sees it.

use std::net::SocketAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use beamlog_net::cluster::Standing;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::admin::server::guard;
use crate::cluster::{self, NodeCluster};

/// The running server.
#[derive(Debug)]
pub(crate) struct WitnessAdmin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for WitnessAdmin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WitnessAdmin {
    pub(crate) fn start(listener: TcpListener, asked: SocketAddr, node: NodeCluster) -> Self {
        let address = listener.local_addr().unwrap_or(asked);
        let routes = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(healthz))
            .route("/cluster", get(status))
            .layer(middleware::from_fn_with_state(address.ip().is_loopback(), guard))
            .with_state(node);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                warn!(err = %error, "the admin server ended");
            }
        });
        Self { address, task }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

async fn status(State(node): State<NodeCluster>) -> Response {
    Json(cluster::status(&node, None)).into_response()
}

/// 200 while it votes, or waits to be let.
async fn healthz(State(node): State<NodeCluster>) -> Response {
    let problem = match &node.cluster.state().borrow().standing {
        Standing::Failed { reason } | Standing::Fenced { reason } => Some(reason.clone()),
        Standing::Stopped => Some("it has stopped taking part".to_owned()),
        Standing::Waiting
        | Standing::Learner
        | Standing::Follower
        | Standing::Candidate
        | Standing::Leader => None,
    };
    match problem {
        None => Json(json!({ "status": "ok" })).into_response(),
        Some(error) => {
            let body = json!({ "status": "unavailable", "status_code": 503, "error": error });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}
