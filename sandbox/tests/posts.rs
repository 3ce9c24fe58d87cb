use super::*;

#[tokio::test]
async fn a_post_comes_back_as_x_shows_it() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({"username": "ada"})).await;
    let (status, made) = answered(sandbox.post(&user, &json!({"text": "1 < 2 & see example.com/a"}))).await;
    assert_eq!(status, 201);
    let id = made["data"]["id"].as_str().expect("an id");
    assert_eq!(made["data"]["edit_history_tweet_ids"], json!([id]));

    let path = format!(
        "/2/users/{}/tweets?max_results=5&exclude=retweets&tweet.fields=created_at,entities,conversation_id",
        user.id
    );
    let (status, page) = answered(sandbox.x("GET", &path, &user)).await;
    assert_eq!(status, 200);
    let post = &page["data"][0];
    let link = &post["entities"]["urls"][0];
    assert_eq!(post["text"], json!(format!("1 &lt; 2 &amp; see {}", link["url"].as_str().expect("a link"))));
    assert_eq!((&link["expanded_url"], &post["conversation_id"]), (&json!("http://example.com/a"), &json!(id)));
    assert_eq!(link["url"].as_str().map(str::len), Some(23));
    assert!(post["created_at"].as_str().is_some_and(|time| time.ends_with(".000Z")));
    assert_eq!(page["meta"], json!({"result_count": 1, "newest_id": id, "oldest_id": id}));
}

#[tokio::test]
async fn the_same_text_is_refused_within_the_window_and_per_account() {
    let sandbox = Harness::start().await;
    let (ada, bob) = (sandbox.user(json!({})).await, sandbox.user(json!({})).await);
    let first = sandbox.posted(&ada, "the same").await;
    let (status, refusal) = answered(sandbox.post(&ada, &json!({"text": " the  same"}))).await;
    assert_eq!(
        (status.as_u16(), &refusal["detail"]),
        (403, &json!("You are not allowed to create a Tweet with duplicate content."))
    );
    sandbox.posted(&bob, "the same").await;
    answered(sandbox.x("DELETE", &format!("/2/tweets/{first}"), &ada)).await;
    assert_eq!(answered(sandbox.post(&ada, &json!({"text": "the same"}))).await.0, 403);
    sandbox.set(json!({"duplicate_window_s": 0})).await;
    sandbox.posted(&ada, "the same").await;
    let count = sandbox.control("GET", "/x/posts/count", Value::Null).await;
    assert_eq!((&count["total"], &count["repeated"]), (&json!(2), &json!([])));
}

#[tokio::test]
async fn a_text_is_weighed_before_it_is_taken() {
    let sandbox = Harness::start().await;
    let (plain, premium) = (sandbox.user(json!({})).await, sandbox.user(json!({"premium": true})).await);
    sandbox.posted(&plain, &"a".repeat(280)).await;
    sandbox.posted(&plain, &"日".repeat(140)).await;
    let long = json!({"text": "日".repeat(141)});
    let (status, refusal) = answered(sandbox.post(&plain, &long)).await;
    assert_eq!((status.as_u16(), &refusal["detail"]), (403, &json!("Your Tweet text is too long.")));
    sandbox.set(json!({"too_long": "invalid"})).await;
    let (status, refusal) = answered(sandbox.post(&plain, &long)).await;
    assert_eq!((status.as_u16(), &refusal["errors"][0]["message"]), (400, &json!("Your Tweet text is too long.")));

    let (status, made) = answered(sandbox.post(&premium, &long)).await;
    assert_eq!(status, 201);
    let path = format!("/2/tweets/{}?tweet.fields=note_tweet", made["data"]["id"].as_str().expect("an id"));
    let (_, found) = answered(sandbox.x("GET", &path, &premium)).await;
    assert_eq!(found["data"]["note_tweet"]["text"], long["text"]);
    assert!(found["data"]["text"].as_str().is_some_and(|text| text.ends_with('…')));
}

