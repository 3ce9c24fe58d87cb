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
        limits::{RateLimiter, Shared},
        router::{self, Services},
        server,
    },
    jobs::{
        Engine,
        belt::Belt,
        health::{QueueFigures, probes},
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
    // For whoever started it on port 0: where it listens, as the first line of standard output.
    let url = listener.local_addr().map(|address| format!("http://{address}"));
    let url = url.map_err(|error| Failure::failed(format!("the own address is unknown: {error}")))?;
    super::print_line(&serde_json::json!({ "url": url }).to_string());
    let db = db::pool(&config.database, "multivio api")?;
    let belt = Belt::new(&config.redis.url, db.clone()).map_err(|error| Failure::usage(telemetry::chain(&error)))?;
    let limiter = RateLimiter::new(&config.api, Some(Shared::new(belt.clone())));
    let engine = Engine::new(db.clone(), belt);
    let health = Health::new(db.clone(), probes(&engine));
    let figures = Arc::new(QueueFigures::new(engine.clone()));
    let app = App::new(config, db, engine, stop.clone()).map_err(|weak| Failure::usage(weak.to_string()))?;
    let routes = router::routes(Services {
        app: Arc::new(app),
        limiter: Arc::new(limiter),
        health: Arc::new(health),
        figures: vec![figures],
    });
    server::serve(listener, routes, stop).await.map_err(|error| Failure::failed(format!("the server ended: {error}")))
}
