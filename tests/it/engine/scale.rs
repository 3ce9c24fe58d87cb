//! A ledger of some size: whatever the engine asks of it, it reads about as much as the answer has, never all that
//! waits, is due or was done.

use std::time::Duration;

use multivio::{
    db,
    ids::TenantId,
    jobs::{
        EnqueueError, Lane, NewJob, Priority, Queue, State,
        belt::{List, Slot},
        ledger::{self, JobFilter, Pruning, Retention, Turn},
    },
};
use sqlx::{Connection, PgConnection};

use super::{Act, Stage, stage::paper_worker};
use crate::harness::full_size;

/// What one statement is asked for at a time.
const LIMIT: i64 = 100;
/// Rows and index entries that it may read for it: far fewer than there are of any sort.
const MOST: i64 = 3_000;

/// Rows of `jobs` and entries of its indexes that this transaction has read.
async fn read(db: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "select sum(pg_stat_get_xact_tuples_returned(oid) + pg_stat_get_xact_tuples_fetched(oid))::bigint \
         from (select 'jobs'::regclass::oid as oid \
               union all select indexrelid from pg_index where indrelid = 'jobs'::regclass) counted",
    )
    .fetch_one(db)
    .await
    .expect("the database answers")
}

macro_rules! reads_little {
    ($db:expr, $what:literal, $call:expr) => {{
        let before = read(&mut $db).await;
        let answer = $call.await;
        let rows = read(&mut $db).await - before;
        assert!(rows <= MOST, "{} read {rows} rows and entries", $what);
        answer
    }};
}

#[tokio::test]
async fn no_statement_reads_more_of_a_large_ledger_than_it_answers_with() {
    let stage = Stage::new().await;
    fill(&stage, if full_size() { 100 } else { 12 }).await;
    let session = db::Session::engine(&stage.app.config().database, "scale").expect("the address is well formed");
    let mut db = session.connect().await.unwrap();
    // In one transaction, within which Postgres counts for itself what was read.
    sqlx::raw_sql("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; begin")
        .execute(&mut db)
        .await
        .unwrap();
    let worker = paper_worker(&mut db, Duration::from_secs(60)).await;
    let (kinds, lane) = (["noop"], Lane::Default);

    for suspects in [false, true] {
        let claims = reads_little!(
            db,
            "claiming from the ledger",
            ledger::claim_from_ledger(&mut db, worker, Queue::Ops, lane, &kinds, suspects, 16)
        );
        assert_eq!(claims.unwrap().len(), 16);
    }
    let due = reads_little!(db, "promoting", ledger::promote_due(&mut db, LIMIT, true)).unwrap();
    assert_eq!(due.moved, 100);
    let (due, next) = reads_little!(db, "turns", ledger::promote_due_by_turns(&mut db, None, LIMIT, LIMIT)).unwrap();
    assert!((1..=100).contains(&due.moved) && next.is_some(), "{due:?}");
    let (_, more) = reads_little!(db, "due serial jobs", ledger::promote_serial(&mut db, LIMIT)).unwrap();
    assert!(more);
    let (due, next) = reads_little!(db, "serial orders", ledger::promote_serial_orders(&mut db, None, LIMIT)).unwrap();
    assert!(due.moved > 0 && next.is_some(), "the head of the long order is among the first: {due:?}");
    let (_, next) = reads_little!(db, "sweeping", ledger::sweep_waiting(&mut db, None, LIMIT)).unwrap();
    assert!(next.is_some());
    reads_little!(db, "sweeping wakes", ledger::sweep_wakes(&mut db)).unwrap();
    reads_little!(db, "reaping", ledger::reap(&mut db, LIMIT)).unwrap();

    let waiting = reads_little!(db, "who waits", ledger::waiting(&mut db, &[], LIMIT)).unwrap();
    for queue in [Queue::Ops, Queue::Ai, Queue::Publish] {
        assert!(waiting.iter().any(|group| group.list.queue == queue), "the crowd of one queue hides {queue}");
    }
    let list = List { queue: Queue::Ops, lane, slot: Slot::Priority(Priority::Normal) };
    let cursors: Vec<(TenantId, i64)> = waiting.iter().map(|group| (group.tenant, 50)).collect();
    reads_little!(db, "the audit", ledger::expected_on_belt(&mut db, list, &cursors, LIMIT)).unwrap();
    let left =
        reads_little!(db, "resuming", ledger::leave_to_relay(&mut db, Queue::Ops, chrono::Utc::now(), LIMIT)).unwrap();
    assert_eq!(left, 100);
    let mut at = Pruning::default();
    reads_little!(db, "forgetting", ledger::prune(&mut db, &mut at, &Retention::default(), LIMIT)).unwrap();

    let unique = NewJob { tenant: crowd(), ..stage.job(Act::default()).unique("one") };
    stage.engine.enqueue_in(&mut db, std::slice::from_ref(&unique)).await.unwrap();
    let again = [NewJob { tenant: crowd(), ..stage.job(Act::default()).unique("one") }];
    let refused = reads_little!(db, "a duplicate", stage.engine.enqueue_in(&mut db, &again));
    assert!(matches!(refused, Err(EnqueueError::Duplicate { existing }) if existing == unique.id), "{refused:?}");
    db.close().await.unwrap();

    // As the API asks.
    let mut db = stage.db().await;
    sqlx::raw_sql("begin").execute(&mut *db).await.unwrap();
    for state in [State::Failed, State::Running] {
        let filter = JobFilter { tenant: Some(crowd()), state: Some(state), ..JobFilter::default() };
        reads_little!(*db, "listing", ledger::list(&mut *db, &filter, None, LIMIT)).unwrap();
    }
}

