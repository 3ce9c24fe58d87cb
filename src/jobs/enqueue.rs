//! Group commit: jobs that are enqueued on their own at the same moment share one statement, one commit and one
//! push. While one batch commits the next gathers, so a lone job waits for nobody and a crowd pays for one.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{
    belt::{Belt, List},
    engine::{EnqueueError, enter_again, list_of, unique_order, unstorable},
    job::{NewJob, State},
    ledger::{self, Insert, Runnable},
};
use crate::{
    db::{self, Tenancy, TenantDb},
    ids::JobId,
    telemetry::chain,
};

/// Most rows in one statement.
pub const BATCH: usize = 512;
/// Batches at once: the callers of one are answered and heard while others commit.
const AT_ONCE: usize = 3;
/// Jobs that wait for a batch; more callers than this wait with theirs.
const WAITING: usize = 8 * BATCH;
/// A list longer than this is filled by the relay in fair turns, not by whoever comes (E18).
const SHORT: usize = 32;
/// How long a list's known length is good.
const LENGTH_KNOWN_FOR: Duration = Duration::from_millis(50);

type Reply = oneshot::Sender<Result<JobId, EnqueueError>>;

/// By which way jobs enter the ledger.
#[derive(Debug, Clone)]
pub enum Way {
    /// A worker's or an operator's session, which writes for every tenant.
    All(PgPool),
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
    pub fn start(way: Way, belt: Belt) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let lengths = Lengths { known: Arc::default(), belt: belt.clone() };
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        for _ in 0..AT_ONCE {
            tokio::spawn(run(Arc::clone(&waiting), way.clone(), belt.clone(), lengths.clone()));
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

async fn run(waiting: Waiting, way: Way, belt: Belt, lengths: Lengths) {
    let mut batch = Vec::with_capacity(BATCH);
    while waiting.lock().await.recv_many(&mut batch, BATCH).await > 0 {
        batch.sort_by(|a: &Waiter, b| unique_order(&a.job).cmp(&unique_order(&b.job)));
        let pushed = lengths.pushed_directly(batch.iter().map(|waiter| &waiter.job)).await;
        let together = batch.iter().zip(pushed);
        let rows: Vec<Row<'_>> = together
            .map(|(waiter, pushed)| Row { insert: Insert { job: &waiter.job, pushed, open_parents: 0 }, by: waiter.by })
            .collect();
        let answers = write(&way, &rows).await;
        let mut runnable = Vec::new();
        let mut rings = false;
        for (row, answer) in rows.iter().zip(&answers) {
            match answer {
                Ok((_, State::Queued)) if row.insert.pushed => {
                    runnable.push(Runnable { job: row.insert.job.id, list: list_of(row.insert.job) });
                }
                Ok((_, State::Queued)) => rings = true,
                Ok((_, State::Scheduled)) if row.insert.job.run_at.is_none() => rings = true,
                Ok(_) | Err(_) => {}
            }
        }
        for (Waiter { reply, .. }, answer) in batch.drain(..).zip(answers) {
            // A caller that went away has its job all the same.
            let _gone = reply.send(answer.map(|(id, _)| id));
        }
        tokio::spawn(ring(belt.clone(), lengths.clone(), runnable, rings));
    }
}

/// What only saves time does not hold up the next batch.
async fn ring(belt: Belt, lengths: Lengths, runnable: Vec<Runnable>, rings: bool) {
    if !runnable.is_empty() {
        match belt.push(&runnable).await {
            Ok(longest) => lengths.learn(&runnable, longest),
            Err(error) => debug!(error = %chain(&error), "left to the relay"),
        }
    }
    if rings && let Err(error) = belt.ring_relay().await {
        debug!(error = %chain(&error), "the relay comes by itself");
    }
}

type Entered = Result<(JobId, State), EnqueueError>;

struct Row<'a> {
    insert: Insert<'a>,
    by: Option<Tenancy>,
}

impl Way {
    async fn connection(&self) -> sqlx::Result<PoolConnection<Postgres>> {
        match self {
            Self::All(db) => db.acquire().await,
            Self::Callers(callers) => callers.nobody().await,
        }
    }

    /// All rows in one statement; those whose unique key is taken are missing from the answer.
    async fn insert(
        &self,
        connection: &mut PoolConnection<Postgres>,
        rows: &[Row<'_>],
    ) -> sqlx::Result<Vec<(JobId, State)>> {
        let inserts: Vec<_> = rows.iter().map(|row| row.insert.clone()).collect();
        match self {
            Self::All(_) => ledger::insert(connection, &inserts).await,
            Self::Callers(_) => {
                let tenants: Vec<_> = rows.iter().map(|row| row.by.map(Tenancy::tenant)).collect();
                ledger::insert_for(connection, &inserts, &tenants).await
            }
        }
    }

    /// One that met a taken key. The other job is its tenant's own: it is looked for with the caller's eyes.
    async fn insert_again(
        &self,
        connection: &mut Option<PoolConnection<Postgres>>,
        row: &Row<'_>,
    ) -> Result<State, EnqueueError> {
        let mut of_caller;
        let db = match (self, row.by) {
            (Self::All(db), _) => match connection {
                Some(connection) => connection,
                none => none.insert(db.acquire().await?),
            },
            (Self::Callers(callers), Some(by)) => {
                // Given back first: who holds one and waits for another stops all when everybody does.
                *connection = None;
                of_caller = callers.of(by).await?;
                &mut of_caller
            }
            (Self::Callers(_), None) => return Err(EnqueueError::Nobodys),
        };
        enter_again(db, &row.insert).await
    }
}

/// Writes the rows, each with an answer of its own: a batch that Postgres refuses is cut in two until the one bad
/// row stands alone (E9).
async fn write(way: &Way, rows: &[Row<'_>]) -> Vec<Entered> {
    let attempt = async {
        let mut connection = way.connection().await?;
        let entered: HashMap<JobId, State> = way.insert(&mut connection, rows).await?.into_iter().collect();
        let mut connection = Some(connection);
        let mut answers: Vec<Entered> = Vec::with_capacity(rows.len());
        for row in rows {
            let id = row.insert.job.id;
            answers.push(match entered.get(&id) {
                Some(state) => Ok((id, *state)),
                None => way.insert_again(&mut connection, row).await.map(|state| (id, state)),
            });
        }
        Ok(answers)
    };
    match db::answer(attempt).await.map_err(unstorable) {
        Ok(answers) => answers,
        Err(EnqueueError::Unstorable(_)) if rows.len() > 1 => {
            let (left, right) = rows.split_at(rows.len() / 2);
            let mut answers = Box::pin(write(way, left)).await;
            answers.extend(Box::pin(write(way, right)).await);
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
