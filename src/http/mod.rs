//! What every endpoint shares. Knows no domain: domains bring their own `Api` and use what is here.

pub mod answer;
pub mod auth;
pub mod body;
pub mod client_address;
pub mod connection;
pub mod docs;
pub mod edge;
pub mod etag;
pub mod followers;
mod framing;
pub mod gate;
pub mod health;
pub mod idempotency;
pub mod limits;
pub mod metrics;
pub mod one_description;
mod opening;
pub mod page;
pub mod parameters;
pub mod problem;
pub mod request_id;
pub mod router;
mod schema;
pub mod server;
mod shape;
pub mod state;
pub mod tag;
pub mod translate;

pub use answer::{Accepted, Created, Gone};
pub use auth::{Caller, Pass, Scope, signed_in_recently};
pub use body::Input;
pub use idempotency::{IdempotencyKey, Turn};
pub use page::Page;
pub use problem::{FieldError, Problem};
pub use state::App;
pub use tag::Tag;
