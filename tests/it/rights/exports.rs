//! A copy of a person's and of a workspace's data.

use std::collections::BTreeSet;

use multivio::{
    jobs::Queue,
    media::MediaService,
    rights::{
        exports::{self, Of},
        tables::{EXPORTED, EXPORTED_OF_JOBS},
    },
};
use reqwest::Method;
use serde_json::{Value, json};

use super::Life;
use crate::{
    harness::{Api, eventually},
    identity::{call, get},
    publish::Stage,
};

async fn export(api: &Api, path: &str) -> String {
    let (status, asked) = api.post(path, json!({})).await;
    assert_eq!(status, 202, "{asked}");
    let (_, job) = api.get(&format!("/api/v1/jobs/{}?wait=30", asked["job_id"].as_str().unwrap())).await;
    assert_eq!(job["state"], "succeeded", "{job}");
    format!("/api/v1/exports/{}", asked["export_id"].as_str().unwrap())
}

async fn lines(api: &Api, path: &str) -> Vec<Value> {
    let answer = api.request(Method::GET, &format!("{path}/content")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-disposition"].to_str().unwrap().starts_with("attachment"));
    let text = answer.text().await.unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
}

#[tokio::test]
async fn a_copy_has_all_that_is_theirs_and_no_secret_and_is_for_them_alone() {
    let life = Life::new().await;
    let stage = &life.stage;
    // Their membership on Patreon in a workspace that is others' as well.
    let (_, team) = stage.api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    let team = team["id"].as_str().unwrap().parse::<multivio::ids::TenantId>().unwrap();
    for statement in [
        "insert into users (id, provider, subject, personal_workspace_id) values ($1, 'local', 'colleague', $1)",
        "insert into workspace_members (tenant_id, user_id, role) values ($1, $1, 'viewer')",
        "insert into patreon_links (id, tenant_id, linked_by, patreon_user_id, access_token, refresh_token, access_expires_at) \
         select $1, $1, m.user_id, '8', 'a', 'r', now() from workspace_members m where m.tenant_id = $1 and m.role = 'owner'",
    ] {
        sqlx::query(statement).bind(team).execute(&stage.app.pool).await.unwrap();
    }
    let attempt = "insert into job_attempts (job_id, run, class, code, message) \
                   select id, 99, 'retry', 'tried', 'and failed' from jobs where tenant_id = $1 limit 1";
    sqlx::query(attempt).bind(life.tenant()).execute(&stage.app.pool).await.unwrap();
    let mut of_jobs = Vec::new();
    for exported in EXPORTED_OF_JOBS {
        let rows =
            format!("select count(*) from {} t join jobs j on j.id = t.job_id where j.tenant_id = $1", exported.table);
        let rows = sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(rows)).bind(life.tenant());
        of_jobs.push(usize::try_from(rows.fetch_one(&stage.app.pool).await.unwrap()).unwrap());
    }
    let _ops = stage.app.worker(Queue::Ops).await;
    let path = export(&stage.api, "/api/v1/me/export").await;
    let copy = lines(&stage.api, &path).await;
    let of =
        |table: &str| copy.iter().filter(|line| line["table"] == table).map(|line| &line["row"]).collect::<Vec<_>>();
    assert_eq!(of("users")[0]["id"], json!(stage.app.user.uuid()));
    let texts: BTreeSet<_> = of("posts").iter().map(|row| row["universal_content"].as_str().unwrap()).collect();
    assert_eq!(texts, BTreeSet::from(["a post that went out", "later"]));
    // Every table of the list that has rows of theirs.
    let known: BTreeSet<_> = copy.iter().map(|line| line["table"].as_str().unwrap()).collect();
    for exported in EXPORTED {
        let rows = super::rows(&stage.app.pool, exported.table, life.tenant()).await;
        assert!(rows == 0 || known.contains(exported.table), "{} is missing", exported.table);
        for row in of(exported.table) {
            assert_eq!(row["tenant_id"], json!(life.tenant()), "somebody else's row");
            assert!(exported.without.iter().all(|column| row.get(*column).is_none()), "{}", exported.table);
        }
    }
    for (before, exported) in of_jobs.into_iter().zip(EXPORTED_OF_JOBS) {
        assert!(before > 0 && of(exported.table).len() >= before, "{} is missing", exported.table);
        assert!(of(exported.table)[0].get("worker_id").is_none());
    }
    let links: Vec<_> = of("own_patreon_links").iter().map(|row| row["patreon_user_id"].clone()).collect();
    assert!(links.contains(&json!("8")), "{links:?}");
    let all = serde_json::to_string(&copy).unwrap();
    for secret in ["access_token", "refresh_token"] {
        assert!(!all.contains(stage.account[secret].as_str().unwrap()));
    }
    for hash in ["secret_hash", "state_hash", "sealed", "upload_state", "a neighbour's"] {
        assert!(!all.contains(hash), "{hash}");
    }

    // A program, somebody else, oneself in another workspace.
    let (_, key) = crate::identity::new_key(&stage.api, json!({})).await;
    let content = format!("{path}/content");
    assert_eq!(get(&stage.api, &key, &content).await.0, 403);
    assert_eq!(get(&stage.api, &life.of_neighbour, &content).await.0, 404);
    let colleague =
        stage.app.token_of(stage.app.tenant, multivio::ids::UserId::new(), &[multivio::identity::Scope::Workspace]);
    assert_eq!(get(&stage.api, &colleague, &content).await.0, 404);

    // A week later it is gone, row and file.
    sqlx::query("update exports set expires_at = now()").execute(&stage.app.pool).await.unwrap();
    assert_eq!(stage.api.get(&path).await.0, 404);
    let service = MediaService::new(&stage.app.config(), stage.app.pool.clone()).unwrap();
    let files = life.files(life.tenant());
    assert_eq!(exports::remove(&stage.app.pool, service.storage(), Of::Past).await.unwrap(), 1);
    assert_eq!(life.files(life.tenant()), files - 1);
}

