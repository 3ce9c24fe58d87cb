//! Finding the servers' programs, and saying what to install when they are absent or too old.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::LocalError;

/// `BLMPOP` came with 7.0.
const OLDEST_REDIS: u32 = 7;
const OLDEST_POSTGRES: u32 = 15;

/// Where the servers' programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The folder with `initdb`, `postgres` and `pg_ctl` of one version.
    pub postgres_bin: PathBuf,
    pub redis_server: PathBuf,
}

/// Something the machine lacks, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    pub what: String,
    pub how: &'static str,
}

impl Programs {
    /// # Errors
    /// [`LocalError::Missing`] with everything that is absent, at once.
    pub fn find() -> Result<Self, LocalError> {
        let mut missing = Vec::new();
        let postgres = newest(postgres_folders(), "postgres", OLDEST_POSTGRES, |bin| bin.join("initdb").is_file());
        let redis = newest(path_folders(), "redis-server", OLDEST_REDIS, |_| true)
            .or_else(|_| newest(path_folders(), "valkey-server", OLDEST_REDIS, |_| true).map_err(drop));

        let postgres_bin = postgres.unwrap_or_else(|found| {
            missing.push(Remedy {
                what: describe("Postgres", OLDEST_POSTGRES, found),
                how: if cfg!(target_os = "macos") {
                    "brew install postgresql@17"
                } else {
                    "apt-get install postgresql"
                },
            });
            PathBuf::new()
        });
        let redis_server = redis.map(|bin| {
            let redis = bin.join("redis-server");
            if redis.is_file() { redis } else { bin.join("valkey-server") }
        });
        let redis_server = redis_server.unwrap_or_else(|()| {
            missing.push(Remedy {
                what: describe("Redis", OLDEST_REDIS, None),
                how: if cfg!(target_os = "macos") { "brew install redis" } else { "apt-get install redis-server" },
            });
            PathBuf::new()
        });
        if missing.is_empty() { Ok(Self { postgres_bin, redis_server }) } else { Err(LocalError::Missing(missing)) }
    }
}

/// A program of this name in `PATH`.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    path_folders().into_iter().map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn describe(name: &str, oldest: u32, found: Option<u32>) -> String {
    match found {
        Some(found) => format!("{name} {oldest} or later (found {found})"),
        None => format!("{name} {oldest} or later"),
    }
}

/// The folder whose `program` is newest, or the newest version met when all are too old.
fn newest(
    folders: Vec<PathBuf>,
    program: &str,
    oldest: u32,
    complete: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Option<u32>> {
    let found = folders
        .into_iter()
        .filter(|folder| folder.join(program).is_file() && complete(folder))
        .filter_map(|folder| Some((major_version(&folder.join(program))?, folder)))
        // The first of equals: what PATH prefers.
        .reduce(|best, other| if other.0 > best.0 { other } else { best });
    match found {
        Some((version, folder)) if version >= oldest => Ok(folder),
        other => Err(other.map(|(version, _)| version)),
    }
}

fn major_version(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_major_version(&String::from_utf8_lossy(&output.stdout))
}

/// The first number that follows a space or `v=`: "postgres (PostgreSQL) 15.14", "Redis server v=7.0.15 sha=...".
fn parse_major_version(text: &str) -> Option<u32> {
    text.split_whitespace().find_map(|word| {
        let digits = word.strip_prefix("v=").unwrap_or(word);
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

fn path_folders() -> Vec<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "PATH is the machine's, not a setting of the product")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect()
}

/// `PATH`, then where packages put servers that they keep out of it.
fn postgres_folders() -> Vec<PathBuf> {
    let mut folders = path_folders();
    for (parent, prefix, below) in [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql@", "bin"),
        ("/usr/local/opt", "postgresql@", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        let Ok(entries) = std::fs::read_dir(parent) else { continue };
        let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
        folders.extend(named.map(|entry| entry.path().join(below)));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_servers_write_them() {
        assert_eq!(parse_major_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(parse_major_version("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(parse_major_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1"), Some(7));
        assert_eq!(parse_major_version("Valkey server v=8.1.1 sha=00000000:0"), Some(8));
        assert_eq!(parse_major_version("no such thing"), None);
    }

    #[test]
    fn a_server_that_is_too_old_is_not_taken_and_its_version_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("redis-server");
        std::fs::write(&program, "#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let found = newest(vec![folder.path().to_owned()], "redis-server", OLDEST_REDIS, |_| true);
        assert_eq!(found, Err(Some(6)));
        assert_eq!(describe("Redis", 7, Some(6)), "Redis 7 or later (found 6)");
    }

    #[test]
    fn everything_missing_is_told_at_once_with_its_remedy() {
        let remedies = [("Postgres 15 or later", "a"), ("Redis 7 or later", "b")];
        let missing = remedies.map(|(what, how)| Remedy { what: what.into(), how }).to_vec();
        let text = LocalError::Missing(missing).to_string();
        assert!(text.contains("Postgres 15 or later: a") && text.contains("Redis 7 or later: b"), "{text}");
    }
}
