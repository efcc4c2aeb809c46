//! Everything heals; then everything must serve, agree, and hold what was promised.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beamlog_log::Sequence;
use beamlog_net::cluster::Change;
use beamlog_net::runtime;
use beamlog_router::Router;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{MessageSelector, Request, Response};
use beamlog_router::replica::Role;

use super::World;
use super::streams::{KEPT, LINK, WORK, ask};
use crate::clients::id_of;
use crate::node::Place;
use crate::note;
use crate::oracle::Violation;
use crate::random::{Salt, choices};

/// Reads that are asked for together: one round of confirmation serves all.
const READS: u64 = 64;

/// The messages of a stream by sequence, and the sequence of the first.
#[derive(Debug, Eq, PartialEq)]
struct Content {
    first: u64,
    messages: BTreeMap<u64, u64>,
}

impl World {
    /// The end of all faults.
    pub(super) fn heal(&mut self) {
        note!(self.around.trace, "everything heals");
        for place in 0..self.places.len() {
            self.resume(place);
            self.places[place].disk.heal();
        }
        self.around.network.heal();
        self.around.network.calm();
        if let Some(place) = self.wants_renewal() {
            self.renew(place);
        }
        for place in 0..self.places.len() {
            if !self.places[place].is_alive() {
                self.start(place);
            }
        }
    }

    /// After healing everything must serve, and agree.
    pub(super) async fn liveness(&mut self) -> Result<(), Violation> {
        let deadline = runtime::now() + self.scenario.liveness;
        self.go_on.store(false, Ordering::Relaxed);
        loop {
            self.check_seen()?;
            if self.probe().await {
                break;
            }
            if runtime::now() >= deadline {
                return Err(Violation::Other(format!(
                    "no publish was acked within {:?} after healing; {}",
                    self.scenario.liveness,
                    self.describe()
                )));
            }
            self.revive()?;
        }
        let deadline = runtime::now() + self.scenario.liveness;
        self.finished(deadline).await?;
        self.all_vote(deadline).await?;
        self.drain(deadline).await?;
        self.agree(deadline).await?;
        self.check_seen()?;
        let content = self.content(KEPT).await?;
        self.load.oracle().check_from(content.first, &content.messages)?;
        self.work.oracle().check(&self.workers.delivered())?;
        if self.scenario.links {
            self.link.check(&self.content_of(&self.places[0], LINK).await?.messages)?;
        }
        self.check_seen()
    }

    /// Waits until the clients have finished what they were at.
    async fn finished(&mut self, deadline: runtime::Moment) -> Result<(), Violation> {
        while !(self.load.is_idle() && self.work.is_idle() && self.workers.are_idle() && self.link.is_idle())
        {
            if runtime::now() >= deadline {
                let text = format!("clients do not come to an end after healing; {}", self.describe());
                return Err(Violation::Other(text));
            }
            runtime::sleep(Duration::from_millis(20)).await;
            self.revive()?;
        }
        Ok(())
    }

    /// Waits until the nodes of all places vote, and nobody else.
    async fn all_vote(&mut self, deadline: runtime::Moment) -> Result<(), Violation> {
        while !self.places.iter().all(|place| self.is_whole(place)) {
            if runtime::now() >= deadline {
                return Err(Violation::Other(format!(
                    "the members are not those of before: {}",
                    self.describe()
                )));
            }
            runtime::sleep(Duration::from_millis(50)).await;
            self.revive()?;
        }
        Ok(())
    }

