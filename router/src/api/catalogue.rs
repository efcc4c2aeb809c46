//! What the nodes of a cluster say to the one that keeps the catalogue of streams in other shards, and its answers.
//! Envelopes: checked by their checksum, decoded whole or not at all.

use beamlog_log::envelope::{self, DecodeError, EncodeError, Enveloped};
use wincode::{SchemaRead, SchemaWrite};

use crate::api::error::ApiError;
use crate::api::request::{
    Answer, Arrival, ClusterShard, Rearrange, Request, Reservation, Response, ShardList,
};

/// Reservations of one page, and bytes of their subjects.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 512 << 10;

/// What is asked.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum CatalogueRequest {
    /// [`Request::Reserve`].
    Reserve(Reservation),
    /// [`Request::Release`].
    Release { stream: String, store: String, term: u64 },
    /// The reservations of a store behind a name, in the order of names.
    Of { store: String, after: String },
    /// [`Request::PutShard`].
    PutShard(ClusterShard),
    /// [`Request::Shards`].
    Shards,
    /// Of a stream that is to move.
    Rearrange(Rearrange),
}

/// What is answered.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum CatalogueAnswer {
    /// The reservation that is in force.
    Reserved(Reservation),
    Released,
    Page {
        reservations: Vec<Reservation>,
        is_last: bool,
    },
    Refused(CatalogueRefusal),
    Shards {
        list: ShardList,
        members: Vec<ListedMember>,
    },
    Arrivals(Vec<Arrival>),
}

/// A data node of the cluster, as who keeps the catalogue knows it.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ListedMember {
    pub peer: u64,
    pub name: String,
    pub address: String,
}

/// Why a reservation is not made.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum CatalogueRefusal {
    /// The shard that keeps the catalogue has a stream of that name.
    NameInUse,
    SubjectOverlap,
    MaxStreams,
    Invalid(String),
    /// The node asked does not lead, or has no quorum.
    Unavailable,
    /// A shard cannot be so.
    NoSuitablePeers(String),
    NotFound,
    /// A move, as things are.
    NotNow(String),
}

impl Enveloped for CatalogueRequest {
    const KIND: u16 = 0x0203;
    const VERSION: u8 = 1;
}

impl Enveloped for CatalogueAnswer {
    const KIND: u16 = 0x0204;
    const VERSION: u8 = 1;
}

impl CatalogueRequest {
    /// # Errors
    /// It is too large for a message.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        envelope::encode(self)
    }

    /// # Errors
    /// The bytes are no such request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        envelope::decode(bytes)
    }

    /// What it is to the router.
    #[must_use]
    pub fn request(&self) -> Request {
        match self {
            Self::Reserve(reservation) => Request::Reserve(Box::new(reservation.clone())),
            Self::Release { stream, store, term } => {
                Request::Release { stream: stream.clone(), store: store.clone(), term: *term }
            }
            Self::Of { .. } => Request::Reservations,
            Self::PutShard(shard) => Request::PutShard(shard.clone()),
            Self::Shards => Request::Shards,
            Self::Rearrange(wanted) => Request::Rearrange(Box::new(wanted.clone())),
        }
    }

    /// The router's answer to [`Self::request`], as it is told; `members` are those of the cluster now.
    #[must_use]
    pub fn answer(&self, answer: Answer, members: impl FnOnce() -> Vec<ListedMember>) -> CatalogueAnswer {
        match (self, answer) {
            (Self::Of { store, after }, Ok(Response::Reservations(all))) => {
                let behind = |have: &Reservation| have.store == *store && have.stream > *after;
                let mut mine = all.into_iter().filter(behind).peekable();
                let (mut reservations, mut bytes) = (Vec::new(), 0);
                while reservations.len() < PAGE && bytes < PAGE_BYTES {
                    let Some(next) = mine.next() else { break };
                    bytes += next.subjects.iter().map(String::len).sum::<usize>();
                    reservations.push(next);
                }
                CatalogueAnswer::Page { reservations, is_last: mine.peek().is_none() }
            }
            (Self::Reserve(_), Ok(Response::Reserved(in_force))) => CatalogueAnswer::Reserved(*in_force),
            (Self::Release { .. }, Ok(_)) => CatalogueAnswer::Released,
            (Self::PutShard(_) | Self::Shards, Ok(Response::Shards(list))) => {
                CatalogueAnswer::Shards { list, members: members() }
            }
            (Self::Rearrange(_), Ok(Response::Arrivals(arrivals))) => CatalogueAnswer::Arrivals(arrivals),
            (
                Self::Reserve(_) | Self::Of { .. } | Self::PutShard(_) | Self::Shards | Self::Rearrange(_),
                Ok(_),
            ) => CatalogueAnswer::Refused(CatalogueRefusal::Unavailable),
            (_, Err(error)) => CatalogueAnswer::Refused(CatalogueRefusal::of(&error)),
        }
    }
}

