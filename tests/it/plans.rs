//! Plans: what a workspace may do, at its border, by many at once and over processes; and how a plan ends.

use std::time::Duration;

use futures::future::join_all;
use multivio::{
    ai::{
        billing::{Billing, BillingError, PgBilling, Reservation},
        provider::ProviderName,
    },
    http::Scope,
    ids::TenantId,
};
use reqwest::{Method, multipart};
use serde_json::{Value, json};

use crate::{
    harness::{Api, App, Sandbox, wait_until},
    identity::{SOON, call, get},
    media_api::upload,
    media_clips::{Clips, X264, sources},
    publish::Stage,
};

/// Defines a plan at the command line and gives it to the app's workspace.
pub async fn plan(app: &App, api: &Api, limits: &[&str]) {
    operator(app, &[&["plans", "define", "small"], limits].concat()).await;
    workspace_is_known(app, api).await;
    operator(app, &["plans", "set", &app.tenant.to_string(), "small"]).await;
}

async fn operator(app: &App, arguments: &[&str]) -> String {
    let (done, said) = app.cli(arguments).await;
    assert!(done, "{arguments:?}: {said}");
    said
}

/// A workspace is noted beside its first call.
async fn workspace_is_known(app: &App, api: &Api) {
    wait_until(SOON, "the workspace to be noted", || async {
        assert_eq!(api.get("/api/v1/plan").await.0, 200);
        let sql = "select exists (select from workspaces where id = $1)";
        sqlx::query_scalar::<_, bool>(sql).bind(app.tenant).fetch_one(&app.pool).await.unwrap()
    })
    .await;
}

/// So many accounts of the twin, as they are typed in.
async fn accounts(sandbox: &Sandbox, count: usize) -> Vec<Value> {
    let mut typed = Vec::with_capacity(count);
    for _ in 0..count {
        let account = sandbox.post("/_sandbox/x/accounts", json!({})).await;
        typed.push(crate::publish::connection(&account, &account));
    }
    typed
}

pub fn assert_refused(answer: &(u16, Value), limit: &str) {
    let (status, problem) = answer;
    assert_eq!((*status, &problem["code"], &problem["field"]), (403, &json!("plan_limit"), &json!(limit)), "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("the plan \"small\"")
            || problem["detail"].as_str().unwrap().contains("The plan \"small\""),
        "{problem}"
    );
    assert!(problem["errors"][0]["remedy"].as_str().unwrap().contains("/api/v1/plan"), "{problem}");
}

#[tokio::test]
async fn whoever_sets_nothing_up_has_no_limits() {
    let app = App::new().await;
    let api = app.api().await;
    let (status, plan) = api.get("/api/v1/plan").await;
    assert_eq!((status, &plan["name"], &plan["source"]), (200, &json!("unlimited"), &json!("default")), "{plan}");
    for limit in ["connections", "posts_per_month", "media_bytes"] {
        assert_eq!(plan[limit], json!({ "used": 0 }), "{plan}");
    }
    assert_eq!(plan["ai_per_month"], json!({ "used_usd": 0.0 }));
    assert!(plan.get("upload_bytes").is_none() && plan.get("until").is_none(), "{plan}");
    let said = operator(&app, &["plans", "list", "--json"]).await;
    let plans: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&plans[0]["name"], &plans[0]["is_default"]), (&json!("unlimited"), &json!(true)));
}

#[tokio::test]
async fn plans_are_listed_with_the_tiers_that_give_them_for_people_and_for_programs() {
    let app = App::new().await;
    for arguments in [
        &["plans", "define", "supporter", "--rank", "1"][..],
        &["plans", "define", "patron", "--rank", "2"],
        &["plans", "tier", "7001", "supporter"],
        &["plans", "tier", "7003", "patron"],
        &["plans", "tier", "7002", "patron"],
    ] {
        operator(&app, arguments).await;
    }
    let tiers = async || -> Vec<(String, Value)> {
        let plans: Vec<Value> = serde_json::from_str(&operator(&app, &["plans", "list", "--json"]).await).unwrap();
        plans.iter().map(|plan| (plan["name"].as_str().unwrap().to_owned(), plan["patreon_tiers"].clone())).collect()
    };
    let list = |of_patron: &[&str]| {
        let each = [("unlimited", json!([])), ("supporter", json!(["7001"])), ("patron", json!(of_patron))];
        each.map(|(name, tiers)| (name.to_owned(), tiers)).to_vec()
    };
    assert_eq!(tiers().await, list(&["7002", "7003"]));
    let table = operator(&app, &["plans", "list"]).await;
    let ends = |plan: &str, tiers: &str| {
        table.lines().any(|line| line.trim_start().starts_with(plan) && line.trim_end().ends_with(tiers))
    };
    assert!(ends("patron", "7002, 7003") && ends("supporter", " 7001") && ends("unlimited", " -"), "{table}");
    operator(&app, &["plans", "tier", "7003"]).await;
    assert_eq!(tiers().await, list(&["7002"]));
}

