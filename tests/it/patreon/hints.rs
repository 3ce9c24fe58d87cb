//! Hints that a membership may have changed: signed, forged, repeated, late, in a crowd, or lost.

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use multivio::jobs::Queue;
use serde_json::json;

use super::Stage;
use crate::{harness::wait_until, identity::SOON};

pub const SECRET: &str = "patreon-sandbox-webhook-secret";

pub fn signed(secret: &str, body: &str) -> String {
    let mut mac = Hmac::<Md5>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

pub fn member_of(patron: &str) -> String {
    json!({"data": {"type": "member", "id": "m", "relationships": {"user": {"data": {"id": patron, "type": "user"}}}}})
        .to_string()
}

#[tokio::test]
async fn a_hint_that_is_forged_or_repeated_changes_nothing() {
    let stage = Stage::new().await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    let body = member_of(&patron);
    let good = signed(SECRET, &body);
    for forged in ["", "00", &good[..31], &signed("another secret", &body), &signed(SECRET, &format!("{body} "))] {
        assert_eq!(stage.hint(&body, forged).await, 403, "{forged}");
    }
    let unsigned = stage.api.client.post(format!("{}/webhooks/patreon", stage.api.url)).body(body.clone()).send().await;
    assert_eq!(unsigned.unwrap().status(), 403);
    assert_eq!(stage.looks().await, 0);
    // The right one, a crowd of times: it is read once, and read is what Patreon says, not what the hint says.
    let crowd = futures::future::join_all((0..10).map(|_| stage.hint(&body, &good))).await;
    assert!(crowd.iter().all(|status| *status == 204), "{crowd:?}");
    assert_eq!(stage.looks().await, 1);
    let _worker = stage.app.worker(Queue::Ops).await;
    wait_until(SOON, "one look", || async { stage.jobs("succeeded").await == 1 }).await;
    assert_eq!(stage.plan().await["name"], "supporter");
    // Of a stranger, of nobody, of nothing.
    let strange = member_of("12345");
    assert_eq!(stage.hint(&strange, &signed(SECRET, &strange)).await, 204);
    for (body, status) in [("{}", 400), ("no json", 400)] {
        assert_eq!(stage.hint(body, &signed(SECRET, body)).await, status);
    }
    assert_eq!(stage.looks().await, 1);
    let get = stage.api.client.get(format!("{}/webhooks/patreon", stage.api.url)).send().await.unwrap();
    assert_eq!(get.status(), 405);
}

#[tokio::test]
async fn a_membership_that_goes_back_to_what_it_was_is_read_again_although_the_hint_is_the_same() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    let body = member_of(&patron);
    for (tier, plan) in [("7002", "patron"), ("7001", "supporter"), ("7002", "patron"), ("7001", "supporter")] {
        stage.change(&patron, json!({"tiers": [tier], "fires": false})).await;
        assert_eq!(stage.hint(&body, &signed(SECRET, &body)).await, 204);
        stage.until_plan(plan).await;
    }
}

#[tokio::test]
async fn news_that_come_while_a_look_is_under_way_are_read_after_it_and_a_crowd_of_them_once() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    let (body, seen) = (member_of(&patron), "service=patreon&operation=identity");
    let good = signed(SECRET, &body);
    let asked = stage.sandbox.count(seen).await;
    // Patreon says what holds at this moment, and takes its time to say it.
    let slow = json!({"service": "patreon", "operation": "identity", "effect": {"accept_then_delay_ms": 6000}});
    stage.sandbox.fault(slow).await;
    stage.change(&patron, json!({"tiers": ["7002"], "fires": false})).await;
    assert_eq!(stage.hint(&body, &good).await, 204);
    wait_until(SOON, "Patreon to be asked", || async { stage.sandbox.count(seen).await == asked + 1 }).await;
    stage.change(&patron, json!({"tiers": ["7001"], "fires": false})).await;
    let crowd = futures::future::join_all((0..10).map(|_| stage.hint(&body, &good))).await;
    assert!(crowd.iter().all(|status| *status == 204), "{crowd:?}");
    assert_eq!(stage.looks().await, 2);
    wait_until(SOON, "both looks", || async { stage.jobs("succeeded").await == 2 }).await;
    assert_eq!(stage.plan().await["name"], "supporter");
    assert_eq!(stage.sandbox.count(seen).await, asked + 2);
}

#[tokio::test]
async fn a_backlog_that_comes_at_once_and_out_of_order_ends_in_the_plan_that_holds() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    stage.webhook(json!({"paused": true})).await;
    for tiers in [&["7002"][..], &["7001", "7003"], &[], &["7001"], &["7002"]] {
        stage.change(&patron, json!({ "tiers": tiers })).await;
    }
    assert_eq!(stage.webhook(json!({"paused": true})).await["waiting"], 5);
    assert_eq!((stage.looks().await, &stage.plan().await["name"]), (0, &json!("supporter")));
    stage.webhook(json!({"paused": false, "at_once": true})).await;
    let sent = async || stage.webhook(json!({"paused": false})).await;
    wait_until(SOON, "all to be sent", || async { sent().await["deliveries"].as_array().unwrap().len() == 5 }).await;
    let sent = sent().await;
    let taken = sent["deliveries"].as_array().unwrap().iter().all(|delivery| delivery["status"] == 204);
    assert!(taken && sent["waiting"] == 0 && sent["paused"] == false, "{sent}");
    wait_until(SOON, "the looks to end", || async { stage.jobs("succeeded").await == stage.looks().await }).await;
    let (_, link) = stage.api.get("/api/v1/patreon/link").await;
    assert_eq!((&link["tiers"], &stage.plan().await["name"]), (&json!(["7002"]), &json!("patron")), "{link}");
}

#[tokio::test]
async fn hints_that_were_lost_are_made_up_for_by_the_clock() {
    let stage = Stage::new().await;
    let _worker = stage.app.worker(Queue::Ops).await;
    let patron = stage.patron(&["7001"]).await;
    assert_eq!(stage.link(&patron).await.0, 200);
    stage.change(&patron, json!({"tiers": ["7002"], "fires": false})).await;
    let long_ago =
        "update patreon_links set read_at = now() - interval '13 hours', looked_at = now() - interval '13 hours'";
    sqlx::query(long_ago).execute(&stage.app.pool).await.unwrap();
    stage.look_after_links().await;
    stage.until_plan("patron").await;
}
