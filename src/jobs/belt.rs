//! The belt: Redis lists that carry ids of runnable jobs. The only file that names Redis keys.
//!
//! An id here only says "look at this row": losing all of it loses nothing, an id too many does no harm. Every call
//! has a deadline, and while Redis is away calls fail at once instead of waiting one after another (E7).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, RedisError, RedisResult, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection, PubSub},
};
use secrecy::ExposeSecret;
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{
    job::{Lane, Priority, Queue},
    ledger::Runnable,
};
use crate::{config::RedisConfig, ids::JobId};

/// One list: a lane of a queue, and what it holds of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct List {
    pub queue: Queue,
    pub lane: Lane,
    pub slot: Slot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    Priority(Priority),
    /// Jobs that run alone (E10).
    Suspects,
}

impl List {
    /// Every list there is.
    pub fn all() -> impl Iterator<Item = Self> {
        Queue::ALL.iter().flat_map(|&queue| {
            queue.lanes().iter().flat_map(move |&lane| {
                Priority::ALL
                    .iter()
                    .map(|&priority| Slot::Priority(priority))
                    .chain([Slot::Suspects])
                    .map(move |slot| Self { queue, lane, slot })
            })
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BeltError {
    #[error("Redis could not be reached")]
    Redis(#[from] RedisError),
    #[error("Redis was away a moment ago")]
    Away,
    #[error("the installation's id could not be read")]
    Installation(#[source] sqlx::Error),
}

/// What somebody said on the belt's channels.
#[derive(Debug)]
pub enum Message {
    /// Something about these jobs changed.
    News(Vec<JobId>),
    /// There is work for the relay.
    Bell,
}

/// An event of a job, for whoever follows it.
#[derive(Debug, Clone)]
pub struct Event {
    /// Grows within a job; what `Last-Event-ID` carries.
    pub id: String,
    pub name: String,
    pub data: Value,
}

/// Long enough for a busy server, short enough that a caller with a person waiting gives up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// After a failure, calls fail at once for this long.
const REST: Duration = Duration::from_millis(500);
/// Events of a job that nobody follows any more.
const EVENTS_KEPT: Duration = Duration::from_secs(60 * 60);
/// Newest events kept for a job.
const EVENTS_PER_JOB: usize = 2_000;
/// Most events that one call reads; who gets as many asks again.
pub const EVENTS_AT_ONCE: usize = 500;

/// How every connection to Redis is made. Where an authority is named, its word alone counts.
pub fn client(config: &RedisConfig) -> RedisResult<Client> {
    match &config.authority {
        None => Client::open(config.url.expose_secret()),
        Some(authority) => {
            let certificates = TlsCertificates { client_tls: None, root_cert: Some(authority.pem().to_vec()) };
            Client::build_with_tls(config.url.expose_secret(), certificates)
        }
    }
}

#[derive(Clone)]
pub struct Belt {
    client: Client,
    shared: ConnectionManager,
    db: PgPool,
    prefix: Arc<OnceCell<String>>,
    started: Instant,
    /// Milliseconds since `started` until which Redis counts as away.
    away_until_ms: Arc<AtomicU64>,
}

impl Belt {
    /// Opens no connection yet: a program starts in any order with its servers.
    pub fn new(config: &RedisConfig, db: PgPool) -> Result<Self, BeltError> {
        let client = client(config)?;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_connection_timeout(Some(ANSWER_DEADLINE))
            .set_response_timeout(Some(ANSWER_DEADLINE));
        let shared = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
        let (prefix, away_until_ms) = (Arc::default(), Arc::default());
        Ok(Self { client, shared, db, prefix, started: Instant::now(), away_until_ms })
    }

    /// Appends ids to their lists and returns the longest of these lists' lengths.
    pub async fn push(&self, runnable: &[Runnable]) -> Result<usize, BeltError> {
        let prefix = self.prefix().await?;
        let mut pipe = redis::pipe();
        let mut lists: Vec<List> = runnable.iter().map(|entry| entry.list).collect();
        lists.sort_unstable();
        lists.dedup();
        for list in lists {
            let mut command = redis::cmd("RPUSH");
            command.arg(list_key(prefix, list));
            for entry in runnable.iter().filter(|entry| entry.list == list) {
                command.arg(entry.job.uuid().as_bytes());
            }
            pipe.add_command(command);
        }
        let lengths: Vec<usize> = self.call(pipe.query_async(&mut self.shared.clone())).await?;
        Ok(lengths.into_iter().max().unwrap_or(0))
    }

    pub async fn len(&self, list: List) -> Result<usize, BeltError> {
        let key = list_key(self.prefix().await?, list);
        self.call(redis::cmd("LLEN").arg(key).query_async(&mut self.shared.clone())).await
    }

    pub async fn lens(&self, lists: &[List]) -> Result<Vec<usize>, BeltError> {
        if lists.is_empty() {
            return Ok(Vec::new());
        }
        let prefix = self.prefix().await?;
        let mut pipe = redis::pipe();
        for list in lists {
            pipe.cmd("LLEN").arg(list_key(prefix, *list));
        }
        self.call(pipe.query_async(&mut self.shared.clone())).await
    }

    /// The ids on a list, head first.
    pub async fn contents(&self, list: List) -> Result<Vec<JobId>, BeltError> {
        let key = list_key(self.prefix().await?, list);
        let ids: Vec<Vec<u8>> =
            self.call(redis::cmd("LRANGE").arg(key).arg(0).arg(-1).query_async(&mut self.shared.clone())).await?;
        Ok(job_ids(&ids))
    }

    /// Which building of the belt Redis holds; `None` after it was emptied (E6).
    pub async fn epoch(&self) -> Result<Option<Uuid>, BeltError> {
        let key = format!("{}:epoch", self.prefix().await?);
        let text: Option<String> = self.call(redis::cmd("GET").arg(key).query_async(&mut self.shared.clone())).await?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    /// Empties every list and names the belt anew.
    pub async fn start_anew(&self, epoch: Uuid) -> Result<(), BeltError> {
        let prefix = self.prefix().await?;
        let mut pipe = redis::pipe();
        pipe.atomic();
        for list in List::all() {
            pipe.del(list_key(prefix, list)).ignore();
        }
        pipe.set(format!("{prefix}:epoch"), epoch.to_string()).ignore();
        self.call(pipe.query_async(&mut self.shared.clone())).await
    }

    /// A connection of its own that blocks for ids.
    pub async fn popper(&self) -> Result<Popper, BeltError> {
        let prefix = self.prefix().await?.to_owned();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_DEADLINE))
            // Longer than the longest block: else the server pops ids into an answer that nobody reads.
            .set_response_timeout(Some(Popper::LONGEST_BLOCK + ANSWER_DEADLINE));
        let connection = self.call(self.client.get_multiplexed_async_connection_with_config(&config)).await?;
        Ok(Popper { connection, prefix })
    }

    /// Tells followers that these jobs changed. Lossy.
    pub async fn tell_news(&self, jobs: &[JobId]) -> Result<(), BeltError> {
        let payload: Vec<u8> = jobs.iter().flat_map(|job| *job.uuid().as_bytes()).collect();
        let channel = format!("{}:news", self.prefix().await?);
        self.call(redis::cmd("PUBLISH").arg(channel).arg(payload).query_async(&mut self.shared.clone())).await
    }

    /// Tells the relay not to wait for its next round. Lossy.
    pub async fn ring_relay(&self) -> Result<(), BeltError> {
        let channel = format!("{}:bell", self.prefix().await?);
        self.call(redis::cmd("PUBLISH").arg(channel).arg("").query_async(&mut self.shared.clone())).await
    }

    /// Listens to both channels until the connection ends.
    pub async fn listen(&self) -> Result<PubSub, BeltError> {
        let prefix = self.prefix().await?;
        let connect = tokio::time::timeout(ANSWER_DEADLINE, self.client.get_async_pubsub());
        let mut pubsub = connect.await.map_err(|_| BeltError::Away)??;
        pubsub.subscribe(&[format!("{prefix}:news"), format!("{prefix}:bell")]).await?;
        Ok(pubsub)
    }

    /// What a message on the channels of [`Self::listen`] says.
    pub fn decode(message: &redis::Msg) -> Message {
        if message.get_channel_name().ends_with(":bell") {
            return Message::Bell;
        }
        let ids = message.get_payload_bytes().chunks_exact(16).filter_map(|bytes| Uuid::from_slice(bytes).ok());
        Message::News(ids.map(JobId::from_uuid).collect())
    }

    /// Appends events to their jobs' streams, and tells the followers.
    pub async fn emit(&self, events: &[(JobId, &str, String)]) -> Result<(), BeltError> {
        let prefix = self.prefix().await?;
        let mut pipe = redis::pipe();
        for (job, name, data) in events {
            let key = format!("{prefix}:events:{}", job.uuid().simple());
            pipe.cmd("XADD").arg(&key).arg("MAXLEN").arg("~").arg(EVENTS_PER_JOB).arg("*");
            pipe.arg("e").arg(*name).arg("d").arg(data).ignore();
            pipe.cmd("EXPIRE").arg(&key).arg(EVENTS_KEPT.as_secs()).ignore();
        }
        let () = self.call(pipe.query_async(&mut self.shared.clone())).await?;
        let mut jobs: Vec<JobId> = events.iter().map(|(job, ..)| *job).collect();
        jobs.dedup();
        self.tell_news(&jobs).await
    }

    /// A job's events after `after` (`"0"`: all that are kept), oldest first, at most [`EVENTS_AT_ONCE`].
    pub async fn events(&self, job: JobId, after: &str) -> Result<Vec<Event>, BeltError> {
        let key = format!("{}:events:{}", self.prefix().await?, job.uuid().simple());
        let mut command = redis::cmd("XRANGE");
        command.arg(key).arg(format!("({after}")).arg("+").arg("COUNT").arg(EVENTS_AT_ONCE);
        self.events_by(command).await
    }

    /// The newest event with this name, such as the latest progress.
    pub async fn latest_event(&self, job: JobId, name: &str) -> Result<Option<Event>, BeltError> {
        let key = format!("{}:events:{}", self.prefix().await?, job.uuid().simple());
        let mut command = redis::cmd("XREVRANGE");
        command.arg(key).arg("+").arg("-").arg("COUNT").arg(50);
        Ok(self.events_by(command).await?.into_iter().find(|event| event.name == name))
    }

    async fn events_by(&self, command: redis::Cmd) -> Result<Vec<Event>, BeltError> {
        let rows: Vec<(String, Vec<String>)> = self.call(command.query_async(&mut self.shared.clone())).await?;
        let event = |(id, fields): (String, Vec<String>)| {
            let field = |name: &str| fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone());
            let data = serde_json::from_str(&field("d")?).ok()?;
            Some(Event { id, name: field("e")?, data })
        };
        Ok(rows.into_iter().filter_map(event).collect())
    }

    /// Whether Redis answers, and what about it would harm the belt.
    pub async fn ping(&self) -> Result<(), BeltError> {
        self.call(redis::cmd("PING").query_async::<()>(&mut self.shared.clone())).await
    }

    /// A connection for other short-lived shared state; its keys start with [`Self::prefix`].
    pub fn connection(&self) -> ConnectionManager {
        self.shared.clone()
    }

    /// Carries the database's own id, so that staging beside production never mixes.
    pub async fn prefix(&self) -> Result<&str, BeltError> {
        let read = || async {
            let id: Uuid = sqlx::query_scalar("select id from installation").fetch_one(&self.db).await?;
            Ok(format!("multivio:{}", id.simple()))
        };
        self.prefix.get_or_try_init(read).await.map(String::as_str).map_err(BeltError::Installation)
    }

    async fn call<T>(&self, command: impl Future<Output = Result<T, RedisError>>) -> Result<T, BeltError> {
        let now_ms = || u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if now_ms() < self.away_until_ms.load(Ordering::Relaxed) {
            return Err(BeltError::Away);
        }
        // The manager's own deadlines are per try; this one is for the whole call.
        let outcome = tokio::time::timeout(ANSWER_DEADLINE * 2, command).await.map_err(|_| BeltError::Away);
        let outcome = outcome.and_then(|answer| answer.map_err(BeltError::Redis));
        let rest = u64::try_from(REST.as_millis()).unwrap_or(0);
        // A server that refuses a command is there, whatever the next caller wants of it.
        let is_away = match &outcome {
            Ok(_) => false,
            Err(BeltError::Redis(error)) => error.is_io_error() || error.is_timeout() || error.is_connection_dropped(),
            Err(_) => true,
        };
        let away_until_ms = if is_away { now_ms() + rest } else { 0 };
        self.away_until_ms.store(away_until_ms, Ordering::Relaxed);
        outcome
    }
}

impl std::fmt::Debug for Belt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Belt").finish_non_exhaustive()
    }
}

/// Takes ids off lists, waiting for them.
pub struct Popper {
    connection: MultiplexedConnection,
    prefix: String,
}

impl Popper {
    pub const LONGEST_BLOCK: Duration = Duration::from_millis(500);

    /// At most `limit` ids of the first of `lists` that has any; waits for one up to [`Self::LONGEST_BLOCK`]. Never
    /// drop this future while it waits: ids may be on their way.
    pub async fn pop(&mut self, lists: &[List], limit: usize) -> Result<Option<(List, Vec<JobId>)>, RedisError> {
        let mut command = redis::cmd("BLMPOP");
        command.arg(Self::LONGEST_BLOCK.as_secs_f64()).arg(lists.len());
        for list in lists {
            command.arg(list_key(&self.prefix, *list));
        }
        command.arg("LEFT").arg("COUNT").arg(limit);
        let answer: Option<(String, Vec<Vec<u8>>)> = command.query_async(&mut self.connection).await?;
        Ok(answer.and_then(|(key, ids)| {
            let list = lists.iter().find(|list| list_key(&self.prefix, **list) == key)?;
            Some((*list, job_ids(&ids)))
        }))
    }
}

fn list_key(prefix: &str, list: List) -> String {
    let slot = match list.slot {
        Slot::Priority(priority) => priority.as_str(),
        Slot::Suspects => "suspects",
    };
    format!("{prefix}:list:{}:{}:{slot}", list.queue, list.lane)
}

fn job_ids(ids: &[Vec<u8>]) -> Vec<JobId> {
    ids.iter().filter_map(|bytes| Uuid::from_slice(bytes).ok()).map(JobId::from_uuid).collect()
}
