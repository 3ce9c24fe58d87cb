//! No post lost, none doubled: lost answers, hidden posts, dying workers, stopped processes.

use std::time::Duration;

use multivio::jobs::Queue;
use serde_json::json;

use super::{SOON, Stage};
use crate::harness::eventually;

#[tokio::test]
async fn a_lost_answer_is_looked_up_and_the_post_adopted() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    let _worker = stage.worker().await;
    let id = stage.publish("answered into the void").await;
    let sent = stage.until(&id, "sent").await;
    let posts = stage.posts().await;
    assert_eq!((posts.len(), stage.creates().await), (1, 1));
    assert_eq!(sent["remote_id"], posts[0]["id"]);
    stage.until_outcomes(&id, &["adopted"]).await;
}

#[tokio::test]
async fn a_request_that_never_arrived_is_sent_again_once_that_is_certain() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!("drop_before")).await;
    let _worker = stage.worker().await;
    let id = stage.publish("second time lucky").await;
    stage.until(&id, "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 2));
    stage.until_outcomes(&id, &["absent", "created"]).await;
    // Two looks at least, and none of them used an attempt.
    assert!(stage.calls("users.tweets").await >= 2);
    let attempts: i16 =
        sqlx::query_scalar("select attempt from jobs where kind = 'publish'").fetch_one(&stage.app.pool).await.unwrap();
    assert!(attempts <= 1, "{attempts} attempts for one re-send");
}

#[tokio::test]
async fn p2_a_request_that_hangs_and_a_post_that_is_hidden_do_not_make_two() {
    let stage = Stage::new().await;
    // Longer than the request may take, and hidden for as long as a post may be.
    stage.settings(json!({ "visibility_delay_ms": 2500 })).await;
    stage.fault("tweets.create", json!({ "accept_then_hang_ms": 4000 })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("slow and shy").await;
    stage.until(&id, "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
}

#[tokio::test]
async fn p2_a_list_that_fails_is_never_absence() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    for error in ["service_unavailable", "edge_html", "rate_limited", "credits_depleted"] {
        stage.fault("users.tweets", json!({ "refuse": error })).await;
    }
    let _worker = stage.worker().await;
    let id = stage.publish("behind a broken list").await;
    eventually(SOON, "the first failed look", || async { (stage.calls("users.tweets").await >= 1).then_some(()) })
        .await;
    // Well past the instant of certainty: not one look has succeeded, so nothing is certain.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(stage.creates().await, 1);
    assert_eq!(stage.publication(&id).await["phase"], "sending");
}

#[tokio::test]
async fn a_duplicate_refusal_after_a_lost_answer_proves_the_first_one() {
    let stage = Stage::new().await;
    // The post stays hidden longer than the platform says it may: absence is concluded wrongly.
    stage.settings(json!({ "visibility_delay_ms": 9000, "duplicate_window_s": 60 })).await;
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    let _worker = stage.worker().await;
    let id = stage.publish("there all along").await;
    eventually(SOON, "the second attempt", || async { (stage.creates().await == 2).then_some(()) }).await;
    // The publish job gives up looking; what settles it finds the post when it shows.
    let sent = stage.until(&id, "sent").await;
    let posts = stage.posts().await;
    assert_eq!(posts.len(), 1);
    assert_eq!(sent["remote_id"], posts[0]["id"]);
    stage.until_outcomes(&id, &["absent", "adopted"]).await;
}

#[tokio::test]
async fn a_duplicate_refusal_without_a_lost_answer_is_the_users_turn() {
    let stage = Stage::new().await;
    stage.settings(json!({ "duplicate_window_s": 60 })).await;
    let _worker = stage.worker().await;
    let first = stage.publish("said twice").await;
    stage.until(&first, "sent").await;
    let second = stage.publish("said twice").await;
    let failed = stage.until(&second, "failed").await;
    assert_eq!((&failed["problem"]["code"], &failed["problem"]["turn"]), (&json!("duplicate"), &json!("user")));
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn p5_the_same_text_twice_on_purpose_makes_two_posts_and_neither_takes_the_others() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let first = stage.publish("twice on purpose").await;
    let first = stage.until(&first, "sent").await;
    // The second one's answer is lost: it must find its own post and not the first one's.
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    let second = stage.publish("twice on purpose").await;
    let second = stage.until(&second, "sent").await;
    assert_ne!(first["remote_id"], second["remote_id"]);
    assert_eq!((stage.posts().await.len(), stage.creates().await), (2, 2));
}

#[tokio::test]
async fn what_cannot_be_decided_is_unconfirmed_until_its_owner_makes_looking_possible() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!("accept_then_drop")).await;
    let _worker = stage.worker().await;
    let id = stage.publish("who knows").await;
    stage.until(&id, "sending").await;
    stage.revoke().await;
    let unconfirmed = stage.until(&id, "unconfirmed").await;
    assert!(unconfirmed["look_at"].as_str().unwrap().starts_with("https://x.com/"), "{unconfirmed}");
    // Nobody sends it again, not even on request.
    let job = unconfirmed["job_id"].as_str().unwrap();
    eventually(SOON, "the publish job to end", || async {
        (stage.api.get(&format!("/api/v1/jobs/{job}")).await.1["state"] == "failed").then_some(())
    })
    .await;
    let (status, problem) = stage.api.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("unsettled")), "{problem}");
    assert_eq!(stage.publication(&id).await["phase"], "unconfirmed");
    // The owner connects again, and what waited for that looks and finds.
    stage.connect(&stage.new_tokens().await).await;
    stage.until(&id, "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
}

