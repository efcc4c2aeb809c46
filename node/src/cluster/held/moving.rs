//! The moves that this node carries: of streams that it is to hold alone, and, while it leads, of those that all are to
//! hold. And what it does with streams that are on their way when it compares itself with the catalogue.

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

use super::changes::{ask, info_of};
use super::{Held, Inner, Store};
use crate::cluster::catalogue;
use crate::cluster::held;
use crate::cluster::moves::{Carried, FROZEN_MAX, Stopped, arrive};

/// Between two looks at what is to move, when nobody says that something is.
const LOOK: Duration = Duration::from_secs(2);

/// The tag of a placement that names a shard, and the one that names the first.
const SHARD_TAG: &str = "shard:";
const FIRST_SHARD: &str = "shard:0";

/// Since when streams take nothing here, by name and move.
pub(super) type Frozen = BTreeMap<(String, u64), Instant>;

/// Hears what moves, and gives up what does not get on, until the node is gone.
pub(super) async fn tend(inner: Weak<Inner>) {
    let Some(told) = inner.upgrade().map(|inner| Arc::clone(&inner.moves)) else { return };
    let mut frozen = Frozen::new();
    loop {
        let Some(inner) = inner.upgrade() else { return };
        Held(inner).look_at_moves(&mut frozen).await;
        drop(timeout(LOOK, told.notified()).await);
    }
}

/// Carries moves until the node is gone, each time that somebody looked at them: one after the other.
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
        // What was heard may be done.
        let Ok(arrivals) = catalogue::moving(&self.0.main).await else { return };
        causes.retain(|stream, _| arrivals.iter().any(|arrival| arrival.stream == *stream));
        let me = self.0.member.cluster.me().0;
        for arrival in arrivals.iter().filter(|arrival| !arrival.exchanged) {
            let carried = match &arrival.to {
                Place::Node { peer, .. } if *peer == me => self.bring_here(arrival).await,
                Place::Common if self.0.member.leads() => self.bring_to_all(arrival).await,
                Place::Node { .. } | Place::Common => continue,
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
        let term = self.term()?;
        Carried { main, to, arrival, moves: &self.0.member.moves }.copy().await?;
        let holder = Some(self.reservation(store, stream, Vec::new(), term));
        let exchange = Rearrange::Exchange { stream: stream.clone(), id, holder };
        catalogue::rearrange(main, exchange).await?;
        arrive(to, Arrive::Open { stream: stream.clone(), id }).await?;
        self.found(stream);
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
            Place::Common => false,
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
                        self.thaw(store, stream, id).await?;
                    }
                }
                (MovingState::Leaving, Some(true)) => {
                    ask(router, Request::Move(Box::new(MoveRequest::Drop { stream: named(), id }))).await?;
                    info!(stream, "another shard has the stream: forgotten here");
                    catalogue::rearrange(main, Rearrange::Forget { stream: named(), id }).await?;
                }
                (MovingState::Leaving, None) => {
                    // Given up; or deleted meanwhile.
                    let wanted = self.reservation(store, stream, subjects.clone(), term);
                    match catalogue::reserve(main, wanted).await {
                        Ok(have) if have.store == store.id => self.thaw(store, stream, id).await?,
                        Ok(_) | Err(_) => warn!(stream, "a stream that moved is not known where it went"),
                    }
                }
                (MovingState::Arriving | MovingState::Arrived, Some(false)) => {}
                (MovingState::Arrived, Some(true) | None) if is_mine => {
                    arrive(router, Arrive::Open { stream: named(), id }).await?;
                    self.found(stream);
                }
                (MovingState::Arriving | MovingState::Arrived, Some(true) | None) => {
                    ask(router, Request::Move(Box::new(MoveRequest::Drop { stream: named(), id }))).await?;
                }
            }
        }
        Ok(())
    }

    async fn thaw(&self, store: &Store, stream: &str, id: u64) -> Result<(), ApiError> {
        let thaw = MoveRequest::Thaw { stream: stream.to_owned(), id };
        ask(&store.router, Request::Move(Box::new(thaw))).await?;
        self.found(stream);
        Ok(())
    }

    /// Where the streams here are; not of a numbered shard, for none comes or goes there.
    pub(super) fn here(&self) -> Option<Place> {
        match &self.0.place {
            held::Place::Node { .. } => {
                let member = &self.0.member;
                Some(Place::Node { node: member.member.name.clone(), peer: member.cluster.me().0 })
            }
            held::Place::Shard(_) => None,
        }
    }

    /// Whether a stream of a numbered shard stays there.
    pub(super) fn stays(&self, old: &StreamConfig, new: &StreamConfig) -> Result<(), ApiError> {
        if old.placement == new.placement || tags(new).is_empty() {
            return Ok(());
        }
        let text = "a stream of a numbered shard does not move: make another one and publish there";
        Err(ApiError::StreamUpdateInvalid(text.to_owned()))
    }

    /// Where a stream of this configuration is to be that is here, or with all, now.
    fn wanted_place(&self, config: &StreamConfig, now: Place) -> Result<Place, ApiError> {
        let tags = tags(config);
        if config.replicas > 1 {
            if tags.iter().any(|tag| tag.starts_with(SHARD_TAG) && tag != FIRST_SHARD) {
                let text = "no stream moves to a numbered shard: make another one there and publish to it";
                return Err(ApiError::StreamUpdateInvalid(text.to_owned()));
            }
            return Ok(Place::Common);
        }
        let stays = match &now {
            Place::Node { node, .. } => tags.is_empty() || tags.contains(node),
            Place::Common => false,
        };
        if stays {
            return Ok(now);
        }
        let peer = self.choose(config)?;
        let members = self.0.member.cluster.status().members;
        let member = members.iter().find(|member| member.id == peer);
        let node = member.map(|member| member.member.name.clone()).unwrap_or_default();
        Ok(Place::Node { node, peer: peer.0 })
    }

    /// The place where a changed configuration wants the stream to be, if it says another one, or says one anew: that
    /// may be the one where it is, and call it back.
    pub(super) fn place_of_update(
        &self,
        old: &StreamConfig,
        new: &StreamConfig,
        now: Place,
    ) -> Result<Option<Place>, ApiError> {
        // With one replica unsaid the cluster's shard has it: it goes when a place is named.
        let is_unsaid = match new.replicas {
            0 => true,
            1 => old.replicas <= 1 && new.placement.is_none(),
            _ => false,
        };
        if now == Place::Common && is_unsaid {
            return Ok(None);
        }
        let says = old.replicas.max(1) != new.replicas.max(1) || old.placement != new.placement;
        let to = self.wanted_place(new, now.clone())?;
        Ok(Some(to).filter(|to| says || *to != now))
    }

    pub(super) async fn announce(&self, stream: &str, to: Place) -> Result<(), ApiError> {
        let wanted = Rearrange::Announce { stream: stream.to_owned(), to };
        let arrivals = catalogue::rearrange(&self.0.main, wanted).await?;
        for Arrival { stream, from, to, .. } in arrivals {
            info!(stream, ?from, ?to, "a stream is to move");
        }
        self.0.moves.notify_one();
        Ok(())
    }

    /// A change of a stream of the cluster's shard, where that is led.
    pub(in crate::cluster) async fn update_common(&self, config: StreamConfig) -> Answer {
        let main = &self.0.main;
        let old = info_of(main, &config.name).await?.config;
        let to = self.place_of_update(&old, &config, Place::Common)?;
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
