//! `uploaded` to `sending` and on: the intent is committed, then the one request that creates leaves.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::{
    Halt, Phase, Publication, budget,
    circuit::{self, Admission},
    files,
    halt::why,
    intents::{self, Intent, NewIntent, Outcome, Verdict},
    job::Run,
    prepare, rivals,
    store::{self, Kept},
};
use crate::{
    connections::{self, TokenTrouble, accounts::RECONNECT_PATIENCE},
    jobs::{Stop, Until, ledger},
    platforms::{Account, Call, Class, ConnectorError, Explanation, RemotePost, Staged, Turn},
};

/// Between committing the intent and sending. A process that was stopped longer must not send any more: the
/// certainty of those who look is counted from the intent.
const DEPARTURE: Duration = Duration::from_secs(2);
/// When a platform says "too often" and not until when.
pub const UNSAID_PAUSE: Duration = Duration::from_secs(5 * 60);
/// The app or its bill is at fault.
pub const CONFIG_PAUSE: Duration = Duration::from_secs(10 * 60);

pub async fn send(run: &mut Run<'_>) -> Result<(), Halt> {
    prepare::in_time(run)?;
    let Some(staged) = staged(run).await? else { return Ok(()) };
    let account = account(run).await?;
    admitted(run).await?;
    let attempt = run.publication.attempt + 1;
    budgeted(run, attempt).await?;
    // Armed before the intent: whoever is stopped from here on is dead before anyone may look and send again (P1).
    let guard = run.cx.arm_lease_guard()?;
    let departure = Instant::now();
    intend(run, &staged, attempt).await?;
    if departure.elapsed() > DEPARTURE {
        drop(guard);
        return not_sent(run, attempt).await;
    }
    run.cx.progress(0.8, "sending");
    let draft = run.publication.content.clone().expect("what is uploaded was prepared, by a constraint");
    let answer = {
        let call = Call { account: &account, witness: &run.seen };
        run.connector.create(&call, &draft, &staged).await
    };
    let outcome = match answer {
        Ok(remote) => created(run, attempt, &remote, Outcome::Created).await,
        Err(error) => refused(run, &account, attempt, error).await,
    };
    // Not before: the connection of a request that was given up closes a moment after it.
    drop(guard);
    outcome
}

/// The media as the platform knows it; `None` when some of it has to be uploaded again.
async fn staged(run: &Run<'_>) -> Result<Option<Vec<Staged>>, Halt> {
    let files = files::of(run.cx.db(), run.publication.id).await?;
    let mut staged = Vec::new();
    for file in files {
        match file.remote_id.filter(|_| !file.expired) {
            Some(remote_id) => staged.push(Staged { remote_id, kind: file.kind, lifetime: None }),
            None => {
                let mut tx = run.cx.db().begin().await?;
                store::restage(&mut tx, &run.publication).await?;
                tx.commit().await?;
                return Ok(None);
            }
        }
    }
    Ok(Some(staged))
}

async fn admitted(run: &Run<'_>) -> Result<(), Halt> {
    match circuit::admit(run.cx.db(), run.publication.platform).await? {
        Admission::Go => Ok(()),
        Admission::Hold { until, problem } => {
            let title = run.publication.platform.title();
            let problem = problem.unwrap_or_else(|| {
                Explanation::new("platform_held", Turn::Platform, format!("{title} has trouble; posts wait in order."))
            });
            Err(Halt::snooze(Until::At(until), problem))
        }
    }
}

async fn budgeted(run: &Run<'_>, attempt: i16) -> Result<(), Halt> {
    let mut tx = run.cx.db().begin().await?;
    let slot_at = budget::claim(&mut tx, &run.publication, run.connector.budgets(), attempt).await?;
    let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await?;
    tx.commit().await?;
    if slot_at <= now {
        return Ok(());
    }
    let title = run.publication.platform.title();
    let text = format!("The account's limit at {title} is used up for now; the post has its turn at {slot_at}.");
    Err(Halt::snooze(Until::At(slot_at), Explanation::new("budget", Turn::Us, text)))
}

async fn intend(run: &mut Run<'_>, staged: &[Staged], attempt: i16) -> Result<(), Halt> {
    let handle = run.connector.native_handle(staged);
    let newest = rivals::newest_taken(run.cx.db(), &run.publication).await?;
    let mut tx = run.cx.db().begin().await?;
    let intended_at: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await?;
    let baseline = run.connector.baseline(intended_at, newest.as_deref());
    let new = NewIntent {
        baseline: &baseline,
        native_handle: handle.as_deref(),
        intended_at,
        certain_after: DEPARTURE + run.connector.timing().certain_after(),
    };
    let opened = intents::open(&mut tx, &run.publication, &new).await?;
    if opened != Some(attempt) {
        return Err(Halt::Overtaken);
    }
    // The second fence: a run that has lost its job, or is being cancelled, sends nothing.
    if !ledger::commit(&mut tx, run.cx.job, run.cx.run).await? {
        let text = "the job was given to another worker, or is being cancelled";
        return Err(Halt::Plain(Stop::snooze(Duration::from_secs(1), "lease_lost", text)));
    }
    budget::spend(&mut tx, &run.publication, attempt).await?;
    tx.commit().await?;
    run.publication.phase = Phase::Sending;
    run.publication.attempt = attempt;
    Ok(())
}

