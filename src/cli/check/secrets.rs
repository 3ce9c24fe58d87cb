//! Whether what the database keeps encrypted can be read with the keys that are configured.

use std::time::Duration;

use super::Line;
use crate::{
    config::{Config, DatabaseConfig},
    crypto::{Keyring, Standing},
    db::Session,
    rotation::{self, Count},
    telemetry::chain,
};

/// Counting reads whole tables.
const PATIENCE: Duration = Duration::from_secs(60);
const NAME: &str = "stored secrets";

/// `None` without a keyring: that problem has a line already.
pub async fn look(config: &Config) -> Option<Line> {
    let keyring = Keyring::new(&config.encryption_keys).ok()?;
    Some(match tokio::time::timeout(PATIENCE, survey(&config.database, &keyring)).await {
        Ok(Ok(counts)) => standing(&counts),
        Ok(Err(error)) => Line::problem(NAME, chain(&error), "See the database's own log"),
        Err(_elapsed) => Line::warning(
            NAME,
            format!("could not be counted within {} s", PATIENCE.as_secs()),
            "Run `multivio keys rotate --check`, which takes its time",
        ),
    })
}

async fn survey(config: &DatabaseConfig, keyring: &Keyring) -> sqlx::Result<Vec<Count>> {
    let limit = PATIENCE.as_millis().to_string();
    let session = Session::worker(config, "multivio check")?.set("statement_timeout", &limit);
    let db = session.pool(config.acquire_timeout, 1);
    let counts = rotation::survey(&db, keyring).await;
    db.close().await;
    counts
}

fn standing(counts: &[Count]) -> Line {
    let (lost, keys) = rotation::under(counts, Standing::Unreadable);
    let (old, _) = rotation::under(counts, Standing::Old);
    let (current, _) = rotation::under(counts, Standing::Current);
    if lost > 0 {
        return Line::problem(
            NAME,
            format!("{lost} are under keys that are not configured: {}", keys.join(", ")),
            "Set ENCRYPTION_KEY to the key that wrote them, or add that key to ENCRYPTION_KEYS_OLD; if it is lost, those \
             accounts have to be connected again",
        );
    }
    match (old, current) {
        (0, 0) => Line::ok(NAME, "none yet"),
        (0, current) => Line::ok(NAME, format!("{current}, all under ENCRYPTION_KEY")),
        (old, _) => Line::warning(
            NAME,
            format!("{old} are under keys in ENCRYPTION_KEYS_OLD"),
            "Run `multivio keys rotate`; keep the older keys till it is done",
        ),
    }
}
