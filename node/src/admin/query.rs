//! Query parameters as nats-server reads them. A value that is not understood is an error that names it.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// The parameters of one request.
pub(super) struct Query(pub(super) BTreeMap<String, String>);

/// A parameter that is not understood.
#[derive(Debug)]
pub(super) struct BadParameter(String);

impl IntoResponse for BadParameter {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.0).into_response()
    }
}

impl Query {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, BadParameter> {
        match self.text(name) {
            None => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => Err(bad(name, other, "true or false")),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, BadParameter> {
        self.text(name).map(|text| text.parse().map_err(|_not_one| bad(name, text, "a number"))).transpose()
    }
}

pub(super) fn bad(name: &str, value: &str, wanted: &str) -> BadParameter {
    BadParameter(format!("error decoding {wanted} for '{name}': {value:?}\n"))
}
