//! The key that encrypts is changed while everything runs.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use multivio::{
    crypto::{Keyring, Place, Standing},
    rotation::{self, SEALED},
};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::{harness::App, publish::Stage};

const OLD: &str = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY=";
const NEW: &str = "ZmVkY2JhWllYV1ZVVFNSUVBPTk1MS0pJSEdGRURDQkE";

fn ring(keys: &[&str]) -> Keyring {
    Keyring::new(&keys.iter().map(|key| SecretString::from(*key)).collect::<Vec<_>>()).unwrap()
}

async fn tokens(app: &App) -> Vec<(Uuid, Vec<u8>, Vec<u8>)> {
    sqlx::query_as("select id, access_token, refresh_token from connections order by id")
        .fetch_all(&app.pool)
        .await
        .unwrap()
}

/// As many accounts as it takes for several batches, under the old key.
async fn accounts(app: &App, count: u128) {
    let ring = ring(&[OLD]);
    for n in 0..count {
        let id = Uuid::from_u128(n + 1);
        let seal = |column, text: String| ring.encrypt(Place::new("connections", column, id), &text.into());
        sqlx::query(
            "insert into connections (id, tenant_id, platform, remote_account_id, username, display_name, \
             access_token, refresh_token) values ($1, $2, 'x', $1::text, 'n', 'n', $3, $4)",
        )
        .bind(id)
        .bind(app.tenant)
        .bind(seal("access_token", format!("access {n}")))
        .bind(seal("refresh_token", format!("refresh {n}")))
        .execute(&app.pool)
        .await
        .unwrap();
    }
}

/// A column of secrets that the rotation does not know of would be lost with the old key.
#[tokio::test]
async fn every_column_that_can_hold_a_secret_is_rotated_or_known_to_hold_none() {
    let app = App::new().await;
    let columns: Vec<String> = sqlx::query_scalar(
        "select table_name || '.' || column_name from information_schema.columns \
         where table_schema = 'public' and data_type = 'bytea' and table_name <> '_sqlx_migrations'",
    )
    .fetch_all(&app.pool)
    .await
    .unwrap();
    // Hashes.
    let harmless = [
        "idempotency_keys.request_hash",
        "media_objects.sha256",
        "ai_cache.key",
        "api_keys.secret_hash",
        "account_consents.state_hash",
        "erasures.identity_hash",
        "patreon_flows.state_hash",
        "patreon_flows.challenge",
        "patreon_hints.body_hash",
    ];
    let found: BTreeSet<_> = columns.iter().map(String::as_str).filter(|name| !harmless.contains(name)).collect();
    let rotated: Vec<_> = SEALED.iter().map(|sealed| format!("{}.{}", sealed.table, sealed.column)).collect();
    assert_eq!(found, rotated.iter().map(String::as_str).collect());
}

#[tokio::test]
async fn everything_moves_to_the_new_key_and_the_old_one_can_go() {
    let mut app = App::new().await;
    accounts(&app, 450).await;
    app.set("ENCRYPTION_KEY", NEW).set("ENCRYPTION_KEYS_OLD", OLD);
    let (done, said) = app.cli(&["keys", "rotate", "--check"]).await;
    assert!(!done && said.contains("900 secret(s) are left under older keys"), "{said}");
    let (done, said) = app.cli(&["keys", "rotate"]).await;
    assert!(done && said.contains("900 encrypted anew"), "{said}");
    let (done, said) = app.cli(&["keys", "rotate", "--check"]).await;
    assert!(done && said.contains("current") && !said.contains("old"), "{said}");
    let (done, said) = app.cli(&["keys", "rotate"]).await;
    assert!(done && said.contains("\n0 encrypted anew"), "a second time there is nothing to do: {said}");
    let new = ring(&[NEW]);
    for (n, (id, access, refresh)) in tokens(&app).await.into_iter().enumerate() {
        let open = |column, stored: &[u8]| new.decrypt(Place::new("connections", column, id), stored).unwrap();
        assert_eq!(open("access_token", &access).expose_secret(), format!("access {n}"));
        assert_eq!(open("refresh_token", &refresh).expose_secret(), format!("refresh {n}"));
    }
}

#[tokio::test]
async fn a_rotation_that_was_broken_off_goes_on_where_it_was() {
    let app = App::new().await;
    accounts(&app, 300).await;
    let both = ring(&[NEW, OLD]);
    // After the first batch whoever rotates is gone.
    let (pool, ring) = (app.pool.clone(), both.clone());
    let told = std::sync::atomic::AtomicU64::new(0);
    let broken_off = tokio::spawn(async move {
        let batches = |rows| {
            assert!(told.fetch_add(rows, std::sync::atomic::Ordering::SeqCst) == 0, "broken off");
        };
        rotation::rotate(&pool, &ring, batches).await
    });
    assert!(broken_off.await.is_err());
    let left = |counts: Vec<rotation::Count>, standing| {
        counts.iter().filter(|count| count.standing == standing).map(|count| count.rows).sum::<u64>()
    };
    let between = rotation::survey(&app.pool, &both).await.unwrap();
    assert_eq!(left(between.clone(), Standing::Current), 200);
    assert_eq!(left(between, Standing::Old), 400);
    // Meanwhile everything can be read, and two that go on at once are in nobody's way.
    for (id, access, _) in tokens(&app).await {
        both.decrypt(Place::new("connections", "access_token", id), &access).unwrap();
    }
    let (one, other) =
        tokio::join!(rotation::rotate(&app.pool, &both, |_| ()), rotation::rotate(&app.pool, &both, |_| ()));
    assert_eq!(one.unwrap().resealed + other.unwrap().resealed, 400);
    let after = rotation::survey(&app.pool, &both).await.unwrap();
    assert_eq!(left(after, Standing::Old), 0);
}

