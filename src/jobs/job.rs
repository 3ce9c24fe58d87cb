//! What a job is: a small value with its kind, its limits and its ids; and what a run of it may come to.

use std::{borrow::Cow, fmt, future::Future, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::JobContext;
use crate::ids::{GroupId, JobId, TenantId};

/// One kind of background work. The value itself is the arguments: ids and facts, never rows; a row may have
/// changed or gone by the time the job runs.
pub trait Job: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Stored with every job: never rename, only add.
    const KIND: &'static str;
    const QUEUE: Queue;
    /// Keeps apart, within a queue, what must not wait for each other.
    const LANE: Lane = Lane::Default;
    /// Failed attempts after which the job fails for good. Snoozes, hand-backs and looks use none.
    const MAX_ATTEMPTS: u16 = 8;
    /// Longest one run may take; a run past it counts as a failed attempt.
    const TIMEOUT: Duration = Duration::from_secs(60);
    const BACKOFF: Backoff = Backoff::DEFAULT;
    /// Whether its statements grow with what there is to do. One that meets the session's time limit may then never fit
    /// into it, and uses an attempt. Elsewhere a statement finds few rows by an index: the limit tells of a server in
    /// trouble or of somebody's lock, which must not fail what waits for it to pass.
    const IS_BULK: bool = matches!(Self::LANE, Lane::Upkeep);

    /// What a success leaves in the ledger.
    type Output: Serialize + Send;

    fn run(&self, cx: &JobContext) -> impl Future<Output = Result<Self::Output, Stop>> + Send;
}

/// Why a run ended without a result. Every failure has to choose one.
#[derive(Debug, Clone)]
pub enum Stop {
    /// A passing trouble: try again, an attempt is used. Without `after` the kind's [`Backoff`] decides.
    Retry { after: Option<Duration>, why: Why },
    /// Nothing is wrong, it is only too early: come back at `until`. No attempt is used.
    Snooze { until: Until, why: Why },
    /// Waits for the event `wake` (see [`super::Engine::wake`]), at most until `deadline`; then it runs again and
    /// decides what lateness means. No attempt is used.
    Park { wake: String, deadline: DateTime<Utc>, why: Why },
    /// The account must be authorised again by its owner; parked until it is, like [`Stop::Park`].
    Reconnect { wake: String, deadline: DateTime<Utc>, why: Why },
    /// It can never succeed as it is.
    Failed { why: Why },
    /// The run noticed that it was cancelled and has cleaned up.
    Cancelled,
}

#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// From now on the server's clock.
    After(Duration),
    At(DateTime<Utc>),
}

/// A reason a person can read: `code` is stable and for programs, `message` is for the timeline.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Why {
    pub code: String,
    pub message: String,
}

impl Why {
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

impl Stop {
    pub fn retry(code: &str, message: impl Into<String>) -> Self {
        Self::Retry { after: None, why: Why::new(code, message) }
    }

    pub fn failed(code: &str, message: impl Into<String>) -> Self {
        Self::Failed { why: Why::new(code, message) }
    }

    pub fn snooze(delay: Duration, code: &str, message: impl Into<String>) -> Self {
        Self::Snooze { until: Until::After(delay), why: Why::new(code, message) }
    }

    /// For kinds that are [`Job::IS_BULK`]: a statement that met its limit was a failed attempt.
    pub(super) fn at_the_limit_used_an_attempt(self) -> Self {
        match self {
            Self::Snooze { why, .. } if why.code == STATEMENT_LIMIT => Self::Retry { after: None, why },
            other => other,
        }
    }
}

const STATEMENT_LIMIT: &str = "statement_limit";

/// A database that is away is nobody's fault: the job waits and no attempt is used.
impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        if crate::db::met_its_limit(&error) {
            let text = "a statement took longer than the database's sessions allow";
            return Self::snooze(Duration::from_secs(2), STATEMENT_LIMIT, text);
        }
        if crate::db::is_away(&error) {
            return Self::snooze(Duration::from_secs(2), "database_away", "the database could not be reached");
        }
        Self::retry("database_error", crate::telemetry::chain(&error))
    }
}

/// How long to wait before each new attempt: exponential, with full jitter so that a crowd spreads out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub cap: Duration,
}

impl Backoff {
    pub const DEFAULT: Self = Self { base: Duration::from_secs(2), cap: Duration::from_secs(15 * 60) };
}

