//! Language models, as they answer and as they fail.

mod api;
mod books;
mod chain;
mod fake;
mod job;
mod sandbox;
mod wire;