#[tokio::test]
async fn one_may_answer_oneself_and_those_who_asked() {
    let sandbox = Harness::start().await;
    let (ada, bob) = (sandbox.user(json!({"username": "ada"})).await, sandbox.user(json!({"username": "bob"})).await);
    let part = sandbox.posted(&ada, "part one").await;
    let reply = |id: &str, text: &str| json!({"text": text, "reply": {"in_reply_to_tweet_id": id}});
    let (status, second) = answered(sandbox.post(&ada, &reply(&part, "part two"))).await;
    assert_eq!(status, 201);
    let second = second["data"]["id"].as_str().expect("an id");
    let path = format!("/2/tweets?ids={second},1&tweet.fields=conversation_id,referenced_tweets");
    let (_, found) = answered(sandbox.x("GET", &path, &ada)).await;
    assert_eq!((&found["data"][0]["conversation_id"], &found["errors"][0]["value"]), (&json!(part), &json!("1")));

    let (status, refusal) = answered(sandbox.post(&bob, &reply(&part, "uninvited"))).await;
    assert_eq!(status, 403);
    assert!(
        refusal["detail"].as_str().is_some_and(|text| text.starts_with("Reply to this conversation is not allowed"))
    );
    let asking = sandbox.posted(&ada, "what do you think, @Bob?").await;
    assert_eq!(answered(sandbox.post(&bob, &reply(&asking, "invited"))).await.0, 201);
    assert_eq!(answered(sandbox.post(&ada, &reply("17", "to nobody"))).await.0, 400);
    assert_eq!(answered(sandbox.post(&ada, &json!({"text": "$A against $B"}))).await.0, 403);
}

#[tokio::test]
async fn a_timeline_is_paged_and_shows_new_posts_late() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let mut ids = Vec::new();
    for number in 0..12 {
        ids.push(sandbox.posted(&user, &format!("post {number}")).await);
    }
    ids.reverse();
    let base = format!("/2/users/{}/tweets?max_results=5", user.id);
    let (mut path, mut seen) = (base.clone(), Vec::new());
    for _ in 0..3 {
        let (_, page) = answered(sandbox.x("GET", &path, &user)).await;
        seen.extend(
            page["data"].as_array().expect("posts").iter().map(|post| post["id"].as_str().expect("id").to_string()),
        );
        path = format!("{base}&pagination_token={}", page["meta"]["next_token"].as_str().unwrap_or("end"));
    }
    assert_eq!((&seen, path.ends_with("=end")), (&ids, true));

    let (_, newer) = answered(sandbox.x("GET", &format!("{base}&since_id={}", ids[2]), &user)).await;
    assert_eq!(newer["meta"]["result_count"], 2);
    sandbox.set(json!({"visibility_delay_ms": 60_000})).await;
    let (_, nothing) = answered(sandbox.x("GET", &base, &user)).await;
    assert_eq!(nothing, json!({"meta": {"result_count": 0}}));
}

#[tokio::test]
async fn a_query_the_server_does_not_know_is_refused() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    for query in [
        "max_results=4",
        "max_results=101",
        "tweet.fields=colour",
        "colour=red",
        "exclude=likes",
        "since_id=x",
        "start_time=soon",
        "pagination_token=x",
    ] {
        let path = format!("/2/users/{}/tweets?{query}", user.id);
        let (status, body) = answered(sandbox.x("GET", &path, &user)).await;
        assert_eq!((status.as_u16(), &body["title"]), (400, &json!("Invalid Request")), "{query}");
    }
    sandbox.set(json!({"naming": "post"})).await;
    assert_eq!(
        answered(sandbox.x("GET", &format!("/2/users/{}/tweets?tweet.fields=text", user.id), &user)).await.0,
        400
    );
    assert_eq!(
        answered(sandbox.x("GET", &format!("/2/users/{}/tweets?post.fields=text", user.id), &user)).await.0,
        200
    );
}

