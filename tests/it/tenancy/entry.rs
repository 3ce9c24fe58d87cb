//! Jobs enter for whoever is calling, and a connection serves one call at a time.

use std::time::Duration;

use multivio::{
    config::DatabaseConfig,
    db::TenantDb,
    identity::{Caller, Role},
    ids::{JobId, TenantId, UserId},
    jobs::{Engine, EnqueueError, NewJob, OnParent, Priority, belt::Belt, ledger, noop::Noop},
};
use serde_json::Value;

use crate::harness::App;

fn caller(tenant: TenantId) -> Caller {
    Caller::new(tenant, UserId::new(), Role::Owner.scopes())
}

fn noop(tenant: TenantId) -> NewJob {
    NewJob::of(&Noop { payload: String::new() }, tenant)
}

/// The engine as `multivio api` has it.
fn engine(app: &App, db: &TenantDb) -> Engine {
    let config = app.config();
    let own = multivio::db::pool(&config.database, "test").unwrap();
    Engine::for_callers(own.clone(), db.clone(), Belt::new(&config.redis, own).unwrap())
}

fn tenant_db(app: &App, connections: u32) -> TenantDb {
    let config = DatabaseConfig { max_connections: connections, ..app.config().database };
    TenantDb::new(&config, "test").unwrap()
}

async fn tenant_of(app: &App, job: JobId) -> Option<TenantId> {
    sqlx::query_scalar("select tenant_id from jobs where id = $1").bind(job).fetch_optional(&app.pool).await.unwrap()
}

#[tokio::test]
async fn a_job_enters_for_its_caller_whatever_tenant_it_names() {
    let app = App::new().await;
    let db = tenant_db(&app, 5);
    let engine = engine(&app, &db);
    let (one, other) = (caller(TenantId::new()), caller(TenantId::new()));
    let mut tx = db.begin(&other).await.unwrap();
    let theirs = engine.new_group(&mut tx, other.tenant, "theirs").await.unwrap();
    let parent = noop(other.tenant);
    engine.enqueue_in(&mut tx, std::slice::from_ref(&parent)).await.unwrap();
    tx.commit().await.unwrap();

    // A crowd in the same batches: what crosses is refused alone.
    let mut jobs: Vec<(bool, NewJob)> = (0..40).map(|_| (true, noop(other.tenant))).collect();
    jobs.insert(10, (false, noop(one.tenant).group(theirs)));
    jobs.insert(30, (false, noop(other.tenant).group(theirs)));
    let ids: Vec<_> = jobs.iter().map(|(may, job)| (*may, job.id)).collect();
    let outcomes = futures::future::join_all(jobs.into_iter().map(|(_, job)| engine.enqueue_for(&one, job))).await;
    for ((may, id), outcome) in ids.into_iter().zip(outcomes) {
        match outcome {
            Ok(entered) => assert!(may && entered == id),
            Err(EnqueueError::Unstorable(why)) => assert!(!may && why.contains("own workspace"), "{why}"),
            Err(other) => panic!("{other}"),
        }
        assert_eq!(tenant_of(&app, id).await, may.then_some(one.tenant));
    }
    // Nor behind another's job.
    let child = noop(one.tenant).after(parent.id, OnParent::Run);
    let id = child.id;
    assert!(matches!(engine.enqueue_for(&one, child).await, Err(EnqueueError::Unstorable(_))));
    assert_eq!(tenant_of(&app, id).await, None);
    // Without a word for whom, nothing enters.
    assert!(matches!(engine.enqueue(noop(one.tenant)).await, Err(EnqueueError::Nobodys)));
}

#[tokio::test]
async fn in_a_callers_transaction_a_job_of_another_tenant_is_refused() {
    let app = App::new().await;
    let db = tenant_db(&app, 5);
    let engine = engine(&app, &db);
    let (one, other) = (caller(TenantId::new()), caller(TenantId::new()));
    let mut tx = db.begin(&other).await.unwrap();
    let theirs = engine.new_group(&mut tx, other.tenant, "theirs").await.unwrap();
    tx.commit().await.unwrap();
    for job in [noop(other.tenant), noop(one.tenant).group(theirs)] {
        let mut tx = db.begin(&one).await.unwrap();
        let refused = engine.enqueue_in(&mut tx, std::slice::from_ref(&job)).await;
        assert!(matches!(refused, Err(EnqueueError::Unstorable(_))), "{refused:?}");
        drop(tx);
        assert_eq!(tenant_of(&app, job.id).await, None);
    }
}

#[tokio::test]
async fn a_taken_key_is_told_to_its_own_tenant_alone() {
    let app = App::new().await;
    let db = tenant_db(&app, 2);
    let engine = engine(&app, &db);
    let (one, other) = (caller(TenantId::new()), caller(TenantId::new()));
    let first = engine.enqueue_for(&one, noop(one.tenant).unique("k")).await.unwrap();
    let again: Vec<_> = (0..20).map(|_| engine.enqueue_for(&one, noop(one.tenant).unique("k"))).collect();
    for outcome in futures::future::join_all(again).await {
        assert!(matches!(outcome, Err(EnqueueError::Duplicate { existing }) if existing == first), "{outcome:?}");
    }
    engine.enqueue_for(&other, noop(one.tenant).unique("k")).await.expect("another tenant's key is another key");
}

