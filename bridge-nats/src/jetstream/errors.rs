//! The codes clients are told: each refusal of the router to an HTTP-like code, nats-server's error code
//! and its text. Total matches: a new refusal does not compile until it has a code.
//!
//! Codes of our own, for what nats-server has no word, are 19,000 to 19,099; `docs/reference/error-codes.md`
//! lists them and a test holds it to this file.

use beamlog_router::api::error::{ApiError, BatchRefusal, ConsumerConfigError, PublishRefusal};

use super::json::Malformed;
use super::time;

/// A refusal as it is written into JSON.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ErrorBody {
    pub(super) code: u16,
    pub(super) err_code: u16,
    pub(super) description: String,
}

/// A stored message that is needed cannot be read (DR14): never told as "not found".
pub const UNREADABLE: u16 = 19_000;
/// A message id came again with another message inside the window (DR19).
pub const MESSAGE_ID_REUSED: u16 = 19_001;

impl ErrorBody {
    pub(super) fn new(code: u16, err_code: u16, description: impl Into<String>) -> Self {
        Self { code, err_code, description: description.into() }
    }

    pub(super) fn bad_request() -> Self {
        Self::new(400, 10003, "bad request")
    }

    pub(super) fn invalid_json(text: impl std::fmt::Display) -> Self {
        Self::new(400, 10025, format!("invalid JSON: {text}"))
    }

    pub(super) fn not_empty_request() -> Self {
        Self::new(400, 10038, "expected an empty request payload")
    }

    pub(super) fn required_api_level() -> Self {
        Self::new(412, 10185, "JetStream minimum api level required")
    }

    pub(super) fn cluster_required() -> Self {
        Self::new(503, 10010, "JetStream clustering support required")
    }

    /// A configuration that asks for what this router does not do.
    pub(super) fn stream_config(text: impl Into<String>) -> Self {
        Self::new(500, 10052, text)
    }

    pub(super) fn consumer_create(text: impl Into<String>) -> Self {
        Self::new(500, 10012, text)
    }

    pub(super) fn path_separators_in_stream() -> Self {
        Self::new(400, 10128, "Stream name can not contain path separators")
    }

    pub(super) fn path_separators_in_consumer() -> Self {
        Self::new(400, 10127, "Consumer name can not contain path separators")
    }
}

impl From<Malformed> for ErrorBody {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_json(malformed)
    }
}

impl From<&PublishRefusal> for ErrorBody {
    fn from(refusal: &PublishRefusal) -> Self {
        let (code, err_code) = match refusal {
            PublishRefusal::WrongStream => (400, 10060),
            PublishRefusal::WrongLastSequence { .. } => (400, 10071),
            PublishRefusal::WrongLastMessageId { actual } => {
                return Self::new(400, 10070, format!("wrong last msg ID: {actual}"));
            }
            PublishRefusal::MissingExpectedSequence => (400, 10193),
            PublishRefusal::TooLarge => (400, 10054),
            PublishRefusal::HeadersTooLarge => (400, 10097),
            PublishRefusal::MaxMessages
            | PublishRefusal::MaxBytes
            | PublishRefusal::MaxMessagesPerSubject
            | PublishRefusal::LogFailed => (503, 10077),
            PublishRefusal::NotLeader => (503, 10008),
            PublishRefusal::Sealed => (400, 10109),
            PublishRefusal::RollupNotPermitted => (500, 10111),
            PublishRefusal::RollupInvalid { value } => {
                return Self::new(500, 10111, format!("rollup value invalid: {value:?}"));
            }
            PublishRefusal::TtlDisabled => (400, 10166),
            PublishRefusal::TtlInvalid => (400, 10165),
            PublishRefusal::Batch(refusal) => match refusal {
                BatchRefusal::Disabled => (400, 10174),
                BatchRefusal::MissingSequence => (400, 10175),
                BatchRefusal::Incomplete => (400, 10176),
                BatchRefusal::UnsupportedHeader { .. } => (400, 10177),
                BatchRefusal::InvalidId => (400, 10179),
                BatchRefusal::TooLarge { .. } => (400, 10199),
                BatchRefusal::InvalidCommit => (400, 10200),
                BatchRefusal::DuplicateMessageId => (400, 10201),
                BatchRefusal::TooManyOpen => (429, 10210),
                BatchRefusal::WrongLastSequence => (400, 10164),
                BatchRefusal::Rollup { .. } => (500, 10111),
            },
            PublishRefusal::CountersDisabled => (400, 10168),
            PublishRefusal::SchedulesDisabled => (400, 10188),
            PublishRefusal::MessageIdReused { .. } => (409, MESSAGE_ID_REUSED),
            PublishRefusal::HeadersMalformed => return Self::bad_request(),
            PublishRefusal::InsufficientStorage => {
                return Self::new(500, 10047, "insufficient storage resources available");
            }
            PublishRefusal::TooManyRequests | PublishRefusal::TooManyOrigins => (429, 10167),
            PublishRefusal::StreamNotFound => (404, 10059),
            PublishRefusal::Unreadable(_) => (500, UNREADABLE),
        };
        Self::new(code, err_code, refusal.to_string())
    }
}

