//! Group commit: jobs that are enqueued on their own at the same moment share one statement, one commit and one
//! push. While one batch commits the next gathers, so a lone job waits for nobody and a crowd pays for one.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::{Duration, Instant},
};

use sqlx::PgConnection;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{
    belt::{Belt, List},
    entry::{EnqueueError, enter_again, list_of, unique_order, unstorable},
    job::{NewJob, State},
    ledger::{self, Insert, Runnable},
};
use crate::{
    db::{self, OwnConnection, Session, Tenancy, TenantDb},
    ids::JobId,
    telemetry::chain,
};

/// Most rows in one statement.
pub const BATCH: usize = 512;
/// Batches at once, the second only while the first is late: a row of it may be locked, or the disk slow.
const AT_ONCE: usize = 3;
/// Fewer and larger batches cost less: the next one gathers for as long as this while one commits.
const LATE: Duration = Duration::from_millis(25);
/// Jobs that wait for a batch; more callers than this wait with theirs.
const WAITING: usize = 8 * BATCH;
/// A list longer than this is filled by the relay in fair turns, not by whoever comes (E18).
const SHORT: usize = 32;
/// How long a list's known length is good.
const LENGTH_KNOWN_FOR: Duration = Duration::from_millis(50);
/// Batches that leave jobs to the relay within this time call it once: it has enough to do with what it was called for.
const BETWEEN_RINGS: Duration = Duration::from_millis(20);

type Reply = oneshot::Sender<Result<JobId, EnqueueError>>;

/// By which way jobs enter the ledger.
#[derive(Debug, Clone)]
pub enum Way {
    /// A worker's or an operator's session, which writes for every tenant.
    All(Box<Session>),
    /// The API's: one owner function, with the tenant of each row from its caller.
    Callers(TenantDb),
}

/// A job that waits for its batch.
#[derive(Debug)]
struct Waiter {
    job: NewJob,
    /// Whose call it is, in the API.
    by: Option<Tenancy>,
    reply: Reply,
}

#[derive(Debug, Clone)]
pub struct Batcher {
    jobs: mpsc::Sender<Waiter>,
    lengths: Lengths,
}

impl Batcher {
    pub fn start(way: &Way, belt: Belt) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let lengths = Lengths { known: Arc::default(), belt: belt.clone() };
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        let bell = Bell { belt: belt.clone(), state: Arc::default() };
        for _ in 0..AT_ONCE {
            tokio::spawn(run(Arc::clone(&waiting), Door::new(way), belt.clone(), lengths.clone(), bell.clone()));
        }
        Self { jobs, lengths }
    }

    pub async fn enqueue(&self, job: NewJob, by: Option<Tenancy>) -> Result<JobId, EnqueueError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Waiter { job, by, reply }).await.map_err(|_| EnqueueError::Stopping)?;
        answer.await.map_err(|_| EnqueueError::Stopping)?
    }

    /// For each of these jobs, which enter together, whether whoever writes it pushes it too: while its list is
    /// short, counting those before it. The rest is left to the relay's fair turns (E18).
    pub async fn pushed_directly(&self, jobs: &[NewJob]) -> Vec<bool> {
        self.lengths.pushed_directly(jobs.iter()).await
    }

    /// What a push by somebody else has shown.
    pub fn learn(&self, pushed: &[Runnable], longest: usize) {
        self.lengths.learn(pushed, longest);
    }
}

type Waiting = Arc<tokio::sync::Mutex<mpsc::Receiver<Waiter>>>;

/// Writes batch after batch on its own connection, which Postgres then has everything ready for; the next loop takes
/// over while one is late.
async fn run(waiting: Waiting, door: Door, belt: Belt, lengths: Lengths, bell: Bell) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let mut turn = waiting.lock().await;
        let late = loop {
            if turn.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
            batch.sort_by(|a: &Waiter, b| unique_order(&a.job).cmp(&unique_order(&b.job)));
            let mut entering = Box::pin(enter_all(&batch, &door, &lengths));
            match tokio::time::timeout(LATE, &mut entering).await {
                Ok(answers) => {
                    drop(entering);
                    answer(&mut batch, answers, &belt, &lengths, &bell);
                }
                Err(_late) => break entering,
            }
        };
        drop(turn);
        let answers = late.await;
        answer(&mut batch, answers, &belt, &lengths, &bell);
    }
}

