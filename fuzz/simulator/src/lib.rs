//! A cluster in one thread: the real engine, log and replication on simulated disks, network, clocks and
//! processes. One seed is one run. Table of contents only; `docs/design/simulator.md` says what it checks.
#![forbid(unsafe_code)]

pub mod clients;
pub mod executor;
pub mod network;
pub mod node;
pub mod oracle;
pub mod planted;
pub mod random;
pub mod run;
pub mod swarm;
pub mod trace;