impl From<&ApiError> for ErrorBody {
    fn from(error: &ApiError) -> Self {
        let (code, err_code) = match error {
            ApiError::BadRequest => (400, 10003),
            ApiError::StreamNotFound => (404, 10059),
            ApiError::StreamNameInUse => (400, 10058),
            ApiError::StreamOffline { .. } => (500, 10118),
            ApiError::NoSuitablePeers(_) => (400, 10005),
            ApiError::SubjectOverlap => (400, 10065),
            ApiError::StreamConfigInvalid(_) => (500, 10052),
            ApiError::StreamUpdateInvalid(_) => (500, 10069),
            ApiError::StreamMismatch => (400, 10056),
            ApiError::MaxStreams => (400, 10027),
            ApiError::MaxConsumers => (400, 10026),
            ApiError::ReplicasNotSupported => (500, 10074),
            ApiError::ReplicasNegative => (400, 10133),
            ApiError::StreamSealed => (400, 10109),
            ApiError::MessageDeleteFailed(_) => (500, 10057),
            ApiError::PurgeFailed(_) => (500, 10110),
            ApiError::NoMessage => (404, 10037),
            ApiError::SequenceNotFound(_) => (400, 10043),
            ApiError::ConsumerNotFound => (404, 10014),
            ApiError::ConsumerNameInUse => (400, 10013),
            ApiError::ConsumerExists => (400, 10148),
            ApiError::ConsumerDoesNotExist => (400, 10149),
            ApiError::ConsumerStillActive => (400, 10105),
            ApiError::ConsumerConfigInvalid(error) => return Self::from(error),
            ApiError::ConsumerCreateFailed(_) => (500, 10012),
            ApiError::InvalidJson(_) => (400, 10025),
            ApiError::InsufficientStorage => (500, 10047),
            ApiError::LogFailed => (503, 10023),
            ApiError::NotLeader => (503, 10008),
            ApiError::TooManyRequests => (429, 10167),
            ApiError::Unreadable(_) => (500, UNREADABLE),
        };
        Self::new(code, err_code, error.to_string())
    }
}

