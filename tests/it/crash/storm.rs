//! Everything that can go wrong, at once, for as long as there is work: workers killed three times a second, Redis
//! emptied, replaced and brought back old, connections cut, Postgres restarted, processes stopped past their leases.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use multivio::jobs::Queue;
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::harness::{Api, App, Program, Proxy, Sandbox, Servers, eventually, full_size, worker_path};

const KILL_EVERY: Duration = Duration::from_millis(300);
/// Each is killed once in this many kills.
const WORKERS: usize = 5;
/// Longer than a lease and all that it takes to notice its end.
const STOPPED_FOR: Duration = Duration::from_secs(12);
const CUT_FOR: Duration = Duration::from_millis(700);

/// What happens besides the killing.
#[derive(Debug, Clone, Copy)]
enum Outage {
    RedisEmptied,
    RedisReplaced,
    /// Comes back as it was at [`Outage::RedisCopied`].
    RedisOld,
    RedisCopied,
    ConnectionsCut,
    PostgresRestarted,
    WorkerStopped,
    LeaderStopped,
}

struct Storm {
    posts: usize,
    posts_per_account: usize,
    pause: Duration,
    outages: Vec<Outage>,
}

impl Storm {
    fn of_this_run() -> Self {
        use Outage::{
            ConnectionsCut, LeaderStopped, PostgresRestarted, RedisCopied, RedisEmptied, RedisOld, RedisReplaced,
            WorkerStopped,
        };
        if full_size() {
            let outages = vec![
                RedisCopied,
                RedisEmptied,
                WorkerStopped,
                RedisReplaced,
                PostgresRestarted,
                RedisEmptied,
                ConnectionsCut,
                RedisOld,
                RedisEmptied,
                LeaderStopped,
                ConnectionsCut,
                PostgresRestarted,
                RedisEmptied,
                RedisReplaced,
                ConnectionsCut,
                RedisEmptied,
            ];
            return Self { posts: 2_000, posts_per_account: 20, pause: Duration::from_secs(4), outages };
        }
        let outages = vec![
            RedisCopied,
            WorkerStopped,
            RedisEmptied,
            PostgresRestarted,
            RedisOld,
            ConnectionsCut,
            LeaderStopped,
            RedisReplaced,
        ];
        Self { posts: 120, posts_per_account: 8, pause: Duration::from_millis(1_500), outages }
    }

    /// How many kills are a storm: of one at each tick for as long as it lasts, that part which the machine may lose to
    /// starting again what was killed.
    fn least_kills(&self) -> usize {
        let ticks = self.lasts().as_millis() / KILL_EVERY.as_millis();
        usize::try_from(ticks * 3 / 4).expect("a few hundred")
    }

    /// About how long it lasts: the posts are spread over it.
    fn lasts(&self) -> Duration {
        let stops =
            self.outages.iter().filter(|outage| matches!(outage, Outage::WorkerStopped | Outage::LeaderStopped));
        self.pause * u32::try_from(self.outages.len()).expect("a few")
            + STOPPED_FOR * u32::try_from(stops.count()).expect("two")
    }
}

/// The installation in the storm. The sandbox is outside of it and keeps what happened.
struct World {
    servers: Servers,
    app: App,
    sandbox: Sandbox,
    api: Api,
    postgres: Proxy,
    redis: Proxy,
    connections: Vec<String>,
}

impl World {
    async fn new(storm: &Storm) -> Self {
        let servers = Servers::private().await;
        let mut app = App::on(&servers).await;
        let sandbox = app.sandbox().await;
        app.set("TWITTER_CREATE_DEADLINE_SECONDS", "2")
            .set("TWITTER_VISIBILITY_SECONDS", "1")
            .set("TWITTER_STALL_SECONDS", "0");
        let (postgres, redis) = (Proxy::to(servers.postgres_port()).await, Proxy::to(servers.redis_port()).await);
        app.set("DATABASE_URL", servers.database_url_at(app.db.name(), postgres.port()).expose_secret());
        app.set("REDIS_URL", servers.redis_url_at(redis.port()).expose_secret());
        let api = app.api().await;
        let mut world = Self { servers, app, sandbox, api, postgres, redis, connections: Vec::new() };
        for _ in 0..storm.posts.div_ceil(storm.posts_per_account) {
            let connection = world.connect().await;
            world.connections.push(connection);
        }
        world.count_successes().await;
        world
    }

