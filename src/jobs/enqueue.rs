//! Group commit: jobs that are enqueued on their own at the same moment share one statement, one commit and one
//! push. While one batch commits the next gathers, so a lone job waits for nobody and a crowd pays for one.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{PgConnection, postgres::PgConnectOptions};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{
    belt::{Belt, List},
    engine::{EnqueueError, enter_again, list_of, unique_order, unstorable},
    job::{NewJob, State},
    ledger::{self, Insert, Runnable},
};
use crate::{
    db::{self, OwnConnection},
    ids::JobId,
    telemetry::chain,
};

/// Most rows in one statement.
pub const BATCH: usize = 512;
/// Batches at once, the second only while the first is late: a row of it may be locked, or the disk slow.
const AT_ONCE: usize = 3;
/// Fewer and larger batches cost less: the next one gathers for as long as this while one commits.
const LATE: Duration = Duration::from_millis(10);
/// Jobs that wait for a batch; more callers than this wait with theirs.
const WAITING: usize = 8 * BATCH;
/// A list longer than this is filled by the relay in fair turns, not by whoever comes (E18).
const SHORT: usize = 32;
/// How long a list's known length is good.
const LENGTH_KNOWN_FOR: Duration = Duration::from_millis(50);
/// Batches that leave jobs to the relay within this time call it once.
const GATHER_RINGS: Duration = Duration::from_millis(5);

type Reply = oneshot::Sender<Result<JobId, EnqueueError>>;

#[derive(Debug, Clone)]
pub struct Batcher {
    jobs: mpsc::Sender<(NewJob, Reply)>,
    lengths: Lengths,
}

impl Batcher {
    pub fn start(db: &PgConnectOptions, belt: Belt) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        let lengths = Lengths { known: Arc::default(), belt: belt.clone() };
        let waiting = Arc::new(tokio::sync::Mutex::new(waiting));
        let bell = Bell { belt: belt.clone(), is_rung: Arc::default() };
        for _ in 0..AT_ONCE {
            let db = OwnConnection::new(db.clone());
            tokio::spawn(run(Arc::clone(&waiting), db, belt.clone(), lengths.clone(), bell.clone()));
        }
        Self { jobs, lengths }
    }

    pub async fn enqueue(&self, job: NewJob) -> Result<JobId, EnqueueError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send((job, reply)).await.map_err(|_| EnqueueError::Stopping)?;
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

type Waiting = Arc<tokio::sync::Mutex<mpsc::Receiver<(NewJob, Reply)>>>;

async fn run(waiting: Waiting, db: OwnConnection, belt: Belt, lengths: Lengths, bell: Bell) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let mut turn = waiting.lock().await;
        if turn.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        batch.sort_by(|(a, _), (b, _)| unique_order(a).cmp(&unique_order(b)));
        let pushed = lengths.pushed_directly(batch.iter().map(|(job, _)| job)).await;
        let together = batch.iter().zip(pushed);
        let rows: Vec<Insert<'_>> =
            together.map(|((job, _), pushed)| Insert { job, pushed, open_parents: 0 }).collect();
        let answers = {
            let mut writing = std::pin::pin!(write(&db, &rows));
            let in_time = tokio::time::timeout(LATE, &mut writing).await;
            drop(turn);
            match in_time {
                Ok(answers) => answers,
                Err(_late) => writing.await,
            }
        };
        let mut runnable = Vec::new();
        let mut rings = false;
        for (row, answer) in rows.iter().zip(&answers) {
            match answer {
                Ok((_, State::Queued)) if row.pushed => {
                    runnable.push(Runnable { job: row.job.id, list: list_of(row.job) });
                }
                Ok((_, State::Queued)) => rings = true,
                Ok((_, State::Scheduled)) if row.job.run_at.is_none() => rings = true,
                Ok(_) | Err(_) => {}
            }
        }
        for ((_, reply), answer) in batch.drain(..).zip(answers) {
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
}

async fn push(belt: Belt, lengths: Lengths, runnable: Vec<Runnable>) {
    match belt.push(&runnable).await {
        Ok(longest) => lengths.learn(&runnable, longest),
        Err(error) => debug!(error = %chain(&error), "left to the relay"),
    }
}

/// Calls the relay, once for all batches that ask within a moment.
#[derive(Debug, Clone)]
struct Bell {
    belt: Belt,
    is_rung: Arc<AtomicBool>,
}

impl Bell {
    fn ring(&self) {
        if self.is_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let bell = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(GATHER_RINGS).await;
            // Before it is heard: what is committed from here on has to be looked for once more.
            bell.is_rung.store(false, Ordering::Release);
            if let Err(error) = bell.belt.ring_relay().await {
                debug!(error = %chain(&error), "the relay comes by itself");
            }
        });
    }
}

type Entered = Result<(JobId, State), EnqueueError>;

/// Writes the rows, each with an answer of its own: a batch that Postgres refuses is cut in two until the one bad
/// row stands alone (E9).
async fn write(db: &OwnConnection, rows: &[Insert<'_>]) -> Vec<Entered> {
    let attempt = async |connection: &mut PgConnection| {
        let entered: HashMap<JobId, State> = ledger::insert(connection, rows).await?.into_iter().collect();
        let mut answers: Vec<Entered> = Vec::with_capacity(rows.len());
        for row in rows {
            answers.push(match entered.get(&row.job.id) {
                Some(state) => Ok((row.job.id, *state)),
                None => match enter_again(connection, row).await {
                    // Not of this row alone: the connection is of no use any more.
                    Err(EnqueueError::Ledger(error)) if db::is_away(&error) => return Err(error),
                    entered => entered.map(|state| (row.job.id, state)),
                },
            });
        }
        Ok(answers)
    };
    match db.run(attempt).await.map_err(unstorable) {
        Ok(answers) => answers,
        Err(EnqueueError::Unstorable(_)) if rows.len() > 1 => {
            let (left, right) = rows.split_at(rows.len() / 2);
            let mut answers = Box::pin(write(db, left)).await;
            answers.extend(Box::pin(write(db, right)).await);
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
