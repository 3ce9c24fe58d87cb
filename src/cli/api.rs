//! `multivio api`: serves the HTTP API until it is told to stop. Starts in any order with its servers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;

use super::{Failure, Screen};
use crate::{
    ai::{Transformer, health::LanguageModels, models::ModelLists},
    api::{self, Services},
    config::{Config, Environment},
    db::{Session, TenantDb, pooler},
    http::{
        App,
        health::{Health, Probe},
        limits::{RateLimiter, Shared},
        server,
    },
    jobs::{
        Engine,
        belt::Belt,
        health::{QueueFigures, probes},
        relay,
    },
    media::{self, MediaService, storage},
    outbound::{self, fetch::Fetcher},
    patreon::Patreon,
    platforms::Platform,
    publishing::{Publisher, health::PlatformProbe},
    shutdown, telemetry,
};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Address to listen on [default: HOST and PORT]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// Sessions of this process that serve no call.
const OWN_SESSIONS: u32 = 3;

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
    let db = TenantDb::new(&config.database, "multivio api")?;
    // What is nobody's call: what follows from a change in the ledger, and looks at how everything is.
    let session = Session::worker(&config.database, "multivio api")?;
    let own_db = session.pool(config.database.acquire_timeout, OWN_SESSIONS);
    let relay_session = Session::engine(&config.database, "multivio api relay")?;
    let relay_db = relay_session.pool(config.database.acquire_timeout, 2);
    let belt = Belt::new(&config.redis, own_db.clone()).map_err(|error| Failure::usage(telemetry::chain(&error)))?;
    let limiter = RateLimiter::new(&config.api, Some(Shared::new(belt.clone())));
    let engine = Engine::for_callers(own_db.clone(), db.clone(), belt);
    let transformer = Transformer::new(&config.ai).map_err(|error| Failure::failed(telemetry::chain(&error)))?;
    let models = Arc::new(ModelLists::new(Arc::new(transformer)));
    let figures = Arc::new(QueueFigures::new(engine.clone()));
    let app = App::new(config, db.clone(), engine.clone(), stop.clone())
        .map_err(|error| Failure::usage(error.to_string()))?;
    let media = MediaService::for_callers(&app.config, db.clone())
        .map_err(|error| Failure::failed(telemetry::chain(&error)))?;
    let media = Arc::new(media);
    let client = outbound::client().map_err(|error| Failure::usage(telemetry::chain(&error)))?;
    let publisher = Publisher::new(&app.config, &client, Arc::clone(&media) as _);
    let publisher = publisher.map_err(|error| Failure::usage(error.to_string()))?;
    let fetcher = Fetcher::new(app.config.media.import_loopback_port);
    let fetcher = fetcher.map_err(|error| Failure::usage(telemetry::chain(&error)))?;
    let patreon = app.config.patreon.as_ref();
    let patreon = patreon.map(|config| Patreon::new(config, client, publisher.accounts.keyring().clone()));
    warn_of_unshared_media(&app.config);
    let mut parts = probes(&engine);
    parts.extend(media::health::probes(&media));
    parts.push(Box::new(LanguageModels { db: own_db.clone(), models: Arc::clone(&models) }));
    parts.push(x_probe(&app.config, &own_db));
    parts.extend(app.auth.probe());
    let health = Health::new(db, parts);
    let routes = api::routes(Services {
        app: Arc::new(app),
        limiter: Arc::new(limiter),
        health: Arc::new(health),
        figures: vec![figures],
        publisher,
        models,
        media,
        fetcher,
        patreon: Arc::new(patreon),
    });
    let stopping = stop.clone();
    let relay = tokio::spawn(async move {
        let sessions = pooler::watch(session, &stopping).await;
        match &sessions {
            Ok(()) => relay::run(engine, relay_session, relay_db, stopping).await,
            Err(_shared) => stopping.cancel(),
        }
        sessions
    });
    let served = server::serve(listener, routes, stop.clone()).await;
    // However it ended, a relay must not go on leading without its process's server.
    stop.cancel();
    if let Ok(Ok(Err(shared))) = tokio::time::timeout(Duration::from_secs(2), relay).await {
        return Err(Failure::failed(format!("the database: {shared}")));
    }
    served.map_err(|error| Failure::failed(format!("the server ended: {error}")))
}

/// What this process takes in, the workers have to find.
fn warn_of_unshared_media(config: &Config) {
    let folder = &config.storage.folder;
    if config.environment == Environment::Production && storage::is_on_own_disk(folder) {
        tracing::warn!(
            folder = %folder.display(),
            "STORAGE_FOLDER is on this machine's or container's own disk: unless everything runs here, posts with \
             media will fail until it is a folder that the API and all workers share"
        );
    }
}

fn x_probe(config: &Config, db: &sqlx::PgPool) -> Box<dyn Probe> {
    let is_set_up = config.x.client_id.is_some() && config.x.client_secret.is_some();
    let off = (!is_set_up).then_some("no client: set TWITTER_CLIENT_ID and TWITTER_CLIENT_SECRET");
    Box::new(PlatformProbe { db: db.clone(), platform: Platform::X, off })
}
