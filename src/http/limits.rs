//! Rate limits: so many requests per caller and window, over all processes together.
//!
//! The count of a window stands in Redis. A process does not ask Redis for every request: it takes a block of the
//! window's requests ahead and gives them out by itself, smaller blocks the less is left. The bounds of that:
//!
//! - over all processes never more than `limit` requests pass in a window (windows may meet: 2 x `limit` in any span
//!   as long as one);
//! - a process may hold back at most an eighth of what was left when it last asked, so a caller spread over many
//!   processes may be refused that much early, never late;
//! - without Redis each process counts by itself and gives the whole limit: `limit` x processes.
//!
//! A call that keeps more than a database busy counts for several.

use std::{
    collections::HashMap,
    fmt,
    hash::BuildHasher,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use redis::Script;

use crate::{
    config::ApiConfig,
    ids::{ApiKeyId, UserId},
    jobs::belt::{Belt, BeltError},
    telemetry::chain,
};

const SHARDS: usize = 16;
/// Callers remembered per shard before those with a finished window are forgotten.
const SHARD_ROOM: usize = 4096;
/// Requests taken ahead at most.
const LARGEST_BLOCK: u32 = 1024;
/// Requests in a window for what is no call: far more than whoever watches over an installation makes.
pub const OPEN_LIMIT: u32 = 6000;
/// Longest a request waits for Redis before the process counts by itself.
const REDIS_WAIT: Duration = Duration::from_millis(100);
/// After a failure Redis is left alone this long, so that requests do not queue up behind it.
const REDIS_REST: Duration = Duration::from_secs(1);

/// Who is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    User(UserId),
    /// One key, by the limit that it has: another limit holds at once.
    Key(ApiKeyId, NonZeroU32),
    /// Everybody at one address who did not prove who he is.
    Strangers(IpAddr),
    /// Everybody at one address.
    Address(IpAddr),
    /// Everybody at one address, at what is no call: the documents and the figures.
    Open(IpAddr),
    /// Everybody at one address who asks how we are: counted apart, so that nothing else there uses it up.
    Health(IpAddr),
}

impl Subject {
    pub fn strangers(address: IpAddr) -> Self {
        Self::Strangers(customer(address))
    }

    pub fn address(address: IpAddr) -> Self {
        Self::Address(customer(address))
    }

    pub fn open(address: IpAddr) -> Self {
        Self::Open(customer(address))
    }

    pub fn health(address: IpAddr) -> Self {
        Self::Health(customer(address))
    }
}

/// Of an IPv6 address its /64, which is what one customer has.
pub(super) fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(user) => write!(f, "user:{user}"),
            Self::Key(key, _limit) => write!(f, "key:{key}"),
            Self::Strangers(address) => write!(f, "strangers:{address}"),
            Self::Address(address) => write!(f, "address:{address}"),
            Self::Open(address) => write!(f, "open:{address}"),
            Self::Health(address) => write!(f, "health:{address}"),
        }
    }
}

/// What became of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass {
        /// Requests certainly left in this window.
        remaining: u32,
        resets_in: Duration,
    },
    Refuse {
        retry_in: Duration,
    },
}

pub struct RateLimiter {
    limit: u32,
    address_limit: u32,
    window: Duration,
    shards: [Mutex<HashMap<Subject, Arc<Cell>>>; SHARDS],
    hasher: std::collections::hash_map::RandomState,
    shared: Option<Shared>,
}

/// One caller's share in this process.
#[derive(Default)]
struct Cell {
    bucket: Mutex<Option<Bucket>>,
    /// Only one request at a time asks for more; the others wait for what it brings.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct Bucket {
    /// Requests this process may still let pass.
    left: u32,
    /// Requests nobody has taken yet, when last heard.
    untaken: u32,
    ends: Instant,
}

/// The count that all processes share.
pub struct Shared {
    belt: Belt,
    script: Script,
    /// Milliseconds since `started` until which Redis is left alone.
    rest_until_ms: AtomicU64,
    started: Instant,
}

