//! Firebase ID tokens, against the twin that publishes keys as Google does and signs what it is told to.

use reqwest::Method;
use serde_json::{Value, json};

use super::{call, get};
use crate::harness::{Api, App, Sandbox};

struct Stage {
    app: App,
    sandbox: Sandbox,
    api: Api,
}

impl Stage {
    async fn new() -> Self {
        let mut app = App::new().await;
        let sandbox = app.sandbox().await;
        let api = app.api().await;
        Self { app, sandbox, api }
    }

    async fn token(&self, wish: Value) -> String {
        let signed = self.sandbox.post("/_sandbox/firebase/tokens", wish).await;
        signed["token"].as_str().expect("a token").to_owned()
    }

    async fn status(&self, token: &str) -> u16 {
        get(&self.api, token, "/api/v1/me").await.0
    }

    async fn fetches(&self) -> u64 {
        self.sandbox.count("service=firebase&operation=keys.list").await
    }

    async fn key_server_is_down(&self) {
        let fault = json!({"service": "firebase", "times": "always", "effect": {"refuse": "unavailable"}});
        self.sandbox.fault(fault).await;
    }
}

#[tokio::test]
async fn a_user_comes_in_with_firebase_and_finds_the_same_workspace_every_time() {
    let stage = Stage::new().await;
    let claims = json!({"email": "ada@example.com", "email_verified": true, "name": "Ada"});
    let first = stage.token(json!({"uid": "ada", "claims": claims})).await;
    let (status, me) = get(&stage.api, &first, "/api/v1/me").await;
    assert_eq!(status, 200, "{me}");
    assert_eq!(
        (&me["provider"], &me["email"], &me["name"]),
        (&json!("firebase"), &json!("ada@example.com"), &json!("Ada"))
    );
    assert_eq!((&me["role"], &me["scopes"]), (&json!("owner"), &json!(["workspace"])));
    let again = stage.token(json!({"uid": "ada", "claims": {"iat": 1_700_000_000}})).await;
    let (_, later) = get(&stage.api, &again, "/api/v1/me").await;
    assert_eq!((&later["user_id"], &later["workspace_id"]), (&me["user_id"], &me["workspace_id"]));
    let other = stage.token(json!({"uid": "bob"})).await;
    let (_, bob) = get(&stage.api, &other, "/api/v1/me").await;
    assert_ne!(bob["workspace_id"], me["workspace_id"]);
}

/// Once that was possible, and whoever met with it must not stay locked out.
#[tokio::test]
async fn whoever_was_put_out_of_their_own_workspace_finds_another() {
    let mut stage = Stage::new().await;
    let (_, ada) = get(&stage.api, &stage.token(json!({"uid": "ada"})).await, "/api/v1/me").await;
    let (_, bob) = get(&stage.api, &stage.token(json!({"uid": "bob"})).await, "/api/v1/me").await;
    let others = "update workspace_members m set user_id = b.id from users a, users b \
                  where a.subject = 'ada' and b.subject = 'bob' and m.tenant_id = a.personal_workspace_id";
    assert_eq!(sqlx::query(others).execute(&stage.app.pool).await.unwrap().rows_affected(), 1);
    stage.api = stage.app.api().await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (status, me) = get(&stage.api, &stage.token(json!({"uid": "ada"})).await, "/api/v1/me").await;
        assert_eq!((status, &me["user_id"], &me["role"]), (200, &ada["user_id"], &json!("owner")), "{me}");
        seen.push(me["workspace_id"].clone());
    }
    assert!(seen[0] == seen[1] && seen[0] != ada["workspace_id"] && seen[0] != bob["workspace_id"], "{seen:?}");
}

#[tokio::test]
async fn an_address_that_is_not_verified_is_nobodys() {
    let stage = Stage::new().await;
    let token = stage.token(json!({"uid": "eve", "claims": {"email": "ada@example.com"}})).await;
    let (status, me) = get(&stage.api, &token, "/api/v1/me").await;
    assert_eq!((status, &me["email"]), (200, &Value::Null));
    let invite = json!({"email": "ada@example.com", "role": "editor"});
    let (_, me) = stage.api.get("/api/v1/me").await;
    let members = format!("/api/v1/workspaces/{}/members", me["workspace_id"].as_str().unwrap());
    assert_eq!(stage.api.post(&members, invite).await.0, 422);
}

