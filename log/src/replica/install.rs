//! Putting a copy of another node's log in the place of this one.
//!
//! The files are gathered in `incoming/`, where nothing counts before all of it was verified. Then a mark makes the
//! exchange certain: from there on every start carries it on, and each of its steps may be repeated. The old log's
//! files go to `quarantine/replaced/` (DR7), where the ones of an earlier exchange give way. `docs/design/format.md`
//! has the names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Disk, DiskFailed, DiskFile, Log, LogFiles, LogFilesError, LogOptions, OpenError, OpenMode, ShardId, Tail,
    envelope::EncodeError,
    files::Files,
    format::{
        hash::ContentHash,
        segment::{FOOTER_BYTES, FRAMES_AT, Footer, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKey},
    },
    recovery::QUARANTINE,
    rewrite::NewFile,
};

pub(crate) const INCOMING: &str = "incoming";
const REPLACED: &str = "replaced";
const MANIFEST: &str = "manifest";
/// Everything was verified: the exchange will be carried out.
const READY: &str = "ready";
/// The old log is out of the way.
const CLEARED: &str = "cleared";
const PART: &str = ".part";
/// Read back at once.
const CHUNK_BYTES: usize = 1 << 20;
/// More than any segment reserves.
const PREALLOCATED_MAX: u64 = 4 << 30;

/// A copy on its way.
#[derive(Debug)]
pub struct Installation {
    /// Of the shard.
    outer: Files,
    /// Of `incoming/`.
    files: Files,
    list: LogFiles,
    /// One for each file of the list.
    progress: Vec<Progress>,
    verified: bool,
}

#[derive(Debug)]
enum Progress {
    /// So many bytes are there.
    Part(u64, Option<Box<dyn DiskFile>>),
    Whole,
}

/// A piece that is missing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    pub name: String,
    pub offset: u64,
    /// Up to the end of the file.
    pub bytes: u64,
}

