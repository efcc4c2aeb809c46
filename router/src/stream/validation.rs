//! What a stream configuration may say, with nats-server's rules, defaults and words.

use beamlog_log::Sequence;

use crate::api::error::ApiError;
use crate::stream::{Compression, Discard, Placement, Republish, Retention, StreamConfig, transform};
use crate::subject;

const NAME_BYTES_MAX: usize = 255;
const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;
const METADATA_BYTES_MAX: usize = 128 * 1024;
/// Filters of one stream. nats-server has no limit; ours keeps a configuration inside one record.
const SUBJECTS_MAX: usize = 16 * 1024;
const SUBJECTS_BYTES_MAX: usize = 1 << 20;
pub(crate) const REPLICAS_MAX: u8 = 5;
const SMALLEST_PERIOD_NANOS: u64 = 100_000_000;
const DUPLICATE_WINDOW_NANOS: u64 = 120_000_000_000;
const SECOND_NANOS: u64 = 1_000_000_000;

fn invalid(text: impl Into<String>) -> ApiError {
    ApiError::StreamConfigInvalid(text.into())
}

/// Whether a stream (or consumer) may have this name.
fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && !name.bytes().any(|byte| {
            matches!(byte, b'.' | b'*' | b'>' | b'/' | b'\\') || byte.is_ascii_whitespace() || byte < 0x20
        })
}

/// Checks a requested configuration and fills in the defaults. `replicas_max` is 1 on a node that stands alone.
pub(crate) fn validate(config: &mut StreamConfig, replicas_max: u8) -> Result<(), ApiError> {
    if !is_valid_name(&config.name) {
        return Err(invalid("stream name is required and can not contain '.', '*', '>', '\\', '/'"));
    }
    if config.name.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("stream name is too long, maximum allowed is {NAME_BYTES_MAX}")));
    }
    if config.description.len() > DESCRIPTION_BYTES_MAX {
        return Err(invalid(format!(
            "stream description is too long, maximum allowed is {DESCRIPTION_BYTES_MAX}"
        )));
    }
    let metadata: usize = config.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata > METADATA_BYTES_MAX {
        return Err(invalid(format!("stream metadata exceeds maximum size of {METADATA_BYTES_MAX} bytes")));
    }
    config.replicas = config.replicas.max(1);
    if config.replicas > REPLICAS_MAX {
        return Err(invalid(format!("maximum replicas is {REPLICAS_MAX}")));
    }
    if config.replicas > replicas_max {
        return Err(ApiError::ReplicasNotSupported);
    }
    absent_when_zero(config);
    validate_periods(config)?;
    validate_policies(config)?;
    validate_subjects(config)?;
    validate_mappings(config)?;
    if config.placement == Some(Placement::default()) {
        config.placement = None;
    }
    Ok(())
}

fn absent_when_zero(config: &mut StreamConfig) {
    config.max_messages = config.max_messages.filter(|max| *max > 0);
    config.max_bytes = config.max_bytes.filter(|max| *max > 0);
    config.max_messages_per_subject = config.max_messages_per_subject.filter(|max| *max > 0);
    config.max_message_bytes = config.max_message_bytes.filter(|max| *max > 0);
    config.max_consumers = config.max_consumers.filter(|max| *max > 0);
    config.max_age_nanos = config.max_age_nanos.filter(|max| *max > 0);
    config.first_sequence = config.first_sequence.filter(|first| *first > Sequence(0));
    config.subject_delete_marker_ttl_nanos = config.subject_delete_marker_ttl_nanos.filter(|ttl| *ttl > 0);
}

fn validate_periods(config: &mut StreamConfig) -> Result<(), ApiError> {
    if config.max_age_nanos.is_some_and(|age| age < SMALLEST_PERIOD_NANOS) {
        return Err(invalid("max age needs to be >= 100ms"));
    }
    let window = match config.duplicate_window_nanos.filter(|window| *window > 0) {
        Some(window) => window,
        None => config.max_age_nanos.map_or(DUPLICATE_WINDOW_NANOS, |age| age.min(DUPLICATE_WINDOW_NANOS)),
    };
    config.duplicate_window_nanos = Some(window);
    if config.max_age_nanos.is_some_and(|age| window > age) {
        return Err(invalid("duplicates window can not be larger then max age"));
    }
    if window < SMALLEST_PERIOD_NANOS {
        return Err(invalid("duplicates window needs to be >= 100ms"));
    }
    if let Some(ttl) = config.subject_delete_marker_ttl_nanos {
        if ttl < SECOND_NANOS {
            return Err(invalid("subject delete marker TTL must be at least 1 second"));
        }
        config.allow_message_ttl = true;
        if !config.allow_rollup_headers {
            config.allow_rollup_headers = true;
            config.deny_purge = false;
        }
    }
    Ok(())
}

