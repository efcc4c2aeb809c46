//! What a requester is told when there is no payload, and how it is spelled on the wire.

use thiserror::Error;

use crate::envelope::ErrorDetails;

/// Why a request has no payload for an answer.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum BusError {
    /// Nobody answered in time. The request may have been handled.
    #[error("Request timeout")]
    Timeout,
    #[error("Bad request: {0}")]
    BadRequest(String),
    /// What was asked for is not there; also when nobody serves the subject.
    #[error("Not found: {0}")]
    NotFound(String),
    #[error("Internal error: {0}")]
    Internal(String),
    /// The bus could not be reached. Whether the request was handled is not known.
    #[error("Connection error: {0}")]
    Connection(String),
    /// Something on the wire is not an envelope.
    #[error("Serialization error: {0}")]
    Serialization(String),
}

impl BusError {
    /// What is answered when nobody serves a subject.
    #[must_use]
    pub fn no_subscribers() -> Self {
        Self::NotFound("No subscribers for subject".to_owned())
    }

    /// `error.code` of an answer: a closed set, what has no code of its own is `Internal`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Timeout => "Timeout",
            Self::BadRequest(_) => "BadRequest",
            Self::NotFound(_) => "NotFound",
            Self::Internal(_) | Self::Connection(_) | Self::Serialization(_) => "Internal",
        }
    }

    /// As it stands in an answer. The message is the whole text ("Bad request: …"), as deployed cells send it.
    #[must_use]
    pub fn to_details(&self) -> ErrorDetails {
        ErrorDetails { code: self.code().to_owned(), message: self.to_string(), ..ErrorDetails::default() }
    }

    /// What a requester makes of an answer's error; codes that it does not know are `Internal`.
    #[must_use]
    pub fn from_details(details: ErrorDetails) -> Self {
        match details.code.as_str() {
            "BadRequest" => Self::BadRequest(details.message),
            "NotFound" => Self::NotFound(details.message),
            "Timeout" => Self::Timeout,
            _ => Self::Internal(details.message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_map_as_the_contract_says() {
        let text = || "x".to_owned();
        for (error, code, message, got) in [
            (BusError::Timeout, "Timeout", "Request timeout", BusError::Timeout),
            (
                BusError::BadRequest(text()),
                "BadRequest",
                "Bad request: x",
                BusError::BadRequest("Bad request: x".into()),
            ),
            (
                BusError::NotFound(text()),
                "NotFound",
                "Not found: x",
                BusError::NotFound("Not found: x".into()),
            ),
            (
                BusError::Internal(text()),
                "Internal",
                "Internal error: x",
                BusError::Internal("Internal error: x".into()),
            ),
            (
                BusError::Connection(text()),
                "Internal",
                "Connection error: x",
                BusError::Internal("Connection error: x".into()),
            ),
            (
                BusError::Serialization(text()),
                "Internal",
                "Serialization error: x",
                BusError::Internal("Serialization error: x".into()),
            ),
        ] {
            let details = error.to_details();
            assert_eq!((details.code.as_str(), details.message.as_str()), (code, message));
            assert_eq!(BusError::from_details(details), got);
        }
        let unknown = ErrorDetails { code: "Teapot".into(), message: "m".into(), ..ErrorDetails::default() };
        assert_eq!(BusError::from_details(unknown), BusError::Internal("m".into()));
    }
}
