//! Migrations meet a ledger that is in use.

use multivio::db::MIGRATIONS;
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection, migrate::Migrator};

use crate::harness::Servers;

/// Before the table of jobs was written anew.
const BEFORE_LAYOUT: i64 = 11;

/// A job in every state, with all that hangs on jobs.
const IN_USE: &str = "
    insert into jobs (id, tenant_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at, due_at, state,
                      worker_id, finished_at, open_parents, result, why, serial_key, unique_key, retries, wake_seen)
    select ('01900000-0000-7000-8000-00000000000' || n)::uuid, gen_random_uuid(), 'ops', 'default', 'noop', n, '{\"n\": 1}',
           8, 60000, now(), now() - interval '1 day', state, case when state = 'running' then gen_random_uuid() end,
           case when state in ('succeeded', 'failed', 'cancelled') then now() end, n, '{\"bytes\": 1}', '{\"code\": \"c\"}',
           'serial ' || n, 'unique ' || n, n, n
    from unnest(enum_range(null::job_state)) with ordinality as s (state, n);
    insert into job_edges (parent_id, child_id, on_parent) select a.id, b.id, 'run' from jobs a, jobs b where a.id < b.id;
    insert into job_attempts (job_id, run, class, code, message) select id, 1, 'retry', 'c', 'm' from jobs;
";

async fn everything(db: &mut PgConnection) -> Vec<String> {
    let rows = "select to_jsonb(j)::text from jobs j union all select to_jsonb(e)::text from job_edges e \
                union all select to_jsonb(a)::text from job_attempts a order by 1";
    sqlx::query_scalar(rows).fetch_all(db).await.expect("the database answers")
}

#[tokio::test]
async fn the_ledger_that_is_written_anew_has_all_that_it_had() {
    let servers = Servers::shared();
    let name = "before_the_layout";
    servers.control().await.postgres.create_database(name).await.unwrap();
    let mut db = PgConnection::connect(servers.database_url(name).expose_secret()).await.unwrap();
    let before = MIGRATIONS.iter().filter(|migration| migration.version <= BEFORE_LAYOUT).cloned().collect();
    Migrator::with_migrations(before).run(&mut db).await.unwrap();
    sqlx::raw_sql(IN_USE).execute(&mut db).await.unwrap();
    let had = everything(&mut db).await;
    assert!(had.len() > 30, "{had:?}");
    MIGRATIONS.run(&mut db).await.unwrap();
    assert_eq!(everything(&mut db).await, had);
    // What hangs on a job goes with it, as before.
    sqlx::query("delete from jobs").execute(&mut db).await.unwrap();
    assert_eq!(everything(&mut db).await, Vec::<String>::new());
}