/// A workspace that goes has done a lot: what is open of it is found without reading through that, whichever it is.
#[tokio::test]
async fn the_end_of_a_tenant_costs_what_is_open_of_it_and_nothing_of_what_it_ever_did() {
    let stage = Stage::new().await;
    fill(&stage, if full_size() { 100 } else { 12 }).await;
    let session = db::Session::worker(&stage.app.config().database, "scale").expect("the address is well formed");
    let mut db = session.connect().await.unwrap();
    sqlx::raw_sql("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; begin")
        .execute(&mut db)
        .await
        .unwrap();
    let tenant = TenantId::from_uuid("00000000-0000-7000-8000-000000000002".parse().expect("an id"));
    let open = async |db: &mut PgConnection, is_theirs: bool| -> i64 {
        sqlx::query_scalar("select count(*) from jobs where (tenant_id = $1) = $2 and finished_at is null")
            .bind(tenant)
            .bind(is_theirs)
            .fetch_one(db)
            .await
            .unwrap()
    };
    let of_others = open(&mut db, false).await;
    let worker = paper_worker(&mut db, Duration::from_secs(60)).await;
    for (change, of) in [
        ("state = 'running', claimed_at = now(), worker_id = $2", "state = 'queued' and suspect"),
        ("state = 'running', claimed_at = now(), worker_id = $2", "state = 'queued'"),
        ("committed = $2 is not null", "state = 'scheduled' and serial_key is null"),
        ("committed = $2 is not null", "state = 'scheduled' and serial_key is not null"),
        ("suspect = $2 is not null", "state = 'queued'"),
    ] {
        let change = format!(
            "update jobs set {change} where id = (select id from jobs where tenant_id = coalesce($1, tenant_id) and {of} limit 1)"
        );
        // No suspect is theirs by itself: the first is another's, and stays.
        let whose = (!of.ends_with("and suspect")).then_some(tenant);
        let done = sqlx::query(sqlx::AssertSqlSafe(change)).bind(whose).bind(worker).execute(&mut db).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{of}");
    }
    assert!(reads_little!(db, "who is at work", ledger::is_at_work_for(&mut db, tenant)).unwrap());
    let mut after = None;
    loop {
        after = reads_little!(
            db,
            "what waits of a tenant",
            ledger::cancel_waiting_of_tenant(&mut db, tenant, after, LIMIT)
        )
        .unwrap();
        if after.is_none() {
            break;
        }
    }
    loop {
        let ended =
            reads_little!(db, "what is open of a tenant", ledger::cancel_of_tenant(&mut db, tenant, LIMIT)).unwrap();
        if ended == 0 {
            break;
        }
    }
    // What runs, and what may have happened elsewhere, comes to its end by itself.
    let left: Vec<(String, bool, bool)> = sqlx::query_as(
        "select state::text, committed, cancel_requested from jobs \
         where tenant_id = $1 and finished_at is null order by 1, 2",
    )
    .bind(tenant)
    .fetch_all(&mut db)
    .await
    .unwrap();
    let committed = ("scheduled".to_owned(), true, false);
    assert_eq!(left, [("running".to_owned(), false, true), committed.clone(), committed]);
    assert_eq!(open(&mut db, false).await, of_others, "nobody else's work ends");

    for (ends, is_at_work) in [("state = 'running'", true), ("serial_key is null", true), ("committed", false)] {
        let end = format!(
            "update jobs set state = 'cancelled', worker_id = null, finished_at = now() \
             where tenant_id = $1 and finished_at is null and {ends}"
        );
        sqlx::query(sqlx::AssertSqlSafe(end)).bind(tenant).execute(&mut db).await.unwrap();
        let found = reads_little!(db, "who is at work", ledger::is_at_work_for(&mut db, tenant)).unwrap();
        assert_eq!(found, is_at_work, "after the end of {ends}");
    }
    db.close().await.unwrap();
}

