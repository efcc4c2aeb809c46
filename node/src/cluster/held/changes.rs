//! The one task that changes which streams are here. Each change is in the catalogue before it is here, or gone from
//! here before it is gone from the catalogue: so a name or subject that a stream here has is reserved for it at every
//! moment, wherever a crash falls.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beamlog_nats::jetstream::ApiRequest;
use beamlog_net::cluster::MemberRole;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::request::{Answer, Request, Reservation, Response, StreamInfo};
use beamlog_router::replica::Role;
use beamlog_router::stream::StreamConfig;
use beamlog_router::{Router, subject};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::moving::{Frozen, moving_here};
use super::{Change, Held, Inner, Place, Store, What, names, of_stream, send_to};
use crate::cluster::catalogue;

/// Between two comparisons with the catalogue, and after one that could not be made.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Makes changes in turn until the node is gone.
pub(super) async fn make(inner: Weak<Inner>, mut waiting: mpsc::Receiver<Change>) {
    let mut next_look = Instant::now();
    let mut frozen = Frozen::new();
    loop {
        let change = timeout_at(next_look, waiting.recv()).await;
        let Some(inner) = inner.upgrade() else { return };
        let held = Held(inner);
        match change {
            Ok(Some(change)) => {
                let _turn = held.0.turn.lock().await;
                held.make(change).await;
            }
            Ok(None) => return,
            Err(_elapsed) => {
                let _turn = held.0.turn.lock().await;
                held.release_of_the_lost().await;
                let compared = held.compare(&mut frozen).await;
                next_look = Instant::now() + if compared.is_ok() { LOOK } else { LOOK_AGAIN };
            }
        }
    }
}

/// Where a creation ends.
enum Created {
    /// Here, or refused.
    Answered(Answer),
    /// It is another's: the request goes on.
    Elsewhere { node: String },
    /// A stream of the cluster's shard has the name.
    Common,
}

impl Held {
    async fn make(&self, change: Change) {
        let answer = match (self.term(), &change.what) {
            (Err(error), _) => Err(error),
            (Ok(term), What::Create(config)) => match self.create(config, term).await {
                Created::Answered(answer) => answer,
                Created::Elsewhere { node } => {
                    if send_to(self.0.main.interest(), &of_stream(&config.name), &change.request()) {
                        return;
                    }
                    Err(ApiError::StreamOffline { node })
                }
                Created::Common => return self.onwards(&change),
            },
            (Ok(term), What::Update(config)) => self.update(config, term).await,
            (Ok(term), What::Delete(stream)) => self.delete(stream, term).await,
        };
        self.api().unwrap_or(&self.0.main_api).tell(&change.reply, change.form, &answer);
    }

    /// As a request of this node that is for the cluster's shard.
    fn onwards(&self, change: &Change) {
        self.0.onwards.send(&change.request());
    }

    /// In whose name the catalogue is told: of a shard, that of the leader of this term.
    pub(super) fn term(&self) -> Result<u64, ApiError> {
        match &self.0.place {
            Place::Node { .. } => Ok(0),
            Place::Shard(shard) => match *shard.role.borrow() {
                Role::Leader { term } => Ok(term.0),
                Role::Alone | Role::Follower | Role::Elected { .. } => Err(ApiError::NotLeader),
            },
        }
    }

    /// The configuration as it is kept here.
    pub(super) fn fit(&self, config: &StreamConfig) -> Result<StreamConfig, ApiError> {
        let Place::Shard(shard) = &self.0.place else { return Ok(config.clone()) };
        // Before the list was seen, those that vote.
        let nodes = match shard.wanted.load(Ordering::Relaxed) {
            0 => self.voters(),
            wanted => wanted,
        };
        fit_shard(config, shard.number, nodes)
    }

    fn voters(&self) -> usize {
        let members = self.0.member.cluster.status().members;
        members.iter().filter(|member| member.role == MemberRole::Voter).count()
    }

