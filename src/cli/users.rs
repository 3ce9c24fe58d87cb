//! `multivio users`: what a person may ask for themselves (a copy of their data, their end), done for them by the operator.

use std::time::Duration;

use clap::{Args, Subcommand};
use futures::TryStreamExt;
use serde_json::json;
use tokio::{io::AsyncWriteExt, time::Instant};

use super::{Failure, Screen};
use crate::{
    audit::{self, Action},
    config::Config,
    db::{Session, TenantDb},
    identity::{Caller, Scope, Scopes, store},
    ids::{ExportId, UserId},
    jobs::{Engine, EnqueueError, belt::Belt},
    media::MediaService,
    rights::{
        begin::{Copying, Ending, NotEnded},
        erasures, exports,
    },
    telemetry::chain,
};

/// How long a copy is waited for: as long as its job may take.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  multivio users export ada@example.com --to ada.jsonl
  multivio users erase usr_01988f6e... --yes

Both are done by the workers of the queue ops, and stand in the audit log as the operator's.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Begin a copy of somebody's data, as POST /api/v1/me/export does; it is kept for them for a week
    Export {
        /// The user's id (usr_...) or verified address
        user: String,
        /// Wait for the copy, and write it to this file, which must not exist
        #[arg(long, value_name = "FILE")]
        to: Option<std::path::PathBuf>,
    },
    /// End somebody and every workspace that is nobody else's, as DELETE /api/v1/me does; it cannot be undone
    Erase {
        /// The user's id (usr_...) or verified address
        user: String,
        /// Say that you mean it
        #[arg(long)]
        yes: bool,
    },
}

/// What stands in for the person's own call.
struct Desk {
    config: Config,
    db: TenantDb,
    engine: Engine,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let config = super::config()?;
    let db = TenantDb::new(&config.database, "multivio users")?;
    let own = Session::worker(&config.database, "multivio users")?.pool(config.database.acquire_timeout, 1);
    let belt = Belt::new(&config.redis.url, own.clone()).map_err(|error| Failure::usage(chain(&error)))?;
    let engine = Engine::for_callers(own, db.clone(), belt);
    let desk = Desk { config, db, engine };
    match arguments.command {
        Command::Export { user, to } => desk.export(&user, to.as_deref(), screen).await,
        Command::Erase { user, yes } => desk.erase(&user, yes, screen).await,
    }
}

impl Desk {
    /// The person, in the workspace where they are when they name none.
    async fn find(&self, user: &str) -> Result<Caller, Failure> {
        let unknown = || {
            Failure::failed(format!("there is no user \"{user}\"")).remedy(
                "Name an id (usr_...), as the audit log and GET /api/v1/me have it, or the one verified address of a user.",
            )
        };
        let mut db = self.db.nobody().await?;
        let id = match user.parse::<UserId>() {
            Ok(id) => id,
            Err(_) => store::user_by_email(&mut *db, user).await?.ok_or_else(unknown)?,
        };
        let access = store::access(&mut *db, id, None).await?.ok_or_else(unknown)?;
        Ok(Caller::new(access.tenant, id, Scopes::of([Scope::Workspace])))
    }

    async fn export(&self, user: &str, to: Option<&std::path::Path>, screen: Screen) -> Result<(), Failure> {
        if to.is_some_and(std::path::Path::exists) {
            return Err(Failure::usage("the file is there already").remedy("Name one that is not, with --to."));
        }
        let person = self.find(user).await?;
        let mut tx = self.db.begin(&person).await?;
        let whose = (person.tenant, person.user);
        let begun = Copying::begin(&self.engine, &mut tx, whose, "user").await.map_err(|error| match error {
            EnqueueError::Duplicate { existing } => {
                Failure::failed(format!("the copy that was asked for before is still being written, by {existing}"))
                    .remedy("Wait for it: `multivio jobs show` tells how it goes.")
            }
            error => Failure::failed(chain(&error)),
        })?;
        audit::record_by_operator_for(&mut tx, &person, Action::UserExported, begun.export, json!({})).await?;
        tx.commit().await?;
        self.engine.ring(&begun.tickets).await;
        if let Some(path) = to {
            self.fetch(&person, begun.export, path).await?;
        }
        let done = json!({"user": person.user, "export": begun.export, "job": begun.job});
        screen.show(&done, || match to {
            Some(path) => format!("A copy of the data of {} is in {}.", person.user, path.display()),
            None => format!(
                "{} writes a copy of the data of {}, who finds it as {} for a week.",
                begun.job, person.user, begun.export
            ),
        })
    }

    async fn fetch(&self, person: &Caller, export: ExportId, path: &std::path::Path) -> Result<(), Failure> {
        let until = Instant::now() + PATIENCE;
        let written = loop {
            let row = exports::of_owner(&mut *self.db.of(person).await?, person.tenant, person.user, export).await?;
            match row {
                Some(row) if let Some(written) = row.written() => break written,
                Some(_) if Instant::now() < until => tokio::time::sleep(POLL).await,
                _ => {
                    return Err(Failure::failed("the copy was not written")
                        .remedy("`multivio jobs list --kind export` says why; a worker of the queue ops writes it."));
                }
            }
        };
        let failed = |error: &dyn std::error::Error| Failure::failed(format!("{}: {}", path.display(), chain(error)));
        let media = MediaService::for_callers(&self.config, self.db.clone()).map_err(|error| failed(&error))?;
        let mut opened = media.storage().open(&written.storage_key, None).await.map_err(|error| failed(&error))?;
        // For nobody else on this machine.
        let mut file = tokio::fs::OpenOptions::new();
        let file = file.write(true).create_new(true).mode(0o600).open(path).await;
        let mut file = file.map_err(|error| failed(&error))?;
        while let Some(bytes) = opened.bytes.try_next().await.map_err(|error| failed(&error))? {
            file.write_all(&bytes).await.map_err(|error| failed(&error))?;
        }
        file.sync_all().await.map_err(|error| failed(&error))
    }

    async fn erase(&self, user: &str, yes: bool, screen: Screen) -> Result<(), Failure> {
        let person = self.find(user).await?;
        if !yes {
            return Err(Failure::usage(format!(
                "this ends {} and every workspace that is nobody else's, for good",
                person.user
            ))
            .remedy("Say that you mean it, with --yes."));
        }
        let mut tx = self.db.begin(&person).await?;
        let begun = Ending::of_user(&self.engine, &mut tx, person.user).await.map_err(|error| match error {
            NotEnded::Database(error) => error.into(),
            error @ (NotEnded::LastOwner { .. } | NotEnded::Enqueue(_)) => Failure::failed(chain(&error)),
        })?;
        let details = json!({"workspaces": begun.workspaces, "left": begun.left});
        audit::record_by_operator_for(&mut tx, &person, Action::UserErased, person.user, details).await?;
        // Last: memberships and keys go with it.
        erasures::forget_user(&mut *tx).await?;
        tx.commit().await?;
        self.engine.ring(&begun.tickets).await;
        let done = json!({"user": person.user, "workspaces": begun.workspaces, "jobs": begun.jobs});
        screen.show(&done, || {
            format!(
                "{} is no user any more, and {} workspace(s) are erased by {} job(s). What runs knows within five seconds.",
                person.user,
                begun.workspaces.len(),
                begun.jobs.len()
            )
        })
    }
}
