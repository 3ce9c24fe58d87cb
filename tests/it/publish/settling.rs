//! What settles a publication when the ordinary way does not, and what a second wish may and may not do meanwhile.

use multivio::{
    ids::TenantId,
    jobs::{Engine, NewJob, belt::Belt},
    publishing::PublishingUpkeep,
};
use serde_json::{Value, json};

use super::{SOON, Stage, connection};
use crate::harness::eventually;

fn engine(stage: &Stage) -> Engine {
    let belt = Belt::new(&stage.app.config().redis, stage.app.pool.clone()).expect("a belt");
    Engine::new(stage.app.pool.clone(), stage.app.session(), belt)
}

/// As if the jobs of this kind had ended without doing their work.
async fn end(stage: &Stage, kind: &str) {
    sqlx::query(
        "update jobs set state = 'failed', finished_at = now(), worker_id = null, open_parents = 0 where kind = $1",
    )
    .bind(kind)
    .execute(&stage.app.pool)
    .await
    .unwrap();
}

async fn job_ends(stage: &Stage, job: &str, state: &str) {
    eventually(SOON, &format!("the job to be {state}"), || async {
        (stage.api.get(&format!("/api/v1/jobs/{job}")).await.1["state"] == state).then_some(())
    })
    .await;
}

/// A post is there, its answer was lost, and nothing can look for it: left to a person.
async fn unconfirmed(stage: &Stage, effect: &str) -> String {
    stage.fault("tweets.create", json!(effect)).await;
    let id = stage.publish("who knows").await;
    stage.until(&id, "sending").await;
    stage.revoke().await;
    stage.until(&id, "unconfirmed").await;
    id
}

#[tokio::test]
async fn a_post_that_is_on_its_way_or_out_is_published_again_only_on_purpose() {
    let stage = Stage::new().await;
    let (_, post) = stage.api.post("/api/v1/posts", json!({ "universal_content": "once" })).await;
    let path = format!("/api/v1/posts/{}/publish", post["id"].as_str().unwrap());
    let publish = async |more: Value| {
        let mut request = json!({ "platforms": ["x"] });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        stage.api.post(&path, request).await
    };
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    let (status, first) = publish(json!({})).await;
    assert_eq!(status, 202, "{first}");
    let id = first["publications"][0]["id"].as_str().unwrap().to_owned();
    let (status, problem) = publish(json!({ "republish": true })).await;
    assert_eq!((status, &problem["code"]), (409, &json!("unsettled")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(&id), "{problem}");

    let _worker = stage.worker().await;
    stage.until(&id, "sending").await;
    let (status, problem) = publish(json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("unsettled")), "{problem}");
    stage.until(&id, "sent").await;
    let (status, problem) = publish(json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("already_published")), "{problem}");
    assert_eq!(stage.creates().await, 1);

    let (status, second) = publish(json!({ "republish": true })).await;
    assert_eq!(status, 202, "{second}");
    stage.until(second["publications"][0]["id"].as_str().unwrap(), "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (2, 2));
}

#[tokio::test]
async fn two_wishes_to_publish_the_same_post_at_the_same_moment_make_one_publication() {
    let stage = Stage::new().await;
    let (_, post) = stage.api.post("/api/v1/posts", json!({ "universal_content": "once" })).await;
    let path = format!("/api/v1/posts/{}/publish", post["id"].as_str().unwrap());
    let wishes = (0..6).map(|_| stage.api.post(&path, json!({ "platforms": ["x"] })));
    let mut statuses: Vec<_> = futures::future::join_all(wishes).await.into_iter().map(|(status, _)| status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409, 409, 409, 409, 409]);
}

#[tokio::test]
async fn p3_a_run_after_a_crash_does_not_reopen_what_has_failed() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "refuse": "invalid_url" })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("refused once").await;
    let job = stage.until(&id, "failed").await["job_id"].as_str().unwrap().to_owned();
    job_ends(&stage, &job, "failed").await;
    // As if its worker had died right after the phase was committed: the ledger runs the job once more.
    sqlx::query(
        "update jobs set state = 'scheduled', run_at = now(), finished_at = null, why = null where kind = 'publish'",
    )
    .execute(&stage.app.pool)
    .await
    .unwrap();
    job_ends(&stage, &job, "failed").await;
    let publication = stage.publication(&id).await;
    assert_eq!((&publication["phase"], stage.creates().await), (&json!("failed"), 1), "{publication}");
    let (_, shown) = stage.api.get(&format!("/api/v1/jobs/{job}")).await;
    assert!(shown.to_string().contains(publication["problem"]["code"].as_str().unwrap()), "{shown}");
    // Asked for by a person, it does.
    let (status, answer) = stage.api.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    stage.until(&id, "sent").await;
}

#[tokio::test]
async fn p3_what_no_job_settles_any_more_is_taken_up_again_and_nobody_cancels_that() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    let mut first = stage.worker().await;
    let id = stage.publish("left alone").await;
    stage.until(&id, "sending").await;
    first.crash();
    let reconcile: multivio::ids::JobId =
        sqlx::query_scalar("select id from jobs where kind = 'reconcile'").fetch_one(&stage.app.pool).await.unwrap();
    let (status, problem) = stage.api.post(&format!("/api/v1/jobs/{reconcile}/cancel"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_late")), "{problem}");
    end(&stage, "publish").await;
    end(&stage, "reconcile").await;
    assert_eq!(stage.publication(&id).await["phase"], "sending");

    let _second = stage.worker().await;
    let engine = engine(&stage);
    engine.enqueue(NewJob::of(&PublishingUpkeep {}, TenantId::SYSTEM)).await.unwrap();
    stage.until(&id, "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
}

#[tokio::test]
async fn p10_an_answer_is_kept_although_another_run_has_taken_the_publication_up() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "accept_then_delay_ms": 1200 })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("taken from under its feet").await;
    eventually(SOON, "the post to exist", || async { (stage.posts().await.len() == 1).then_some(()) }).await;
    sqlx::query("update publications set fence = fence + 1").execute(&stage.app.pool).await.unwrap();
    stage.until(&id, "sent").await;
    stage.until_outcomes(&id, &["created"]).await;
}

