//! The ordinary way: from a request to a post, in order, once; and stopping before it is too late.

use std::time::Duration;

use multivio::jobs::Queue;
use serde_json::{Value, json};

use super::{SOON, Stage, picture};
use crate::harness::eventually;

#[tokio::test]
async fn one_call_puts_one_post_on_the_platform() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let request = json!({ "text": "hello, world", "platforms": ["x"] });
    let (status, accepted) = stage.api.post("/api/v1/publish", request).await;
    assert_eq!(status, 202, "{accepted}");
    let job = accepted["publications"][0]["job_id"].as_str().unwrap();
    let (_, done) = stage.api.get(&format!("/api/v1/jobs/{job}?wait=30")).await;
    assert_eq!(done["state"], "succeeded", "{done}");

    let posts = stage.posts().await;
    assert_eq!(posts.len(), 1, "{posts:?}");
    let publication = stage.publication(accepted["publications"][0]["id"].as_str().unwrap()).await;
    assert_eq!(publication["phase"], "sent");
    assert_eq!(publication["remote_id"], posts[0]["id"]);
    assert_eq!(done["result"]["permalink"], publication["permalink"]);
    assert!(publication["permalink"].as_str().unwrap().ends_with(posts[0]["id"].as_str().unwrap()));
    assert_eq!(stage.creates().await, 1);

    let group = accepted["group_id"].as_str().unwrap();
    let (_, group) = stage.api.get(&format!("/api/v1/groups/{group}?wait=30")).await;
    assert_eq!(group["jobs"].as_array().map(Vec::len), Some(1), "{group}");
    // The job that settles what is left behind has nothing to do here, and says so.
    eventually(SOON, "the reconcile job", || async {
        let state: Option<(String, Value)> =
            sqlx::query_as("select state::text, result from jobs where kind = 'reconcile' and result is not null")
                .fetch_optional(&stage.app.pool)
                .await
                .ok()?;
        state.filter(|(state, result)| state == "succeeded" && result["phase"] == "sent")
    })
    .await;
}

