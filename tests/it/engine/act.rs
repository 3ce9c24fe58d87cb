//! The tests' own kind of job: a small script. Shared by the tests, which write it, and their worker, which runs it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use multivio::{
    ids::JobId,
    jobs::{Backoff, Job, JobContext, Lane, Queue, Stop, Until, Why},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Does one thing after another, and what it was not told to end with, it ends with success.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Act {
    /// Where to tell what it does: every line is one thing that happened in the world.
    pub witness: Option<u16>,
    /// What the first run does, where it differs.
    pub first: Option<Vec<Step>>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Step {
    /// Tells the witness: a side effect that can be counted.
    Tell(String),
    SleepMs(u64),
    /// Keeps its thread busy or blocked, as a bad neighbour does.
    BlockThreadMs(u64),
    /// Ends the whole process.
    Abort,
    /// Writes a last line on standard error before it ends the process with this code.
    Exit {
        code: i32,
        last_words: String,
    },
    Panic(String),
    Fail(String),
    Retry,
    /// As a server that asks for a very long patience does.
    RetryAfterSeconds(u64),
    SnoozeMs(u64),
    /// Until the event, or so long.
    Park {
        wake: String,
        deadline_ms: u64,
    },
    /// Tells the witness what an earlier run had kept, as `kept:...`, then keeps this.
    Checkpoint(Value),
    /// Ends with this as the result.
    Return(Value),
    ReturnText(String),
    ReturnBytes(usize),
    /// Holds the kernel's timer that ends the process with its lease, for so long.
    GuardedMs(u64),
    /// Ends with the parents' results as its own.
    ReturnParents,
    /// Runs a statement on the product's own pool.
    Statement(String),
    /// Nobody gets as far as running this.
    Unreadable(Unreadable),
}

/// Panics whoever reads it.
#[derive(Debug, Clone)]
pub struct Unreadable;

impl Serialize for Unreadable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Unreadable {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("nobody can read this")
    }
}

impl Act {
    pub fn of(steps: impl Into<Vec<Step>>) -> Self {
        Self { witness: None, first: None, steps: steps.into() }
    }
}

impl Job for Act {
    const KIND: &'static str = "act";
    const QUEUE: Queue = Queue::Ops;
    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_millis(200) };
    type Output = Value;

    async fn run(&self, cx: &JobContext) -> Result<Value, Stop> {
        let steps = self.first.as_ref().filter(|_| cx.run == 1).unwrap_or(&self.steps);
        for step in steps {
            if let Some(result) = self.take(step, cx).await? {
                return Ok(result);
            }
        }
        Ok(Value::Null)
    }
}

impl Act {
    async fn take(&self, step: &Step, cx: &JobContext) -> Result<Option<Value>, Stop> {
        let why = || Why::new("script", "the script says so");
        match step {
            Step::Tell(what) => self.tell(cx.job, what).await?,
            Step::SleepMs(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Step::BlockThreadMs(ms) => std::thread::sleep(Duration::from_millis(*ms)),
            Step::Abort => std::process::abort(),
            Step::Exit { code, last_words } => {
                eprintln!("{last_words}");
                std::process::exit(*code);
            }
            Step::Panic(message) => panic!("{}", raw(message)),
            Step::Fail(code) => return Err(Stop::failed(&raw(code), "the script says so")),
            Step::Retry => return Err(Stop::Retry { after: None, why: why() }),
            Step::RetryAfterSeconds(seconds) => {
                return Err(Stop::Retry { after: Some(Duration::from_secs(*seconds)), why: why() });
            }
            Step::SnoozeMs(ms) => {
                return Err(Stop::Snooze { until: Until::After(Duration::from_millis(*ms)), why: why() });
            }
            Step::Park { wake, deadline_ms } => {
                let deadline = chrono::Utc::now() + Duration::from_millis(*deadline_ms);
                return Err(Stop::Park { wake: raw(wake), deadline, why: why() });
            }
            Step::Checkpoint(state) => {
                let kept = cx.checkpoint().map_or("nothing".to_owned(), Value::to_string);
                self.tell(cx.job, &format!("kept:{kept}")).await?;
                cx.save_checkpoint(state.clone()).await?;
            }
            Step::Return(value) => return Ok(Some(value.clone())),
            Step::ReturnText(text) => return Ok(Some(Value::String(raw(text)))),
            Step::ReturnBytes(bytes) => return Ok(Some(Value::String("x".repeat(*bytes)))),
            Step::GuardedMs(ms) => {
                let guard = cx.arm_lease_guard()?;
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                drop(guard);
            }
            Step::Statement(text) => {
                sqlx::query(sqlx::AssertSqlSafe(text.clone())).execute(cx.db()).await?;
            }
            Step::Unreadable(_) => {}
            Step::ReturnParents => {
                let results = cx.parent_results().await?;
                return Ok(Some(results.into_iter().map(|(_, result)| result).collect()));
            }
        }
        Ok(None)
    }

    async fn tell(&self, job: JobId, what: &str) -> Result<(), Stop> {
        let Some(port) = self.witness else { return Ok(()) };
        let tell = async {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.write_all(format!("{job} {what}\n").as_bytes()).await?;
            stream.shutdown().await
        };
        tell.await.map_err(|error: std::io::Error| Stop::retry("witness_away", error.to_string()))
    }
}

/// `␀` stands for the character that Postgres refuses, and that a script could not be stored with.
fn raw(text: &str) -> String {
    text.replace('␀', "\0")
}

/// The same script in a lane of its own.
macro_rules! act_in {
    ($name:ident, $kind:literal, $lane:ident) => {
        #[derive(Debug, Clone, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Act);

        impl Job for $name {
            const KIND: &'static str = $kind;
            const QUEUE: Queue = Queue::Ops;
            const LANE: Lane = Lane::$lane;
            type Output = Value;

            async fn run(&self, cx: &JobContext) -> Result<Value, Stop> {
                self.0.run(cx).await
            }
        }
    };
}

act_in!(ActTokens, "act_tokens", Tokens);
act_in!(ActWebhooks, "act_webhooks", Webhooks);
