//! What tests stand on: private servers, a database for each test, the product's programs, the sandbox.
//!
//! Nothing here outlives the run: servers and programs end with their owner, also when a test panics, and the
//! kernel ends them when the run itself is killed.

mod answers;
mod app;
mod pgbouncer;
mod program;
mod proxy;
mod sandbox;
mod servers;
mod tripwire;
mod wait;

pub use app::{Api, App, Worker, worker_path};
pub use pgbouncer::PgBouncer;
pub use program::{Ended, Program};
pub use proxy::Proxy;
pub use sandbox::Sandbox;
pub use servers::{Servers, TestDb};
pub use tripwire::{Side, Tripwire};
pub use wait::{eventually, wait_until};

/// Whether the large sizes were asked for (`bin/test --full`).
pub fn full_size() -> bool {
    #[expect(clippy::disallowed_methods, reason = "a setting of the tests, not of the product")]
    std::env::var("MULTIVIO_TEST_FULL").is_ok_and(|value| value == "1")
}
