//! What every endpoint shares. Knows no domain: domains bring their own `Api` and use what is here.

pub mod auth;
pub mod page;
pub mod problem;
pub mod request_id;
pub mod state;

pub use auth::{Caller, Scope};
pub use page::Page;
pub use problem::{FieldError, Problem};
pub use state::App;
