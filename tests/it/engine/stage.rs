//! One installation of the engine: a database, a front to enqueue with, workers on request, and a witness.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use multivio::{
    cli::jobs::steer::{self, Retried},
    ids::{JobId, TenantId, WorkerId},
    jobs::{
        Engine, NewJob, Priority, State,
        belt::Belt,
        ledger::{self, CancelOutcome, JobRow},
    },
};
use sqlx::PgConnection;
use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{Act, Step};
use crate::harness::{App, Program, Servers, Worker, eventually};

const READY_WITHIN: Duration = Duration::from_secs(30);

pub struct Stage {
    pub app: App,
    pub engine: Engine,
    pub witness: Witness,
}

impl Stage {
    pub async fn new() -> Self {
        Self::on(Servers::shared()).await
    }

    pub async fn on(servers: &Servers) -> Self {
        let app = App::on(servers).await;
        let belt = Belt::new(&app.config().redis, app.pool.clone()).expect("the address is well formed");
        let engine = Engine::new(app.pool.clone(), app.session(), belt);
        Self { app, engine, witness: Witness::start().await }
    }

    /// A connection for statements on the ledger itself.
    pub async fn db(&self) -> sqlx::pool::PoolConnection<sqlx::Postgres> {
        self.app.pool.acquire().await.expect("the database answers")
    }

    /// As an operator does it.
    pub async fn cancel(&self, job: JobId) -> CancelOutcome {
        steer::cancel(&self.engine, job).await.expect("the database answers")
    }

    /// As an operator does it; whether it runs again.
    pub async fn retry(&self, job: JobId) -> bool {
        steer::retry(&self.engine, job).await.expect("the database answers") == Retried::Yes
    }

    /// As an operator does it; whether there is such a job that has not ended.
    pub async fn set_priority(&self, job: JobId, priority: Priority) -> bool {
        steer::set_priority(&self.engine, job, priority).await.expect("the database answers")
    }

    /// A worker with this many slots a lane, registered and fetching.
    pub async fn worker(&self, concurrency: usize) -> Worker {
        let mut env = self.app.env().to_vec();
        env.push(("WORKER_CONCURRENCY".into(), concurrency.to_string()));
        self.worker_in(&env).await
    }

    pub async fn worker_in(&self, env: &[(String, String)]) -> Worker {
        let mut program = Program::start(env!("CARGO_BIN_EXE_test-worker"), &[], env);
        let (id, pid) = eventually(READY_WITHIN, "the worker to register", || {
            assert!(!program.has_ended(), "the worker ended:\n{}", program.log());
            let family: Vec<_> = program.process().family().iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
            self.registered(family)
        })
        .await;
        Worker { program, id, pid }
    }

    /// The worker that took over in the same program after a crash.
    pub async fn successor(&self, worker: &mut Worker) -> (WorkerId, u32) {
        let former = worker.id;
        eventually(READY_WITHIN, "the worker to be started again", || {
            let family = worker.program.process().family();
            let family: Vec<_> = family.iter().filter_map(|pid| i32::try_from(*pid).ok()).collect();
            async move { self.registered(family).await.filter(|(id, _)| *id != former) }
        })
        .await
    }

    pub async fn pid_of(&self, worker: WorkerId) -> u32 {
        let pid: i32 = sqlx::query_scalar("select pid from workers where id = $1")
            .bind(worker)
            .fetch_one(&self.app.pool)
            .await
            .expect("it has registered");
        u32::try_from(pid).expect("a process has a positive number")
    }

    async fn registered(&self, family: Vec<i32>) -> Option<(WorkerId, u32)> {
        let row: Option<(WorkerId, i32)> = sqlx::query_as(
            "select id, pid from workers where pid = any($1) and state = 'alive' order by started_at desc limit 1",
        )
        .bind(family)
        .fetch_optional(&self.app.pool)
        .await
        .ok()?;
        row.and_then(|(id, pid)| Some((id, u32::try_from(pid).ok()?)))
    }

    /// A script as a job of this app's tenant; it tells this stage's witness.
    pub fn job(&self, act: Act) -> NewJob {
        self.job_of(self.app.tenant, act)
    }

    pub fn job_of(&self, tenant: TenantId, act: Act) -> NewJob {
        NewJob::of(&self.witnessed(act), tenant)
    }

    pub fn witnessed(&self, act: Act) -> Act {
        Act { witness: Some(self.witness.port), ..act }
    }

    pub fn steps(&self, steps: impl Into<Vec<Step>>) -> NewJob {
        self.job(Act::of(steps))
    }

    pub async fn enqueue(&self, job: NewJob) -> JobId {
        self.engine.enqueue(job).await.expect("it is enqueued")
    }