async fn not_sent(run: &Run<'_>, attempt: i16) -> Result<(), Halt> {
    settle(run, attempt, Outcome::NotSent, Some("too_slow")).await?;
    let text = "This worker was too slow between the intent and the request; nothing was sent.";
    Err(Halt::Plain(Stop::snooze(Duration::from_secs(1), "too_slow", text)))
}

/// The remote id is saved the instant it exists; the intent's own bookkeeping may follow later.
pub async fn created(run: &Run<'_>, attempt: i16, remote: &RemotePost, outcome: Outcome) -> Result<(), Halt> {
    match run.save_sent(remote, outcome == Outcome::Created).await? {
        Kept::Kept => {}
        Kept::Taken => {
            let text =
                format!("The post found on {} belongs to another publication.", run.publication.platform.title());
            return Err(Halt::unconfirmed(Explanation::new("remote_post_taken", Turn::User, text)));
        }
        Kept::Overtaken => return Err(Halt::Overtaken),
    }
    intents::close(run.cx.db(), run.publication.id, attempt, outcome).await?;
    circuit::passed(run.cx.db(), run.publication.platform).await?;
    run.cx.progress(1.0, "sent");
    Ok(())
}

/// The creating request did not bring a post, or not certainly.
async fn refused(run: &mut Run<'_>, account: &Account, attempt: i16, error: ConnectorError) -> Result<(), Halt> {
    let (class, explanation) = (error.class(), error.explain());
    let db = run.cx.db();
    let note = serde_json::json!({ "code": explanation.code, "attempt": attempt });
    run.cx.note("create_not_done", note).await?;
    if error.is_outage() {
        circuit::failed(db, run.publication.platform, &explanation).await?;
    } else if class != Class::Config {
        // Any definite answer shows that the platform is itself again.
        circuit::passed(db, run.publication.platform).await?;
    }
    // It may exist: the next turn looks for it.
    if error.leaves_doubt() {
        return Ok(());
    }
    let before = intents::of(db, run.publication.id).await?;
    let code = explanation.code.clone();
    let back = async |outcome| settle(run, attempt, outcome, Some(code.as_str())).await;
    match class {
        // An earlier attempt in doubt did create it: find it. Nobody in doubt: its user repeats himself.
        Class::Duplicate { .. } if was_in_doubt(&before, attempt) => {
            intents::doubt(db, &run.publication, attempt, DUPLICATE).await?;
            return Ok(());
        }
        Class::RetryOnce { .. } if before.iter().any(|intent| intent.code.as_ref() == Some(&code)) => {
            let outcome = Outcome::Refused;
            let refused =
                Verdict { attempt, outcome, code: Some(&code), to: Phase::Failed, problem: Some(&explanation) };
            if !intents::settle(db, &run.publication, &refused).await? {
                return Err(Halt::Overtaken);
            }
            return Err(Halt::Plain(Stop::Failed { why: why(&explanation) }));
        }
        Class::Restage if run.publication.restages == 0 => {
            back(Outcome::Refused).await?;
            run.publication.phase = Phase::Uploaded;
            let mut tx = run.cx.db().begin().await?;
            store::restage(&mut tx, &run.publication).await?;
            tx.commit().await?;
            return Ok(());
        }
        Class::Refresh if !run.renewed => {
            back(Outcome::Refused).await?;
            run.publication.phase = Phase::Uploaded;
            renew(run, account).await?;
            return Ok(());
        }
        Class::Retry { .. } if matches!(error, ConnectorError::Unreachable { .. }) => back(Outcome::NotSent).await?,
        Class::Uncertain
        | Class::Retry { .. }
        | Class::RetryOnce { .. }
        | Class::Snooze { .. }
        | Class::Refresh
        | Class::Restage
        | Class::Reconnect
        | Class::Duplicate { .. }
        | Class::Permanent
        | Class::Config => back(Outcome::Refused).await?,
    }
    run.publication.phase = Phase::Uploaded;
    Err(halted(run, account, &error).await?)
}

/// The code of an intent whose platform said that the post exists.
pub const DUPLICATE: &str = "duplicate";

