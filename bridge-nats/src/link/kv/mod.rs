//! Buckets, one way or both ways, by comparing versions instead of remembering positions.
//!
//! Every value (or delete, or purge) of a key is a **version**: when it was written, and in which bucket. A copy
//! carries its version in a header, so it is the same version everywhere. A rule copies what its source has
//! and its target may take (see [`version::may_replace`]), on the condition that the target has not changed
//! meanwhile. Therefore a copy is never copied back, links in a ring come to rest, nothing but the two buckets
//! has to survive a restart, and comparing everything anew is always right.
//!
//! * `version`: what a version is, and which of two wins. `copy`: one direction, whatever the sides are.
//! * `here`, `there`: a bucket of this node, and one of the cluster.

mod copy;
mod here;
mod there;
pub(super) mod version;

use std::collections::BTreeSet;
use std::time::Duration;

use beamlog_router::Router;

use self::version::{Policy, Version};
use super::connection::Session;
use super::context::{Backoff, RuleContext};
use super::rules::{BucketConflict, BucketRule, Rule};

/// How long a rule that one side refused waits before it tries again: from the first to the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Keys that a comparison names.
const EXAMPLES_MAX: usize = 10;

/// How the work over one session ended.
#[derive(Debug)]
enum Ended {
    Stopping,
    Lost,
    /// Somebody wants both sides compared anew.
    Again,
    Refused(String),
}

pub(crate) async fn run_import(context: RuleContext, rule: BucketRule) {
    run(context, rule, true).await;
}

pub(crate) async fn run_export(context: RuleContext, rule: BucketRule) {
    run(context, rule, false).await;
}

async fn run(mut context: RuleContext, rule: BucketRule, inward: bool) {
    let label = match inward {
        true => Rule::ImportBucket(rule.clone()),
        false => Rule::ExportBucket(rule.clone()),
    }
    .label();
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    while let Some(session) = context.session().await {
        let ended = match inward {
            true => import(&mut context, &rule, &label, &session).await,
            false => export(&mut context, &rule, &label, &session).await,
        };
        match ended {
            Ended::Stopping => return,
            Ended::Lost | Ended::Again => backoff.reset(),
            Ended::Refused(cause) => {
                context.degraded(&label, cause);
                if !context.wait(backoff.next()).await {
                    return;
                }
            }
        }
    }
}

fn policy(rule: &BucketRule, inward: bool) -> Policy {
    match (rule.conflict, inward) {
        (BucketConflict::LastWriter, _) => Policy::LastWriter,
        (BucketConflict::Here, false) | (BucketConflict::There, true) => Policy::SourceOwns,
        (BucketConflict::Here, true) | (BucketConflict::There, false) => Policy::TargetOwns,
    }
}

async fn import(context: &mut RuleContext, rule: &BucketRule, label: &str, session: &Session) -> Ended {
    let opened = async {
        let source = there::Bucket::open(session, &rule.bucket).await?;
        let target = here::Bucket::open_or_create(&context.router, &rule.target, source.shape()).await?;
        let reader = source.read().await?;
        Ok::<_, String>((source, target, reader))
    };
    let (source, target, reader) = match opened.await {
        Ok(opened) => opened,
        Err(cause) => return Ended::Refused(cause),
    };
    let copy = copy::Copy { source: source.key(), target: &target, policy: policy(rule, true), label };
    copy.run(context, session, reader).await
}

async fn export(context: &mut RuleContext, rule: &BucketRule, label: &str, session: &Session) -> Ended {
    let opened = async {
        let source = here::Bucket::open(&context.router, &rule.bucket).await?;
        let target = there::Bucket::open_or_create(session, &rule.target, source.shape()).await?;
        let reader = source.read().await?;
        Ok::<_, String>((source, target, reader))
    };
    let (source, target, reader) = match opened.await {
        Ok(opened) => opened,
        Err(cause) => return Ended::Refused(cause),
    };
    let copy = copy::Copy { source: source.key(), target: &target, policy: policy(rule, false), label };
    copy.run(context, session, reader).await
}

/// What the source has and the target should have and lacks: how many keys, and some of them.
pub(super) async fn missing(
    router: &Router,
    session: &Session,
    rule: &BucketRule,
    inward: bool,
) -> Result<(u64, Vec<String>), String> {
    let here_name = if inward { &rule.target } else { &rule.bucket };
    let there_name = if inward { &rule.bucket } else { &rule.target };
    let here = here::Bucket::open(router, here_name).await?;
    let there = there::Bucket::open(session, there_name).await?;
    let (mut ours, mut theirs) = (here.read().await?, there.read().await?);
    let (ours, theirs) = (copy::all(&mut ours).await?, copy::all(&mut theirs).await?);
    let mut aside = BTreeSet::new();
    let from = if inward { there.key() } else { here.key() };
    super::missing::put_aside(router, from, &mut aside).await?;
    let (source, target, id) = if inward { (theirs, ours, here.id()) } else { (ours, theirs, there.id()) };
    let policy = policy(rule, inward);
    let lacks = |key: &String, new: Version, revision: u64| {
        let old = target.get(key).map(|(version, _)| *version);
        new.bucket != id && !aside.contains(&revision) && version::may_replace(new, old, id, policy)
    };
    let keys: Vec<String> = source
        .iter()
        .filter(|(key, (version, revision))| lacks(key, *version, *revision))
        .map(|(key, _)| key.clone())
        .collect();
    let count = keys.len() as u64;
    Ok((count, keys.into_iter().take(EXAMPLES_MAX).collect()))
}
