//! bridge-nats
