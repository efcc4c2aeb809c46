//! Policies: how a receiver is chosen. Table of contents only.

pub mod breaker;
pub mod bucket;
pub mod complexity;
pub mod document;
pub mod select;
