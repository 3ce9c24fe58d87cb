//! No secret of a full run stands anywhere but where it must: not in a log, an answer, an event, a job or a dump.

use std::process::Command;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use multivio::{jobs::Queue, local::find_in_path};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use url::Url;

use crate::{
    harness::eventually,
    publish::{SOON, Stage},
};

/// A name for the message, and the secret itself.
type Secret = (String, String);

/// In every form in which it could get out.
fn forms(secret: &str) -> Vec<String> {
    let escaped: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    vec![
        secret.to_owned(),
        escaped,
        hex::encode(secret),
        STANDARD.encode(secret).trim_end_matches('=').to_owned(),
        URL_SAFE_NO_PAD.encode(secret),
    ]
}

fn assert_clean(place: &str, text: &str, secrets: &[Secret]) {
    for (name, secret) in secrets {
        for form in forms(secret) {
            if let Some(at) = text.find(&form) {
                let line = text[..at].matches('\n').count();
                let shown = text.lines().nth(line).unwrap_or_default().replace(&form, "[HERE]");
                panic!("{name} stands in {place}: {}", shown.chars().take(600).collect::<String>());
            }
        }
    }
}

fn password(url: &str) -> String {
    Url::parse(url).unwrap().password().expect("a password").to_owned()
}

/// A job that is in this state, once something became of it.
async fn job(stage: &Stage, path: &str, body: Value, state: &str) -> String {
    let (status, answer) = stage.api.post(path, body).await;
    assert_eq!(status, 202, "{answer}");
    let id = answer["job_id"].as_str().unwrap_or_else(|| panic!("no job in {answer}")).to_owned();
    eventually(SOON, &format!("the job to be {state}"), || async {
        let (_, job) = stage.api.get(&format!("/api/v1/jobs/{id}")).await;
        (job["state"] == state).then_some(())
    })
    .await;
    id
}

