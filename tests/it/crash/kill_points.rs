//! A worker is killed at every request that publishing makes, on either side of it. The places are not listed here:
//! a wire between the worker and its servers finds them (T2).

use std::sync::Arc;

use multivio::jobs::Queue;
use serde_json::{Value, json};

use crate::{
    harness::{Proxy, Servers, Side, Tripwire, Worker, eventually},
    publish::{SOON, Stage, picture},
};

/// Lanes that share the places among them, so that the waiting of one is the work of another.
const LANES: usize = 4;
/// No way of a post onto the platform is this long: the places have to end by themselves.
const TOO_MANY: usize = 200;

/// Pictures of one post, each known by its width at the platform; the wider ones carry a description, which is a step
/// more.
const WIDTHS: [u32; 4] = [640, 320, 480, 160];
const DESCRIBED_FROM: u32 = 480;

/// One installation whose worker speaks through wires.
struct Lane {
    stage: Stage,
    /// What each post carries.
    media: Vec<Value>,
    tripwire: Arc<Tripwire>,
    _wires: [Proxy; 2],
    worker: Worker,
}

impl Lane {
    /// Whose posts carry pictures of these widths.
    async fn new(widths: &[u32]) -> Self {
        let mut stage = Stage::new().await;
        // Duplicates are to show as such: the platform does not help.
        stage.settings(json!({ "duplicate_window_s": 0 })).await;
        let media = ready_media(&stage, widths).await;
        let tripwire = Arc::new(Tripwire::new(belongs_to_a_job));
        let servers = Servers::shared();
        let sandbox_port = stage.sandbox.url().rsplit(':').next().and_then(|port| port.parse().ok());
        let wires = [
            Proxy::hung_with(servers.postgres_port(), &tripwire).await,
            Proxy::hung_with(sandbox_port.expect("an address ends in its port"), &tripwire).await,
        ];
        let database = servers.database_url_at(stage.app.db.name(), wires[0].port());
        stage.app.set("DATABASE_URL", secrecy::ExposeSecret::expose_secret(&database));
        for (name, value) in multivio::local::sandbox_settings(&format!("http://127.0.0.1:{}", wires[1].port())) {
            stage.app.set(&name, value);
        }
        // The API leads the relay: what a leader does comes by the clock.
        eventually(SOON, "the API to lead", || async {
            sqlx::query_scalar::<_, i64>("select epoch from relay_leader where expires_at > now()")
                .fetch_optional(&stage.app.pool)
                .await
                .ok()?
        })
        .await;
        let worker = stage.worker().await;
        Self { stage, media, tripwire, _wires: wires, worker }
    }

    /// Publishes one post on an account of its own while the trap is set; whether the worker died by it.
    async fn publish(&mut self, text: &str, trap: Option<(usize, Side)>) -> bool {
        self.stage.account = self.stage.sandbox.post("/_sandbox/x/accounts", json!({})).await;
        self.stage.connection = self.stage.connect(&self.stage.account.clone()).await;
        self.tripwire.arm(trap);
        let request = json!({ "text": text, "connections": [self.stage.connection], "media": self.media });
        let publication = self.stage.publish_with(request).await;
        let died = tokio::select! {
            () = self.tripwire.sprung() => true,
            () = self.everything_ended() => false,
        };
        if died {
            self.replace_the_worker().await;
        }
        self.stage.until(&publication, "sent").await;
        self.everything_ended().await;
        let open: i64 = sqlx::query_scalar("select count(*) from publication_intents where outcome = 'open'")
            .fetch_one(&self.stage.app.pool)
            .await
            .expect("the database answers");
        assert_eq!(open, 0, "an intent is open after {text}");
        died
    }

    async fn replace_the_worker(&mut self) {
        self.worker.crash();
        let id = self.worker.id;
        eventually(SOON, "the death to be recorded", || async {
            let state: String = sqlx::query_scalar("select state from workers where id = $1")
                .bind(id)
                .fetch_one(&self.stage.app.pool)
                .await
                .ok()?;
            (state == "crashed").then_some(())
        })
        .await;
        // A new one, because one that dies again and again is started ever more slowly.
        self.worker = self.stage.app.worker(Queue::Publish).await;
    }

    async fn everything_ended(&self) {
        eventually(SOON, "every job to end", || async {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from jobs where finished_at is null and kind in ('publish', 'reconcile')",
            )
            .fetch_one(&self.stage.app.pool)
            .await
            .ok()?;
            (open == 0).then_some(())
        })
        .await;
    }

    async fn copies(&self, text: &str) -> usize {
        self.pictures(text).await.len()
    }

    /// Of every post with this text, the widths of its pictures in their order.
    async fn pictures(&self, text: &str) -> Vec<Vec<u64>> {
        let widths = |post: &Value| {
            let media = post["media"].as_array().expect("a list");
            media.iter().map(|picture| picture["width"].as_u64().expect("pictures have a width")).collect()
        };
        self.stage.posts().await.iter().filter(|post| post["text"] == text).map(widths).collect()
    }
}