/// What Redis granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    granted: u32,
    used: u32,
    ends_in: Duration,
}

impl RateLimiter {
    /// Without `shared` every process counts by itself.
    pub fn new(config: &ApiConfig, shared: Option<Shared>) -> Self {
        Self {
            limit: config.rate_limit_requests.max(1),
            address_limit: config.rate_limit_address_requests.max(1),
            window: config.rate_limit_window.max(Duration::from_secs(1)),
            shards: Default::default(),
            hasher: Default::default(),
            shared,
        }
    }

    /// Of one caller.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Of all callers at one address together.
    pub fn address_limit(&self) -> u32 {
        self.address_limit
    }

    pub fn window(&self) -> Duration {
        self.window
    }

    fn limit_of(&self, subject: Subject) -> u32 {
        match subject {
            Subject::User(_) | Subject::Strangers(_) => self.limit,
            Subject::Key(_, limit) => limit.get(),
            Subject::Address(_) => self.address_limit,
            Subject::Open(_) | Subject::Health(_) => OPEN_LIMIT,
        }
    }

    /// Counts a request of `subject` as `cost` requests.
    pub async fn count(&self, subject: Subject, cost: u32) -> Verdict {
        let limit = self.limit_of(subject);
        // Otherwise a small limit would forbid a call altogether.
        let cost = cost.min(limit);
        let cell = self.cell(subject);
        match cell.take(Instant::now(), cost) {
            Ok(verdict) => verdict,
            // Boxed: most requests are within a block that was taken before, and need no room for this.
            Err(_missing) => Box::pin(self.ask(&cell, subject, limit, cost)).await,
        }
    }

    async fn ask(&self, cell: &Cell, subject: Subject, limit: u32, cost: u32) -> Verdict {
        let _turn = cell.asking.lock().await;
        // Whoever had the turn before may have brought some.
        let missing = match cell.take(Instant::now(), cost) {
            Ok(verdict) => return verdict,
            Err(missing) => missing,
        };
        let ask = Ask { subject, missing, limit, window: self.window };
        let grant = match &self.shared {
            Some(shared) => shared.ask(ask).await,
            None => None,
        };
        let now = Instant::now();
        match grant {
            Some(grant) => cell.add(now, grant.granted, limit.saturating_sub(grant.used), grant.ends_in),
            None => cell.put(Bucket { left: limit, untaken: 0, ends: now + self.window }),
        }
        cell.take(now, cost).unwrap_or(Verdict::Refuse { retry_in: grant.map_or(self.window, |grant| grant.ends_in) })
    }

    /// How long `subject` has to wait, when it is known here that it has used up its window. Counts nothing.
    pub fn exhausted(&self, subject: Subject) -> Option<Duration> {
        let shard = &self.shards[self.hasher.hash_one(subject) as usize % SHARDS];
        let cell = lock(shard).get(&subject).cloned()?;
        let bucket = (*lock(&cell.bucket))?;
        let left = bucket.ends.saturating_duration_since(Instant::now());
        (bucket.left == 0 && bucket.untaken == 0 && !left.is_zero()).then_some(left)
    }

    fn cell(&self, subject: Subject) -> Arc<Cell> {
        let shard = &self.shards[self.hasher.hash_one(subject) as usize % SHARDS];
        let mut cells = lock(shard);
        if let Some(cell) = cells.get(&subject) {
            return Arc::clone(cell);
        }
        if cells.len() >= SHARD_ROOM {
            let now = Instant::now();
            cells.retain(|_, cell| lock(&cell.bucket).is_some_and(|bucket| bucket.ends > now));
            if cells.len() >= SHARD_ROOM {
                // A flood of callers: what they took stays counted in Redis, only the blocks in hand are given up.
                cells.clear();
            }
        }
        Arc::clone(cells.entry(subject).or_default())
    }
}