macro_rules! stored_names {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|name| name.as_str() == text).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|name| name.as_str()).collect();
                    format!("\"{text}\" is none of {}", names.join(", "))
                })
            }
        }
    };
}

pub(crate) use stored_names;

stored_names! {
    /// Where jobs of one sort wait; each has its own worker binary.
    Queue {
        Publish = "publish",
        Ai = "ai",
        Media = "media",
        /// Tokens, webhooks, mail, upkeep.
        Ops = "ops",
    }
}

impl Queue {
    /// The parts it is divided into. Whatever counts, shows or fills a queue goes through these.
    pub const fn lanes(self) -> &'static [Lane] {
        match self {
            Self::Publish | Self::Ai | Self::Media => &[Lane::Default, Lane::Upkeep],
            Self::Ops => Lane::ALL,
        }
    }
}

stored_names! {
    /// A part of a queue with slots of its own: a hanging webhook never delays a token refresh.
    Lane {
        Default = "default",
        Tokens = "tokens",
        Webhooks = "webhooks",
        Mail = "mail",
        /// Files fetched from servers of strangers.
        Imports = "imports",
        Upkeep = "upkeep",
    }
}

stored_names! {
    /// Which of two runnable jobs of a queue goes first. Low priority is slow, never starved.
    Priority {
        High = "high",
        Normal = "normal",
        Low = "low",
    }
}

stored_names! {
    /// Where a job is in its life.
    State {
        /// For other jobs: parents, or its turn in a serial order.
        Waiting = "waiting",
        /// For a time: its due time, a retry, a snooze, or an event with a deadline.
        Scheduled = "scheduled",
        /// Runnable: for a worker.
        Queued = "queued",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

impl State {
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

stored_names! {
    /// What a parent that did not succeed (failed, cancelled, pruned) means for its child.
    OnParent {
        /// The child is cancelled.
        Cancel = "cancel",
        /// The child runs all the same and looks for itself.
        Run = "run",
    }
}

/// A job about to be written to the ledger.
#[derive(Debug, Clone)]
pub struct NewJob {
    pub id: JobId,
    pub tenant: TenantId,
    pub kind: Cow<'static, str>,
    pub queue: Queue,
    pub lane: Lane,
    pub priority: Priority,
    /// Written once: the ledger takes the text as it is.
    pub args: Box<RawValue>,
    pub max_attempts: u16,
    pub timeout: Duration,
    /// `None`: at once.
    pub run_at: Option<DateTime<Utc>>,
    pub group: Option<GroupId>,
    /// At most one unfinished job of a kind and tenant carries the same key.
    pub unique_key: Option<String>,
    /// Jobs with the same key run one after another, in order of due time, then creation.
    pub serial_key: Option<String>,
    /// How long past its due time it waits for predecessors that back off; `None`: as long as it takes.
    pub serial_patience: Option<Duration>,
    pub parents: Vec<(JobId, OnParent)>,
}

impl NewJob {
    /// # Panics
    /// When the arguments cannot be written as JSON, which plain data always can.
    pub fn of<J: Job>(job: &J, tenant: TenantId) -> Self {
        Self {
            id: JobId::new(),
            tenant,
            kind: Cow::Borrowed(J::KIND),
            queue: J::QUEUE,
            lane: J::LANE,
            priority: Priority::Normal,
            args: serde_json::value::to_raw_value(job).expect("arguments are plain data"),
            max_attempts: J::MAX_ATTEMPTS,
            timeout: J::TIMEOUT,
            run_at: None,
            group: None,
            unique_key: None,
            serial_key: None,
            serial_patience: None,
            parents: Vec::new(),
        }
    }

    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    pub fn run_at(mut self, at: DateTime<Utc>) -> Self {
        self.run_at = Some(at);
        self
    }

    pub fn group(mut self, group: GroupId) -> Self {
        self.group = Some(group);
        self
    }

    pub fn unique(mut self, key: impl Into<String>) -> Self {
        self.unique_key = Some(key.into());
        self
    }

    pub fn serial(mut self, key: impl Into<String>) -> Self {
        self.serial_key = Some(key.into());
        self
    }

    pub fn serial_patience(mut self, patience: Duration) -> Self {
        self.serial_patience = Some(patience);
        self
    }

    pub fn after(mut self, parent: JobId, on_parent: OnParent) -> Self {
        self.parents.push((parent, on_parent));
        self
    }
}