#[tokio::test]
async fn both_ways_in_write_the_same_row() {
    let app = App::new().await;
    sqlx::query("insert into queue_controls (queue, paused_at) values ('media', now())")
        .execute(&app.pool)
        .await
        .unwrap();
    let tenant = TenantId::new();
    let later = chrono::Utc::now() + Duration::from_secs(3600);
    let mut serial = noop(tenant).unique("u");
    serial.serial_key = Some("s".into());
    serial.serial_patience = Some(Duration::from_secs(60));
    let mut paused = noop(tenant);
    paused.queue = multivio::jobs::Queue::Media;
    let jobs = [noop(tenant), noop(tenant).priority(Priority::High).run_at(later), serial, paused];
    let mut written: Vec<Vec<Value>> = Vec::new();
    for by_function in [false, true] {
        let mut tx = app.pool.begin().await.unwrap();
        for (number, job) in jobs.iter().enumerate() {
            let open_parents = i16::from(number == 0);
            let row = [ledger::Insert { job, pushed: true, open_parents }];
            let entered = match by_function {
                false => ledger::insert(&mut tx, &row).await,
                true => ledger::insert_for(&mut tx, &row, &[Some(tenant)]).await,
            };
            assert_eq!(entered.unwrap().len(), 1);
        }
        // Times are told apart by whether and how far they lie ahead, not by when this ran.
        let rows = sqlx::query_scalar(
            "select to_jsonb(j) - '{seq,created_at,run_at,due_at,serial_until,queued_at}'::text[] \
               || jsonb_build_object('run_in', j.run_at > now(), 'due', j.due_at = j.run_at, \
                  'patience', j.serial_until - j.run_at, 'queued', j.queued_at = now()) from jobs j order by id",
        );
        written.push(rows.fetch_all(&mut *tx).await.unwrap());
        tx.rollback().await.unwrap();
    }
    assert_eq!((written[0].len(), &written[0]), (4, &written[1]));
}

#[tokio::test]
async fn an_event_wakes_its_own_tenants_jobs_alone() {
    let app = App::new().await;
    let db = tenant_db(&app, 5);
    let engine = engine(&app, &db);
    let (one, other) = (caller(TenantId::new()), caller(TenantId::new()));
    for who in [&one, &other] {
        let id = engine.enqueue_for(who, noop(who.tenant).run_at(chrono::Utc::now() + Duration::from_secs(3600))).await;
        sqlx::query("update jobs set parked = true, wake_key = 'event' where id = $1")
            .bind(id.unwrap())
            .execute(&app.pool)
            .await
            .unwrap();
    }
    let mut tx = db.begin(&one).await.unwrap();
    assert_eq!(engine.wake(&mut tx, "event").await.unwrap(), 1);
    tx.commit().await.unwrap();
    let still: Vec<TenantId> =
        sqlx::query_scalar("select tenant_id from jobs where parked").fetch_all(&app.pool).await.unwrap();
    assert_eq!(still, [other.tenant]);
}

/// Few connections, many callers, most of whom go away in the middle.
#[tokio::test]
async fn a_connection_is_its_callers_alone_also_when_calls_are_broken_off() {
    let app = App::new().await;
    let db = tenant_db(&app, 2);
    let seen = "select nullif(current_setting('multivio.tenant', true), '')::uuid, auth.uid()";
    let calls = (0..300_u64).map(|number| {
        let db = db.clone();
        tokio::spawn(async move {
            let call = async {
                if number % 3 == 0 {
                    let mut nobodys = db.nobody().await.unwrap();
                    let nobody: (Option<TenantId>, Option<UserId>) =
                        sqlx::query_as(seen).fetch_one(&mut *nobodys).await.unwrap();
                    assert_eq!(nobody, (None, None));
                    return;
                }
                let caller = caller(TenantId::new());
                let mut tx = db.begin(&caller).await.unwrap();
                sqlx::query("select pg_sleep(0.001 * $1)").bind((number % 7) as f64).execute(&mut *tx).await.unwrap();
                let own: (Option<TenantId>, Option<UserId>) = sqlx::query_as(seen).fetch_one(&mut *tx).await.unwrap();
                assert_eq!(own, (Some(caller.tenant), Some(caller.user)));
                if number % 2 == 0 {
                    tx.commit().await.unwrap();
                }
            };
            let longest = Duration::from_millis(if number % 5 == 0 { 20_000 } else { 3 + number % 40 });
            tokio::time::timeout(longest, call).await.is_ok()
        })
    });
    let ended: Vec<bool> =
        futures::future::join_all(calls).await.into_iter().map(|call| call.expect("no call saw another's")).collect();
    assert!(ended.contains(&true) && ended.contains(&false), "calls both ended and were broken off");
}
