//! The driver: the one thread that owns an engine and a log.

pub(crate) mod command;
pub(crate) mod queue;
