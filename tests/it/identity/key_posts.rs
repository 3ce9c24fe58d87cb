//! A key that is limited to connections has no say in what any other publishes, whenever it tries.

use futures::join;
use multivio::{
    ids::{MediaId, PostId},
    publishing::Phase,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{SOON, call, connect, new_key};
use crate::harness::{Api, App, Sandbox, eventually};

/// A workspace with two connections, and a key that may use one of them.
struct Stage {
    app: App,
    api: Api,
    _sandbox: Sandbox,
    key: String,
    mine: String,
    other: String,
}

impl Stage {
    async fn new() -> Self {
        let mut app = App::new().await;
        let sandbox = app.sandbox().await;
        let api = app.api().await;
        let (mine, other) = (connect(&app, app.tenant, "mine").await, connect(&app, app.tenant, "other").await);
        let (_, key) = new_key(&api, json!({"connections": [mine]})).await;
        Self { app, api, _sandbox: sandbox, key, mine, other }
    }

    /// By the owner: the path of the new post.
    async fn write(&self, text: &str) -> String {
        let (status, post) = self.api.post("/api/v1/posts", json!({"universal_content": text})).await;
        assert_eq!(status, 201, "{post}");
        format!("/api/v1/posts/{}", post["id"].as_str().unwrap())
    }

    /// By the owner, for tomorrow.
    async fn publish(&self, post: &str, connections: &[&str]) -> (u16, Value) {
        let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(1)).to_rfc3339();
        let wish = json!({"connections": connections, "scheduled_at": tomorrow});
        self.api.post(&format!("{post}/publish"), wish).await
    }

    async fn scheduled(&self, text: &str, connections: &[&str]) -> String {
        let post = self.write(text).await;
        let (status, answer) = self.publish(&post, connections).await;
        assert_eq!(status, 202, "{answer}");
        post
    }

    async fn by_key(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        call(&self.api, &self.key, None, method, path, body.as_ref()).await
    }

    async fn change(&self, post: &str, text: &str) -> (u16, Value) {
        self.by_key(Method::PUT, post, Some(json!({"universal_content": text}))).await
    }

    async fn delete(&self, path: &str) -> (u16, Value) {
        self.by_key(Method::DELETE, path, None).await
    }

    async fn text(&self, post: &str) -> Value {
        self.api.get(post).await.1["universal_content"].clone()
    }

    /// An upload as the database has it; its bytes are looked at by nobody here.
    async fn file(&self) -> MediaId {
        let id = MediaId::new();
        sqlx::query(
            "with object as (insert into media_objects (id, tenant_id, storage_key, state, sha256, size_bytes, mime) \
               values (gen_random_uuid(), $2, 'here', 'kept', sha256('a'), 1, 'image/png') returning id) \
             insert into media (id, tenant_id, object_id, name, kind, probe) \
             select $1, $2, object.id, 'a.png', 'png', '{}' from object",
        )
        .bind(id)
        .bind(self.app.tenant)
        .execute(&self.app.pool)
        .await
        .unwrap();
        id
    }

    /// Until so many statements wait for a post.
    async fn waiters(&self, many: i64) {
        eventually(SOON, "the post to be waited for", || async {
            let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                           and wait_event_type = 'Lock' and query like 'select from posts%'";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&self.app.pool).await.ok()?;
            (waiting == many).then_some(())
        })
        .await;
    }

    /// The post's row, as whoever changes it has it.
    async fn held(&self, post: &str) -> sqlx::Transaction<'static, sqlx::Postgres> {
        let mut held = self.app.pool.begin().await.unwrap();
        let lock = "select from posts where id = $1 for no key update";
        sqlx::query(lock).bind(id_of(post)).execute(&mut *held).await.unwrap();
        held
    }
}

fn id_of(post: &str) -> PostId {
    post.rsplit('/').next().unwrap().parse().unwrap()
}