/// What a user chose freely is no reason to lock them out, nor to keep what cannot be stored.
#[tokio::test]
async fn a_name_or_an_address_that_cannot_be_kept_does_no_harm() {
    let stage = Stage::new().await;
    let claims =
        json!({"name": format!("A\0d\na{}", "x".repeat(3000)), "email": "a\0@example.com", "email_verified": true});
    let token = stage.token(json!({"uid": "ada", "claims": claims})).await;
    let (status, me) = get(&stage.api, &token, "/api/v1/me").await;
    assert_eq!((status, &me["email"]), (200, &Value::Null), "{me}");
    let name = me["name"].as_str().unwrap();
    assert!(name.starts_with("Adax") && name.len() == 200, "{name}");
    let token = stage.token(json!({"uid": "ada", "claims": {"name": "\0", "email": "x".repeat(400)}})).await;
    assert_eq!(stage.status(&token).await, 200);
}

/// Each is one 401, and looks like every other.
#[tokio::test]
async fn a_forged_token_opens_nothing() {
    let stage = Stage::new().await;
    let now = chrono::Utc::now().timestamp();
    assert_eq!(stage.status(&stage.token(json!({})).await).await, 200, "the good one");
    let custom = "https://identitytoolkit.googleapis.com/google.identity.identitytoolkit.v1.IdentityToolkit";
    let attacks = [
        ("HS256 with the public key as its secret", json!({"signer": "public_key_as_secret"})),
        ("no signature and alg none", json!({"signer": "nobody"})),
        ("no signature but alg RS256", json!({"signer": "nobody", "header": {"alg": "RS256"}})),
        ("ES256", json!({"signer": "noise"})),
        ("noise as RS256", json!({"signer": "noise", "header": {"alg": "RS256"}})),
        ("somebody else's key", json!({"signer": "stranger"})),
        ("a good signature under another algorithm's name", json!({"header": {"alg": "RS512"}})),
        ("no key id", json!({"header": {"kid": null}})),
        ("an empty key id", json!({"header": {"kid": ""}})),
        ("a key of the token's own", json!({"signer": "stranger", "header": {"jku": "https://evil.example/jwks"}})),
        ("another project", json!({"claims": {"aud": "another"}})),
        ("many projects", json!({"claims": {"aud": ["sandbox-project", "another"]}})),
        ("another issuer", json!({"claims": {"iss": "https://securetoken.google.com/another"}})),
        ("a session cookie", json!({"claims": {"iss": "https://session.firebase.google.com/sandbox-project"}})),
        ("a custom token", json!({"claims": {"aud": custom, "iss": "firebase-adminsdk@x.iam.gserviceaccount.com"}})),
        ("expired", json!({"claims": {"exp": now - 60}})),
        ("never to expire", json!({"claims": {"exp": null}})),
        ("issued in the future", json!({"claims": {"iat": now + 120}})),
        ("signed in in the future", json!({"claims": {"auth_time": now + 120}})),
        ("nobody", json!({"claims": {"sub": ""}})),
        ("a uid too long", json!({"claims": {"sub": "u".repeat(129)}})),
        ("a uid of another type", json!({"claims": {"sub": 7}})),
        ("of an Identity Platform tenant", json!({"claims": {"firebase": {"tenant": "other"}}})),
        ("too large", json!({"claims": {"padding": "x".repeat(9000)}})),
    ];
    let mut answers = Vec::new();
    for (name, wish) in attacks {
        let (status, answer) = get(&stage.api, &stage.token(wish).await, "/api/v1/me").await;
        assert_eq!(status, 401, "{name}: {answer}");
        answers.push(answer);
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "an answer tells what was wrong");
    let users: i64 = sqlx::query_scalar("select count(*) from users where provider = 'firebase'")
        .fetch_one(&stage.app.pool)
        .await
        .unwrap();
    assert_eq!(users, 1, "a forged token made a user");
}

