//! What a log notes for itself: frames that take no index, because no other copy of the log has them.

use crate::{
    Log, SyncError, WriteError,
    format::{
        frame::{FRAME_HEADER_BYTES, LOCAL},
        record::{self, Kind},
    },
};

impl Log {
    /// Writes and syncs a record in a frame of its own. What is being gathered stays pending behind it.
    pub(crate) fn append_local(&mut self, kind: Kind, body: &[u8]) -> Result<(), WriteError> {
        let mut frame = vec![0; FRAME_HEADER_BYTES];
        record::put_other(&mut frame, self.salt, kind, body);
        let header = self.frame_header(self.open.header.segment, 1, LOCAL, self.last_index);
        let place = self.open.end;
        self.append(&mut frame, header)?;
        self.relocate_pending(place, frame.len() as u64);
        self.sync().map(|_durable| ()).map_err(|error| match error {
            SyncError::Poisoned => WriteError::Poisoned,
            SyncError::Disk(failed) => WriteError::Disk(failed),
        })
    }
}
