//! The moves that this node carries: of streams that it is to hold alone, and of those that all are to hold, or a shard,
//! while it leads that. And what it does with streams that are on their way when it compares itself with the catalogue.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use beamlog_router::Router;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::moving::{Arrive, MoveRequest, MovingHere, MovingState};
use beamlog_router::api::request::{Answer, Arrival, Place, Rearrange, Request, Reservation, Response};
use beamlog_router::stream::StreamConfig;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::changes::{ask, fit_shard, info_of};
use super::{Held, Inner, Store};
use crate::cluster::catalogue;
use crate::cluster::held;
use crate::cluster::moves::{Carried, FROZEN_MAX, Stopped, arrive};
use crate::cluster::shards;

/// Between two looks at what is to move, when nobody says that something is.
const LOOK: Duration = Duration::from_secs(2);

/// Since when streams take nothing here, by name and move.
pub(super) type Frozen = BTreeMap<(String, u64), Instant>;

/// Hears what moves, and gives up what does not get on, until the node is gone.
pub(super) async fn tend(inner: Weak<Inner>) {
    let Some(moves) = inner.upgrade().map(|inner| Arc::clone(&inner.member.moves)) else { return };
    let mut frozen = Frozen::new();
    loop {
        let Some(inner) = inner.upgrade() else { return };
        Held(inner).look_at_moves(&mut frozen).await;
        drop(timeout(LOOK, moves.changed.notified()).await);
    }
}

/// Carries moves to one place until the node is gone, each time that somebody looked at them: one after the other.
pub(super) async fn carry(inner: Weak<Inner>, mut heard: watch::Receiver<Vec<Arrival>>) {
    let mut causes = BTreeMap::new();
    while heard.changed().await.is_ok() {
        let Some(inner) = inner.upgrade() else { return };
        if !heard.borrow_and_update().is_empty() {
            Held(inner).carry_all(&mut causes).await;
        }
    }
}

/// The streams on their way from or to a shard.
pub(super) async fn moving_here(router: &Router) -> Result<Vec<MovingHere>, ApiError> {
    let Response::MovingHere(moving) = ask(router, Request::MovingHere).await? else {
        return Err(ApiError::BadRequest);
    };
    Ok(moving)
}

/// Those that are longer frozen than anybody should wait.
fn overdue(moving: &[MovingHere], frozen: &mut Frozen) -> Vec<(String, u64)> {
    let leaving = moving.iter().filter(|one| one.state == MovingState::Leaving);
    let now: BTreeSet<(String, u64)> = leaving.map(|one| (one.stream.clone(), one.id)).collect();
    frozen.retain(|one, _| now.contains(one));
    for one in &now {
        frozen.entry(one.clone()).or_insert_with(Instant::now);
    }
    now.into_iter().filter(|one| frozen[one].elapsed() > FROZEN_MAX).collect()
}

impl Held {
    async fn look_at_moves(&self, frozen: &mut Frozen) {
        let Ok(arrivals) = catalogue::moving(&self.0.main).await else { return };
        if self.0.member.leads() {
            self.tidy(&arrivals, frozen).await;
        }
        self.0.member.moves.heard.send_replace(arrivals);
    }

    /// `causes` says why streams do not move yet, as far as that was told.
    async fn carry_all(&self, causes: &mut BTreeMap<String, String>) {
        // The leader of a shard carries what comes to it.
        if self.term().is_err() {
            return;
        }
        // What was heard may be done.
        let Ok(arrivals) = catalogue::moving(&self.0.main).await else { return };
        causes.retain(|stream, _| arrivals.iter().any(|arrival| arrival.stream == *stream));
        let here = self.here();
        for arrival in arrivals.iter().filter(|arrival| !arrival.exchanged) {
            let carried = match (&arrival.to, &here) {
                (Place::Node { peer, .. }, Place::Node { peer: me, .. }) if peer == me => {
                    self.bring_here(arrival).await
                }
                (Place::Shard(to), Place::Shard(number)) if to == number => self.bring_here(arrival).await,
                // Not by each of its shards.
                (Place::Common, Place::Node { .. }) if self.0.member.leads() => {
                    self.bring_to_all(arrival).await
                }
                (Place::Node { .. } | Place::Shard(_) | Place::Common, _) => continue,
            };
            let stream = &arrival.stream;
            let Err(error) = carried else {
                info!(stream, "a stream has arrived");
                continue;
            };
            let cause = crate::cli::err_chain(&error).to_string();
            if causes.get(stream) != Some(&cause) {
                warn!(stream, err = cause, "a stream does not move yet");
                causes.insert(stream.clone(), cause);
            }
        }
    }

    /// How many streams are on their way, as far as this node has heard.
    pub(crate) fn moving(&self) -> usize {
        self.0.member.moves.heard.borrow().len()
    }