#[tokio::test]
async fn p4_a_job_inside_its_create_is_too_late_to_cancel_and_brings_its_post() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "accept_then_delay_ms": 1500 })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("cancelled in the middle").await;
    let sending = stage.until(&id, "sending").await;
    eventually(SOON, "the request to arrive", || async { (stage.posts().await.len() == 1).then_some(()) }).await;
    let job = sending["job_id"].as_str().unwrap();
    let (status, problem) = stage.api.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_late")), "{problem}");
    stage.until(&id, "sent").await;
    stage.until_outcomes(&id, &["created"]).await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
}

#[tokio::test]
async fn p4_a_job_between_two_looks_is_too_late_to_cancel_until_its_post_is_certainly_not_there() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!("drop_before")).await;
    // What is certainly not there is sent again; this time it is refused, and then all is settled.
    stage.fault("tweets.create", json!({ "refuse": "invalid_url" })).await;
    let _worker = stage.worker().await;
    let id = stage.publish("cancelled between the looks").await;
    let job = stage.until(&id, "sending").await["job_id"].as_str().unwrap().to_owned();
    eventually(SOON, "the job to wait for its next look", || async {
        (stage.api.get(&format!("/api/v1/jobs/{job}")).await.1["state"] == "scheduled").then_some(())
    })
    .await;
    let (status, problem) = stage.api.post(&format!("/api/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_late")), "{problem}");
    let (done, text) = stage.app.cli(&["jobs", "cancel", &job]).await;
    assert!(!done && text.contains("too late"), "{text}");
    stage.until(&id, "failed").await;
    stage.until_outcomes(&id, &["absent", "refused"]).await;
    eventually(SOON, "the settled job to run again on request", || async {
        (stage.api.post(&format!("/api/v1/jobs/{job}/retry"), json!({})).await.0 == 200).then_some(())
    })
    .await;
    stage.until(&id, "sent").await;
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn p10_a_worker_that_dies_with_the_answer_on_its_way_leaves_one_post() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "accept_then_delay_ms": 1500 })).await;
    let mut first = stage.worker().await;
    let id = stage.publish("survives its worker").await;
    eventually(SOON, "the post to exist", || async { (stage.posts().await.len() == 1).then_some(()) }).await;
    first.crash();
    let _second = stage.worker().await;
    stage.until(&id, "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
    stage.until_outcomes(&id, &["adopted"]).await;
}

#[tokio::test]
async fn p10_what_is_sent_stays_sent_when_its_job_runs_again() {
    let stage = Stage::new().await;
    let worker = stage.worker().await;
    let id = stage.publish("once is enough").await;
    stage.until(&id, "sent").await;
    drop(worker);
    // As if the completion had been lost with its worker: the ledger runs the job once more.
    sqlx::query(
        "update jobs set state = 'scheduled', run_at = now(), finished_at = null, worker_id = null, result = null \
         where kind = 'publish'",
    )
    .execute(&stage.app.pool)
    .await
    .unwrap();
    let _worker = stage.worker().await;
    eventually(SOON, "the job to have run again", || async {
        let state: String = sqlx::query_scalar("select state::text from jobs where kind = 'publish'")
            .fetch_one(&stage.app.pool)
            .await
            .ok()?;
        (state == "succeeded").then_some(())
    })
    .await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
}

#[tokio::test]
async fn p1_a_process_stopped_with_a_request_in_its_hand_dies_before_its_lease_ends() {
    let stage = Stage::new().await;
    stage.fault("tweets.create", json!({ "accept_then_delay_ms": 1500 })).await;
    let first = stage.worker().await;
    let id = stage.publish("stopped in the middle").await;
    eventually(SOON, "the post to exist", || async { (stage.posts().await.len() == 1).then_some(()) }).await;
    signal(first.pid, libc::SIGSTOP);
    // The kernel ends it although it is stopped, before anybody else may have its job.
    eventually(Duration::from_secs(40), "the stopped process to be gone", || async {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", first.pid)).unwrap_or_default();
        let alive = !stat.is_empty() && !stat.contains(") Z ");
        (!alive).then_some(())
    })
    .await;
    let _second = stage.app.worker(Queue::Publish).await;
    stage.until(&id, "sent").await;
    assert_eq!((stage.posts().await.len(), stage.creates().await), (1, 1));
}

fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("process numbers fit their own type");
    // SAFETY: plain numbers; the worker's own process, which its program still holds.
    unsafe { libc::kill(pid, signal) };
}
