//! The log as files for another node, and another node's in the place of this one.

use beamlog_log::{EntryId, Installation, LogFiles, Shipment};

use super::follow::FoldError;
use super::{ReplicaError, Unapplied};
use crate::driver::Driver;

impl Driver {
    /// The files with what is decided. What is not may never be: the peer that wants a copy may be the one whose vote
    /// is missing.
    pub(super) fn ship(&mut self) -> Result<Shipment, ReplicaError> {
        let (place, decided) = (self.log.directory().to_owned(), self.replica().applied.index);
        self.log.ship(decided).map_err(|error| install_error(&place, &error))
    }

    pub(super) fn begin_install(&mut self, list: LogFiles) -> Result<Installation, ReplicaError> {
        let place = self.log.directory().to_owned();
        self.log.begin_install(list).map_err(|error| install_error(&place, &error))
    }

    /// Puts a copy in the place of log and state.
    pub(super) fn install(&mut self, installation: Installation) -> Result<EntryId, ReplicaError> {
        self.step_down();
        let list = installation.list();
        let (last, applied) = (list.last, self.replica().applied);
        if last.index < applied.index {
            return Err(ReplicaError::Committed { committed: applied.index, wanted: last.index });
        }
        let place = self.log.directory().to_owned();
        // Rows of the old state would stay among those of the new one.
        self.checkpoints.give_up();
        if let Err(error) = installation.exchange_in(&mut self.log) {
            let reported = install_error(&place, &error);
            self.fail(&error);
            return Err(reported);
        }
        assert_eq!(self.log.last_id(), last, "the copy ends where it was said to end");
        let replica = self.replica();
        replica.applied = last;
        replica.unapplied = Unapplied::default();
        replica.damaged = None;
        replica.folding = None;
        match self.refold() {
            Ok(recovering) => self.replica().folding = Some(recovering),
            Err(FoldError::Damage(damage)) => {
                self.note_damage(&damage);
                return Err(ReplicaError::Damaged(damage));
            }
            Err(FoldError::Broken(broken)) => return Err(self.fail_replica(&broken)),
        }
        tracing::info!(index = last.index.0, term = last.term.0, "this node's state is a copy of another's");
        self.tell_health();
        self.count();
        Ok(last)
    }
}

fn install_error(place: &std::path::Path, error: &dyn std::error::Error) -> ReplicaError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason.push_str(": ");
        reason.push_str(&error.to_string());
        cause = error.source();
    }
    ReplicaError::Install { path: place.to_owned(), reason }
}
