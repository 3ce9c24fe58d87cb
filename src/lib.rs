//! Multivio: write once; it appears, correct and exactly once, on every platform.
//!
//! A table of contents, in reading order.

/// Many small things are made in one thread and dropped in another, which the system's allocator is slow at: with it the
/// API spends a twelfth more of its time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What an upload needed goes back to the system within a second or two, also when nothing comes after it.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 70] = b"narenas:2,background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

// What everything may use.
/// All settings, read once, every problem reported together.
pub mod config;
/// Encryption at rest, bound to the row it belongs to.
pub mod crypto;
/// The pool, its sessions' limits, and the migrations.
pub mod db;
/// Every identifier.
pub mod ids;
/// The one way to speak HTTP to the outside.
pub mod outbound;
/// One token that says "stop", and who listens to it.
pub mod shutdown;
/// Logs and spans; nothing secret passes.
pub mod telemetry;

// Who may do what.
/// What was done, by whom: append-only.
pub mod audit;
/// Credentials, users, workspaces, API keys: who is calling and what they may do.
pub mod identity;

// The heart.
/// The job engine: ledger, belt, relay, worker.
pub mod jobs;

// What the product does.
/// Text transforms through a chain of language models.
pub mod ai;
/// A user's authorised accounts.
pub mod connections;
/// Uploads, probes, renditions: ffmpeg at arm's length.
pub mod media;
/// Memberships on Patreon that give plans.
pub mod patreon;
/// How much a workspace may do: the one place that says no.
pub mod plans;
/// The connector trait and one file per platform.
pub mod platforms;
/// What a user wrote once.
pub mod posts;
/// Publications: phases, reconcile, the publish job.
pub mod publishing;
/// A copy of somebody's data, and its end.
pub mod rights;
/// Everything that is encrypted, moved from one key to the next.
pub mod rotation;
/// How long a text is to each platform, and what else they refuse.
pub mod text;

// How it is reached.
/// Every call of the HTTP API.
pub mod api;
/// The sub-commands of `multivio`.
pub mod cli;
/// What every endpoint shares.
pub mod http;
/// A private Postgres and Redis on this machine.
pub mod local;
/// What the worker binaries share.
pub mod worker;
