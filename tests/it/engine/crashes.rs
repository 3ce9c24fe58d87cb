//! Processes that die: innocents are not charged, the guilty is found (E10), and the cause is known (E11).

use std::time::{Duration, Instant};

use multivio::{
    ids::{JobId, WorkerId},
    jobs::{
        NewJob, Queue, State,
        belt::Slot,
        ledger::{self, Death},
    },
};
use uuid::Uuid;

use super::{Act, Stage, Step};

const SOON: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);

async fn cause(stage: &Stage, worker: WorkerId) -> (String, String) {
    let what = "the cause of death to be recorded";
    crate::harness::eventually(SOON, what, || async {
        let row: (String, Option<String>) = sqlx::query_as("select state, cause from workers where id = $1")
            .bind(worker)
            .fetch_one(&stage.app.pool)
            .await
            .ok()?;
        Some((row.0, row.1?))
    })
    .await
}

#[tokio::test]
async fn one_poisonous_job_among_fifty_fails_alone_and_the_fifty_succeed() {
    let stage = Stage::new().await;
    let mut jobs: Vec<NewJob> = (0..50).map(|_| stage.steps([Step::SleepMs(250)])).collect();
    let poison = stage.steps([Step::Tell("bites".into()), Step::SleepMs(50), Step::Abort]);
    jobs.insert(25, poison.clone());
    let ids = stage.enqueue_all(&jobs).await;
    let _worker = stage.worker(51).await;
    let row = stage.ended(poison.id, LONG).await;
    let why = row.why.unwrap();
    assert_eq!((row.state, row.crashes, why.code.as_str()), (State::Failed, 3, "crashed_alone"));
    assert!(why.message.contains("signal 6"), "it says how: {}", why.message);
    for id in ids.into_iter().filter(|id| *id != poison.id) {
        let row = stage.ended(id, LONG).await;
        assert_eq!((row.state, row.attempt, row.crashes), (State::Succeeded, 0, 0), "{:?}", row.why);
    }
    // Once among others, three times alone.
    assert_eq!(stage.witness.count(poison.id, "bites"), 4);
}

#[tokio::test]
async fn a_kill_from_outside_says_less_than_a_crash_of_its_own() {
    let stage = Stage::new().await;
    let (innocent, poison) = (stage.enqueue(stage.job(Act::default())).await, stage.job(Act::default()));
    // The first death only makes a suspect; from then on it ran alone.
    for death in 0..=11 {
        die_with(&stage, innocent, Death::KilledFromOutside).await;
        let row = stage.row(innocent).await;
        assert_eq!((row.state, row.crashes), (State::Queued, death), "{:?}", row.why);
    }
    die_with(&stage, innocent, Death::KilledFromOutside).await;
    assert_eq!(stage.state(innocent).await, State::Failed, "there is an end to everything");
    // Asked for once more, it begins with nothing against it.
    assert!(stage.retry(innocent).await);
    assert_eq!(stage.row(innocent).await.crashes, 0);

    let poison = stage.enqueue(poison).await;
    for death in 0..=2 {
        die_with(&stage, poison, Death::OwnDoing).await;
        assert_eq!((stage.state(poison).await, stage.row(poison).await.crashes), (State::Queued, death));
    }
    die_with(&stage, poison, Death::OwnDoing).await;
    assert_eq!(stage.state(poison).await, State::Failed);
}

/// A worker that exists in the ledger only claims the job and dies.
async fn die_with(stage: &Stage, job: JobId, death: Death) {
    let mut db = stage.db().await;
    let (id, process) = (WorkerId::new(), Uuid::new_v4());
    let row = ledger::WorkerRow { id, process, queue: "ops".into(), host: "paper".into(), pid: 0 };
    ledger::register(&mut *db, &row, SOON).await.unwrap();
    let suspect = stage.row(job).await.suspect;
    let claims = ledger::claim(&mut db, id, Queue::Ops, &["act"], &[job], suspect).await.unwrap();
    assert_eq!(claims.len(), 1);
    ledger::report_death(&mut *db, process, death, "a test").await.unwrap();
    ledger::reap(&mut *db, 10).await.unwrap();
}

#[tokio::test]
async fn a_poison_that_snoozes_between_its_crashes_is_still_found() {
    let stage = Stage::new().await;
    let mut db = stage.db().await;
    let job = stage.enqueue(stage.job(Act::default())).await;
    let claim = async |suspects: bool| {
        let worker = super::stage::paper_worker(&mut *stage.db().await, LONG).await;
        let claims =
            ledger::claim(&mut *stage.db().await, worker, Queue::Ops, &["act"], &[job], suspects).await.unwrap();
        (worker, claims.first().map(|claim| claim.run).expect("it is claimed"))
    };
    let dies = async |worker: WorkerId| {
        let dead = "update workers set lease_expires_at = now() - interval '1 second' where id = $1";
        sqlx::query(dead).bind(worker).execute(&stage.app.pool).await.unwrap();
        ledger::reap(&stage.app.pool, 10).await.unwrap();
    };
    dies(claim(false).await.0).await;
    // Deaths that nobody saw: six of them are enough.
    for crashes in 1..=6 {
        // Alone it looks, waits, parks or is handed back, and no attempt is used: that shows nothing.
        for n in 0..3 {
            let why = multivio::jobs::Why::new("early", "too early");
            let at = ledger::Again::After(Duration::ZERO);
            let again = |wake| ledger::End::Again { at, charged: false, class: "snooze", why: why.clone(), wake };
            let end = match n {
                0 => again(None),
                1 => again(Some("event".to_owned())),
                _ => ledger::End::HandedBack { why: why.clone() },
            };
            let run = claim(true).await.1;
            ledger::settle(&mut *db, &[ledger::Settlement { job, run, end }]).await.unwrap();
            let due = ledger::promote_due(&mut *db, 10, false).await.unwrap();
            assert!(due.runnable.iter().all(|row| row.list.slot == Slot::Suspects), "{due:?}");
        }
        dies(claim(true).await.0).await;
        assert_eq!(stage.row(job).await.crashes, crashes);
    }
    assert_eq!(stage.state(job).await, State::Failed);
}