/// A ledger that is large in one way only: to find out that there is nothing of another sort is as cheap as to find it.
/// Statistics do not help the planner with a state, which row level security hides from them.
#[tokio::test]
async fn no_statement_reads_a_large_ledger_to_find_that_there_is_nothing_to_do() {
    let states =
        [("queued", "0"), ("waiting", "0"), ("scheduled", "1 day"), ("succeeded", "-3 days"), ("failed", "-3 days")];
    for ((state, due), was_small) in states.into_iter().flat_map(|of| [(of, false), (of, true)]) {
        let stage = Stage::new().await;
        let session = db::Session::engine(&stage.app.config().database, "scale").expect("the address is well formed");
        let mut db = session.connect().await.unwrap();
        // Plans are kept for as long as a session: a ledger that fills in seconds is read by those of a small one.
        if was_small {
            write(&stage, "select filling_add(2, 'ops', 'queued', 2, '0');", true).await;
            ask_what_there_is_to_do(&mut db).await;
        }
        let rows = format!("select filling_add(20000, 'ops', '{state}', 1, '{due}');");
        write(&stage, &rows, !was_small).await;
        ask_what_there_is_to_do(&mut db).await;
        db.close().await.unwrap();
    }
}

/// All that the relay and idle workers ask, where nothing is done by it.
async fn ask_what_there_is_to_do(db: &mut PgConnection) {
    let mut db = db.begin().await.unwrap();
    let worker = paper_worker(&mut db, Duration::from_secs(60)).await;
    let kinds = ["noop"];
    reads_little!(*db, "promoting", ledger::promote_due(&mut *db, LIMIT, true)).unwrap();
    reads_little!(*db, "turns", ledger::promote_due_by_turns(&mut *db, None, LIMIT, LIMIT)).unwrap();
    reads_little!(*db, "due serial jobs", ledger::promote_serial(&mut *db, LIMIT)).unwrap();
    reads_little!(*db, "serial orders", ledger::promote_serial_orders(&mut *db, None, LIMIT)).unwrap();
    reads_little!(*db, "sweeping", ledger::sweep_waiting(&mut *db, None, LIMIT)).unwrap();
    reads_little!(*db, "sweeping wakes", ledger::sweep_wakes(&mut *db)).unwrap();
    reads_little!(*db, "reaping", ledger::reap(&mut *db, LIMIT)).unwrap();
    reads_little!(*db, "strays", ledger::hand_back_strays(&mut *db, worker, &[], Duration::ZERO)).unwrap();
    reads_little!(*db, "cancels", ledger::cancel_requests(&mut *db, worker)).unwrap();
    reads_little!(*db, "suspects", ledger::suspect_lists(&mut *db)).unwrap();
    let waiting = reads_little!(*db, "who waits", ledger::waiting(&mut *db, &[], LIMIT)).unwrap();
    let list = List { queue: Queue::Ops, lane: Lane::Default, slot: Slot::Priority(Priority::Normal) };
    let turns: Vec<_> =
        waiting.iter().map(|group| Turn { tenant: group.tenant, after_seq: i64::MAX - 1, limit: LIMIT }).collect();
    reads_little!(*db, "filling", ledger::fill(&mut *db, list, &turns)).unwrap();
    let cursors: Vec<(TenantId, i64)> = waiting.iter().map(|group| (group.tenant, 50)).collect();
    reads_little!(*db, "the audit", ledger::expected_on_belt(&mut *db, list, &cursors, LIMIT)).unwrap();
    let mut at = Pruning::default();
    reads_little!(*db, "forgetting", ledger::prune(&mut db, &mut at, &Retention::default(), LIMIT)).unwrap();
    let claims = reads_little!(
        *db,
        "claiming from the ledger",
        ledger::claim_from_ledger(&mut *db, worker, Queue::Ai, Lane::Default, &kinds, false, 16)
    );
    assert!(claims.unwrap().is_empty());
    db.rollback().await.unwrap();
}