    /// In one transaction, in this order.
    pub async fn enqueue_all(&self, jobs: &[NewJob]) -> Vec<JobId> {
        let mut tx = self.app.pool.begin().await.expect("a transaction begins");
        let tickets = self.engine.enqueue_in(&mut tx, jobs).await.expect("they are enqueued");
        tx.commit().await.expect("it commits");
        self.engine.ring(&tickets).await;
        tickets.iter().map(|ticket| ticket.job).collect()
    }

    pub async fn row(&self, job: JobId) -> JobRow {
        self.engine.job(None, job).await.expect("the database answers").expect("the job exists")
    }

    pub async fn state(&self, job: JobId) -> State {
        self.row(job).await.state
    }

    /// The job once it has ended.
    pub async fn ended(&self, job: JobId, within: Duration) -> JobRow {
        self.once(job, within, "it to end", |row| row.state.is_final()).await
    }

    pub async fn once(&self, job: JobId, within: Duration, what: &str, holds: impl Fn(&JobRow) -> bool) -> JobRow {
        let holds = &holds;
        eventually(within, &format!("{what} ({job})"), || async move {
            let row = self.engine.job(None, job).await.ok()??;
            holds(&row).then_some(row)
        })
        .await
    }

    /// Until so many of these have ended, each of them in success.
    pub async fn all_succeed(&self, jobs: &[JobId], within: Duration) {
        for job in jobs {
            let row = self.ended(*job, within).await;
            assert_eq!(row.state, State::Succeeded, "{job}: {:?}", row.why);
        }
    }

    pub async fn count(&self, state: State) -> i64 {
        sqlx::query_scalar("select count(*) from jobs where state = $1::job_state and tenant_id <> $2")
            .bind(state.as_str())
            .bind(TenantId::SYSTEM)
            .fetch_one(&self.app.pool)
            .await
            .expect("the database answers")
    }

    /// Class and code of each run that did not end in success.
    pub async fn attempts(&self, job: JobId) -> Vec<(String, String, String)> {
        sqlx::query_as("select class, code, message from job_attempts where job_id = $1 order by run")
            .bind(job)
            .fetch_all(&self.app.pool)
            .await
            .expect("the database answers")
    }
}

/// Registers a worker that exists in the ledger only.
pub async fn paper_worker(db: &mut PgConnection, lease: Duration) -> WorkerId {
    let worker = ledger::WorkerRow {
        id: WorkerId::new(),
        process: uuid::Uuid::new_v4(),
        queue: "ops".into(),
        host: "paper".into(),
        pid: 0,
    };
    ledger::register(db, &worker, lease).await.expect("it registers");
    worker.id
}

/// Something a run did in the world.
#[derive(Debug, Clone)]
pub struct Said {
    pub job: JobId,
    pub what: String,
    pub at: Instant,
}

/// Keeps what jobs tell.
#[derive(Clone)]
pub struct Witness {
    pub port: u16,
    said: Arc<Mutex<Vec<Said>>>,
}

impl Witness {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let witness = Self { port, said: Arc::default() };
        let said = Arc::clone(&witness.said);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let said = Arc::clone(&said);
                tokio::spawn(async move {
                    let (at, mut line) = (Instant::now(), String::new());
                    // One that dies while it speaks has said nothing.
                    if stream.read_to_string(&mut line).await.is_ok()
                        && let Some(heard) = parse(&line, at)
                    {
                        said.lock().unwrap_or_else(PoisonError::into_inner).push(heard);
                    }
                });
            }
        });
        witness
    }

    pub fn all(&self) -> Vec<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn of(&self, job: JobId) -> Vec<Said> {
        self.all().into_iter().filter(|said| said.job == job).collect()
    }

    /// How often this was said by this job.
    pub fn count(&self, job: JobId, what: &str) -> usize {
        self.of(job).iter().filter(|said| said.what == what).count()
    }

    /// The first time the job said it.
    pub async fn heard(&self, job: JobId, what: &str, within: Duration) -> Said {
        eventually(within, &format!("{job} to say {what}"), || async move {
            self.of(job).into_iter().find(|said| said.what == what)
        })
        .await
    }

    /// What was said in order, by its words alone.
    pub fn words(&self) -> Vec<String> {
        let mut all = self.all();
        all.sort_by_key(|said| said.at);
        all.into_iter().map(|said| said.what).collect()
    }
}

fn parse(line: &str, at: Instant) -> Option<Said> {
    let mut parts = line.trim_end().splitn(2, ' ');
    Some(Said { job: parts.next()?.parse().ok()?, what: parts.next()?.to_owned(), at })
}
