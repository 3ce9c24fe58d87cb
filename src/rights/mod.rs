//! People's rights over their data: a copy of it, and its end.
//!
//! [`tables`] says for every table of the product what happens to it in either; a test compares that with the schema,
//! so that a table which is added later cannot be forgotten. The audit log stays: it says who erased what, and holds
//! nothing of what it was.

pub mod api;
pub mod begin;
pub mod erase;
pub mod erasures;
pub mod export;
pub mod exports;
pub mod tables;
pub mod upkeep;

pub use api::RightsApi;
pub use erase::Erase;
pub use export::Export;
pub use upkeep::RightsUpkeep;
