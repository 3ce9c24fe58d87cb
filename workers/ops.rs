//! Runs the jobs of the `ops` queue.

use std::{process::ExitCode, sync::Arc};

use multivio::{
    connections::{Accounts, RefreshToken},
    crypto::Keyring,
    jobs::{Queue, Registry},
    outbound,
    platforms::Connectors,
    worker,
};

fn main() -> ExitCode {
    worker::main(Queue::Ops, 8, |config, _db| {
        let connectors = Connectors::new(config, &outbound::client()?);
        let accounts = Accounts::new(Keyring::new(&config.encryption_keys)?, connectors);
        Ok(Registry::of(Queue::Ops).job::<RefreshToken>().service(Arc::new(accounts)))
    })
}
