//! The cases that every connector has to pass against its twin. Run on each by adding it to [`each`].

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use multivio::{
    ids::ConnectionId,
    outbound,
    platforms::{
        Account, Call, Class, Connector, Connectors, Draft, DraftMedia, Exchange, MediaBytes, MediaFacts, MediaFile,
        MediaKind, Platform, Search, Sighting, Staged, Step, Witness,
    },
};
use serde_json::{Value, json};

use super::SOON;
use crate::harness::{Sandbox, eventually};

#[derive(Default)]
struct Log(Mutex<Vec<Exchange>>);

impl Witness for Log {
    fn saw(&self, exchange: Exchange) {
        self.0.lock().expect("nothing panics while it is held").push(exchange);
    }
}

/// A connector, its twin and an account there.
struct Rig {
    connector: std::sync::Arc<dyn Connector>,
    sandbox: Sandbox,
    account: Account,
    refresh_token: String,
    log: Log,
}

/// One that has no connection yet.
fn connector_to(sandbox: &Sandbox) -> std::sync::Arc<dyn Connector> {
    let mut env: BTreeMap<String, String> = sandbox.env().into_iter().collect();
    env.insert("DATABASE_URL".into(), "postgres://localhost/none".into());
    env.insert("REDIS_URL".into(), "redis://localhost".into());
    env.insert("TWITTER_CREATE_DEADLINE_SECONDS".into(), "2".into());
    let config = multivio::config::Config::load(&|name| env.get(name).cloned()).expect("the settings are complete");
    let connectors = Connectors::new(&config, &outbound::client().expect("a client can be made"));
    connectors.get(Platform::X).expect("X is there")
}

impl Rig {
    async fn new() -> Self {
        let sandbox = Sandbox::start().await;
        let made = sandbox.post("/_sandbox/x/accounts", json!({})).await;
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        let account = Account {
            connection: ConnectionId::new(),
            remote_id: text("id"),
            username: text("username"),
            access_token: text("access_token").into(),
            generation: 1,
        };
        Self {
            connector: connector_to(&sandbox),
            sandbox,
            account,
            refresh_token: text("refresh_token"),
            log: Log::default(),
        }
    }

    fn call(&self) -> Call<'_> {
        Call { account: &self.account, witness: &self.log }
    }

    async fn look(&self, draft: &Draft, baseline: &str, taken: &[String]) -> Sighting {
        let fingerprint = self.connector.fingerprint(draft);
        let search = Search { draft, fingerprint: &fingerprint, baseline, handle: None, taken, media: &[] };
        self.connector.find(&self.call(), &search).await.expect("the list can be read")
    }

    fn baseline(&self) -> String {
        self.connector.baseline(chrono::Utc::now(), None)
    }

    async fn settings(&self, settings: Value) {
        let url = format!("{}/_sandbox/settings", self.sandbox.url());
        let client = outbound::client().expect("a client can be made");
        let changed = client.patch(url).json(&json!({ "x": settings })).send().await;
        assert!(changed.expect("the twin answers").status().is_success());
    }

    async fn refuse(&self, operation: &str, error: &str) {
        let effect = json!({ "refuse": error });
        self.sandbox.fault(json!({ "service": "x", "operation": operation, "effect": effect })).await;
    }
}

fn draft(text: &str) -> Draft {
    Draft { text: text.to_owned(), media: Vec::new() }
}

/// Bytes in memory.
struct Memory(Vec<u8>);

#[async_trait]
impl MediaBytes for Memory {
    async fn read(&self, start: u64, length: usize) -> std::io::Result<Bytes> {
        let start = usize::try_from(start).expect("small");
        let end = (start + length).min(self.0.len());
        Ok(Bytes::copy_from_slice(&self.0[start..end]))
    }
}

