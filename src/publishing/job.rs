//! The path of a publication, one phase after the other, each committed before the next step.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    Halt, Phase, Publication, Publisher,
    halt::why,
    prepare, reconcile, rivals, send, stage,
    store::{self, Kept},
};
use crate::{
    connections::job::{Seen, describe},
    ids::{ConnectionId, PublicationId, TenantId},
    jobs::{Backoff, EnqueueError, Job, JobContext, NewJob, Queue, Stop, Why},
    platforms::{Connector, Exchange, Explanation, Platform, RemotePost, Turn},
    posts,
};

/// Brings one publication to its platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publish {
    pub publication: PublicationId,
}

/// What a publication came to.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Published {
    pub publication: PublicationId,
    pub platform: Platform,
    pub remote_id: String,
    pub permalink: String,
}

impl Job for Publish {
    const KIND: &'static str = "publish";
    const QUEUE: Queue = Queue::Publish;
    const MAX_ATTEMPTS: u16 = 8;
    /// An upload of gigabytes; what creates a post has a deadline of its own.
    const TIMEOUT: Duration = Duration::from_secs(30 * 60);
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(2), cap: Duration::from_secs(10 * 60) };

    type Output = Published;

    async fn run(&self, cx: &JobContext) -> Result<Published, Stop> {
        let publisher = cx.service::<Publisher>();
        let Some(publication) = store::take(cx.db(), self.publication, cx.job, cx.run, Some(cx.retries)).await? else {
            return Err(match store::reload(cx.db(), self.publication).await? {
                Some(_) => overtaken(),
                None => publication_gone(),
            });
        };
        let Some(connector) = publisher.accounts.connectors().get(publication.platform) else {
            let text = format!("this version cannot publish on {}", publication.platform.title());
            return Err(Stop::failed("no_connector", text));
        };
        let mut run = Run { cx, publisher, connector, publication, seen: Seen::default(), renewed: false };
        let outcome = run.finish().await;
        run.note_exchanges().await;
        outcome
    }
}

impl Publish {
    /// Serial for each connection, so that posts appear in the order in which they were due.
    pub fn job(&self, tenant: TenantId, connection: ConnectionId, patience: Duration) -> NewJob {
        NewJob::of(self, tenant).serial(connection.to_string()).serial_patience(patience)
    }
}

/// One run of one publication.
pub struct Run<'a> {
    pub cx: &'a JobContext,
    pub publisher: Arc<Publisher>,
    pub connector: Arc<dyn Connector>,
    pub publication: Publication,
    pub seen: Seen,
    /// The token was renewed in this run: a second refusal is not the token's age.
    pub renewed: bool,
}

/// More turns than any path through the phases has: a loop is a fault, not a way.
const TURNS: usize = 40;

