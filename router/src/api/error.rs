//! Why a request or a publish is refused. Closed sets: the endpoint maps each to a code by a total
//! match; an embedding program matches on them. The comment names NATS's constant (contract 1.8).

use beamlog_log::{Damage, Sequence};
use thiserror::Error;

/// A stored publish that was refused. Nothing was stored.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PublishRefusal {
    #[error("expected stream does not match")]
    WrongStream, // 10060
    #[error("wrong last sequence: {actual}")]
    WrongLastSequence { actual: Sequence }, // 10071
    #[error("wrong last message id: {actual}")]
    WrongLastMessageId { actual: String }, // 10070
    #[error("missing sequence for expected last sequence per subject")]
    MissingExpectedSequence, // 10193
    #[error("message size exceeds maximum allowed")]
    TooLarge, // 10054
    #[error("header size exceeds maximum allowed of 64k")]
    HeadersTooLarge, // 10097
    #[error("maximum messages exceeded")]
    MaxMessages, // 10077
    #[error("maximum bytes exceeded")]
    MaxBytes, // 10077
    #[error("maximum messages per subject exceeded")]
    MaxMessagesPerSubject, // 10077
    #[error("invalid operation on sealed stream")]
    Sealed, // 10109
    #[error("rollup not permitted")]
    RollupNotPermitted, // 10111
    #[error("rollup value invalid: {value:?}")]
    RollupInvalid { value: String }, // 10111
    #[error("per-message TTL is disabled")]
    TtlDisabled, // 10166
    #[error("invalid per-message TTL")]
    TtlInvalid, // 10165
    #[error(transparent)]
    Batch(#[from] BatchRefusal),
    #[error("message counters is disabled")]
    CountersDisabled, // 10168
    #[error("message schedules is disabled")]
    SchedulesDisabled, // 10188
    /// The same id inside the window with other bytes (DR19): somebody would lose a message silently.
    #[error("message id was already used for another message, stored at sequence {stored}")]
    MessageIdReused { stored: Sequence }, // ours
    #[error("headers are malformed")]
    HeadersMalformed, // 10003
    #[error("the log is full: insufficient storage")]
    InsufficientStorage, // 10047
    #[error("the log has failed and takes no more writes")]
    LogFailed, // 10077
    /// Another node leads, or none. Whether it is stored after all is not known here.
    #[error("JetStream system temporarily unavailable")]
    NotLeader, // 10008
    #[error("too many requests")]
    TooManyRequests, // 10167
    /// A stream takes messages from a bounded number of streams elsewhere.
    #[error("messages from too many origins")]
    TooManyOrigins, // ours
    #[error("stream not found")]
    StreamNotFound, // 10059
    /// The message that decides about this publish cannot be read (DR14).
    #[error("a stored message that decides this is unreadable")]
    Unreadable(#[source] Damage), // ours, 5xx
}

/// Why a message of an atomic batch (ADR-50 of NATS), or the batch with it, is refused. Nothing of the batch was
/// or will be stored, except after [`Self::InvalidId`] and [`Self::TooManyOpen`], which say nothing of another one.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BatchRefusal {
    #[error("atomic publish is disabled")]
    Disabled, // 10174
    #[error("atomic publish sequence is missing")]
    MissingSequence, // 10175
    #[error("atomic publish batch is incomplete")]
    Incomplete, // 10176
    #[error("atomic publish unsupported header used: {name}")]
    UnsupportedHeader { name: &'static str }, // 10177
    #[error("atomic publish batch ID is invalid")]
    InvalidId, // 10179
    #[error("atomic publish batch is too large: {messages}")]
    TooLarge { messages: usize }, // 10199
    #[error("atomic publish batch commit is invalid")]
    InvalidCommit, // 10200
    #[error("atomic publish batch contains duplicate message id")]
    DuplicateMessageId, // 10201
    #[error("atomic publish too many inflight")]
    TooManyOpen, // 10210
    /// What is expected was changed by the batch itself.
    #[error("wrong last sequence")]
    WrongLastSequence, // 10164
    #[error("batch rollup {what} invalid")]
    Rollup { what: &'static str }, // 10111
}

/// A refused API request.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ApiError {
    #[error("bad request")]
    BadRequest, // 10003
    #[error("stream not found")]
    StreamNotFound, // 10059
    #[error("stream name already in use with a different configuration")]
    StreamNameInUse, // 10058
    /// Its node is away, or has just got it.
    #[error("stream is offline: it is held by {node}")]
    StreamOffline { node: String }, // 10118
    #[error("no suitable peers for placement: {0}")]
    NoSuitablePeers(String), // 10005
    #[error("subjects overlap with an existing stream")]
    SubjectOverlap, // 10065
    /// Text as nats-server words it ("duplicate subjects detected", …).
    #[error("{0}")]
    StreamConfigInvalid(String), // 10052
    #[error("{0}")]
    StreamUpdateInvalid(String), // 10069
    #[error("stream name in subject does not match request")]
    StreamMismatch, // 10056
    #[error("maximum number of streams reached")]
    MaxStreams, // 10027
    #[error("maximum consumers limit reached")]
    MaxConsumers, // 10026
    #[error("replicas > 1 not supported in non-clustered mode")]
    ReplicasNotSupported, // 10074
    #[error("replicas count cannot be negative")]
    ReplicasNegative, // 10133
    #[error("invalid operation on sealed stream")]
    StreamSealed, // 10109
    #[error("{0}")]
    MessageDeleteFailed(String), // 10057
    #[error("{0}")]
    PurgeFailed(String), // 10110
    #[error("no message found")]
    NoMessage, // 10037
    #[error("sequence {0} not found")]
    SequenceNotFound(Sequence), // 10043
    #[error("consumer not found")]
    ConsumerNotFound, // 10014
    #[error("consumer name already in use")]
    ConsumerNameInUse, // 10013
    #[error("consumer already exists")]
    ConsumerExists, // 10148
    #[error("consumer does not exist")]
    ConsumerDoesNotExist, // 10149
    #[error("consumer already exists and is still active")]
    ConsumerStillActive, // 10105
    #[error(transparent)]
    ConsumerConfigInvalid(ConsumerConfigError),
    /// Text as nats-server words it, for what a consumer update may not change.
    #[error("{0}")]
    ConsumerCreateFailed(String), // 10012
    #[error("invalid JSON: {0}")]
    InvalidJson(String), // 10025
    #[error("insufficient storage resources available")]
    InsufficientStorage, // 10047
    #[error("the log has failed and takes no more writes")]
    LogFailed, // 10023
    /// Another node leads, or none. What the request asked for may happen after all.
    #[error("JetStream system temporarily unavailable")]
    NotLeader, // 10008
    #[error("too many requests")]
    TooManyRequests, // 10167
    /// DR14: never 404.
    #[error("a stored message is unreadable")]
    Unreadable(#[source] Damage), // ours, 5xx
}

/// What is wrong with a consumer configuration; each has a NATS code of its own.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ConsumerConfigError {
    #[error("consumer deliver subject has wildcards")]
    DeliverToWildcards, // 10079
    #[error("invalid push consumer deliver subject")]
    InvalidDeliverSubject, // 10112
    #[error("consumer in push mode can not set max waiting")]
    PushMaxWaiting, // 10080
    #[error("consumer deliver subject forms a cycle")]
    DeliverCycle, // 10081
    #[error("consumer requires ack policy for max ack pending")]
    MaxAckPendingNeedsAckPolicy, // 10082
    #[error("consumer idle heartbeat needs to be >= 100ms")]
    SmallHeartbeat, // 10083
    #[error("consumer in pull mode requires explicit ack policy on workqueue stream")]
    PullRequiresAck, // 10084
    #[error("consumer in pull mode can not have rate limit set")]
    PullWithRateLimit, // 10086
    #[error("consumer max waiting needs to be positive")]
    MaxWaitingNegative, // 10087
    #[error("consumer idle heartbeat requires a push based consumer")]
    HeartbeatRequiresPush, // 10088
    #[error("consumer flow control requires a push based consumer")]
    FlowControlRequiresPush, // 10089
    #[error("consumer with flow control also needs heartbeats")]
    FlowControlNeedsHeartbeats, // 10108
    #[error("consumer direct requires a push based consumer")]
    DirectRequiresPush, // 10090
    #[error("consumer direct requires an ephemeral consumer")]
    DirectRequiresEphemeral, // 10091
    #[error("consumer filter subject is not a valid subset of the interest subjects")]
    FilterNotSubset, // 10093
    #[error("{0}")]
    InvalidPolicy(String), // 10094
    #[error("failed to parse consumer sampling configuration: {0}")]
    InvalidSampling(String), // 10095
    #[error("workqueue stream requires explicit ack")]
    WorkQueueRequiresExplicitAck, // 10098
    #[error("multiple non-filtered consumers not allowed on workqueue stream")]
    WorkQueueMultipleUnfiltered, // 10099
    #[error("filtered consumer not unique on workqueue stream")]
    WorkQueueNotUnique, // 10100
    #[error("consumer must be deliver all on workqueue stream")]
    WorkQueueNotDeliverAll, // 10101
    #[error("consumer name is too long, maximum allowed is {max}")]
    NameTooLong { max: usize }, // 10102
    #[error("durable name can not contain '.', '*', '>'")]
    BadDurableName, // 10103
    #[error("consumer description is too long, maximum allowed is {max}")]
    DescriptionTooLong { max: usize }, // 10107
    #[error("consumer metadata exceeds maximum size of {max}")]
    MetadataTooLong { max: usize }, // 10135
    #[error("max deliver is required to be > length of backoff values")]
    MaxDeliverBackoff, // 10116
    #[error("consumer max ack pending exceeds system limit of {max}")]
    MaxAckPendingExcess { max: u32 }, // 10121
    #[error("consumer max request batch exceeds server limit of {max}")]
    MaxRequestBatchExceeded { max: u32 }, // 10125
    #[error("consumer max request batch needs to be > 0")]
    MaxRequestBatchNegative, // 10114
    #[error("consumer max request expires needs to be >= 1ms")]
    MaxRequestExpiresTooSmall, // 10115
    #[error("consumer config replica count exceeds parent stream")]
    ReplicasExceedStream, // 10126
    #[error("consumer inactive threshold exceeds system limit of {max_nanos} ns")]
    InactiveThresholdExcess { max_nanos: u64 }, // 10153
    #[error("consumer cannot have both FilterSubject and FilterSubjects specified")]
    DuplicateFilters, // 10136
    #[error("consumer subject filters cannot overlap")]
    OverlappingFilters, // 10138
    #[error("consumer filter in FilterSubjects cannot be empty")]
    EmptyFilter, // 10139
    #[error("consumer ack wait needs to be positive")]
    AckWaitNegative, // 10183
    #[error("consumer backoff needs to be positive")]
    BackoffNegative, // 10184
}