/// What the name stands for in a table of expectations.
fn class_name(class: &Class) -> &'static str {
    match class {
        Class::Retry { .. } => "retry",
        Class::RetryOnce { .. } => "retry_once",
        Class::Snooze { .. } => "snooze",
        Class::Refresh => "refresh",
        Class::Restage => "restage",
        Class::Reconnect => "reconnect",
        Class::Duplicate { .. } => "duplicate",
        Class::Permanent => "permanent",
        Class::Uncertain => "uncertain",
        Class::Config => "config",
    }
}

/// Every named error of X's twin, on the call that meets it, and what it means.
const MEANINGS: [(&str, &str, &str); 46] = [
    ("oauth2.refresh", "token_invalid", "reconnect"),
    ("oauth2.refresh", "code_invalid", "reconnect"),
    ("oauth2.refresh", "invalid_grant", "reconnect"),
    ("oauth2.refresh", "unauthorized_client", "config"),
    ("oauth2.refresh", "invalid_client", "config"),
    ("oauth2.refresh", "oauth_rate_limited", "snooze"),
    ("oauth2.refresh", "temporarily_unavailable", "uncertain"),
    ("tweets.create", "invalid_media_ids", "restage"),
    ("tweets.create", "mutually_exclusive", "permanent"),
    ("tweets.create", "poll_bounds", "permanent"),
    ("tweets.create", "text_too_long_400", "permanent"),
    ("tweets.create", "unauthorized", "refresh"),
    ("tweets.create", "unauthorized_code_32", "refresh"),
    ("tweets.create", "unauthorized_code_89", "refresh"),
    ("tweets.create", "credits_depleted", "config"),
    ("tweets.create", "payment_required", "config"),
    ("tweets.create", "duplicate_content", "duplicate"),
    ("tweets.create", "video_too_long", "permanent"),
    ("tweets.create", "video_duration_exceeded", "permanent"),
    ("tweets.create", "reply_not_allowed", "permanent"),
    ("tweets.create", "too_many_cashtags", "permanent"),
    ("tweets.create", "invalid_url", "permanent"),
    ("tweets.create", "mentions_not_allowed", "permanent"),
    ("tweets.create", "text_too_long_403", "permanent"),
    ("tweets.create", "forbidden_bare", "retry_once"),
    ("tweets.create", "read_only_app", "config"),
    ("tweets.create", "client_forbidden", "config"),
    ("tweets.create", "unsupported_authentication", "reconnect"),
    ("tweets.create", "missing_scope", "reconnect"),
    ("tweets.create", "user_suspended", "reconnect"),
    ("tweets.create", "suspended_code_64", "reconnect"),
    ("tweets.create", "account_locked", "reconnect"),
    ("tweets.create", "reply_parent_gone_400", "permanent"),
    ("tweets.create", "reply_parent_gone_403", "permanent"),
    ("tweets.create", "reply_parent_gone_404", "permanent"),
    ("tweets.create", "not_found", "permanent"),
    ("tweets.create", "not_found_200", "uncertain"),
    ("tweets.create", "payload_too_large", "permanent"),
    ("tweets.create", "header_fields_too_large", "permanent"),
    ("tweets.create", "rate_limited", "snooze"),
    ("tweets.create", "rate_limited_code_88", "snooze"),
    ("tweets.create", "rate_limited_without_headers", "snooze"),
    ("tweets.create", "daily_limit", "snooze"),
    ("tweets.create", "usage_capped", "config"),
    ("tweets.create", "internal_error", "uncertain"),
    ("tweets.create", "service_unavailable", "uncertain"),
];

