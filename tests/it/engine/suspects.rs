//! Suspects and those beside them: who runs alone keeps nobody waiting longer than it must (E10), and no stopping
//! worker waits for one (E16).

use std::time::{Duration, Instant};

use multivio::{
    ids::JobId,
    jobs::{NewJob, Queue, State, ledger},
};

use super::{Act, ActTokens, Stage, Step, stage::paper_worker};
use crate::harness::wait_until;

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

/// As its last worker left it: dead, with this job in hand.
async fn suspect(stage: &Stage, job: NewJob) -> JobId {
    let (kind, mut db) = (job.kind.clone(), stage.db().await);
    // Nobody pushes it before it is one.
    let id = stage.enqueue(job.run_at(chrono::Utc::now() + LONG)).await;
    sqlx::query("update jobs set state = 'queued', run_at = now(), due_at = now() where id = $1")
        .bind(id)
        .execute(&mut *db)
        .await
        .unwrap();
    let dead = paper_worker(&mut db, Duration::ZERO).await;
    assert_eq!(ledger::claim(&mut db, dead, Queue::Ops, &[&kind], &[id], false).await.unwrap().len(), 1);
    wait_until(SOON, "it to be a suspect", || async {
        ledger::reap(&stage.app.pool, 10).await.unwrap();
        stage.row(id).await.suspect
    })
    .await;
    id
}

/// How long a new job waits until it runs.
async fn wait_of_a_new_job(stage: &Stage, within: Duration) -> Duration {
    let asked = Instant::now();
    let job = stage.enqueue(stage.steps([Step::Tell("new".into())])).await;
    stage.witness.heard(job, "new", within).await.at - asked
}

/// Until new jobs are not claimed any more: a suspect waits for those that run.
async fn a_suspect_waits(stage: &Stage) {
    wait_until(SOON, "a suspect to hold the others up", || async {
        let job = stage.enqueue(stage.steps([Step::Tell("probe".into())])).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(700) {
            if stage.witness.count(job, "probe") == 1 {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    })
    .await;
}

#[tokio::test]
async fn a_worker_stops_in_its_grace_while_a_suspect_runs() {
    let stage = Stage::new().await;
    let job = stage.steps([Step::Tell("runs alone".into()), Step::SleepMs(50_000)]);
    let job = suspect(&stage, job).await;
    let mut worker = stage.worker(2).await;
    stage.witness.heard(job, "runs alone", SOON).await;
    let asked = Instant::now();
    let status = worker.program.stop(Duration::from_secs(12)).await;
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(9), "it took {:?}", asked.elapsed());
    let row = stage.row(job).await;
    assert_eq!((row.state, row.attempt, row.crashes, row.handbacks), (State::Queued, 0, 0, 1));
}

#[tokio::test]
async fn a_worker_stops_in_its_grace_while_a_suspect_waits() {
    let stage = Stage::new().await;
    let mut worker = stage.worker(4).await;
    let long = stage.enqueue(stage.steps([Step::Tell("long".into()), Step::SleepMs(50_000)])).await;
    stage.witness.heard(long, "long", SOON).await;
    let waiting = suspect(&stage, stage.steps([Step::Tell("ran".into())])).await;
    a_suspect_waits(&stage).await;
    let asked = Instant::now();
    let status = worker.program.stop(Duration::from_secs(12)).await;
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(9), "it took {:?}", asked.elapsed());
    let rows = [stage.row(long).await, stage.row(waiting).await];
    assert_eq!(rows.map(|row| (row.state, row.attempt, row.crashes)), [(State::Queued, 0, 0); 2]);
}

#[tokio::test]
async fn a_suspect_that_cannot_be_alone_lets_the_others_pass_and_has_its_turn() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let long = stage.enqueue(stage.steps([Step::Tell("long".into()), Step::SleepMs(25_000)])).await;
    stage.witness.heard(long, "long", SOON).await;
    let waiting = suspect(&stage, stage.steps([Step::Tell("ran".into())])).await;
    a_suspect_waits(&stage).await;
    let waited = wait_of_a_new_job(&stage, Duration::from_secs(8)).await;
    assert!(waited < Duration::from_secs(7), "it waited {waited:?}");
    assert_eq!(stage.state(long).await, State::Running);
    stage.all_succeed(&[long, waiting], LONG).await;
}

#[tokio::test]
async fn other_lanes_have_their_turn_between_suspects() {
    let stage = Stage::new().await;
    let slow = || stage.steps([Step::Tell("slow".into()), Step::SleepMs(1_500)]);
    let mut suspects = Vec::new();
    for _ in 0..6 {
        suspects.push(suspect(&stage, slow()).await);
    }
    let _worker = stage.worker(4).await;
    wait_until(SOON, "the first suspect to run", || async { stage.witness.words().contains(&"slow".into()) }).await;
    let token = NewJob::of(&ActTokens(stage.witnessed(Act::of([Step::Tell("token".into())]))), stage.app.tenant);
    let token = stage.enqueue(token).await;
    stage.witness.heard(token, "token", SOON).await;
    let before = stage.witness.words().iter().take_while(|what| *what != "token").count();
    assert!(before <= 2, "{before} suspects went before it");
    stage.all_succeed(&suspects, LONG).await;
}

#[tokio::test]
async fn a_suspect_that_this_worker_cannot_run_holds_nobody_up() {
    let stage = Stage::new().await;
    let _worker = stage.worker(4).await;
    let mut job = stage.steps([]);
    job.kind = "from_the_future".into();
    let unknown = suspect(&stage, job).await;
    let long = stage.enqueue(stage.steps([Step::Tell("long".into()), Step::SleepMs(7_000)])).await;
    stage.witness.heard(long, "long", SOON).await;
    // Longer than the audit takes to bring it to the belt, more than once.
    while stage.state(long).await == State::Running {
        let waited = wait_of_a_new_job(&stage, SOON).await;
        assert!(waited < Duration::from_millis(1_500), "it waited {waited:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(stage.state(unknown).await, State::Queued);
}

#[tokio::test]
async fn what_is_no_id_on_the_suspects_list_ends_nothing() {
    let stage = Stage::new().await;
    let mut worker = stage.worker(2).await;
    let key = format!("{}:list:ops:default:suspects", stage.engine.belt().prefix().await.unwrap());
    let mut redis = stage.engine.belt().connection();
    let () = redis::cmd("RPUSH").arg(&key).arg("no id").query_async(&mut redis).await.unwrap();
    wait_until(SOON, "it to be taken", || async {
        let left: usize = redis::cmd("LLEN").arg(&key).query_async(&mut redis.clone()).await.unwrap();
        left == 0
    })
    .await;
    let jobs: Vec<NewJob> = (0..4).map(|_| stage.job(Act::default())).collect();
    let jobs = stage.enqueue_all(&jobs).await;
    stage.all_succeed(&jobs, SOON).await;
    assert_eq!(stage.pid_of(worker.id).await, worker.running().unwrap());
}
