//! A worker stands upright whatever is done to it: a network that swallows everything, faults of its own code, a
//! program file that is gone, a process that does not end.

use std::time::{Duration, Instant};

use multivio::jobs::{NewJob, State};
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Act, Stage, Step, act::Unreadable};
use crate::harness::{App, Program, Proxy, Servers, eventually, wait_until};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn after_a_failover_without_a_farewell_worker_and_api_are_back_within_seconds() {
    let servers = Servers::shared();
    let wire = Proxy::to(servers.postgres_port()).await;
    let mut stage = Stage::new().await;
    let through = servers.database_url_at(stage.app.db.name(), wire.port()).expose_secret().to_owned();
    stage.app.set("DATABASE_URL", through);
    let (worker, api) = (stage.worker(4).await, stage.app.api().await);
    let done = stage.enqueue(stage.job(Act::default())).await;
    stage.all_succeed(&[done], SOON).await;
    let running = stage.enqueue(stage.steps([Step::Tell("runs".into()), Step::SleepMs(1_000)])).await;
    stage.witness.heard(running, "runs", SOON).await;

    wire.strand();
    let stranded = Instant::now();
    let next = stage.enqueue(stage.job(Act::default())).await;
    stage.all_succeed(&[running, next], Duration::from_secs(25)).await;
    assert_eq!(stage.row(running).await.run, 1, "its lease was kept and its end was written");
    wait_until(SOON, "the API to answer again", || async { api.get(&format!("/api/v1/jobs/{done}")).await.0 == 200 })
        .await;
    assert!(stranded.elapsed() < Duration::from_secs(25), "it took {:?}", stranded.elapsed());
    // A job that is due needs the relay.
    let due = stage.enqueue(stage.job(Act::default()).run_at(chrono::Utc::now())).await;
    stage.all_succeed(&[due], SOON).await;
    assert_eq!(stage.pid_of(worker.id).await, worker.pid);
}

#[tokio::test]
async fn a_job_that_meets_a_database_which_shuts_down_uses_no_attempt() {
    let stage = Stage::new().await;
    let _worker = stage.worker(2).await;
    let ended =
        Step::Statement("select set_config('role', 'none', false), pg_terminate_backend(pg_backend_pid())".into());
    let job = stage.enqueue(stage.job(Act { first: Some(vec![ended]), ..Act::default() })).await;
    stage.all_succeed(&[job], SOON).await;
    let row = stage.row(job).await;
    assert_eq!((row.run, row.attempt), (2, 0), "{:?}", stage.attempts(job).await);
}

#[tokio::test]
async fn a_panic_outside_of_the_handler_fails_the_job_and_frees_its_slot() {
    let stage = Stage::new().await;
    let _worker = stage.worker(1).await;
    let mut job = stage.steps([Step::Unreadable(Unreadable)]);
    job.max_attempts = 1;
    let job = stage.enqueue(job).await;
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.why.unwrap().code.as_str()), (State::Failed, "panicked"));
    let others: Vec<NewJob> = (0..3).map(|_| stage.job(Act::default())).collect();
    let others = stage.enqueue_all(&others).await;
    stage.all_succeed(&others, SOON).await;
}

#[tokio::test]
async fn a_worker_whose_program_is_gone_for_a_while_is_started_again() {
    let stage = Stage::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("multivio-test"), folder.path().join("aside"));
    std::fs::copy(env!("CARGO_BIN_EXE_test-worker"), &path).unwrap();
    let mut program = Program::start(path.to_str().unwrap(), &[], stage.app.env());
    let job = stage.enqueue(stage.steps([Step::Tell("ran".into())])).await;
    stage.witness.heard(job, "ran", SOON).await;
    // A deploy: the old file goes, the new one is not there yet.
    std::fs::rename(&path, &aside).unwrap();
    let fatal = Act { first: Some(vec![Step::Abort]), ..Act::of([Step::Tell("again".into())]) };
    let fatal = stage.enqueue(stage.job(fatal)).await;
    wait_until(SOON, "a start in vain", || async { program.log().contains("could not be started") }).await;
    std::fs::rename(&aside, &path).unwrap();
    stage.witness.heard(fatal, "again", LONG).await;
    assert!(!program.has_ended());
}

#[tokio::test]
async fn a_worker_that_does_not_end_is_killed_by_its_parent() {
    let stage = Stage::new().await;
    let mut worker = stage.worker(1).await;
    worker.pause();
    let status = worker.program.stop(Duration::from_secs(25)).await;
    assert!(!status.success());
}

#[tokio::test]
async fn a_worker_shows_what_it_ran_and_starts_with_an_empty_setting() {
    let mut stage = Stage::new().await;
    let address = format!("127.0.0.1:{}", multivio::local::free_port().unwrap());
    stage.app.set("WORKER_METRICS_LISTEN", &*address).set("WORKER_CONCURRENCY", "");
    let _worker = stage.worker_in(stage.app.env()).await;
    let jobs = [stage.steps([Step::Fail("no".into())]), stage.job(Act::default()), stage.job(Act::default())];
    for job in stage.enqueue_all(&jobs).await {
        stage.ended(job, SOON).await;
    }
    let figures = eventually(SOON, "its figures", || async {
        let (mut stream, mut text) = (TcpStream::connect(&address).await.ok()?, String::new());
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
        stream.read_to_string(&mut text).await.ok()?;
        text.contains("end=\"failed\"").then_some(text)
    })
    .await;
    for line in [
        "multivio_job_runs_total{kind=\"act\",end=\"failed\"} 1",
        "multivio_job_runs_total{kind=\"act\",end=\"succeeded\"} 2",
        "multivio_job_run_seconds_count{kind=\"act\"} 3",
    ] {
        assert!(figures.lines().any(|shown| shown == line), "{line} is missing from\n{figures}");
    }
}

#[tokio::test]
async fn a_command_that_redis_refuses_does_not_count_as_a_redis_that_is_away() {
    let app = App::new().await;
    let belt = multivio::jobs::belt::Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let job = multivio::ids::JobId::new();
    belt.events(job, "99999999999999999999-1").await.unwrap_err();
    belt.ping().await.unwrap();
}