#[tokio::test]
async fn a_new_key_is_found_at_once_and_a_withdrawn_one_is_good_until_the_keys_are_read_again() {
    let stage = Stage::new().await;
    assert_eq!(stage.status(&stage.token(json!({})).await).await, 200);
    assert_eq!(stage.fetches().await, 1);
    stage.sandbox.post("/_sandbox/firebase/rotate", json!({"withdraw": true})).await;
    assert_eq!(stage.status(&stage.token(json!({})).await).await, 200, "the new key");
    assert_eq!(stage.fetches().await, 2);
    assert_eq!(stage.status(&stage.token(json!({"signer": "withdrawn"})).await).await, 401);
}

#[tokio::test]
async fn a_flood_of_unknown_key_ids_makes_one_look_and_harms_no_one_else() {
    let stage = Stage::new().await;
    let good = stage.token(json!({"uid": "good"})).await;
    assert_eq!(stage.status(&good).await, 200);
    let mut flood = Vec::new();
    for number in 0..60 {
        flood.push(stage.token(json!({"header": {"kid": format!("unknown-{number}")}})).await);
    }
    let statuses = futures::future::join_all(flood.iter().map(|token| stage.status(token))).await;
    assert!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
    assert_eq!(stage.fetches().await, 2, "one at the start, one for the whole flood");
    let other = stage.token(json!({"uid": "other"})).await;
    assert_eq!(stage.status(&other).await, 200);
}

/// Nothing was learned: a genuine user with a new key must not be told that their token is wrong.
#[tokio::test]
async fn a_look_that_failed_signs_nobody_out() {
    let stage = Stage::new().await;
    assert_eq!(stage.status(&stage.token(json!({})).await).await, 200);
    stage.sandbox.post("/_sandbox/firebase/rotate", json!({})).await;
    stage.key_server_is_down().await;
    let token = stage.token(json!({})).await;
    assert_eq!(stage.status(&token).await, 503);
    let looked = stage.fetches().await;
    crate::harness::wait_until(super::SOON, "the next look", || async {
        assert_eq!(stage.status(&token).await, 503, "the second look fails as well");
        stage.fetches().await > looked
    })
    .await;
    stage.sandbox.clear_faults().await;
    crate::harness::wait_until(super::SOON, "the new key", || async {
        let status = stage.status(&token).await;
        assert_ne!(status, 401);
        status == 200
    })
    .await;
}

#[tokio::test]
async fn keys_are_had_anew_before_their_time_is_over_while_users_come_in() {
    let stage = Stage::new().await;
    stage.sandbox.settings(json!({"firebase": {"max_age_s": 20}})).await;
    assert_eq!(stage.status(&stage.token(json!({})).await).await, 200);
    let began = std::time::Instant::now();
    // Whoever waited for a look would wait for this.
    stage.sandbox.fault(json!({"service": "firebase", "times": "always", "delay_ms": 1500})).await;
    crate::harness::wait_until(super::SOON, "a look ahead", || async {
        let token = stage.token(json!({})).await;
        let asked = std::time::Instant::now();
        assert_eq!(stage.status(&token).await, 200);
        assert!(asked.elapsed() < std::time::Duration::from_millis(1400), "a user waited for the keys");
        stage.fetches().await > 1
    })
    .await;
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn health_tells_whether_there_are_keys() {
    let mut stage = Stage::new().await;
    let firebase = async |stage: &Stage| {
        let (_, report) = stage.api.get("/health").await;
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == "firebase").map(|check| check["state"].clone())
    };
    assert_eq!(firebase(&stage).await, Some(json!("ok")), "it looks by itself");
    stage.key_server_is_down().await;
    assert_eq!(firebase(&stage).await, Some(json!("ok")), "what is known is fresh");
    stage.api = stage.app.api().await;
    assert_eq!(firebase(&stage).await, Some(json!("down")));
    assert_eq!(stage.api.get("/health/ready").await.0, 200, "others come in");
    stage.app.set("FIREBASE_PROJECT_ID", "");
    stage.api = stage.app.api().await;
    assert_eq!(firebase(&stage).await, None);
}