impl Cell {
    /// `Err`: so many more would have to be asked for.
    fn take(&self, now: Instant, cost: u32) -> Result<Verdict, u32> {
        let mut guard = lock(&self.bucket);
        let bucket = guard.as_mut().filter(|bucket| bucket.ends > now).ok_or(cost)?;
        let resets_in = bucket.ends - now;
        if bucket.left >= cost {
            bucket.left -= cost;
            return Ok(Verdict::Pass { remaining: bucket.left.saturating_add(bucket.untaken), resets_in });
        }
        let missing = cost - bucket.left;
        // So many are not to be had: no need to ask before the window ends.
        if bucket.untaken < missing { Ok(Verdict::Refuse { retry_in: resets_in }) } else { Err(missing) }
    }

    /// To what is left of the same window.
    fn add(&self, now: Instant, granted: u32, untaken: u32, ends_in: Duration) {
        let mut guard = lock(&self.bucket);
        let left = guard.filter(|bucket| bucket.ends > now).map_or(0, |bucket| bucket.left);
        *guard = Some(Bucket { left: left.saturating_add(granted), untaken, ends: now + ends_in });
    }

    fn put(&self, bucket: Bucket) {
        *lock(&self.bucket) = Some(bucket);
    }
}

/// What a process asks Redis for.
#[derive(Debug, Clone, Copy)]
struct Ask {
    subject: Subject,
    missing: u32,
    limit: u32,
    window: Duration,
}

/// A panic while counting leaves numbers, not a broken structure: going on with them is right.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Grants at least ARGV[1] or nothing, up to ARGV[2] but at most an eighth of what is left, and says when the window
/// ends.
const SCRIPT: &str = r"
local missing, block, limit, window_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local left = limit - used
local granted = 0
if left >= missing then
  granted = math.max(missing, math.min(block, math.floor(left / 8)))
  used = redis.call('INCRBY', KEYS[1], granted)
end
local ends_in = redis.call('PTTL', KEYS[1])
if ends_in < 0 then
  redis.call('PEXPIRE', KEYS[1], window_ms)
  ends_in = window_ms
end
return {granted, used, ends_in}
";

impl Shared {
    /// In the Redis of the belt, under the installation's own prefix.
    pub fn new(belt: Belt) -> Self {
        Self { belt, script: Script::new(SCRIPT), rest_until_ms: AtomicU64::new(0), started: Instant::now() }
    }

    /// `None` when Redis cannot say.
    async fn ask(&self, ask: Ask) -> Option<Grant> {
        if self.elapsed_ms() < self.rest_until_ms.load(Ordering::Relaxed) {
            return None;
        }
        match tokio::time::timeout(REDIS_WAIT, self.call(ask)).await {
            Ok(Ok(grant)) => Some(grant),
            Ok(Err(error)) => self.rest(&chain(&error)),
            Err(_elapsed) => self.rest("no answer in time"),
        }
    }

    async fn call(&self, ask: Ask) -> Result<Grant, BeltError> {
        let key = format!("{}:rate:{}", self.belt.prefix().await?, ask.subject);
        let block = (ask.limit / 64).clamp(1, LARGEST_BLOCK);
        let window_ms = u64::try_from(ask.window.as_millis()).unwrap_or(u64::MAX);
        let mut call = self.script.prepare_invoke();
        call.key(key).arg(ask.missing).arg(block).arg(ask.limit).arg(window_ms);
        let (granted, used, ends_in_ms) = call.invoke_async::<(u32, u32, u64)>(&mut self.belt.connection()).await?;
        Ok(Grant { granted, used, ends_in: Duration::from_millis(ends_in_ms) })
    }

    fn rest(&self, cause: &str) -> Option<Grant> {
        let rest_ms = u64::try_from(REDIS_REST.as_millis()).unwrap_or(u64::MAX);
        self.rest_until_ms.store(self.elapsed_ms().saturating_add(rest_ms), Ordering::Relaxed);
        tracing::warn!(cause, "rate limits are counted by this process alone for now");
        None
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(limit: u32, window: Duration) -> RateLimiter {
        let config = ApiConfig {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            allowed_origins: Vec::new(),
            trusted_proxies: 0,
            proxy_networks: Vec::new(),
            proxy_header: String::new(),
            rate_limit_requests: limit,
            rate_limit_address_requests: 2 * limit,
            rate_limit_window: window,
            metrics_token: None,
        };
        RateLimiter { window, ..RateLimiter::new(&config, None) }
    }

    fn passes(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Pass { .. })
    }

