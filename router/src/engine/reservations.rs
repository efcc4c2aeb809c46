//! Streams that this shard knows by name and subjects only, because another shard has them: who they belong to is
//! decided here, in one log, so that no two streams of a cluster have a name or a subject in common.

use std::collections::BTreeMap;

use wincode::{SchemaRead, SchemaWrite};

use crate::api::error::ApiError;
use crate::api::request::{Answer, Response};
use crate::engine::arrivals::Arrival;
use crate::engine::record::Record;
use crate::engine::{Engine, Turn};
use crate::stream::{StreamConfig, validation};
use crate::subject;

/// Longest name of a store or node in a reservation.
const HOLDER_BYTES_MAX: usize = 255;

/// What a stream of another shard has in this one.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Reservation {
    pub stream: String,
    /// Filters that it captures.
    pub subjects: Vec<String>,
    /// The identity of the store that has the stream: of another one nobody takes it.
    pub store: String,
    /// The node of that store, as people call it.
    pub node: String,
    /// The node's id among the peers; 0 of a shard that several nodes hold.
    pub peer: u64,
    /// Of such a shard: the term of the leader that says this. What an older one says comes too late. 0 of one node.
    pub term: u64,
    /// Deleted while its node was away: it keeps name and subjects until that node says that the stream is gone.
    pub deleted: bool,
}

impl Reservation {
    /// What stands for the identity of a store when several nodes hold it: a shard of the cluster.
    #[must_use]
    pub fn store_of_shard(number: u8) -> String {
        format!("shard-{number}")
    }

    /// The shard that several nodes hold, if it is one of these that has the stream.
    #[must_use]
    pub fn shard(&self) -> Option<u8> {
        self.store.strip_prefix("shard-")?.parse().ok().filter(|_number| self.peer == 0)
    }

    /// Whether the stream captures something that the filter matches.
    pub(super) fn matches(&self, filter: Option<&str>) -> bool {
        filter.filter(|filter| !filter.is_empty()).is_none_or(|filter| {
            let overlaps = |subject: &String| subject::overlaps(subject.as_bytes(), filter.as_bytes());
            self.subjects.iter().any(overlaps)
        })
    }
}

/// All reservations, by the stream's name.
#[derive(Default)]
pub(super) struct Reservations {
    by_name: BTreeMap<String, Reservation>,
    /// Streams that move, by name.
    arrivals: BTreeMap<String, Arrival>,
    /// Since the last checkpoint.
    dirty: bool,
}

impl Reservations {
    pub(super) fn put(&mut self, reservation: Reservation) {
        self.dirty = true;
        self.by_name.insert(reservation.stream.clone(), reservation);
    }

    pub(super) fn remove(&mut self, stream: &str) {
        self.dirty |= self.by_name.remove(stream).is_some();
    }

    pub(super) fn get(&self, stream: &str) -> Option<&Reservation> {
        self.by_name.get(stream)
    }

    pub(super) fn put_arrival(&mut self, arrival: Arrival) {
        self.dirty = true;
        self.arrivals.insert(arrival.stream.clone(), arrival);
    }

    pub(super) fn end_arrival(&mut self, stream: &str) {
        self.dirty |= self.arrivals.remove(stream).is_some();
    }

    pub(super) fn arrival(&self, stream: &str) -> Option<&Arrival> {
        self.arrivals.get(stream)
    }

    pub(super) fn arrivals(&self) -> impl Iterator<Item = &Arrival> {
        self.arrivals.values()
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Reservation> {
        self.by_name.values()
    }

    /// Those of streams that there are.
    pub(super) fn streams(&self) -> impl Iterator<Item = &Reservation> {
        self.all().filter(|reservation| !reservation.deleted)
    }

    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Why a stream that this shard does not have cannot be asked.
    pub(super) fn missing(&self, stream: &str) -> ApiError {
        match self.get(stream).filter(|reservation| !reservation.deleted) {
            Some(reservation) => ApiError::StreamOffline { node: reservation.node.clone() },
            None => ApiError::StreamNotFound,
        }
    }

    /// Why there is none to be created by a name that is reserved.
    pub(super) fn in_use(&self, stream: &str) -> ApiError {
        let node = self.get(stream).map(|reservation| reservation.node.clone()).unwrap_or_default();
        ApiError::StreamOffline { node }
    }
}

impl Engine {
    pub(super) fn reserve(&mut self, turn: &mut Turn<'_>, mut wanted: Reservation) -> Answer {
        if wanted.store.len() > HOLDER_BYTES_MAX || wanted.node.len() > HOLDER_BYTES_MAX {
            return Err(ApiError::BadRequest);
        }
        // The other rules for a stream are checked where it is.
        let subjects = std::mem::take(&mut wanted.subjects);
        let mut config =
            StreamConfig { name: wanted.stream.clone(), subjects, no_ack: true, ..StreamConfig::default() };
        validation::validate(&mut config, 1)?;
        wanted.subjects = config.subjects;
        wanted.deleted = false;
        if self.names.contains_key(&wanted.stream) {
            return Err(ApiError::StreamNameInUse);
        }
        // What the answer says may not be durable yet.
        self.commit_wanted = true;
        match self.reservations.get(&wanted.stream) {
            Some(have)
                if have.store != wanted.store
                    || have.deleted
                    || *have == wanted
                    || have.term > wanted.term =>
            {
                return Ok(Response::Reserved(Box::new(have.clone())));
            }
            Some(_) => {}
            None => self.check_room()?,
        }
        self.check_overlap(None, &wanted.stream, &wanted.subjects)?;
        self.put_reservation(turn, wanted.clone())?;
        Ok(Response::Reserved(Box::new(wanted)))
    }

    /// A reservation of a store that lost the stream to another one stays with that one, and of a shard one that its
    /// later leader made.
    pub(super) fn release(&mut self, turn: &mut Turn<'_>, stream: &str, store: &str, term: u64) -> Response {
        self.commit_wanted = true;
        let is_its = |have: &Reservation| have.store == store && have.term <= term;
        if self.reservations.get(stream).is_some_and(is_its) {
            if self.reservations.arrival(stream).is_some_and(|arrival| !arrival.exchanged) {
                self.end_arrival(turn, stream);
            }
            self.put_released(turn, stream);
        }
        Response::Deleted
    }

    pub(super) fn put_released(&mut self, turn: &mut Turn<'_>, stream: &str) {
        let record = Record::Released { stream: stream.to_owned() };
        record.push(turn.journal).expect("the record is a few bytes");
        self.reservations.remove(stream);
    }

    /// The stream's node is away, or has not been asked: it deletes the stream when it hears of it.
    pub(super) fn delete_elsewhere(&mut self, turn: &mut Turn<'_>, stream: &str) -> Answer {
        let have = self.reservations.get(stream).filter(|reservation| !reservation.deleted);
        let deleted = Reservation { deleted: true, ..have.cloned().ok_or(ApiError::StreamNotFound)? };
        self.commit_wanted = true;
        self.put_reservation(turn, deleted)?;
        if self.reservations.arrival(stream).is_some_and(|arrival| !arrival.exchanged) {
            self.end_arrival(turn, stream);
        }
        Ok(Response::Deleted)
    }

    pub(super) fn put_reservation(
        &mut self,
        turn: &mut Turn<'_>,
        reservation: Reservation,
    ) -> Result<(), ApiError> {
        let record = Record::Reserved(Box::new(reservation));
        record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
        let Record::Reserved(reservation) = record else { unreachable!("built above") };
        self.reservations.put(*reservation);
        Ok(())
    }
}