#[tokio::test]
async fn tokens_open_only_what_they_were_given_for() {
    let sandbox = Harness::start().await;
    let reader = sandbox.user(json!({"scopes": ["tweet.read", "users.read"]})).await;
    assert_eq!(answered(sandbox.x("GET", "/2/users/me", &reader)).await.0, 200);
    let (status, refusal) = answered(sandbox.post(&reader, &json!({"text": "no"}))).await;
    assert_eq!(status, 403);
    assert!(refusal["detail"].as_str().is_some_and(|text| text.contains("tweet.write")));
    let app = sandbox.control("POST", "/x/apps/sandbox-client/token", Value::Null).await;
    let app = User { token: String::from(app["access_token"].as_str().expect("a token")), ..reader };
    let (status, refusal) = answered(sandbox.post(&app, &json!({"text": "no"}))).await;
    assert_eq!((status.as_u16(), &refusal["title"]), (403, &json!("Unsupported Authentication")));
    let nobody = User { token: String::from("nothing"), ..app };
    let (status, refusal) = answered(sandbox.post(&nobody, &json!({"text": "no"}))).await;
    assert_eq!(
        (status.as_u16(), refusal),
        (401, json!({"title": "Unauthorized", "detail": "Unauthorized", "type": "about:blank", "status": 401}))
    );
}

#[tokio::test]
async fn accounts_can_be_suspended_locked_and_out_of_money() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    let path = format!("/x/accounts/{}", user.id);
    sandbox.control("PATCH", &path, json!({"suspended": true})).await;
    let (status, body) = answered(sandbox.post(&user, &json!({"text": "a"}))).await;
    assert_eq!(
        (status.as_u16(), body["type"].as_str().is_some_and(|kind| kind.ends_with("user-suspended"))),
        (403, true)
    );
    sandbox.control("PATCH", &path, json!({"suspended": false, "locked": true})).await;
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "a"}))).await.1["errors"][0]["code"], 326);
    sandbox.control("PATCH", &path, json!({"locked": false})).await;
    sandbox.set(json!({"credits_micro_usd": 20_000})).await;
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "with example.com"}))).await.0, 402);
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "a"}))).await.0, 201);
    assert_eq!(answered(sandbox.post(&user, &json!({"text": "b"}))).await.1["title"], "CreditsDepleted");
}

#[tokio::test]
async fn the_call_over_the_limit_is_told_when_to_come_back() {
    let sandbox = Harness::start().await;
    let user = sandbox.user(json!({})).await;
    sandbox.set(json!({"rate_limits": {"tweets.create": {"limit": 1, "window_s": 900}}})).await;
    let first = sandbox.post(&user, &json!({"text": "a"})).send().await.expect("an answer");
    assert_eq!((first.status().as_u16(), first.headers()["x-rate-limit-remaining"].to_str().ok()), (201, Some("0")));
    let second = sandbox.post(&user, &json!({"text": "b"})).send().await.expect("an answer");
    assert_eq!(second.status(), 429);
    let reset: u64 = second.headers()["x-rate-limit-reset"].to_str().expect("text").parse().expect("a time");
    assert!(reset * 1000 > clock::now_ms() && reset * 1000 < clock::now_ms() + 901_000);
    assert_eq!(second.headers()["x-rate-limit-limit"], "1");
}

#[tokio::test]
async fn a_deleted_post_is_gone_and_only_its_author_may_delete_it() {
    let sandbox = Harness::start().await;
    let (ada, bob) = (sandbox.user(json!({})).await, sandbox.user(json!({})).await);
    let id = sandbox.posted(&ada, "hello").await;
    let path = format!("/2/tweets/{id}");
    assert_eq!(answered(sandbox.x("DELETE", &path, &bob)).await.0, 403);
    assert_eq!(answered(sandbox.x("DELETE", &path, &ada)).await.1, json!({"data": {"deleted": true}}));
    assert_eq!(answered(sandbox.x("GET", &path, &ada)).await.1["errors"][0]["title"], "Not Found Error");
    let page = sandbox.http.get(format!("{}/{}/status/{id}", sandbox.url, ada.username)).send().await.expect("a page");
    assert_eq!(page.status(), 404);
}