/// Tells each caller what became of his job, and the belt what is runnable.
fn answer(batch: &mut Vec<Waiter>, answers: Vec<(bool, Entered)>, belt: &Belt, lengths: &Lengths, bell: &Bell) {
    let mut runnable = Vec::new();
    let mut rings = false;
    for (Waiter { job, .. }, (pushed, answer)) in batch.iter().zip(&answers) {
        match answer {
            Ok((_, State::Queued)) if *pushed => runnable.push(Runnable { job: job.id, list: list_of(job) }),
            Ok((_, State::Queued)) => rings = true,
            Ok((_, State::Scheduled)) if job.run_at.is_none() => rings = true,
            Ok(_) | Err(_) => {}
        }
    }
    for (Waiter { reply, .. }, (_, answer)) in batch.drain(..).zip(answers) {
        // A caller that went away has its job all the same.
        let _gone = reply.send(answer.map(|(id, _)| id));
    }
    // What only saves time does not hold up the next batch.
    if !runnable.is_empty() {
        tokio::spawn(push(belt.clone(), lengths.clone(), runnable));
    }
    if rings {
        bell.ring();
    }
}

/// For each job: whether whoever wrote it pushes it, and what became of it.
async fn enter_all(batch: &[Waiter], door: &Door, lengths: &Lengths) -> Vec<(bool, Entered)> {
    let pushed = lengths.pushed_directly(batch.iter().map(|waiter| &waiter.job)).await;
    let rows = batch.iter().zip(&pushed);
    let (rows, by): (Vec<Insert<'_>>, Vec<Option<Tenancy>>) =
        rows.map(|(Waiter { job, by, .. }, &pushed)| (Insert { job, pushed, open_parents: 0 }, *by)).unzip();
    let entered = door.write(&rows, &by).await;
    pushed.into_iter().zip(entered).collect()
}

async fn push(belt: Belt, lengths: Lengths, runnable: Vec<Runnable>) {
    match belt.push(&runnable).await {
        Ok(longest) => lengths.learn(&runnable, longest),
        Err(error) => debug!(error = %chain(&error), "left to the relay"),
    }
}

/// Calls the relay, at once and then no more often than it is of use.
#[derive(Debug, Clone)]
struct Bell {
    belt: Belt,
    state: Arc<AtomicU8>,
}

/// Nobody has rung for a while.
const QUIET: u8 = 0;
/// It rang a moment ago.
const RUNG: u8 = 1;
/// It rang a moment ago, and has to once more.
const ASKED_AGAIN: u8 = 2;

impl Bell {
    fn ring(&self) {
        let after = |state| Some(if state == QUIET { RUNG } else { ASKED_AGAIN });
        if self.state.fetch_update(AcqRel, Acquire, after) != Ok(QUIET) {
            return;
        }
        let bell = self.clone();
        tokio::spawn(async move {
            loop {
                if let Err(error) = bell.belt.ring_relay().await {
                    debug!(error = %chain(&error), "the relay comes by itself");
                }
                tokio::time::sleep(BETWEEN_RINGS).await;
                if bell.state.compare_exchange(RUNG, QUIET, AcqRel, Acquire).is_ok() {
                    return;
                }
                // Before it is heard: what is committed from here on has to be looked for once more.
                bell.state.store(RUNG, Release);
            }
        });
    }
}

type Entered = Result<(JobId, State), EnqueueError>;

/// One loop's way into the ledger.
struct Door {
    own: OwnConnection,
    /// In the API: its own connection is nobody's, and may call the owner function alone.
    callers: Option<TenantDb>,
}

impl Door {
    fn new(way: &Way) -> Self {
        match way {
            Way::All(session) => Self { own: OwnConnection::new(Session::clone(session)), callers: None },
            Way::Callers(callers) => {
                // Planned once: a batch is like any other.
                let session = callers.session().clone().set("plan_cache_mode", "force_generic_plan").set("jit", "off");
                Self { own: OwnConnection::new(session), callers: Some(callers.clone()) }
            }
        }
    }

    /// Writes the rows, each with an answer of its own: a batch that Postgres refuses is cut in two until the one bad
    /// row stands alone (E9).
    async fn write(&self, rows: &[Insert<'_>], by: &[Option<Tenancy>]) -> Vec<Entered> {
        let attempt = async |connection: &mut PgConnection| {
            let entered = self.insert(connection, rows, by).await?;
            let entered: HashMap<JobId, State> = entered.into_iter().collect();
            let mut answers: Vec<Entered> = Vec::with_capacity(rows.len());
            for (row, by) in rows.iter().zip(by) {
                answers.push(match entered.get(&row.job.id) {
                    Some(state) => Ok((row.job.id, *state)),
                    None => match self.insert_again(connection, row, *by).await {
                        // Not of this row alone: the connection is of no use any more.
                        Err(EnqueueError::Ledger(error)) if self.callers.is_none() && db::is_away(&error) => {
                            return Err(error);
                        }
                        entered => entered.map(|state| (row.job.id, state)),
                    },
                });
            }
            Ok(answers)
        };
        let outcome = match self.prove().await {
            Ok(()) => self.own.run(attempt).await,
            Err(error) => Err(error),
        };
        match outcome.map_err(unstorable) {
            Ok(answers) => answers,
            Err(EnqueueError::Unstorable(_)) if rows.len() > 1 => {
                let half = rows.len() / 2;
                let mut answers = Box::pin(self.write(&rows[..half], &by[..half])).await;
                answers.extend(Box::pin(self.write(&rows[half..], &by[half..])).await);
                answers
            }
            Err(EnqueueError::Unstorable(text)) => vec![Err(EnqueueError::Unstorable(text))],
            Err(error) => {
                let text = chain(&error);
                let again = || EnqueueError::Ledger(sqlx::Error::Io(std::io::Error::other(text.clone())));
                rows.iter().map(|_| Err(again())).collect()
            }
        }
    }

    async fn prove(&self) -> sqlx::Result<()> {
        match &self.callers {
            Some(callers) => callers.prove().await,
            None => Ok(()),
        }
    }

    /// All rows in one statement; those whose unique key is taken are missing from the answer.
    async fn insert(
        &self,
        connection: &mut PgConnection,
        rows: &[Insert<'_>],
        by: &[Option<Tenancy>],
    ) -> sqlx::Result<Vec<(JobId, State)>> {
        if self.callers.is_none() {
            return ledger::insert(connection, rows).await;
        }
        let tenants: Vec<_> = by.iter().map(|by| by.map(Tenancy::tenant)).collect();
        ledger::insert_for(connection, rows, &tenants).await
    }

    /// One that met a taken key. Whose it is, is its tenant's to know: it is looked for with the caller's eyes.
    async fn insert_again(
        &self,
        connection: &mut PgConnection,
        row: &Insert<'_>,
        by: Option<Tenancy>,
    ) -> Result<State, EnqueueError> {
        match (&self.callers, by) {
            (None, _) => enter_again(connection, row).await,
            (Some(callers), Some(by)) => enter_again(&mut *callers.of(by).await?, row).await,
            (Some(_), None) => Err(EnqueueError::Nobodys),
        }
    }
}

/// What this process last heard of the lists' lengths.
#[derive(Debug, Clone)]
struct Lengths {
    known: Arc<Mutex<HashMap<List, (Instant, usize)>>>,
    belt: Belt,
}

impl Lengths {
    async fn pushed_directly<'a>(&self, jobs: impl Iterator<Item = &'a NewJob>) -> Vec<bool> {
        let mut places: HashMap<List, usize> = HashMap::new();
        let mut pushed = Vec::new();
        for job in jobs {
            let list = list_of(job);
            let left = match places.entry(list) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(if self.is_short(list).await { SHORT } else { 0 }),
            };
            pushed.push(*left > 0);
            *left = left.saturating_sub(1);
        }
        pushed
    }

    async fn is_short(&self, list: List) -> bool {
        let known = self.lock().get(&list).copied();
        match known {
            None => true,
            Some((_, length)) if length < SHORT => true,
            Some((at, _)) if at.elapsed() < LENGTH_KNOWN_FOR => false,
            Some(_) => {
                // Without Redis the relay is the one to push once it is back.
                let Ok(length) = self.belt.len(list).await else { return false };
                self.lock().insert(list, (Instant::now(), length));
                length < SHORT
            }
        }
    }

    fn learn(&self, pushed: &[Runnable], longest: usize) {
        let mut known = self.lock();
        for entry in pushed {
            known.insert(entry.list, (Instant::now(), longest));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<List, (Instant, usize)>> {
        self.known.lock().expect("nothing panics while it holds this lock")
    }
}
