//! A cluster in one thread: the real engine, log and replication on simulated disks, network, clocks and
//! processes. One seed is one run. Table of contents only; `docs/design/simulator.md` says what it checks.
#![forbid(unsafe_code)]

pub mod batch;
pub mod clients;
pub mod decay;
pub mod executor;
pub mod host;
pub mod link;
pub mod network;
pub mod node;
pub mod oracle;
pub mod planted;
pub mod random;
pub mod remains;
pub mod run;
pub mod swarm;
pub mod trace;
pub mod workers;
