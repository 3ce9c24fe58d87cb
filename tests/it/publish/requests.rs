//! What the calls accept and refuse, and who may see what.

use multivio::{http::Scope, ids::TenantId};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Stage, connection};

fn fields(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().expect("a list").iter().map(|error| error["field"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn everything_wrong_with_a_wish_to_publish_is_said_at_once_and_nothing_is_queued() {
    let stage = Stage::new().await;
    let request = json!({
        "text": "x".repeat(300),
        "platforms": ["x", "threads"],
        "connections": ["conn_00000000000000000000000000000000"],
        "scheduled_at": "2027-03-28T02:30:00",
        "time_zone": "Europe/Berlin",
        "tone": "warm",
    });
    let (status, problem) = stage.api.post("/api/v1/publish", request).await;
    assert_eq!(status, 422, "{problem}");
    assert_eq!(fields(&problem), ["connections[0]", "platforms[1]", "scheduled_at", "tone", "text"], "{problem}");
    let jobs: i64 =
        sqlx::query_scalar("select (select count(*) from jobs where kind = 'publish') + (select count(*) from posts)")
            .fetch_one(&stage.app.pool)
            .await
            .unwrap();
    assert_eq!(jobs, 0);
}

#[tokio::test]
async fn an_error_names_a_field_of_the_request_that_was_sent() {
    let mut stage = Stage::new().await;
    let long = "x".repeat(300);
    let variants = json!([{ "platform": "threads", "text": "short" }, { "platform": "x", "text": long }]);
    let publish = "/api/v1/publish";
    let (_, problem) = stage.api.post(publish, json!({ "platforms": ["x"], "tone": "warm" })).await;
    assert_eq!(fields(&problem), ["text", "tone"], "all at once, and each once: {problem}");
    let request = json!({ "text": "short", "variants": variants, "platforms": ["x"] });
    let (_, problem) = stage.api.post(publish, request).await;
    assert_eq!(fields(&problem), ["variants[1].text"], "{problem}");

    let (_, post) = stage.api.post("/api/v1/posts", json!({ "universal_content": long })).await;
    let path = format!("/api/v1/posts/{}/publish", post["id"].as_str().unwrap());
    let (_, problem) = stage.api.post(&path, json!({ "platforms": ["x"] })).await;
    assert_eq!(fields(&problem), ["universal_content"], "{problem}");

    let request = json!({ "universal_content": long, "platforms": ["x", "threads", "x"] });
    let (_, answer) = stage.api.post("/api/v1/posts/validate", request).await;
    let named: Vec<_> = answer["platforms"].as_array().unwrap().iter().map(|one| one["platform"].clone()).collect();
    assert_eq!(named, ["x", "threads"], "each once, in the caller's order");
    assert_eq!(answer["platforms"][0]["problems"][0]["field"], "universal_content");
    let request = json!({ "universal_content": "short", "variants": variants, "platforms": ["x"] });
    let (_, answer) = stage.api.post("/api/v1/posts/validate", request).await;
    assert_eq!(answer["platforms"][0]["problems"][0]["field"], "variants[1].text");

    // What no worker could do is refused at once.
    for name in ["GROK_API_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY"] {
        stage.app.set(name, "");
    }
    let api = stage.app.api().await;
    let (status, problem) = api.post(publish, json!({ "text": "a", "platforms": ["x"], "optimize": true })).await;
    assert_eq!((status, fields(&problem)), (422, vec!["optimize"]), "{problem}");
}

#[tokio::test]
async fn a_repeat_with_the_same_key_publishes_once() {
    let stage = Stage::new().await;
    let send = async || {
        let request = stage.api.request(Method::POST, "/api/v1/publish").header("Idempotency-Key", "once");
        let answer = request.json(&json!({ "text": "once", "platforms": ["x"] })).send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    let (first, second) = (send().await, send().await);
    assert_eq!((first.0, &first), (202, &second));
    let publications: i64 =
        sqlx::query_scalar("select count(*) from publications").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(publications, 1);
}

#[tokio::test]
async fn validation_measures_as_each_platform_does() {
    let stage = Stage::new().await;
    let request = json!({ "universal_content": "日".repeat(141), "platforms": ["x"] });
    let (status, answer) = stage.api.post("/api/v1/posts/validate", request).await;
    assert_eq!(status, 200, "{answer}");
    let report = &answer["platforms"][0];
    assert_eq!((&answer["valid"], &report["used"], &report["limit"]), (&json!(false), &json!(282), &json!(280)));
    assert_eq!(report["problems"][0]["code"], "too_long");
    let shorter = json!({ "universal_content": "日".repeat(141), "variants": [{ "platform": "x", "text": "short" }] });
    let (_, answer) = stage.api.post("/api/v1/posts/validate", shorter).await;
    assert_eq!(answer["valid"], true, "{answer}");
}

#[tokio::test]
async fn posts_are_written_read_changed_and_deleted() {
    let stage = Stage::new().await;
    let (status, post) = stage.api.post("/api/v1/posts", json!({ "universal_content": "one" })).await;
    assert_eq!((status, &post["version"]), (201, &json!(1)), "{post}");
    let (_, read) = stage.api.get(&format!("/api/v1/posts/{}", post["id"].as_str().unwrap())).await;
    assert_eq!(read, post, "what was answered is what was stored");
    let path = format!("/api/v1/posts/{}", post["id"].as_str().unwrap());
    let change = json!({ "universal_content": "two", "variants": [{ "platform": "x", "text": "on x" }], "version": 1 });
    let (status, changed) = stage.api.call(Method::PUT, &path, Some(change.clone())).await;
    assert_eq!((status, &changed["version"]), (200, &json!(2)), "{changed}");
    let (status, problem) = stage.api.call(Method::PUT, &path, Some(change)).await;
    assert_eq!((status, &problem["code"]), (409, &json!("changed_meanwhile")), "{problem}");
    let (_, read) = stage.api.get(&path).await;
    assert_eq!((&read["universal_content"], &read["variants"][0]["text"]), (&json!("two"), &json!("on x")));
    assert_eq!(stage.api.delete(&path).await.0, 204);
    assert_eq!(stage.api.get(&path).await.0, 404);
    assert_eq!(stage.api.delete(&path).await.0, 404);
}

#[tokio::test]
async fn a_post_with_publications_to_go_out_is_not_deleted() {
    let stage = Stage::new().await;
    stage.publish("still to go out").await;
    let (_, posts) = stage.api.get("/api/v1/posts").await;
    let path = format!("/api/v1/posts/{}", posts["items"][0]["id"].as_str().unwrap());
    let (status, problem) = stage.api.delete(&path).await;
    assert_eq!((status, &problem["code"]), (409, &json!("publications_open")), "{problem}");
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let stage = Stage::new().await;
    for n in 0..5 {
        stage.api.post("/api/v1/posts", json!({ "universal_content": format!("post {n}") })).await;
    }
    let (mut texts, mut cursor) = (Vec::new(), String::new());
    loop {
        let (status, page) = stage.api.get(&format!("/api/v1/posts?limit=2{cursor}")).await;
        assert_eq!(status, 200, "{page}");
        texts.extend(page["items"].as_array().unwrap().iter().map(|post| post["universal_content"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(texts, ["post 4", "post 3", "post 2", "post 1", "post 0"]);
}

#[tokio::test]
async fn what_belongs_to_another_workspace_is_not_there() {
    let stage = Stage::new().await;
    let publication = stage.publish("mine").await;
    let (_, posts) = stage.api.get("/api/v1/posts").await;
    let post = posts["items"][0]["id"].as_str().unwrap().to_owned();
    let stranger = stage.app.token_for(TenantId::new(), &[Scope::Workspace]);
    let call = async |method: Method, path: String, body: Option<Value>| {
        let url = format!("{}{path}", stage.api.url);
        let mut request = stage.api.client.request(method, url).bearer_auth(&stranger);
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await.unwrap().status().as_u16()
    };
    for path in [
        format!("/api/v1/posts/{post}"),
        format!("/api/v1/posts/{post}/publications"),
        format!("/api/v1/publications/{publication}"),
        format!("/api/v1/connections/{}", stage.connection),
    ] {
        assert_eq!(call(Method::GET, path.clone(), None).await, 404, "{path}");
    }
    let cancel = format!("/api/v1/publications/{publication}/cancel");
    assert_eq!(call(Method::POST, cancel, Some(json!({}))).await, 404);
    assert_eq!(call(Method::DELETE, format!("/api/v1/connections/{}", stage.connection), None).await, 404);
    let publish = json!({ "text": "theirs", "connections": [stage.connection] });
    assert_eq!(call(Method::POST, "/api/v1/publish".into(), Some(publish)).await, 422);
    assert_eq!(stage.publication(&publication).await["phase"], "planned");
}

#[tokio::test]
async fn a_connection_that_cannot_work_is_refused_with_every_reason() {
    let stage = Stage::new().await;
    let mut wrong = connection(&stage.account, &json!({ "access_token": "with space", "refresh_token": "new\nline" }));
    wrong["platform"] = json!("tiktok");
    let (status, problem) = stage.api.post("/api/v1/connections", wrong).await;
    assert_eq!(status, 422, "{problem}");
    assert_eq!(fields(&problem), ["platform", "access_token", "refresh_token"], "{problem}");
    assert!(!problem.to_string().contains("with space"));
}

#[tokio::test]
async fn a_schedule_keeps_the_words_it_was_given_in() {
    let stage = Stage::new().await;
    let request = json!({ "text": "later", "scheduled_at": "2030-07-01T09:30", "time_zone": "Europe/Berlin" });
    let id = stage.publish_with(request).await;
    let publication = stage.publication(&id).await;
    assert_eq!(publication["due_at"].as_str().unwrap().get(..19), Some("2030-07-01T07:30:00"));
    assert_eq!(
        (&publication["wall_time"], &publication["time_zone"]),
        (&json!("2030-07-01T09:30:00"), &json!("Europe/Berlin"))
    );
}
