//! The server whose rate is the limit of every enqueue: poem, one route, nothing behind it.

use std::net::SocketAddr;

use clap::Args;
use poem::{Route, Server, get, handler, listener::TcpListener};

use crate::cli::Failure;

#[derive(Debug, Args)]
pub struct Place {
    address: SocketAddr,
}

#[handler]
fn hello() -> &'static str {
    "hello"
}

/// Serves until it is killed.
pub async fn serve(place: Place) -> Result<(), Failure> {
    let routes = Route::new().at("/", get(hello).post(hello)).at("/health/ready", get(hello));
    let served = Server::new(TcpListener::bind(place.address)).run(routes).await;
    served.map_err(|error| Failure::failed(format!("{}: {error}", place.address)))
}