    /// Whether as many nodes as it is to have vote in the shard: what is acknowledged there is on a quorum of them.
    pub(super) fn is_whole(&self) -> Result<(), ApiError> {
        let Place::Shard(shard) = &self.0.place else { return Ok(()) };
        let (wanted, voters) = (shard.wanted.load(Ordering::Relaxed), self.voters());
        if wanted > 0 && voters >= wanted {
            return Ok(());
        }
        let text = format!("shard {} has {voters} of its {wanted} nodes yet", shard.number);
        Err(ApiError::NoSuitablePeers(text))
    }

    async fn create(&self, config: &StreamConfig, term: u64) -> Created {
        let config = match self.is_whole().and_then(|()| self.fit(config)) {
            Ok(config) => config,
            Err(error) => return Created::Answered(Err(error)),
        };
        let store = match self.open().await {
            Ok(store) => store,
            Err(error) => {
                warn!(err = %crate::cli::err_chain(&error), "the store of this node's own streams does not open");
                let text = "the store of the node does not open".to_owned();
                return Created::Answered(Err(ApiError::NoSuitablePeers(text)));
            }
        };
        match moving_here(&store.router).await {
            // It is to be here, or is already, and has not been opened.
            Ok(moving) if moving.iter().any(|one| one.stream == config.name) => {
                let node = self.0.member.member.name.clone();
                return Created::Answered(Err(ApiError::StreamOffline { node }));
            }
            Ok(_) => {}
            Err(error) => return Created::Answered(Err(error)),
        }
        // Also of one that is here: perhaps it was deleted, and this node has not heard of it.
        let had = info_of(&store.router, &config.name).await.ok();
        let subjects =
            had.as_ref().map_or_else(|| config.subjects.clone(), |info| info.config.subjects.clone());
        let wanted = self.reservation(store, &config.name, subjects, term);
        let reserved = match catalogue::reserve(&self.0.main, wanted).await {
            Ok(in_force) if in_force.store == store.id && in_force.deleted => {
                self.let_go(store, &config.name, term).await;
                let wanted = self.reservation(store, &config.name, config.subjects.clone(), term);
                catalogue::reserve(&self.0.main, wanted).await
            }
            reserved => reserved,
        };
        match reserved {
            Ok(in_force) if in_force.store == store.id && in_force.term > term => {
                return Created::Answered(Err(ApiError::NotLeader));
            }
            Ok(in_force) if in_force.store == store.id && !in_force.deleted => {}
            Ok(in_force) => return Created::Elsewhere { node: in_force.node },
            Err(ApiError::StreamNameInUse) => return Created::Common,
            Err(error) => return Created::Answered(Err(error)),
        }
        let answer = ask(&store.router, Request::CreateStream(Box::new(config.clone()))).await;
        match &answer {
            Ok(_) => self.found_in(term, &config.name),
            // It may be there after a restart, or where another node leads.
            Err(ApiError::LogFailed | ApiError::NotLeader | ApiError::StreamOffline { .. }) => {}
            Err(_) if had.is_some() => {}
            Err(_) => drop(catalogue::release(&self.0.main, &config.name, &store.id, term).await),
        }
        Created::Answered(answer)
    }

    async fn update(&self, config: &StreamConfig, term: u64) -> Answer {
        let Some(store) = self.0.store.get() else { return Err(ApiError::StreamNotFound) };
        let old = info_of(&store.router, &config.name).await?.config;
        let (config, to) = self.place_of_update(&old, config, self.here()).await?;
        let answer = self.update_here(store, &config, old.subjects, term).await;
        if let (Ok(_), Some(to)) = (&answer, to) {
            self.announce(&config.name, to).await?;
        }
        answer
    }

