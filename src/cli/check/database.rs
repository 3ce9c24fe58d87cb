//! Postgres: does it answer, is it new enough, is the schema up to date, is what it calls committed on disk, is
//! every connection one session, and can it become what the programs are.

use std::{collections::HashMap, io, time::Duration};

use sqlx::PgConnection;

use super::{Line, Verdict};
use crate::{
    config::DatabaseConfig,
    db::{MIGRATIONS, Session, SessionRole, pooler},
    telemetry::chain,
};

const PATIENCE: Duration = Duration::from_secs(5);
const OLDEST: i32 = 15;

pub async fn look(config: &DatabaseConfig) -> Vec<Line> {
    let session = match Session::login(config, "multivio check") {
        Ok(session) => session,
        Err(error) => {
            return vec![Line::problem(
                "database",
                chain(&error),
                "Correct DATABASE_URL: postgres://user:password@host/name",
            )];
        }
    };
    let mut connection = match connect(config, &session).await {
        Ok(connection) => connection,
        Err(line) => return vec![line],
    };
    match tokio::time::timeout(3 * PATIENCE, questions(config, &mut connection, &session)).await {
        Ok(Ok(lines)) => lines,
        Ok(Err(error)) => vec![Line::problem("database", chain(&error), "See the database's own log")],
        Err(_elapsed) => vec![Line::problem("database", "stopped answering", "See the database's own log")],
    }
}

async fn connect(config: &DatabaseConfig, session: &Session) -> Result<PgConnection, Line> {
    let error = match tokio::time::timeout(PATIENCE, session.connect()).await {
        Ok(Ok(connection)) => return Ok(connection),
        Ok(Err(error)) => error,
        Err(_elapsed) => {
            let text = format!("no answer within {} s", PATIENCE.as_secs());
            return Err(Line::problem("database", text, START));
        }
    };
    let text = chain(&error);
    let tls = if config.authority.is_some() { NAMED_TLS } else { TLS };
    let remedy = match &error {
        sqlx::Error::Tls(_) => tls,
        _ if text.contains("certificate") || text.contains("does not support TLS") => tls,
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            "A file that DATABASE_URL names is not there: sslrootcert, sslcert, sslkey, or the folder of a socket"
        }
        _ if text.contains("no pg_hba.conf entry") && text.contains("no encryption") => {
            "The server takes encrypted connections only: add sslmode=verify-full to DATABASE_URL, or set \
             DATABASE_CA_CERT to its authority"
        }
        _ => START,
    };
    Err(Line::problem("database", text, remedy))
}

const START: &str = "Start the server, or correct DATABASE_URL (`multivio up` starts a private one)";
const TLS: &str = "Name the authority that signed the server's certificate, and the host as the certificate has it: \
    DATABASE_CA_CERT, or ?sslmode=verify-full&sslrootcert=/path/to/ca.crt in DATABASE_URL";
const NAMED_TLS: &str = "Set DATABASE_CA_CERT to the authority that signed the server's certificate, and name the host in \
    DATABASE_URL as the certificate has it";

async fn questions(
    config: &DatabaseConfig,
    connection: &mut PgConnection,
    session: &Session,
) -> sqlx::Result<Vec<Line>> {
    // Behind a pooler it is the pooler's connection that this tells of.
    let (number, version, tls): (i32, String, Option<String>) = sqlx::query_as(
        "select current_setting('server_version_num')::integer, current_setting('server_version'), \
           (select version from pg_stat_ssl where pid = pg_backend_pid())",
    )
    .fetch_one(&mut *connection)
    .await?;
    let version = match tls {
        Some(tls) => format!("PostgreSQL {version}, {tls}, {}", config.trust()),
        None => format!("PostgreSQL {version}, not encrypted"),
    };
    let mut lines = vec![if number / 10_000 >= OLDEST {
        Line::ok("database", version)
    } else {
        Line::problem("database", version, format!("Upgrade it to {OLDEST} or newer"))
    }];
    let schema = schema(connection).await?;
    let has_roles = schema.verdict == Verdict::Ok;
    lines.push(schema);
    lines.push(durability(connection).await?);
    lines.push(sessions(session).await?);
    if has_roles {
        lines.push(roles(connection).await?);
    }
    Ok(lines)
}

async fn schema(connection: &mut PgConnection) -> sqlx::Result<Line> {
    let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(MIGRATIONS.table_name.as_ref())
        .fetch_one(&mut *connection)
        .await?;
    let applied: Vec<(i64, Vec<u8>, bool)> = match exists {
        true => sqlx::query_as("select version, checksum, success from _sqlx_migrations").fetch_all(connection).await?,
        false => Vec::new(),
    };
    if let Some((version, ..)) = applied.iter().find(|(.., success)| !success) {
        return Ok(Line::problem(
            "schema",
            format!("migration {version} stopped halfway"),
            "Repair the schema by hand, then correct its row in _sqlx_migrations",
        ));
    }
    let applied: HashMap<_, _> = applied.into_iter().map(|(version, checksum, _)| (version, checksum)).collect();
    let changed = MIGRATIONS
        .iter()
        .find(|ours| applied.get(&ours.version).is_some_and(|theirs| theirs.as_slice() != ours.checksum.as_ref()));
    if let Some(migration) = changed {
        return Ok(Line::problem(
            "schema",
            format!("migration {} was changed after it was applied", migration.version),
            "An applied migration is never edited: bring its file back as it was",
        ));
    }
    let missing = MIGRATIONS.iter().filter(|ours| !applied.contains_key(&ours.version)).count();
    Ok(match missing {
        0 => Line::ok("schema", format!("up to date ({} migrations)", MIGRATIONS.iter().count())),
        missing => Line::problem("schema", format!("{missing} migration(s) are not applied"), "Run `multivio migrate`"),
    })
}