#[tokio::test]
async fn a_suspect_runs_with_nothing_beside_it() {
    let stage = Stage::new().await;
    let again = [Step::Tell("alone begins".into()), Step::SleepMs(700), Step::Tell("alone ends".into())];
    let once = Act { first: Some(vec![Step::SleepMs(100), Step::Abort]), ..Act::of(again) };
    let suspect = stage.enqueue(stage.job(once)).await;
    let mut worker = stage.worker(4).await;
    stage.once(suspect, SOON, "it to be a suspect", |row| row.suspect).await;
    let others: Vec<NewJob> = (0..60).map(|_| stage.steps([Step::Tell("other".into()), Step::SleepMs(50)])).collect();
    let others = stage.enqueue_all(&others).await;
    stage.successor(&mut worker).await;
    stage.all_succeed(&[suspect], LONG).await;
    stage.all_succeed(&others, LONG).await;
    let begins = stage.witness.heard(suspect, "alone begins", SOON).await.at;
    let ends = stage.witness.heard(suspect, "alone ends", SOON).await.at;
    let beside =
        stage.witness.all().iter().filter(|said| said.what == "other" && said.at > begins && said.at < ends).count();
    assert_eq!(beside, 0, "others ran beside a suspect");
    let row = stage.row(suspect).await;
    assert_eq!((row.suspect, row.crashes, row.attempt), (false, 0, 0), "it has shown its innocence");
}

#[tokio::test]
async fn a_dead_worker_leaves_its_cause() {
    let stage = Stage::new().await;
    let mut worker = stage.worker(2).await;
    let first = worker.id;
    let last_words = Step::Exit { code: 7, last_words: "the disk is on fire".into() };
    let job = stage.job(Act { first: Some(vec![last_words]), ..Act::default() });
    let job = stage.enqueue(job).await;
    let (state, cause_of_first) = cause(&stage, first).await;
    assert_eq!(state, "crashed");
    assert!(
        cause_of_first.contains("exit code 7") && cause_of_first.contains("the disk is on fire"),
        "{cause_of_first}"
    );
    stage.all_succeed(&[job], SOON).await;
    let attempts = stage.attempts(job).await;
    assert_eq!((attempts[0].0.as_str(), attempts[0].2.as_str()), ("crash", cause_of_first.as_str()));

    let (second, _) = stage.successor(&mut worker).await;
    let sleeper = stage.enqueue(stage.steps([Step::SleepMs(10)])).await;
    stage.all_succeed(&[sleeper], SOON).await;
    worker.id = second;
    worker.pid = stage.pid_of(second).await;
    worker.crash();
    let (_, cause_of_second) = cause(&stage, second).await;
    assert!(cause_of_second.starts_with("signal 9"), "{cause_of_second}");
}

#[tokio::test]
async fn a_killed_workers_job_runs_again_within_fifteen_seconds() {
    let stage = Stage::new().await;
    let mut worker = stage.worker(2).await;
    let act = Act {
        first: Some(vec![Step::Tell("first".into()), Step::SleepMs(60_000)]),
        ..Act::of([Step::Tell("second".into())])
    };
    let job = stage.enqueue(stage.job(act)).await;
    stage.witness.heard(job, "first", SOON).await;
    let killed = Instant::now();
    worker.crash();
    let again = stage.witness.heard(job, "second", SOON).await;
    assert!(again.at - killed < Duration::from_secs(15), "it took {:?}", again.at - killed);
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.run, row.attempt), (State::Succeeded, 2, 0));
}

#[tokio::test]
async fn a_job_of_a_machine_that_vanished_runs_again_within_fifteen_seconds() {
    let stage = Stage::new().await;
    // The first one up leads the relay too: that vanishes with it.
    let mut worker = stage.worker(2).await;
    let act = Act {
        first: Some(vec![Step::Tell("first".into()), Step::SleepMs(60_000)]),
        ..Act::of([Step::Tell("second".into())])
    };
    let job = stage.enqueue(stage.job(act)).await;
    stage.witness.heard(job, "first", SOON).await;
    let _other = stage.worker(2).await;
    let killed = Instant::now();
    worker.vanish().await;
    let again = stage.witness.heard(job, "second", Duration::from_secs(30)).await;
    assert!(again.at - killed < Duration::from_secs(15), "it took {:?}", again.at - killed);
    let row = stage.ended(job, SOON).await;
    assert_eq!((row.state, row.run, row.attempt), (State::Succeeded, 2, 0));
    assert_eq!(stage.attempts(job).await[0].2, "process vanished");
}
