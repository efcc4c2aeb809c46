//! The state of the disk: nodes, names in the cache and on the medium, and the operations on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path, PathBuf},
};

use super::{
    fault::{Failure, Faults, Operation},
    file::{Change, File, SECTOR_BYTES, What},
};

/// A file or directory, whatever its name.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct NodeId(usize);

const ROOT: NodeId = NodeId(0);

#[derive(Clone, Debug)]
pub(super) enum Node {
    File(File),
    Directory(Directory),
}

type Names = BTreeMap<String, NodeId>;

#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    cached: Names,
    medium: Names,
}

/// A change of names that is not on the medium yet.
#[derive(Clone, Debug)]
pub(super) struct NameChange {
    pub(super) at: u64,
    what: NameWhat,
}

#[derive(Clone, Debug)]
enum NameWhat {
    Link { directory: NodeId, name: String, node: NodeId },
    Unlink { directory: NodeId, name: String },
    Rename { from: (NodeId, String), to: (NodeId, String), node: NodeId },
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) nodes: Vec<Node>,
    pub(super) name_changes: Vec<NameChange>,
    pub(super) faults: Faults,
    pub(super) space_bytes_max: Option<u64>,
    /// Counts restarts: what was opened in another boot is of no use.
    pub(super) boot: u64,
    locks: BTreeSet<NodeId>,
    /// Place of the next change.
    clock: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            nodes: vec![Node::Directory(Directory::default())],
            name_changes: Vec::new(),
            faults: Faults::default(),
            space_bytes_max: None,
            boot: 0,
            locks: BTreeSet::new(),
            clock: 0,
        }
    }
}

/// Looking at the disk, past all faults.
impl State {
    pub(super) fn fork(&self) -> Self {
        Self {
            nodes: self.nodes.clone(),
            name_changes: self.name_changes.clone(),
            clock: self.clock,
            ..Self::default()
        }
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.nodes.iter().filter_map(|node| match node {
            Node::File(file) => Some(file),
            Node::Directory(_) => None,
        })
    }

