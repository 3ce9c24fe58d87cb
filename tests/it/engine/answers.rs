//! Answers that never arrive: the server did it, nobody heard (E1, E2, E5).

use std::time::Duration;

use multivio::jobs::{NewJob, OnParent, State};
use secrecy::ExposeSecret;

use super::{Act, Stage, Step};
use crate::harness::{Proxy, Servers, Worker, wait_until};

const SOON: Duration = Duration::from_secs(20);
/// Strays are handed back when no claim can be on its way any more.
const CERTAIN: Duration = Duration::from_secs(40);

/// The worker's wires lead through these; the test's own do not.
struct Wires {
    postgres: Proxy,
    redis: Proxy,
}

impl Wires {
    async fn new() -> Self {
        let servers = Servers::shared();
        Self { postgres: Proxy::to(servers.postgres_port()).await, redis: Proxy::to(servers.redis_port()).await }
    }

    async fn worker(&self, stage: &Stage) -> Worker {
        stage.worker_in(&self.env(stage)).await
    }

    fn env(&self, stage: &Stage) -> Vec<(String, String)> {
        let servers = Servers::shared();
        let database = servers.database_url_at(stage.app.db.name(), self.postgres.port());
        let redis = servers.redis_url_at(self.redis.port());
        let mut env = stage.app.env().to_vec();
        env.push(("DATABASE_URL".into(), database.expose_secret().to_owned()));
        env.push(("REDIS_URL".into(), redis.expose_secret().to_owned()));
        env.push(("WORKER_CONCURRENCY".into(), "4".into()));
        env
    }
}

async fn lost(proxy: &Proxy) {
    wait_until(SOON, "an answer to be lost", || async { proxy.lost() == 1 }).await;
}

#[tokio::test]
async fn an_answer_lost_after_a_claim_does_not_strand_the_job() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    let _worker = wires.worker(&stage).await;
    // A canary that comes at this moment may be what the claim took.
    let mut tries = 0;
    let job = loop {
        tries += 1;
        assert!(tries <= 5, "no claim took the job alone");
        wires.postgres.lose_answer_to_claim();
        let job = stage.enqueue(stage.steps([Step::Tell("ran".into())])).await;
        wait_until(SOON, "an answer to be lost", || async { wires.postgres.lost() == tries }).await;
        // The ledger says that it runs in this worker, whose heartbeat goes on.
        let row = stage.row(job).await;
        if (row.state, row.run) == (State::Running, 1) {
            break job;
        }
        stage.all_succeed(&[job], SOON).await;
    };
    let row = stage.ended(job, CERTAIN).await;
    assert_eq!((row.state, row.run, row.attempt, row.crashes), (State::Succeeded, 2, 0, 0));
    assert_eq!(stage.witness.all().len(), tries);
}

#[tokio::test]
async fn an_answer_lost_after_a_completion_neither_repeats_nor_strands_the_job() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    let _worker = wires.worker(&stage).await;
    let parent = stage.steps([Step::Tell("ran".into())]);
    let child = stage.steps([Step::Tell("child ran".into())]).after(parent.id, OnParent::Cancel);
    wires.postgres.lose_answer_to("set state = 'succeeded'");
    stage.enqueue_all(&[parent.clone(), child.clone()]).await;
    lost(&wires.postgres).await;
    // The child that the lost statement freed is known to nobody but the ledger.
    stage.all_succeed(&[parent.id, child.id], SOON).await;
    assert_eq!(stage.witness.words(), ["ran", "child ran"]);
    // And the slot is free again.
    stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], SOON).await;
    wait_until(SOON, "the hand to be empty", || async {
        let held: i32 = sqlx::query_scalar("select in_hand from workers").fetch_one(&stage.app.pool).await.unwrap();
        held == 0
    })
    .await;
}

