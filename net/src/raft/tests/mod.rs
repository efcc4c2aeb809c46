//! openraft's own suite over our log, and what stands between.

mod direct;
mod suite;
