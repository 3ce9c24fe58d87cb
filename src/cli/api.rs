//! `multivio api`: serves the HTTP API until it is told to stop. Starts in any order with its servers.

use std::{net::SocketAddr, sync::Arc};

use clap::Args;
use tokio::net::TcpListener;

use super::{Failure, Screen};
use crate::{
    db,
    http::{
        App,
        health::Health,
        limits::RateLimiter,
        router::{self, Services},
        server,
    },
    shutdown, telemetry,
};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Address to listen on [default: HOST and PORT]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

pub async fn run(arguments: Arguments, _screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    telemetry::start(&config);
    let stop = shutdown::on_signal().map_err(|error| Failure::failed(format!("signals cannot be heard: {error}")))?;
    let address = arguments.listen.unwrap_or(SocketAddr::new(config.api.host, config.api.port));
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Failure::failed(format!("cannot listen on {address}: {error}")).remedy("Choose another with --listen or PORT.")
    })?;
    let db = db::pool(&config.database, "multivio api")?;
    unimplemented!("{:?}", (db, stop, listener))
}
