//! The calls about jobs and groups, against the real API and a real worker.

use std::time::Duration;

use futures::StreamExt;
use multivio::{
    cli::jobs::steer,
    http::Scope,
    ids::{GroupId, JobId, TenantId},
    jobs::{Engine, NewJob, OnParent, Queue, belt::Belt, noop::Noop},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Api, App, eventually, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn engine(app: &App) -> Engine {
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    Engine::new(app.pool.clone(), app.session(), belt)
}

fn noop(app: &App) -> NewJob {
    NewJob::of(&Noop { payload: "12345".into() }, app.tenant)
}

async fn enqueue(app: &App, engine: &Engine) -> JobId {
    engine.enqueue(noop(app)).await.unwrap()
}

/// As a run that failed for good leaves it.
async fn fail(app: &App, job: JobId) {
    sqlx::query(
        "update jobs set state = 'failed', finished_at = now(), attempt = 8, \
                why = '{\"code\": \"refused\", \"message\": \"the platform refused it\"}' where id = $1",
    )
    .bind(job)
    .execute(&app.pool)
    .await
    .unwrap();
    sqlx::query(
        "insert into job_attempts (job_id, run, class, code, message) values ($1, 1, 'failed', 'refused', 'no')",
    )
    .bind(job)
    .execute(&app.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_by_one_waiting_call() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let (status, view) = api.get(&format!("/api/v1/jobs/{job}")).await;
    assert_eq!((status, &view["state"], &view["kind"]), (200, &json!("queued"), &json!("noop")));
    assert!(view["reason"].as_str().unwrap().starts_with("It waits for a free worker of the queue \"ops\""), "{view}");
    assert_eq!((&view["attempt"], &view["links"]["self"]), (&json!(0), &json!(format!("/api/v1/jobs/{job}"))));
    assert!(view.get("args").is_none(), "arguments are the product's own");

    let _worker = app.worker(Queue::Ops).await;
    let (status, view) = api.get(&format!("/api/v1/jobs/{job}?wait=30")).await;
    assert_eq!((status, &view["state"], &view["result"]), (200, &json!("succeeded"), &json!({ "bytes": 5 })));
    assert_eq!((&view["attempt"], view.get("reason")), (&json!(1), None));
    assert!(view["ran_ms"].is_u64() && view["finished_at"].is_string());

    let (_, timeline) = api.get(&format!("/api/v1/jobs/{job}/timeline")).await;
    let lines: Vec<_> =
        timeline["items"].as_array().unwrap().iter().map(|line| line["what"].as_str().unwrap()).collect();
    assert_eq!(lines, ["created", "queued", "started", "succeeded"], "{timeline}");
}

#[tokio::test]
async fn a_status_that_is_known_is_not_sent_again_and_a_change_ends_the_wait() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let path = format!("/api/v1/jobs/{job}");
    let first = api.request(Method::GET, &path).send().await.unwrap();
    let etag = first.headers()["etag"].clone();
    let again = api.request(Method::GET, &path).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!((again.status(), &again.headers()["etag"]), (StatusCode::NOT_MODIFIED, &etag));
    assert!(again.bytes().await.unwrap().is_empty());
    // As a proxy sends it that has several, or has packed the answer.
    let tag = etag.to_str().unwrap();
    for known in [format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let again = api.request(Method::GET, &path).header("if-none-match", &known).send().await.unwrap();
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{known}");
    }
    let other = api.request(Method::GET, &path).header("if-none-match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);

    let waiting = api.request(Method::GET, &format!("{path}?wait=30")).header("if-none-match", &etag).send();
    let cancelling = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        steer::cancel(&engine, job).await.unwrap();
    };
    let (answer, ()) = tokio::join!(tokio::time::timeout(SOON, waiting), cancelling);
    let answer = answer.unwrap().unwrap();
    assert_ne!(answer.headers()["etag"], etag);
    assert_eq!(answer.json::<Value>().await.unwrap()["state"], "cancelled");
}

#[tokio::test]
async fn a_wait_ends_after_its_time_with_the_job_as_it_is() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let started = std::time::Instant::now();
    let (status, view) = api.get(&format!("/api/v1/jobs/{job}?wait=1")).await;
    assert_eq!((status, &view["state"]), (200, &json!("queued")));
    assert!((1..5).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn lists_are_newest_first_filtered_and_paged_without_gaps() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let mut jobs = Vec::new();
    for _ in 0..7 {
        jobs.push(enqueue(&app, &engine).await);
    }
    steer::cancel(&engine, jobs[3]).await.unwrap();
    jobs.reverse();

    let (mut seen, mut path) = (Vec::new(), "/api/v1/jobs?limit=3".to_owned());
    loop {
        let (status, page) = api.get(&path).await;
        assert_eq!(status, 200, "{page}");
        seen.extend(page["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page.get("next_cursor") else { break };
        path = format!("/api/v1/jobs?limit=3&cursor={}", cursor.as_str().unwrap());
    }
    assert_eq!(seen, jobs.iter().map(JobId::to_string).collect::<Vec<_>>());

    let count = async |filter: &str| {
        let (status, page) = api.get(&format!("/api/v1/jobs?{filter}")).await;
        assert_eq!(status, 200, "{page}");
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(count("state=cancelled").await, 1);
    assert_eq!(count("state=queued&queue=ops&kind=noop").await, 6);
    assert_eq!(count("queue=media").await, 0);
    assert_eq!(count("kind=other").await, 0);
    assert_eq!(count(&format!("group={}", GroupId::new())).await, 0);
}

#[tokio::test]
async fn bad_input_of_each_call_is_named() {
    let app = App::new().await;
    let api = app.api().await;
    let job = JobId::new();
    for (method, path, status, field) in [
        (Method::GET, "/api/v1/jobs?state=done".to_owned(), 400, Some("state")),
        (Method::GET, "/api/v1/jobs?queue=x".to_owned(), 400, Some("queue")),
        (Method::GET, "/api/v1/jobs?group=job_1".to_owned(), 400, Some("group")),
        (Method::GET, "/api/v1/jobs?limit=101".to_owned(), 400, Some("limit")),
        (Method::GET, "/api/v1/jobs?cursor=%00".to_owned(), 400, Some("cursor")),
        (Method::GET, "/api/v1/jobs/1".to_owned(), 400, Some("id")),
        (Method::GET, format!("/api/v1/jobs/{job}?wait=31"), 400, Some("wait")),
        (Method::GET, format!("/api/v1/jobs/{job}?wait=-1"), 400, Some("wait")),
        (Method::GET, "/api/v1/groups/x".to_owned(), 400, Some("id")),
        (Method::POST, "/api/v1/jobs/x/cancel".to_owned(), 400, Some("id")),
        (Method::POST, "/api/v1/jobs/x/retry".to_owned(), 400, Some("id")),
        (Method::GET, format!("/api/v1/jobs/{job}"), 404, None),
        (Method::GET, format!("/api/v1/jobs/{job}/events"), 404, None),
        (Method::GET, format!("/api/v1/jobs/{job}/timeline"), 404, None),
        (Method::POST, format!("/api/v1/jobs/{job}/cancel"), 404, None),
        (Method::POST, format!("/api/v1/jobs/{job}/retry"), 404, None),
        (Method::GET, format!("/api/v1/groups/{}", GroupId::new()), 404, None),
    ] {
        let (answered, body) = api.call(method, &path, None).await;
        assert_eq!((answered, body.get("field").and_then(Value::as_str)), (status, field), "{path}: {body}");
    }
    let events = api.request(Method::GET, &format!("/api/v1/jobs/{job}/events")).header("last-event-id", "x; drop");
    let body: Value = events.send().await.unwrap().json().await.unwrap();
    assert_eq!(body["field"], "Last-Event-ID");
    let detail = async |path: &str| api.get(path).await.1["detail"].as_str().unwrap().to_owned();
    assert!(detail("/api/v1/jobs?state=foo").await.contains("Send one of waiting, scheduled, queued, running"));
    assert!(detail("/api/v1/jobs?queue=foo").await.contains("Send one of publish, ai, media, ops"));
    assert!(detail(&format!("/api/v1/jobs/{job}?wait=-1")).await.contains("0 to 30"));
    let id = detail("/api/v1/posts/x").await;
    assert!(id.contains("not the id of a post") && id.contains("post_"), "{id}");
    let form = api.request(Method::POST, "/api/v1/media").json(&json!({}));
    let body: Value = form.send().await.unwrap().json().await.unwrap();
    assert_eq!((&body["status"], &body["field"]), (&json!(415), &json!("Content-Type")), "{body}");
    assert!(body["detail"].as_str().unwrap().contains("multipart/form-data"), "{body}");
    crate::bad_input::walk(&api).await;
}

#[tokio::test]
async fn another_tenants_job_does_not_exist() {
    let app = App::new().await;
    let (mut api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let group = {
        let mut connection = app.pool.acquire().await.unwrap();
        engine.new_group(&mut connection, app.tenant, "mine").await.unwrap()
    };
    api.token = app.token_for(TenantId::new(), &[Scope::Workspace, Scope::Admin]);
    let calls = [
        (Method::GET, format!("/api/v1/jobs/{job}")),
        (Method::GET, format!("/api/v1/jobs/{job}?wait=5")),
        (Method::GET, format!("/api/v1/jobs/{job}/events")),
        (Method::GET, format!("/api/v1/jobs/{job}/timeline")),
        (Method::POST, format!("/api/v1/jobs/{job}/cancel")),
        (Method::POST, format!("/api/v1/jobs/{job}/retry")),
        (Method::GET, format!("/api/v1/groups/{group}")),
    ];
    for (method, path) in calls {
        assert_eq!(api.call(method, &path, None).await.0, 404, "{path}");
    }
    assert_eq!(api.get("/api/v1/jobs").await.1["items"], json!([]));
    assert_eq!(engine.job(None, job).await.unwrap().unwrap().state.as_str(), "queued");
    api.token = app.token_for(app.tenant, &[]);
    assert_eq!(api.get("/api/v1/jobs").await.0, 403, "a token without the scope");
}

#[tokio::test]
async fn cancel_and_retry_say_what_they_met() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let path = |verb: &str| format!("/api/v1/jobs/{job}/{verb}");
    let (status, body) = api.post(&path("retry"), Value::Null).await;
    assert_eq!((status, &body["code"]), (409, &json!("not_retryable")));
    for _twice in 0..2 {
        let (status, body) = api.post(&path("cancel"), Value::Null).await;
        assert_eq!((status, &body["state"]), (200, &json!("cancelled")));
    }

    let retry = || api.request(Method::POST, &path("retry")).header("idempotency-key", "again").send();
    let first = retry().await.unwrap();
    assert_eq!(first.status(), 200);
    let first: Value = first.json().await.unwrap();
    assert_eq!(first["state"], "scheduled");
    let second = retry().await.unwrap();
    assert_eq!((second.status(), second.json::<Value>().await.unwrap()), (StatusCode::OK, first));

    let (_, timeline) = api.get(&format!("/api/v1/jobs/{job}/timeline")).await;
    let items = timeline["items"].as_array().unwrap();
    for asked in ["cancel_requested", "retry_requested"] {
        let line = items.iter().find(|line| line["what"] == asked).unwrap_or_else(|| panic!("{asked}: {timeline}"));
        assert_eq!(line["detail"]["by"], app.user.to_string(), "{timeline}");
    }

    fail(&app, job).await;
    let (status, body) = api.post(&path("cancel"), Value::Null).await;
    assert_eq!((status, &body["code"]), (409, &json!("too_late")));
    let (_, view) = api.get(&format!("/api/v1/jobs/{job}")).await;
    assert_eq!(
        view["error"],
        json!({ "class": "failed", "code": "refused", "message": "the platform refused it" }),
        "{view}"
    );
}

#[tokio::test]
async fn a_priority_is_changed_until_the_job_has_ended() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let path = format!("/api/v1/jobs/{job}");
    let change = async |priority: &str| api.call(Method::PATCH, &path, Some(json!({ "priority": priority }))).await;
    let (status, view) = change("high").await;
    assert_eq!((status, &view["priority"]), (200, &json!("high")), "{view}");
    assert_eq!(change("urgent").await.0, 422);
    fail(&app, job).await;
    let (status, problem) = change("low").await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_late")), "{problem}");
    let path = format!("/api/v1/jobs/{}", JobId::new());
    assert_eq!(api.call(Method::PATCH, &path, Some(json!({ "priority": "low" }))).await.0, 404);
}

#[tokio::test]
async fn operators_alone_retry_what_failed_in_every_workspace() {
    let app = App::new().await;
    let (mut api, engine) = (app.api().await, engine(&app));
    let jobs = [enqueue(&app, &engine).await, enqueue(&app, &engine).await];
    for job in jobs {
        fail(&app, job).await;
    }
    let wish = json!({ "queue": "ops", "kind": "noop", "limit": 1 });
    api.token = app.token_for(TenantId::new(), &[Scope::Workspace]);
    assert_eq!(api.post("/api/v1/admin/jobs/retry", wish.clone()).await.0, 403);
    api.token = app.token_for(TenantId::new(), &[Scope::Admin]);
    for expected in [1, 1, 0] {
        let (status, answer) = api.post("/api/v1/admin/jobs/retry", wish.clone()).await;
        assert_eq!((status, answer), (200, json!({ "retried": expected })));
    }
    let (status, problem) = api.post("/api/v1/admin/jobs/retry", json!({ "queue": "ops", "limit": 0 })).await;
    assert_eq!(status, 422, "{problem}");
}

#[tokio::test]
async fn each_workspace_whose_jobs_an_operator_retries_in_bulk_reads_how_many_in_its_own_audit_log() {
    let app = App::new().await;
    let (mut api, engine) = (app.api().await, engine(&app));
    let other = TenantId::new();
    let of_other = || NewJob::of(&Noop { payload: "12345".into() }, other);
    for job in [enqueue(&app, &engine).await, enqueue(&app, &engine).await, engine.enqueue(of_other()).await.unwrap()] {
        fail(&app, job).await;
    }
    let lines = async || -> Vec<(Option<TenantId>, String, Value)> {
        let text = "select tenant_id, actor, details from audit_log where action = 'jobs.failed_retried' \
                    and details ? 'retried' order by details->>'retried'";
        sqlx::query_as(text).fetch_all(&app.pool).await.unwrap()
    };
    api.token = app.token_for(TenantId::new(), &[Scope::Admin]);
    let wish = json!({ "queue": "ops" });
    assert_eq!(api.post("/api/v1/admin/jobs/retry", wish.clone()).await, (200, json!({ "retried": 3 })));
    let line = |tenant, retried| {
        let by = app.user.to_string();
        let details = json!({ "queue": "ops", "kind": null, "retried": retried, "by": by });
        (Some(tenant), "operator".to_owned(), details)
    };
    assert_eq!(lines().await, [line(other, 1), line(app.tenant, 2)]);
    // Where nothing is retried nothing is written, and what is not written is not retried.
    assert_eq!(api.post("/api/v1/admin/jobs/retry", wish.clone()).await, (200, json!({ "retried": 0 })));
    fail(&app, engine.enqueue(of_other()).await.unwrap()).await;
    sqlx::query("revoke insert on audit_log from multivio_worker").execute(&app.pool).await.unwrap();
    assert_eq!(api.post("/api/v1/admin/jobs/retry", wish.clone()).await.0, 500);
    sqlx::query("grant insert on audit_log to multivio_worker").execute(&app.pool).await.unwrap();
    assert_eq!(lines().await.len(), 2);
    assert_eq!(api.post("/api/v1/admin/jobs/retry", wish).await, (200, json!({ "retried": 1 })));
    // Owners read theirs by the call.
    api.token = app.token();
    let (_, list) = api.get("/api/v1/audit?action=jobs.failed_retried").await;
    assert_eq!((&list["items"][0]["details"]["retried"], list["items"].as_array().unwrap().len()), (&json!(2), 1));
}

#[tokio::test]
async fn a_paused_queue_is_the_reason_given() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    engine.pause(Queue::Ops, "a test").await.unwrap();
    let (_, view) = api.get(&format!("/api/v1/jobs/{job}")).await;
    assert_eq!(view["reason"], "The queue \"ops\" is paused.");
}

#[tokio::test]
async fn a_group_has_one_status_and_one_wait() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let mut tx = app.pool.begin().await.unwrap();
    let group = engine.new_group(&mut tx, app.tenant, "both").await.unwrap();
    let parent = noop(&app).group(group);
    let child = noop(&app).group(group).after(parent.id, OnParent::Cancel);
    let tickets = engine.enqueue_in(&mut tx, &[parent, child]).await.unwrap();
    tx.commit().await.unwrap();
    engine.ring(&tickets).await;
    let (status, view) = api.get(&format!("/api/v1/groups/{group}")).await;
    assert_eq!((status, &view["state"], &view["ended"]), (200, &json!("queued"), &json!(0)), "{view}");
    assert_eq!(view["jobs"][1]["reason"], "It waits for another job to end.");

    let path = format!("/api/v1/groups/{group}?wait=30");
    let _worker = app.worker(Queue::Ops).await;
    let (_, view) = api.get(&path).await;
    assert_eq!((&view["state"], &view["ended"], &view["name"]), (&json!("succeeded"), &json!(2), &json!("both")));
}

/// Events of a stream, as (id, event, data), until it ends.
async fn events(api: &Api, job: JobId, last: Option<&str>) -> Vec<(String, String, Value)> {
    let mut request = api.request(Method::GET, &format!("/api/v1/jobs/{job}/events"));
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    let text = tokio::time::timeout(SOON, response.text()).await.expect("the stream ends with its job").unwrap();
    let field = |event: &str, name: &str| {
        let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let events = text.split("\n\n").filter(|event| event.contains("data:"));
    events
        .map(|event| (field(event, "id"), field(event, "event"), serde_json::from_str(&field(event, "data")).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_stream_tells_everything_once_and_goes_on_after_a_break() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    for number in 0..3 {
        let told = json!({ "fraction": f64::from(number) / 4.0, "phase": "working" });
        engine.belt().emit(&[(job, "progress", told.to_string())]).await.unwrap();
    }
    steer::cancel(&engine, job).await.unwrap();

    let all = events(&api, job, None).await;
    let names: Vec<_> = all.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names, ["progress", "progress", "progress", "state"]);
    assert_eq!(all[2].2["fraction"], 0.5);
    assert_eq!((all[3].1.as_str(), &all[3].2["state"]), ("state", &json!("cancelled")));

    let rest = events(&api, job, Some(&all[1].0)).await;
    assert_eq!(rest, all[2..]);
    let path = format!("/api/v1/jobs/{job}/events");
    let over = api.request(Method::GET, &path).header("last-event-id", &all[3].0).send().await.unwrap();
    assert_eq!(over.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_replay_is_whole_and_a_job_that_is_run_again_can_be_followed_again() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let told: Vec<_> = (0..1_800).map(|number| (job, "token", json!({ "number": number }).to_string())).collect();
    engine.belt().emit(&told).await.unwrap();
    fail(&app, job).await;
    let all = events(&api, job, None).await;
    let numbers: Vec<_> = all.iter().filter_map(|(.., data)| data["number"].as_u64()).collect();
    assert_eq!(numbers, (0..1_800).collect::<Vec<_>>());
    let (end, ..) = all.last().unwrap();

    let path = format!("/api/v1/jobs/{job}/events");
    let over = api.request(Method::GET, &path).header("last-event-id", end).send().await.unwrap();
    assert_eq!(over.status(), StatusCode::NO_CONTENT);
    assert_eq!(steer::retry(&engine, job).await.unwrap(), steer::Retried::Yes);
    let again = api.request(Method::GET, &path).header("last-event-id", end).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    let next = (job, "token", json!({ "number": 1_800 }).to_string());
    engine.belt().emit(&[next]).await.unwrap();
    steer::cancel(&engine, job).await.unwrap();
    let text = tokio::time::timeout(SOON, again.text()).await.expect("it ends again").unwrap();
    assert!(text.contains("1800") && !text.contains("1799"), "what came since, and nothing twice: {text}");
}

#[tokio::test]
async fn a_stream_is_live_and_ends_from_the_ledger_when_redis_is_gone() {
    let servers = crate::harness::Servers::private().await;
    let app = App::on(&servers).await;
    let (api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let response = api.request(Method::GET, &format!("/api/v1/jobs/{job}/events")).send().await.unwrap();
    let mut stream = response.bytes_stream();
    let mut text = String::new();
    let mut read_until = async |what: &str| {
        while !text.contains(what) {
            let chunk =
                tokio::time::timeout(SOON, stream.next()).await.unwrap_or_else(|_| panic!("no {what} in {text}"));
            text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
        }
    };
    read_until("\"queued\"").await;
    engine.belt().emit(&[(job, "token", json!({ "text": "word" }).to_string())]).await.unwrap();
    read_until("\"word\"").await;
    servers.control().await.redis.stop().await.unwrap();
    steer::cancel(&engine, job).await.unwrap();
    read_until("\"cancelled\"").await;
}

#[tokio::test]
async fn a_stopping_api_lets_its_followers_go() {
    let app = App::new().await;
    let (mut api, engine) = (app.api().await, engine(&app));
    let job = enqueue(&app, &engine).await;
    let stream = api.request(Method::GET, &format!("/api/v1/jobs/{job}/events")).send().await.unwrap();
    let poll = tokio::spawn(api.request(Method::GET, &format!("/api/v1/jobs/{job}?wait=30")).send());
    // In flight: the API counts it.
    wait_until(SOON, "the poll to arrive", || async {
        let (_, figures) = api.get("/metrics").await;
        figures.as_str().unwrap_or_default().contains("requests_in_flight 2")
    })
    .await;
    let started = std::time::Instant::now();
    let status = api.program.stop(Duration::from_secs(10)).await;
    assert!(status.success(), "{status}:\n{}", api.program.log());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(poll.await.unwrap().unwrap().status(), 200);
    assert!(stream.text().await.unwrap().contains("\"queued\""));
}

#[tokio::test]
async fn the_operators_commands_work_without_the_api() {
    let app = App::new().await;
    let engine = engine(&app);
    let job = enqueue(&app, &engine).await;
    let id = job.to_string();
    let run = async |args: &[&str]| app.cli(args).await;
    let (done, said) = run(&["jobs", "list", "--state", "queued"]).await;
    assert!(done && said.contains(&id), "{said}");
    let (done, said) = run(&["jobs", "pause", "ops"]).await;
    assert!(done && said.contains("ops is paused"), "{said}");
    let (done, said) = run(&["jobs", "show", &id]).await;
    assert!(done && said.contains("The queue \"ops\" is paused.") && said.contains("created"), "{said}");
    let (done, said) = run(&["jobs", "resume", "ops"]).await;
    assert!(done && said.contains("ops goes on"), "{said}");
    let (done, said) = run(&["jobs", "stats", "--json"]).await;
    let stats: Value = serde_json::from_str(&said).unwrap();
    let ops =
        stats.as_array().unwrap().iter().find(|line| line["queue"] == "ops" && line["lane"] == "default").unwrap();
    assert!(done && ops["queued"] == 1, "{said}");
    let (done, said) = run(&["jobs", "retry", &id]).await;
    assert!(!done && said.contains("is queued; only a failed or cancelled job"), "{said}");
    let (done, said) = run(&["jobs", "cancel", &id]).await;
    assert!(done && said.contains("cancelled"), "{said}");
    let (done, said) = run(&["jobs", "cancel", &id]).await;
    assert!(done && said.contains("is cancelled already"), "what was wanted is so, as the API answers: {said}");
    fail(&app, job).await;
    let (done, said) = run(&["jobs", "retry", "--failed", "--queue", "ops"]).await;
    assert!(done && said.contains("1 failed job(s)"), "{said}");
    let (done, said) = run(&["jobs", "show", &JobId::new().to_string()]).await;
    assert!(!done && said.contains("there is no job"), "{said}");
}

#[tokio::test]
async fn the_api_stands_alone_and_moves_what_is_due() {
    let app = App::new().await;
    let (api, engine) = (app.api().await, engine(&app));
    let due = chrono::Utc::now() + chrono::TimeDelta::milliseconds(300);
    let job = engine.enqueue(noop(&app).run_at(due)).await.unwrap();
    let path = format!("/api/v1/jobs/{job}");
    let reason = api.get(&path).await.1["reason"].clone();
    assert!(
        reason.as_str().unwrap().starts_with("It is due at") || reason.as_str().unwrap().contains("worker"),
        "{reason}"
    );
    eventually(SOON, "the job to be queued", || async { (api.get(&path).await.1["state"] == "queued").then_some(()) })
        .await;
}
