//! An account's id is only a text until the platform says whose it is: what was typed in before the platform was asked
//! about every account tells nothing of its owner's posts and takes none away.

use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    harness::wait_until,
    identity::{call, get},
    publish::{SOON, Stage, connection},
};

/// A publication of the stranger's that nobody could confirm, on the account that is mine.
async fn unconfirmed_of_a_stranger(stage: &Stage, token: &str) -> String {
    let post = async |path: &str, body: Value| call(&stage.api, token, None, Method::POST, path, Some(&body)).await;
    let typed = connection(&stage.account, &stage.new_tokens().await);
    // As it was kept while nobody asked the platform; the account is held by nobody for that moment.
    let proven = async |at: &str, whose: &str| {
        let sql = format!("update connections set proven_at = {at} where tenant_id {whose} $1");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(stage.app.tenant).execute(&stage.app.pool).await.unwrap();
    };
    proven("null", "=").await;
    let (status, account) = post("/api/v1/connections", typed).await;
    assert_eq!(status, 201, "{account}");
    proven("null", "<>").await;
    proven("now()", "=").await;
    stage.fault("tweets.create", json!("drop_before")).await;
    let (status, wish) = post("/api/v1/publish", json!({"text": "theirs", "connections": [account["id"]]})).await;
    assert_eq!(status, 202, "{wish}");
    let path = format!("/api/v1/publications/{}", wish["publications"][0]["id"].as_str().unwrap());
    let phase = async |wanted: &str| {
        wait_until(SOON, wanted, || async { get(&stage.api, token, &path).await.1["phase"] == wanted }).await;
    };
    phase("sending").await;
    stage.revoke().await;
    phase("unconfirmed").await;
    path
}

/// The remote posts that a look for a publication of this account would leave to others.
async fn taken(stage: &Stage, connection: &str) -> Vec<String> {
    let connection: multivio::ids::ConnectionId = connection.parse().unwrap();
    sqlx::query_scalar("select app.taken_posts($1, $2, 100)")
        .bind(connection)
        .bind(Uuid::nil())
        .fetch_all(&stage.app.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn an_account_that_was_typed_in_tells_and_takes_nothing_of_its_owners_posts() {
    let stage = Stage::new().await;
    let _worker = stage.worker().await;
    let mine = stage.publish("mine").await;
    let mine = stage.until(&mine, "sent").await["remote_id"].as_str().unwrap().to_owned();
    let (_, stranger) = stage.app.token_of_another();
    get(&stage.api, &stranger, "/api/v1/me").await;

    let theirs = unconfirmed_of_a_stranger(&stage, &stranger).await;
    // Answered as for a post of which nobody here has ever heard.
    let word = json!({"exists": true, "remote_id": mine});
    let (status, answer) =
        call(&stage.api, &stranger, None, Method::POST, &format!("{theirs}/settle"), Some(&word)).await;
    assert_eq!((status, &answer["phase"]), (200, &json!("sent")), "{answer}");
    // And what they claim is not held against its owner, but where the platform itself said that it is theirs as well.
    sqlx::query("update publications set remote_id = '777' where id <> $1 and remote_id = $2")
        .bind(stage_publication(&stage).await)
        .bind(&mine)
        .execute(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(taken(&stage, &stage.connection).await, std::slice::from_ref(&mine));
    sqlx::query("update connections set proven_at = now()").execute(&stage.app.pool).await.unwrap();
    let mut all = taken(&stage, &stage.connection).await;
    all.sort();
    let mut both = vec!["777".to_owned(), mine];
    both.sort();
    assert_eq!(all, both);
}

/// My own one publication.
async fn stage_publication(stage: &Stage) -> multivio::ids::PublicationId {
    sqlx::query_scalar("select id from publications where tenant_id = $1")
        .bind(stage.app.tenant)
        .fetch_one(&stage.app.pool)
        .await
        .unwrap()
}