/// A job that was accepted must survive a power cut.
async fn durability(connection: &mut PgConnection) -> sqlx::Result<Line> {
    let (fsync, synchronous_commit, full_page_writes, recovering): (String, String, String, bool) = sqlx::query_as(
        "select current_setting('fsync'), current_setting('synchronous_commit'), \
                current_setting('full_page_writes'), pg_is_in_recovery()",
    )
    .fetch_one(connection)
    .await?;
    if recovering {
        return Ok(Line::problem(
            "durability",
            "this server is a standby and takes no writes",
            "Point DATABASE_URL at the primary",
        ));
    }
    let mut loose = Vec::new();
    for (name, value) in
        [("fsync", &fsync), ("synchronous_commit", &synchronous_commit), ("full_page_writes", &full_page_writes)]
    {
        if value == "off" {
            loose.push(format!("{name} = off"));
        }
    }
    Ok(if loose.is_empty() {
        Line::ok("durability", format!("fsync on, synchronous_commit {synchronous_commit}"))
    } else {
        Line::warning(
            "durability",
            format!("{}: a power cut loses accepted work", loose.join(", ")),
            "Turn it on in postgresql.conf; only a test may do without",
        )
    })
}

/// A pooler in transaction mode is refused.
async fn sessions(session: &Session) -> sqlx::Result<Line> {
    match pooler::prove(session).await {
        Ok(()) => Ok(Line::ok("sessions", "each connection is a session of its own")),
        Err(error) if pooler::is_shared(&error) => Ok(Line::problem(
            "sessions",
            "connections share sessions: a pooler in transaction mode stands between",
            "Use its session mode (Supabase: port 5432) or connect to the server itself",
        )),
        Err(error) => Err(error),
    }
}

const ROLES: [&str; 2] = [SessionRole::Api.as_str(), SessionRole::Worker.as_str()];

/// Makes a login nobody by itself on Postgres 15. One that may make tables because the database is its own would lose
/// that as well.
fn noinherit(login: &str, migrates: bool) -> String {
    let keeps = if migrates { format!("; grant create, usage on schema public to \"{login}\"") } else { String::new() };
    format!("alter role \"{login}\" noinherit{keeps}")
}

/// Whether this login can become what the programs are, and is bound by row level security when it forgets to.
async fn roles(connection: &mut PgConnection) -> sqlx::Result<Line> {
    let missing: Vec<String> = sqlx::query_scalar(
        "select r.name from unnest($1::text[]) as r (name) left join pg_roles p on p.rolname = r.name \
         where p.oid is null or not pg_has_role(current_user, p.oid, case when \
           current_setting('server_version_num')::integer >= 160000 then 'SET' else 'MEMBER' end)",
    )
    .bind(ROLES)
    .fetch_all(&mut *connection)
    .await?;
    // Since 16 a grant says itself whether it is inherited; before, the login does.
    let (login, is_free, inherits, grants_say, migrates): (String, bool, bool, bool, bool) = sqlx::query_as(
        "select rolname::text, rolsuper or rolbypassrls, exists ( \
           select from pg_roles r where r.rolname = $1 and pg_has_role(current_user, r.oid, 'USAGE')), \
           current_setting('server_version_num')::integer >= 160000, \
           has_schema_privilege(current_user, 'public', 'CREATE') \
         from pg_roles where rolname = current_user",
    )
    .bind(SessionRole::Worker.as_str())
    .fetch_one(connection)
    .await?;
    Ok(if !missing.is_empty() {
        let names = missing.join(", ");
        let so_that_it_is_nobody = match grants_say {
            true => " with inherit false, set true".to_owned(),
            false => format!("; {}", noinherit(&login, migrates)),
        };
        let remedy = format!("As an administrator: grant {names} to \"{login}\"{so_that_it_is_nobody}");
        Line::problem("roles", format!("{login} cannot become {names}"), remedy)
    } else if is_free {
        Line::ok("roles", format!("{login} is above row level security; its sessions take roles that are not"))
    } else if inherits {
        Line::warning(
            "roles",
            format!("{login} has the rights of its roles also where it has not taken one"),
            match grants_say {
                true => {
                    format!(
                        "As whoever granted them: grant {} to \"{login}\" with inherit false, set true",
                        ROLES.join(", ")
                    )
                }
                false => format!("As an administrator: {}", noinherit(&login, migrates)),
            },
        )
    } else {
        Line::ok("roles", format!("{login} takes the roles of the API and the workers, and is nobody without them"))
    })
}
