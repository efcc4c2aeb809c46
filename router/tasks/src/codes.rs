//! The error codes of the contract (section 1.3), closed sets: what a reply says, why the intake refused,
//! and what gateways and gRPC clients make of them.

use std::fmt;

/// `error.code` of a reply.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Code {
    InvalidRequest,
    Unauthorized,
    PolicyNotFound,
    DecisionFailed,
    Internal,
    ExtensionNotFound,
    ExtensionTimeout,
    ValidatorBlocked,
    PostProcessorFailed,
    ExtensionError,
    ExtensionUnavailable,
    RateLimitExceeded,
    QuotaExceeded,
    ServiceOverloaded,
    NotFound,
    NotImplemented,
    InvalidSubject,
}

impl Code {
    /// All of them, for tables.
    pub const ALL: [Self; 17] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::PolicyNotFound,
        Self::DecisionFailed,
        Self::Internal,
        Self::ExtensionNotFound,
        Self::ExtensionTimeout,
        Self::ValidatorBlocked,
        Self::PostProcessorFailed,
        Self::ExtensionError,
        Self::ExtensionUnavailable,
        Self::RateLimitExceeded,
        Self::QuotaExceeded,
        Self::ServiceOverloaded,
        Self::NotFound,
        Self::NotImplemented,
        Self::InvalidSubject,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::PolicyNotFound => "policy_not_found",
            Self::DecisionFailed => "decision_failed",
            Self::Internal => "internal",
            Self::ExtensionNotFound => "extension_not_found",
            Self::ExtensionTimeout => "extension_timeout",
            Self::ValidatorBlocked => "validator_blocked",
            Self::PostProcessorFailed => "post_processor_failed",
            Self::ExtensionError => "extension_error",
            Self::ExtensionUnavailable => "extension_unavailable",
            Self::RateLimitExceeded => "rate_limit_exceeded",
            Self::QuotaExceeded => "quota_exceeded",
            Self::ServiceOverloaded => "service_overloaded",
            Self::NotFound => "not_found",
            Self::NotImplemented => "not_implemented",
            Self::InvalidSubject => "invalid_subject",
        }
    }

    /// The HTTP status that the code means. (The C gateway answers 200 to those it does not know.)
    #[must_use]
    pub fn http(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::InvalidSubject => 400,
            Self::Unauthorized => 401,
            Self::ValidatorBlocked => 403,
            Self::PolicyNotFound | Self::ExtensionNotFound | Self::NotFound => 404,
            Self::RateLimitExceeded | Self::QuotaExceeded => 429,
            Self::DecisionFailed | Self::Internal | Self::PostProcessorFailed | Self::ExtensionError => 500,
            Self::NotImplemented => 501,
            Self::ExtensionUnavailable | Self::ServiceOverloaded => 503,
            Self::ExtensionTimeout => 504,
        }
    }

    /// The gRPC status that the code means.
    #[must_use]
    pub fn grpc(self) -> u8 {
        match self {
            Self::InvalidRequest | Self::InvalidSubject => 3,
            Self::ExtensionTimeout => 4,
            Self::PolicyNotFound | Self::ExtensionNotFound | Self::NotFound => 5,
            Self::ValidatorBlocked => 7,
            Self::RateLimitExceeded | Self::QuotaExceeded => 8,
            Self::NotImplemented => 12,
            Self::DecisionFailed | Self::Internal | Self::PostProcessorFailed | Self::ExtensionError => 13,
            Self::ExtensionUnavailable | Self::ServiceOverloaded => 14,
            Self::Unauthorized => 16,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `error.intake_error_code`: why a message was refused before anybody decided about it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum IntakeCode {
    SchemaValidationFailed,
    VersionUnsupported,
    CorrelationFieldsInvalid,
    TenantForbidden,
    IdempotencyViolation,
    PayloadTooSmall,
    InternalValidationError,
}

impl IntakeCode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SchemaValidationFailed => "SCHEMA_VALIDATION_FAILED",
            Self::VersionUnsupported => "VERSION_UNSUPPORTED",
            Self::CorrelationFieldsInvalid => "CORRELATION_FIELDS_INVALID",
            Self::TenantForbidden => "TENANT_FORBIDDEN",
            Self::IdempotencyViolation => "IDEMPOTENCY_VIOLATION",
            Self::PayloadTooSmall => "PAYLOAD_TOO_SMALL",
            Self::InternalValidationError => "INTERNAL_VALIDATION_ERROR",
        }
    }

    /// The code of the reply.
    #[must_use]
    pub fn reply(self) -> Code {
        match self {
            Self::TenantForbidden => Code::Unauthorized,
            Self::InternalValidationError => Code::Internal,
            Self::SchemaValidationFailed
            | Self::VersionUnsupported
            | Self::CorrelationFieldsInvalid
            | Self::IdempotencyViolation
            | Self::PayloadTooSmall => Code::InvalidRequest,
        }
    }

    /// Whether the message is kept as a dead letter: sending it again cannot help.
    #[must_use]
    pub fn is_dead_letter(self) -> bool {
        match self {
            Self::SchemaValidationFailed
            | Self::VersionUnsupported
            | Self::CorrelationFieldsInvalid
            | Self::TenantForbidden => true,
            Self::IdempotencyViolation | Self::PayloadTooSmall | Self::InternalValidationError => false,
        }
    }

    #[must_use]
    pub fn severity(self) -> &'static str {
        match self {
            Self::IdempotencyViolation | Self::PayloadTooSmall => "warning",
            Self::SchemaValidationFailed
            | Self::VersionUnsupported
            | Self::CorrelationFieldsInvalid
            | Self::TenantForbidden
            | Self::InternalValidationError => "error",
        }
    }
}

impl fmt::Display for IntakeCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request that is answered by an error.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    pub code: Code,
    pub intake: Option<IntakeCode>,
    /// Text for people; it never has parts of a payload.
    pub message: String,
    pub details: Option<serde_json::Value>,
}

impl Refusal {
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, intake: None, message: message.into(), details: None }
    }

    #[must_use]
    pub fn intake(intake: IntakeCode, message: impl Into<String>) -> Self {
        Self { code: intake.reply(), intake: Some(intake), message: message.into(), details: None }
    }

    #[must_use]
    pub fn with_details(self, details: serde_json::Value) -> Self {
        Self { details: Some(details), ..self }
    }
}