#[tokio::test]
async fn p6_posts_of_one_account_go_out_in_the_order_they_were_due() {
    let stage = Stage::new().await;
    // Queued before anybody works, so that the order is not an accident.
    let mut ids = Vec::new();
    for n in 0..6 {
        ids.push(stage.publish(&format!("number {n}")).await);
    }
    let _worker = stage.worker().await;
    for id in &ids {
        stage.until(id, "sent").await;
    }
    let texts: Vec<_> = stage.posts().await.iter().map(|post| post["text"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..6).map(|n| format!("number {n}")).collect();
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn an_image_goes_out_with_its_description() {
    let stage = Stage::new().await;
    let media = picture::upload(&stage, 640).await;
    let _workers = (stage.worker().await, stage.app.worker(Queue::Media).await);
    let request = json!({ "text": "look", "media": [{ "media_id": media, "alt_text": "a test picture" }] });
    let id = stage.publish_with(request).await;
    stage.until(&id, "sent").await;
    let posts = stage.posts().await;
    assert_eq!(posts.len(), 1);
    assert_eq!(stage.calls("media.metadata").await, 1);
    assert!(posts[0].to_string().contains("a test picture"), "{}", posts[0]);
    // Held while it was needed, and let go when it was done.
    eventually(SOON, "the file to be let go", || async {
        let held: i64 = sqlx::query_scalar("select count(*) from media_references where holder_kind = 'publication'")
            .fetch_one(&stage.app.pool)
            .await
            .ok()?;
        (held == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn media_that_the_platform_has_forgotten_is_uploaded_again() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "refuse": "invalid_media_ids" })).await;
    let media = picture::upload(&stage, 640).await;
    let _workers = (stage.worker().await, stage.app.worker(Queue::Media).await);
    let id = stage.publish_with(json!({ "text": "look", "media": [{ "media_id": media }] })).await;
    stage.until(&id, "sent").await;
    assert_eq!(stage.calls("media.upload").await, 2);
    stage.until_outcomes(&id, &["refused", "created"]).await;
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn p5_editing_a_post_reaches_what_is_not_frozen_and_nothing_after() {
    let stage = Stage::new().await;
    let (_, post) = stage.api.post("/api/v1/posts", json!({ "universal_content": "first words" })).await;
    let path = format!("/api/v1/posts/{}", post["id"].as_str().unwrap());
    let publish = async || {
        let (status, accepted) = stage.api.post(&format!("{path}/publish"), json!({ "platforms": ["x"] })).await;
        assert_eq!(status, 202, "{accepted}");
        accepted["publications"][0]["id"].as_str().unwrap().to_owned()
    };
    let edit = async |text: &str| {
        let (status, _) = stage.api.call(reqwest::Method::PUT, &path, Some(json!({ "universal_content": text }))).await;
        assert_eq!(status, 200);
    };
    let id = publish().await;
    edit("better words").await;
    // The platform holds up the request, so that the edit comes after the intent.
    stage.fault("tweets.create", json!({ "delay_ms": 800 })).await;
    let _worker = stage.worker().await;
    stage.until(&id, "sending").await;
    edit("too late").await;
    stage.until(&id, "sent").await;
    let texts: Vec<_> = stage.posts().await.iter().map(|post| post["text"].clone()).collect();
    assert_eq!(texts, ["better words"]);
    // And what is sent is never sent again by an edit.
    edit("again").await;
    assert_eq!(stage.creates().await, 1);
}

#[tokio::test]
async fn p4_cancel_before_the_intent_stops_it_and_after_it_is_too_late() {
    let stage = Stage::new().await;
    let early = stage.publish("never to be seen").await;
    let (status, cancelled) = stage.api.post(&format!("/api/v1/publications/{early}/cancel"), json!({})).await;
    assert_eq!((status, &cancelled["phase"]), (200, &json!("cancelled")), "{cancelled}");

    stage.fault("tweets.create", json!({ "delay_ms": 1000 })).await;
    let late = stage.publish("on its way").await;
    let _worker = stage.worker().await;
    stage.until(&late, "sending").await;
    let (status, problem) = stage.api.post(&format!("/api/v1/publications/{late}/cancel"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_late")), "{problem}");
    stage.until(&late, "sent").await;
    let (status, problem) = stage.api.post(&format!("/api/v1/publications/{late}/cancel"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_late")), "{problem}");
    assert_eq!(stage.publication(&early).await["phase"], "cancelled");
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn a_cancelled_job_cancels_its_publication() {
    let stage = Stage::new().await;
    let id = stage.publish("not to go out").await;
    let job = stage.publication(&id).await["job_id"].as_str().unwrap().to_owned();
    let (status, _) = stage.api.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!(status, 200);
    let _worker = stage.worker().await;
    stage.until(&id, "cancelled").await;
    assert_eq!(stage.creates().await, 0);
}

#[tokio::test]
async fn a_refused_post_says_why_and_a_retry_of_its_job_tries_again() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "refuse": "invalid_url" })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("refused once").await;
    let failed = stage.until(&id, "failed").await;
    assert_eq!(failed["problem"]["turn"], "user", "{failed}");
    assert!(failed["problem"]["message"].as_str().unwrap().contains("invalid URL"), "{failed}");

    let job = failed["job_id"].as_str().unwrap();
    eventually(SOON, "the job to have failed", || async {
        let (_, job) = stage.api.get(&format!("/api/v1/jobs/{job}")).await;
        (job["state"] == "failed").then_some(())
    })
    .await;
    let (status, answer) = stage.api.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    stage.until(&id, "sent").await;
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn a_post_that_could_not_go_out_in_time_follows_its_policy() {
    let stage = Stage::new().await;
    let later = (chrono::Utc::now() + Duration::from_secs(3600)).to_rfc3339();
    let late = |policy: &str| {
        json!({ "text": format!("late with {policy}"), "scheduled_at": later, "late_policy": policy,
            "max_lateness_seconds": 60 })
    };
    let [publish, skip, ask] = ["publish", "skip", "ask"].map(late);
    let publish = stage.publish_with(publish).await;
    let skip = stage.publish_with(skip).await;
    let ask = stage.publish_with(ask).await;
    // As if no worker had run until ten minutes after their time.
    for statement in [
        "update publications set due_at = now() - interval '10 minutes'",
        "update jobs set run_at = now() - interval '10 minutes', due_at = now() - interval '10 minutes' \
         where state = 'scheduled'",
    ] {
        sqlx::query(statement).execute(&stage.app.pool).await.unwrap();
    }
    let _worker = stage.worker().await;
    stage.until(&publish, "sent").await;
    assert_eq!(stage.until(&skip, "failed").await["problem"]["code"], "skipped_late");
    eventually(SOON, "the question", || async {
        (stage.publication(&ask).await["problem"]["code"] == "late").then_some(())
    })
    .await;
    assert_eq!(stage.creates().await, 1);
    // Its job is parked by now, or about to be: the word of the user reaches it either way.
    let (status, answer) = stage.api.post(&format!("/api/v1/publications/{ask}/send-late"), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    stage.until(&ask, "sent").await;
}

#[tokio::test]
async fn the_job_of_a_cancelled_publication_is_not_run_once_more_and_says_what_to_do_instead() {
    let stage = Stage::new().await;
    let later = (chrono::Utc::now() + Duration::from_secs(3600)).to_rfc3339();
    let id = stage.publish_with(json!({ "text": "never mind", "scheduled_at": later })).await;
    let (status, cancelled) = stage.api.post(&format!("/api/v1/publications/{id}/cancel"), json!({})).await;
    assert_eq!(status, 200, "{cancelled}");
    let (job, post) = (cancelled["job_id"].as_str().unwrap(), cancelled["post_id"].as_str().unwrap());
    let (status, problem) = stage.api.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_retryable")), "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&id) && detail.contains(&format!("POST /api/v1/posts/{post}/publish")), "{detail}");
    let (done, said) = stage.app.cli(&["jobs", "retry", job]).await;
    assert!(!done && said.contains("was cancelled, and that is for good"), "{said}");
    let (_, view) = stage.api.get(&format!("/api/v1/jobs/{job}")).await;
    assert_eq!(view["state"], "cancelled", "{view}");
}

#[tokio::test]
async fn a_time_that_has_passed_beyond_its_lateness_is_refused_and_says_what_to_do() {
    let stage = Stage::new().await;
    let ago = |seconds: u64| (chrono::Utc::now() - Duration::from_secs(seconds)).to_rfc3339();
    let publish = async |wish: Value| {
        let mut body = json!({ "text": "from the past", "platforms": ["x"] });
        body.as_object_mut().unwrap().extend(wish.as_object().unwrap().clone());
        stage.api.post("/api/v1/publish", body).await
    };
    for wish in [
        json!({ "scheduled_at": ago(2 * 24 * 3600) }),
        json!({ "scheduled_at": ago(600), "max_lateness_seconds": 60 }),
        json!({ "scheduled_at": ago(600), "max_lateness_seconds": 60, "late_policy": "skip" }),
        json!({ "scheduled_at": "2020-01-01T09:00", "time_zone": "Europe/Berlin", "late_policy": "ask" }),
    ] {
        let (status, problem) = publish(wish.clone()).await;
        assert_eq!((status, &problem["field"]), (422, &json!("scheduled_at")), "{wish}: {problem}");
        let remedy = problem["errors"][0]["remedy"].as_str().unwrap();
        assert!(remedy.contains("leave it out to publish now") && remedy.contains("late_policy"), "{remedy}");
    }
    // A little late is what the lateness is for, and whoever says so has it go out however late.
    for wish in
        [json!({ "scheduled_at": ago(600) }), json!({ "scheduled_at": ago(2 * 24 * 3600), "late_policy": "publish" })]
    {
        let (status, answer) = publish(wish.clone()).await;
        assert_eq!(status, 202, "{wish}: {answer}");
    }
}

#[tokio::test]
async fn a_variant_and_a_rendition_are_made_first_and_go_out_together() {
    let stage = Stage::new().await;
    let media = picture::upload(&stage, 640).await;
    let text = "We have rebuilt our little workshop and would love to show you around. ".repeat(6);
    let request = json!({ "text": text, "platforms": ["x"], "optimize": true, "media": [{ "media_id": media }] });
    let (status, accepted) = stage.api.post("/api/v1/publish", request).await;
    assert_eq!(status, 202, "{accepted}");
    let kinds: Vec<_> = accepted["jobs"].as_array().unwrap().iter().map(|job| job["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["transform", "transcode", "publish"]);
    let queues = [Queue::Publish, Queue::Ai, Queue::Media];
    let mut workers = Vec::new();
    for queue in queues {
        workers.push(stage.app.worker(queue).await);
    }
    let id = accepted["publications"][0]["id"].as_str().unwrap();
    stage.until(id, "sent").await;
    let transform = accepted["jobs"][0]["id"].as_str().unwrap();
    let (_, transform) = stage.api.get(&format!("/api/v1/jobs/{transform}")).await;
    let variant = transform["result"]["variants"][0]["text"].as_str().unwrap().to_owned();
    let posts = stage.posts().await;
    assert_eq!(posts.len(), 1);
    let words = |text: &str| text.split_whitespace().take(5).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(posts[0]["text"].as_str().unwrap()), words(&variant));
}

#[tokio::test]
async fn when_no_variant_could_be_written_the_users_own_words_go_out() {
    let stage = Stage::new().await;
    let request = json!({ "text": "my own words", "platforms": ["x"], "optimize": true });
    let (status, accepted) = stage.api.post("/api/v1/publish", request).await;
    assert_eq!(status, 202, "{accepted}");
    let transform = accepted["jobs"][0]["id"].as_str().unwrap();
    stage.api.post(&format!("/api/v1/jobs/{transform}/cancel"), json!({})).await;
    let _worker = stage.worker().await;
    stage.until(accepted["publications"][0]["id"].as_str().unwrap(), "sent").await;
    assert_eq!(stage.posts().await[0]["text"], "my own words");
}
