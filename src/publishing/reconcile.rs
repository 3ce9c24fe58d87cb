//! Finding out what a creating request did whose answer never came.
//!
//! A look reads the account's recent posts from before the intent on. A post that is found is adopted. One that is
//! not found is absent only when the platform's list was read to its end, twice, the last time after everything that
//! was on its way must have arrived (P2). Everything else is unknown, and unknown is never sent again by itself.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{
    Halt, Phase, Publication, Publisher, files,
    intents::{self, Intent, Outcome, Verdict},
    job::Run,
    rivals, send,
    store::{self, Kept},
};
use crate::{
    connections::{self, TokenTrouble, accounts::RECONNECT_PATIENCE, job::Seen},
    ids::{JobId, PublicationId, TenantId},
    jobs::{
        Engine, EnqueueError, Job, JobContext, Lane, NewJob, OnParent, Queue, State, Stop, Ticket, Until, Why,
        job::Backoff, ledger,
    },
    platforms::{Account, Call, Class, Explanation, Platform, RemotePost, Search, Sighting, Timing, Turn},
};

/// How long the publish job itself goes on looking, past the instant of certainty, before it lets others go first.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How long the reconcile job goes on before it leaves the question to a person.
const RECONCILE_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
const UNCLEAR_PAUSE: Duration = Duration::from_secs(30);
const UNCLEAR_PAUSE_LATER: Duration = Duration::from_secs(15 * 60);
/// While its publish job is not over there is nothing to settle.
const PARENT_PAUSE: Duration = Duration::from_secs(60);

/// What a look means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Found(RemotePost),
    /// Nothing is there, and nothing can come any more.
    CertainlyAbsent,
    /// Nothing is there yet; look again then.
    NotYet(DateTime<Utc>),
    /// The platform lets nobody look before then, or has to be paid first: asking sooner only makes it worse.
    Later(DateTime<Utc>),
    Unknown,
    /// Only the account's owner can make looking possible.
    NeedsOwner(Explanation),
}

/// A look in the publish job, which holds its connection's order as long as it has reason to hope.
pub async fn look(run: &mut Run<'_>) -> Result<(), Halt> {
    let intents = intents::of(run.cx.db(), run.publication.id).await?;
    let Some(open) = open(&intents) else { return Err(unconfirmed(run.publication.platform)) };
    let due = due(open, open.looks, &run.connector.timing());
    if run.publication.now < due {
        return Err(Halt::snooze(Until::At(due), looking(run.publication.platform)));
    }
    match observe(run, &intents, open).await? {
        Finding::Found(remote) => send::created(run, open.attempt, &remote, Outcome::Adopted).await,
        Finding::CertainlyAbsent => {
            let absent = Verdict {
                attempt: open.attempt,
                outcome: Outcome::Absent,
                code: None,
                to: Phase::Uploaded,
                problem: None,
            };
            if !intents::settle(run.cx.db(), &run.publication, &absent).await? {
                return Err(Halt::Overtaken);
            }
            // Looks use no attempt; sending again does, so that it does not go on for ever.
            let text =
                format!("{} certainly does not have the post; it is sent again.", run.publication.platform.title());
            run.publication.phase = Phase::Uploaded;
            Err(Halt::retry(Some(Duration::ZERO), Explanation::new("absent", Turn::Us, text)))
        }
        Finding::NotYet(at) => Err(Halt::snooze(Until::At(at), looking(run.publication.platform))),
        Finding::Unknown if run.publication.now < open.certain_after + PUBLISH_PATIENCE && !is_doubted(open) => {
            Err(Halt::snooze(Until::After(UNCLEAR_PAUSE), looking(run.publication.platform)))
        }
        Finding::Later(at) if at < open.certain_after + PUBLISH_PATIENCE => {
            Err(Halt::snooze(Until::At(at), looking(run.publication.platform)))
        }
        Finding::Unknown | Finding::Later(_) | Finding::NeedsOwner(_) => Err(unconfirmed(run.publication.platform)),
    }
}

