//! A database as Supabase gives it: clients' roles that get every new table, a schema `auth` that is somebody else's, and
//! a login that is no superuser. Its signed-in clients read what is theirs, and nothing else happens through them.

use multivio::ids::{TenantId, UserId};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;

use super::{DENIED, code, tables::fill_by};
use crate::{
    harness::{App, Servers, wait_until},
    publish::SOON,
};

const SUPABASE: &str = "
    create role anon nologin; create role authenticated nologin; create role service_role nologin bypassrls;
    create role supabase_auth_admin nologin;
    grant anon, authenticated, service_role to owner_of_all;
    grant create, usage on schema public to owner_of_all;
    grant usage on schema public to anon, authenticated, service_role;
    alter default privileges for role owner_of_all in schema public grant all on tables to anon, authenticated, service_role;
    alter default privileges for role owner_of_all in schema public grant all on sequences to anon, authenticated;
    alter default privileges for role owner_of_all in schema public grant all on functions to anon, authenticated;
    create schema auth authorization supabase_auth_admin;
    grant usage on schema auth to anon, authenticated, service_role, owner_of_all;
    create table auth.users (id uuid primary key, email text);
    create function auth.jwt() returns jsonb language sql stable as $$
        select coalesce(nullif(current_setting('request.jwt.claim', true), ''),
            nullif(current_setting('request.jwt.claims', true), ''))::jsonb $$;
    create function auth.uid() returns uuid language sql stable as $$
        select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''),
            (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'))::uuid $$;
    alter table auth.users owner to supabase_auth_admin;
    alter function auth.jwt() owner to supabase_auth_admin;
    alter function auth.uid() owner to supabase_auth_admin;";

/// What a signed-in client may read, in full. Whoever adds to it says in docs/security.md why.
const READABLE: [(&str, &str); 9] = [
    (
        "connections",
        "created_at display_name id platform problem remote_account_id state tenant_id updated_at username",
    ),
    ("job_groups", "created_at id name tenant_id"),
    (
        "jobs",
        "attempt claimed_at created_at due_at finished_at group_id id kind max_attempts priority queue run_at state \
         tenant_id why",
    ),
    ("media", "created_at id kind name tenant_id"),
    ("post_media", "alt_text media_id position post_id tenant_id"),
    ("posts", "created_at id tenant_id universal_content updated_at variants version"),
    (
        "publications",
        "connection_id created_at due_at group_id id job_id permalink phase platform post_id problem remote_deleted_at \
         remote_id sent_at tenant_id time_zone updated_at wall_time",
    ),
    ("workspace_members", "created_at role tenant_id user_id"),
    ("workspaces", "created_at id name"),
];

/// Makes an empty database `plain` on a cluster that has never seen us, and a login with these attributes that
/// `DATABASE_URL` names from now on. Returns a superuser's session there and the address.
pub async fn like_supabase(servers: &Servers, app: &mut App, login: &str) -> (PgConnection, Url) {
    app.pool.close().await;
    let mut admin = PgConnection::connect(servers.database_url("postgres").expose_secret()).await.unwrap();
    // One by one: databases are made and dropped outside of any transaction.
    for statement in [
        &format!("drop database {} with (force)", app.db.name()),
        "drop database multivio_template with (force)",
        "drop role multivio_api, multivio_worker, multivio_definer",
        &format!("create role owner_of_all login {login} password 'of all'"),
        "create database plain owner owner_of_all",
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut admin).await.unwrap();
    }
    let above = servers.database_url("plain").expose_secret().to_owned();
    let mut superuser = PgConnection::connect(&above).await.unwrap();
    sqlx::raw_sql(SUPABASE).execute(&mut superuser).await.unwrap();
    let mut url = Url::parse(&above).unwrap();
    url.set_username("owner_of_all").unwrap();
    url.set_password(Some("of all")).unwrap();
    app.set("DATABASE_URL", url.as_str());
    (superuser, url)
}

/// The cluster of a test, migrated by a login such as Supabase's `postgres`.
struct Project {
    // Ends the servers, so it stays until the end.
    _servers: Servers,
    app: App,
    superuser: PgConnection,
}

impl Project {
    async fn new() -> Self {
        let servers = Servers::private().await;
        let mut app = App::on(&servers).await;
        let (superuser, _) = like_supabase(&servers, &mut app, "inherit createrole bypassrls").await;
        let (done, said) = app.cli(&["migrate"]).await;
        assert!(done, "{said}");
        Self { _servers: servers, app, superuser }
    }

    /// The session becomes what Supabase's API makes of it for a request with these claims.
    async fn become_client(&mut self, role: &str, claims: &Value) {
        sqlx::raw_sql(AssertSqlSafe(format!("reset role; set role {role}")))
            .execute(&mut self.superuser)
            .await
            .unwrap();
        sqlx::query("select set_config('request.jwt.claims', $1, false)")
            .bind(claims.to_string())
            .execute(&mut self.superuser)
            .await
            .unwrap();
    }

