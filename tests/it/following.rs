//! Whoever follows a job is let go when they may not see it any more, also by a process that has to find that out.

use std::time::{Duration, Instant};

use multivio::{
    ids::TenantId,
    jobs::{Engine, NewJob, belt::Belt, noop::Noop},
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{
    harness::{Api, App, wait_until},
    identity::{call, get, new_key},
};

/// What was found out is believed for five seconds, and asked for every second.
const LET_GO: Duration = Duration::from_secs(15);

/// A job of this workspace that nobody runs.
async fn job(app: &App, tenant: TenantId) -> String {
    let belt = Belt::new(&app.config().redis, app.pool.clone()).unwrap();
    let engine = Engine::new(app.pool.clone(), app.session(), belt);
    engine.enqueue(NewJob::of(&Noop { payload: String::new() }, tenant)).await.unwrap().to_string()
}

/// The stream, and a call that waits, of one who sees the job now; and the end of both after what happens then.
async fn are_let_go(
    of: &Api,
    job: &str,
    as_who: impl Fn(RequestBuilder) -> RequestBuilder,
    then: impl Future,
    problem: u16,
) {
    let ask = |path: String| as_who(of.client.get(format!("{}/api/v1/jobs/{job}{path}", of.url))).send();
    let stream = ask("/events".into()).await.unwrap();
    assert_eq!(stream.status(), 200);
    let waiting = tokio::spawn(ask("?wait=30".into()));
    wait_until(LET_GO, "the call to wait", || async {
        let (_, figures) = of.get("/metrics").await;
        figures.as_str().unwrap_or_default().contains("requests_in_flight 2")
    })
    .await;
    then.await;
    let since = Instant::now();
    let told = tokio::time::timeout(LET_GO, stream.text()).await.expect("the stream ends").unwrap();
    assert!(told.contains("\"queued\""), "{told}");
    let answer = waiting.await.unwrap().unwrap();
    let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
    assert_eq!(status, problem, "{text}");
    assert!(since.elapsed() < LET_GO, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_member_who_is_removed_follows_nothing_any_more() {
    let app = App::new().await;
    let (api, elsewhere) = (app.api().await, app.api().await);
    let (viewer, of_viewer) = app.token_of_another();
    assert_eq!(get(&api, &of_viewer, "/api/v1/me").await.0, 200);
    let (_, team) = api.post("/api/v1/workspaces", json!({"name": "Team"})).await;
    let team = team["id"].as_str().unwrap();
    let members = format!("/api/v1/workspaces/{team}/members");
    let invite = json!({"user_id": viewer, "role": "viewer"});
    assert_eq!(call(&api, &api.token, Some(team), Method::POST, &members, Some(&invite)).await.0, 201);
    let job = job(&app, team.parse().unwrap()).await;
    let as_viewer = |request: RequestBuilder| request.bearer_auth(&of_viewer).header("X-Workspace", team);
    let removed = async {
        let (status, answer): (u16, Value) =
            call(&api, &api.token, Some(team), Method::DELETE, &format!("{members}/{viewer}"), None).await;
        assert_eq!(status, 204, "{answer}");
    };
    are_let_go(&elsewhere, &job, as_viewer, removed, 403).await;
}

#[tokio::test]
async fn a_key_that_is_revoked_follows_nothing_any_more() {
    let app = App::new().await;
    let (api, elsewhere) = (app.api().await, app.api().await);
    let (id, key) = new_key(&api, json!({"scopes": ["read"]})).await;
    let job = job(&app, app.tenant).await;
    let revoked = async { assert_eq!(api.delete(&format!("/api/v1/api-keys/{id}")).await.0, 204) };
    are_let_go(&elsewhere, &job, |request| request.bearer_auth(&key), revoked, 401).await;
}