#[tokio::test]
async fn a_run_that_has_lost_its_job_takes_nothing_up() {
    let stage = Stage::new().await;
    let id: multivio::ids::PublicationId = stage.publish("not yours").await.parse().unwrap();
    let job: multivio::ids::JobId =
        sqlx::query_scalar("select id from jobs where kind = 'publish'").fetch_one(&stage.app.pool).await.unwrap();
    let taken = multivio::publishing::store::take(&stage.app.pool, id, job, 1, Some(0)).await.unwrap();
    assert!(taken.is_none());
    let fence: i32 = sqlx::query_scalar("select fence from publications").fetch_one(&stage.app.pool).await.unwrap();
    assert_eq!(fence, 0);
}

#[tokio::test]
async fn a_person_who_found_the_post_settles_what_could_not_be_confirmed() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let id = unconfirmed(&stage, "accept_then_drop").await;
    let settle = async |word: Value| stage.api.post(&format!("/api/v1/publications/{id}/settle"), word).await;
    for word in [json!({ "exists": true }), json!({ "exists": true, "remote_id": "../me" })] {
        assert_eq!(settle(word).await.0, 422);
    }
    let remote = stage.posts().await[0]["id"].clone();
    let (status, settled) = settle(json!({ "exists": true, "remote_id": remote })).await;
    assert_eq!((status, &settled["phase"], &settled["remote_id"]), (200, &json!("sent"), &remote), "{settled}");
    stage.until_outcomes(&id, &["adopted"]).await;
    let (status, problem) = settle(json!({ "exists": false })).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_unconfirmed")), "{problem}");
}

#[tokio::test]
async fn a_person_who_found_no_post_is_believed_once_nothing_can_arrive_any_more() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let id = unconfirmed(&stage, "drop_before").await;
    let job = stage.publication(&id).await["job_id"].as_str().unwrap().to_owned();
    sqlx::query("update publication_intents set certain_after = now() + interval '1 hour'")
        .execute(&stage.app.pool)
        .await
        .unwrap();
    let settle =
        async || stage.api.post(&format!("/api/v1/publications/{id}/settle"), json!({ "exists": false })).await;
    let (status, problem) = settle().await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_early")), "{problem}");
    sqlx::query("update publication_intents set certain_after = now()").execute(&stage.app.pool).await.unwrap();
    let (status, settled) = settle().await;
    assert_eq!((status, &settled["phase"]), (200, &json!("failed")), "{settled}");
    // And now it may be tried again.
    stage.connect(&stage.new_tokens().await).await;
    job_ends(&stage, &job, "failed").await;
    assert_eq!(stage.api.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).await.0, 200);
    stage.until(&id, "sent").await;
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_confirmed_says_where_to_look_although_its_account_was_disconnected() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let id = unconfirmed(&stage, "accept_then_drop").await;
    let (status, _) = stage.api.delete(&format!("/api/v1/connections/{}", stage.connection)).await;
    assert_eq!(status, 204);
    let publication = stage.publication(&id).await;
    assert!(publication["look_at"].as_str().unwrap().starts_with("https://x.com/"), "{publication}");
}

#[tokio::test]
async fn p4_what_is_out_can_be_removed_and_then_published_again() {
    let stage = Stage::new().await;
    let id = stage.publish("regretted").await;
    let (status, problem) = stage.api.delete(&format!("/api/v1/publications/{id}/remote-post")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_out")), "{problem}");
    let _worker = stage.worker().await;
    let sent = stage.until(&id, "sent").await;
    let (status, accepted) = stage.api.delete(&format!("/api/v1/publications/{id}/remote-post")).await;
    assert_eq!(status, 202, "{accepted}");
    job_ends(&stage, accepted["job_id"].as_str().unwrap(), "succeeded").await;
    assert_eq!(stage.posts().await.len(), 0);
    assert!(stage.publication(&id).await["remote_deleted_at"].is_string());
    let path = format!("/api/v1/posts/{}/publish", sent["post_id"].as_str().unwrap());
    let (status, again) = stage.api.post(&path, json!({ "platforms": ["x"] })).await;
    assert_eq!(status, 202, "{again}");
}

#[tokio::test]
async fn a_post_that_another_connection_of_the_same_account_made_is_not_adopted() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let first = stage.publish("the same words").await;
    let first = stage.until(&first, "sent").await;
    let (status, _) = stage.api.delete(&format!("/api/v1/connections/{}", stage.connection)).await;
    assert_eq!(status, 204);
    let (status, again) = stage.api.post("/api/v1/connections", connection(&stage.account, &stage.account)).await;
    assert_eq!(status, 201);
    assert_ne!(again["id"].as_str().unwrap(), stage.connection);
    stage.fault("tweets.create", json!("drop_before")).await;
    let second = stage.publish("the same words").await;
    let second = stage.until(&second, "sent").await;
    assert_ne!(first["remote_id"], second["remote_id"]);
    assert_eq!((stage.posts().await.len(), stage.creates().await), (2, 3));
}
