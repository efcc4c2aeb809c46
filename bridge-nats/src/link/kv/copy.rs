//! One direction of a bucket: what comes from the source is laid beside what the target has.

use std::collections::BTreeMap;
use std::future::Future;

use futures_util::stream::{self, StreamExt};

use super::Ended;
use super::version::{BucketId, Entry, Policy, Version, may_replace};
use crate::link::connection::Session;
use crate::link::context::RuleContext;
use crate::link::dead::{self, Letter};
use crate::link::trail::{self, StreamKey};

/// Keys that are written at a time.
const KEYS_AT_ONCE: usize = 64;
/// Entries that are taken before they are written.
const BATCH_MAX: u64 = 512;
/// How long a comparison waits for the next entry.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
/// Somebody else wrote the key between looking and writing; more often than this is somebody who never stops.
const ATTEMPTS_MAX: usize = 16;

/// Where entries come from. Ends by an error: it has to be opened anew.
pub(super) trait Source {
    /// The next entry; the first are the last values of all keys. *Cancel safety*: may be dropped.
    fn next(&mut self) -> impl Future<Output = Result<Entry, String>> + Send;
    /// Nothing was there when reading began.
    fn is_empty(&self) -> bool;
    /// One that is there already.
    fn ready(&mut self) -> Option<Result<Entry, String>>;
}

/// Where entries go.
pub(super) trait Target {
    fn id(&self) -> BucketId;
    /// The last version of a key, and its revision.
    fn last(&self, key: &str) -> impl Future<Output = Result<Option<(Version, u64)>, String>> + Send;
    /// Writes, if the last revision is still this one (0: there is none). Durable when it returns.
    fn write(&self, entry: &Entry, revision: u64) -> impl Future<Output = Result<Written, String>> + Send;
}

/// What became of a write.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Written {
    Done,
    /// Somebody else wrote meanwhile.
    Changed,
    /// The target never takes it: too large.
    Unfit(String),
}

pub(super) struct Copy<'a, T> {
    pub(super) source: &'a StreamKey,
    pub(super) target: &'a T,
    pub(super) policy: Policy,
    pub(super) label: &'a str,
}

impl<T: Target + Sync> Copy<'_, T> {
    pub(super) async fn run(
        &self,
        context: &mut RuleContext,
        session: &Session,
        mut source: impl Source,
    ) -> Ended {
        let stopping = context.clone();
        let (lost, stopping) = (session.lost(), stopping.stopping());
        tokio::pin!(lost, stopping);
        let mut is_caught_up = source.is_empty();
        if is_caught_up {
            context.meter.lag(0, 0, 0);
            context.running(self.label);
        }
        loop {
            let first = tokio::select! {
                entry = source.next() => entry,
                () = &mut lost => return Ended::Lost,
                () = &mut stopping => return Ended::Stopping,
                () = context.resync_wanted() => return Ended::Again,
            };
            let mut batch = BTreeMap::<String, Vec<Entry>>::new();
            let (mut count, mut pending) = (0_u64, 0);
            let mut next = Some(first);
            while let Some(entry) = next.take() {
                match entry {
                    Ok(entry) => {
                        pending = entry.pending;
                        count += 1;
                        batch.entry(entry.key.clone()).or_default().push(entry);
                    }
                    Err(cause) => return Ended::Refused(cause),
                }
                if count < BATCH_MAX {
                    next = source.ready();
                }
            }
            context.meter.lag(pending + count, 0, 0);
            // Whatever is cut off here is compared again by the next session.
            let written = tokio::select! {
                written = self.write(context, batch) => written,
                () = &mut lost => return Ended::Lost,
            };
            if let Err(cause) = written {
                return Ended::Refused(cause);
            }
            context.meter.lag(pending, 0, 0);
            if !is_caught_up && pending == 0 {
                is_caught_up = true;
                context.running(self.label);
            }
        }
    }

    /// Keys beside each other, the entries of one key in order.
    async fn write(&self, context: &RuleContext, batch: BTreeMap<String, Vec<Entry>>) -> Result<(), String> {
        let mut writing = stream::iter(batch.into_values())
            .map(|entries| async move {
                for entry in &entries {
                    self.write_one(context, entry).await?;
                }
                Ok::<_, String>(())
            })
            .buffer_unordered(KEYS_AT_ONCE);
        while let Some(written) = writing.next().await {
            written?;
        }
        Ok(())
    }

    async fn write_one(&self, context: &RuleContext, entry: &Entry) -> Result<(), String> {
        // A copy of what the target wrote itself.
        if entry.version.bucket == self.target.id() {
            return Ok(());
        }
        for _ in 0..ATTEMPTS_MAX {
            let last = self.target.last(&entry.key).await?;
            let (old, revision) = match last {
                Some((version, revision)) => (Some(version), revision),
                None => (None, 0),
            };
            if !may_replace(entry.version, old, self.target.id(), self.policy) {
                return Ok(());
            }
            context.limit.pass(entry.bytes()).await;
            match self.target.write(entry, revision).await? {
                Written::Done => {
                    context.meter.transferred(1, entry.bytes() as u64);
                    return Ok(());
                }
                Written::Changed => {}
                Written::Unfit(problem) => return self.park(context, entry, &problem).await,
            }
        }
        Err(format!("key {} changes too fast to be copied", entry.key))
    }

    /// Puts a value aside that the target never takes.
    async fn park(&self, context: &RuleContext, entry: &Entry, reason: &str) -> Result<(), String> {
        let from = trail::provenance(self.source, entry.sequence, entry.stored, false, None);
        let letter = Letter {
            link: &context.link,
            subject: entry.key.as_bytes(),
            headers: &entry.headers,
            payload: &entry.value,
            reason,
            from: &from,
        };
        dead::park(&context.router, &letter).await?;
        context.meter.parked(1);
        context.meter.note(format!("key {} is not carried: {reason}", entry.key));
        Ok(())
    }
}

/// The last versions of all keys, and their revisions.
pub(super) async fn all(source: &mut impl Source) -> Result<BTreeMap<String, (Version, u64)>, String> {
    let mut found = BTreeMap::new();
    if source.is_empty() {
        return Ok(found);
    }
    loop {
        let entry = tokio::time::timeout(PATIENCE, source.next())
            .await
            .map_err(|_elapsed| "the bucket is not read in time".to_owned())??;
        found.insert(entry.key, (entry.version, entry.sequence));
        if entry.pending == 0 {
            return Ok(found);
        }
    }
}