#[tokio::test]
async fn no_secret_of_a_full_run_can_be_found_in_anything_it_leaves() {
    let mut stage = Stage::new().await;
    stage.app.set("LOG_LEVEL", "trace");
    // A key whose form nothing could recognise.
    stage.app.set("TOGETHER_API_KEY", "together-sandbox-key");
    let old_key = STANDARD.encode(rand::random::<[u8; 32]>());
    stage.app.set("ENCRYPTION_KEYS_OLD", &*old_key);
    let figures_token = hex::encode(rand::random::<[u8; 16]>());
    stage.app.set("METRICS_TOKEN", &*figures_token);
    stage.api = stage.app.api().await;
    let first = stage.account.clone();

    // A post for which the token is refreshed, one that the platform refuses, one whose refresh is refused.
    stage.expire().await;
    let publisher = stage.worker().await;
    let published = stage.publish("for everyone to see").await;
    stage.until(&published, "sent").await;
    stage.fault("tweets.create", json!({ "refuse": "text_too_long_403" })).await;
    let refused = stage.publish("refused").await;
    let settled = eventually(SOON, "the refused post to be settled", || async {
        let publication = stage.publication(&refused).await;
        let phase = publication["phase"].as_str()?.to_owned();
        matches!(phase.as_str(), "failed" | "sent" | "unconfirmed").then_some(phase)
    });
    settled.await;
    stage.revoke().await;
    let waiting = stage.publish("revoked").await;
    stage.until(&waiting, "needs_reconnect").await;

    // Providers that refuse, and repeat the key in plain words and in no form that is known.
    let models = stage.app.worker(Queue::Ai).await;
    for (service, key) in
        [("xai", "xai-sandbox-key"), ("together", "together-sandbox-key"), ("openai", "sk-sandbox-key")]
    {
        let body = json!({ "error": { "message": format!("Incorrect API key provided:'{key}'."), "code": "invalid_api_key" } });
        let effect = json!({ "refuse": { "status": 401, "body": body } });
        stage.sandbox.fault(json!({ "service": service, "effect": effect })).await;
    }
    let text = json!({ "content": "A text that could be shorter.", "transformation_type": "shorten" });
    let refused_by_all = job(&stage, "/api/v1/ai/transform", text.clone(), "scheduled").await;
    let mut other = text;
    other["content"] = "Another text that could be shorter.".into();
    stage.sandbox.clear_faults().await;
    let transformed = job(&stage, "/api/v1/ai/transform", other, "succeeded").await;

    // A membership is linked, and its tokens are refreshed after a hint.
    let upkeep = stage.app.worker(Queue::Ops).await;
    let hook = format!("{}/webhooks/patreon", stage.api.url);
    stage.sandbox.settings(json!({ "patreon": { "webhook_uri": hook } })).await;
    let patron = stage.sandbox.post("/_sandbox/patreon/patrons", json!({ "tiers": ["7001"] })).await;
    let patron = patron["id"].as_str().unwrap().to_owned();
    let (code, state) = crate::patreon::allowed(&crate::patreon::begin(&stage.api).await, &patron).await;
    let finish = json!({ "code": code, "state": state, "code_verifier": crate::patreon::VERIFIER });
    let request = stage.api.request(Method::POST, "/api/v1/patreon/link/finish").header("Idempotency-Key", "link");
    let linked = request.json(&finish).send().await.unwrap();
    assert_eq!(linked.status(), 200, "{}", linked.text().await.unwrap());
    let membership = async || -> (uuid::Uuid, Vec<u8>, Vec<u8>, i32) {
        sqlx::query_as("select id, access_token, refresh_token, generation from patreon_links")
            .fetch_one(&stage.app.pool)
            .await
            .unwrap()
    };
    let first_pair = membership().await;
    sqlx::query("update patreon_links set access_expires_at = now()").execute(&stage.app.pool).await.unwrap();
    let change = format!("{}/_sandbox/patreon/patrons/{patron}", stage.sandbox.url());
    stage.api.client.patch(change).json(&json!({ "tiers": ["7002"] })).send().await.unwrap();
    eventually(SOON, "the second pair", || async { (membership().await.3 == 2).then_some(()) }).await;
    let second_pair = membership().await;

    // An API key that works, somebody who signs in with Firebase, an account by consent, an import by a signed link.
    let (_, key) = crate::identity::new_key(&stage.api, json!({})).await;
    assert_eq!(crate::identity::get(&stage.api, &key, "/api/v1/posts").await.0, 200);
    let signed = stage.sandbox.post("/_sandbox/firebase/tokens", json!({})).await;
    let id_token = signed["token"].as_str().unwrap().to_owned();
    assert_eq!(crate::identity::get(&stage.api, &id_token, "/api/v1/me").await.0, 200);
    let colleague = stage.sandbox.post("/_sandbox/x/accounts", json!({})).await;
    let (status, asked) = stage.api.post("/api/v1/connections/x/authorize", json!({})).await;
    assert_eq!(status, 200, "{asked}");
    let page = asked["authorize_url"].as_str().unwrap().parse().unwrap();
    let back = crate::connecting::visit(&page, "sandbox_approve", colleague["id"].as_str().unwrap()).await;
    let (asked_state, granted) = (crate::connecting::named(&back, "state"), crate::connecting::named(&back, "code"));
    let brought = json!({ "state": asked_state, "code": granted });
    let (status, connected) = stage.api.post("/api/v1/connections/x/callback", brought).await;
    assert_eq!(status, 201, "{connected}");
    let link_secret = hex::encode(rand::random::<[u8; 16]>());
    let link = json!({ "url": format!("https://files.invalid/clip.mp4?X-Signature={link_secret}") });
    let (status, import) = stage.api.post("/api/v1/media/import", link).await;
    assert_eq!(status, 202, "{import}");
    let import = format!("/api/v1/jobs/{}", import["job_id"].as_str().unwrap());
    eventually(SOON, "the import to be tried", || async {
        let (_, job) = stage.api.get(&import).await;
        (!matches!(job["state"].as_str()?, "queued" | "running")).then_some(())
    })
    .await;

    // Tokens as they are now, out of the database.
    let env = |name: &str| stage.app.env().iter().find(|(key, _)| key == name).unwrap().1.clone();
    let config = stage.app.config();
    let keyring = multivio::crypto::Keyring::new(&config.encryption_keys).unwrap();
    let (id, access, refresh): (uuid::Uuid, Vec<u8>, Vec<u8>) =
        sqlx::query_as("select id, access_token, refresh_token from connections order by created_at limit 1")
            .fetch_one(&stage.app.pool)
            .await
            .unwrap();
    let open = |column, stored: &[u8]| {
        let place = multivio::crypto::Place::new("connections", column, id);
        keyring.decrypt(place, stored).unwrap().expose_secret().to_owned()
    };
    let token = |name: &str| first[name].as_str().unwrap().to_owned();
    let of_patreon = |column, stored: &[u8]| {
        let place = multivio::crypto::Place::new("patreon_links", column, first_pair.0);
        keyring.decrypt(place, stored).unwrap().expose_secret().to_owned()
    };
    let secrets: Vec<Secret> = [
        ("Patreon's first access token", of_patreon("access_token", &first_pair.1)),
        ("Patreon's first refresh token", of_patreon("refresh_token", &first_pair.2)),
        ("Patreon's second access token", of_patreon("access_token", &second_pair.1)),
        ("Patreon's second refresh token", of_patreon("refresh_token", &second_pair.2)),
        ("Patreon's code", code),
        ("the state of a linking", state),
        ("the secret of a linking", crate::patreon::VERIFIER.to_owned()),
        ("Patreon's client secret", env("PATREON_CLIENT_SECRET")),
        ("Patreon's webhook secret", env("PATREON_WEBHOOK_SECRET")),
        ("the first access token", token("access_token")),
        ("the first refresh token", token("refresh_token")),
        ("the second access token", open("access_token", &access)),
        ("the second refresh token", open("refresh_token", &refresh)),
        ("the client secret", env("TWITTER_CLIENT_SECRET")),
        ("the client's credentials", format!("{}:{}", env("TWITTER_CLIENT_ID"), env("TWITTER_CLIENT_SECRET"))),
        ("the secret of tokens", env("JWT_SECRET_KEY")),
        ("the caller's token", stage.api.token.clone()),
        ("the encryption key", env("ENCRYPTION_KEY")),
        ("the encryption key of before", old_key),
        ("the token of the figures", figures_token.clone()),
        ("an API key", key),
        ("an ID token", id_token),
        ("the state of a consent", asked_state),
        ("the code of a consent", granted),
        ("the signature of a link", link_secret),
        ("Grok's key", env("GROK_API_KEY")),
        ("Together's key", env("TOGETHER_API_KEY")),
        ("OpenAI's key", env("OPENAI_API_KEY")),
        ("Postgres's password", password(&env("DATABASE_URL"))),
        ("Redis's password", password(&env("REDIS_URL"))),
    ]
    .map(|(name, secret)| (name.to_owned(), secret))
    .into();
    let secret = |name: &str| secrets.iter().find(|(known, _)| known == name).unwrap().1.clone();
    assert_ne!(secret("the first access token"), secret("the second access token"), "the token was refreshed");
    assert_ne!(secret("Patreon's first access token"), secret("Patreon's second access token"));

    // What the API tells, events among it.
    let mut paths = vec![
        "/health".to_owned(),
        "/metrics".to_owned(),
        "/openapi.json".to_owned(),
        "/api/v1/connections".to_owned(),
        "/api/v1/posts".to_owned(),
        "/api/v1/jobs?limit=100".to_owned(),
        "/api/v1/ai/usage".to_owned(),
        "/api/v1/ai/models".to_owned(),
        "/api/v1/ai/health".to_owned(),
        "/api/v1/plan".to_owned(),
        "/api/v1/patreon/link".to_owned(),
        "/api/v1/audit".to_owned(),
    ];
    paths.push("/api/v1/api-keys".to_owned());
    paths.push(import);
    paths.extend([&published, &refused, &waiting].map(|id| format!("/api/v1/publications/{id}")));
    let (_, jobs) = stage.api.get("/api/v1/jobs?limit=100").await;
    for job in jobs["items"].as_array().unwrap() {
        paths.push(format!("/api/v1/jobs/{}/timeline", job["id"].as_str().unwrap()));
    }
    paths.extend([&transformed].map(|id| format!("/api/v1/jobs/{id}/events")));
    for path in &paths {
        let token = if path == "/metrics" { &figures_token } else { &stage.api.token };
        let response =
            stage.api.client.get(format!("{}{path}", stage.api.url)).bearer_auth(token).send().await.unwrap();
        assert!(response.status().is_success() || path == "/health", "{path}: {}", response.status());
        let text = response.text().await.unwrap();
        assert_clean(path, &text, &secrets);
    }
    let (_, timeline) = stage.api.get(&format!("/api/v1/jobs/{refused_by_all}/timeline")).await;
    assert!(timeline.to_string().contains("Incorrect API key"), "the providers' words are kept: {timeline}");

    // The database, as somebody who may read all of it sees it.
    let dump = Command::new(find_in_path("pg_dump").expect("pg_dump comes with Postgres"))
        .arg("--dbname")
        .arg(env("DATABASE_URL"))
        .output()
        .unwrap();
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let dump = String::from_utf8_lossy(&dump.stdout);
    assert!(dump.contains("COPY public.connections") && dump.contains("for everyone to see"));
    assert_clean("the dump", &dump, &secrets);

    // What the programs wrote, at the level that says most.
    for (name, log) in [
        ("the API's log", stage.api.program.log()),
        ("the publisher's log", publisher.program.log()),
        ("the models' log", models.program.log()),
        ("the upkeep's log", upkeep.program.log()),
    ] {
        assert!(log.contains("TRACE"), "{name} is not at its most talkative");
        assert_clean(name, &log, &secrets);
    }
}

#[tokio::test]
async fn a_program_that_cannot_reach_its_servers_does_not_say_their_passwords() {
    let mut app = crate::harness::App::new().await;
    app.set("LOG_LEVEL", "trace");
    app.set("DATABASE_URL", "postgres://nobody:hunter2-database@127.0.0.1:1/x");
    app.set("REDIS_URL", "redis://:hunter2-redis@127.0.0.1:1");
    let api = app.api().await;
    for path in ["/health", "/health/ready", "/api/v1/jobs"] {
        let (status, answer) = api.get(path).await;
        assert!(status >= 500 && !answer.to_string().contains("hunter2"), "{path}: {answer}");
    }
    let (_, said) = app.cli(&["keys", "rotate", "--check"]).await;
    assert!(!said.contains("hunter2") && !api.program.log().contains("hunter2"), "{said}");
}
