//! What is asked of the disk: counted, remembered on request, and made to fail on request.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

/// The kinds of operation.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Operation {
    Open,
    Create,
    List,
    Exists,
    CreateDir,
    Rename,
    Remove,
    SyncDir,
    Lock,
    Read,
    ReadPastCache,
    Write,
    SetLen,
    Preallocate,
    SyncData,
    Len,
}

impl Operation {
    /// Every kind, for loops over all of them.
    pub const ALL: [Self; 16] = [
        Self::Open,
        Self::Create,
        Self::List,
        Self::Exists,
        Self::CreateDir,
        Self::Rename,
        Self::Remove,
        Self::SyncDir,
        Self::Lock,
        Self::Read,
        Self::ReadPastCache,
        Self::Write,
        Self::SetLen,
        Self::Preallocate,
        Self::SyncData,
        Self::Len,
    ];

    /// Whether the medium may be another afterwards.
    #[must_use]
    pub const fn is_change(self) -> bool {
        match self {
            Self::Create
            | Self::CreateDir
            | Self::Rename
            | Self::Remove
            | Self::SyncDir
            | Self::Write
            | Self::SetLen
            | Self::Preallocate
            | Self::SyncData => true,
            Self::Open
            | Self::List
            | Self::Exists
            | Self::Lock
            | Self::Read
            | Self::ReadPastCache
            | Self::Len => false,
        }
    }
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// `EIO`, nothing done.
    Io,
    /// `ENOSPC`, nothing done.
    NoSpace,
    /// `EIO` after a part: half of the bytes of a write, every other sector of a sync.
    PartialIo,
    /// `ENOSPC` after a part.
    PartialNoSpace,
}

impl Failure {
    pub(super) fn error(self) -> io::Error {
        match self {
            // The number, so that it reads as the real one does.
            Self::Io | Self::PartialIo => io::Error::from_raw_os_error(5),
            Self::NoSpace | Self::PartialNoSpace => io::ErrorKind::StorageFull.into(),
        }
    }

    pub(super) const fn is_partial(self) -> bool {
        match self {
            Self::PartialIo | Self::PartialNoSpace => true,
            Self::Io | Self::NoSpace => false,
        }
    }
}

/// Whether a fault passes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repeat {
    Once,
    /// That operation and all later ones of the kind.
    Forever,
}

/// A planned failure.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which kind fails; `None` is any changing one.
    pub operation: Option<Operation>,
    /// Which one of the kind, counted from when the fault was set; the first is 1.
    pub nth: u64,
    pub failure: Failure,
    pub repeat: Repeat,
}

/// One line of the trace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// An operation was asked for, and whether it succeeded.
    Did {
        operation: Operation,
        path: PathBuf,
        /// Bytes it touched, for reads and writes.
        offset: u64,
        len: u64,
        succeeded: bool,
    },
    /// [`super::SimDisk::mark`].
    Mark(String),
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<(Fault, u64)>,
    counts: BTreeMap<Operation, u64>,
    changes: u64,
    power_off_at: Option<u64>,
    off: bool,
    trace: Option<Vec<Event>>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.planned.push((fault, 0));
    }

    pub(super) fn clear(&mut self) {
        self.planned.clear();
    }

    pub(super) fn power_off_at(&mut self, nth: u64) {
        self.power_off_at = Some(self.changes + nth);
    }

    pub(super) const fn is_off(&self) -> bool {
        self.off
    }

    pub(super) fn turn_on(&mut self) {
        self.off = false;
        self.power_off_at = None;
    }

    pub(super) fn count(&self, operation: Operation) -> u64 {
        self.counts.get(&operation).copied().unwrap_or(0)
    }

    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    pub(super) fn start_trace(&mut self) {
        self.trace = Some(Vec::new());
    }

    pub(super) fn trace(&self) -> &[Event] {
        self.trace.as_deref().unwrap_or(&[])
    }

    pub(super) fn mark(&mut self, label: &str) {
        if let Some(trace) = &mut self.trace {
            trace.push(Event::Mark(label.to_owned()));
        }
    }

    pub(super) fn remember(
        &mut self,
        operation: Operation,
        path: &Path,
        offset: u64,
        len: u64,
        succeeded: bool,
    ) {
        if let Some(trace) = &mut self.trace {
            trace.push(Event::Did { operation, path: path.to_path_buf(), offset, len, succeeded });
        }
    }

    /// Counts an operation; says whether it is to fail. `Err` when the machine is off.
    pub(super) fn begin(&mut self, operation: Operation) -> io::Result<Option<Failure>> {
        if operation.is_change() && !self.off {
            self.changes += 1;
            self.off = self.power_off_at.is_some_and(|at| self.changes >= at);
        }
        if self.off {
            return Err(io::Error::other("the simulated machine is off"));
        }
        *self.counts.entry(operation).or_default() += 1;
        let mut failure = None;
        for (fault, seen) in &mut self.planned {
            let fits = fault.operation.map_or(operation.is_change(), |wanted| wanted == operation);
            if !fits {
                continue;
            }
            *seen += 1;
            let due = match fault.repeat {
                Repeat::Once => *seen == fault.nth,
                Repeat::Forever => *seen >= fault.nth,
            };
            if due && failure.is_none() {
                failure = Some(fault.failure);
            }
        }
        Ok(failure)
    }
}
