//! Durable requests in the log of a router in this process.

use std::time::Duration;

use beamlog_router::api::error::{ApiError, PublishRefusal};
use beamlog_router::api::request::{AckKind, ConsumerAction, MessageSelector, Request, Response};
use beamlog_router::consumer::{AckPolicy, ConsumerConfig};
use beamlog_router::embed::{EmbeddedConsumer, EmbeddedSubscription};
use beamlog_router::headers::Builder;
use beamlog_router::interest::Envelope as Message;
use beamlog_router::stream::{Discard, StreamConfig};
use beamlog_router::{PublishError, Router};
use bytes::Bytes;

use super::DurableOptions;
use super::store::{
    ACK_WAIT, ANSWER_SUBJECTS, ANSWERS, CALL_TIMEOUT, CONSUMER, FIRST_ONLY, Kept, Open, REQUEST_SUBJECTS,
    REQUESTS, Reader, Settle, Store, Watch,
};
use crate::embedded;
use crate::error::BusError;

pub(super) struct Routed {
    router: Router,
}

fn failed(problem: &dyn std::fmt::Display) -> BusError {
    BusError::Connection(format!("the store of requests: {problem}"))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Routed {
    pub(super) fn open(router: Router, options: DurableOptions) -> Result<Self, BusError> {
        let this = Self { router };
        for (name, subjects) in [(REQUESTS, REQUEST_SUBJECTS), (ANSWERS, ANSWER_SUBJECTS)] {
            let config = StreamConfig {
                name: name.into(),
                description: "durable requests of cells".into(),
                subjects: vec![subjects.into()],
                max_age_nanos: Some(nanos(options.kept_for)),
                max_bytes: Some(options.bytes_max),
                discard: Discard::New,
                allow_direct: true,
                ..StreamConfig::default()
            };
            match this.ask(Request::CreateStream(Box::new(config))) {
                // With other limits it is as good.
                Ok(_) | Err(ApiError::StreamNameInUse) => {}
                Err(problem) => return Err(failed(&problem)),
            }
        }
        let config = ConsumerConfig {
            name: CONSUMER.into(),
            durable: true,
            ack_policy: AckPolicy::Explicit,
            ack_wait_nanos: Some(nanos(ACK_WAIT)),
            ..ConsumerConfig::default()
        };
        let action = ConsumerAction::CreateOrUpdate;
        this.ask(Request::CreateConsumer { stream: REQUESTS.into(), config: Box::new(config), action })
            .map_err(|problem| failed(&problem))?;
        Ok(this)
    }

    fn ask(&self, request: Request) -> Result<Response, ApiError> {
        let mut request = request;
        loop {
            match self.router.request(request) {
                Ok(ticket) => return ticket.wait(),
                Err(full) => request = full.0,
            }
            self.router.when_ready().wait();
        }
    }

    fn publish(
        &self,
        subject: &str,
        headers: Vec<u8>,
        payload: Vec<u8>,
    ) -> Result<Result<(), PublishRefusal>, BusError> {
        let (headers, payload) = (Bytes::from(headers), Bytes::from(payload));
        loop {
            match self.router.publish(subject.to_owned(), headers.clone(), payload.clone()) {
                Ok(ticket) => return Ok(ticket.wait().result.map(drop)),
                Err(PublishError::Full(_)) => self.router.when_ready().wait(),
                Err(problem @ (PublishError::Subject(_) | PublishError::NoStream)) => {
                    return Err(failed(&problem));
                }
            }
        }
    }
}

impl Store for Routed {
    fn put_first(&self, subject: &str, payload: Vec<u8>) -> Result<bool, BusError> {
        let headers = Builder::new().header(FIRST_ONLY.0, FIRST_ONLY.1).finish();
        let result = self.publish(subject, headers, payload)?;
        if let Err(PublishRefusal::WrongLastSequence { .. }) = &result {
            return Ok(false);
        }
        result.map(|()| true).map_err(|problem| failed(&problem))
    }

    fn put(&self, subject: &str, payload: Vec<u8>) -> Result<(), BusError> {
        self.publish(subject, Vec::new(), payload)?.map_err(|problem| failed(&problem))
    }

    fn last(&self, kept: Kept, subject: &str) -> Result<Option<Bytes>, BusError> {
        let selector = MessageSelector::LastOn(subject.to_owned());
        match self.ask(Request::GetMessage { stream: kept.stream().to_owned(), selector }) {
            Ok(Response::Message(message)) => Ok(Some(message.payload)),
            Err(ApiError::NoMessage) => Ok(None),
            Ok(_) => Err(failed(&"an answer of another kind")),
            Err(problem) => Err(failed(&problem)),
        }
    }

    fn watch(&self, subject: &str) -> Result<Box<dyn Watch>, BusError> {
        let subscription = self.router.subscribe(subject, 1).map_err(|problem| failed(&problem))?;
        Ok(Box::new(Told(subscription)))
    }

    fn tell(&self, subject: &str) {
        let message =
            Message { subject: subject.as_bytes(), reply: b"", headers: b"", payload: b"", origin: 0 };
        // Who does not hear it looks by itself, later.
        embedded::publish(&self.router, &message);
    }

    fn reader(&self) -> Result<Box<dyn Reader>, BusError> {
        let consumer = self.router.consume(REQUESTS, CONSUMER).map_err(|problem| failed(&problem))?;
        Ok(Box::new(Consumer { router: self.router.clone(), consumer }))
    }
}

struct Told(EmbeddedSubscription);

impl Watch for Told {
    fn wait(&mut self, timeout: Duration) {
        drop(self.0.next(timeout));
    }
}

struct Consumer {
    router: Router,
    consumer: EmbeddedConsumer,
}

impl Reader for Consumer {
    fn next(&mut self, wait: Duration) -> Result<Option<Open>, BusError> {
        let fetched = self.consumer.fetch(1, wait).map_err(|problem| failed(&problem))?;
        let Some(delivered) = fetched.into_iter().next() else { return Ok(None) };
        let (router, payload) = (self.router.clone(), delivered.payload.clone());
        let deliveries = u32::try_from(delivered.target.delivery_count).unwrap_or(u32::MAX);
        let settle = move |settle| match settle {
            Settle::Done => router.ack_and_wait(&delivered, CALL_TIMEOUT).map_err(|problem| failed(&problem)),
            Settle::Later(delay) => {
                let kind = AckKind::Nak { delay_nanos: Some(nanos(delay)) };
                router.ack(delivered.target, kind, None).map_err(|problem| failed(&problem))
            }
            Settle::Never => {
                let kind = AckKind::Terminate { reason: "no envelope".to_owned() };
                router.ack(delivered.target, kind, None).map_err(|problem| failed(&problem))
            }
        };
        Ok(Some(Open { payload, deliveries, settle: Box::new(settle) }))
    }
}