    async fn update_here(
        &self,
        store: &Store,
        config: &StreamConfig,
        before: Vec<String>,
        term: u64,
    ) -> Answer {
        let after =
            if config.subjects.is_empty() { vec![config.name.clone()] } else { config.subjects.clone() };
        if before == after {
            return ask(&store.router, Request::UpdateStream(Box::new(config.clone()))).await;
        }
        let both = together(&before, &after);
        let wanted = self.reservation(store, &config.name, both, term);
        let in_force = catalogue::reserve(&self.0.main, wanted).await?;
        if in_force.store != store.id || in_force.deleted {
            return Err(ApiError::StreamNotFound);
        }
        if in_force.term > term {
            return Err(ApiError::NotLeader);
        }
        let answer = ask(&store.router, Request::UpdateStream(Box::new(config.clone()))).await;
        // What is no longer wanted is let go; if not now, with the next comparison.
        if let Ok(info) = info_of(&store.router, &config.name).await {
            let now = self.reservation(store, &config.name, info.config.subjects, term);
            drop(catalogue::reserve(&self.0.main, now).await);
        }
        answer
    }

    async fn delete(&self, stream: &str, term: u64) -> Answer {
        let Some(store) = self.0.store.get() else { return Err(ApiError::StreamNotFound) };
        let answer = ask(&store.router, Request::DeleteStream { stream: stream.to_owned() }).await;
        if answer.is_ok() {
            self.gone(stream);
            // If not now, with the next comparison.
            drop(catalogue::release(&self.0.main, stream, &store.id, term).await);
        }
        answer
    }

    /// Deletes what the catalogue says was deleted, and then says that it is gone.
    async fn let_go(&self, store: &Store, stream: &str, term: u64) {
        let answer = ask(&store.router, Request::DeleteStream { stream: stream.to_owned() }).await;
        if matches!(answer, Ok(_) | Err(ApiError::StreamNotFound)) {
            info!(stream, "deleted: it was while this node was away");
            self.gone(stream);
            drop(catalogue::release(&self.0.main, stream, &store.id, term).await);
        }
    }

    /// Makes the catalogue and this store agree, after whatever cut a change off.
    async fn compare(&self, frozen: &mut Frozen) -> Result<(), ApiError> {
        let Some(store) = self.0.store.get() else { return Ok(()) };
        // Of a shard, only who leads it knows what is there.
        let Ok(term) = self.term() else { return Ok(()) };
        let main = &self.0.main;
        // What is on its way is compared with what was decided later; and what was opened since is no longer on its way.
        let moving = moving_here(&store.router).await?;
        let arrivals = if moving.is_empty() { Vec::new() } else { catalogue::moving(main).await? };
        let mut reserved = catalogue::of_store(main, &store.id).await?;
        self.compare_moving(store, (&moving, &arrivals, &reserved), frozen).await?;
        let moving = moving_here(&store.router).await?;
        let is_moving = |stream: &String| moving.iter().any(|one| one.stream == *stream);
        reserved.retain(|one| !is_moving(&one.stream));
        let mut here: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for stream in names(&store.router).await? {
            if is_moving(&stream) {
                continue;
            }
            let subjects = info_of(&store.router, &stream).await?.config.subjects;
            here.insert(stream, subjects);
        }
        for reservation in reserved {
            let stream = &reservation.stream;
            let subjects = here.remove(stream);
            if reservation.deleted {
                self.let_go(store, stream, term).await;
                continue;
            }
            match subjects {
                // Reserved and never made, or deleted and not yet released.
                None => catalogue::release(main, stream, &store.id, term).await?,
                Some(subjects) if subjects != reservation.subjects => {
                    catalogue::reserve(main, Reservation { subjects, term, ..reservation }).await?;
                }
                Some(_) => {}
            }
        }
        // Nothing here does this; a catalogue that was put back from a copy may.
        for (stream, subjects) in here {
            let wanted = self.reservation(store, &stream, subjects, term);
            match catalogue::reserve(main, wanted).await {
                Ok(in_force) if in_force.store == store.id => info!(stream, "put into the catalogue again"),
                Ok(in_force) => warn!(stream, node = in_force.node, "another node has a stream of this name"),
                Err(error) => warn!(stream, err = %error, "a stream of this node is not in the catalogue"),
            }
        }
        Ok(())
    }

