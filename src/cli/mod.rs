//! The sub-commands of `multivio`, one file each.
//!
//! Results go to standard output, as a table or with `--json` as JSON; everything else goes to standard error. Exit
//! codes: 0 done, 1 it failed, 2 it was asked wrongly or configured wrongly.

use std::{fmt, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::config::{Config, ConfigError};

pub mod api;
pub mod bench;
pub mod check;
pub mod demo;
pub mod health;
pub mod jobs;
pub mod keys;
pub mod migrate;
pub mod openapi;
pub mod plans;
pub mod token;
pub mod up;
pub mod users;
mod working;

/// One line per sub-command: its doc comment is its help, its module has `Arguments` and `run`.
macro_rules! commands {
    ($($(#[$attribute:meta])* $name:ident = $module:ident,)+) => {
        #[derive(Debug, Subcommand)]
        enum Command {
            $($(#[$attribute])* $name($module::Arguments),)+
        }

        async fn dispatch(command: Command, screen: Screen) -> Result<(), Failure> {
            match command {
                $(Command::$name(arguments) => $module::run(arguments, screen).await,)+
            }
        }
    };
}

commands! {
    /// Run everything on this machine, with a Postgres and a Redis of its own
    Up = up,
    /// See all of it at work: everything on this machine, a job of every kind on a real clip
    Demo = demo,
    /// Serve the HTTP API
    Api = api,
    /// Bring the database's schema up to date
    Migrate = migrate,
    /// Check settings, servers and tools; name every problem with its remedy
    Check = check,
    /// Print a token for the API (development and self-hosting)
    Token = token,
    /// The operators' view: list, show, cancel, retry jobs, change their priority; pause and resume queues, their stats
    Jobs = jobs,
    /// Change the key that encrypts what is kept, while everything runs
    Keys = keys,
    /// How much each workspace may do: list, define and give plans
    Plans = plans,
    /// Give roles, disable and enable; do for a person what they may ask for: a copy of their data, their end
    Users = users,
    /// Exit with 0 when this host's API, or a worker, is healthy (for containers)
    Health = health,
    /// Measure this machine with the product on it, each figure beside its limit
    Bench = bench,
    /// Print the OpenAPI document
    #[command(hide = true)]
    Openapi = openapi,
}

/// Write once; it appears, correct and exactly once, on every platform.
#[derive(Debug, Parser)]
#[command(name = "multivio", version, after_help = EXAMPLES)]
pub struct Multivio {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    screen: Screen,
}

const EXAMPLES: &str = "\
Examples:
  multivio up                     everything on this machine, ready to use
  multivio check                  what is missing before anything is started
  multivio migrate && multivio api
  curl -H \"Authorization: Bearer $(multivio token)\" localhost:8080/api/v1/jobs

Settings come from the environment and, in development, from a file .env; .env.sample lists them.";

/// How results are shown.
#[derive(Debug, Clone, Copy, Args)]
pub struct Screen {
    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

impl Screen {
    /// Prints a result: `table` for people, the value itself for programs.
    pub fn show<T: Serialize>(self, value: &T, table: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(value).map_err(|error| Failure::failed(error.to_string()))?
        } else {
            table()
        };
        print_line(&text);
        Ok(())
    }
}

/// Like `println!`, but a reader that has seen enough (`| head`) is no reason to panic.
pub fn print_line(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Why a command did not do what it was asked, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    message: String,
    remedy: Option<String>,
    code: u8,
}

impl Failure {
    /// It was tried and failed: exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: None, code: 1 }
    }

    /// It could not be tried as asked: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: None, code: 2 }
    }

    /// Everything was already said on the screen: exit code 1, no further words.
    pub fn silent() -> Self {
        Self { message: String::new(), remedy: None, code: 1 }
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  {remedy}"),
            None => Ok(()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string()).remedy(".env.sample lists every setting; `multivio check` checks them all.")
    }
}

impl From<crate::http::Problem> for Failure {
    fn from(problem: crate::http::Problem) -> Self {
        Self::failed(problem.document().detail.clone())
    }
}

/// A server that did not answer, or answered with an error.
impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::failed(format!("the database: {}", crate::telemetry::chain(&error))).remedy("`multivio check` says more.")
    }
}

/// The settings, or every problem with them.
pub fn config() -> Result<Config, Failure> {
    Ok(Config::from_env()?)
}

/// Runs a command and turns its outcome into an exit code.
pub fn main(multivio: Multivio) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(threads()).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(dispatch(multivio.command, multivio.screen));
    // A thread that still waits for a name to be resolved must not keep the terminal waiting.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("error: {failure}");
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Half of the cores, as the other half is the database's: with a thread for each, those that wake each other for every
/// call make it a quarter dearer.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Multivio::command().debug_assert();
    }

    #[test]
    fn help_is_a_command_as_well_as_an_option() {
        for words in [&["multivio", "help"][..], &["multivio", "help", "jobs"], &["multivio", "jobs", "help", "list"]] {
            let refused = Multivio::try_parse_from(words).unwrap_err();
            assert_eq!(refused.kind(), clap::error::ErrorKind::DisplayHelp, "{refused}");
        }
    }

    #[test]
    fn a_summary_names_what_its_commands_do() {
        let multivio = Multivio::command();
        let summary =
            |name: &str| multivio.find_subcommand(name)?.get_about().map(|about| about.to_string().to_lowercase());
        for (command, words) in [
            ("jobs", &["list", "show", "cancel", "retry", "priority", "pause", "resume", "stats"][..]),
            ("users", &["role", "disable", "enable", "copy", "end"]),
        ] {
            let summary = summary(command).expect("it says what it is for");
            assert!(words.iter().all(|word| summary.contains(word)), "{summary}");
        }
    }

    #[test]
    fn every_command_and_argument_explains_itself() {
        fn look(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no help");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} of {name} has no help", argument.get_id());
            }
            command.get_subcommands().filter(|command| !command.is_hide_set()).for_each(look);
        }
        Multivio::command().get_subcommands().for_each(look);
        let help = Multivio::command().render_long_help().to_string();
        assert!(help.contains("multivio check") && !help.contains("openapi"), "{help}");
    }
}