#[tokio::test]
async fn of_many_who_want_the_last_place_one_gets_it_over_two_processes() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    let accounts = accounts(&sandbox, 25).await;
    let account = |number: usize| accounts[number].clone();
    let (api, elsewhere) = (app.api().await, app.api().await);
    plan(&app, &api, &["--connections", "3"]).await;
    for number in 0..2 {
        assert_eq!(api.post("/api/v1/connections", account(number)).await.0, 201);
    }
    let crowd = (5..21).map(|number| [&api, &elsewhere][number % 2].post("/api/v1/connections", account(number)));
    let answers = join_all(crowd).await;
    let (let_in, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| *status == 201);
    assert_eq!((let_in.len(), refused.len()), (1, 15), "{refused:?}");
    refused.iter().for_each(|answer| assert_refused(answer, "connections"));
    assert!(refused[0].1["detail"].as_str().unwrap().contains("allows 3 connections, and this would make 4"));
    let (_, plan) = elsewhere.get("/api/v1/plan").await;
    assert_eq!((&plan["source"], &plan["connections"]), (&json!("operator"), &json!({ "most": 3, "used": 3 })));

    // One that is there is connected again, and a place that becomes free is given once more.
    let (status, known) = api.post("/api/v1/connections", account(0)).await;
    assert_eq!(status, 201, "{known}");
    assert_eq!(api.delete(&format!("/api/v1/connections/{}", known["id"].as_str().unwrap())).await.0, 204);
    assert_eq!(api.post("/api/v1/connections", account(22)).await.0, 201);
    assert_refused(&api.post("/api/v1/connections", account(23)).await, "connections");
    // A neighbour has what the default allows.
    let neighbour = app.token_for(TenantId::new(), &[Scope::Workspace]);
    let (status, _) = call(&api, &neighbour, None, Method::POST, "/api/v1/connections", Some(&account(24))).await;
    assert_eq!(status, 201);
}

#[tokio::test]
async fn posts_of_a_month_are_counted_by_account_and_what_is_cancelled_is_not() {
    let stage = Stage::new().await;
    let (app, api) = (&stage.app, &stage.api);
    let elsewhere = app.api().await;
    plan(app, api, &["--posts-per-month", "4"]).await;
    let later = (chrono::Utc::now() + chrono::Duration::hours(5)).to_rfc3339();
    let publish = async |api: &Api, text: String| {
        let wish = json!({ "text": text, "platforms": ["x"], "scheduled_at": later });
        api.post("/api/v1/publish", wish).await
    };
    let cancelled = stage.publish_with(json!({ "text": "never", "scheduled_at": later })).await;
    assert_eq!(api.post(&format!("/api/v1/publications/{cancelled}/cancel"), json!({})).await.0, 200);
    let crowd = (0..12).map(|number| publish([api, &elsewhere][number % 2], format!("post {number}")));
    let answers = join_all(crowd).await;
    let (let_in, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(status, _)| *status == 202);
    assert_eq!((let_in.len(), refused.len()), (4, 8), "{refused:?}");
    refused.iter().for_each(|answer| assert_refused(answer, "posts_per_month"));
    // Refused is refused whole: no post, no job, and the key is free.
    let counted = async |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(&app.pool).await.unwrap();
    assert_eq!(counted("select count(*) from posts").await, 5);
    assert_eq!(counted("select count(*) from jobs where kind = 'publish'").await, 5);

    // What was put on its way last month does not count in this one.
    let sql = "update publications set created_at = date_trunc('month', now(), 'UTC') - interval '1 hour' \
               where id in (select id from publications where phase <> 'cancelled' limit 1)";
    sqlx::query(sql).execute(&app.pool).await.unwrap();
    let (_, plan) = api.get("/api/v1/plan").await;
    assert_eq!(plan["posts_per_month"], json!({ "most": 4, "used": 3 }));
    assert_eq!(publish(api, "one more".to_owned()).await.0, 202);
    assert_refused(&publish(api, "one too many".to_owned()).await, "posts_per_month");
    // Drafts are free.
    assert_eq!(api.post("/api/v1/posts", json!({ "universal_content": "a draft" })).await.0, 201);
}