    async fn bring_here(&self, arrival: &Arrival) -> Result<(), Stopped> {
        let store = self.open().await.map_err(|_does_not_open| ApiError::LogFailed)?;
        let (main, to, stream, id) = (&self.0.main, &store.router, &arrival.stream, arrival.id);
        self.is_whole()?;
        Carried { main, to, arrival, moves: &self.0.member.moves }.copy().await?;
        let _turn = self.0.turn.lock().await;
        // Whoever leads now has the whole copy in the shard's log: who led when it began may not be the same.
        let term = self.term()?;
        self.is_whole()?;
        let holder = Some(self.reservation(store, stream, Vec::new(), term));
        let exchange = Rearrange::Exchange { stream: stream.clone(), id, holder };
        catalogue::rearrange(main, exchange).await?;
        arrive(to, Arrive::Open { stream: stream.clone(), id }).await?;
        self.found_in(term, stream);
        Ok(())
    }

    async fn bring_to_all(&self, arrival: &Arrival) -> Result<(), Stopped> {
        let (main, stream, id) = (&self.0.main, arrival.stream.clone(), arrival.id);
        Carried { main, to: main, arrival, moves: &self.0.member.moves }.copy().await?;
        catalogue::rearrange(main, Rearrange::Exchange { stream, id, holder: None }).await?;
        Ok(())
    }

    /// Where the cluster is led: nobody else gives these up.
    async fn tidy(&self, arrivals: &[Arrival], frozen: &mut Frozen) {
        let members = self.0.member.cluster.status().members;
        let is_lost = |place: &Place| match place {
            // A shard outlives its members.
            Place::Common | Place::Shard(_) => false,
            Place::Node { peer, .. } => !members.iter().any(|member| member.id.0 == *peer),
        };
        for Arrival { stream, id, from, to, exchanged, .. } in arrivals {
            let (stream, id) = (stream.clone(), *id);
            let wanted = match exchanged {
                true if is_lost(from) => Rearrange::Forget { stream, id },
                false if is_lost(from) || is_lost(to) => Rearrange::Cancel { stream, id },
                true | false => continue,
            };
            drop(catalogue::rearrange(&self.0.main, wanted).await);
        }
        let Ok(moving) = moving_here(&self.0.main).await else { return };
        for (stream, id) in overdue(&moving, frozen) {
            warn!(stream, "a move is given up: the stream took nothing for too long");
            drop(catalogue::rearrange(&self.0.main, Rearrange::Cancel { stream, id }).await);
        }
    }

    /// What becomes of streams on their way that are here. `arrivals` is what moved after that, and `reserved` the
    /// reservations of this store after that: in another order a copy that has just become the stream would be taken
    /// for one that nobody wants.
    pub(super) async fn compare_moving(
        &self,
        store: &Store,
        (moving, arrivals, reserved): (&[MovingHere], &[Arrival], &[Reservation]),
        frozen: &mut Frozen,
    ) -> Result<(), ApiError> {
        let (main, router, term) = (&self.0.main, &store.router, self.term()?);
        let late = overdue(moving, frozen);
        for MovingHere { stream, subjects, id, state } in moving {
            let arrival = arrivals.iter().find(|arrival| arrival.stream == *stream && arrival.id == *id);
            let exchanged = arrival.map(|arrival| arrival.exchanged);
            let is_mine = reserved.iter().any(|one| one.stream == *stream && !one.deleted);
            let (named, id) = (|| stream.clone(), *id);
            match (state, exchanged) {
                (MovingState::Leaving, Some(false)) => {
                    if late.contains(&(named(), id)) {
                        warn!(stream, "a move is given up: the stream took nothing for too long");
                        catalogue::rearrange(main, Rearrange::Cancel { stream: named(), id }).await?;
                        self.thaw(store, stream, id, term).await?;
                    }
                }
                (MovingState::Leaving, Some(true)) => {
                    ask(router, Request::Move(Box::new(MoveRequest::Drop { stream: named(), id }))).await?;
                    self.gone(stream);
                    info!(stream, "another shard has the stream: forgotten here");
                    catalogue::rearrange(main, Rearrange::Forget { stream: named(), id }).await?;
                }
                (MovingState::Leaving, None) => {
                    // Given up; or deleted meanwhile.
                    let wanted = self.reservation(store, stream, subjects.clone(), term);
                    match catalogue::reserve(main, wanted).await {
                        Ok(have) if have.store == store.id => self.thaw(store, stream, id, term).await?,
                        Ok(_) | Err(_) => warn!(stream, "a stream that moved is not known where it went"),
                    }
                }
                (MovingState::Arriving | MovingState::Arrived, Some(false)) => {}
                (MovingState::Arrived, Some(true) | None) if is_mine => {
                    arrive(router, Arrive::Open { stream: named(), id }).await?;
                    self.found_in(term, stream);
                }
                (MovingState::Arriving | MovingState::Arrived, Some(true) | None) => {
                    ask(router, Request::Move(Box::new(MoveRequest::Drop { stream: named(), id }))).await?;
                }
            }
        }
        Ok(())
    }

