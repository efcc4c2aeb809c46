//! Streams that are to go from one shard to another: who has one and who gets it is decided here, in one log. One
//! record makes the exchange: before it the one has the stream, behind it the other.

use wincode::{SchemaRead, SchemaWrite};

use crate::api::error::ApiError;
use crate::api::request::{Answer, Reservation, Response};
use crate::engine::record::Record;
use crate::engine::{Engine, Turn};
use crate::stream::moving::Moving;

/// Which shard has a stream. Variants are only ever added at the end.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum Place {
    /// The one that keeps the catalogue.
    Common,
    /// That of a node alone.
    Node { node: String, peer: u64 },
    /// One of the cluster's beside the first, whoever leads it.
    Shard(u8),
}

/// A stream that moves.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Arrival {
    pub stream: String,
    /// Different for each move.
    pub id: u64,
    pub from: Place,
    pub to: Place,
    /// What stands in its reservation for the store that had it; nothing of the first shard.
    pub store: String,
    /// The other one has it. The first still has a copy, and says when it has forgotten it.
    pub exchanged: bool,
}

/// What is asked of the catalogue.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum Rearrange {
    /// The stream is to go there.
    Announce { stream: String, to: Place },
    /// Everything was copied, and nothing comes in any more: the other one has it from now on. With the reservation of
    /// the node or shard that has it then; its subjects are those that the stream has.
    Exchange { stream: String, id: u64, holder: Option<Reservation> },
    /// It stays.
    Cancel { stream: String, id: u64 },
    /// The copy of the shard that had it is gone.
    Forget { stream: String, id: u64 },
    /// All that move.
    List,
}

/// Streams that move at the same time: they are told in one answer.
const ARRIVALS_MAX: usize = 1000;

impl Place {
    /// Whether this is the reservation of a stream that is there.
    fn is_of(&self, holder: Option<&Reservation>) -> bool {
        match (self, holder) {
            (Self::Common, holder) => holder.is_none(),
            (Self::Node { peer, .. }, Some(holder)) => holder.peer == *peer,
            (Self::Shard(number), Some(holder)) => holder.shard() == Some(*number),
            (Self::Node { .. } | Self::Shard(_), None) => false,
        }
    }
}

fn refused(text: &str) -> ApiError {
    ApiError::StreamUpdateInvalid(text.to_owned())
}

impl Engine {
    pub(super) fn rearrange(&mut self, turn: &mut Turn<'_>, wanted: Rearrange) -> Answer {
        match wanted {
            Rearrange::Announce { stream, to } => self.announce(turn, &stream, to),
            Rearrange::Exchange { stream, id, holder } => {
                self.commit_wanted = true;
                self.exchange(turn, &stream, id, holder)
            }
            Rearrange::Cancel { stream, id } => {
                self.commit_wanted = true;
                let Some(arrival) = self.arrival(&stream, id) else {
                    return Ok(Response::Arrivals(Vec::new()));
                };
                if arrival.exchanged {
                    return Err(refused("the stream has moved already"));
                }
                self.end_arrival(turn, &stream);
                Ok(Response::Arrivals(Vec::new()))
            }
            Rearrange::Forget { stream, id } => {
                self.commit_wanted = true;
                if self.arrival(&stream, id).is_some_and(|arrival| arrival.exchanged) {
                    self.end_arrival(turn, &stream);
                }
                Ok(Response::Arrivals(Vec::new()))
            }
            Rearrange::List => Ok(Response::Arrivals(self.reservations.arrivals().cloned().collect())),
        }
    }

    pub(super) fn arrival(&self, stream: &str, id: u64) -> Option<Arrival> {
        self.reservations.arrival(stream).filter(|arrival| arrival.id == id).cloned()
    }