impl Run<'_> {
    async fn finish(&mut self) -> Result<Published, Stop> {
        for _ in 0..TURNS {
            let step = match self.publication.phase {
                Phase::Planned => prepare::prepare(self).await,
                Phase::Prepared => stage::stage(self).await,
                Phase::Uploaded => send::send(self).await,
                Phase::Sending => reconcile::look(self).await,
                Phase::NeedsReconnect => self.resume().await,
                Phase::Failed => self.reopen().await,
                Phase::Sent => return self.published(),
                Phase::Unconfirmed => return Err(self.unconfirmed()),
                Phase::Cancelled => return Err(Stop::Cancelled),
            };
            match step {
                Ok(()) | Err(Halt::Overtaken) => self.reload().await?,
                Err(Halt::Plain(stop)) => return Err(stop),
                Err(Halt::Told { to, problem, stop }) => {
                    let told = match to {
                        Some(to) => store::advance(self.cx.db(), &self.publication, to, Some(&*problem)).await?,
                        None => {
                            store::explain(self.cx.db(), &self.publication, &problem).await?;
                            true
                        }
                    };
                    if told {
                        return Err(stop);
                    }
                    self.reload().await?;
                }
            }
        }
        Err(Stop::failed("no_end", "the publication went round in circles"))
    }

    /// Reads the phase again. Another run has the publication: this one is over.
    async fn reload(&mut self) -> Result<(), Stop> {
        let now = store::reload(self.cx.db(), self.publication.id).await?;
        let Some(now) = now else { return Err(publication_gone()) };
        // What is sent is sent, whoever found out.
        if now.fence != self.publication.fence && now.phase != Phase::Sent {
            return Err(overtaken());
        }
        self.publication = now;
        Ok(())
    }

    fn published(&self) -> Result<Published, Stop> {
        let remote = self.publication.remote.clone().expect("what is sent has a remote post, by a constraint");
        Ok(Published {
            publication: self.publication.id,
            platform: self.publication.platform,
            remote_id: remote.id,
            permalink: remote.permalink,
        })
    }

    fn unconfirmed(&self) -> Stop {
        let text = "whether the post exists is not known yet; it is looked for and never sent again by itself";
        Stop::failed("unconfirmed", text)
    }

    /// The owner has connected the account again, or the wait is over.
    async fn resume(&mut self) -> Result<(), Halt> {
        match self.publisher.accounts.open(&self.cx.engine, self.publication.connection, &self.seen).await {
            Ok(_) => {
                let to = if self.publication.content.is_some() { Phase::Prepared } else { Phase::Planned };
                store::advance(self.cx.db(), &self.publication, to, None).await?;
                Ok(())
            }
            Err(trouble) => Err(send::without_token(&self.publication, trouble)),
        }
    }

    /// Somebody asked to run the failed job again: that is the second chance of its publication. It needs another
    /// job to settle it, because the first one's has run. A run that nobody asked for, after a crash, finds that it
    /// had failed and says so.
    async fn reopen(&mut self) -> Result<(), Halt> {
        let publication = &self.publication;
        if self.cx.retries <= publication.retries_seen {
            let why = publication.problem.as_ref().map_or_else(|| Why::new("failed", "it had failed before"), why);
            return Err(Halt::Plain(Stop::Failed { why }));
        }
        let mut tx = self.cx.db().begin().await?;
        posts::store::lock(&mut tx, publication.tenant, publication.post).await?;
        if let Some(rival) =
            rivals::of_post(&mut tx, publication.post, publication.connection, Some(publication.id)).await?
        {
            let text = format!("another publication of the post, {}, is {}", rival.id, rival.phase);
            return Err(Halt::Plain(Stop::failed("superseded", text)));
        }
        if !store::reopen(&mut *tx, publication, self.cx.retries).await? {
            return Err(Halt::Overtaken);
        }
        let tickets = reconcile::enqueue(&mut tx, &self.cx.engine, publication.tenant, publication.id, self.cx.job);
        let tickets = tickets.await.map_err(enqueue_stop)?;
        tx.commit().await?;
        self.cx.engine.ring(&tickets).await;
        Ok(())
    }

    /// Sent: saved the moment it is known, and tried hard, because a lost id costs a look (P10). `answered`: by the
    /// answer to the creating request itself.
    pub async fn save_sent(&self, remote: &RemotePost, answered: bool) -> Result<Kept, Halt> {
        let mut pause = Duration::from_millis(50);
        for _ in 0..SAVES {
            match store::sent(self.cx.db(), &self.publication, remote, answered).await {
                Ok(kept) => return Ok(kept),
                Err(error) => {
                    tracing::warn!(publication = %self.publication.id, %error, "a remote id could not be kept yet");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        // The intent is on record: the next run finds the post by looking.
        Err(Halt::Plain(Stop::snooze(OVERTAKEN_PAUSE, "database_away", "the remote id could not be kept")))
    }

    /// For the timeline and the budgets; what cannot be noted never changes what the run came to.
    pub async fn note_exchanges(&self) {
        for exchange in self.seen.take() {
            if let Err(error) = self.note_exchange(exchange).await {
                tracing::warn!(publication = %self.publication.id, %error, "an exchange could not be noted");
            }
        }
    }

    async fn note_exchange(&self, exchange: Exchange) -> sqlx::Result<()> {
        if let Some(window) = exchange.window.filter(|_| exchange.what == "create") {
            let budgets = self.connector.budgets();
            super::budget::observe(self.cx.db(), &self.publication, budgets, window).await?;
        }
        self.cx.note("platform_exchange", describe(&exchange)).await
    }

    /// For waits that are nobody's fault.
    pub fn waiting(&self, code: &str, message: impl Into<String>) -> Explanation {
        Explanation::new(code, Turn::Us, message)
    }
}

const OVERTAKEN_PAUSE: Duration = Duration::from_secs(5);
const SAVES: usize = 7;

fn publication_gone() -> Stop {
    Stop::failed("publication_gone", "the publication is not there any more")
}

fn overtaken() -> Stop {
    Stop::snooze(OVERTAKEN_PAUSE, "overtaken", "another worker has taken this publication up")
}

/// A job that could not be written.
pub fn enqueue_stop(error: EnqueueError) -> Stop {
    match error {
        EnqueueError::Ledger(error) => error.into(),
        EnqueueError::Stopping => Stop::snooze(Duration::from_secs(1), "stopping", "the worker is stopping"),
        EnqueueError::Duplicate { existing } => {
            Stop::snooze(Duration::from_secs(5), "under_way", format!("the same work is under way as {existing}"))
        }
        EnqueueError::Unstorable(why) => Stop::failed("unstorable", why),
        error @ EnqueueError::Nobodys => Stop::failed("nobodys", error.to_string()),
    }
}