impl CatalogueAnswer {
    /// # Errors
    /// It is too large for a message.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        envelope::encode(self)
    }

    /// # Errors
    /// The bytes are no such answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        envelope::decode(bytes)
    }
}

impl CatalogueRefusal {
    pub(super) fn of(error: &ApiError) -> Self {
        if let ApiError::StreamUpdateInvalid(text) = error {
            Self::NotNow(text.clone())
        } else if *error == ApiError::NotLeader || *error == ApiError::LogFailed {
            Self::Unavailable
        } else if *error == ApiError::StreamNotFound {
            Self::NotFound
        } else if *error == ApiError::StreamNameInUse {
            Self::NameInUse
        } else if *error == ApiError::SubjectOverlap {
            Self::SubjectOverlap
        } else if *error == ApiError::MaxStreams {
            Self::MaxStreams
        } else if let ApiError::NoSuitablePeers(text) = error {
            Self::NoSuitablePeers(text.clone())
        } else {
            Self::Invalid(error.to_string())
        }
    }
}

impl From<CatalogueRefusal> for ApiError {
    fn from(refusal: CatalogueRefusal) -> Self {
        match refusal {
            CatalogueRefusal::NameInUse => Self::StreamNameInUse,
            CatalogueRefusal::SubjectOverlap => Self::SubjectOverlap,
            CatalogueRefusal::MaxStreams => Self::MaxStreams,
            CatalogueRefusal::Invalid(text) => Self::StreamConfigInvalid(text),
            CatalogueRefusal::Unavailable => Self::NotLeader,
            CatalogueRefusal::NoSuitablePeers(text) => Self::NoSuitablePeers(text),
            CatalogueRefusal::NotFound => Self::StreamNotFound,
            CatalogueRefusal::NotNow(text) => Self::StreamUpdateInvalid(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reservation(stream: String, store: &str) -> Reservation {
        let (store, node) = (store.into(), "n".into());
        Reservation { subjects: vec![stream.clone()], stream, store, node, peer: 1, term: 0, deleted: false }
    }

    #[test]
    fn a_store_is_told_of_its_own_reservations_in_pages() {
        let name = |n: usize| format!("s{n:05}");
        let mut all: Vec<_> = (0..PAGE + 5).map(|n| reservation(name(n), "mine")).collect();
        all.insert(3, reservation("s00002x".into(), "theirs"));
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let request = CatalogueRequest::Of { store: "mine".into(), after: after.clone() };
            let answer = request.answer(Ok(Response::Reservations(all.clone())), Vec::new);
            let answer = CatalogueAnswer::decode(&answer.encode().unwrap()).unwrap();
            let CatalogueAnswer::Page { reservations, is_last } = answer else { panic!("{answer:?}") };
            assert!(reservations.len() <= PAGE);
            after.clone_from(&reservations.last().unwrap().stream);
            seen.extend(reservations.into_iter().map(|one| one.stream));
            if is_last {
                break;
            }
        }
        assert_eq!(seen, (0..PAGE + 5).map(name).collect::<Vec<_>>());
    }
}