    fn announce(&mut self, turn: &mut Turn<'_>, stream: &str, to: Place) -> Answer {
        let (from, store) = match self.reservations.get(stream).filter(|reservation| !reservation.deleted) {
            Some(have) => {
                let Reservation { node, peer, store, .. } = have;
                let of_node = || Place::Node { node: node.clone(), peer: *peer };
                (have.shard().map_or_else(of_node, Place::Shard), store.clone())
            }
            None if self.names.contains_key(stream) => (Place::Common, String::new()),
            None => return Err(ApiError::StreamNotFound),
        };
        self.commit_wanted = true;
        if let Some(arrival) = self.reservations.arrival(stream) {
            let stays = from == to && !arrival.exchanged;
            return if stays {
                self.end_arrival(turn, stream);
                Ok(Response::Arrivals(Vec::new()))
            } else if arrival.exchanged {
                Err(refused("who had the stream has not forgotten it yet"))
            } else if arrival.to == to {
                Ok(Response::Arrivals(vec![arrival.clone()]))
            } else {
                Err(refused("the stream is on its way to another place"))
            };
        }
        if from == to {
            return Ok(Response::Arrivals(Vec::new()));
        }
        if let Place::Shard(number) = to
            && !self.shards.is_listed(number)
        {
            return Err(ApiError::NoSuitablePeers(format!("there is no shard {number}")));
        }
        if self.reservations.arrivals().count() >= ARRIVALS_MAX {
            return Err(ApiError::TooManyRequests);
        }
        // Time does not go back, and no stream moves twice in one nanosecond.
        let id = turn.now.0;
        let arrival = Arrival { stream: stream.to_owned(), id, from, to, store, exchanged: false };
        self.put_arrival(turn, arrival.clone())?;
        Ok(Response::Arrivals(vec![arrival]))
    }

    fn put_arrival(&mut self, turn: &mut Turn<'_>, arrival: Arrival) -> Result<(), ApiError> {
        let record = Record::Arrival(Box::new(arrival));
        record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
        let Record::Arrival(arrival) = record else { unreachable!("built above") };
        self.reservations.put_arrival(*arrival);
        Ok(())
    }

    fn exchange(
        &mut self,
        turn: &mut Turn<'_>,
        stream: &str,
        id: u64,
        holder: Option<Reservation>,
    ) -> Answer {
        let arrival = self.arrival(stream, id).ok_or(ApiError::StreamNotFound)?;
        let done = Ok(Response::Arrivals(vec![Arrival { exchanged: true, ..arrival.clone() }]));
        if arrival.exchanged {
            return done;
        }
        if !arrival.to.is_of(holder.as_ref()) {
            return Err(ApiError::BadRequest);
        }
        let have = self.reservations.get(stream).cloned();
        match (&arrival.from, holder) {
            (Place::Node { .. } | Place::Shard(_), holder) => {
                let have = have.filter(|have| have.store == arrival.store && !have.deleted);
                let have = have.ok_or(ApiError::StreamNotFound)?;
                match holder {
                    Some(holder) => {
                        let Reservation { stream, subjects, .. } = have;
                        let moved = Reservation { stream, subjects, deleted: false, ..holder };
                        self.put_reservation(turn, moved)?;
                    }
                    None => {
                        let arrived = self.moving_stream(stream, Moving::Arrived(id))?;
                        self.open(turn, arrived)?;
                        self.put_released(turn, stream);
                    }
                }
                // Until the copy is forgotten there.
                self.put_arrival(turn, Arrival { exchanged: true, ..arrival })?;
            }
            (Place::Common, Some(holder)) => {
                let leaving = self.moving_stream(stream, Moving::Leaving(id))?;
                let subjects = self.streams[&leaving].body.config.subjects.clone();
                let moved = Reservation { stream: stream.to_owned(), subjects, deleted: false, ..holder };
                self.drop_copy(turn, leaving);
                self.put_reservation(turn, moved)?;
                self.put_arrival_ended(turn, stream);
            }
            (Place::Common, None) => return Err(ApiError::BadRequest),
        }
        done
    }

    /// A stream does not move any more: what this shard has of the move ends.
    pub(super) fn end_arrival(&mut self, turn: &mut Turn<'_>, stream: &str) {
        let Some(arrival) = self.reservations.arrival(stream).cloned() else { return };
        self.put_arrival_ended(turn, stream);
        if arrival.exchanged {
            return;
        }
        if let Ok(leaving) = self.moving_stream(stream, Moving::Leaving(arrival.id)) {
            self.thaw(turn, leaving);
        }
        for moving in [Moving::Arriving(arrival.id), Moving::Arrived(arrival.id)] {
            if let Ok(copy) = self.moving_stream(stream, moving) {
                self.drop_copy(turn, copy);
            }
        }
    }

    fn put_arrival_ended(&mut self, turn: &mut Turn<'_>, stream: &str) {
        let record = Record::ArrivalEnded { stream: stream.to_owned() };
        record.push(turn.journal).expect("the record is a few bytes");
        self.reservations.end_arrival(stream);
    }
}