    /// As who sees everything.
    async fn by_superuser(&mut self, sql: &str) {
        sqlx::raw_sql("reset role").execute(&mut self.superuser).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.superuser).await.unwrap();
    }

    async fn names(&mut self, sql: &str) -> Vec<String> {
        sqlx::raw_sql("reset role").execute(&mut self.superuser).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.superuser).await.unwrap()
    }

    /// Whose rows a client with these claims sees in a table.
    async fn seen(&mut self, table: &str, claims: &Value) -> Vec<uuid::Uuid> {
        self.become_client("authenticated", claims).await;
        let whose = if table == "workspaces" { "id" } else { "tenant_id" };
        let statement = format!("select {whose} from {table} order by 1");
        sqlx::query_scalar(AssertSqlSafe(statement)).fetch_all(&mut self.superuser).await.unwrap()
    }
}

fn claims(user: UserId) -> Value {
    json!({"sub": user.uuid(), "role": "authenticated", "iat": chrono::Utc::now().timestamp()})
}

#[tokio::test]
async fn supabases_own_login_migrates_serves_and_leaves_its_schema_as_it_was() {
    let mut project = Project::new().await;
    let (_, said) = project.app.cli(&["check", "--json"]).await;
    let lines: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    for name in ["schema", "sessions", "roles"] {
        let line = lines.iter().find(|line| line["name"] == name).unwrap();
        assert_eq!(line["verdict"], "ok", "{line}");
    }
    let theirs = "select p.oid::regprocedure || ' of ' || p.proowner::regrole from pg_proc p \
                  where p.pronamespace = 'auth'::regnamespace order by 1";
    let of_auth = project.names(theirs).await;
    assert_eq!(of_auth, ["auth.jwt() of supabase_auth_admin", "auth.uid() of supabase_auth_admin"]);

    // What the API writes for a user is what that user's client reads.
    let api = project.app.api().await;
    let (status, post) = api.post("/api/v1/posts", json!({"universal_content": "read by its owner"})).await;
    assert_eq!(status, 201, "{post}");
    // Whose workspace it is, is noted beside their first call and not before it.
    wait_until(SOON, "the workspace to be theirs", || async {
        api.get("/api/v1/workspaces").await.1["items"].as_array().is_some_and(|items| !items.is_empty())
    })
    .await;
    project.become_client("authenticated", &claims(project.app.user)).await;
    let read: Vec<String> =
        sqlx::query_scalar("select universal_content from posts").fetch_all(&mut project.superuser).await.unwrap();
    assert_eq!(read, ["read by its owner"]);
}

#[tokio::test]
async fn a_signed_in_client_of_supabase_reads_exactly_what_is_theirs() {
    let mut project = Project::new().await;
    let (mine, theirs) = ((TenantId::new(), UserId::new()), (TenantId::new(), UserId::new()));
    for (tenant, user) in [mine, theirs] {
        fill_by(&mut project.superuser, tenant, user).await;
    }
    for (table, _) in READABLE {
        assert_eq!(project.seen(table, &claims(mine.1)).await, [mine.0.uuid()], "{table}");
        assert_eq!(project.seen(table, &claims(theirs.1)).await, [theirs.0.uuid()], "{table}");
        for nobody in [claims(UserId::new()), json!({}), json!({"sub": ""})] {
            let refused_or_none = {
                project.become_client("authenticated", &nobody).await;
                let statement = format!("select 1 from {table}");
                sqlx::query(AssertSqlSafe(statement))
                    .fetch_all(&mut project.superuser)
                    .await
                    .map_or(0, |rows| rows.len())
            };
            assert_eq!(refused_or_none, 0, "{table} to {nobody}");
        }
    }
    // A colleague's workspace is theirs as well, whatever their role.
    let join = format!(
        "insert into workspace_members (tenant_id, user_id, role) values ('{}', '{}', 'viewer')",
        theirs.0.uuid(),
        mine.1.uuid()
    );
    project.by_superuser(&join).await;
    let mut both = [mine.0.uuid(), theirs.0.uuid()];
    both.sort();
    assert_eq!(project.seen("publications", &claims(mine.1)).await, both);
    // What the API shows no more is not shown here either.
    project.by_superuser("update posts set removed_at = now(); update media set deleted_at = now()").await;
    project.by_superuser("update connections set state = 'removed'").await;
    for table in ["posts", "media", "connections"] {
        assert!(project.seen(table, &claims(mine.1)).await.is_empty(), "{table}");
    }
}

