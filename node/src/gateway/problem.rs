//! Errors as the gateway spells them: always the same shape, `intake_error_code` always there.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Whose request it is, as far as that is known.
#[derive(Clone, Debug, Default)]
pub(super) struct Context {
    pub(super) request_id: String,
    pub(super) trace_id: String,
    pub(super) tenant_id: String,
}

/// A request that the gateway itself refuses.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) details: Value,
    pub(super) context: Context,
    pub(super) retry_after: Option<u64>,
    /// Of a window that is full.
    pub(super) limit: Option<u32>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        context: &Context,
    ) -> Self {
        let (message, context) = (message.into(), context.clone());
        Self { status, code, message, details: json!({}), context, retry_after: None, limit: None }
    }

    /// 400 `invalid_request`.
    pub(super) fn invalid(message: impl Into<String>, context: &Context) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message, context)
    }

    pub(super) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Context { request_id, trace_id, tenant_id } = self.context;
        let body = json!({
            "ok": false,
            "error": {
                "code": self.code,
                "message": self.message,
                "intake_error_code": null,
                "details": self.details,
            },
            "context": {"request_id": request_id, "trace_id": trace_id, "tenant_id": tenant_id},
        });
        let mut response = json_response(self.status, body.to_string());
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            if let Some(limit) = self.limit {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let named = [
                    ("x-ratelimit-limit", u64::from(limit)),
                    ("x-ratelimit-remaining", 0),
                    ("x-ratelimit-reset", now + seconds),
                ];
                for (name, value) in named {
                    response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
                }
            }
        }
        response
    }
}

pub(super) fn json_response(status: StatusCode, body: impl Into<axum::body::Body>) -> Response {
    (status, [(CONTENT_TYPE, "application/json")], body.into()).into_response()
}