/// Why a copy was not put in place. The log that is there is as it was, unless [`InstallError::Exchange`] says so.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("the copy is of shard {found}, not {expected}")]
    ForeignShard { found: ShardId, expected: ShardId },
    #[error("there is no file {name:?} in the copy")]
    Unknown { name: String },
    #[error("{name} goes on at byte {expected}, not {got}")]
    Place { name: String, expected: u64, got: u64 },
    /// What came is not what was announced: it is fetched again.
    #[error("{name} is not what was announced")]
    Foreign { name: String },
    /// An earlier copy takes the log's place when that is next opened, and nothing else may.
    #[error("another copy is about to take the place of the log")]
    Certain,
    #[error("{missing} bytes are missing")]
    Unfinished { missing: u64 },
    /// Each file is what was announced, and they are no log all the same.
    #[error("the files are no log")]
    Unreadable(#[source] Box<OpenError>),
    #[error("the files are a log with damage, or another one: {0}")]
    Unsound(String),
    #[error("the list of files")]
    List(#[from] LogFilesError),
    #[error("the list of files cannot be kept")]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Disk(#[from] DiskFailed),
    /// The copy is complete and will take the log's place when it is next opened.
    #[error("the exchange is to be finished by the next start")]
    Exchange(#[source] DiskFailed),
}

impl Installation {
    /// Begins to gather these files in the shard's directory, or goes on where an earlier attempt stopped: what is
    /// there of the same files is kept. Files that the present log has are taken from it.
    pub fn begin(
        disk: &Arc<dyn Disk>,
        directory: &Path,
        shard: ShardId,
        list: LogFiles,
    ) -> Result<Self, InstallError> {
        if list.shard != shard {
            return Err(InstallError::ForeignShard { found: list.shard, expected: shard });
        }
        let outer = Files::new(Arc::clone(disk), directory, 0);
        let incoming = outer.path(INCOMING);
        make_directory(&outer, &incoming)?;
        let files = Files::new(Arc::clone(disk), &incoming, 0);
        if names(&files)?.iter().any(|name| name == READY || name == CLEARED) {
            return Err(InstallError::Certain);
        }
        let before = read_list(&files)?;
        clean(&files, &list, before.as_ref())?;
        let mut new = NewFile::create(&files, "manifest.tmp")?;
        new.append(&files, &list.encode()?)?;
        drop(new.settle(&files)?.install(&files, MANIFEST, true)?);
        let mut progress = Vec::new();
        for file in &list.files {
            progress.push(progress_of(&files, &file.name, file.bytes)?);
        }
        let mut installation = Self { outer, files, list, progress, verified: false };
        installation.take_own()?;
        Ok(installation)
    }

    #[must_use]
    pub const fn list(&self) -> &LogFiles {
        &self.list
    }

    /// The next piece to be fetched; `None` when everything is there.
    #[must_use]
    pub fn wanted(&self) -> Option<Wanted> {
        self.list.files.iter().zip(&self.progress).find_map(|(file, progress)| match progress {
            Progress::Whole => None,
            Progress::Part(have, _) => {
                Some(Wanted { name: file.name.clone(), offset: *have, bytes: file.bytes - have })
            }
        })
    }

    /// Bytes that are not there yet.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        self.list.files.iter().zip(&self.progress).fold(0, |sum, (file, progress)| match progress {
            Progress::Whole => sum,
            Progress::Part(have, _) => sum.saturating_add(file.bytes - have),
        })
    }

    /// Adds the next bytes of a file. When its last ones came it is synced, read back and compared with what was
    /// announced; [`InstallError::Foreign`] drops it, so that it is wanted again.
    pub fn write_chunk(&mut self, name: &str, offset: u64, bytes: &[u8]) -> Result<(), InstallError> {
        let place = self.list.files.iter().position(|file| file.name == name);
        let Some(place) = place else { return Err(InstallError::Unknown { name: name.to_owned() }) };
        let total = self.list.files[place].bytes;
        let misplaced = |expected| InstallError::Place { name: name.to_owned(), expected, got: offset };
        let Progress::Part(have, file) = &mut self.progress[place] else { return Err(misplaced(total)) };
        if offset != *have || bytes.len() as u64 > total - *have {
            return Err(misplaced(*have));
        }
        let part = format!("{name}{PART}");
        let open = match file.take() {
            Some(open) => open,
            None => open_part(&self.files, &part)?,
        };
        open.write_at(bytes, offset).map_err(|source| self.files.failed("writing", &part, source))?;
        *have += bytes.len() as u64;
        if *have < total {
            *file = Some(open);
            return Ok(());
        }
        self.finish_file(place, &*open)
    }

    /// Makes a file that came whole one of the copy, if it is what was announced.
    fn finish_file(&mut self, place: usize, file: &dyn DiskFile) -> Result<(), InstallError> {
        let name = &self.list.files[place].name;
        let part = format!("{name}{PART}");
        let failed = |action, source| self.files.failed(action, &part, source);
        file.sync_data().map_err(|source| failed("syncing", source))?;
        let hash =
            hash_of(file, self.list.frames_end(place)).map_err(|source| failed("reading back", source))?;
        let mut head = [0; SEGMENT_HEADER_BYTES];
        file.read_at_past_cache(&mut head, 0).map_err(|source| failed("reading back", source))?;
        let key = SegmentKey::parse(name).map(|(key, _)| key);
        let announced = self.list.files[place].hash;
        let ended = self.list.is_open(place)
            || footer_of(file, self.list.files[place].bytes)
                .is_some_and(|footer| footer.content_hash == announced);
        let header = SegmentHeader::decode(&head).ok().filter(|header| {
            Some(header.key()) == key
                && header.shard == self.list.shard
                && header.preallocated <= PREALLOCATED_MAX
        });
        let Some(header) = header.filter(|_| hash == announced && ended) else {
            self.files.disk().remove(&self.files.path(&part)).map_err(|source| failed("removing", source))?;
            let name = name.clone();
            self.progress[place] = Progress::Part(0, None);
            return Err(InstallError::Foreign { name });
        };
        if self.list.is_open(place) {
            file.preallocate(header.preallocated).map_err(|source| failed("preallocating", source))?;
            file.sync_data().map_err(|source| failed("syncing", source))?;
        }
        self.files
            .disk()
            .rename(&self.files.path(&part), &self.files.path(name))
            .map_err(|source| failed("renaming", source))?;
        self.files.sync_directory()?;
        self.progress[place] = Progress::Whole;
        Ok(())
    }

    /// Takes what the present log has of the same files.
    fn take_own(&mut self) -> Result<(), InstallError> {
        for place in 0..self.list.files.len() {
            let announced = self.list.files[place].clone();
            // The open one is small, and seldom the same.
            if self.list.is_open(place) || !matches!(self.progress[place], Progress::Part(0, _)) {
                continue;
            }
            let Ok(own) = self.outer.disk().open(&self.outer.path(&announced.name), OpenMode::Read) else {
                continue;
            };
            if own.len().ok() != Some(announced.bytes)
                || footer_of(&*own, announced.bytes)
                    .is_none_or(|footer| footer.content_hash != announced.hash)
            {
                continue;
            }
            let mut at = 0;
            while at < announced.bytes {
                let left = usize::try_from(announced.bytes - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
                let mut chunk = vec![0; left];
                let read = own
                    .read_at(&mut chunk, at)
                    .map_err(|source| self.outer.failed("reading", &announced.name, source))?;
                if read == 0 {
                    break;
                }
                match self.write_chunk(&announced.name, at, &chunk[..read]) {
                    Ok(()) => at += read as u64,
                    // Then it comes from the peer.
                    Err(InstallError::Foreign { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Verifies that the files are the log that was announced, every frame of it. Reads all of them; the present log
    /// may go on meanwhile. Files that are to blame are dropped, so that they are wanted again.
    pub fn verify(&mut self) -> Result<(), InstallError> {
        let missing = self.missing_bytes();
        if missing > 0 || self.wanted().is_some() {
            return Err(InstallError::Unfinished { missing });
        }
        if self.verified {
            return Ok(());
        }
        // Without side files every segment is read and verified whole.
        remove_where(&self.files, &|name| {
            SegmentKey::parse(name).is_some_and(|(_, is_segment)| !is_segment)
        })?;
        let options = LogOptions { ballast_bytes: 0, must_exist: true, ..LogOptions::for_simulation() };
        let opened = Log::open(self.files.disk_handle(), self.files.directory(), self.list.shard, options)
            .map_err(|error| self.start_over(InstallError::Unreadable(Box::new(error))))?;
        let report = &opened.report;
        let sound = report.damaged.is_empty()
            && report.missing.is_empty()
            && report.unexpected.is_empty()
            && report.segments == self.list.files.len()
            && opened.log.last_id() == self.list.last
            && matches!(report.tail, Tail::Whole | Tail::Clean);
        if !sound {
            let error = InstallError::Unsound(format!("{report:?}"));
            return Err(self.start_over(error));
        }
        // Sealed, so that the next start need not write its tail again.
        opened.log.close().map_err(|error| {
            let source = std::io::Error::other(error);
            self.files.failed("sealing", INCOMING, source)
        })?;
        self.verified = true;
        Ok(())
    }

    /// Puts the copy in the place of the present log, which is given up for that; verifies it first, if
    /// [`Self::verify`] has not. Afterwards [`Log::open`] opens the copy.
    ///
    /// When it fails without being [`InstallError::Exchange`], the files of the present log are as they were.
    pub fn exchange(mut self, present: Log) -> Result<(), InstallError> {
        self.verify()?;
        drop(present);
        make_ready(&self.outer, &self.files)?;
        complete(&self.outer).map_err(InstallError::Exchange)?;
        Ok(())
    }

    /// As [`Self::exchange`], and opens the copy where the present log was. The state with which its newest segment
    /// begins is in it ([`Log::base`]).
    ///
    /// Whatever happens, nothing is written to the present log any more; after an error it is poisoned.
    pub fn exchange_in(mut self, present: &mut Log) -> Result<(), InstallError> {
        self.verify()?;
        present.poisoned = true;
        make_ready(&self.outer, &self.files)?;
        complete(&self.outer).map_err(InstallError::Exchange)?;
        let (disk, directory) = (self.outer.disk_handle(), self.outer.directory().to_owned());
        let opened = Log::open(disk, &directory, present.shard, present.options.clone())
            .map_err(|error| InstallError::Unreadable(Box::new(error)))?;
        *present = opened.log;
        Ok(())
    }

    /// Nothing of the copy can be trusted.
    fn start_over(&mut self, error: InstallError) -> InstallError {
        match remove_where(&self.files, &|name| name != MANIFEST) {
            Ok(()) => {
                self.progress = self.list.files.iter().map(|_| Progress::Part(0, None)).collect();
                error
            }
            Err(failed) => failed.into(),
        }
    }

    /// Gives the copy up and removes what came of it.
    pub fn abandon(self) -> Result<(), DiskFailed> {
        remove_where(&self.files, &|_| true)
    }
}

impl Log {
    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.files.directory()
    }

    /// Begins to gather a copy that can take this log's place. See [`Installation::begin`].
    pub fn begin_install(&self, list: LogFiles) -> Result<Installation, InstallError> {
        Installation::begin(&self.files.disk_handle(), self.files.directory(), self.shard, list)
    }
}

/// From here on the exchange is certain.
fn make_ready(outer: &Files, files: &Files) -> Result<(), DiskFailed> {
    remove_where(files, &|name| SegmentKey::parse(name).is_none() && name != MANIFEST)?;
    let quarantine = outer.path(QUARANTINE);
    make_directory(outer, &quarantine)?;
    let kept = Files::new(outer.disk_handle(), &quarantine, 0);
    let replaced = quarantine.join(REPLACED);
    make_directory(&kept, &replaced)?;
    // Those of an earlier exchange give way.
    remove_where(&Files::new(outer.disk_handle(), &replaced, 0), &|_| true)?;
    let mut new = NewFile::create(files, "ready.tmp")?;
    new.append(files, b"this copy takes the place of the log\n")?;
    drop(new.settle(files)?.install(files, READY, true)?);
    Ok(())
}

/// Carries out an exchange that is certain; says whether there was one. Every step may be repeated.
pub(crate) fn complete(outer: &Files) -> Result<bool, DiskFailed> {
    let incoming = outer.path(INCOMING);
    let look = |path: &Path| {
        outer.disk().exists(path).map_err(|source| DiskFailed {
            action: "looking for",
            path: path.to_owned(),
            source,
        })
    };
    let (ready, cleared) = (incoming.join(READY), incoming.join(CLEARED));
    let (is_ready, is_cleared) =
        if look(&incoming)? { (look(&ready)?, look(&cleared)?) } else { (false, false) };
    if !is_ready && !is_cleared {
        return Ok(false);
    }
    let files = Files::new(outer.disk_handle(), &incoming, 0);
    let is_logs = |name: &str| SegmentKey::parse(name).is_some();
    if is_ready {
        let replaced = Files::new(outer.disk_handle(), &outer.path(QUARANTINE).join(REPLACED), 0);
        move_all(outer, &replaced, &is_logs)?;
        remove_where(outer, &|name| name.ends_with(".tmp"))?;
        files.disk().rename(&ready, &cleared).map_err(|source| files.failed("renaming", READY, source))?;
        files.sync_directory()?;
    }
    move_all(&files, outer, &is_logs)?;
    remove_where(&files, &|name| name != CLEARED)?;
    remove_where(&files, &|_| true)?;
    tracing::info!(directory = %outer.directory().display(), "a copy of a peer's log took the place of this one");
    Ok(true)
}

/// Moves the files of these names, durably.
fn move_all(from: &Files, to: &Files, is_meant: &dyn Fn(&str) -> bool) -> Result<(), DiskFailed> {
    for name in names(from)?.iter().filter(|name| is_meant(name)) {
        from.disk()
            .rename(&from.path(name), &to.path(name))
            .map_err(|source| from.failed("moving", name, source))?;
    }
    to.sync_directory()?;
    from.sync_directory()
}

/// Removes the files of these names, durably. `quarantine/`, which is a directory, stays.
fn remove_where(files: &Files, is_meant: &dyn Fn(&str) -> bool) -> Result<(), DiskFailed> {
    for name in names(files)?.iter().filter(|name| *name != QUARANTINE && is_meant(name)) {
        files.disk().remove(&files.path(name)).map_err(|source| files.failed("removing", name, source))?;
    }
    files.sync_directory()
}

fn names(files: &Files) -> Result<Vec<String>, DiskFailed> {
    let directory = files.directory();
    files.disk().list(directory).map_err(|source| DiskFailed {
        action: "listing",
        path: directory.to_owned(),
        source,
    })
}

fn make_directory(parent: &Files, directory: &Path) -> Result<(), DiskFailed> {
    let failed = |action| move |source| DiskFailed { action, path: directory.to_owned(), source };
    if !parent.disk().exists(directory).map_err(failed("looking for"))? {
        parent.disk().create_dir(directory).map_err(failed("creating"))?;
    }
    parent.sync_directory()
}

/// What an earlier attempt was to gather, if that can be read.
fn read_list(files: &Files) -> Result<Option<LogFiles>, DiskFailed> {
    let path: PathBuf = files.path(MANIFEST);
    let failed = |source| files.failed("reading", MANIFEST, source);
    if !files.disk().exists(&path).map_err(failed)? {
        return Ok(None);
    }
    let file = files.disk().open(&path, OpenMode::Read).map_err(failed)?;
    let len = usize::try_from(file.len().map_err(failed)?).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len.min(crate::envelope::BODY_BYTES_MAX + crate::envelope::HEADER_BYTES)];
    let read = file.read_at(&mut bytes, 0).map_err(failed)?;
    Ok(LogFiles::decode(bytes.get(..read).unwrap_or_default()).ok())
}

/// Removes everything that is not a file of this list, or a part of one, by the word of the list before.
fn clean(files: &Files, list: &LogFiles, before: Option<&LogFiles>) -> Result<(), DiskFailed> {
    let same = |name: &str| {
        list.files
            .iter()
            .any(|file| file.name == name && before.is_some_and(|before| before.files.contains(file)))
    };
    remove_where(files, &|name| name != MANIFEST && !same(name.strip_suffix(PART).unwrap_or(name)))
}

fn progress_of(files: &Files, name: &str, bytes: u64) -> Result<Progress, DiskFailed> {
    let failed = |source| files.failed("looking for", name, source);
    if files.disk().exists(&files.path(name)).map_err(failed)? {
        return Ok(Progress::Whole);
    }
    let part = files.path(&format!("{name}{PART}"));
    if !files.disk().exists(&part).map_err(failed)? {
        return Ok(Progress::Part(0, None));
    }
    let file = files.disk().open(&part, OpenMode::ReadWrite).map_err(failed)?;
    // A power cut may have left anything in it: the whole file is compared when its last bytes came.
    let have = file.len().map_err(failed)?;
    if have >= bytes {
        drop(file);
        files.disk().remove(&part).map_err(failed)?;
        return Ok(Progress::Part(0, None));
    }
    Ok(Progress::Part(have, Some(file)))
}

fn open_part(files: &Files, part: &str) -> Result<Box<dyn DiskFile>, DiskFailed> {
    let path = files.path(part);
    let failed = |source| files.failed("creating", part, source);
    if files.disk().exists(&path).map_err(failed)? {
        files.disk().remove(&path).map_err(failed)?;
    }
    files.disk().open(&path, OpenMode::CreateNew).map_err(failed)
}

/// What a sealed segment says of itself at its end.
fn footer_of(file: &dyn DiskFile, bytes: u64) -> Option<Footer> {
    let mut footer = [0; FOOTER_BYTES];
    let at = bytes.checked_sub(FOOTER_BYTES as u64)?;
    let read = file.read_at_past_cache(&mut footer, at).ok()?;
    Footer::decode(footer.get(..read)?)
}

/// The hash of what stands between the header and `end`, read past the page cache.
fn hash_of(file: &dyn DiskFile, end: u64) -> std::io::Result<u64> {
    let mut hash = ContentHash::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = FRAMES_AT;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let read = file.read_at_past_cache(&mut chunk[..left], at)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&chunk[..read]);
        at += read as u64;
    }
    Ok(hash.value())
}
