//! The streams of a run: one that keeps what is published, a work queue, and one that a link brings.

use std::future::IntoFuture;
use std::time::Duration;

use beamlog_net::runtime;
use beamlog_router::Router;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{ConsumerAction, Request, Response};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig};
use beamlog_router::stream::{Retention, StreamConfig};

use super::World;
use crate::oracle::Violation;

pub(super) const KEPT: &str = "SIM";
pub(super) const WORK: &str = "WORK";
pub(super) const WORKER: &str = "W";
pub(super) const LINK: &str = "LINK";

const DEDUPLICATION: u64 = 120_000_000_000;

impl World {
    pub(super) async fn create_streams(&self, deadline: runtime::Moment) -> Result<(), Violation> {
        for request in self.requests() {
            while !self.asked(request.clone()).await {
                if runtime::now() >= deadline {
                    return Err(Violation::Other(
                        "no leader created the streams before any fault".to_owned(),
                    ));
                }
                runtime::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    async fn asked(&self, request: Request) -> bool {
        match self.leader() {
            Some((_, router)) => ask(&router, request).await.is_ok(),
            None => false,
        }
    }

    fn requests(&self) -> Vec<Request> {
        let stream = |name: &str, subject: &str| StreamConfig {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            duplicate_window_nanos: Some(DEDUPLICATION),
            ..StreamConfig::default()
        };
        let kept = StreamConfig { max_messages: self.scenario.keeps, ..stream(KEPT, "sim.>") };
        let work = StreamConfig { retention: Retention::WorkQueue, ..stream(WORK, "work.>") };
        let worker = ConsumerConfig {
            name: WORKER.to_owned(),
            durable: true,
            ack_policy: AckPolicy::Explicit,
            ack_wait_nanos: Some(500_000_000),
            ..ConsumerConfig::default()
        };
        vec![
            Request::CreateStream(Box::new(kept)),
            Request::CreateStream(Box::new(work)),
            Request::CreateStream(Box::new(stream(LINK, "link.>"))),
            Request::CreateConsumer {
                stream: WORK.to_owned(),
                config: Box::new(worker),
                action: ConsumerAction::CreateOrUpdate,
            },
        ]
    }
}

pub(super) async fn ask(router: &Router, request: Request) -> Result<Response, ApiError> {
    match router.request(request) {
        Ok(ticket) => {
            let answer = runtime::timeout(Duration::from_secs(5), ticket.into_future()).await;
            answer.unwrap_or(Err(ApiError::LogFailed))
        }
        Err(_full) => Err(ApiError::LogFailed),
    }
}
