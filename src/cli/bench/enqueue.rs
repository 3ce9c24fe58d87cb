//! `multivio bench enqueue`: the production API under load, through auth, rate limit, validation and a durable
//! commit, beside a poem server that does nothing under the same load.

use std::{sync::Arc, time::Duration};

use clap::Args;
use secrecy::ExposeSecret;

use super::{
    limits::Updates,
    load::{self, Load, Plan},
    report::{Figure, Target},
    stage::{self, Ground, Program, Stage},
};
use crate::{
    cli::{Failure, working::spinner},
    identity::{Caller, LocalTokens, Scope, Scopes},
    ids::{TenantId, UserId},
};

const TARGET_PER_SECOND: f64 = 15_000.0;
const TARGET_P99_MS: f64 = 10.0;
const WARM_UP: Duration = Duration::from_secs(1);
const HELLO_LASTS: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Args)]
pub struct Sizes {
    /// Connections, with one request at a time on each
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// How long it lasts
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { connections: 64, seconds: 10 }
    }
}

pub async fn run(stage: &Stage, sizes: &Sizes) -> Result<Vec<Figure>, Failure> {
    let ground = stage.ground("enqueue").await?;
    let figures = measure(stage, &ground, sizes).await?;
    stage.clear(ground).await?;
    Ok(figures)
}

async fn measure(stage: &Stage, ground: &Ground, sizes: &Sizes) -> Result<Vec<Figure>, Failure> {
    let hello = hello(stage, ground, sizes).await?;
    let commits = Updates::prepare(ground).await?.commits().await?;

    let (mut api, address) = serve(stage, ground, &["api", "--listen"]).await?;
    let head = head(ground)?;
    let request = Arc::new(move |number: u64, out: &mut Vec<u8>| {
        let body = format!(
            "{{\"content\":\"{number:020} {}\",\"transformation_type\":\"shorten\",\"stream\":false,\"cache\":false}}",
            "The launch moved to Thursday, because the rocket's second stage needs another look. ".repeat(2),
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(format!("content-length: {}\r\n\r\n{body}", body.len()).as_bytes());
    });
    let plan = Plan { address, connections: sizes.connections.into(), lasts: WARM_UP, status: 202, request };
    spinner("warming the API up", load::run(plan.clone())).await?;
    let before = jobs(ground).await?;
    let cpu_before = api.cpu();
    let lasts = Duration::from_secs(sizes.seconds.into());
    let load = spinner("enqueueing over HTTP", load::run(Plan { lasts, ..plan })).await?;
    let cpu = api.cpu() - cpu_before;
    let written = jobs(ground).await? - before;
    api.stop().await;
    if written < load.answers {
        return Err(Failure::failed(format!(
            "{} answers said 202, but {written} jobs are in the ledger",
            load.answers
        )));
    }
    let what = format!("HTTP enqueue, {} connections", sizes.connections);
    Ok(vec![
        Figure::new(what.clone(), load.per_second, "requests/s")
            .beside("poem hello", hello.per_second, "requests/s")
            .target(Target::AtLeast(TARGET_PER_SECOND)),
        Figure::new(format!("{what}: p50"), ms(load.p50), "ms").beside("poem hello", ms(hello.p50), "ms"),
        Figure::new(format!("{what}: p99"), ms(load.p99), "ms")
            .beside("poem hello", ms(hello.p99), "ms")
            .target(Target::AtMost(TARGET_P99_MS)),
        Figure::new("HTTP enqueue beside single commits", load.per_second, "jobs/s").beside(
            "commits, 2 connections",
            commits,
            "commits/s",
        ),
        Figure::new("API CPU a request", cpu.as_secs_f64() * 1e6 / load.answers as f64, "us"),
    ])
}

/// What the load meets when nothing is behind the server.
async fn hello(stage: &Stage, ground: &Ground, sizes: &Sizes) -> Result<Load, Failure> {
    let (server, address) = serve(stage, ground, &["bench", "hello"]).await?;
    let head = head(ground)?.replace("/api/v1/ai/transform", "/");
    let request = Arc::new(move |_: u64, out: &mut Vec<u8>| {
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(b"content-length: 2\r\n\r\n{}");
    });
    let plan = Plan { address, connections: sizes.connections.into(), lasts: HELLO_LASTS, status: 200, request };
    let load = spinner("measuring the limit: poem hello", load::run(plan)).await?;
    server.stop().await;
    Ok(load)
}

async fn serve(stage: &Stage, ground: &Ground, args: &[&str]) -> Result<(Program, std::net::SocketAddr), Failure> {
    let address = stage::free_address()?;
    let text = address.to_string();
    let args: Vec<&str> = args.iter().copied().chain([text.as_str()]).collect();
    let mut program = stage.program(ground, "multivio", &args)?;
    program.ready(async || stage::is_ready(address).await).await?;
    Ok((program, address))
}

/// Everything of a request but its length and body.
fn head(ground: &Ground) -> Result<String, Failure> {
    let jwt = ground.config.jwt.as_ref().ok_or_else(|| Failure::failed("the bench has no token secret"))?;
    let tokens = LocalTokens::new(jwt).map_err(|weak| Failure::failed(weak.to_string()))?;
    let scopes = Scopes::of([Scope::Workspace]);
    let token = tokens.issue(&Caller::new(TenantId::new(), UserId::new(), scopes), None);
    Ok(format!(
        "POST /api/v1/ai/transform HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\n",
        token.expose_secret()
    ))
}

async fn jobs(ground: &Ground) -> Result<u64, Failure> {
    let count: i64 = sqlx::query_scalar("select count(*) from jobs where queue = 'ai'").fetch_one(&ground.db).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