#[track_caller]
fn is_refused((status, problem): &(u16, Value)) {
    assert_eq!((*status, &problem["code"]), (403, &json!("not_for_this_key")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("Use a key"), "{problem}");
}

#[track_caller]
fn is((status, answer): &(u16, Value), expected: u16, code: &str) {
    assert_eq!((*status, &answer["code"]), (expected, &json!(code)), "{answer}");
}

#[tokio::test]
async fn a_limited_key_changes_deletes_and_empties_nothing_that_goes_out_elsewhere() {
    let stage = Stage::new().await;
    let file = stage.file().await;
    for connections in [&[&*stage.other][..], &[&stage.mine, &stage.other]] {
        let post = stage.scheduled("as its owner wrote it", connections).await;
        let with_file = json!({"universal_content": "as its owner wrote it", "media": [{"media_id": file}]});
        let (status, changed) = stage.api.call(Method::PUT, &post, Some(with_file)).await;
        assert_eq!(status, 200, "{changed}");

        is_refused(&stage.change(&post, "as the key would have it").await);
        let variant = json!({"universal_content": "as its owner wrote it", "media": [{"media_id": file}],
                             "variants": [{"platform": "x", "text": "as the key would have it"}]});
        is_refused(&stage.by_key(Method::PUT, &post, Some(variant)).await);
        is_refused(&stage.change(&post, "as its owner wrote it").await);
        is_refused(&stage.delete(&post).await);
        is(&stage.delete(&format!("/api/v1/media/{file}")).await, 409, "media_in_use");
        assert_eq!(stage.api.get(&post).await, (200, changed));
    }
    // It may read what it may not change, and a key without limits may do all that its scopes say.
    let post = stage.scheduled("as its owner wrote it", &[&stage.other]).await;
    assert_eq!(stage.by_key(Method::GET, &post, None).await.0, 200);
    let (_, all) = new_key(&stage.api, json!({})).await;
    let text = json!({"universal_content": "as the other key has it"});
    assert_eq!(call(&stage.api, &all, None, Method::PUT, &post, Some(&text)).await.0, 200);
}

#[tokio::test]
async fn a_limited_key_changes_and_deletes_what_goes_out_by_it_or_nowhere() {
    let stage = Stage::new().await;
    let file = stage.file().await;
    let mine = stage.scheduled("first", &[&stage.mine]).await;
    assert_eq!(stage.change(&mine, "second").await.0, 200);
    assert_eq!(stage.text(&mine).await, "second");
    is(&stage.delete(&mine).await, 409, "publications_open");

    let nowhere = stage.write("first").await;
    let with_file = json!({"universal_content": "second", "media": [{"media_id": file}], "version": 1});
    let (status, changed) = stage.by_key(Method::PUT, &nowhere, Some(with_file.clone())).await;
    assert_eq!((status, &changed["version"]), (200, &json!(2)), "{changed}");
    is(&stage.by_key(Method::PUT, &nowhere, Some(with_file)).await, 409, "changed_meanwhile");
    let media = format!("/api/v1/media/{file}");
    is(&stage.delete(&media).await, 409, "media_in_use");
    assert_eq!(stage.change(&nowhere, "third").await.0, 200);
    assert_eq!(stage.delete(&media).await.0, 204);
    assert_eq!(stage.delete(&nowhere).await.0, 204);
    // What was deleted is there for nobody any more, by whatever they ask.
    is(&stage.change(&nowhere, "fourth").await, 404, "not_found");
    is(&stage.delete(&nowhere).await, 404, "not_found");
    is(&stage.publish(&nowhere, &[&stage.mine]).await, 404, "not_found");
}

/// Until it is out or cancelled, what a publication says may be taken from the post once more: what failed too, when
/// it is tried again.
#[tokio::test]
async fn a_limited_key_waits_for_the_end_of_what_goes_out_elsewhere() {
    let stage = Stage::new().await;
    let post = stage.scheduled("first", &[&stage.other]).await;
    for phase in Phase::ALL {
        sqlx::query(
            "update publications set phase = $2, fingerprint = 'f', content = '{\"text\": \"t\", \"media\": []}', \
               remote_id = case when $2 = 'sent' then '1' end where post_id = $1",
        )
        .bind(id_of(&post))
        .bind(phase.as_str())
        .execute(&stage.app.pool)
        .await
        .unwrap();
        let changed = stage.change(&post, phase.as_str()).await;
        match phase {
            Phase::Sent | Phase::Cancelled => assert_eq!(changed.0, 200, "{phase}: {}", changed.1),
            _ => {
                is_refused(&changed);
                is_refused(&stage.delete(&post).await);
            }
        }
    }
    assert_eq!(stage.delete(&post).await.0, 204);
}

#[tokio::test]
async fn a_limited_key_that_comes_while_a_post_is_put_on_its_way_elsewhere_comes_too_late() {
    let stage = Stage::new().await;
    for deletes in [false, true] {
        let post = stage.write("as its owner wrote it").await;
        let held = stage.held(&post).await;
        let owner = async { stage.publish(&post, &[&stage.other]).await };
        let key = async {
            stage.waiters(1).await;
            if deletes { stage.delete(&post).await } else { stage.change(&post, "as the key would have it").await }
        };
        let go = async {
            stage.waiters(2).await;
            held.rollback().await.unwrap();
        };
        let (published, refused, ()) = join!(owner, key, go);
        assert_eq!(published.0, 202, "{}", published.1);
        is_refused(&refused);
        assert_eq!(stage.text(&post).await, "as its owner wrote it");
    }
}

#[tokio::test]
async fn what_a_key_changed_at_the_last_moment_does_not_go_out_elsewhere() {
    let stage = Stage::new().await;
    for deletes in [false, true] {
        let post = stage.write("as its owner wrote it").await;
        let held = stage.held(&post).await;
        let key =
            async { if deletes { stage.delete(&post).await } else { stage.change(&post, "as the key has it").await } };
        // The owner's wish is checked against the post as it was.
        let owner = async {
            stage.waiters(1).await;
            stage.publish(&post, &[&stage.other]).await
        };
        let go = async {
            stage.waiters(2).await;
            held.rollback().await.unwrap();
        };
        let (changed, refused, ()) = join!(key, owner, go);
        assert_eq!(changed.0, if deletes { 204 } else { 200 }, "{}", changed.1);
        match deletes {
            true => is(&refused, 404, "not_found"),
            false => is(&refused, 409, "changed_meanwhile"),
        }
        let made = "select count(*) from publications where post_id = $1";
        let made: i64 = sqlx::query_scalar(made).bind(id_of(&post)).fetch_one(&stage.app.pool).await.unwrap();
        assert_eq!(made, 0);
    }
}