fn validate_policies(config: &StreamConfig) -> Result<(), ApiError> {
    if config.deny_purge && config.allow_rollup_headers {
        return Err(invalid("roll-ups require the purge permission"));
    }
    if config.discard_new_per_subject {
        if config.discard != Discard::New {
            return Err(invalid("discard new per subject requires discard new policy to be set"));
        }
        if config.max_messages_per_subject.is_none() {
            return Err(invalid("discard new per subject requires max msgs per subject > 0"));
        }
    }
    if config.mirror_direct {
        return Err(invalid("stream has no mirror but does have mirror direct"));
    }
    match config.compression {
        // Kept and shown; the log decides how bytes are stored.
        Compression::None | Compression::S2 => Ok(()),
    }
}

fn validate_subjects(config: &mut StreamConfig) -> Result<(), ApiError> {
    if config.subjects.is_empty() {
        config.subjects.push(config.name.clone());
        return Ok(());
    }
    let bytes: usize = config.subjects.iter().map(String::len).sum();
    if config.subjects.len() > SUBJECTS_MAX || bytes > SUBJECTS_BYTES_MAX {
        return Err(invalid(format!("maximum subjects of a stream is {SUBJECTS_MAX}")));
    }
    for subject in &config.subjects {
        subject::check_filter(subject.as_bytes()).map_err(|_invalid| invalid("invalid subject"))?;
    }
    for (at, text) in config.subjects.iter().enumerate() {
        let filter = text.as_bytes();
        if !config.no_ack {
            check_reserved(filter)?;
        }
        for other in &config.subjects[at + 1..] {
            if subject::overlaps(other.as_bytes(), filter) {
                return Err(invalid(format!("subject {text:?} overlaps with {other:?}")));
            }
        }
    }
    Ok(())
}

fn check_reserved(filter: &[u8]) -> Result<(), ApiError> {
    if filter == b">" {
        return Err(invalid("capturing all subjects requires no-ack to be true"));
    }
    for space in [&b"$JS.>"[..], b"$JSC.>", b"$NRG.>"] {
        if subject::overlaps(filter, space) && !subject::is_subset(filter, b"$JS.EVENT.>") {
            return Err(invalid("subjects that overlap with jetstream api require no-ack to be true"));
        }
    }
    if subject::overlaps(filter, b"$SYS.>") && !subject::is_subset(filter, b"$SYS.ACCOUNT.>") {
        return Err(invalid("subjects that overlap with system api require no-ack to be true"));
    }
    Ok(())
}

fn validate_mappings(config: &mut StreamConfig) -> Result<(), ApiError> {
    if let Some(mapping) = &config.subject_transform {
        transform::check(mapping).map_err(|reason| invalid(format!("stream transform: {reason}")))?;
    }
    if let Some(republish) = &mut config.republish {
        if republish.source.is_empty() {
            republish.source = ">".into();
        }
        let destination = wildcard_form(&republish.destination);
        if config.subjects.iter().any(|subject| subject::overlaps(destination.as_bytes(), subject.as_bytes()))
        {
            return Err(invalid("stream configuration for republish destination forms a cycle"));
        }
        if transform::check(&republish_mapping(republish)).is_err() {
            return Err(invalid(format!(
                "stream configuration for republish with transform from '{}' to '{}' not valid",
                republish.source, republish.destination
            )));
        }
    }
    Ok(())
}

/// A destination as a filter: what a wildcard stands for may be anything.
fn wildcard_form(destination: &str) -> String {
    let tokens: Vec<&str> = destination
        .split('.')
        .map(|token| if token.starts_with('$') || token.starts_with("{{") { "*" } else { token })
        .collect();
    tokens.join(".")
}

/// The subject mapping of a republish.
pub(crate) fn republish_mapping(republish: &Republish) -> crate::stream::SubjectMapping {
    crate::stream::SubjectMapping {
        source: republish.source.clone(),
        destination: republish.destination.clone(),
    }
}

/// Checks a change of configuration and fills in the defaults.
pub(crate) fn validate_update(
    old: &StreamConfig,
    new: &mut StreamConfig,
    replicas_max: u8,
) -> Result<(), ApiError> {
    let first_sequence = old.first_sequence;
    validate(new, replicas_max)?;
    // Says where the stream began; nothing begins twice.
    new.first_sequence = first_sequence;
    if new.name != old.name {
        return Err(invalid("stream configuration name must match original"));
    }
    if new.storage != old.storage {
        return Err(invalid("stream configuration update can not change storage type"));
    }
    if new.retention != old.retention
        && (old.retention == Retention::WorkQueue || new.retention == Retention::WorkQueue)
    {
        return Err(invalid("stream configuration update can not change retention policy to/from workqueue"));
    }
    if old.sealed && !new.sealed {
        return Err(invalid("stream configuration update can not unseal a sealed stream"));
    }
    if old.deny_delete && !new.deny_delete {
        return Err(invalid("stream configuration update can not cancel deny message deletes"));
    }
    if old.deny_purge && !new.deny_purge {
        return Err(invalid("stream configuration update can not cancel deny purge"));
    }
    if old.allow_message_ttl && !new.allow_message_ttl {
        return Err(invalid("message TTL status can not be disabled"));
    }
    if new.sealed {
        new.max_age_nanos = None;
        new.discard = Discard::New;
        new.deny_delete = true;
        new.deny_purge = true;
        new.allow_rollup_headers = false;
    }
    Ok(())
}