/// Enqueues the job that settles the publication when its publish job has ended: never more than one at a time, and
/// nobody may cancel it.
pub async fn enqueue(
    tx: &mut PgConnection,
    engine: &Engine,
    tenant: TenantId,
    publication: PublicationId,
    publish: JobId,
) -> Result<Vec<Ticket>, EnqueueError> {
    let job = NewJob::of(&Reconcile { publication }, tenant)
        .after(publish, OnParent::Run)
        .unique(publication.uuid().to_string());
    let id = job.id;
    match engine.enqueue_in(tx, &[job]).await {
        Ok(tickets) => {
            ledger::commit_unstarted(tx, id).await?;
            Ok(tickets)
        }
        Err(EnqueueError::Duplicate { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Settles what a publish job left behind, however it ended. Its child, so it runs in every case (P3).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reconcile {
    pub publication: PublicationId,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Settled {
    pub phase: Phase,
}

impl Job for Reconcile {
    const KIND: &'static str = "reconcile";
    const QUEUE: Queue = Queue::Publish;
    /// Slots of its own: looks never delay posts.
    const LANE: Lane = Lane::Upkeep;
    const MAX_ATTEMPTS: u16 = 20;
    const TIMEOUT: Duration = Duration::from_secs(120);
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(10 * 60) };

    type Output = Settled;

    async fn run(&self, cx: &JobContext) -> Result<Settled, Stop> {
        let Some(found) = store::reload(cx.db(), self.publication).await? else {
            return Ok(Settled { phase: Phase::Cancelled });
        };
        if found.phase.is_settled() {
            return settled(cx, &found, found.phase).await;
        }
        let parent = cx.engine.job(None, found.job).await?;
        if parent.as_ref().is_some_and(|job| !job.state.is_final()) {
            return Err(Stop::snooze(PARENT_PAUSE, "publish_job_open", "its publish job is not over"));
        }
        let cancelled = parent.as_ref().is_some_and(|job| job.state == State::Cancelled);
        let why = parent.and_then(|job| job.why);
        let publisher = cx.service::<Publisher>();
        let Some(connector) = publisher.accounts.connectors().get(found.platform) else {
            return Err(Stop::snooze(PARENT_PAUSE, "no_connector", "this version does not know the platform"));
        };
        let Some(publication) = store::take(cx.db(), self.publication, cx.job, cx.run, None).await? else {
            return Err(Stop::snooze(UNCLEAR_PAUSE, "overtaken", "another worker has this job"));
        };
        let mut run = Run { cx, publisher, connector, publication, seen: Seen::default(), renewed: false };
        let outcome = settle(&mut run, cancelled, why).await;
        run.note_exchanges().await;
        match outcome {
            Ok(phase) => settled(cx, &run.publication, phase).await,
            Err(Halt::Plain(stop)) => Err(stop),
            Err(Halt::Overtaken) => Err(Stop::snooze(UNCLEAR_PAUSE, "overtaken", "the publication was taken up again")),
            Err(Halt::Told { problem, stop, .. }) => {
                store::explain(cx.db(), &run.publication, &problem).await?;
                Err(stop)
            }
        }
    }
}

/// Nothing more happens by itself: the files are let go.
async fn settled(cx: &JobContext, publication: &Publication, phase: Phase) -> Result<Settled, Stop> {
    let mut tx = cx.db().begin().await?;
    if phase == Phase::Sent {
        // Left open when its worker died right after the post was saved.
        intents::close_all(&mut tx, publication.id, Outcome::Created).await?;
    }
    files::release(&mut tx, publication.id).await?;
    ledger::uncommit(&mut tx, publication.job).await?;
    tx.commit().await?;
    Ok(Settled { phase })
}

async fn settle(run: &mut Run<'_>, cancelled: bool, why: Option<Why>) -> Result<Phase, Halt> {
    let platform = run.publication.platform;
    match run.publication.phase {
        settled @ (Phase::Sent | Phase::Failed | Phase::Cancelled) => Ok(settled),
        // Certainly not created: the job's end is the publication's.
        Phase::Planned | Phase::Prepared | Phase::Uploaded | Phase::NeedsReconnect => {
            let to = if cancelled { Phase::Cancelled } else { Phase::Failed };
            let problem = why.map(|why| Explanation::new(&why.code, Turn::User, why.message));
            advance(run, to, run.publication.problem.clone().or(problem)).await
        }
        Phase::Sending => {
            advance(run, Phase::Unconfirmed, Some(unconfirmed_words(platform))).await?;
            resolve(run, cancelled).await
        }
        Phase::Unconfirmed => resolve(run, cancelled).await,
    }
}

async fn resolve(run: &mut Run<'_>, cancelled: bool) -> Result<Phase, Halt> {
    let platform = run.publication.platform;
    let intents = intents::of(run.cx.db(), run.publication.id).await?;
    // Without an open intent there is nothing to look for; a person decides.
    let Some(open) = open(&intents) else { return Ok(Phase::Unconfirmed) };
    let due = due(open, open.looks, &run.connector.timing());
    if run.publication.now < due {
        return Err(Halt::snooze(Until::At(due), unconfirmed_words(platform)));
    }
    match observe(run, &intents, open).await? {
        Finding::Found(remote) => match run.save_sent(&remote, false).await? {
            Kept::Kept => {
                intents::close(run.cx.db(), run.publication.id, open.attempt, Outcome::Adopted).await?;
                Ok(Phase::Sent)
            }
            Kept::Taken => Ok(Phase::Unconfirmed),
            Kept::Overtaken => Err(Halt::Overtaken),
        },
        Finding::CertainlyAbsent => {
            let to = if cancelled { Phase::Cancelled } else { Phase::Failed };
            let text = format!(
                "{} certainly does not have the post. Publish it again if you still want it.",
                platform.title()
            );
            let problem = Explanation::new("not_published", Turn::User, text);
            let (attempt, outcome) = (open.attempt, Outcome::Absent);
            let absent = Verdict { attempt, outcome, code: None, to, problem: Some(&problem) };
            if !intents::settle(run.cx.db(), &run.publication, &absent).await? {
                return Err(Halt::Overtaken);
            }
            Ok(to)
        }
        Finding::NotYet(at) => Err(Halt::snooze(Until::At(at), unconfirmed_words(platform))),
        Finding::Later(at) if at < open.intended_at + RECONCILE_PATIENCE => {
            Err(Halt::snooze(Until::At(at), unconfirmed_words(platform)))
        }
        Finding::Unknown if run.publication.now < open.intended_at + RECONCILE_PATIENCE => {
            let early = run.publication.now < open.intended_at + Duration::from_secs(3600);
            let pause = if early { UNCLEAR_PAUSE } else { UNCLEAR_PAUSE_LATER };
            Err(Halt::snooze(Until::After(pause), unconfirmed_words(platform)))
        }
        Finding::NeedsOwner(problem) if run.publication.now < open.intended_at + RECONNECT_PATIENCE => {
            let wake = connections::wake_key(run.publication.connection);
            let deadline = open.intended_at + RECONNECT_PATIENCE;
            let why = super::halt::why(&problem);
            Err(Halt::Told { to: None, problem: Box::new(problem), stop: Stop::Reconnect { wake, deadline, why } })
        }
        // Left to a person, with a link to look.
        Finding::Unknown | Finding::Later(_) | Finding::NeedsOwner(_) => {
            intents::close(run.cx.db(), run.publication.id, open.attempt, Outcome::Unknown).await?;
            Ok(Phase::Unconfirmed)
        }
    }
}

async fn advance(run: &mut Run<'_>, to: Phase, problem: Option<Explanation>) -> Result<Phase, Halt> {
    if !store::advance(run.cx.db(), &run.publication, to, problem.as_ref()).await? {
        return Err(Halt::Overtaken);
    }
    run.publication.phase = to;
    Ok(to)
}

/// One look at the platform, counted if it read the whole list.
async fn observe(run: &mut Run<'_>, intents: &[Intent], open: &Intent) -> Result<Finding, Halt> {
    let mut account = match account(run).await? {
        Ok(account) => account,
        Err(finding) => return Ok(finding),
    };
    let (Some(draft), Some(fingerprint)) = (run.publication.content.clone(), run.publication.fingerprint.clone())
    else {
        return Ok(Finding::Unknown);
    };
    let taken = rivals::taken_by_others(run.cx.db(), &run.publication).await?;
    let files = files::of(run.cx.db(), run.publication.id).await?;
    let media: Vec<String> = files.into_iter().filter_map(|file| file.remote_id).collect();
    let search = Search {
        draft: &draft,
        fingerprint: &fingerprint,
        baseline: baseline(intents, open),
        handle: open.native_handle.as_deref(),
        taken: &taken,
        media: &media,
    };
    // The server's time before the look: what appears during it counts as not seen.
    let began: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(run.cx.db()).await?;
    let mut seen = run.connector.find(&Call { account: &account, witness: &run.seen }, &search).await;
    if seen.as_ref().is_err_and(|error| error.class() == Class::Refresh) && !run.renewed {
        run.renewed = true;
        match run.publisher.accounts.renew(&run.cx.engine, &account, &run.seen).await {
            Ok(renewed) => account = renewed,
            Err(trouble) => return no_token(trouble),
        }
        seen = run.connector.find(&Call { account: &account, witness: &run.seen }, &search).await;
    }
    match seen {
        Ok(sighting) => {
            let counted = !matches!(sighting, Sighting::Unclear { .. });
            if counted {
                intents::looked(run.cx.db(), &run.publication, open.attempt).await?;
            }
            let note = serde_json::json!({ "saw": name(&sighting), "attempt": open.attempt });
            run.cx.note("looked_for_post", note).await?;
            Ok(judge(open, sighting, began, &run.connector.timing()))
        }
        Err(error) => {
            tracing::debug!(publication = %run.publication.id, error = crate::telemetry::chain(&error), "a look failed");
            let explanation = error.explain();
            match error.class() {
                Class::Refresh | Class::Reconnect => {
                    run.publisher.accounts.give_up(&run.cx.engine, &account, &explanation).await?;
                    Ok(Finding::NeedsOwner(explanation))
                }
                Class::Snooze { until } => Ok(Finding::Later(until.unwrap_or(began + send::UNSAID_PAUSE))),
                Class::Config => Ok(Finding::Later(began + send::CONFIG_PAUSE)),
                // A list that fails says nothing.
                Class::Retry { .. }
                | Class::RetryOnce { .. }
                | Class::Restage
                | Class::Duplicate { .. }
                | Class::Permanent
                | Class::Uncertain => Ok(Finding::Unknown),
            }
        }
    }
}

async fn account(run: &Run<'_>) -> Result<Result<Account, Finding>, Halt> {
    match run.publisher.accounts.open(&run.cx.engine, run.publication.connection, &run.seen).await {
        Ok(account) => Ok(Ok(account)),
        Err(trouble) => Ok(Err(no_token(trouble)?)),
    }
}

fn no_token(trouble: TokenTrouble) -> Result<Finding, Halt> {
    match trouble {
        TokenTrouble::Reconnect { explanation, .. } => Ok(Finding::NeedsOwner(explanation)),
        TokenTrouble::Removed | TokenTrouble::Later { .. } | TokenTrouble::NoConnector(_) | TokenTrouble::Sealed(_) => {
            Ok(Finding::Unknown)
        }
        TokenTrouble::Database(error) => Err(error.into()),
    }
}

/// Pure: every rule of P2.
fn judge(open: &Intent, sighting: Sighting, began: DateTime<Utc>, timing: &Timing) -> Finding {
    match sighting {
        Sighting::Found(remote) => Finding::Found(remote),
        Sighting::Unclear { .. } => Finding::Unknown,
        Sighting::Absent => {
            let looks = open.looks + 1;
            let certain = looks >= 2 && began >= open.certain_after;
            if !certain {
                return Finding::NotYet(due(open, looks, timing).max(began + Duration::from_secs(1)));
            }
            // The platform itself said that the post exists: its absence is not believed.
            if is_doubted(open) { Finding::Unknown } else { Finding::CertainlyAbsent }
        }
    }
}

fn due(open: &Intent, looks: i16, timing: &Timing) -> DateTime<Utc> {
    let look = usize::try_from(looks).unwrap_or(0);
    let last = timing.looks.len();
    if look >= last { open.certain_after } else { open.intended_at + timing.look_after(look) }
}

fn open(intents: &[Intent]) -> Option<&Intent> {
    intents.iter().rev().find(|intent| intent.outcome == Outcome::Open)
}

fn is_doubted(intent: &Intent) -> bool {
    intent.code.as_deref() == Some(send::DUPLICATE)
}

/// From before the first attempt whose outcome was ever in doubt: a post that shows very late is still ours. Attempts
/// with other content, before an edit and a second chance, made other posts.
fn baseline<'a>(intents: &'a [Intent], open: &'a Intent) -> &'a str {
    let doubtful = |intent: &&Intent| {
        intent.fingerprint == open.fingerprint
            && matches!(intent.outcome, Outcome::Open | Outcome::Absent | Outcome::Unknown)
    };
    intents.iter().find(doubtful).map_or(&open.baseline, |intent| &intent.baseline)
}

fn name(sighting: &Sighting) -> &'static str {
    match sighting {
        Sighting::Found(_) => "found",
        Sighting::Absent => "absent",
        Sighting::Unclear { why } => why,
    }
}

fn looking(platform: Platform) -> Explanation {
    let text = format!("The answer of {} was lost; we look whether the post is there.", platform.title());
    Explanation::new("looking", Turn::Us, text)
}

fn unconfirmed(platform: Platform) -> Halt {
    Halt::unconfirmed(unconfirmed_words(platform))
}

fn unconfirmed_words(platform: Platform) -> Explanation {
    let text = format!(
        "Whether the post is on {} could not be found out yet. We go on looking and do not send it again by ourselves.",
        platform.title()
    );
    Explanation::new("unconfirmed", Turn::User, text)
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
