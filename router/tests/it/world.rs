//! A router on a disk in memory, and the few things tests ask of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beamlog_log::sim_disk::{Crash, SimDisk};
use beamlog_log::{Message, Sequence};
use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{
    Answer, ConsumerAction, MessageSelector, Published, Purge, Request, Response, StreamInfo,
};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig};
use beamlog_router::embed::PlainWire;
use beamlog_router::headers::Builder;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{OpenError, PublishTicket, Router, RouterOptions};

pub(crate) const WAIT: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) disk: SimDisk,
    router: Option<Router>,
}

pub(crate) fn open(disk: &SimDisk) -> Result<Router, OpenError> {
    open_with(disk, &RouterOptions::for_simulation())
}

fn open_with(disk: &SimDisk, options: &RouterOptions) -> Result<Router, OpenError> {
    Router::open(Path::new("/data"), Arc::new(disk.clone()), options, Arc::new(PlainWire))
}

impl World {
    pub(crate) fn new() -> Self {
        let disk = SimDisk::new();
        let router = Some(open(&disk).unwrap());
        Self { disk, router }
    }

    /// With stream "S" on `s.>`.
    pub(crate) fn with(config: StreamConfig) -> Self {
        let world = Self::new();
        world.request(Request::CreateStream(Box::new(config))).unwrap();
        world
    }

    pub(crate) fn router(&self) -> &Router {
        self.router.as_ref().unwrap()
    }

    pub(crate) fn request(&self, request: Request) -> Answer {
        self.router().request(request).unwrap().wait()
    }

    pub(crate) fn begin(&self, subject: &str, headers: &[(&str, &str)], payload: &str) -> PublishTicket {
        let mut block = Vec::new();
        if !headers.is_empty() {
            let builder =
                headers.iter().fold(Builder::new(), |builder, (name, value)| builder.header(name, value));
            block = builder.finish();
        }
        self.router().publish(subject.to_owned(), block, payload.to_owned()).unwrap()
    }

    pub(crate) fn publish(&self, subject: &str, payload: &str) -> Result<Published, PublishRefusal> {
        self.begin(subject, &[], payload).wait().result
    }

    pub(crate) fn publish_id(&self, subject: &str, id: &str) -> Result<Published, PublishRefusal> {
        self.begin(subject, &[("Nats-Msg-Id", id)], "payload").wait().result
    }

    pub(crate) fn info(&self) -> StreamInfo {
        let request = Request::StreamInfo {
            stream: "S".into(),
            subjects_filter: Some(">".into()),
            offset: 0,
            deleted_details: true,
        };
        match self.request(request).unwrap() {
            Response::Stream { mut info, .. } => {
                // The one field that two looks at the same state do not share.
                info.now = beamlog_log::Timestamp(0);
                *info
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn get(&self, sequence: u64) -> Result<Message, ApiError> {
        let selector = MessageSelector::At(Sequence(sequence));
        match self.request(Request::GetMessage { stream: "S".into(), selector })? {
            Response::Message(message) => Ok(message),
            other => panic!("{other:?}"),
        }
    }

    /// Sequence and payload of everything that lives.
    pub(crate) fn content(&self) -> Vec<(u64, String)> {
        let info = self.info();
        (info.state.first_sequence.0..=info.state.last_sequence.0)
            .filter_map(|sequence| match self.get(sequence) {
                Ok(message) => Some((sequence, String::from_utf8_lossy(&message.payload).into_owned())),
                Err(ApiError::NoMessage) => None,
                Err(other) => panic!("{sequence}: {other}"),
            })
            .collect()
    }

    pub(crate) fn purge(&self, purge: Purge) -> u64 {
        match self.request(Request::PurgeStream { stream: "S".into(), purge }).unwrap() {
            Response::Purged { count } => count,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn delete(&self, sequence: u64) -> Result<(), ApiError> {
        let sequence = Sequence(sequence);
        self.request(Request::DeleteMessage { stream: "S".into(), sequence, erase: true }).map(drop)
    }

    pub(crate) fn consumer(&self, name: &str) {
        let config = ConsumerConfig {
            name: name.into(),
            durable: true,
            ack_policy: AckPolicy::Explicit,
            ..ConsumerConfig::default()
        };
        let action = ConsumerAction::CreateOrUpdate;
        self.request(Request::CreateConsumer { stream: "S".into(), config: Box::new(config), action })
            .unwrap();
    }

    /// A clean stop and a start.
    pub(crate) fn reopen(&mut self) {
        self.router.take().unwrap().close().unwrap();
        self.router = Some(open(&self.disk).unwrap());
    }

    /// The machine loses its power now, and starts again.
    pub(crate) fn crash(&mut self, crash: Crash) {
        self.disk.power_off_at(1);
        // A log that cannot be sealed any more: that is the point.
        drop(self.router.take().unwrap().close());
        self.disk.crash(crash);
        self.router = Some(match open(&self.disk) {
            // A few torn writes cannot be told from damage to what was promised (DR4 c). The operator accepts;
            // that nothing promised was cut is for the caller to see.
            Err(OpenError::Log(beamlog_log::OpenError::SuspectTail { .. })) => {
                let mut options = RouterOptions::for_simulation();
                options.log.accept_tail_loss = true;
                open_with(&self.disk, &options).unwrap()
            }
            opened => opened.unwrap(),
        });
    }

    /// The router stops however it can; the disk stays as it is.
    pub(crate) fn abandon(&mut self) {
        drop(self.router.take().unwrap().close());
    }

    pub(crate) fn start(&mut self) {
        self.router = Some(open(&self.disk).unwrap());
    }
}

pub(crate) fn s() -> StreamConfig {
    StreamConfig { name: "S".into(), subjects: vec!["s.>".into()], ..StreamConfig::default() }
}
