//! Streams that move between shards, as this node carries them: what comes to what it holds alone, and what comes to the
//! shard of all or to another while it leads that. Who gets a stream copies it from who has it, which serves on; then that one is
//! frozen, the rest is copied, and one record of the catalogue makes the exchange ([`beamlog_router::api::moving`]).
//!
//! Every step may be done again, so whoever is stopped goes on where it was. What was begun is finished or given up by
//! the comparisons with the catalogue, here and in [`super::held`].

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use beamlog_net::peer::PeerId;
use beamlog_router::Router;
use beamlog_router::Sequence;
use beamlog_router::api::error::ApiError;
use beamlog_router::api::moving::{Arrive, MoveAnswer, MovePage, MoveRequest, Rest};
use beamlog_router::api::request::{Answer, Arrival, Place, Request, Response};
use beamlog_router::interest::{Envelope, Interest, Offered, RouteCache};
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::cluster::catalogue;
use crate::cluster::held::{of_node, of_shard};
use crate::core_messages;

/// The subject that a question about a stream that moves shows: no client's message does.
pub(super) const SHOWN: &[u8] = b"$BEAMLOG.MOVE";
/// One that has a stream answers within this time, or is away.
const PATIENCE: Duration = Duration::from_secs(5);
/// A stream that takes nothing for so long is given back: the other one does not get on.
pub(super) const FROZEN_MAX: Duration = Duration::from_secs(20);

/// Why a move does not go on now. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error("who has the stream does not answer")]
    Away,
    #[error("an answer cannot be read")]
    Unreadable,
    #[error(transparent)]
    Refused(#[from] ApiError),
}

/// What a node knows of moves.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// All that there are, as far as was heard.
    pub(super) heard: watch::Sender<Vec<Arrival>>,
    /// Something is to move, or not any more.
    pub(super) changed: Notify,
    /// How far the copies are that are made here.
    copied: Mutex<BTreeMap<String, Sequence>>,
}

impl Moves {
    /// The sequence up to which the stream is copied here.
    pub(super) fn copied(&self, stream: &str) -> Option<u64> {
        let copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        copied.get(stream).map(|sequence| sequence.0)
    }

    fn note(&self, stream: &str, copied: Sequence) {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner).insert(stream.to_owned(), copied);
    }

    fn forget(&self, stream: &str) {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
    }
}

/// Answers a question about a stream that moves; `then` is told of it before the answer leaves.
pub(super) fn answer(
    router: &Router,
    message: &Envelope<'_>,
    then: impl FnOnce(&MoveRequest) + Send + 'static,
) -> Offered {
    if message.reply.is_empty() {
        return Offered::Refused;
    }
    let wanted = match MoveRequest::decode(message.payload) {
        Ok(wanted) => wanted,
        Err(error) => {
            warn!(err = %error, "a question about a stream that moves cannot be read");
            return Offered::Refused;
        }
    };
    let reply = Bytes::copy_from_slice(message.reply);
    let interest = std::sync::Arc::clone(router.interest());
    let request = wanted.request();
    let tell = move |answer: Answer| {
        if answer.is_ok() {
            then(&wanted);
        }
        match MoveAnswer::of(answer).encode() {
            Ok(payload) => send(&interest, &reply, &payload),
            Err(error) => warn!(err = %error, "a message of a stream that moves is too large"),
        }
    };
    match router.request_then(request, Box::new(tell)) {
        Ok(()) => Offered::Taken,
        Err(_full) => Offered::Refused,
    }
}

fn send(interest: &Interest, reply: &[u8], payload: &[u8]) {
    let envelope = Envelope { subject: reply, reply: b"", headers: b"", payload, origin: 0 };
    // Whoever asked may have left.
    interest.route(&mut RouteCache::new(), reply, &envelope);
}

/// Asks who has the stream.
async fn ask(main: &Router, arrival: &Arrival, wanted: &MoveRequest) -> Result<MoveAnswer, Stopped> {
    let payload = wanted.encode().map_err(|_too_large| ApiError::BadRequest)?;
    let name = match &arrival.from {
        Place::Common => catalogue::NAME.to_owned(),
        Place::Node { peer, .. } => of_node(PeerId(*peer)).into_bytes(),
        Place::Shard(number) => of_shard(*number).into_bytes(),
    };
    let send = |reply: &str| {
        let message =
            Envelope { subject: SHOWN, reply: reply.as_bytes(), headers: b"", payload: &payload, origin: 0 };
        main.interest().send_to(&mut RouteCache::new(), &name, &message)
    };
    let answer = core_messages::ask_by(main, send, PATIENCE).await;
    let answer = answer.map_err(|core_messages::Unanswered| Stopped::Away)?;
    match MoveAnswer::decode(&answer) {
        Ok(MoveAnswer::Refused(refusal)) => Err(ApiError::from(refusal).into()),
        Ok(answer) => Ok(answer),
        Err(error) => {
            warn!(err = %error, stream = arrival.stream, "an answer about a stream that moves cannot be read");
            Err(Stopped::Unreadable)
        }
    }
}

