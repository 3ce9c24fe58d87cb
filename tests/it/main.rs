//! Everything that is tested through real servers and real programs: one binary, run by `bin/test`.
//!
//! Run it with plain `cargo test`: all tests share one Postgres and one Redis, started with the first test that
//! needs them. (A runner that gives each test a process of its own would start as many.)

#[allow(dead_code, unused_imports, reason = "an offer to every area; each takes what it needs")]
mod harness;

mod adding_a_job_kind;
mod ai;
mod api_jobs;
mod bad_input;
mod connecting;
mod crash;
mod engine;
mod following;
mod http;
mod http_cli;
mod http_hostile;
mod http_idempotency;
mod http_open;
mod http_writes;
mod identity;
mod local;
mod media_api;
mod media_clips;
mod media_hostile;
mod media_import;
mod media_jobs;
mod media_process;
mod media_render;
mod media_stills;
mod migrations;
mod patreon;
mod plans;
mod publish;
mod rights;
mod rotation;
mod secrets;
mod settings;
mod setup;
mod tenancy;
mod whole;