/// Who would not come in at the API does not come in here.
#[tokio::test]
async fn a_client_who_is_disabled_or_has_signed_out_reads_nothing() {
    let mut project = Project::new().await;
    let (tenant, user) = (TenantId::new(), UserId::new());
    fill_by(&mut project.superuser, tenant, user).await;
    let now = chrono::Utc::now().timestamp();
    let of = |at: Value| json!({"sub": user.uuid(), "iat": at});
    project.by_superuser("update users set tokens_valid_after = now()").await;
    for (claims, is_in) in [
        (of(json!(now - 60)), false),
        (of(Value::Null), false),
        (of(json!(now + 60)), true),
        // What counts is when they signed in, where it is said, and not when the token was renewed.
        (json!({"sub": user.uuid(), "iat": now + 60, "auth_time": now - 60}), false),
    ] {
        let seen = project.seen("posts", &claims).await;
        assert_eq!(seen.len(), usize::from(is_in), "{claims}");
    }
    project.by_superuser("update users set tokens_valid_after = null, disabled_at = now()").await;
    for (table, _) in READABLE {
        assert!(project.seen(table, &of(json!(now))).await.is_empty(), "{table}");
    }
}

#[tokio::test]
async fn clients_of_supabase_can_do_nothing_but_read_the_columns_that_are_open() {
    let mut project = Project::new().await;
    let (tenant, user) = (TenantId::new(), UserId::new());
    fill_by(&mut project.superuser, tenant, user).await;
    let readable = |client: &str| {
        format!(
            "select c.relname || ': ' || string_agg(a.attname, ' ' order by a.attname) \
             from pg_class c join pg_attribute a on a.attrelid = c.oid \
             where c.relnamespace in ('public'::regnamespace, 'app'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'f') \
             and a.attnum > 0 and not a.attisdropped and has_column_privilege('{client}', c.oid, a.attnum, 'select') \
             group by c.relname order by 1"
        )
    };
    let open: Vec<String> = READABLE.iter().map(|(table, columns)| format!("{table}: {columns}")).collect();
    assert_eq!(project.names(&readable("authenticated")).await, open);
    assert_eq!(project.names(&readable("anon")).await, Vec::<String>::new());
    for client in ["anon", "authenticated"] {
        let writable = format!(
            "select c.relname from pg_class c where c.relnamespace in ('public'::regnamespace, 'app'::regnamespace) \
             and case when c.relkind = 'S' then has_sequence_privilege('{client}', c.oid, 'usage, update, select') \
                 when c.relkind in ('r', 'p', 'v', 'm', 'f') then \
                    has_any_column_privilege('{client}', c.oid, 'insert, update, references') \
                    or has_table_privilege('{client}', c.oid, 'delete, truncate, trigger') else false end"
        );
        assert_eq!(project.names(&writable).await, Vec::<String>::new(), "{client} may write");
        let runnable = format!(
            "select p.proname from pg_proc p where p.pronamespace in ('public'::regnamespace, 'app'::regnamespace) \
             and (p.prosecdef or p.pronamespace = 'public'::regnamespace and p.prorettype <> 'trigger'::regtype) \
             and has_function_privilege('{client}', p.oid, 'execute')"
        );
        let own: &[&str] = if client == "anon" { &[] } else { &["own_workspaces"] };
        assert_eq!(project.names(&runnable).await, own, "{client} may run");
        let roles = format!(
            "select r.rolname from pg_roles r where r.rolname like 'multivio\\_%' and pg_has_role('{client}', r.oid, 'member')"
        );
        assert_eq!(project.names(&roles).await, Vec::<String>::new(), "{client} may become");
    }
    // And by doing it, with the claims of somebody to whom all of it belongs.
    let tables = "select tablename::text from pg_tables where schemaname = 'public'";
    for table in project.names(tables).await {
        for client in ["anon", "authenticated"] {
            let mut attempts = vec![
                format!("insert into public.{table} default values"),
                format!("delete from public.{table}"),
                format!("truncate public.{table} cascade"),
            ];
            if client == "anon" || !READABLE.iter().any(|(open, _)| *open == table) {
                attempts.push(format!("select count(*) from public.{table}"));
            }
            for attempt in attempts {
                project.become_client(client, &claims(user)).await;
                let refused = sqlx::raw_sql(AssertSqlSafe(attempt.clone())).execute(&mut project.superuser).await;
                assert_eq!(code(refused).as_deref(), Some(DENIED), "{client}: {attempt}");
            }
        }
    }
    for attempt in [
        "select access_token from connections",
        "select args from jobs",
        "select content from publications",
        "update posts set universal_content = 'x'",
        "update workspace_members set role = 'owner'",
        "select app.enqueue(null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null)",
        "select nextval('job_seq')",
    ] {
        project.become_client("authenticated", &claims(user)).await;
        let refused = sqlx::raw_sql(AssertSqlSafe(attempt)).execute(&mut project.superuser).await;
        assert_eq!(code(refused).as_deref(), Some(DENIED), "{attempt}");
    }
}
