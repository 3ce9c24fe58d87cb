//! Every table by SQL: as another tenant, as nobody, as a worker.

use multivio::ids::{TenantId, UserId};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{DENIED, api_session, code};
use crate::harness::App;

/// Tables without a word about any tenant, which calls may read.
const EVERYBODYS: [&str; 3] = ["patreon_tiers", "plans", "queue_controls"];
/// What workers must not know: who people are and how they get in.
const CLOSED_TO_WORKERS: [&str; 4] = ["api_keys", "users", "workspace_members", "workspaces"];
/// Of these a worker may not change everything.
const APPEND_ONLY: [&str; 1] = ["audit_log"];

/// One row of everything that a workspace can have. A new table has to come in here before the tests below pass.
const ROWS: &str = "
    insert into users (id, provider, subject, email, personal_workspace_id) values (:user, 'local', :user::text, 'a@b.c', :tenant);
    insert into workspaces (id, name) values (:tenant, 'W');
    insert into workspace_members (tenant_id, user_id, role) values (:tenant, :user, 'owner');
    insert into api_keys (id, tenant_id, created_by, name, prefix, secret_hash, scopes)
        values (:id, :tenant, :user, 'k', :user::text, decode(repeat('00', 32), 'hex'), '{}');
    insert into audit_log (id, tenant_id, actor, user_id, action) values (:id, :tenant, 'user', :user, 'a');
    insert into idempotency_keys (tenant_id, route, key, request_hash) values (:tenant, 'r', 'k', '');
    insert into job_groups (id, tenant_id, name) values (:id, :tenant, 'g');
    insert into jobs (id, tenant_id, group_id, run_at, due_at, timeout_ms, priority, max_attempts, state, queue, lane,
        kind, args, wake_key) values (:id, :tenant, :id, now(), now(), 1, 1, 1, 'scheduled', 'ops', 'upkeep', 'noop',
        '{}', 'event');
    insert into job_edges (parent_id, child_id, on_parent) values (:id, :id, 'run');
    insert into job_attempts (job_id, run, class, code, message) values (:id, 1, 'c', 'c', 'm');
    insert into job_notes (job_id, what, detail) values (:id, 'w', '{}');
    insert into job_wakes (wake_key, at) values (:user::text, now());
    insert into media_objects (id, tenant_id, storage_key, state, sha256, size_bytes, mime)
        values (:id, :tenant, :user::text, 'kept', decode(repeat('00', 32), 'hex'), 1, 'image/png');
    insert into media (id, tenant_id, object_id, name, kind, probe) values (:id, :tenant, :id, 'n', 'png', '{}');
    insert into media_references (media_id, holder_kind, holder_id) values (:id, 'post', :id);
    insert into renditions (id, tenant_id, source_id, preset, preset_version) values (:id, :tenant, :id, 'p', 1);
    insert into posts (id, tenant_id, universal_content) values (:id, :tenant, 't');
    insert into post_media (post_id, position, tenant_id, media_id) values (:id, 0, :tenant, :id);
    insert into connections (id, tenant_id, platform, remote_account_id, username, display_name, access_token)
        values (:id, :tenant, 'x', 'the same account', 'u', 'd', 'secret');
    insert into token_flights (connection_id, tenant_id, fence, generation, expires_at)
        values (:id, :tenant, :id, 1, now());
    insert into publications (id, tenant_id, post_id, connection_id, platform, job_id, phase, due_at, late_policy,
        max_lateness_s, remote_id, content, fingerprint) values (:id, :tenant, :id, :id, 'x', :id, 'sent', now(), 'ask',
        1, :user::text, '{}', 'f');
    insert into publication_media (publication_id, position, tenant_id, media_id, kind) values (:id, 0, :tenant, :id, 'image');
    insert into publication_intents (publication_id, attempt, tenant_id, fingerprint, baseline, intended_at, certain_after)
        values (:id, 1, :tenant, 'f', 'b', now(), now());
    insert into budget_grants (budget, publication_id, tenant_id, slot_at, expires_at, attempt)
        values ('b', :id, :tenant, now(), now(), 1);
    insert into ai_usage (id, tenant_id, provider, model_asked, attempt, reserved_ticks, expires_at)
        values (:id, :tenant, 'p', 'm', 1, 1, now());
    insert into ai_budgets (subject, period, limit_ticks) values ('tenant:' || :tenant, 'day', 1);
    insert into ai_cache (tenant_id, key, answer, expires_at) values (:tenant, 'k', '{}', now());
    insert into budget_windows (budget, limit_count, remaining, reset_at) values (:user::text, 1, 1, now());
    insert into platform_circuits (platform) values (:user::text);
    insert into queue_controls (queue) values (:user::text);
    insert into queue_canaries (queue, seen_at) values (:user::text, now());
    insert into schedules (name, cron, timezone, kind, queue, lane, args, max_attempts, timeout_ms, catch_up, next_at)
        values (:user::text, '', '', '', '', '', '{}', 1, 1, 'skip', now());
    insert into schedule_fires (schedule, fire_at, job_id) values (:user::text, now(), :id);
    insert into workers (id, process_id, queue, host, pid, version, lease_expires_at)
        values (:id, :id, 'ops', 'h', 1, 'v', now());
    insert into plans (name) values (left(:user::text, 36));
    insert into workspace_plans (tenant_id, source, plan) values (:tenant, 'patreon', :user::text);
    insert into patreon_tiers (tier_id, plan) values (:user::text, :user::text);
    insert into patreon_flows (state_hash, tenant_id, user_id, challenge, expires_at)
        values (sha256(:user::text::bytea), :tenant, :user, sha256('c'), now());
    insert into patreon_links (id, tenant_id, linked_by, patreon_user_id, access_token, refresh_token, access_expires_at)
        values (:id, :tenant, :user, :user::text, 'secret', 'secret', now());
    insert into patreon_hints (body_hash) values (sha256(:user::text::bytea));
    insert into account_consents (id, tenant_id, user_id, platform, state_hash, sealed, expires_at)
        values (:id, :tenant, :user, 'x', sha256(:user::text::bytea), 'secret', now());
    insert into media_imports (id, tenant_id, job_id, sealed) values (:id, :tenant, :id, 'secret');
    insert into exports (id, tenant_id, user_id, kind, storage_key) values (:id, :tenant, :user, 'user', :user::text);
    insert into erasures (id, kind, subject) values (:id, 'user', :id);";