/// Uploaded and made ready for the platform, so that only publishing is left to do.
async fn ready_media(stage: &Stage, widths: &[u32]) -> Vec<Value> {
    if widths.is_empty() {
        return Vec::new();
    }
    let mut media = Vec::new();
    for width in widths {
        let description = (*width >= DESCRIBED_FROM).then(|| format!("{width} wide"));
        media.push(json!({ "media_id": picture::upload(stage, *width).await, "alt_text": description }));
    }
    let _workers = (stage.worker().await, stage.app.worker(Queue::Media).await);
    let request = json!({ "text": "makes the pictures ready", "platforms": ["x"], "media": media });
    let publication = stage.publish_with(request).await;
    stage.until(&publication, "sent").await;
    media
}

/// What comes by the clock, whatever is published, makes no place of its own: heartbeats, elections, schedules.
fn belongs_to_a_job(request: &str) -> bool {
    const BY_THE_CLOCK: [&str; 9] = [
        "update workers",
        "into workers",
        "relay_leader",
        "h (id, run)",
        "and cancel_requested",
        "from installation",
        "schedules",
        "BEGIN",
        "ROLLBACK",
    ];
    !BY_THE_CLOCK.iter().any(|words| request.contains(words))
}

#[tokio::test]
async fn a_worker_killed_at_any_request_on_either_side_of_it_leaves_one_post() {
    let places = killed_everywhere(&[], &[Side::Before, Side::After]).await;
    // Fewer than this, and the wire does not see what it should.
    assert!(places >= 2 * 15, "only {places} places were found");
}

/// Before, between and after the uploads, and wherever a text alone can be met.
#[tokio::test]
async fn a_worker_killed_at_any_request_leaves_one_post_with_its_four_images_in_order() {
    // Outside, just before a request is just after the one before it.
    let sides: &[Side] = if crate::harness::full_size() { &[Side::Before, Side::After] } else { &[Side::After] };
    let places = killed_everywhere(&WIDTHS, sides).await;
    assert!(places >= sides.len() * 30, "only {places} places were found");
}

/// Publishes a post for every place there is, kills the worker there, and looks at what the platform has. How many
/// places there were.
async fn killed_everywhere(widths: &[u32], sides: &[Side]) -> usize {
    let pictures: Vec<u64> = widths.iter().copied().map(u64::from).collect();
    let needed = pictures.len() as u64;
    let lanes = (0..LANES).map(|lane| {
        let pictures = &pictures;
        async move {
            let mut places = 0;
            let mut installation = Lane::new(widths).await;
            for side in sides {
                for place in (lane..TOO_MANY).step_by(LANES) {
                    let text = format!("killed {side:?} request {place}");
                    let before = installation.stage.calls("media.upload").await;
                    let died = installation.publish(&text, Some((place, *side))).await;
                    let seen = installation.tripwire.seen();
                    let last = seen.get(place).map_or("none", String::as_str);
                    assert_eq!(installation.pictures(&text).await, std::slice::from_ref(pictures), "{text}: {last}");
                    // What was there before the kill is not brought again: but for the one whose answer was lost.
                    let uploads = installation.stage.calls("media.upload").await - before;
                    assert!((needed..=needed + needed.min(1)).contains(&uploads), "{uploads} uploads; {text}: {last}");
                    if !died {
                        break;
                    }
                    places += 1;
                }
            }
            let jobs: Vec<(String, i64)> =
                sqlx::query_as("select state::text, count(*) from jobs where kind = 'publish' group by state")
                    .fetch_all(&installation.stage.app.pool)
                    .await
                    .expect("the database answers");
            assert!(jobs.iter().all(|(state, _)| state == "succeeded"), "{jobs:?}");
            places
        }
    });
    futures::future::join_all(lanes).await.into_iter().sum()
}

/// The proof of the proof: with a publication that forgets that its post may exist, the same places make doubles.
#[tokio::test]
async fn without_looking_first_the_same_kill_doubles_the_post() {
    let mut lane = Lane::new(&[]).await;
    // The first one opens connections besides.
    for text in ["a first run", "a clean run"] {
        lane.publish(text, None).await;
    }
    let seen = lane.tripwire.seen();
    let is_create = |request: &str| request.starts_with("POST") && request.contains("/2/tweets");
    let create = seen.iter().position(|request| is_create(request));
    let create = create.unwrap_or_else(|| panic!("the wire saw no creating request among {seen:#?}"));
    sqlx::raw_sql(
        "create function forget() returns trigger language plpgsql as $$ begin \
             if new.fence > old.fence and old.phase = 'sending' then \
                 new.phase := 'uploaded'; \
                 update publication_intents set outcome = 'absent', settled_at = now() \
                 where publication_id = new.id and outcome = 'open'; \
             end if; \
             return new; \
         end $$; \
         create trigger forget before update on publications for each row execute function forget();",
    )
    .execute(&lane.stage.app.pool)
    .await
    .expect("the trigger is made");
    // What else goes over the wire varies by a request or two: until the trap meets what it is for.
    let mut place = create;
    for number in 0..30 {
        let text = format!("sent without looking {number}");
        let died = lane.publish(&text, Some((place, Side::After))).await;
        let seen = lane.tripwire.seen();
        if died && seen.get(place).is_some_and(|request| is_create(request)) {
            let copies = lane.copies(&text).await;
            assert_eq!(copies, 2, "a kill there is one that doubles a post unless somebody looks first");
            return;
        }
        place = seen.iter().position(|request| is_create(request)).unwrap_or(create);
    }
    panic!("no trap met a creating request");
}