#[tokio::test]
async fn a_workspaces_copy_is_for_its_owners() {
    let app = crate::harness::App::new().await;
    let api = app.api().await;
    let (editor, of_editor) = app.token_of_another();
    assert_eq!(get(&api, &of_editor, "/api/v1/me").await.0, 200);
    let (_, team) = api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    let team = team["id"].as_str().unwrap();
    let members = format!("/api/v1/workspaces/{team}/members");
    let invite = json!({"user_id": editor, "role": "editor"});
    assert_eq!(call(&api, &api.token, Some(team), Method::POST, &members, Some(&invite)).await.0, 201);
    let path = format!("/api/v1/workspaces/{team}/export");
    assert_eq!(call(&api, &of_editor, Some(team), Method::POST, &path, None).await.0, 403);
    let (status, asked) = call(&api, &api.token, Some(team), Method::POST, &path, None).await;
    assert_eq!(status, 202, "{asked}");
    let (status, problem) = call(&api, &api.token, Some(team), Method::POST, &path, None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("export_under_way")), "{problem}");
    let export = format!("/api/v1/exports/{}", asked["export_id"].as_str().unwrap());
    let early = call(&api, &api.token, Some(team), Method::GET, &format!("{export}/content"), None).await;
    assert_eq!((early.0, &early.1["code"]), (409, &json!("not_ready")));
    let _ops = app.worker(Queue::Ops).await;
    let job = format!("/api/v1/jobs/{}?wait=30", asked["job_id"].as_str().unwrap());
    assert_eq!(call(&api, &api.token, Some(team), Method::GET, &job, None).await.1["state"], "succeeded");
    let (status, done) = call(&api, &api.token, Some(team), Method::GET, &export, None).await;
    assert_eq!((status, &done["kind"]), (200, &json!("workspace")));
    assert!(done["size_bytes"].as_i64().unwrap() > 0);
}

/// Puts the export's job back as a worker leaves it that dies between its work and its end.
async fn run_again(stage: &Stage) -> i32 {
    sqlx::query_scalar(
        "update jobs set state = 'scheduled', run_at = now(), finished_at = null, result = null \
         where kind = 'export' returning run",
    )
    .fetch_one(&stage.app.pool)
    .await
    .unwrap()
}

async fn result_after(stage: &Stage, run: i32) -> Value {
    eventually(super::SOON, "the export to end", || async {
        let ended = "select result from jobs where kind = 'export' and state = 'succeeded' and run > $1";
        sqlx::query_scalar::<_, Value>(ended).bind(run).fetch_optional(&stage.app.pool).await.ok()?
    })
    .await
}

#[tokio::test]
async fn a_copy_that_was_given_out_stays_when_its_job_runs_again() {
    let stage = Stage::new().await;
    let _ops = stage.app.worker(Queue::Ops).await;
    let path = export(&stage.api, "/api/v1/me/export").await;
    let (copy, (_, shown)) = (lines(&stage.api, &path).await, stage.api.get(&path).await);
    let first = result_after(&stage, 0).await;
    assert_eq!(first["rows"], json!(copy.len()));
    let run = run_again(&stage).await;
    assert_eq!(result_after(&stage, run).await, first);
    assert_eq!(lines(&stage.api, &path).await, copy);
    assert_eq!(stage.api.get(&path).await.1, shown);
}

/// Its lease was lost, another run has done the work, and now it finds its tables again.
#[tokio::test]
async fn a_run_that_comes_back_late_leaves_the_copy_of_another_alone() {
    let stage = Stage::new().await;
    let _ops = stage.app.worker(Queue::Ops).await;
    let pool = &stage.app.pool;
    let mut held = pool.begin().await.unwrap();
    sqlx::query("lock table posts in access exclusive mode").execute(&mut *held).await.unwrap();
    let (status, asked) = stage.api.post("/api/v1/me/export", json!({})).await;
    assert_eq!(status, 202, "{asked}");
    eventually(super::SOON, "the run to be in the middle", || async {
        let waiting = "select count(*) from pg_locks where relation = 'posts'::regclass and not granted";
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.ok()?;
        (waiting == 1).then_some(())
    })
    .await;
    let key: String = sqlx::query_scalar(
        "update exports set runs = 99, file_run = 99, size_bytes = 15, row_count = 7, ready_at = now() returning storage_key",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    let folder = stage.app.folder().join("media");
    let file = folder.join(exports::file_of(&key, 99));
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "{\"table\": \"t\"}").unwrap();
    held.commit().await.unwrap();
    assert_eq!(result_after(&stage, 0).await, json!({"rows": 7, "size_bytes": 15}));
    let path = format!("/api/v1/exports/{}", asked["export_id"].as_str().unwrap());
    assert_eq!(lines(&stage.api, &path).await, [json!({"table": "t"})]);
    let files = std::fs::read_dir(file.parent().unwrap()).unwrap().count();
    assert_eq!(files, 1, "its own file is gone");
}
