//! openraft's own suite over our log, and what stands between.

mod books;
mod direct;
mod suite;
