//! Why a private server could not be had, each with what to do about it.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use super::Remedy;

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// All of them at once, so that one installation mends it.
    #[error("{}", list_missing(.0))]
    Missing(Vec<Remedy>),
    #[error("{} is in use by another run of multivio: stop that one, or choose another folder", .0.display())]
    FolderInUse(PathBuf),
    #[error("Postgres does not run as root, and this machine has none of the users {tried} to run it as: create one")]
    NoAccount { tried: String },
    #[error("could not {doing}")]
    Io { doing: String, source: io::Error },
    #[error("{doing} ended with {status}; its last words:\n{tail}")]
    Refused { doing: String, status: ExitStatus, tail: String },
    #[error("{name} ended with {status} instead of coming up; the last lines of its log:\n{tail}")]
    Ended { name: String, status: ExitStatus, tail: String },
    #[error("{name} did not answer within {} s; the last lines of its log:\n{tail}", .waited.as_secs())]
    NotReady { name: String, waited: Duration, tail: String },
    #[error("{name} did not stop within {} s, although it was killed", .waited.as_secs())]
    NotStopped { name: String, waited: Duration },
    #[error("{0} is not running")]
    NotRunning(String),
    #[error("the private Postgres refused to {doing}")]
    Postgres { doing: &'static str, source: sqlx::Error },
    #[error("the private Redis refused to {doing}")]
    Redis { doing: &'static str, source: redis::RedisError },
}

impl LocalError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

fn list_missing(missing: &[Remedy]) -> String {
    let mut text = String::from("this machine lacks what multivio needs to run its own servers:");
    for remedy in missing {
        text.push_str(&format!("\n  - {}: {}", remedy.what, remedy.how));
    }
    text
}
