//! `multivio api`: serves the HTTP API until it is told to stop. Starts in any order with its servers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Failure, Screen};
use crate::{
    ai::{Transformer, models::ModelLists},
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
        relay,
    },
    media::MediaService,
    outbound,
    publishing::Publisher,
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
    // One line for whoever started us, also when the port was left to the system.
    let address = listener.local_addr().map_err(|error| Failure::failed(error.to_string()))?;
    super::print_line(&json!({ "url": format!("http://{address}") }).to_string());
    let db = db::pool(&config.database, "multivio api")?;
    let relay_db = db::engine_pool(&config.database, "multivio api relay", 2)?;
    let belt = Belt::new(&config.redis.url, db.clone()).map_err(|error| Failure::usage(telemetry::chain(&error)))?;
    let limiter = RateLimiter::new(&config.api, Some(Shared::new(belt.clone())));
    let engine = Engine::new(db.clone(), belt);
    let health = Health::new(db.clone(), probes(&engine));
    let transformer = Transformer::new(&config.ai).map_err(|error| Failure::failed(telemetry::chain(&error)))?;
    let figures = Arc::new(QueueFigures::new(engine.clone()));
    let app =
        App::new(config, db.clone(), engine.clone(), stop.clone()).map_err(|weak| Failure::usage(weak.to_string()))?;
    let media = MediaService::new(&app.config, db).map_err(|error| Failure::failed(telemetry::chain(&error)))?;
    let media = Arc::new(media);
    let client = outbound::client().map_err(|error| Failure::usage(telemetry::chain(&error)))?;
    let publisher = Publisher::new(&app.config, &client, Arc::clone(&media) as _);
    let publisher = publisher.map_err(|error| Failure::usage(error.to_string()))?;
    let routes = router::routes(Services {
        app: Arc::new(app),
        limiter: Arc::new(limiter),
        health: Arc::new(health),
        figures: vec![figures],
        publisher,
        models: Arc::new(ModelLists::new(Arc::new(transformer))),
        media,
    });
    let relay = tokio::spawn(relay::run(engine, relay_db, stop.clone()));
    let served = server::serve(listener, routes, stop.clone()).await;
    // However it ended, a relay must not go on leading without its process's server.
    stop.cancel();
    let _ended = tokio::time::timeout(Duration::from_secs(2), relay).await;
    served.map_err(|error| Failure::failed(format!("the server ended: {error}")))
}