/// Whether an earlier attempt to create the same content may have done it. One with other content made no duplicate.
fn was_in_doubt(intents: &[Intent], attempt: i16) -> bool {
    let Some(ours) = intents.iter().find(|intent| intent.attempt == attempt) else { return false };
    intents.iter().any(|intent| {
        intent.attempt < attempt
            && intent.fingerprint == ours.fingerprint
            && matches!(intent.outcome, Outcome::Absent | Outcome::Unknown)
    })
}

/// Certainly nothing was created: back to `uploaded`.
async fn settle(run: &Run<'_>, attempt: i16, outcome: Outcome, code: Option<&str>) -> Result<(), Halt> {
    let verdict = Verdict { attempt, outcome, code, to: Phase::Uploaded, problem: None };
    if intents::settle(run.cx.db(), &run.publication, &verdict).await? {
        return Ok(());
    }
    Err(Halt::Overtaken)
}

/// What an error means outside of the doubt about a creating request: when to come back, or whose turn it is.
pub async fn halted(run: &Run<'_>, account: &Account, error: &ConnectorError) -> Result<Halt, Halt> {
    tracing::debug!(publication = %run.publication.id, error = crate::telemetry::chain(error), "halted");
    let explanation = error.explain();
    Ok(match error.class() {
        // Only a creating request can be uncertain, and it was dealt with before.
        Class::Uncertain | Class::Retry { after: None } => Halt::retry(None, explanation),
        Class::Retry { after } => Halt::retry(after, explanation),
        Class::RetryOnce { after } => Halt::retry(Some(after), explanation),
        Class::Snooze { until: Some(until) } => Halt::snooze(Until::At(until + spread()), explanation),
        Class::Snooze { until: None } => Halt::snooze(Until::After(UNSAID_PAUSE + jitter()), explanation),
        Class::Refresh | Class::Reconnect => {
            run.publisher.accounts.give_up(&run.cx.engine, account, &explanation).await?;
            reconnect(&run.publication, explanation)
        }
        Class::Restage => Halt::retry(None, explanation),
        Class::Duplicate { .. } | Class::Permanent => Halt::failed(explanation),
        Class::Config => {
            circuit::hold(run.cx.db(), run.publication.platform, CONFIG_PAUSE, &explanation).await?;
            Halt::snooze(Until::After(CONFIG_PAUSE + jitter()), explanation)
        }
    })
}

/// A crowd that waits for the same reset comes spread over a few seconds.
fn jitter() -> Duration {
    Duration::from_millis(rand::random_range(0..5_000))
}

fn spread() -> chrono::Duration {
    chrono::Duration::milliseconds(rand::random_range(200..5_000))
}

/// The account with a token that works, or the reason why there is none.
pub async fn account(run: &Run<'_>) -> Result<Account, Halt> {
    let opened = run.publisher.accounts.open(&run.cx.engine, run.publication.connection, &run.seen).await;
    opened.map_err(|trouble| without_token(&run.publication, trouble))
}

/// Another token, once in a run, after the platform refused this one.
pub async fn renew(run: &mut Run<'_>, refused: &Account) -> Result<Account, Halt> {
    run.renewed = true;
    let renewed = run.publisher.accounts.renew(&run.cx.engine, refused, &run.seen).await;
    run.cx.note("token_renewed", serde_json::json!({ "ok": renewed.is_ok() })).await?;
    renewed.map_err(|trouble| without_token(&run.publication, trouble))
}

pub fn without_token(publication: &Publication, trouble: TokenTrouble) -> Halt {
    match trouble {
        TokenTrouble::Reconnect { explanation, .. } => reconnect(publication, explanation),
        TokenTrouble::Later { after, explanation } => Halt::snooze(Until::After(after), explanation),
        TokenTrouble::Removed => Halt::failed(Explanation::new(
            "connection_removed",
            Turn::User,
            "The account was disconnected before the post went out.",
        )),
        trouble @ (TokenTrouble::NoConnector(_) | TokenTrouble::Sealed(_) | TokenTrouble::Database(_)) => {
            Halt::Plain(trouble.into_stop(publication.now))
        }
    }
}

/// Parked until the owner has connected the account again; the wait ends some day.
fn reconnect(publication: &Publication, explanation: Explanation) -> Halt {
    let deadline = publication.due_at.max(publication.created_at) + RECONNECT_PATIENCE;
    if publication.now > deadline {
        return Halt::failed(explanation);
    }
    let wake = connections::wake_key(publication.connection);
    let stop = Stop::Reconnect { wake, deadline, why: why(&explanation) };
    let to = (publication.phase != Phase::NeedsReconnect).then_some(Phase::NeedsReconnect);
    Halt::Told { to, problem: Box::new(explanation), stop }
}
