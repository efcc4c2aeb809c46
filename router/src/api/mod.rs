//! What may be asked of the engine, and how it answers and refuses.

pub mod catalogue;
pub mod error;
pub mod moving;
pub mod request;
