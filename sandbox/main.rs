//! `multivio-sandbox`: strict stand-ins for the outside services, for development and tests without accounts.
//!
//! One process, one port. It knows nothing of the product: it is built from what the services document, so
//! that an error in the product cannot be an error here too.

mod clock;
mod control;
mod exchange;
mod faults;
mod firebase;
mod gate;
mod llm;
mod log;
mod page;
mod patreon;
mod state;
mod wire;
mod x;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use poem::{Endpoint, EndpointExt, Request, Response, Route, Server, endpoint::make, get};
use tokio::{signal::unix, sync::watch};

use crate::{
    exchange::Answer,
    gate::Twin,
    state::{Sandbox, Snapshot},
    wire::{Connections, Listener},
};

/// Strict local stand-ins for X, xAI, Together AI, OpenAI, Firebase and Patreon, with fault injection.
///
/// X answers under /x, the language models under /xai/v1, /together/v1 and /openai/v1, Firebase under /firebase, Patreon
/// under /patreon. Tests drive it through /_sandbox (accounts, faults, settings, log); a person looks at / with a
/// browser.
#[derive(Parser)]
#[command(name = "multivio-sandbox", version)]
struct Arguments {
    /// Where to listen; port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: String,

    /// Keep accounts, tokens, posts and media in this file, and the bytes of media in FILE.media, so that they
    /// survive a restart. Written within about 0.1 s of each change and on a proper stop.
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

/// How long open connections may go on after a stop signal.
const GRACE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .init();
    let connections = Connections::default();
    let listener = Listener::bind(&arguments.listen, connections.clone())
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let sandbox = Arc::new(Sandbox::new(connections));
    let (stop, stopped) = watch::channel(false);
    let keeping = match &arguments.state {
        Some(file) => {
            let mut snapshot = Snapshot::at(file);
            snapshot.load(&sandbox.x).with_context(|| format!("cannot read the state in {}", file.display()))?;
            Some(tokio::spawn(snapshot.follow(Arc::clone(&sandbox.x), stopped)))
        }
        None => None,
    };

    let mut terminate = unix::signal(unix::SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = unix::signal(unix::SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    println!("{}", serde_json::json!({"url": format!("http://{}", listener.address())}));
    let signal = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Server::new_with_acceptor(listener)
        .run_with_graceful_shutdown(routes(sandbox), signal, Some(GRACE))
        .await
        .context("the server stopped")?;
    stop.send_replace(true);
    if let Some(keeping) = keeping {
        keeping.await.context("the state was not kept")?.context("the state was not written")?;
    }
    Ok(())
}

fn routes(sandbox: Arc<Sandbox>) -> Route {
    let mut routes = Route::new();
    for twin in &sandbox.twins {
        routes = routes.at(format!("{}/*rest", twin.prefix()), mounted(&sandbox, twin));
    }
    let control = {
        let sandbox = Arc::clone(&sandbox);
        make(move |request| {
            let sandbox = Arc::clone(&sandbox);
            async move { control::answer(&sandbox, request).await }
        })
    };
    let front = {
        let sandbox = Arc::clone(&sandbox);
        make(move |request: Request| {
            let origin = format!("http://{}", request.header("host").unwrap_or("127.0.0.1"));
            let answer = Answer::html(200, page::index(&sandbox, &origin));
            async move { gate::respond(answer, Vec::new(), None) }
        })
    };
    routes
        .at("/_sandbox/*rest", control)
        .at("/", get(front))
        .at("/:username/status/:id", get(permalink(&sandbox)))
        .at("/i/web/status/:id", get(permalink(&sandbox)))
        // For those who take the mount of the twin for x.com itself.
        .at("/x/:username/status/:id", get(permalink(&sandbox)))
        .at("/x/i/web/status/:id", get(permalink(&sandbox)))
}

fn mounted(sandbox: &Arc<Sandbox>, twin: &Arc<dyn Twin>) -> impl Endpoint<Output = Response> + 'static {
    let (sandbox, twin) = (Arc::clone(sandbox), Arc::clone(twin));
    make(move |request| {
        let (sandbox, twin) = (Arc::clone(&sandbox), Arc::clone(&twin));
        async move { gate::pass(sandbox, twin, request).await }
    })
    .map_to_response()
}

fn permalink(sandbox: &Arc<Sandbox>) -> impl Endpoint<Output = Response> + 'static {
    let sandbox = Arc::clone(sandbox);
    make(move |request: Request| {
        let id = request.raw_path_param("id").map(String::from).unwrap_or_default();
        let answer = page::post(&sandbox, &id);
        async move { gate::respond(answer, Vec::new(), None) }
    })
    .map_to_response()
}

#[cfg(test)]
mod tests;
