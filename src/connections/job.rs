//! Refreshes a connection's tokens before they end, so that nothing due has to wait for it.

use std::{sync::Mutex, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Accounts;
use crate::{
    ids::ConnectionId,
    jobs::{Job, JobContext, Lane, Queue, Stop},
    platforms::{Exchange, Witness},
};

/// One pair of tokens, once: the pair it brings is another job's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefreshToken {
    pub connection: ConnectionId,
    /// The pair to refresh. When the kept one is newer, there is nothing to do.
    pub generation: i32,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Refreshed {
    /// `false`: it was refreshed, or connected again, before.
    pub renewed: bool,
}

impl Job for RefreshToken {
    const KIND: &'static str = "refresh_token";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Tokens;
    const TIMEOUT: Duration = Duration::from_secs(60);

    type Output = Refreshed;

    async fn run(&self, cx: &JobContext) -> Result<Refreshed, Stop> {
        let accounts = cx.service::<Accounts>();
        let seen = Seen::default();
        let outcome = accounts.refresh(&cx.engine, self.connection, self.generation, &seen).await;
        for exchange in seen.take() {
            cx.note("platform_exchange", describe(&exchange)).await?;
        }
        match outcome {
            Ok(renewed) => Ok(Refreshed { renewed }),
            // Its owner connects it again, and that brings a job of its own.
            Err(super::TokenTrouble::Removed | super::TokenTrouble::Reconnect { .. }) => {
                Ok(Refreshed { renewed: false })
            }
            Err(trouble) => {
                let now = sqlx::query_scalar("select now()").fetch_one(cx.db()).await?;
                Err(trouble.into_stop(now))
            }
        }
    }
}

/// Collects what a connector did, for the timeline.
#[derive(Default)]
pub struct Seen(Mutex<Vec<Exchange>>);

impl Seen {
    pub fn take(&self) -> Vec<Exchange> {
        std::mem::take(&mut *self.0.lock().expect("nothing panics while it is held"))
    }
}

impl Witness for Seen {
    fn saw(&self, exchange: Exchange) {
        self.0.lock().expect("nothing panics while it is held").push(exchange);
    }
}

/// The allow-list of what a timeline says about an exchange (P11).
pub fn describe(exchange: &Exchange) -> serde_json::Value {
    json!({
        "what": exchange.what,
        "status": exchange.status,
        "duration_ms": exchange.duration_ms,
        "trace_id": exchange.trace_id,
        "remaining": exchange.window.map(|window| window.remaining),
    })
}