#[tokio::test]
async fn a_snooze_whose_answer_is_lost_does_not_undo_the_run_after_it() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    let _worker = wires.worker(&stage).await;
    // And those of the next tries, so that the job is under way again before its end is known.
    wires.postgres.lose_answers_to("handbacks = j.handbacks", 4);
    let act =
        Act { first: Some(vec![Step::SnoozeMs(1)]), ..Act::of([Step::Tell("second".into()), Step::SleepMs(1_500)]) };
    let job = stage.enqueue(stage.job(act)).await;
    wait_until(SOON, "the answers to be lost", || async { wires.postgres.lost() == 4 }).await;
    // The same worker runs it again before it has looked what became of the first run.
    stage.witness.heard(job, "second", SOON).await;
    let others: Vec<NewJob> = (0..5).map(|_| stage.job(Act::default())).collect();
    let others = stage.enqueue_all(&others).await;
    stage.all_succeed(&others, SOON).await;
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.run, row.attempt), (State::Succeeded, 2, 0));
    assert_eq!(stage.witness.count(job, "second"), 1);
}

#[tokio::test]
async fn an_id_popped_into_an_answer_that_never_came_is_pushed_again() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    let _worker = wires.worker(&stage).await;
    wires.redis.lose_popped_ids("ops:default").await;
    let job = stage.enqueue(stage.steps([Step::Tell("ran".into())])).await;
    lost(&wires.redis).await;
    // Others pass by, so the belt is not simply empty.
    for _ in 0..10 {
        stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], SOON).await;
    }
    stage.all_succeed(&[job], SOON).await;
    let row = stage.row(job).await;
    assert_eq!((row.run, stage.witness.count(job, "ran")), (1, 1));
}

#[tokio::test]
async fn ids_lost_from_a_full_belt_are_found_without_pushing_everything_again() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    let jobs: Vec<NewJob> = (0..400).map(|_| stage.steps([Step::Tell("ran".into()), Step::SleepMs(20)])).collect();
    let _worker = wires.worker(&stage).await;
    wires.redis.lose_popped_ids("ops:default").await;
    let ids = stage.enqueue_all(&jobs).await;
    lost(&wires.redis).await;
    stage.all_succeed(&ids, Duration::from_secs(60)).await;
    assert_eq!(stage.witness.all().len(), 400, "each ran once");
}

#[tokio::test]
async fn a_worker_whose_registration_is_not_answered_starts_all_the_same() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    wires.postgres.lose_answer_to("insert into workers");
    let _worker = wires.worker(&stage).await;
    lost(&wires.postgres).await;
    stage.all_succeed(&[stage.enqueue(stage.job(Act::default())).await], SOON).await;
}

#[tokio::test]
async fn a_lost_heartbeat_answer_costs_nothing() {
    let (stage, wires) = (Stage::new().await, Wires::new().await);
    let worker = wires.worker(&stage).await;
    let job = stage.enqueue(stage.steps([Step::Tell("ran".into()), Step::SleepMs(9_000)])).await;
    stage.witness.heard(job, "ran", SOON).await;
    wires.postgres.lose_answer_to("update workers set lease_expires_at");
    lost(&wires.postgres).await;
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.run), (State::Succeeded, 1));
    let same: String = sqlx::query_scalar("select state from workers where id = $1")
        .bind(worker.id)
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(same, "alive");
}

#[tokio::test]
async fn a_relay_that_loses_any_of_its_answers_loses_no_job() {
    for words in ["seq = nextval('job_seq'), pushed = $2", "update relay_leader", "insert into schedule_fires"] {
        let (stage, wires) = (Stage::new().await, Wires::new().await);
        let _worker = wires.worker(&stage).await;
        let due = chrono::Utc::now() + Duration::from_millis(500);
        let jobs: Vec<NewJob> = (0..20).map(|_| stage.steps([Step::Tell("ran".into())]).run_at(due)).collect();
        wires.postgres.lose_answer_to(words);
        let ids = stage.enqueue_all(&jobs).await;
        stage.all_succeed(&ids, SOON).await;
        assert_eq!(stage.witness.all().len(), 20, "with the answer to \"{words}\" lost");
    }
}