/// The tenant that has more of everything than all the others.
fn crowd() -> TenantId {
    TenantId::from_uuid("00000000-0000-7000-8000-000000000000".parse().expect("an id"))
}

/// Some ten thousand rows for each of `parts`: finished, queued, due, scheduled, waiting and serial ones.
async fn fill(stage: &Stage, parts: i32) {
    write(stage, &ROWS.replace("PARTS", &parts.to_string()), true).await;
}

/// Fills the ledger by `rows`, which calls `filling_add`: no function of a temporary schema, whose making throws away all
/// plans that sessions keep.
async fn write(stage: &Stage, rows: &str, is_counted: bool) {
    let mut tx = stage.app.pool.begin().await.unwrap();
    sqlx::raw_sql("set local statement_timeout = 0").execute(&mut *tx).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{FUNCTIONS}{rows}"))).execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    if !is_counted {
        return;
    }
    let mut db = stage.db().await;
    sqlx::raw_sql("set statement_timeout = 0").execute(&mut *db).await.unwrap();
    sqlx::raw_sql("vacuum (analyze) jobs").execute(&mut *db).await.unwrap();
    db.close_on_drop();
}

const FUNCTIONS: &str = "
    create or replace function filling_id(n bigint, age interval) returns uuid language sql as $$
        select (lpad(to_hex((extract(epoch from now() - age) * 1000)::bigint), 12, '0') || '7'
                || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid $$;
    create or replace function filling_tenant(n bigint) returns uuid language sql as $$
        select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid $$;
    create or replace function filling_add(n integer, made_in text, now_in job_state, tenants integer, due interval,
                                rest jsonb default '{}') returns void language sql as $$
        insert into jobs (id, tenant_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at,
                          due_at, state, queued_at, finished_at, pushed, suspect, serial_key, open_parents)
        select filling_id(random_n, rest_age - i * interval '1 millisecond'), filling_tenant(i % tenants), made_in, 'default', 'noop', 1, '{}', 8,
               60000, now() + due, now() + due + i * interval '1 millisecond', now_in,
               case when now_in = 'queued' then now() - interval '1 minute' end,
               case when now_in in ('succeeded', 'failed') then now() - interval '3 days' end,
               coalesce(i % (rest ->> 'pushed')::integer = 0, false), coalesce((rest ->> 'suspect')::boolean, false),
               case when rest ? 'serial' then (rest ->> 'serial') || i % (rest ->> 'keys')::integer end,
               case when now_in = 'waiting' then 1 else 0 end
        from generate_series(1, n) i,
             lateral (select (random() * 1e15)::bigint + i as random_n,
                             case when now_in in ('succeeded', 'failed') then interval '3 days'
                                  else interval '1 hour' end as rest_age) r $$;
";

const ROWS: &str = "
    select filling_add(5000 * PARTS, 'ops', 'succeeded', 3, '-3 days');
    select filling_add(50, 'ops', 'failed', 3, '-3 days');
    select filling_add(1000 * PARTS, 'ops', 'queued', 1, '0', '{\"pushed\": 10}');
    select filling_add(500 * PARTS, 'ops', 'queued', 400, '0');
    select filling_add(500 * PARTS, 'ai', 'queued', 400, '0');
    select filling_add(100, 'publish', 'queued', 2, '0');
    select filling_add(50, 'ops', 'queued', 2, '0', '{\"suspect\": true}');
    select filling_add(500 * PARTS, 'publish', 'scheduled', 1, '-1 hour');
    select filling_add(500 * PARTS, 'publish', 'scheduled', 1000, '1 day');
    select filling_add(500 * PARTS, 'publish', 'scheduled', 1, '-1 hour', '{\"serial\": \"a\", \"keys\": 1}');
    select filling_add(500 * PARTS, 'publish', 'scheduled', 50, '1 day', '{\"serial\": \"k\", \"keys\": 5000}');
    select filling_add(500 * PARTS, 'publish', 'waiting', 50, '0');
    insert into job_edges (parent_id, child_id, on_parent)
    select (select id from jobs where state = 'scheduled' limit 1), id, 'run' from jobs where state = 'waiting';
";