    /// Takes what is left of the work queue, until it is empty.
    async fn drain(&mut self, deadline: runtime::Moment) -> Result<(), Violation> {
        let mut random = choices(self.scenario.seed, Salt::Workload, 1_001);
        loop {
            self.revive()?;
            if let Some((place, router)) = self.leader() {
                match ask(&router, info_of(WORK)).await {
                    Ok(Response::Stream { info, .. }) if info.state.messages == 0 => return Ok(()),
                    Ok(_) => {
                        self.workers.drain(place, &router, &mut random).await;
                    }
                    Err(_) => {}
                }
            }
            if runtime::now() >= deadline {
                return Err(Violation::Other(format!(
                    "the work queue does not become empty; {}",
                    self.describe()
                )));
            }
            runtime::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn probe(&self) -> bool {
        let mut random = choices(self.scenario.seed, Salt::Workload, 1_000);
        let mut place = 0;
        self.load.publish_next(usize::MAX, &mut place, &mut random).await
    }

    /// All nodes come to the same state at the same index.
    async fn agree(&mut self, deadline: runtime::Moment) -> Result<(), Violation> {
        loop {
            for place in &self.places {
                place.ask_rows();
            }
            runtime::sleep(Duration::from_millis(300)).await;
            let rows: Vec<_> = self.places.iter().map(|place| place.shown().rows.clone()).collect();
            if let Some((Some((index, first)), rest)) = rows.split_first()
                && rest.iter().all(|row| row.as_ref().is_some_and(|(other, _)| other == index))
            {
                for (at, row) in rest.iter().enumerate() {
                    if row.as_ref().is_some_and(|(_, rows)| rows != first) {
                        return Err(Violation::Other(format!(
                            "the states of n0 and n{} differ at index {}",
                            at + 1,
                            index.0
                        )));
                    }
                }
                return Ok(());
            }
            if runtime::now() >= deadline {
                let at: Vec<_> = rows.iter().map(|row| row.as_ref().map(|(index, _)| index.0)).collect();
                return Err(Violation::Other(format!(
                    "the nodes did not come together: {at:?}; {}",
                    self.describe()
                )));
            }
            self.revive()?;
        }
    }

    /// The messages of a stream, read through each node in turn as it leads.
    async fn content(&self, stream: &str) -> Result<Content, Violation> {
        let mut found: Option<Content> = None;
        for place in self.places.iter().rev() {
            let read = self.content_of(place, stream).await?;
            match &found {
                Some(before) if *before != read => {
                    return Err(Violation::Other(format!("n{} holds other messages", place.number)));
                }
                Some(_) => {}
                None => found = Some(read),
            }
        }
        found.ok_or_else(|| Violation::Other("there are no nodes".to_owned()))
    }

    async fn content_of(&self, place: &Place, stream: &str) -> Result<Content, Violation> {
        let router = self.make_leader(place).await?;
        let unreadable = |what: String| Violation::Other(format!("n{}: {what}", place.number));
        let answer = ask(&router, info_of(stream)).await;
        let Ok(Response::Stream { info, .. }) = answer else {
            return Err(unreadable(format!("stream info: {answer:?}")));
        };
        let (first, last) = (info.state.first_sequence.0, info.state.last_sequence.0);
        let mut messages = BTreeMap::new();
        let mut next = first.max(1);
        while next <= last {
            let end = last.min(next + READS - 1);
            let mut tickets = Vec::new();
            for sequence in next..=end {
                let selector = MessageSelector::At(Sequence(sequence));
                let request = Request::GetMessage { stream: stream.to_owned(), selector };
                let ticket =
                    router.request(request).map_err(|_full| unreadable("its queue is full".to_owned()))?;
                tickets.push((sequence, ticket));
            }
            for (sequence, ticket) in tickets {
                let answer = runtime::timeout(Duration::from_secs(5), ticket.into_future()).await;
                match answer.unwrap_or(Err(ApiError::LogFailed)) {
                    Ok(Response::Message(message)) => {
                        let id = id_of(&message.payload).ok_or_else(|| Violation::Invented {
                            sequence,
                            payload: String::from_utf8_lossy(&message.payload).into_owned(),
                        })?;
                        messages.insert(sequence, id);
                    }
                    Err(ApiError::NoMessage) => {}
                    other => return Err(unreadable(format!("message {sequence}: {other:?}"))),
                }
            }
            next = end + 1;
        }
        Ok(Content { first, messages })
    }

    async fn make_leader(&self, place: &Place) -> Result<Router, Violation> {
        let deadline = runtime::now() + self.scenario.liveness;
        while runtime::now() < deadline {
            let (role, router, cluster) = {
                let shown = place.shown();
                (shown.role, shown.router.clone(), shown.cluster.clone())
            };
            match (role, router, cluster) {
                (Role::Leader { .. }, Some(router), _) => return Ok(router),
                (_, _, Some(cluster)) => {
                    let change = Change::Transfer { to: Some(place.peer) };
                    let change = Box::pin(cluster.change(change));
                    let done = runtime::timeout(Duration::from_secs(3), change).await;
                    note!(self.around.trace, "leadership to n{}: {done:?}", place.number);
                }
                _ => {}
            }
            runtime::sleep(Duration::from_millis(200)).await;
        }
        Err(Violation::Other(format!("n{} cannot be made leader: {}", place.number, self.describe())))
    }
}

fn info_of(stream: &str) -> Request {
    Request::StreamInfo {
        stream: stream.to_owned(),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    }
}
