//! The commands of the binary. Table of contents only.

mod arguments;
mod bench;
mod cert;
mod client;
mod cluster;
mod completion;
mod configuration;
mod consumer;
mod exit;
mod kv;
mod link;
mod messages;
mod output;
pub mod reference;
mod run;
mod serve;
mod store;
mod stream;
mod subjects;
mod task;

pub(crate) use exit::err_chain;
pub use run::run;
