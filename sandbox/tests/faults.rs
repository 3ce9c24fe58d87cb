use std::time::Instant;

use super::*;

async fn total(sandbox: &Harness) -> u64 {
    sandbox.control("GET", "/x/posts/count", Value::Null).await["total"].as_u64().expect("a number")
}

/// The newest log entry of a create.
async fn last_create(sandbox: &Harness) -> Value {
    sandbox.control("GET", "/log?operation=tweets.create&limit=1", Value::Null).await[0].clone()
}

async fn order(sandbox: &Harness, effect: Value) {
    sandbox.fault(json!({"service": "x", "operation": "tweets.create", "effect": effect})).await;
}

#[tokio::test]
async fn a_post_can_exist_although_its_answer_was_lost() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    order(&sandbox, json!("accept_then_drop")).await;
    assert!(sandbox.post(&user, &json!({"text": "lost"})).send().await.is_err());
    let entry = last_create(&sandbox).await;
    let (_, page) = answered(sandbox.x("GET", &format!("/2/users/{}/tweets", user.id), &user)).await;
    assert_eq!((&entry["state"], &entry["committed"]), (&json!("dropped"), &page["data"][0]["id"]));
    order(&sandbox, json!({"accept_then_status": 503})).await;
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "also there"}))).await.0, 503);
    order(&sandbox, json!("malformed")).await;
    let (status, body) = answered(sandbox.post(&user, &json!({"text": "and this"}))).await;
    assert_eq!((status.as_u16(), body), (201, Value::Null));
    assert_eq!(total(&sandbox).await, 3);
}

#[tokio::test]
async fn a_refused_post_does_not_exist() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    order(&sandbox, json!("drop_before")).await;
    assert!(sandbox.post(&user, &json!({"text": "a"})).send().await.is_err());
    order(&sandbox, json!({"hang_ms": 30})).await;
    assert!(sandbox.post(&user, &json!({"text": "a"})).send().await.is_err());
    order(&sandbox, json!({"refuse": "service_unavailable"})).await;
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "a"}))).await.0, 503);
    order(&sandbox, json!({"refuse": {"status": 418, "body": {"tea": true}, "headers": {"x-pot": "small"}}})).await;
    let answer = sandbox.post(&user, &json!({"text": "a"})).send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), &answer.headers()["x-pot"]), (418, &"small".parse().expect("a header")));
    order(&sandbox, json!({"rate_limited": {"reset_in_s": 7}})).await;
    let answer = sandbox.post(&user, &json!({"text": "a"})).send().await.expect("an answer");
    let reset: u64 = answer.headers()["x-rate-limit-reset"].to_str().expect("text").parse().expect("a time");
    assert!(answer.status() == 429 && reset.abs_diff(clock::now_ms() / 1000 + 7) <= 1);
    assert_eq!(total(&sandbox).await, 0);
    assert_eq!(sandbox.control("GET", "/log/count?operation=tweets.create", Value::Null).await["count"], 5);
}

#[tokio::test]
async fn a_slow_request_is_carried_out_after_its_caller_has_gone() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    order(&sandbox, json!({"delay_ms": 300})).await;
    let impatient = sandbox.post(&user, &json!({"text": "late"})).timeout(Duration::from_millis(60)).send().await;
    assert!(impatient.is_err());
    assert_eq!(total(&sandbox).await, 0);
    let begun = Instant::now();
    while total(&sandbox).await == 0 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the post never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let entry = last_create(&sandbox).await;
    assert_eq!(entry["caller_gone"], true);
    assert!(entry["duration_ms"].as_u64().is_some_and(|duration_ms| duration_ms >= 300));
}

#[tokio::test]
async fn the_log_holds_no_token_and_no_body_of_an_oauth_call() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    sandbox.posted(&user, "a visible text").await;
    let form = [("grant_type", "refresh_token"), ("refresh_token", user.refresh.as_str())];
    let request = sandbox
        .http
        .post(format!("{}/x/2/oauth2/token", sandbox.url))
        .basic_auth("sandbox-client", Some("sandbox-secret"));
    answered(request.form(&form)).await;
    answered(sandbox.http.get(format!("{}/openai/v1/models", sandbox.url)).bearer_auth("sk-sandbox-key")).await;
    let log = sandbox.control("GET", "/log", Value::Null).await.to_string();
    assert!(log.contains("a visible text") && log.contains("oauth2.refresh"));
    for secret in [user.token.as_str(), user.refresh.as_str(), "sandbox-secret", "sk-sandbox-key"] {
        assert!(!log.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn two_thousand_posts_from_many_callers_are_all_there_once() {
    let sandbox = Arc::new(Harness::start().await);
    let user = Arc::new(sandbox.user(json!({})).await);
    sandbox.set(json!({"rate_limits_enabled": false})).await;
    let begun = Instant::now();
    let callers = (0..50).map(|caller| {
        let (sandbox, user) = (Arc::clone(&sandbox), Arc::clone(&user));
        tokio::spawn(async move {
            for number in 0..40 {
                sandbox.posted(&user, &format!("caller {caller} post {number}")).await;
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.expect("all posted");
    }
    let count = sandbox.control("GET", "/x/posts/count", Value::Null).await;
    assert_eq!((&count["total"], &count["repeated"]), (&json!(2_000), &json!([])));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
