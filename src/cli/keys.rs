//! `multivio keys rotate`: encrypts everything that is kept with the first key, while the product runs.
//!
//! Can be broken off and started again at any time. Exit code 0 means that the older keys are not needed any more.

use std::io::IsTerminal;

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::{Failure, Screen};
use crate::{
    audit::{self, Action},
    config::DatabaseConfig,
    crypto::{Keyring, Standing},
    db::{Session, pooler},
    rotation::{self, Count, Outcome},
};

#[derive(Debug, Args)]
#[command(after_help = "\
To change the key, give every program the new one in three steps; nothing stops meanwhile:
  1. ENCRYPTION_KEYS_OLD=<new>                    now all can read it
  2. ENCRYPTION_KEY=<new> ENCRYPTION_KEYS_OLD=<old>   now all write with it
  3. multivio keys rotate                         and, when it is done, remove ENCRYPTION_KEYS_OLD")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encrypt with ENCRYPTION_KEY what the keys in ENCRYPTION_KEYS_OLD encrypted
    Rotate {
        /// Change nothing; say what is left, and exit with 1 if anything is
        #[arg(long)]
        check: bool,
    },
}

/// Secrets of one column under one key.
#[derive(Debug, Serialize)]
struct Line {
    what: String,
    key: String,
    standing: &'static str,
    secrets: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    resealed: u64,
    secrets: Vec<Line>,
    /// What could not be read, and how often.
    unreadable: Vec<(String, u64)>,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let Command::Rotate { check } = arguments.command;
    let config = super::config()?;
    let keyring = Keyring::new(&config.encryption_keys).map_err(|error| Failure::usage(error.to_string()))?;
    let database = DatabaseConfig { max_connections: 1, ..config.database };
    // Counting reads whole tables, which may take longer than any statement of the product may.
    let session = Session::worker(&database, "multivio keys")?.set("statement_timeout", "600000");
    pooler::prove(&session).await?;
    let db = session.pool(database.acquire_timeout, database.max_connections);
    let before = rotation::survey(&db, &keyring).await?;
    let mut outcome = Outcome::default();
    let mut counts = before;
    if !check {
        // Written down first: it is done in many transactions, and any of them may be the last.
        let key = keyring.current_id();
        let mut connection = db.acquire().await?;
        audit::record_by_operator(&mut connection, None, Action::KeysRotated, key, json!({})).await?;
        drop(connection);
        let bar = bar(counts.iter().map(|count| count.rows).sum());
        outcome = rotation::rotate(&db, &keyring, |rows| bar.inc(rows)).await?;
        bar.finish_and_clear();
        counts = rotation::survey(&db, &keyring).await?;
    }
    let report = Report {
        resealed: outcome.resealed,
        secrets: counts.iter().map(Line::of).collect(),
        unreadable: outcome.unreadable.into_iter().collect(),
    };
    screen.show(&report, || describe(&report, check))?;
    verdict(&counts, &report.unreadable, outcome.overtaken, check)
}

/// Whether the older keys can go.
fn verdict(counts: &[Count], unreadable: &[(String, u64)], overtaken: bool, check: bool) -> Result<(), Failure> {
    let (old, _) = rotation::under(counts, Standing::Old);
    let (lost, keys) = rotation::under(counts, Standing::Unreadable);
    if lost > 0 {
        return Err(Failure::failed(format!(
            "{lost} secret(s) are under keys that are not configured: {}",
            keys.join(", ")
        ))
        .remedy(
            "Add those keys to ENCRYPTION_KEYS_OLD. If they are lost, those accounts have to be connected again.",
        ));
    }
    if !unreadable.is_empty() {
        return Err(Failure::failed("some secrets cannot be read and were left as they are").remedy(
            "Connect those accounts again, or restore their rows from a backup; keep the older keys till then.",
        ));
    }
    if overtaken || (old > 0 && !check) {
        return Err(Failure::failed(format!("{old} secret(s) were written with an older key meanwhile")).remedy(
            "A program still runs with the older key as ENCRYPTION_KEY: restart all with the new one, then rotate again.",
        ));
    }
    if old > 0 {
        return Err(Failure::failed(format!("{old} secret(s) are left under older keys"))
            .remedy("Run `multivio keys rotate`; keep the older keys in ENCRYPTION_KEYS_OLD till it is done."));
    }
    Ok(())
}

fn bar(rows: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} secrets, {eta} left");
    ProgressBar::new(rows).with_style(style.expect("the template is constant and valid"))
}

impl Line {
    fn of(count: &Count) -> Self {
        Self {
            what: format!("{}.{}", count.table, count.column),
            key: count.key_id.clone(),
            standing: match count.standing {
                Standing::Current => "current",
                Standing::Old => "old",
                Standing::Unreadable => "not configured",
            },
            secrets: count.rows,
        }
    }
}

fn describe(report: &Report, check: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["SECRETS", "OF", "KEY", "WHICH IS"]);
    for line in &report.secrets {
        table.add_row([&line.secrets.to_string(), &line.what, &line.key, line.standing]);
    }
    let mut text = if report.secrets.is_empty() { "Nothing is encrypted yet.".to_owned() } else { table.to_string() };
    for (error, rows) in &report.unreadable {
        text.push_str(&format!("\n{rows} x {error}"));
    }
    if !check {
        text.push_str(&format!("\n{} encrypted anew.", report.resealed));
    }
    text
}
