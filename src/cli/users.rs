//! `multivio users`: what only the operator does (administrators, whom nobody lets in), and what a person may ask for
//! themselves (a copy of their data, their end), done for them.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use futures::TryStreamExt;
use serde_json::json;
use sqlx::{Connection, error::DatabaseError};
use tokio::{io::AsyncWriteExt, time::Instant};

use super::{Failure, Screen, working::spinner};
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
  multivio users role ada@example.com admin
  multivio users disable usr_01988f6e...
  multivio users export ada@example.com --to ada.jsonl
  multivio users erase usr_01988f6e... --yes

Copies and ends are done by the workers of the queue ops. All of it stands in the audit log as the operator's.")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make somebody an administrator, who may try all failed jobs again, whosever they are, and
    /// read every audit log, or a user again
    Role {
        /// The user's id (usr_...) or verified address
        user: String,
        /// What they are from now on
        role: Standing,
    },
    /// Let somebody in no more: within five seconds their sign-ins, local tokens and API keys open nothing; what is
    /// scheduled goes out
    Disable {
        /// The user's id (usr_...) or verified address
        user: String,
    },
    /// Let somebody in again
    Enable {
        /// The user's id (usr_...) or verified address
        user: String,
    },
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Standing {
    User,
    Admin,
}

impl Standing {
    fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
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
    let belt = Belt::new(&config.redis, own.clone()).map_err(|error| Failure::usage(chain(&error)))?;
    let engine = Engine::for_callers(own, db.clone(), belt);
    let desk = Desk { config, db, engine };
    match arguments.command {
        Command::Role { user, role } => desk.change(&user, Some(role), None, screen).await,
        Command::Disable { user } => desk.change(&user, None, Some(true), screen).await,
        Command::Enable { user } => desk.change(&user, None, Some(false), screen).await,
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
            Err(_) => store::anybody_by_email(&mut *db, user).await?.ok_or_else(unknown)?,
        };
        let access = store::access(&mut *db, id, None).await?.ok_or_else(unknown)?;
        Ok(Caller::new(access.tenant, id, Scopes::of([Scope::Workspace])))
    }

    /// By the login itself: no role that a program takes may do it.
    async fn change(
        &self,
        user: &str,
        role: Option<Standing>,
        is_disabled: Option<bool>,
        screen: Screen,
    ) -> Result<(), Failure> {
        let person = self.find(user).await?;
        let mut login = Session::login(&self.config.database, "multivio users")?.connect().await?;
        let mut tx = login.begin().await?;
        let change = sqlx::query_scalar("select app.set_user($1, $2, $3)").bind(person.user);
        let changed = change.bind(role.map(Standing::as_str)).bind(is_disabled).fetch_one(&mut *tx).await;
        let is_there: bool =
            changed.map_err(|error| match error.as_database_error().and_then(DatabaseError::code) {
                Some(code) if code == "42501" => Failure::failed("this login of the database may not change users")
                    .remedy("Use the one that migrates: DATABASE_URL of `multivio migrate`."),
                _ => error.into(),
            })?;
        if !is_there {
            return Err(Failure::failed(format!("{} has just gone", person.user)));
        }
        let role = role.map(Standing::as_str);
        sqlx::query("set local role multivio_worker").execute(&mut *tx).await?;
        let details = json!({"role": role, "is_disabled": is_disabled});
        audit::record_by_operator_for(&mut tx, &person, Action::UserChanged, person.user, details).await?;
        tx.commit().await?;
        let done = json!({"user": person.user, "role": role, "is_disabled": is_disabled});
        screen.show(&done, || match (role, is_disabled) {
            (Some(role), _) => format!("{} is now: {role}.", person.user),
            (None, Some(true)) => format!("Nobody lets {} in any more.", person.user),
            (None, _) => format!("{} may come in again.", person.user),
        })
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
            let what = format!("a copy of the data of {} is written by {}", person.user, begun.job);
            spinner(what, self.fetch(&person, begun.export, path)).await?;
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