#[tokio::test]
async fn what_cannot_be_read_is_left_as_it_is_and_told_with_its_remedy() {
    let mut app = App::new().await;
    accounts(&app, 3).await;
    sqlx::query("update connections set access_token = set_byte(access_token, 40, get_byte(access_token, 40) # 1) where id = $1")
        .bind(Uuid::from_u128(1))
        .execute(&app.pool)
        .await
        .unwrap();
    app.set("ENCRYPTION_KEY", NEW).set("ENCRYPTION_KEYS_OLD", OLD);
    let before = tokens(&app).await;
    let (done, said) = app.cli(&["keys", "rotate"]).await;
    assert!(!done && said.contains("1 x connections.access_token: the stored secret was altered"), "{said}");
    assert!(said.contains("5 encrypted anew") && said.contains("restore"), "{said}");
    assert_eq!(tokens(&app).await[0].1, before[0].1);

    // The old key is gone too early: nothing crashes, and it is named.
    app.set("ENCRYPTION_KEYS_OLD", "");
    let (done, said) = app.cli(&["keys", "rotate", "--check"]).await;
    assert!(!done && said.contains("not configured") && said.contains("ENCRYPTION_KEYS_OLD"), "{said}");
    app.set("ENCRYPTION_KEY", STANDARD.encode([7; 16]));
    let (done, said) = app.cli(&["keys", "rotate"]).await;
    assert!(!done && said.contains("exactly 32 bytes"), "{said}");
}

#[tokio::test]
async fn posts_go_out_before_during_and_after_a_rotation() {
    let mut stage = Stage::new().await;
    let worker = stage.worker().await;
    let first = stage.publish("under the old key").await;
    stage.until(&first, "sent").await;
    drop(worker);
    stage.app.set("ENCRYPTION_KEY", NEW).set("ENCRYPTION_KEYS_OLD", OLD);
    let worker = stage.worker().await;
    let second = stage.publish("with both").await;
    let (rotated, said) = stage.app.cli(&["keys", "rotate"]).await;
    assert!(rotated, "{said}");
    stage.until(&second, "sent").await;
    drop(worker);
    stage.app.set("ENCRYPTION_KEYS_OLD", "");
    let _worker = stage.worker().await;
    let third = stage.publish("under the new key").await;
    stage.until(&third, "sent").await;
    assert_eq!(stage.posts().await.len(), 3);
}

/// An answer with a secret in it is kept for whoever lost it, under whatever key there is by then.
#[tokio::test]
async fn an_answer_with_a_secret_is_given_again_after_a_rotation() {
    let mut app = App::new().await;
    app.set("ENCRYPTION_KEY", OLD);
    let make = async |api: &crate::harness::Api| {
        let request = api.request(reqwest::Method::POST, "/api/v1/api-keys").header("Idempotency-Key", "once");
        let answer = request.json(&serde_json::json!({"name": "ci", "scopes": ["read"]})).send().await.unwrap();
        assert_eq!(answer.status(), 201);
        answer.json::<serde_json::Value>().await.unwrap()
    };
    let first = make(&app.api().await).await;
    assert!(first["key"].is_string(), "{first}");
    app.set("ENCRYPTION_KEY", NEW).set("ENCRYPTION_KEYS_OLD", OLD);
    let (done, said) = app.cli(&["keys", "rotate"]).await;
    assert!(done && said.contains("1 encrypted anew") && said.contains("idempotency_keys.sealed"), "{said}");
    app.set("ENCRYPTION_KEYS_OLD", "");
    assert_eq!(make(&app.api().await).await, first);
}

#[tokio::test]
async fn check_says_whether_the_configured_keys_read_what_is_stored() {
    let mut app = App::new().await;
    accounts(&app, 2).await;
    app.set("ENCRYPTION_KEY", OLD);
    let (_, said) = app.cli(&["check"]).await;
    assert!(said.contains("all under ENCRYPTION_KEY"), "{said}");
    app.set("ENCRYPTION_KEY", NEW);
    let (done, said) = app.cli(&["check"]).await;
    assert!(!done && said.contains("4 are under keys that are not configured"), "{said}");
    assert!(said.contains("Set ENCRYPTION_KEY to the key that wrote them"), "{said}");
    assert!(!said.contains(OLD) && !said.contains(NEW), "{said}");
    app.set("ENCRYPTION_KEYS_OLD", OLD);
    let (_, said) = app.cli(&["check"]).await;
    assert!(said.contains("4 are under keys in ENCRYPTION_KEYS_OLD") && said.contains("keys rotate"), "{said}");
}
