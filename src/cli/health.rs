//! `multivio health`: the question a container runtime asks, answered by the exit code. Needs no other program.
//!
//! The API is asked whether it answers, and nothing else: restarting it mends no database. A worker is healthy while
//! it holds a lease under this host's name, which takes a turning heart and a reachable database.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use sqlx::Connection;

use super::{Failure, Screen};
use crate::{config::Config, db::Session, jobs::Queue, telemetry::chain};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  multivio health                    the API on PORT\n  multivio health --worker           a worker on this host\n  multivio health --worker media     a media worker on this host"
)]
pub struct Arguments {
    /// Ask for a worker on this host, of any queue or of this one, instead of the API
    #[arg(long, value_name = "QUEUE")]
    #[expect(clippy::option_option, reason = "absent, without a queue, with one: what the command line can say")]
    worker: Option<Option<Queue>>,
    /// Seconds until it counts as not answering
    #[arg(long, default_value_t = 4)]
    timeout: u64,
}

pub async fn run(arguments: Arguments, _screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    let looked = async {
        match arguments.worker {
            None => api_answers(&config).await,
            Some(queue) => worker_holds_a_lease(&config, queue).await,
        }
    };
    tokio::time::timeout(Duration::from_secs(arguments.timeout), looked)
        .await
        .unwrap_or_else(|_elapsed| Err(Failure::failed("no answer in time")))
}

async fn api_answers(config: &Config) -> Result<(), Failure> {
    let host = match config.api.host {
        host if host.is_unspecified() => IpAddr::from(Ipv4Addr::LOCALHOST),
        host => host,
    };
    let url = format!("http://{}/health/live", SocketAddr::new(host, config.api.port));
    let answer = crate::local::http_client().get(&url).send().await;
    let answer = answer.map_err(|error| Failure::failed(format!("{url}: {}", chain(&error))))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(Failure::failed(format!("{url} answers {status}"))),
    }
}

async fn worker_holds_a_lease(config: &Config, queue: Option<Queue>) -> Result<(), Failure> {
    let mut connection = Session::worker(&config.database, "multivio health")?.connect().await?;
    let host = crate::jobs::worker::hostname();
    let holds: bool = sqlx::query_scalar(
        "select exists (
            select from workers
            where host = $1 and queue = coalesce($2, queue) and state in ('alive', 'stopping') and lease_expires_at > now())",
    )
    .bind(&host)
    .bind(queue.map(Queue::as_str))
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    let name = queue.map(|queue| format!("{queue} ")).unwrap_or_default();
    if holds { Ok(()) } else { Err(Failure::failed(format!("no {name}worker on {host} holds a lease"))) }
}