    #[tokio::test]
    async fn the_limit_holds_under_concurrency_and_each_caller_has_his_own() {
        let limiter = Arc::new(limiter(100, Duration::from_secs(60)));
        let (one, other) = (Subject::User(UserId::new()), Subject::User(UserId::new()));
        let tasks = (0..300).map(|_| {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move { passes(limiter.count(one, 1).await) })
        });
        let passed = futures::future::join_all(tasks).await.into_iter().filter(|passed| *passed.as_ref().unwrap());
        assert_eq!(passed.count(), 100);
        assert!(matches!(limiter.count(one, 1).await, Verdict::Refuse { .. }));
        assert!(matches!(limiter.count(other, 1).await, Verdict::Pass { remaining: 99, .. }));
    }

    #[tokio::test]
    async fn a_dear_call_counts_for_several_and_a_cheap_one_may_still_pass() {
        let limiter = limiter(25, Duration::from_secs(60));
        let subject = Subject::User(UserId::new());
        assert!(matches!(limiter.count(subject, 10).await, Verdict::Pass { remaining: 15, .. }));
        assert!(matches!(limiter.count(subject, 10).await, Verdict::Pass { remaining: 5, .. }));
        assert!(!passes(limiter.count(subject, 10).await));
        assert!(matches!(limiter.count(subject, 5).await, Verdict::Pass { remaining: 0, .. }));
        // A limit below the price of a call makes it rare, and not impossible.
        assert!(passes(limiter.count(Subject::User(UserId::new()), 1_000).await));
    }

    #[tokio::test]
    async fn all_at_one_address_share_a_limit_of_its_own() {
        let limiter = limiter(5, Duration::from_secs(60));
        let address = "192.0.2.1".parse().unwrap();
        for _ in 0..10 {
            assert!(passes(limiter.count(Subject::address(address), 1).await));
        }
        assert!(!passes(limiter.count(Subject::address(address), 1).await));
        assert!(passes(limiter.count(Subject::strangers(address), 1).await), "strangers are counted apart");
    }

    #[tokio::test]
    async fn a_new_window_starts_anew() {
        let limiter = limiter(1, Duration::from_millis(300));
        let subject = Subject::strangers("192.0.2.1".parse().unwrap());
        assert!(passes(limiter.count(subject, 1).await));
        let Verdict::Refuse { retry_in } = limiter.count(subject, 1).await else { panic!("passed beyond the limit") };
        tokio::time::sleep(retry_in).await;
        assert!(passes(limiter.count(subject, 1).await));
    }

    #[tokio::test]
    async fn a_flood_of_callers_does_not_grow_the_memory() {
        let limiter = limiter(10, Duration::from_secs(60));
        for host in 0..(SHARDS * SHARD_ROOM * 2) as u32 {
            limiter.count(Subject::Address(IpAddr::from(host.to_be_bytes())), 1).await;
        }
        let remembered: usize = limiter.shards.iter().map(|shard| lock(shard).len()).sum();
        assert!(remembered <= SHARDS * SHARD_ROOM);
    }

    #[test]
    fn addresses_of_one_customer_are_one_subject() {
        let subject = |text: &str| Subject::address(text.parse().unwrap());
        assert_eq!(subject("2001:db8:0:1::1"), subject("2001:db8:0:1:ffff::2"));
        assert_ne!(subject("2001:db8:0:1::1"), subject("2001:db8:0:2::1"));
        assert_eq!(subject("::ffff:192.0.2.1"), subject("192.0.2.1"));
        assert_ne!(subject("192.0.2.1"), subject("192.0.2.2"));
    }
}