#[tokio::test]
async fn every_named_error_of_the_twin_has_its_meaning() {
    let rig = Rig::new().await;
    let catalog = rig.sandbox.get("/_sandbox/catalog").await;
    let mut wrong = Vec::new();
    for (operation, error, expected) in MEANINGS {
        rig.refuse(operation, error).await;
        let found = if operation == "oauth2.refresh" {
            rig.connector.refresh(&rig.refresh_token.clone().into(), &rig.log).await.map(drop)
        } else {
            rig.connector.create(&rig.call(), &draft("hello"), &[]).await.map(drop)
        };
        let error_found = found.expect_err("a refusal was ordered");
        if class_name(&error_found.class()) != expected {
            wrong.push(format!("{error}: {:?} instead of {expected}", error_found.class()));
        }
        assert!(!error_found.explain().message.is_empty());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(rig.sandbox.get("/_sandbox/x/posts").await, json!([]), "a refusal creates nothing");
    // Nothing that the twin can say is left out: whoever adds a row there adds its meaning here.
    let known: Vec<_> = MEANINGS.iter().map(|(_, error, _)| *error).chain(["edge_html"]).collect();
    for error in catalog["x"]["errors"].as_array().expect("a list") {
        let name = error["name"].as_str().expect("a name");
        assert!(known.contains(&name), "{name} has no meaning yet");
    }
}

#[tokio::test]
async fn the_edges_own_html_is_uncertain_on_a_create_and_passing_elsewhere() {
    let rig = Rig::new().await;
    rig.refuse("tweets.create", "edge_html").await;
    let error = rig.connector.create(&rig.call(), &draft("hello"), &[]).await.expect_err("refused");
    assert_eq!(class_name(&error.class()), "uncertain");
    rig.refuse("users.tweets", "edge_html").await;
    let draft = draft("hello");
    let (fingerprint, baseline) = (rig.connector.fingerprint(&draft), rig.baseline());
    let search =
        Search { draft: &draft, fingerprint: &fingerprint, baseline: &baseline, handle: None, taken: &[], media: &[] };
    let error = rig.connector.find(&rig.call(), &search).await.expect_err("refused");
    assert_eq!(class_name(&error.class()), "retry");
}

#[tokio::test]
async fn what_is_neither_success_nor_refusal_is_uncertain_on_a_create() {
    let rig = Rig::new().await;
    for status in [302, 304, 425, 502] {
        let effect = json!({ "accept_then_status": status });
        rig.sandbox.fault(json!({ "service": "x", "operation": "tweets.create", "effect": effect })).await;
        let error = rig.connector.create(&rig.call(), &draft(&format!("with {status}")), &[]).await.expect_err("odd");
        assert_eq!(class_name(&error.class()), "uncertain", "{status}");
    }
}

#[tokio::test]
async fn what_is_created_is_found_however_the_platform_changed_its_text() {
    let rig = Rig::new().await;
    let texts = [
        "plain words",
        "a <b> & \"c\"",
        "read https://example.com/some/path?x=1&y=2 now",
        "see example.com and HTTPS://Example.org/A",
        "日本語 👨‍👩‍👧‍👦 e\u{301}",
        "two\n\nlines  and  spaces",
    ];
    for text in texts {
        let (draft, baseline) = (draft(text), rig.baseline());
        let created = rig.connector.create(&rig.call(), &draft, &[]).await.expect("it is accepted");
        assert_eq!(rig.look(&draft, &baseline, &[]).await, Sighting::Found(created.clone()), "{text}");
        assert_eq!(rig.look(&draft, &baseline, &[created.id]).await, Sighting::Absent, "{text}: another's is not ours");
    }
}

#[tokio::test]
async fn a_link_that_comes_back_in_another_spelling_leaves_doubt_and_never_absence() {
    let rig = Rig::new().await;
    rig.settings(json!({ "encode_links": true })).await;
    let (draft, baseline) = (draft("read https://example.com/caf\u{e9} now"), rig.baseline());
    rig.connector.create(&rig.call(), &draft, &[]).await.expect("it is accepted");
    assert!(matches!(rig.look(&draft, &baseline, &[]).await, Sighting::Unclear { .. }));
}

#[tokio::test]
async fn a_server_that_speaks_of_posts_instead_of_tweets_is_understood() {
    let rig = Rig::new().await;
    rig.settings(json!({ "naming": "post" })).await;
    let (draft, baseline) = (draft("by another name"), rig.baseline());
    let created = rig.connector.create(&rig.call(), &draft, &[]).await.expect("it is accepted");
    assert_eq!(rig.look(&draft, &baseline, &[]).await, Sighting::Found(created));
}

#[tokio::test]
async fn a_lost_answer_is_uncertain_and_a_refused_connection_is_not() {
    let rig = Rig::new().await;
    for effect in [json!("accept_then_drop"), json!("drop_before"), json!({ "hang_ms": 5000 }), json!("malformed")] {
        rig.sandbox.fault(json!({ "service": "x", "operation": "tweets.create", "effect": effect })).await;
        let text = format!("with {effect}");
        let error = rig.connector.create(&rig.call(), &draft(&text), &[]).await.expect_err("no answer");
        assert_eq!(class_name(&error.class()), "uncertain", "{effect}");
    }
    let Rig { mut sandbox, account, log, .. } = rig;
    // On a connection from before, the end of its server would be another lost answer.
    let connector = connector_to(&sandbox);
    sandbox.program.kill().await;
    let call = Call { account: &account, witness: &log };
    let error = connector.create(&call, &draft("nobody"), &[]).await.expect_err("nobody listens");
    assert_eq!(class_name(&error.class()), "retry");
}

#[tokio::test]
async fn a_refreshed_token_works_and_the_old_refresh_token_does_not() {
    let mut rig = Rig::new().await;
    let pair = rig.connector.refresh(&rig.refresh_token.clone().into(), &rig.log).await.expect("it is fresh");
    assert!(pair.expires_in > std::time::Duration::from_secs(60));
    rig.account.access_token = pair.access_token;
    rig.connector.create(&rig.call(), &draft("refreshed"), &[]).await.expect("the new token works");
    let error = rig.connector.refresh(&rig.refresh_token.clone().into(), &rig.log).await.expect_err("used up");
    assert_eq!(class_name(&error.class()), "reconnect");
}

#[tokio::test]
async fn what_is_deleted_is_gone_and_deleting_it_again_is_no_error() {
    let rig = Rig::new().await;
    let (draft, baseline) = (draft("short-lived"), rig.baseline());
    let created = rig.connector.create(&rig.call(), &draft, &[]).await.expect("it is accepted");
    for _ in 0..2 {
        rig.connector.delete(&rig.call(), &created.id).await.expect("it is deleted");
    }
    assert_eq!(rig.look(&draft, &baseline, &[]).await, Sighting::Absent);
}

#[tokio::test]
async fn a_video_goes_up_in_pieces_and_waits_for_the_platform() {
    let rig = Rig::new().await;
    let (staged, steps) = upload(&rig, MediaKind::Video, "video/mp4", clip()).await;
    // Begin, two pieces, end, and at least one look.
    assert!(steps >= 4, "{steps} steps");
    assert!(staged.lifetime.is_some());
    let mut with_video = draft("a video");
    with_video.media.push(DraftMedia { kind: MediaKind::Video, alt_text: None });
    let baseline = rig.baseline();
    let created = rig.connector.create(&rig.call(), &with_video, &[staged]).await.expect("it is accepted");
    assert_eq!(rig.look(&with_video, &baseline, &[]).await, Sighting::Found(created));
}

#[tokio::test]
async fn an_upload_goes_on_after_every_step_as_if_nothing_had_happened() {
    // Each step here starts from a state that went through text, as it does through the database.
    let rig = Rig::new().await;
    for effect in ["drop_before", "accept_then_drop"] {
        rig.sandbox.fault(json!({ "service": "x", "operation": "media.append", "effect": effect })).await;
    }
    let (staged, _) = upload(&rig, MediaKind::Video, "video/mp4", clip()).await;
    rig.connector.create(&rig.call(), &draft("in pieces"), &[staged]).await.expect("it is whole");
}

#[tokio::test]
async fn an_edge_that_takes_only_small_pieces_gets_smaller_ones() {
    let rig = Rig::new().await;
    rig.settings(json!({ "segment_max_bytes": 1_500_000 })).await;
    let (staged, _) = upload(&rig, MediaKind::Video, "video/mp4", clip()).await;
    rig.connector.create(&rig.call(), &draft("small pieces"), &[staged]).await.expect("it is whole");
}

/// Steps until the platform has the file; a step that fails is taken again from the kept state.
async fn upload(rig: &Rig, kind: MediaKind, content_type: &str, bytes: Vec<u8>) -> (Staged, usize) {
    let facts = MediaFacts {
        kind,
        content_type: content_type.to_owned(),
        size_bytes: bytes.len() as u64,
        width: 320,
        height: 240,
        duration_ms: Some(2000),
        frames: None,
    };
    let memory = Memory(bytes);
    let file = MediaFile { facts: &facts, alt_text: None, bytes: &memory };
    let mut kept: Option<String> = None;
    for steps in 1..100 {
        let state = kept.as_ref().map(|text| {
            let value: Value = serde_json::from_str(text).expect("kept as JSON");
            multivio::platforms::UploadState(value)
        });
        match rig.connector.upload(&rig.call(), &file, state).await {
            Ok(Step::Ready(staged)) => return (staged, steps),
            Ok(Step::Next(state)) => kept = Some(state.0.to_string()),
            Ok(Step::Wait { state, after }) => {
                kept = Some(state.0.to_string());
                tokio::time::sleep(after).await;
            }
            Err(error) => assert_eq!(class_name(&error.class()), "retry", "{error}"),
        }
    }
    panic!("the upload never ends");
}

/// A real clip of a little more than one piece, made once for all tests.
fn clip() -> Vec<u8> {
    use std::{process::Command, sync::OnceLock};
    static CLIP: OnceLock<Vec<u8>> = OnceLock::new();
    CLIP.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("clip.mp4");
        // Noise cannot be compressed: two seconds are as large as is wanted.
        let source = "nullsrc=s=320x240:r=30:d=2,geq=random(1)*255:128:128";
        let status = Command::new("ffmpeg")
            .args(["-v", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "ultrafast"])
            .args(["-qp", "1", "-pix_fmt", "yuv420p", "-movflags", "+faststart"])
            .arg(&path)
            .status()
            .expect("ffmpeg runs");
        assert!(status.success());
        let bytes = std::fs::read(&path).expect("the clip is there");
        assert!(bytes.len() > 4 << 20, "{} bytes are only one piece", bytes.len());
        bytes
    })
    .clone()
}

#[tokio::test]
async fn a_post_that_shows_late_is_absent_first_and_then_found() {
    let rig = Rig::new().await;
    rig.settings(json!({ "visibility_delay_ms": 700 })).await;
    let (draft, baseline) = (draft("late to show"), rig.baseline());
    let created = rig.connector.create(&rig.call(), &draft, &[]).await.expect("it is accepted");
    assert_eq!(rig.look(&draft, &baseline, &[]).await, Sighting::Absent);
    eventually(SOON, "the post to show", || async {
        (rig.look(&draft, &baseline, &[]).await == Sighting::Found(created.clone())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_timeline_of_a_job_can_show_every_exchange_and_no_secret() {
    let rig = Rig::new().await;
    rig.connector.create(&rig.call(), &draft("words of the user"), &[]).await.expect("it is accepted");
    let exchanges = rig.log.0.lock().expect("nothing panics while it is held").clone();
    assert_eq!((exchanges[0].what, exchanges[0].status), ("create", Some(201)));
    let shown = multivio::connections::job::describe(&exchanges[0]).to_string();
    for secret in ["words of the user", "Bearer", "http"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