impl From<&ConsumerConfigError> for ErrorBody {
    fn from(error: &ConsumerConfigError) -> Self {
        let err_code = match error {
            ConsumerConfigError::DeliverToWildcards => 10079,
            ConsumerConfigError::InvalidDeliverSubject => 10112,
            ConsumerConfigError::PushMaxWaiting => 10080,
            ConsumerConfigError::DeliverCycle => 10081,
            ConsumerConfigError::MaxAckPendingNeedsAckPolicy => 10082,
            ConsumerConfigError::SmallHeartbeat => 10083,
            ConsumerConfigError::PullRequiresAck => 10084,
            ConsumerConfigError::PullWithRateLimit => 10086,
            ConsumerConfigError::MaxWaitingNegative => 10087,
            ConsumerConfigError::HeartbeatRequiresPush => 10088,
            ConsumerConfigError::FlowControlRequiresPush => 10089,
            ConsumerConfigError::FlowControlNeedsHeartbeats => 10108,
            ConsumerConfigError::DirectRequiresPush => 10090,
            ConsumerConfigError::DirectRequiresEphemeral => 10091,
            ConsumerConfigError::FilterNotSubset => 10093,
            ConsumerConfigError::InvalidPolicy(_) => 10094,
            ConsumerConfigError::InvalidSampling(_) => 10095,
            ConsumerConfigError::WorkQueueRequiresExplicitAck => 10098,
            ConsumerConfigError::WorkQueueMultipleUnfiltered => 10099,
            ConsumerConfigError::WorkQueueNotUnique => 10100,
            ConsumerConfigError::WorkQueueNotDeliverAll => 10101,
            ConsumerConfigError::NameTooLong { .. } => 10102,
            ConsumerConfigError::BadDurableName => 10103,
            ConsumerConfigError::DescriptionTooLong { .. } => 10107,
            ConsumerConfigError::MetadataTooLong { .. } => 10135,
            ConsumerConfigError::MaxDeliverBackoff => 10116,
            ConsumerConfigError::MaxAckPendingExcess { .. } => 10121,
            ConsumerConfigError::MaxRequestBatchExceeded { .. } => 10125,
            ConsumerConfigError::MaxRequestBatchNegative => 10114,
            ConsumerConfigError::MaxRequestExpiresTooSmall => 10115,
            ConsumerConfigError::ReplicasExceedStream => 10126,
            ConsumerConfigError::InactiveThresholdExcess { max_nanos } => {
                let limit = time::duration(*max_nanos);
                let text = format!("consumer inactive threshold exceeds system limit of {limit}");
                return Self::new(400, 10153, text);
            }
            ConsumerConfigError::DuplicateFilters => 10136,
            ConsumerConfigError::OverlappingFilters => 10138,
            ConsumerConfigError::EmptyFilter => 10139,
            ConsumerConfigError::AckWaitNegative => 10183,
            ConsumerConfigError::BackoffNegative => 10184,
        };
        Self::new(400, err_code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use beamlog_router::{Damage, DamageReason, SegmentId, Sequence};

    use super::*;

    fn damage() -> Damage {
        Damage { segment: SegmentId(1), offset: 2, reason: DamageReason::Checksum }
    }

    /// One of each that is not in the others' lists.
    fn samples() -> Vec<ErrorBody> {
        let text = || "{err}".to_owned();
        let publish = [
            PublishRefusal::WrongStream,
            PublishRefusal::WrongLastSequence { actual: Sequence(0) },
            PublishRefusal::WrongLastMessageId { actual: "{id}".to_owned() },
            PublishRefusal::MissingExpectedSequence,
            PublishRefusal::TooLarge,
            PublishRefusal::HeadersTooLarge,
            PublishRefusal::MaxMessages,
            PublishRefusal::MaxBytes,
            PublishRefusal::MaxMessagesPerSubject,
            PublishRefusal::Sealed,
            PublishRefusal::RollupNotPermitted,
            PublishRefusal::RollupInvalid { value: "{value}".to_owned() },
            PublishRefusal::TtlDisabled,
            PublishRefusal::TtlInvalid,
            PublishRefusal::Batch(BatchRefusal::Disabled),
            PublishRefusal::Batch(BatchRefusal::MissingSequence),
            PublishRefusal::Batch(BatchRefusal::Incomplete),
            PublishRefusal::Batch(BatchRefusal::UnsupportedHeader { name: "{header}" }),
            PublishRefusal::Batch(BatchRefusal::InvalidId),
            PublishRefusal::Batch(BatchRefusal::TooLarge { messages: 0 }),
            PublishRefusal::Batch(BatchRefusal::InvalidCommit),
            PublishRefusal::Batch(BatchRefusal::DuplicateMessageId),
            PublishRefusal::Batch(BatchRefusal::TooManyOpen),
            PublishRefusal::Batch(BatchRefusal::WrongLastSequence),
            PublishRefusal::Batch(BatchRefusal::Rollup { what: "{value}" }),
            PublishRefusal::CountersDisabled,
            PublishRefusal::SchedulesDisabled,
            PublishRefusal::MessageIdReused { stored: Sequence(0) },
            PublishRefusal::InsufficientStorage,
            PublishRefusal::LogFailed,
            PublishRefusal::NotLeader,
            PublishRefusal::TooManyRequests,
            PublishRefusal::TooManyOrigins,
            PublishRefusal::StreamNotFound,
            PublishRefusal::Unreadable(damage()),
        ];
        let api = [
            ApiError::BadRequest,
            ApiError::StreamNameInUse,
            ApiError::SubjectOverlap,
            ApiError::StreamConfigInvalid(text()),
            ApiError::StreamUpdateInvalid(text()),
            ApiError::StreamMismatch,
            ApiError::MaxStreams,
            ApiError::MaxConsumers,
            ApiError::ReplicasNotSupported,
            ApiError::ReplicasNegative,
            ApiError::MessageDeleteFailed(text()),
            ApiError::PurgeFailed(text()),
            ApiError::NoMessage,
            ApiError::SequenceNotFound(Sequence(0)),
            ApiError::ConsumerNotFound,
            ApiError::ConsumerNameInUse,
            ApiError::ConsumerExists,
            ApiError::ConsumerDoesNotExist,
            ApiError::ConsumerStillActive,
            ApiError::ConsumerCreateFailed(text()),
            ApiError::InvalidJson(text()),
            ApiError::LogFailed,
            ApiError::NotLeader,
        ];
        let consumer = [
            ConsumerConfigError::DeliverToWildcards,
            ConsumerConfigError::InvalidDeliverSubject,
            ConsumerConfigError::PushMaxWaiting,
            ConsumerConfigError::DeliverCycle,
            ConsumerConfigError::MaxAckPendingNeedsAckPolicy,
            ConsumerConfigError::SmallHeartbeat,
            ConsumerConfigError::PullRequiresAck,
            ConsumerConfigError::PullWithRateLimit,
            ConsumerConfigError::MaxWaitingNegative,
            ConsumerConfigError::HeartbeatRequiresPush,
            ConsumerConfigError::FlowControlRequiresPush,
            ConsumerConfigError::FlowControlNeedsHeartbeats,
            ConsumerConfigError::DirectRequiresPush,
            ConsumerConfigError::DirectRequiresEphemeral,
            ConsumerConfigError::FilterNotSubset,
            ConsumerConfigError::InvalidPolicy(text()),
            ConsumerConfigError::InvalidSampling(text()),
            ConsumerConfigError::WorkQueueRequiresExplicitAck,
            ConsumerConfigError::WorkQueueMultipleUnfiltered,
            ConsumerConfigError::WorkQueueNotUnique,
            ConsumerConfigError::WorkQueueNotDeliverAll,
            ConsumerConfigError::NameTooLong { max: 255 },
            ConsumerConfigError::BadDurableName,
            ConsumerConfigError::DescriptionTooLong { max: 4096 },
            ConsumerConfigError::MetadataTooLong { max: 131_072 },
            ConsumerConfigError::MaxDeliverBackoff,
            ConsumerConfigError::MaxAckPendingExcess { max: 1 },
            ConsumerConfigError::MaxRequestBatchExceeded { max: 1 },
            ConsumerConfigError::MaxRequestBatchNegative,
            ConsumerConfigError::MaxRequestExpiresTooSmall,
            ConsumerConfigError::ReplicasExceedStream,
            ConsumerConfigError::InactiveThresholdExcess { max_nanos: 1_000_000_000 },
            ConsumerConfigError::DuplicateFilters,
            ConsumerConfigError::OverlappingFilters,
            ConsumerConfigError::EmptyFilter,
            ConsumerConfigError::AckWaitNegative,
            ConsumerConfigError::BackoffNegative,
        ];
        let mut all: Vec<ErrorBody> = publish.iter().map(Into::into).collect();
        all.extend(api.iter().map(ErrorBody::from));
        all.extend(consumer.iter().map(ErrorBody::from));
        all.extend([
            ErrorBody::not_empty_request(),
            ErrorBody::required_api_level(),
            ErrorBody::cluster_required(),
            ErrorBody::path_separators_in_stream(),
            ErrorBody::path_separators_in_consumer(),
        ]);
        all.sort_by_key(|body| (body.err_code, body.description.clone()));
        all.dedup();
        all
    }

    #[test]
    fn the_page_of_error_codes_lists_what_clients_are_told() {
        let page = include_str!("../../../docs/reference/error-codes.md");
        let (_, listed) = page.split_once("<!-- codes -->\n").unwrap();
        let rows: String = samples()
            .iter()
            .map(|body| format!("| {} | {} | {} |\n", body.err_code, body.code, body.description))
            .collect();
        let table = format!("| code | http | text |\n|---|---|---|\n{rows}");
        assert_eq!(listed, table, "put this under the mark in docs/reference/error-codes.md:\n{table}");
    }

    #[test]
    fn our_own_codes_are_in_their_range_and_no_other_is() {
        for body in samples() {
            let ours = body.err_code == UNREADABLE || body.err_code == MESSAGE_ID_REUSED;
            assert_eq!(ours, (19_000..19_100).contains(&body.err_code), "{body:?}");
        }
    }
}
