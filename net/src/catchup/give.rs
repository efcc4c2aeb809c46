//! Giving files to peers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use beamlog_log::Shipment;
use bytes::Bytes;

use crate::{
    peer::{PeerId, Refusal},
    raft::{Books, Shard, code, encode_membership, wire::Answer},
    runtime::{self, Moment},
};

/// Files that nobody asks for any more stay for so long, for who comes back.
const IDLE: Duration = Duration::from_secs(120);
/// Copies at a time. Each keeps the files of a moment from going.
const COPIES_MAX: usize = 4;
/// Files that nobody asked for in so long give their place to another copy. Whoever comes back asks for the list again.
const QUIET: Duration = Duration::from_secs(5);

/// What peers are fetching.
#[derive(Default)]
pub(super) struct Given {
    shipments: Mutex<BTreeMap<PeerId, (Arc<Shipment>, Moment)>>,
}

fn refuse(reason: impl Into<String>) -> Refusal {
    Refusal { code: code::FILES, reason: reason.into() }
}

impl Given {
    /// The files as they are now. A peer that asks again gets the files of that moment.
    pub(super) async fn list(&self, to: PeerId, shard: &dyn Shard, books: &Books) -> Result<Answer, Refusal> {
        self.forget_idle(runtime::now());
        self.make_room(to, runtime::now())?;
        let shipment = shard.ship().await.map_err(|error| refuse(error.to_string()))?;
        let last = shipment.files().last;
        let (membership_id, membership) =
            books.governing(last.index).ok_or_else(|| refuse("this node knows of no membership"))?;
        let membership = encode_membership(&membership).map_err(|error| refuse(error.to_string()))?;
        let list = shipment.files().encode().map_err(|error| refuse(error.to_string()))?;
        tracing::info!(peer = %to, last = %last.index, bytes = shipment.files().total_bytes(), "files are given");
        let kept = (Arc::new(shipment), runtime::now());
        self.shipments.lock().unwrap_or_else(PoisonError::into_inner).insert(to, kept);
        Ok(Answer::Files { membership_id, membership: membership.into(), list: list.into() })
    }

    pub(super) async fn chunk(
        &self,
        to: PeerId,
        file: String,
        offset: u64,
        bytes: u32,
    ) -> Result<Answer, Refusal> {
        let shipment = {
            let mut shipments = self.shipments.lock().unwrap_or_else(PoisonError::into_inner);
            let (shipment, used) =
                shipments.get_mut(&to).ok_or_else(|| refuse("ask for the list of files first"))?;
            *used = runtime::now();
            Arc::clone(shipment)
        };
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        let read = runtime::blocking(move || shipment.read(&file, offset, len)).await;
        let read: Bytes = match read {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(refuse(error.to_string())),
            Err(gone) => return Err(refuse(gone.to_string())),
        };
        Ok(Answer::Chunk(read))
    }

    /// Lets the files go that were quiet for longest, if there is no other place.
    fn make_room(&self, to: PeerId, now: Moment) -> Result<(), Refusal> {
        let mut shipments = self.shipments.lock().unwrap_or_else(PoisonError::into_inner);
        if shipments.len() < COPIES_MAX || shipments.contains_key(&to) {
            return Ok(());
        }
        let quietest =
            shipments.iter().min_by_key(|(_, (_, used))| *used).map(|(peer, (_, used))| (*peer, *used));
        match quietest.filter(|(_, used)| now - *used >= QUIET) {
            Some((peer, _)) => {
                shipments.remove(&peer);
                Ok(())
            }
            None => Err(refuse(format!("{COPIES_MAX} copies are being made"))),
        }
    }

    pub(super) fn forget_idle(&self, now: Moment) {
        let mut shipments = self.shipments.lock().unwrap_or_else(PoisonError::into_inner);
        shipments.retain(|_, (_, used)| now - *used < IDLE);
    }
}