#[tokio::test]
async fn of_uploads_that_each_fit_only_as_many_as_fit_together_are_kept() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let mut files = Vec::new();
    for number in 0..4 {
        // Other bytes each, nearly as many.
        let path = clips.clip(&format!("{number}.mp4"), "160x90", 0.6, &format!("-metadata comment=n{number}")).await;
        files.push(std::fs::read(path).unwrap());
    }
    let most = files.iter().map(Vec::len).max().unwrap() * 3 / 2;
    plan(&app, &api, &["--media-bytes", &most.to_string()]).await;
    let answers = join_all(files.into_iter().map(|bytes| upload(&api, "one.mp4", bytes))).await;
    let (kept, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|(status, _)| *status == 201);
    assert_eq!(kept.len(), 1, "{answers:?}");
    refused.into_iter().for_each(|answer| assert_refused(answer, "media_bytes"));
}

#[tokio::test]
async fn a_repeated_upload_is_answered_as_before_whatever_the_plan_has_become() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let bytes = std::fs::read(clips.clip("short.mp4", "160x90", 0.6, "").await).unwrap();
    let send = async || {
        let part = multipart::Part::bytes(bytes.clone()).file_name("short.mp4");
        let request = api.request(Method::POST, "/api/v1/media").header("Idempotency-Key", "once");
        let answer = request.multipart(multipart::Form::new().part("file", part)).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let first = send().await;
    assert_eq!(first.0, 201, "{}", first.1);
    plan(&app, &api, &["--upload-bytes", "1"]).await;
    assert_eq!(send().await, first);
    assert_refused(&upload(&api, "short.mp4", bytes.clone()).await, "upload_bytes");
}

#[tokio::test]
async fn uploads_are_bounded_one_by_one_and_all_together() {
    let (app, clips) = (App::new().await, Clips::new());
    let api = app.api().await;
    let short = std::fs::read(clips.clip("short.mp4", "320x180", 0.6, "").await).unwrap();
    let long = std::fs::read(clips.clip("long.mp4", "320x180", 2.5, "").await).unwrap();
    let other = std::fs::read(clips.clip("other.mp4", "160x90", 0.6, "").await).unwrap();
    let most = short.len() + other.len() / 2;
    let (media, one) = (most.to_string(), (long.len() - 1).to_string());
    plan(&app, &api, &["--media-bytes", &media, "--upload-bytes", &one]).await;
    assert_refused(&upload(&api, "long.mp4", long.clone()).await, "upload_bytes");
    let (status, kept) = upload(&api, "short.mp4", short.clone()).await;
    assert_eq!(status, 201, "{kept}");
    // The same bytes once more take no more room.
    let (status, again) = upload(&api, "again.mp4", short.clone()).await;
    assert_eq!(status, 201, "{again}");
    let crowd = (0..4).map(|_| upload(&api, "other.mp4", other.clone()));
    for answer in join_all(crowd).await {
        assert_refused(&answer, "media_bytes");
    }
    let (_, plan) = api.get("/api/v1/plan").await;
    assert_eq!(plan["media_bytes"], json!({ "most": most, "used": short.len() }));
    for media in [&kept, &again] {
        assert_eq!(api.delete(&format!("/api/v1/media/{}", media["id"].as_str().unwrap())).await.0, 204);
    }
    assert_eq!(upload(&api, "other.mp4", other).await.0, 201);

    operator(&app, &["plans", "define", "small", "--upload-seconds", "2"]).await;
    assert_refused(&upload(&api, "long.mp4", long).await, "upload_seconds");
    // As a browser records it: the file does not say how long it is.
    let words = format!("{} {X264} -an -f matroska -live 1", sources("160x90", 0.6));
    let live = std::fs::read(clips.make("live.mkv", &words).await).unwrap();
    assert_refused(&upload(&api, "live.mkv", live).await, "upload_seconds");
    assert_eq!(upload(&api, "short.mp4", short).await.0, 201);
    // Nothing of what was refused is kept.
    let sql = "select count(*) from media_objects where state = 'kept'";
    wait_until(SOON, "two files", || async {
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&app.pool).await.unwrap() == 2
    })
    .await;
}

