//! The JetStream API over a router: requests in JSON, their answers, acks and pulls by subject, and
//! how the router's results are spelled for clients. Translation only: the meaning is in `router`.
//!
//! Table of contents only.

mod request;

pub use request::{ApiRequest, Handled, is_api_subject};
