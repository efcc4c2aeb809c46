//! Scenarios: the consumer, its clock and its stream, and nothing else. What nats-server 2.15.1 did in
//! the same situation was looked at, and is what is expected here.

mod acks;
mod model;
mod policies;
mod pulls;
mod pushes;
mod restarts;
mod scene;
mod validation;