#[tokio::test]
async fn two_processes_cannot_both_spend_the_last_of_a_plans_budget() {
    let app = App::new().await;
    let api = app.api().await;
    plan(&app, &api, &["--ai-usd-per-month", "0.000001"]).await;
    let reserve = |ticks| {
        let billing =
            PgBilling { db: app.pool.clone(), tenant: app.tenant, job: None, expires_after: Duration::from_secs(60) };
        let reservation = Reservation { provider: ProviderName::Grok, model: "grok-4.3".into(), attempt: 1, ticks };
        async move { billing.reserve(&reservation).await }
    };
    let answers = join_all((0..20).map(|_| reserve(1_000))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 10);
    let refused = answers.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(refused, BillingError::Spent(ref spent) if spent.subject == "plan:small"), "{refused}");
    assert!(reserve(0).await.is_ok(), "what costs nothing is never too dear");
    let (_, usage) = api.get("/api/v1/ai/usage").await;
    assert_eq!((&usage["budget"]["limit_usd"], &usage["budget"]["used_usd"]), (&json!(1e-6), &json!(1e-6)), "{usage}");
    let old = "update ai_usage set reserved_at = reserved_at - interval '40 days'";
    sqlx::query(old).execute(&app.pool).await.unwrap();
    assert!(reserve(1_000).await.is_ok(), "a new month");
}

#[tokio::test]
async fn a_plan_ends_when_it_says_and_what_is_there_stays() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    let accounts = accounts(&sandbox, 3).await;
    let account = |number: usize| accounts[number].clone();
    let api = app.api().await;
    operator(&app, &["plans", "define", "small", "--connections", "1"]).await;
    operator(&app, &["plans", "define", "large", "--connections", "2"]).await;
    operator(&app, &["plans", "default", "small"]).await;
    workspace_is_known(&app, &api).await;
    let workspace = app.tenant.to_string();
    let soon = (chrono::Utc::now() + chrono::TimeDelta::seconds(3)).to_rfc3339();
    operator(&app, &["plans", "set", &workspace, "large", "--until", &soon]).await;
    for number in 0..2 {
        assert_eq!(api.post("/api/v1/connections", account(number)).await.0, 201);
    }
    let plan = async || api.get("/api/v1/plan").await.1;
    assert_eq!((&plan().await["name"], plan().await["until"].is_string()), (&json!("large"), true));
    wait_until(SOON, "the plan to end", || async { plan().await["source"] == "default" }).await;
    assert_eq!(plan().await["connections"], json!({ "most": 1, "used": 2 }));
    assert_refused(&api.post("/api/v1/connections", account(2)).await, "connections");
    assert_eq!(api.get("/api/v1/connections").await.1["items"].as_array().unwrap().len(), 2);
    assert_eq!(api.post("/api/v1/connections", account(1)).await.0, 201, "one that is there is connected again");

    // What cannot be given is refused by name; what was given is on record.
    for (arguments, said) in [
        (["plans", "set", &workspace, "huge"].as_slice(), "there is no plan"),
        (&["plans", "set", &TenantId::new().to_string(), "large"], "there is no workspace"),
        (&["plans", "default", "huge"], "there is no plan"),
    ] {
        let (done, text) = app.cli(arguments).await;
        assert!(!done && text.contains(said), "{text}");
    }
    operator(&app, &["plans", "unset", &workspace]).await;
    let (_, lines) = get(&api, &api.token, "/api/v1/audit?action=plan.given").await;
    assert_eq!((lines["items"].as_array().unwrap().len(), &lines["items"][0]["actor"]), (1, &json!("operator")));
}