/// A session at Firebase lasts for months: what cannot be undone, and what outlives it, wants a sign-in of just now.
#[tokio::test]
async fn deleting_making_keys_and_letting_people_in_wants_a_sign_in_of_just_now() {
    let mut stage = Stage::new().await;
    let now = chrono::Utc::now().timestamp();
    let old = stage.token(json!({"uid": "ada", "claims": {"auth_time": now - 400}})).await;
    let (_, me) = get(&stage.api, &old, "/api/v1/me").await;
    let (status, team) =
        call(&stage.api, &old, None, Method::POST, "/api/v1/workspaces", Some(&json!({"name": "Team"}))).await;
    assert_eq!(status, 201, "{team}");
    let team = team["id"].as_str().unwrap();
    let (_, bob) = get(&stage.api, &stage.token(json!({"uid": "bob"})).await, "/api/v1/me").await;
    let member = json!({"user_id": bob["user_id"], "role": "editor"});
    let members = format!("/api/v1/workspaces/{team}/members");
    let of_bob = format!("{members}/{}", bob["user_id"].as_str().unwrap());
    let owner = json!({"role": "owner"});
    let body = json!({"name": "k", "scopes": ["read"]});
    let delete_me = format!("/api/v1/me?confirm={}", me["user_id"].as_str().unwrap());
    let delete_team = format!("/api/v1/workspaces/{team}?confirm=Team");
    let dangerous = [
        (None, Method::POST, "/api/v1/api-keys", Some(&body), 201),
        (Some(team), Method::POST, &*members, Some(&member), 201),
        (Some(team), Method::PATCH, &*of_bob, Some(&owner), 200),
        (Some(team), Method::DELETE, &*delete_team, None, 202),
        (None, Method::DELETE, &*delete_me, None, 202),
    ];
    for (workspace, method, path, body, _) in &dangerous {
        let (status, problem) = call(&stage.api, &old, *workspace, method.clone(), path, *body).await;
        assert_eq!((status, &problem["code"]), (403, &json!("sign_in_again")), "{path}: {problem}");
    }
    // As long as the setting says.
    stage.app.set("FIREBASE_RECENT_SIGN_IN_SECONDS", "3600");
    let patient = stage.app.api().await;
    assert_eq!(call(&patient, &old, None, Method::POST, "/api/v1/api-keys", Some(&body)).await.0, 201);
    let new = stage.token(json!({"uid": "ada"})).await;
    for (workspace, method, path, body, done) in dangerous {
        let (status, answer) = call(&stage.api, &new, workspace, method, path, body).await;
        assert_eq!(status, done, "{path}: {answer}");
    }
}

#[tokio::test]
async fn whoever_signed_in_as_nobody_in_particular_is_not_let_in() {
    let stage = Stage::new().await;
    let firebase = json!({"identities": {}, "sign_in_provider": "anonymous"});
    assert_eq!(stage.status(&stage.token(json!({"claims": {"firebase": firebase}})).await).await, 401);
}

#[tokio::test]
async fn many_at_once_share_one_look_for_the_first_keys() {
    let stage = Stage::new().await;
    stage.sandbox.fault(json!({"service": "firebase", "delay_ms": 300})).await;
    let mut tokens = Vec::new();
    for _ in 0..20 {
        tokens.push(stage.token(json!({})).await);
    }
    let statuses = futures::future::join_all(tokens.iter().map(|token| stage.status(token))).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(stage.fetches().await, 1);
}

#[tokio::test]
async fn users_come_in_while_the_key_server_is_down_and_a_start_without_keys_asks_to_come_back() {
    let mut stage = Stage::new().await;
    stage.sandbox.settings(json!({"firebase": {"max_age_s": 1}})).await;
    assert_eq!(stage.status(&stage.token(json!({})).await).await, 200);
    stage.key_server_is_down().await;
    let looked = stage.fetches().await;
    crate::harness::wait_until(super::SOON, "a look for keys that are not fresh any more", || async {
        assert_eq!(stage.status(&stage.token(json!({})).await).await, 200, "with the last keys");
        stage.fetches().await > looked
    })
    .await;
    assert_eq!(stage.status(&stage.token(json!({"signer": "stranger"})).await).await, 401);

    // A process that never had a key cannot tell good from bad: nobody is signed out for that.
    stage.api = stage.app.api().await;
    let token = stage.token(json!({})).await;
    assert_eq!(stage.status(&token).await, 503);
    let (status, problem) = get(&stage.api, &token, "/api/v1/me").await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    stage.sandbox.clear_faults().await;
    crate::harness::wait_until(super::SOON, "the keys to be there", || async { stage.status(&token).await == 200 })
        .await;
}