    /// Where the cluster is led: a node that is no member any more does not come back to say what is gone.
    async fn release_of_the_lost(&self) {
        if matches!(self.0.place, Place::Shard(_)) || !self.0.member.leads() {
            return;
        }
        let answer = timeout(LOOK, ask(&self.0.main, Request::Reservations)).await;
        let Ok(Ok(Response::Reservations(reservations))) = answer else { return };
        let members = self.0.member.cluster.status().members;
        // A shard outlives its members.
        let is_lost =
            |one: &Reservation| one.peer != 0 && !members.iter().any(|member| member.id.0 == one.peer);
        for Reservation { stream, store, node, term, .. } in
            reservations.into_iter().filter(|one| one.deleted && is_lost(one))
        {
            info!(stream, node, "released: its node was taken out of the cluster");
            drop(timeout(LOOK, ask(&self.0.main, Request::Release { stream, store, term })).await);
        }
    }

    pub(super) fn reservation(
        &self,
        store: &Store,
        stream: &str,
        subjects: Vec<String>,
        term: u64,
    ) -> Reservation {
        let (node, peer) = match &self.0.place {
            Place::Node { .. } => (self.0.member.member.name.clone(), self.0.member.cluster.me().0),
            Place::Shard(shard) => (format!("shard {}", shard.number), 0),
        };
        Reservation {
            stream: stream.to_owned(),
            subjects,
            store: store.id.clone(),
            node,
            peer,
            term,
            deleted: false,
        }
    }
}

impl Change {
    fn request(&self) -> ApiRequest<'_> {
        ApiRequest {
            subject: &self.subject,
            reply: &self.reply,
            headers: &self.headers,
            payload: &self.payload,
            no_responders: true,
        }
    }
}

/// The configuration as it is kept in a shard of so many nodes.
pub(super) fn fit_shard(config: &StreamConfig, number: u8, nodes: usize) -> Result<StreamConfig, ApiError> {
    let replicas = u8::try_from(nodes).unwrap_or(u8::MAX);
    if config.replicas != 0 && config.replicas != replicas {
        let text = format!("shard {number} has {nodes} nodes, and the stream asks for {}", config.replicas);
        return Err(ApiError::NoSuitablePeers(text));
    }
    Ok(StreamConfig { replicas, ..config.clone() })
}

/// The smallest set that has everything of both.
fn together(before: &[String], after: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for filter in after.iter().chain(before) {
        let within = |inner: &String, outer: &String| subject::is_subset(inner.as_bytes(), outer.as_bytes());
        if all.iter().any(|have| within(filter, have)) {
            continue;
        }
        all.retain(|have| !within(have, filter));
        all.push(filter.clone());
    }
    all
}

pub(in crate::cluster) async fn ask(router: &Router, request: Request) -> Answer {
    let mut request = request;
    loop {
        match router.request(request) {
            Ok(ticket) => return ticket.await,
            Err(full) => request = full.0,
        }
        router.when_ready().await;
        if router.health() == beamlog_router::Health::Closed {
            return Err(ApiError::LogFailed);
        }
    }
}

pub(super) async fn info_of(router: &Router, stream: &str) -> Result<StreamInfo, ApiError> {
    let request = Request::StreamInfo {
        stream: stream.to_owned(),
        subjects_filter: None,
        offset: 0,
        deleted_details: false,
    };
    let Response::Stream { info, .. } = ask(router, request).await? else {
        return Err(ApiError::StreamNotFound);
    };
    Ok(*info)
}

#[cfg(test)]
mod tests {
    use super::together;

    #[test]
    fn while_subjects_change_the_old_and_the_new_ones_are_reserved() {
        let all = |before: &[&str], after: &[&str]| {
            let owned =
                |filters: &[&str]| filters.iter().map(|filter| (*filter).to_owned()).collect::<Vec<_>>();
            together(&owned(before), &owned(after))
        };
        assert_eq!(all(&["a"], &["b"]), ["b", "a"]);
        assert_eq!(all(&["a.*"], &["a.>"]), ["a.>"]);
        assert_eq!(all(&["a.>"], &["a.b", "a.c", "d"]), ["d", "a.>"]);
        assert_eq!(all(&["a", "b"], &["b", "a"]), ["b", "a"]);
    }
}
