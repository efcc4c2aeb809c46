//! Configuration of a node: defaults < TOML file < environment < flags. Only this folder reads the
//! environment. Nothing is clamped and nothing is silently ignored. Table of contents only.

mod edges;
mod error;
mod keys;
pub mod links;
pub mod reference;
mod resolve;
mod sources;
mod units;

pub use error::ConfigError;
pub use keys::{AdminAddress, Bounds, KEYS, Key, LogFormat, LogLevel, NodeConfig, Secret};
pub use resolve::{Authentication, NodeOptions, TasksOptions, TlsFiles};
pub use sources::{Environment, Layer, Layers, Origin};
pub use units::{ByteSize, Span, UnitError};