#[tokio::test]
async fn signing_out_everywhere_ends_every_sign_in_and_the_tokens_it_will_yet_get() {
    let stage = Stage::new().await;
    let token = stage.token(json!({"uid": "ada"})).await;
    let (status, _) = call(&stage.api, &token, None, Method::POST, "/api/v1/me/sign-out", None).await;
    assert_eq!(status, 204);
    assert_eq!(stage.status(&token).await, 401);
    let now = chrono::Utc::now().timestamp();
    // The session at Firebase goes on, and gives whoever holds it a new token: of the same sign-in.
    let renewed = stage.token(json!({"uid": "ada", "claims": {"iat": now + 5, "auth_time": now - 60}})).await;
    assert_eq!(stage.status(&renewed).await, 401);
    let fresh = stage.token(json!({"uid": "ada", "claims": {"iat": now + 5, "auth_time": now + 5}})).await;
    assert_eq!(stage.status(&fresh).await, 200);
    sqlx::query("update users set disabled_at = now() where subject = 'ada'").execute(&stage.app.pool).await.unwrap();
    crate::harness::wait_until(super::SOON, "a disabled user to be out", || async {
        stage.status(&fresh).await == 403
    })
    .await;
}

#[tokio::test]
async fn signing_out_is_done_once_under_a_key() {
    let stage = Stage::new().await;
    let sign_out = async |token: &str| {
        let url = format!("{}/api/v1/me/sign-out", stage.api.url);
        let request = stage.api.client.post(url).bearer_auth(token).header("Idempotency-Key", "once");
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers().contains_key("idempotent-replayed"))
    };
    assert_eq!(sign_out(&stage.token(json!({"uid": "ada"})).await).await, (204, false));
    let later = chrono::Utc::now().timestamp() + 5;
    let fresh = stage.token(json!({"uid": "ada", "claims": {"iat": later, "auth_time": later}})).await;
    let after = "select extract(epoch from tokens_valid_after)::float8 from users where subject = 'ada'";
    let after = async || sqlx::query_scalar::<_, f64>(after).fetch_one(&stage.app.pool).await.unwrap();
    let before = after().await;
    // A repeat that comes late does not end the sign-in that was made since.
    assert_eq!(sign_out(&fresh).await, (204, true));
    assert_eq!(after().await, before);
    // In another's hands, in the same workspace or not, it is another key.
    assert_eq!(sign_out(&stage.token(json!({"uid": "bob"})).await).await, (204, false));
}

#[tokio::test]
async fn without_a_project_no_firebase_token_is_looked_at() {
    let mut app = App::new().await;
    let sandbox = app.sandbox().await;
    app.set("FIREBASE_PROJECT_ID", "");
    let api = app.api().await;
    let signed = sandbox.post("/_sandbox/firebase/tokens", json!({})).await;
    assert_eq!(get(&api, signed["token"].as_str().unwrap(), "/api/v1/me").await.0, 401);
    assert_eq!(sandbox.count("service=firebase").await, 0);
}

#[tokio::test]
async fn in_production_a_local_token_opens_nothing_unless_local_tokens_are_asked_for() {
    let mut app = App::new().await;
    let token = app.token();
    app.set("ENVIRONMENT", "production").set("LOG_LEVEL", "info");
    let api = app.api().await;
    assert_eq!(get(&api, &token, "/api/v1/jobs").await.0, 401);
    assert!(api.program.log().contains("JWT_SECRET_KEY is ignored"));
    app.set("LOCAL_TOKENS", "on");
    let api = app.api().await;
    assert_eq!(get(&api, &token, "/api/v1/jobs").await.0, 200);
}
