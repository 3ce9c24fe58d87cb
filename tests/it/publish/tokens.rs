//! Tokens: encrypted at rest, refreshed once however many need them, never lost by a crash (P8).

use multivio::jobs::Queue;
use serde_json::json;

use super::{SOON, Stage, connection};
use crate::harness::eventually;

#[tokio::test]
async fn tokens_are_never_stored_in_the_clear_nor_given_back() {
    let stage = Stage::new().await;
    let (access, refresh): (Vec<u8>, Vec<u8>) =
        sqlx::query_as("select access_token, refresh_token from connections").fetch_one(&stage.app.pool).await.unwrap();
    let (_, listed) = stage.api.get("/api/v1/connections").await;
    for (name, stored) in [("access_token", access), ("refresh_token", refresh)] {
        let token = stage.account[name].as_str().unwrap();
        assert!(!stored.windows(token.len()).any(|window| window == token.as_bytes()));
        assert!(!listed.to_string().contains(token));
    }
}

#[tokio::test]
async fn a_refused_token_is_refreshed_and_the_post_goes_out() {
    let stage = Stage::new().await;
    stage.expire().await;
    let _worker = stage.worker().await;
    let id = stage.publish("with a new token").await;
    stage.until(&id, "sent").await;
    assert_eq!((stage.calls("oauth2.refresh").await, stage.posts().await.len()), (1, 1));
    stage.until_outcomes(&id, &["refused", "created"]).await;
}

#[tokio::test]
async fn p8_many_that_need_a_new_token_trade_the_old_one_once() {
    let stage = Stage::new().await;
    // A token that is about to end: everyone who opens the account wants a new one, publishing or not.
    let mut soon = connection(&stage.account, &stage.account);
    soon["expires_at"] = json!((chrono::Utc::now() + chrono::Duration::seconds(2)).to_rfc3339());
    let (status, answer) = stage.api.post("/api/v1/connections", soon).await;
    assert_eq!(status, 201, "{answer}");
    // Long enough for a publish worker to start, and to want the same new token, while the first trade is under way.
    stage.fault("oauth2.refresh", json!({ "accept_then_delay_ms": 8000 })).await;
    let _ops = stage.app.worker(Queue::Ops).await;
    eventually(SOON, "the first trade to be under way", || async {
        (stage.calls("oauth2.refresh").await == 1).then_some(())
    })
    .await;
    let id = stage.publish("all at once").await;
    let _publish = stage.worker().await;
    let at_once = eventually(SOON, "the publish job to have run", || async {
        let (runs, refreshing): (i32, bool) = sqlx::query_as(
            "select p.run, r.state = 'running' from jobs p, jobs r \
             where p.kind = 'publish' and r.kind = 'refresh_token' order by r.id limit 1",
        )
        .fetch_one(&stage.app.pool)
        .await
        .ok()?;
        (runs > 0).then_some(refreshing)
    })
    .await;
    assert!(at_once, "the two never needed the token at the same time");
    stage.until(&id, "sent").await;
    assert_eq!(stage.calls("oauth2.refresh").await, 1);
}

#[tokio::test]
async fn p8_a_lost_answer_of_a_refresh_is_asked_once_more_and_then_needs_the_owner() {
    let stage = Stage::new().await;
    stage.expire().await;
    stage.fault("oauth2.refresh", json!("accept_then_drop")).await;
    let _worker = stage.worker().await;
    let id = stage.publish("waits for its owner").await;
    let waiting = stage.until(&id, "needs_reconnect").await;
    assert_eq!(waiting["problem"]["turn"], "user", "{waiting}");
    assert_eq!(stage.calls("oauth2.refresh").await, 2);
    let (_, listed) = stage.api.get("/api/v1/connections").await;
    assert_eq!(listed["items"][0]["state"], "needs_reconnect", "{listed}");
    assert_eq!(stage.posts().await.len(), 0);
    // Parked, not failed: connecting again is all it takes.
    let again = stage.connect(&stage.new_tokens().await).await;
    assert_eq!(again, stage.connection);
    stage.until(&id, "sent").await;
    assert_eq!(stage.posts().await.len(), 1);
}

#[tokio::test]
async fn p8_a_refresh_that_never_arrived_costs_nothing_but_time() {
    let stage = Stage::new().await;
    stage.expire().await;
    stage.fault("oauth2.refresh", json!("drop_before")).await;
    let _worker = stage.worker().await;
    let id = stage.publish("a little later").await;
    stage.until(&id, "sent").await;
    assert_eq!(stage.calls("oauth2.refresh").await, 2);
}

#[tokio::test]
async fn an_outage_of_the_token_endpoint_is_not_a_revoked_token() {
    let stage = Stage::new().await;
    stage.expire().await;
    for error in ["temporarily_unavailable", "edge_html"] {
        stage.fault("oauth2.refresh", json!({ "refuse": error })).await;
    }
    let _worker = stage.worker().await;
    let id = stage.publish("after the outage").await;
    stage.until(&id, "sent").await;
    assert_eq!(stage.publication(&id).await["phase"], "sent");
}

#[tokio::test]
async fn p8_a_worker_killed_after_the_rotation_leaves_the_connection_to_its_owner_and_not_in_a_loop() {
    let stage = Stage::new().await;
    stage.expire().await;
    stage.fault("oauth2.refresh", json!({ "accept_then_delay_ms": 2000 })).await;
    let mut first = stage.worker().await;
    let id = stage.publish("the pair is lost with its worker").await;
    eventually(SOON, "the refresh to arrive", || async { (stage.calls("oauth2.refresh").await == 1).then_some(()) })
        .await;
    first.crash();
    let _second = stage.worker().await;
    stage.until(&id, "needs_reconnect").await;
    assert_eq!(stage.calls("oauth2.refresh").await, 2);
    stage.connect(&stage.new_tokens().await).await;
    stage.until(&id, "sent").await;
}

