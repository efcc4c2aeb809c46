//! openraft's own suite over our log, and what stands between.

mod books;
mod copies;
mod direct;
mod suite;
