//! A copy of one's data, and its end.

mod by_operator;
mod ends;
mod exports;

use std::{collections::BTreeSet, time::Duration};

use multivio::rights::tables::{
    BELONGING, ERASED, EXPORTED, EXPORTED_OF_JOBS, KEPT, NOBODYS, NOT_EXPORTED, THEMSELVES,
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::{
    harness::{Api, App, Worker, eventually},
    identity::call,
    media_clips::Clips,
    publish::Stage,
};

const SOON: Duration = Duration::from_secs(90);

/// Every table with rows of a tenant, as the schema has them now.
async fn tables(pool: &PgPool) -> BTreeSet<String> {
    let found: Vec<String> = sqlx::query_scalar(
        "select c.table_name::text from information_schema.columns c join information_schema.tables t \
           on t.table_schema = c.table_schema and t.table_name = c.table_name and t.table_type = 'BASE TABLE' \
         where c.table_schema = 'public' and c.column_name = 'tenant_id'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    found.into_iter().collect()
}

async fn rows(pool: &PgPool, table: &str, tenant: uuid::Uuid) -> i64 {
    let statement = format!("select count(*) from {table} where tenant_id = $1");
    sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).bind(tenant).fetch_one(pool).await.unwrap()
}

/// A table that is added and not thought of here would keep people's data for ever.
#[tokio::test]
async fn every_table_says_what_becomes_of_it_when_its_owner_goes_or_asks_for_a_copy() {
    let app = App::new().await;
    let found = tables(&app.pool).await;
    let own = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(found, own([&ERASED[..], &KEPT].concat()), "erased, or kept for a reason");
    let exported = EXPORTED.iter().map(|exported| exported.table).chain(NOT_EXPORTED).collect();
    assert_eq!(found, own(exported), "exported, or left out for a reason");
    let all: Vec<String> = sqlx::query_scalar(
        "select tablename::text from pg_tables where schemaname = 'public' and tablename <> '_sqlx_migrations'",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let of_jobs = EXPORTED_OF_JOBS.iter().map(|exported| exported.table);
    let others = own(of_jobs.chain(BELONGING).chain(NOBODYS).chain(THEMSELVES).collect());
    let all: BTreeSet<_> = all.into_iter().filter(|table| !found.contains(table)).collect();
    assert_eq!(all, others, "what names no workspace is somebody's by what it belongs to, or nobody's");
}

/// What erases and exports asks every table for the rows of one tenant, and a statement has five seconds.
#[tokio::test]
async fn the_rows_of_a_tenant_are_found_by_an_index_in_every_table() {
    let app = App::new().await;
    let found: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c where exists ( \
           select from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0] \
           where i.indrelid = c.oid and i.indpred is null and i.indisvalid and a.attname = 'tenant_id')",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    let without: Vec<_> = tables(&app.pool).await.into_iter().filter(|table| !found.contains(table)).collect();
    assert!(without.is_empty(), "{without:?} are read from the first row to the last");
}

/// Something of everything that a person can have.
struct Life {
    stage: Stage,
    neighbour: uuid::Uuid,
    of_neighbour: String,
    /// Whose jobs come to their end by themselves.
    _publish: Worker,
}

impl Life {
    async fn new() -> Self {
        let (stage, clips) = (Stage::new().await, Clips::new());
        let clip = std::fs::read(clips.clip("clip.mp4", "320x180", 0.6, "").await).unwrap();
        let (_, media) = crate::media_api::upload(&stage.api, "mine.mp4", clip).await;
        let publish = stage.worker().await;
        let sent = stage.publish("a post that went out").await;
        stage.until(&sent, "sent").await;
        let later = (chrono::Utc::now() + chrono::Duration::hours(5)).to_rfc3339();
        let with_media = json!({"media_id": media["id"]});
        stage.publish_with(json!({"text": "later", "media": [with_media], "scheduled_at": later})).await;
        for (path, body) in [
            ("/api/v1/ai/transform", json!({"content": "A text.", "transformation_type": "shorten"})),
            ("/api/v1/media/import", json!({"url": "https://a.example/a.mp4"})),
            ("/api/v1/api-keys", json!({"name": "mine", "scopes": ["read"]})),
            ("/api/v1/connections/x/authorize", json!({})),
        ] {
            let request = stage.api.request(Method::POST, path).header("Idempotency-Key", "mine").json(&body);
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        }
        // As a membership leaves them.
        let given =
            "insert into workspace_plans (tenant_id, source, plan) select $1, 'patreon', name from plans limit 1";
        let flow = "insert into patreon_flows (state_hash, tenant_id, user_id, challenge, expires_at) \
             values (sha256('s'), $1, $2, sha256('c'), now())";
        let link = "insert into patreon_links (id, tenant_id, linked_by, patreon_user_id, access_token, refresh_token, \
               access_expires_at) values (gen_random_uuid(), $1, $2, '7', 'a', 'r', now())";
        let pool = &stage.app.pool;
        sqlx::query(given).bind(stage.app.tenant).execute(pool).await.unwrap();
        for statement in [flow, link] {
            sqlx::query(statement).bind(stage.app.tenant).bind(stage.app.user).execute(pool).await.unwrap();
        }
        let (neighbour, of_neighbour) = neighbour(&stage.app, &stage.api).await;
        Self { stage, neighbour, of_neighbour, _publish: publish }
    }

    fn tenant(&self) -> uuid::Uuid {
        self.stage.app.tenant.uuid()
    }

    fn files(&self, tenant: uuid::Uuid) -> usize {
        let storage = self.stage.app.folder().join("media");
        let list = |folder| std::fs::read_dir(folder).map_or(0, |entries| entries.flatten().count());
        let name = tenant.simple().to_string();
        list(storage.join(&name)) + list(storage.join("exports").join(&name))
    }
}

async fn neighbour(app: &App, api: &Api) -> (uuid::Uuid, String) {
    let (tenant, user) = (multivio::ids::TenantId::new(), multivio::ids::UserId::new());
    let token = app.token_of(tenant, user, &[multivio::identity::Scope::Workspace]);
    let post = json!({"universal_content": "a neighbour's"});
    assert_eq!(call(api, &token, None, Method::POST, "/api/v1/posts", Some(&post)).await.0, 201);
    crate::identity::connect(app, tenant, "neighbour").await;
    (tenant.uuid(), token)
}

async fn finished(pool: &PgPool, count: i64) {
    eventually(SOON, "the erasures to end", || async {
        // An erasure looks twice, a minute apart.
        let sooner = "update jobs set run_at = now() where kind = 'erase' and state = 'scheduled' and why ->> 'code' = 'second_look'";
        sqlx::query(sooner).execute(pool).await.ok()?;
        let open: (i64, i64) =
            sqlx::query_as("select count(*), count(finished_at) from erasures").fetch_one(pool).await.ok()?;
        (open == (count, count)).then_some(())
    })
    .await;
}

async fn delete(api: &Api, token: &str, workspace: Option<&str>, path: &str) -> (u16, Value) {
    call(api, token, workspace, Method::DELETE, path, None).await
}
