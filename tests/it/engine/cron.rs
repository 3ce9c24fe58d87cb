//! Schedules: every fire once, whoever else tries (E19). The rules for clocks that change are proved beside them.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use multivio::{
    ids::TenantId,
    jobs::{
        NewJob, Queue, State,
        relay::{CatchUp, Schedule, Timetable},
    },
};

use super::{Act, Stage, Step};
use crate::harness::wait_until;

const SOON: Duration = Duration::from_secs(20);

fn every_second(catch_up: CatchUp) -> Timetable {
    Timetable { name: "tick".into(), cron: "* * * * * *".into(), timezone: "UTC".into(), catch_up, exclusive: false }
}

async fn add(stage: &Stage, timetable: &Timetable) {
    let act = stage.witnessed(Act::of([Step::Tell("tick".into())]));
    let schedule = Schedule { timetable: timetable.clone(), job: NewJob::of(&act, TenantId::SYSTEM) };
    schedule.save(&mut *stage.db().await).await.unwrap();
}

async fn fires(stage: &Stage) -> Vec<(DateTime<Utc>, multivio::ids::JobId)> {
    sqlx::query_as("select fire_at, job_id from schedule_fires where schedule = 'tick' order by fire_at")
        .fetch_all(&stage.app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_schedule_fires_once_each_time_with_several_relays_and_a_change_of_leader() {
    let stage = Stage::new().await;
    let mut first = stage.worker(4).await;
    let _second = stage.worker(4).await;
    add(&stage, &every_second(CatchUp::Latest)).await;
    wait_until(SOON, "some fires", || async { fires(&stage).await.len() >= 3 }).await;
    first.vanish().await;
    let before = fires(&stage).await.len();
    wait_until(SOON, "more fires by another leader", || async { fires(&stage).await.len() >= before + 3 }).await;
    sqlx::query("update schedules set paused = true where name = 'tick'").execute(&stage.app.pool).await.unwrap();
    let fired = fires(&stage).await;
    let mut runs = HashMap::new();
    for (fire_at, job) in &fired {
        let row = stage.ended(*job, SOON).await;
        assert_eq!(row.state, State::Succeeded, "the fire of {fire_at}");
        runs.insert(*job, usize::try_from(row.run).unwrap());
    }
    let mut told: HashMap<_, usize> = HashMap::new();
    for said in stage.witness.all() {
        *told.entry(said.job).or_default() += 1;
    }
    assert_eq!(told.len(), fired.len(), "as many jobs as fires");
    // One that the vanished worker had in hand runs again.
    assert!(told.iter().all(|(job, times)| *times <= runs[job]), "{told:?} {runs:?}");
    let jobs: i64 =
        sqlx::query_scalar("select count(*) from jobs where kind = 'act'").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(usize::try_from(jobs).unwrap(), fired.len());
}

#[tokio::test]
async fn a_schedule_of_a_newer_release_stays_due_for_a_leader_that_knows_it() {
    let stage = Stage::new().await;
    add(&stage, &Timetable { name: "newer".into(), ..every_second(CatchUp::Latest) }).await;
    let due = "update schedules set queue = 'telepathy', next_at = date_trunc('second', now()) where name = 'newer'";
    sqlx::query(due).execute(&stage.app.pool).await.unwrap();
    let next_at = async || -> DateTime<Utc> {
        let next_at = "select next_at from schedules where name = 'newer'";
        sqlx::query_scalar(next_at).fetch_one(&stage.app.pool).await.unwrap()
    };
    let before = next_at().await;
    add(&stage, &every_second(CatchUp::Latest)).await;
    let _worker = stage.worker(2).await;
    wait_until(SOON, "the leader to fire what it knows", || async { fires(&stage).await.len() >= 2 }).await;
    assert_eq!(next_at().await, before);
}

#[tokio::test]
async fn two_leaders_that_fire_the_same_schedule_at_once_make_one_job() {
    use multivio::jobs::ledger;
    let stage = Stage::new().await;
    add(&stage, &every_second(CatchUp::Latest)).await;
    sqlx::query("update schedules set next_at = now() - interval '1 second'").execute(&stage.app.pool).await.unwrap();
    let (rows, now) = ledger::due_schedules(&mut *stage.db().await).await.unwrap();
    let fire = async || {
        let job = stage.job(Act::default());
        let mut tx = stage.app.pool.begin().await.unwrap();
        let fired = ledger::fire(&mut tx, &rows[0], rows[0].next_at, now + SOON, Some(&job)).await.unwrap();
        tx.commit().await.unwrap();
        fired
    };
    let (one, other) = tokio::join!(fire(), fire());
    assert_ne!(one, other, "exactly one of them fires");
    assert_eq!(fires(&stage).await.len(), 1);
}

#[tokio::test]
async fn of_the_fires_missed_while_nobody_led_the_latest_runs_and_no_other() {
    let stage = Stage::new().await;
    let hourly = |catch_up| Timetable { cron: "0 * * * *".into(), ..every_second(catch_up) };
    for (catch_up, expected) in [(CatchUp::Latest, 1), (CatchUp::Skip, 0)] {
        sqlx::query("delete from schedules where name = 'tick'").execute(&stage.app.pool).await.unwrap();
        add(&stage, &hourly(catch_up)).await;
        // Down since yesterday. An hour's change is ours to avoid: within its first minute nothing would be "missed".
        let asked = "update schedules set next_at = date_trunc('hour', now()) - interval '1 day' where name = 'tick'";
        sqlx::query(asked).execute(&stage.app.pool).await.unwrap();
        let mut worker = stage.worker(2).await;
        wait_until(SOON, "the schedule to move on", || async {
            let ahead: bool = sqlx::query_scalar("select next_at > now() from schedules where name = 'tick'")
                .fetch_one(&stage.app.pool)
                .await
                .unwrap();
            ahead
        })
        .await;
        let fired = fires(&stage).await.len();
        let in_first_minute = Utc::now().timestamp() % 3_600 < 75;
        assert!(fired == expected || in_first_minute && fired == 1, "{catch_up:?}: {fired} fires");
        worker.vanish().await;
    }
}

#[tokio::test]
async fn a_fire_that_meets_its_unfinished_predecessor_is_left_out_when_it_shall_be() {
    let stage = Stage::new().await;
    add(&stage, &Timetable { exclusive: true, ..every_second(CatchUp::Latest) }).await;
    stage.engine.pause(Queue::Ops, "so that none finishes").await.unwrap();
    let _worker = stage.worker(2).await;
    wait_until(SOON, "several fires", || async { fires(&stage).await.len() >= 3 }).await;
    let jobs: i64 =
        sqlx::query_scalar("select count(*) from jobs where kind = 'act'").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(jobs, 1);
}