#[tokio::test]
async fn tokens_are_refreshed_ahead_of_their_end_and_again_after() {
    let stage = Stage::new().await;
    let mut soon = connection(&stage.account, &stage.account);
    soon["expires_at"] = json!((chrono::Utc::now() + chrono::Duration::seconds(60)).to_rfc3339());
    let (status, _) = stage.api.post("/api/v1/connections", soon).await;
    assert_eq!(status, 201);
    let _worker = stage.app.worker(Queue::Ops).await;
    eventually(SOON, "the next refresh to be planned", || async {
        let (done, planned): (i64, i64) = sqlx::query_as(
            "select count(*) filter (where state = 'succeeded' and result->>'renewed' = 'true'), \
               count(*) filter (where state = 'scheduled' and run_at > now() + interval '90 minutes') \
             from jobs where kind = 'refresh_token'",
        )
        .fetch_one(&stage.app.pool)
        .await
        .ok()?;
        (done == 1 && planned == 1).then_some(())
    })
    .await;
    assert_eq!(stage.calls("oauth2.refresh").await, 1);
}

#[tokio::test]
async fn a_disconnected_account_gives_its_tokens_back_and_loses_what_was_to_go_out() {
    let stage = Stage::new().await;
    let at = (chrono::Utc::now() + chrono::Duration::hours(1)).to_rfc3339();
    let id = stage.publish_with(json!({ "text": "never", "scheduled_at": at })).await;
    let (status, _) = stage.api.delete(&format!("/api/v1/connections/{}", stage.connection)).await;
    assert_eq!(status, 204);
    assert_eq!(stage.publication(&id).await["phase"], "cancelled");
    let (status, _) = stage.api.get(&format!("/api/v1/connections/{}", stage.connection)).await;
    assert_eq!(status, 404);
    // The platform is in trouble for a moment: they are kept, and offered again.
    stage.fault("oauth2.revoke", json!({ "refuse": "temporarily_unavailable" })).await;
    let _ops = stage.app.worker(Queue::Ops).await;
    eventually(SOON, "the platform to refuse", || async { (stage.calls("oauth2.revoke").await >= 1).then_some(()) })
        .await;
    assert_eq!(tokens_kept(&stage).await, 1);
    given_back(&stage).await;
    assert_eq!((stage.calls("oauth2.revoke").await, tokens_kept(&stage).await), (3, 0));
    assert_eq!(living_tokens(&stage).await, 0);
}

async fn tokens_kept(stage: &Stage) -> i64 {
    let kept = "select count(*) from connections where access_token is not null or refresh_token is not null";
    sqlx::query_scalar(kept).fetch_one(&stage.app.pool).await.unwrap()
}

/// The job has come to its end; it need not wait as long as it would.
async fn given_back(stage: &Stage) {
    eventually(SOON, "the tokens to be given back", || async {
        let sooner = "update jobs set run_at = now() where kind = 'give_back_tokens' and state = 'scheduled'";
        sqlx::query(sooner).execute(&stage.app.pool).await.ok()?;
        let done = "select state = 'succeeded' and (result ->> 'given_back')::boolean from jobs where kind = 'give_back_tokens'";
        sqlx::query_scalar::<_, bool>(done).fetch_one(&stage.app.pool).await.ok()?.then_some(())
    })
    .await;
}

/// How many of the account's tokens the platform still takes.
async fn living_tokens(stage: &Stage) -> u64 {
    let path = format!("/_sandbox/x/accounts/{}/revoke", stage.account["id"].as_str().unwrap());
    stage.sandbox.post(&path, json!({})).await["revoked"].as_u64().unwrap()
}

/// The trade is answered, and there is no account any more to keep its tokens with.
#[tokio::test]
async fn tokens_that_come_for_an_account_that_was_disconnected_meanwhile_are_given_back() {
    let stage = Stage::new().await;
    stage.fault("oauth2.refresh", json!({ "accept_then_delay_ms": 3000 })).await;
    let _ops = stage.app.worker(Queue::Ops).await;
    let path = format!("/api/v1/connections/{}", stage.connection);
    assert_eq!(stage.api.post(&format!("{path}/refresh"), json!({})).await.0, 202);
    eventually(SOON, "the trade to be under way", || async {
        (stage.calls("oauth2.refresh").await == 1).then_some(())
    })
    .await;
    assert_eq!(stage.api.delete(&path).await.0, 204);
    given_back(&stage).await;
    eventually(SOON, "the new pair to go back as well", || async {
        (stage.calls("oauth2.revoke").await == 4).then_some(())
    })
    .await;
    assert_eq!((living_tokens(&stage).await, tokens_kept(&stage).await), (0, 0));
}

#[tokio::test]
async fn tokens_that_no_platform_takes_back_are_forgotten_after_a_day() {
    let stage = Stage::new().await;
    let left = async || multivio::connections::store::forget_left_tokens(&stage.app.pool).await.unwrap();
    assert_eq!(stage.api.delete(&format!("/api/v1/connections/{}", stage.connection)).await.0, 204);
    assert_eq!((left().await, tokens_kept(&stage).await), (0, 1));
    let a_day = "update connections set updated_at = now() - interval '25 hours'";
    sqlx::query(a_day).execute(&stage.app.pool).await.unwrap();
    assert_eq!((left().await, tokens_kept(&stage).await), (1, 0));
}
