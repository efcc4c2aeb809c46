//! The node: everything that `beamlog serve` is, as a library, and the commands of the binary.
//! Table of contents only.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