    async fn connect(&self) -> String {
        let account = self.sandbox.post("/_sandbox/x/accounts", json!({})).await;
        let (status, answer) =
            self.api.post("/api/v1/connections", crate::publish::connection(&account, &account)).await;
        assert_eq!(status, 201, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// Each time a job comes to success, whoever wrote it.
    async fn count_successes(&self) {
        sqlx::raw_sql(
            "create table successes (job_id uuid not null, kind text not null); \
             create function succeeded() returns trigger language plpgsql security definer as $$ begin \
                 insert into successes values (new.id, new.kind); return new; \
             end $$; \
             create trigger succeeded after update on jobs for each row \
                 when (new.state = 'succeeded' and old.state <> 'succeeded') execute function succeeded();",
        )
        .execute(&self.app.pool)
        .await
        .expect("the trigger is made");
    }

    fn start_worker(&self) -> Program {
        self.app.program(worker_path(Queue::Publish), &[])
    }

    /// As a client does that minds: the same request under the same key until it has an answer.
    async fn publish(&self, number: usize, text: &str) -> String {
        let connection = &self.connections[number % self.connections.len()];
        let request = json!({ "text": text, "connections": [connection] });
        let key = format!("storm-{number}");
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let call = self.api.request(Method::POST, "/api/v1/publish").header("Idempotency-Key", &key).json(&request);
            let answer = match call.send().await {
                Ok(answer) => (answer.status().as_u16(), answer.json::<Value>().await.unwrap_or_default()),
                Err(error) => (0, json!(error.to_string())),
            };
            match answer {
                (202, accepted) => return accepted["publications"][0]["id"].as_str().expect("an id").to_owned(),
                (0 | 409 | 503, _) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
                (status, body) => panic!("{text}: {status} {body}"),
            }
        }
    }

    /// What has not come to an end, and where it hangs: what holds others first.
    async fn unfinished(&self) -> Vec<String> {
        let rows = sqlx::query_scalar(
            "select concat_ws(' ', j.id, j.kind, j.state, 'run', j.run, 'attempt', j.attempt, 'suspect', j.suspect, \
                              'pushed', j.pushed, 'serial', j.serial_key, 'at', j.run_at - now(), 'why', j.why, \
                              'worker', w.state, 'publication', p.phase, p.problem) \
             from jobs j left join publications p on p.job_id = j.id left join workers w on w.id = j.worker_id \
             where j.finished_at is null and j.kind in ('publish', 'reconcile') \
             order by j.state <> 'waiting' desc, j.run > 0 desc, j.seq limit 60",
        );
        rows.fetch_all(&self.app.pool).await.expect("the database answers")
    }

    /// Which process leads the relay, by what the programs say; `None` between two leaders.
    async fn leader(&self, workers: &[Program]) -> Option<u32> {
        let epoch: i64 = sqlx::query_scalar("select epoch from relay_leader where expires_at > now()")
            .fetch_optional(&self.app.pool)
            .await
            .ok()??;
        let says = format!("epoch={epoch}");
        let leads = |line: &str| line.contains("leads the relay") && line.ends_with(&says);
        workers.iter().chain([&self.api.program]).find(|program| program.find_line(leads).is_some()).map(Program::id)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_crashes_and_outages_loses_no_post_and_doubles_none() {
    let storm = Storm::of_this_run();
    let world = World::new(&storm).await;
    let rages = AtomicBool::new(true);
    let kills = AtomicUsize::new(0);
    let feed = async {
        let between = storm.lasts() / u32::try_from(storm.posts).expect("a few thousand");
        let mut clock = tokio::time::interval(between);
        let mut accepted = HashMap::new();
        for number in 0..storm.posts {
            clock.tick().await;
            let text = format!("post {number} of the storm");
            let id = world.publish(number, &text).await;
            assert!(accepted.insert(id, text).is_none(), "two requests made one publication");
        }
        accepted
    };
    let (accepted, ()) = tokio::join!(feed, rage(&world, &storm, &rages, &kills));
    assert_eq!(accepted.len(), storm.posts);

    // The calm: what is left has to come right by itself.
    let _workers: Vec<Program> = (0..2).map(|_| world.start_worker()).collect();
    let patience = Instant::now() + Duration::from_secs(if full_size() { 900 } else { 180 });
    loop {
        let open = world.unfinished().await;
        if open.is_empty() {
            break;
        }
        assert!(Instant::now() < patience, "{} jobs do not end: {open:#?}", open.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (kills, least) = (kills.load(Ordering::Relaxed), storm.least_kills());
    assert!(kills >= least, "{kills} kills are no storm: {least} would be");

    let ends: Vec<(String, String, i64)> = sqlx::query_as(
        "select kind, state::text, count(*) from jobs where kind in ('publish', 'reconcile') group by 1, 2 order by 1, 2",
    )
    .fetch_all(&world.app.pool)
    .await
    .expect("the database answers");
    let count = i64::try_from(storm.posts).expect("a few thousand");
    let succeeded = |kind: &str| (kind.to_owned(), "succeeded".to_owned(), count);
    assert_eq!(ends, [succeeded("publish"), succeeded("reconcile")]);
    let twice: Vec<(String, i64)> =
        sqlx::query_as("select kind, count(*) from successes group by job_id, kind having count(*) > 1")
            .fetch_all(&world.app.pool)
            .await
            .expect("the database answers");
    assert!(twice.is_empty(), "ran to success twice: {twice:?}");

    let posts = world.sandbox.get("/_sandbox/x/posts").await;
    let mut copies: HashMap<&str, usize> = HashMap::new();
    for post in posts.as_array().expect("a list") {
        *copies.entry(post["text"].as_str().expect("a text")).or_default() += 1;
    }
    let wrong: Vec<_> = accepted.values().filter(|text| copies.get(text.as_str()) != Some(&1)).collect();
    assert!(wrong.is_empty(), "lost or doubled: {wrong:?}");
    assert_eq!(copies.len(), storm.posts, "posts that nobody asked for");
}

/// Kills and breaks, until the last outage is over.
async fn rage(world: &World, storm: &Storm, rages: &AtomicBool, kills: &AtomicUsize) {
    let workers = tokio::sync::Mutex::new((0..WORKERS).map(|_| world.start_worker()).collect::<Vec<_>>());
    let killing = async {
        let mut clock = tokio::time::interval(KILL_EVERY);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for turn in 0.. {
            clock.tick().await;
            if !rages.load(Ordering::Relaxed) {
                return;
            }
            let mut workers = workers.lock().await;
            let worker = &mut workers[turn % WORKERS];
            // By turns the process that runs jobs alone, which is watched and started again, and all of it.
            let inner = worker.process().family().get(1).copied();
            match inner.filter(|_| (turn / WORKERS).is_multiple_of(2)) {
                Some(pid) => signal(pid, libc::SIGKILL),
                None => {
                    worker.process().signal_group(libc::SIGKILL);
                    worker.kill().await;
                    *worker = world.start_worker();
                }
            }
            kills.fetch_add(1, Ordering::Relaxed);
        }
    };
    let breaking = async {
        let mut copy = None;
        for outage in &storm.outages {
            tokio::time::sleep(storm.pause).await;
            match outage {
                Outage::RedisCopied => copy = Some(world.servers.control().await.redis.dump().await.expect("a copy")),
                Outage::RedisEmptied => world.servers.control().await.redis.flush().await.expect("it is emptied"),
                Outage::RedisReplaced => {
                    world.servers.control().await.redis.restart_empty().await.expect("it comes back empty");
                }
                Outage::RedisOld => {
                    let copy = copy.as_ref().expect("a copy was made before");
                    world.servers.control().await.redis.restart_from(copy).await.expect("it comes back old");
                }
                Outage::ConnectionsCut => {
                    world.postgres.cut();
                    world.redis.cut();
                    tokio::time::sleep(CUT_FOR).await;
                    world.postgres.mend();
                    world.redis.mend();
                }
                Outage::PostgresRestarted => {
                    world.servers.control().await.postgres.restart().await.expect("it comes back");
                }
                Outage::WorkerStopped => {
                    let stopped = workers.lock().await.swap_remove(0);
                    stop_for_a_while(world, &workers, stopped).await;
                }
                Outage::LeaderStopped => {
                    let leader = eventually(Duration::from_secs(30), "somebody to lead", || async {
                        world.leader(&workers.lock().await).await
                    })
                    .await;
                    let mut among = workers.lock().await;
                    let place = among.iter().position(|worker| worker.id() == leader);
                    let worker = place.map(|place| among.swap_remove(place));
                    drop(among);
                    match worker {
                        Some(worker) => stop_for_a_while(world, &workers, worker).await,
                        None => {
                            signal(leader, libc::SIGSTOP);
                            tokio::time::sleep(STOPPED_FOR).await;
                            signal(leader, libc::SIGCONT);
                        }
                    }
                }
            }
        }
        rages.store(false, Ordering::Relaxed);
    };
    tokio::join!(killing, breaking);
}

/// Out of the killers' reach, another in its place; then it goes on beside the others.
async fn stop_for_a_while(world: &World, workers: &tokio::sync::Mutex<Vec<Program>>, mut stopped: Program) {
    stopped.pause();
    workers.lock().await.push(world.start_worker());
    tokio::time::sleep(STOPPED_FOR).await;
    stopped.resume();
    // Long enough to do harm, if it could.
    tokio::time::sleep(Duration::from_secs(2)).await;
}

fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("process numbers fit their own type");
    // SAFETY: plain numbers; it is a program of ours, or a child of one, that is not reaped yet.
    unsafe { libc::kill(pid, signal) };
}