/// A move to a shard of this node.
pub(super) struct Carried<'a> {
    /// The shard of all, by which the others are reached.
    pub(super) main: &'a Router,
    /// Where the stream is to be.
    pub(super) to: &'a Router,
    pub(super) arrival: &'a Arrival,
    pub(super) moves: &'a Moves,
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        self.moves.forget(&self.arrival.stream);
    }
}

impl Carried<'_> {
    /// Copies it whole, with the stream frozen at its end. The exchange is to be made.
    ///
    /// # Errors
    /// Why it does not go on now.
    pub(super) async fn copy(&self) -> Result<(), Stopped> {
        let Self { main, to, arrival, .. } = self;
        let (stream, id) = (|| arrival.stream.clone(), arrival.id);
        let first = self.rest_from(0).await?;
        let begin = Arrive::Begin { stream: stream(), id, rows: first.rows };
        let (last, is_whole) = arrive(to, begin).await?;
        if is_whole {
            return Ok(());
        }
        let last = self.messages(last).await?;
        self.trim().await?;
        let last = self.messages(last).await?;
        ask(main, arrival, &MoveRequest::Freeze { stream: stream(), id }).await?;
        self.messages(last).await?;
        self.trim().await?;
        let mut from = Some(0);
        while let Some(at) = from {
            let Rest { rows, next } = self.rest_from(at).await?;
            arrive(to, Arrive::Rest { stream: stream(), id, rows }).await?;
            from = next;
        }
        arrive(to, Arrive::Check { stream: stream(), id }).await?;
        Ok(())
    }

    /// Copies messages until none is left.
    async fn messages(&self, from: Sequence) -> Result<Sequence, Stopped> {
        let Self { main, to, arrival, .. } = self;
        let mut after = from;
        loop {
            let wanted = MoveRequest::Page { stream: arrival.stream.clone(), after };
            let MoveAnswer::Page(page) = ask(main, arrival, &wanted).await? else {
                return Err(Stopped::Unreadable);
            };
            let MovePage { up_to, last, .. } = page;
            let take = Arrive::Take { stream: arrival.stream.clone(), id: arrival.id, after, page };
            let (taken, _) = arrive(to, take).await?;
            if taken != up_to {
                return Err(Stopped::Unreadable);
            }
            after = taken;
            self.moves.note(&arrival.stream, taken);
            if taken >= last {
                return Ok(taken);
            }
        }
    }

    /// Removes what is gone where the stream is.
    async fn trim(&self) -> Result<(), Stopped> {
        let Self { main, to, arrival, .. } = self;
        let mut from = Some(Sequence(0));
        while let Some(at) = from {
            let wanted = MoveRequest::Dead { stream: arrival.stream.clone(), from: at };
            let MoveAnswer::Dead(dead) = ask(main, arrival, &wanted).await? else {
                return Err(Stopped::Unreadable);
            };
            from = dead.next;
            let trim = || Arrive::Trim { stream: arrival.stream.clone(), id: arrival.id, dead: dead.clone() };
            while arrive(to, trim()).await?.1 {}
        }
        Ok(())
    }

    async fn rest_from(&self, from: u32) -> Result<Rest, Stopped> {
        let wanted = MoveRequest::Rest { stream: self.arrival.stream.clone(), from };
        match ask(self.main, self.arrival, &wanted).await? {
            MoveAnswer::Rest(rest) => Ok(rest),
            MoveAnswer::Page(_) | MoveAnswer::Dead(_) | MoveAnswer::Done | MoveAnswer::Refused(_) => {
                Err(Stopped::Unreadable)
            }
        }
    }
}

/// Does a step of the copy.
pub(super) async fn arrive(to: &Router, wanted: Arrive) -> Result<(Sequence, bool), ApiError> {
    let answer = super::held::ask(to, Request::Arrive(Box::new(wanted))).await?;
    let Response::Arriving { last, again } = answer else { return Err(ApiError::BadRequest) };
    Ok((last, again))
}
