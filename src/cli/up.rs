//! `multivio up`: the whole product on this machine, until Ctrl-C. A second Ctrl-C does not wait for what runs.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use secrecy::ExposeSecret;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Failure, Screen, token};
use crate::{
    identity::{LocalTokens, Scope},
    local::{LocalError, Stack, StackError, StackOptions},
    telemetry::chain,
};

/// How long the token on the screen is good for: a day's work.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  multivio up --sandbox        no account anywhere is needed\n  multivio up --listen 127.0.0.1:0\n\nOther shells get the same settings with: set -a; . .multivio/env; set +a"
)]
pub struct Arguments {
    /// Folder for everything that is kept: databases, media, secrets, logs
    #[arg(long, value_name = "FOLDER", default_value = ".multivio")]
    data: PathBuf,
    /// Where the API listens, port 0 for any that is free [default: HOST and PORT]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Put the sandbox in the place of every outside service
    #[arg(long)]
    sandbox: bool,
    /// Show what every program writes to its log
    #[arg(long, short)]
    verbose: bool,
}

/// Where everything is.
#[derive(Debug, Serialize)]
struct Addresses {
    api: String,
    docs: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
    logs: PathBuf,
    settings: PathBuf,
    token: String,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let options = StackOptions {
        folder: arguments.data,
        listen: arguments.listen,
        sandbox: arguments.sandbox,
        verbose: arguments.verbose,
        defaults: Vec::new(),
    };
    let stack = Stack::start(options, &signals.stop, |doing| eprintln!("{doing} ...")).await;
    let stack = match stack {
        Err(StackError::Stopped) => return Ok(()),
        other => other?,
    };
    let addresses = Addresses {
        api: stack.api_url.clone(),
        docs: format!("{}/docs", stack.api_url),
        sandbox: stack.sandbox_url.clone(),
        logs: stack.logs(),
        settings: stack.folder().join("env"),
        token: developer_token(&stack)?,
    };
    screen.show(&addresses, || describe(&addresses))?;
    signals.stop.cancelled().await;
    eprintln!("stopping ...");
    stack.stop(&signals.hurry).await?;
    Ok(())
}

/// A token of the developer's own workspace, for this installation.
pub(super) fn developer_token(stack: &Stack) -> Result<String, Failure> {
    let jwt = stack.config.jwt.as_ref().expect("a stack has a secret, its own where none was given");
    let tokens = LocalTokens::new(jwt).map_err(|weak| Failure::usage(weak.to_string()))?;
    let caller = token::developer(Scope::ALL);
    Ok(tokens.issue(&caller, Some(TOKEN_LIFETIME)).expose_secret().to_owned())
}

fn describe(addresses: &Addresses) -> String {
    let mut lines = vec![
        "Multivio is up.".to_owned(),
        format!("  API        {}", addresses.api),
        format!("  documents  {}", addresses.docs),
    ];
    if let Some(sandbox) = &addresses.sandbox {
        lines.push(format!("  sandbox    {sandbox}"));
    }
    lines.push(format!("  logs       {}", addresses.logs.display()));
    lines.push(format!("  settings   set -a; . {}; set +a", addresses.settings.display()));
    lines.push(format!("  token      {}", addresses.token));
    if std::io::stdout().is_terminal() {
        lines.push("Ctrl-C stops everything.".to_owned());
    }
    lines.join("\n")
}

/// The first request to stop, and the second, which means at once.
pub(super) struct Signals {
    pub stop: CancellationToken,
    pub hurry: CancellationToken,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Failure> {
        let hear = |kind| signal(kind).map_err(|error| Failure::failed(format!("signals cannot be heard: {error}")));
        // A closed terminal counts as well: nothing may be left running that nobody sees.
        let mut signals = [hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?, hear(SignalKind::hangup())?];
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        let tokens = [stop.clone(), hurry.clone()];
        tokio::spawn(async move {
            let [interrupt, terminate, hangup] = &mut signals;
            for token in tokens {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(Self { stop, hurry })
    }
}

impl From<StackError> for Failure {
    fn from(error: StackError) -> Self {
        match error {
            StackError::Config(error) => error.into(),
            error => Self::failed(chain(&error)),
        }
    }
}

impl From<LocalError> for Failure {
    fn from(error: LocalError) -> Self {
        Self::failed(chain(&error))
    }
}