    async fn thaw(&self, store: &Store, stream: &str, id: u64, term: u64) -> Result<(), ApiError> {
        let thaw = MoveRequest::Thaw { stream: stream.to_owned(), id };
        ask(&store.router, Request::Move(Box::new(thaw))).await?;
        self.found_in(term, stream);
        Ok(())
    }

    /// Where the streams here are.
    pub(super) fn here(&self) -> Place {
        match &self.0.place {
            held::Place::Node { .. } => {
                let member = &self.0.member;
                Place::Node { node: member.member.name.clone(), peer: member.cluster.me().0 }
            }
            held::Place::Shard(shard) => Place::Shard(shard.number),
        }
    }

    /// Where a stream of this configuration is to be that is there now; a shard that a tag names is perhaps none.
    fn wanted_place(&self, config: &StreamConfig, now: &Place) -> Result<Place, ApiError> {
        if let Some(named) = shards::named(config) {
            let number = named.map_err(ApiError::NoSuitablePeers)?;
            return Ok(if number == 0 { Place::Common } else { Place::Shard(number) });
        }
        let tags = tags(config);
        let stays = match now {
            Place::Common => config.replicas > 1,
            Place::Shard(_) => self.fit(config).is_ok(),
            Place::Node { node, .. } => config.replicas <= 1 && (tags.is_empty() || tags.contains(node)),
        };
        if stays {
            return Ok(now.clone());
        }
        if config.replicas > 1 {
            // Of several shards none is a better one: a tag says which.
            return match now {
                Place::Shard(_) => self.fit(config).map(|_fits| now.clone()),
                Place::Common | Place::Node { .. } => Ok(Place::Common),
            };
        }
        let peer = self.choose(config)?;
        let members = self.0.common.status().members;
        let member = members.iter().find(|member| member.id == peer);
        let node = member.map(|member| member.member.name.clone()).unwrap_or_default();
        Ok(Place::Node { node, peer: peer.0 })
    }

    /// A changed configuration as it is kept, and the place where it wants the stream to be, if it says another one, or
    /// says one anew: that may be the one where it is, and call it back.
    pub(super) async fn place_of_update(
        &self,
        old: &StreamConfig,
        new: &StreamConfig,
        now: Place,
    ) -> Result<(StreamConfig, Option<Place>), ApiError> {
        // With one replica unsaid the cluster's shard has it: it goes when a place is named.
        let is_unsaid = match new.replicas {
            0 => true,
            1 => old.replicas <= 1 && new.placement.is_none(),
            _ => false,
        };
        if now == Place::Common && is_unsaid && shards::named(new).is_none() {
            return Ok((new.clone(), None));
        }
        let to = self.wanted_place(new, &now)?;
        let config = match to {
            Place::Shard(_) if to == now => self.fit(new)?,
            Place::Shard(number) => {
                let (list, _members) = catalogue::shards(&self.0.main).await?;
                let mut listed = list.shards.iter().map(|listed| &listed.shard);
                let shard = listed
                    .find(|shard| shard.number == number)
                    .ok_or_else(|| ApiError::NoSuitablePeers(format!("there is no shard {number}")))?;
                fit_shard(new, number, shard.nodes.len())?
            }
            Place::Common | Place::Node { .. } => new.clone(),
        };
        let says = old.replicas.max(1) != config.replicas.max(1) || old.placement != config.placement;
        let is_said = says || to != now;
        Ok((config, Some(to).filter(|_| is_said)))
    }

    pub(super) async fn announce(&self, stream: &str, to: Place) -> Result<(), ApiError> {
        let wanted = Rearrange::Announce { stream: stream.to_owned(), to };
        let arrivals = catalogue::rearrange(&self.0.main, wanted).await?;
        for Arrival { stream, from, to, .. } in arrivals {
            info!(stream, ?from, ?to, "a stream is to move");
        }
        self.0.member.moves.changed.notify_one();
        Ok(())
    }

    /// A change of a stream of the cluster's shard, where that is led.
    pub(in crate::cluster) async fn update_common(&self, config: StreamConfig) -> Answer {
        let main = &self.0.main;
        let old = info_of(main, &config.name).await?.config;
        let (config, to) = self.place_of_update(&old, &config, Place::Common).await?;
        let stream = config.name.clone();
        let answer = ask(main, Request::UpdateStream(Box::new(config))).await;
        if let (Ok(_), Some(to)) = (&answer, to) {
            self.announce(&stream, to).await?;
        }
        answer
    }
}

fn tags(config: &StreamConfig) -> &[String] {
    config.placement.as_ref().map_or(&[][..], |placement| &placement.tags)
}