async fn fill(app: &App, tenant: TenantId, user: UserId) {
    fill_by(&mut app.pool.acquire().await.unwrap(), tenant, user).await;
}

/// The same by a session that may write everything.
pub async fn fill_by(session: &mut PgConnection, tenant: TenantId, user: UserId) {
    let quoted = |id: uuid::Uuid| format!("'{id}'::uuid");
    let rows = ROWS.replace(":tenant", &quoted(tenant.uuid())).replace(":user", &quoted(user.uuid()));
    let rows = rows.replace(":id", &quoted(uuid::Uuid::now_v7()));
    sqlx::raw_sql(AssertSqlSafe(rows)).execute(session).await.expect("the rows are as the tables want them");
}

/// All tables, and whether a row of theirs names its tenant.
async fn tables(app: &App) -> Vec<(String, bool)> {
    sqlx::query_as(
        "select c.relname::text, exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id') \
         from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') \
         and c.relname <> '_sqlx_migrations' order by 1",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap()
}

async fn columns(app: &App, table: &str) -> Vec<String> {
    sqlx::query_scalar(
        "select a.attname::text from pg_attribute a \
         where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum",
    )
    .bind(format!("public.{table}"))
    .fetch_all(&app.pool)
    .await
    .unwrap()
}

async fn count(session: &mut PgConnection, table: &str, and: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from public.{table} {and}"))).fetch_one(session).await
}

#[tokio::test]
async fn every_table_is_closed_and_says_to_whom_it_opens() {
    let app = App::new().await;
    let open: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c where c.relnamespace = 'public'::regnamespace \
         and c.relkind in ('r', 'p', 'v', 'm', 'f') and c.relname <> '_sqlx_migrations' and not ( \
           c.relrowsecurity and c.relforcerowsecurity and exists (select from pg_policy p where p.polrelid = c.oid))",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert!(open.is_empty(), "without forced row level security, or without a policy: {open:?}");
    let everybodys: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.role_table_grants \
         where table_schema = 'public' and grantee in ('PUBLIC', 'anon', 'authenticated')",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert!(everybodys.is_empty(), "{everybodys:?}");
    let able: Vec<String> = sqlx::query_scalar(
        "select rolname::text from pg_roles where rolname like 'multivio\\_%' \
         and (rolsuper or rolbypassrls or rolcanlogin or rolcreaterole or rolcreatedb)",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert!(able.is_empty(), "{able:?}");
    let loose: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'app'::regnamespace and p.prosecdef \
         and (p.proconfig is null or not 'search_path=\"\"' = any(p.proconfig) \
              or p.proowner <> 'multivio_definer'::regrole or has_function_privilege('public', p.oid, 'execute'))",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    assert!(loose.is_empty(), "functions that anybody may run, or that can be led astray: {loose:?}");
}

#[tokio::test]
async fn no_table_shows_gives_or_takes_a_row_of_another_tenant() {
    let app = App::new().await;
    let (mine, theirs) = ((app.tenant, app.user), (TenantId::new(), UserId::new()));
    fill(&app, mine.0, mine.1).await;
    sqlx::raw_sql("create schema stolen; grant usage on schema stolen to multivio_api")
        .execute(&app.pool)
        .await
        .unwrap();
    for (table, has_tenant) in tables(&app).await {
        let mut all = app.pool.acquire().await.unwrap();
        let there = count(&mut all, &table, "").await.unwrap();
        assert!(there > 0, "{table} has no row to be stolen: add one above");
        let copy = format!(
            "create table stolen.{table} as select * from public.{table}; grant select on stolen.{table} to multivio_api"
        );
        sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut *all).await.unwrap();
        let is_everybodys = EVERYBODYS.contains(&table.as_str());
        for whose in [Some(theirs), None] {
            let mut session = api_session(&app, whose).await;
            match count(&mut session, &table, "").await {
                Ok(seen) => assert!(is_everybodys || seen == 0, "{table} shows {seen} row(s) to {whose:?}"),
                error => assert_eq!(code(error).as_deref(), Some(DENIED), "{table}"),
            }
            // Without a condition and without a value of the row: nothing has to be seen for it.
            let mut writes = vec![format!("delete from public.{table}")];
            writes.extend(
                columns(&app, &table).await.iter().map(|it| format!("update public.{table} set {it} = default")),
            );
            for write in writes {
                match sqlx::query(AssertSqlSafe(write.clone())).execute(&mut session).await {
                    Ok(done) => assert_eq!(done.rows_affected(), 0, "{whose:?} may: {write}"),
                    error => assert_eq!(code(error).as_deref(), Some(DENIED), "{whose:?}: {write}"),
                }
            }
            // What is the owner's cannot be written in his name either.
            let insert = format!("insert into public.{table} overriding system value select * from stolen.{table}");
            let refused = sqlx::query(AssertSqlSafe(insert)).execute(&mut session).await;
            assert_eq!(code(refused).as_deref(), Some(DENIED), "{table} takes a row from {whose:?}");
        }
        if is_everybodys {
            continue;
        }
        // The owner sees what the API may show: the looks above were not empty for another reason.
        let mut session = api_session(&app, Some(mine)).await;
        if let Ok(seen) = count(&mut session, &table, "").await {
            assert_eq!(seen, there, "{table} hides from its owner");
        } else {
            assert!(!has_tenant || ["ai_cache", "budget_grants", "token_flights"].contains(&table.as_str()), "{table}");
        }
    }
}

#[tokio::test]
async fn rows_cannot_be_moved_to_another_tenant() {
    let app = App::new().await;
    fill(&app, app.tenant, app.user).await;
    for (table, _) in tables(&app).await.into_iter().filter(|(_, has_tenant)| *has_tenant) {
        let mut session = api_session(&app, Some((app.tenant, app.user))).await;
        let away = format!("update public.{table} set tenant_id = gen_random_uuid()");
        let refused = sqlx::query(AssertSqlSafe(away)).execute(&mut session).await;
        assert_eq!(code(refused).as_deref(), Some(DENIED), "{table}");
    }
}

/// Rows that name no tenant are of whoever has the rows that they hang on.
#[tokio::test]
async fn what_hangs_on_ones_own_cannot_be_hung_on_anothers() {
    let app = App::new().await;
    let theirs = (TenantId::new(), UserId::new());
    fill(&app, app.tenant, app.user).await;
    fill(&app, theirs.0, theirs.1).await;
    for (table, column, of) in [
        ("job_edges", "child_id", "jobs"),
        ("job_edges", "parent_id", "jobs"),
        ("job_attempts", "job_id", "jobs"),
        ("job_notes", "job_id", "jobs"),
        ("jobs", "group_id", "job_groups"),
        ("media_references", "media_id", "media"),
    ] {
        let other: uuid::Uuid = sqlx::query_scalar(AssertSqlSafe(format!("select id from {of} where tenant_id = $1")))
            .bind(theirs.0)
            .fetch_one(&app.pool)
            .await
            .unwrap();
        let copy = format!(
            "create table {table}_{column} as select * from {table} where {column} <> '{other}'; \
            update {table}_{column} set {column} = '{other}'; grant select on {table}_{column} to multivio_api"
        );
        sqlx::raw_sql(AssertSqlSafe(copy)).execute(&app.pool).await.unwrap();
        for write in [
            format!("update {table} set {column} = '{other}'"),
            format!("insert into {table} overriding system value select * from {table}_{column}"),
        ] {
            let mut session = api_session(&app, Some((app.tenant, app.user))).await;
            let refused = sqlx::query(AssertSqlSafe(write.clone())).execute(&mut session).await;
            assert_eq!(code(refused).as_deref(), Some(DENIED), "{write}");
        }
    }
}

/// As services open one that are told a workspace and not who is calling.
async fn session_of_things(app: &App) -> PgConnection {
    let mut session = api_session(app, Some((app.tenant, app.user))).await;
    sqlx::query("select set_config('request.jwt.claims', '', false)").execute(&mut session).await.unwrap();
    session
}

#[tokio::test]
async fn a_session_of_a_workspaces_things_knows_nothing_of_people() {
    let app = App::new().await;
    fill(&app, app.tenant, app.user).await;
    for table in CLOSED_TO_WORKERS.into_iter().chain(APPEND_ONLY) {
        let mut callers = api_session(&app, Some((app.tenant, app.user))).await;
        assert!(count(&mut callers, table, "").await.unwrap() > 0, "{table}");
        let mut session = session_of_things(&app).await;
        assert_eq!(count(&mut session, table, "").await.unwrap(), 0, "{table}");
    }
    let mut session = session_of_things(&app).await;
    for write in [
        "delete from workspace_members",
        "update workspace_members set role = 'viewer'",
        "update workspaces set name = 'theirs'",
        "update api_keys set revoked_at = now()",
    ] {
        let done = sqlx::query(write).execute(&mut session).await.unwrap();
        assert_eq!(done.rows_affected(), 0, "{write}");
    }
}

#[tokio::test]
async fn the_api_cannot_read_tokens_or_hashes_nor_raise_anybody() {
    let app = App::new().await;
    fill(&app, app.tenant, app.user).await;
    for attempt in [
        "select access_token from connections",
        "select refresh_token from connections",
        "select * from connections",
        "update connections set username = 'x' returning access_token",
        "select secret_hash from api_keys",
        "update api_keys set scopes = '{admin}'",
        "update users set role = 'admin'",
        "update users set disabled_at = null",
        "update audit_log set action = 'nothing'",
        "delete from audit_log",
        "select * from job_wakes",
        "select app.ensure_personal(gen_random_uuid(), gen_random_uuid())",
        "select sealed from media_imports",
        "update exports set ready_at = now()",
        "select * from erasures",
        "select app.end_workspace(gen_random_uuid(), gen_random_uuid())",
        "select app.erase_workspace(gen_random_uuid())",
        "select app.export_people(gen_random_uuid(), 'users')",
        "set role multivio_definer",
        "set role multivio_worker",
        "alter table jobs disable row level security",
        "create table mine (id int)",
    ] {
        let mut session = api_session(&app, Some((app.tenant, app.user))).await;
        // As whoever logged in without being a superuser: what counts is what the role itself may.
        sqlx::raw_sql("reset role; set session authorization multivio_api").execute(&mut session).await.unwrap();
        sqlx::query("select set_config('multivio.tenant', $1, false)")
            .bind(app.tenant.uuid().to_string())
            .execute(&mut session)
            .await
            .unwrap();
        let refused = sqlx::raw_sql(AssertSqlSafe(attempt)).execute(&mut session).await;
        assert_eq!(code(refused).as_deref(), Some(DENIED), "{attempt}");
    }
}

#[tokio::test]
async fn workers_serve_every_tenant_and_know_nothing_of_people() {
    let app = App::new().await;
    fill(&app, app.tenant, app.user).await;
    fill(&app, TenantId::new(), UserId::new()).await;
    let url = secrecy::ExposeSecret::expose_secret(app.db.url()).to_owned();
    let mut session = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("set role multivio_worker").execute(&mut session).await.unwrap();
    for (table, _) in tables(&app).await {
        let there = count(&mut app.pool.acquire().await.unwrap(), &table, "").await.unwrap();
        let seen = count(&mut session, &table, "").await;
        if CLOSED_TO_WORKERS.contains(&table.as_str()) {
            assert_eq!(code(seen).as_deref(), Some(DENIED), "{table}");
        } else {
            assert_eq!(seen.unwrap(), there, "{table}");
        }
    }
    // What an export and an erasure need of people is given for what somebody has asked for, and not for any other id.
    for nothing in [
        "select count(*) from app.export_tenants(gen_random_uuid())",
        "select count(*) from app.export_people(gen_random_uuid(), 'users')",
        "select count(*) from app.export_people(gen_random_uuid(), 'api_keys')",
        "select app.erase_workspace(gen_random_uuid())",
        // It is there, and of a user.
        "select app.erase_workspace((select id from erasures limit 1))",
    ] {
        let given: i64 = sqlx::query_scalar(AssertSqlSafe(nothing)).fetch_one(&mut session).await.unwrap();
        assert_eq!(given, 0, "{nothing}");
    }
    for asked in ["insert into exports select * from exports", "insert into erasures select * from erasures"] {
        assert_eq!(code(sqlx::raw_sql(AssertSqlSafe(asked)).execute(&mut session).await).as_deref(), Some(DENIED));
    }
    for table in APPEND_ONLY {
        let update = format!("update public.{table} set tenant_id = tenant_id");
        let refused = sqlx::query(AssertSqlSafe(update)).execute(&mut session).await;
        assert_eq!(code(refused).as_deref(), Some(DENIED), "{table}");
    }
}