    fn directory(&self, node: NodeId) -> io::Result<&Directory> {
        match &self.nodes[node.0] {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn directory_mut(&mut self, node: NodeId) -> io::Result<&mut Directory> {
        match &mut self.nodes[node.0] {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn node_file(&mut self, node: NodeId) -> io::Result<&mut File> {
        match &mut self.nodes[node.0] {
            Node::File(file) => Ok(file),
            Node::Directory(_) => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn file_mut(&mut self, path: &Path) -> io::Result<&mut File> {
        let node = self.find(path)?;
        self.node_file(node)
    }

    fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut node = ROOT;
        for name in components(path)? {
            node = *self.directory(node)?.cached.get(name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    /// The directory in which `path` is or would be, and its name there.
    fn place(&self, path: &Path) -> io::Result<(NodeId, String)> {
        let names = components(path)?;
        let (name, parents) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let mut node = ROOT;
        for parent in parents {
            node = *self.directory(node)?.cached.get(*parent).ok_or(io::ErrorKind::NotFound)?;
        }
        self.directory(node)?;
        Ok((node, (*name).to_owned()))
    }

    pub(super) fn files_on_medium(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, node)) = waiting.pop() {
            match &self.nodes[node.0] {
                Node::File(file) => {
                    found.insert(path, file.medium.clone());
                }
                Node::Directory(directory) => {
                    waiting.extend(directory.medium.iter().map(|(name, node)| (path.join(name), *node)))
                }
            }
        }
        found
    }

    pub(super) fn used_space(&self) -> u64 {
        let mut used = 0;
        let mut waiting = vec![ROOT];
        while let Some(node) = waiting.pop() {
            match &self.nodes[node.0] {
                Node::File(file) => used += file.reserved as u64,
                Node::Directory(directory) => waiting.extend(directory.cached.values()),
            }
        }
        used
    }
}

/// Changing names.
impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn change_names(&mut self, what: NameWhat) -> io::Result<()> {
        self.apply_names(&what, |directory| &mut directory.cached)?;
        let at = self.tick();
        self.name_changes.push(NameChange { at, what });
        Ok(())
    }

    fn apply_names(
        &mut self,
        what: &NameWhat,
        side: impl Fn(&mut Directory) -> &mut Names,
    ) -> io::Result<()> {
        match what {
            NameWhat::Link { directory, name, node } => {
                side(self.directory_mut(*directory)?).insert(name.clone(), *node);
            }
            NameWhat::Unlink { directory, name } => {
                side(self.directory_mut(*directory)?).remove(name);
            }
            NameWhat::Rename { from, to, node } => {
                let old = side(self.directory_mut(from.0)?);
                if old.get(&from.1) == Some(node) {
                    old.remove(&from.1);
                }
                side(self.directory_mut(to.0)?).insert(to.1.clone(), *node);
            }
        }
        Ok(())
    }

    fn names_to_medium(&mut self, wanted: impl FnMut(&NameChange) -> bool) {
        let (chosen, left) = std::mem::take(&mut self.name_changes).into_iter().partition(wanted);
        self.name_changes = left;
        let chosen: Vec<NameChange> = chosen;
        for change in chosen {
            self.apply_names(&change.what, |directory| &mut directory.medium).expect("a directory stays one");
        }
    }

    /// At a crash: these changes of names survive.
    pub(super) fn keep_names(&mut self, mut kept: impl FnMut(u64) -> bool) {
        self.names_to_medium(|change| kept(change.at));
    }

    /// After a crash: the medium is all there is.
    pub(super) fn restart(&mut self) {
        self.name_changes.clear();
        for node in &mut self.nodes {
            match node {
                Node::File(file) => file.restart(),
                Node::Directory(directory) => directory.cached.clone_from(&directory.medium),
            }
        }
        self.locks.clear();
        self.boot += 1;
        self.faults.turn_on();
    }
}

/// The operations, each counted, refused by faults, and remembered.
impl State {
    /// Runs an operation that a fault makes fail as a whole.
    fn run<T>(
        &mut self,
        operation: Operation,
        path: &Path,
        body: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        self.run_at(operation, path, 0, 0, |state, failure| match failure {
            Some(failure) => Err(failure.error()),
            None => body(state),
        })
    }

    fn run_at<T>(
        &mut self,
        operation: Operation,
        path: &Path,
        offset: u64,
        len: usize,
        body: impl FnOnce(&mut Self, Option<Failure>) -> io::Result<T>,
    ) -> io::Result<T> {
        let failure = self.faults.begin(operation)?;
        let result = body(self, failure);
        self.faults.remember(operation, path, offset, len as u64, result.is_ok());
        result
    }

    pub(super) fn open(&mut self, path: &Path) -> io::Result<NodeId> {
        self.run(Operation::Open, path, |state| {
            let node = state.find(path)?;
            state.node_file(node)?;
            Ok(node)
        })
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        self.run(Operation::Create, path, |state| state.link(path, Node::File(File::default())))
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        self.run(Operation::CreateDir, path, |state| {
            state.link(path, Node::Directory(Directory::default()))?;
            Ok(())
        })
    }

    fn link(&mut self, path: &Path, node: Node) -> io::Result<NodeId> {
        let (directory, name) = self.place(path)?;
        if self.directory(directory)?.cached.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        self.change_names(NameWhat::Link { directory, name, node: id })?;
        Ok(id)
    }

    pub(super) fn list(&mut self, path: &Path) -> io::Result<Vec<String>> {
        self.run(Operation::List, path, |state| {
            let node = state.find(path)?;
            Ok(state.directory(node)?.cached.keys().cloned().collect())
        })
    }

    pub(super) fn exists(&mut self, path: &Path) -> io::Result<bool> {
        self.run(Operation::Exists, path, |state| match state.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        })
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Operation::Rename, from, |state| {
            let node = state.find(from)?;
            let (from, to) = (state.place(from)?, state.place(to)?);
            match state.directory(to.0)?.cached.get(&to.1) {
                Some(&there) if there == node => return Ok(()),
                Some(&there) if state.directory(there).is_ok() => {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                Some(_) if state.directory(node).is_ok() => {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
                Some(_) | None => {}
            }
            state.change_names(NameWhat::Rename { from, to, node })
        })
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.run(Operation::Remove, path, |state| {
            let node = state.find(path)?;
            state.node_file(node)?;
            let (directory, name) = state.place(path)?;
            state.change_names(NameWhat::Unlink { directory, name })
        })
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.run_at(Operation::SyncDir, path, 0, 0, |state, failure| {
            let node = state.find(path)?;
            state.directory(node)?;
            let concerns = |change: &NameChange| match &change.what {
                NameWhat::Link { directory, .. } | NameWhat::Unlink { directory, .. } => *directory == node,
                NameWhat::Rename { from, to, .. } => from.0 == node || to.0 == node,
            };
            match failure {
                None => state.names_to_medium(concerns),
                // As with data: dropped, and the next sync says Ok.
                Some(failure) => {
                    state.name_changes.retain(|change| !concerns(change));
                    return Err(failure.error());
                }
            }
            Ok(())
        })
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<NodeId> {
        self.run(Operation::Lock, path, |state| {
            let node = match state.find(path) {
                Ok(node) => node,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    state.link(path, Node::File(File::default()))?
                }
                Err(error) => return Err(error),
            };
            if state.locks.insert(node) { Ok(node) } else { Err(io::ErrorKind::WouldBlock.into()) }
        })
    }

    pub(super) fn unlock(&mut self, node: NodeId, boot: u64) {
        if boot == self.boot {
            self.locks.remove(&node);
        }
    }

    pub(super) fn read(
        &mut self,
        node: NodeId,
        path: &Path,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        self.run_at(Operation::Read, path, offset, buffer.len(), |state, failure| {
            if let Some(failure) = failure {
                return Err(failure.error());
            }
            let file = state.node_file(node)?;
            if file.is_broken(offset, buffer.len()) {
                return Err(Failure::Io.error());
            }
            Ok(copy_out(&file.cached, buffer, offset))
        })
    }

    pub(super) fn read_past_cache(
        &mut self,
        node: NodeId,
        path: &Path,
        buffer: &mut [u8],
        offset: u64,
    ) -> io::Result<usize> {
        let len = buffer.len();
        self.run_at(Operation::ReadPastCache, path, offset, len, |state, failure| {
            if let Some(failure) = failure {
                return Err(failure.error());
            }
            let file = state.node_file(node)?;
            if file.is_broken(offset, buffer.len()) {
                return Err(Failure::Io.error());
            }
            Ok(if file.changes.is_empty() {
                copy_out(&file.medium, buffer, offset)
            } else {
                copy_out(&file.settled(), buffer, offset)
            })
        })
    }

    pub(super) fn write(&mut self, node: NodeId, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.run_at(Operation::Write, path, offset, bytes.len(), |state, failure| {
            let start = position(offset)?;
            let mut taken = bytes.len();
            if let Some(failure) = failure {
                taken = if failure.is_partial() { taken / 2 } else { 0 };
            }
            let room = state.room()?;
            let file = state.node_file(node)?;
            let fits = (file.reserved.saturating_add(room)).saturating_sub(start);
            let full = taken > fits;
            taken = taken.min(fits);
            if taken > 0 {
                file.reserved = file.reserved.max(start + taken);
                state.change_file(node, What::Write { offset: start, bytes: bytes[..taken].to_vec() })?;
            }
            match failure {
                Some(failure) => Err(failure.error()),
                None if full => Err(Failure::NoSpace.error()),
                None => Ok(()),
            }
        })
    }

    pub(super) fn set_len(&mut self, node: NodeId, path: &Path, len: u64) -> io::Result<()> {
        self.run(Operation::SetLen, path, |state| state.change_file(node, What::Length(position(len)?)))
    }

    pub(super) fn preallocate(&mut self, node: NodeId, path: &Path, len: u64) -> io::Result<()> {
        self.run(Operation::Preallocate, path, |state| {
            let len = position(len)?;
            let room = state.room()?;
            let file = state.node_file(node)?;
            if len.saturating_sub(file.reserved) > room {
                return Err(Failure::NoSpace.error());
            }
            let longer = len > file.cached.len();
            if longer {
                state.change_file(node, What::Length(len))?;
            }
            let file = state.node_file(node)?;
            file.reserved = file.reserved.max(len);
            Ok(())
        })
    }

    pub(super) fn sync_data(&mut self, node: NodeId, path: &Path) -> io::Result<()> {
        self.run_at(Operation::SyncData, path, 0, 0, |state, failure| {
            let file = state.node_file(node)?;
            match failure {
                None => {
                    file.settle();
                    Ok(())
                }
                Some(failure) => {
                    if failure.is_partial() {
                        let versions = file.versions();
                        let some = versions
                            .sectors
                            .iter()
                            .filter(|(sector, _)| *sector % 2 == 0)
                            .filter_map(|(sector, states)| Some((*sector, states.last()?.as_slice())));
                        let len = versions.lengths.last().copied().unwrap_or(file.medium.len());
                        file.persist(some, len);
                    }
                    file.changes.clear();
                    Err(failure.error())
                }
            }
        })
    }

    /// Holes are sectors that hold zeros in the cache and on the medium.
    pub(super) fn next_data(&mut self, node: NodeId, path: &Path, offset: u64) -> io::Result<Option<u64>> {
        self.run(Operation::Len, path, |state| {
            let file = state.node_file(node)?;
            let from = position(offset)?;
            let written = |bytes: &[u8]| {
                let first = bytes.get(from..)?.iter().position(|byte| *byte != 0)? + from;
                Some((first - first % SECTOR_BYTES).max(from) as u64)
            };
            Ok(written(&file.cached).into_iter().chain(written(&file.medium)).min())
        })
    }

    pub(super) fn len(&mut self, node: NodeId, path: &Path) -> io::Result<u64> {
        self.run(Operation::Len, path, |state| Ok(state.node_file(node)?.cached.len() as u64))
    }

    fn change_file(&mut self, node: NodeId, what: What) -> io::Result<()> {
        let at = self.tick();
        self.node_file(node)?.change(Change { at, what });
        Ok(())
    }

    /// The bytes for which there is still space.
    fn room(&self) -> io::Result<usize> {
        match self.space_bytes_max {
            Some(max) => position(max.saturating_sub(self.used_space())),
            None => Ok(usize::MAX / 2),
        }
    }
}

fn components(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                names.push(name.to_str().ok_or(io::ErrorKind::InvalidFilename)?);
            }
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidFilename.into());
            }
        }
    }
    Ok(names)
}

/// A position in a file that is held in memory.
fn position(at: u64) -> io::Result<usize> {
    usize::try_from(at).ok().filter(|at| *at <= 1 << 40).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

fn copy_out(image: &[u8], buffer: &mut [u8], offset: u64) -> usize {
    let Some(rest) = usize::try_from(offset).ok().and_then(|start| image.get(start..)) else {
        return 0;
    };
    let count = rest.len().min(buffer.len());
    buffer[..count].copy_from_slice(&rest[..count]);
    count
}

const _: () = assert!(SECTOR_BYTES.is_power_of_two());
