//! Removing a post from its platform, after it is out: what is left when it is too late to cancel (P4).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::PgExecutor;

use super::{Phase, Publisher, store};
use crate::{
    connections::job::{Seen, describe},
    ids::PublicationId,
    jobs::{Backoff, Job, JobContext, Queue, Stop, Until, Why},
    platforms::{Account, Call, Class, ConnectorError},
};

/// Removes the post of one publication. Safe to run twice: a post that is gone counts as removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemovePost {
    pub publication: PublicationId,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Removed {
    pub publication: PublicationId,
    pub remote_id: String,
}

impl Job for RemovePost {
    const KIND: &'static str = "remove_post";
    const QUEUE: Queue = Queue::Publish;
    const MAX_ATTEMPTS: u16 = 8;
    const TIMEOUT: Duration = Duration::from_secs(60);
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(10 * 60) };

    type Output = Removed;

    async fn run(&self, cx: &JobContext) -> Result<Removed, Stop> {
        let publisher = cx.service::<Publisher>();
        let found = store::reload(cx.db(), self.publication).await?;
        let Some(publication) = found.filter(|publication| publication.phase == Phase::Sent) else {
            return Err(Stop::failed("not_out", "the publication has no post on its platform"));
        };
        let remote = publication.remote.as_ref().expect("what is sent has a remote post, by a constraint");
        let Some(connector) = publisher.accounts.connectors().get(publication.platform) else {
            let text = format!("this version does not know {}", publication.platform.title());
            return Err(Stop::failed("no_connector", text));
        };
        if publication.remote_deleted_at.is_none() {
            let seen = Seen::default();
            let opened = publisher.accounts.open(&cx.engine, publication.connection, &seen).await;
            let mut account = opened.map_err(|trouble| trouble.into_stop(publication.now))?;
            let remove =
                async |account: &Account| connector.delete(&Call { account, witness: &seen }, &remote.id).await;
            let mut outcome = remove(&account).await;
            if outcome.as_ref().is_err_and(|error| error.class() == Class::Refresh) {
                let renewed = publisher.accounts.renew(&cx.engine, &account, &seen).await;
                account = renewed.map_err(|trouble| trouble.into_stop(publication.now))?;
                outcome = remove(&account).await;
            }
            for exchange in seen.take() {
                cx.note("platform_exchange", describe(&exchange)).await?;
            }
            outcome.map_err(|error| stop(&error))?;
            deleted(cx.db(), self.publication).await?;
        }
        Ok(Removed { publication: self.publication, remote_id: remote.id.clone() })
    }
}

/// It is not there any more; its id stays known, so that no look takes another post for it.
async fn deleted(db: impl PgExecutor<'_>, publication: PublicationId) -> sqlx::Result<()> {
    sqlx::query(
        "update publications set remote_deleted_at = coalesce(remote_deleted_at, now()), updated_at = now() \
         where id = $1 and phase = 'sent'",
    )
    .bind(publication)
    .execute(db)
    .await?;
    Ok(())
}

/// Removing can be repeated, so nothing about it is uncertain.
fn stop(error: &ConnectorError) -> Stop {
    let explanation = error.explain();
    let why = Why::new(explanation.code, explanation.message);
    match error.class() {
        Class::Retry { after } => Stop::Retry { after, why },
        Class::Uncertain | Class::Restage => Stop::Retry { after: None, why },
        Class::RetryOnce { after } => Stop::Retry { after: Some(after), why },
        Class::Snooze { until: Some(until) } => Stop::Snooze { until: Until::At(until), why },
        Class::Snooze { until: None } => Stop::Snooze { until: Until::After(super::send::UNSAID_PAUSE), why },
        Class::Config => Stop::Snooze { until: Until::After(super::send::CONFIG_PAUSE), why },
        Class::Refresh | Class::Reconnect | Class::Duplicate { .. } | Class::Permanent => Stop::Failed { why },
    }
}
