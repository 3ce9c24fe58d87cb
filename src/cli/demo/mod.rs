//! `multivio demo`: the whole product at work on this machine. Everything is real but the outside services, which the
//! sandbox stands in for: it starts what `multivio up --sandbox` starts, uses it through its HTTP API as any frontend
//! would, and shows what happened.
//!
//! It removes all it made, also when it is interrupted, so that the next run starts afresh.

mod bars;
mod client;
mod clip;
mod results;
mod story;
mod table;

use std::path::{Path, PathBuf};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{
    Failure, Screen, print_line,
    up::{Signals, developer_token},
};
use crate::local::{ServerFolder, Stack, StackError, StackOptions};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  multivio demo\n  multivio demo holiday.mov\n  multivio demo --once")]
pub struct Arguments {
    /// A video of yours; without it one is made
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// End after the table: exit code 0 when everything succeeded, else 1
    #[arg(long)]
    once: bool,
    /// Folder for everything it makes; removed at the end
    #[arg(long, value_name = "FOLDER", default_value = ".multivio/demo")]
    folder: PathBuf,
    /// Show what every program writes to its log
    #[arg(long, short)]
    verbose: bool,
}

pub async fn run(arguments: Arguments, screen: Screen) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let file = arguments.file.as_deref().map(usable).transpose()?;
    // What a run that was killed left behind, and nothing else: a folder with other things in it is refused.
    remove_leftovers(&arguments.folder)?;
    let options = StackOptions {
        folder: arguments.folder.clone(),
        listen: Some(([127, 0, 0, 1], 0).into()),
        sandbox: true,
        verbose: arguments.verbose,
        // Somebody is watching.
        defaults: vec![("MEDIA_X264_PRESET".to_owned(), "veryfast".to_owned())],
    };
    let stack = match Stack::start(options, &signals.stop, |doing| eprintln!("{doing} ...")).await {
        Ok(stack) => stack,
        Err(error) => {
            let removed = ServerFolder::open(&arguments.folder).and_then(ServerFolder::remove);
            remove_parent(&arguments.folder);
            return match error {
                StackError::Stopped => removed.map_err(Failure::from).and_then(|()| interrupted(arguments.once)),
                error => Err(error.into()),
            };
        }
    };
    let shown = show(&stack, file, arguments.once, screen, &signals.stop).await;
    eprintln!("stopping and cleaning up ...");
    stack.stop_and_remove(&signals.hurry).await?;
    remove_parent(&arguments.folder);
    shown
}

/// Being interrupted is no failure, unless an exit code was asked for.
fn interrupted(once: bool) -> Result<(), Failure> {
    if once { Err(Failure::failed("interrupted")) } else { Ok(()) }
}

/// `Err` when something did not succeed.
async fn show(
    stack: &Stack,
    file: Option<PathBuf>,
    once: bool,
    screen: Screen,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let token = developer_token(stack)?;
    let story = stop.run_until_cancelled(story::tell(stack, &token, file, once)).await;
    let Some(report) = story else {
        return interrupted(once);
    };
    screen.show(&report, || table::describe(&report))?;
    if !once {
        if !screen.json {
            print_line(&format!(
                "\nToken for {}/docs (a day):\n  {token}\nCtrl-C stops everything and removes it.",
                stack.api_url
            ));
        }
        stop.cancelled().await;
    }
    if report.succeeded { Ok(()) } else { Err(Failure::silent()) }
}

fn usable(file: &Path) -> Result<PathBuf, Failure> {
    let found = std::fs::canonicalize(file).ok().filter(|path| path.is_file());
    found.ok_or_else(|| Failure::usage(format!("{} is not a file", file.display())))
}

fn remove_leftovers(folder: &Path) -> Result<(), Failure> {
    let mut entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(_none) => return Ok(()),
    };
    if folder.join("lock").is_file() {
        return Ok(ServerFolder::open(folder)?.remove()?);
    }
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Failure::usage(format!("{} holds things that are not the demo's", folder.display()))
            .remedy("Choose a folder that does not exist: --folder FOLDER.")),
    }
}

/// The folder above, when it is the product's own by its name and nothing else is in it.
fn remove_parent(folder: &Path) {
    if let Some(parent) = folder.parent().filter(|parent| parent.ends_with(".multivio")) {
        // One with something in it is not removed, which is what is wanted.
        let _ = std::fs::remove_dir(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_above_goes_when_it_is_the_products_own_and_empty() {
        let place = tempfile::tempdir().unwrap();
        for (name, other, stays) in
            [(".multivio", None, false), (".multivio", Some("dev"), true), ("my-work", None, true)]
        {
            let parent = place.path().join(name);
            std::fs::create_dir_all(other.map_or(parent.clone(), |other| parent.join(other))).unwrap();
            remove_parent(&parent.join("demo"));
            assert_eq!(parent.exists(), stays, "{name} with {other:?}");
        }
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.txt"), "words").unwrap();
        assert!(remove_leftovers(folder.path()).is_err());
        assert!(folder.path().join("thesis.txt").exists());
        assert!(remove_leftovers(&folder.path().join("none")).is_ok());
    }

    #[test]
    fn what_a_killed_run_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("demo");
        drop(ServerFolder::open(&folder).unwrap());
        remove_leftovers(&folder).unwrap();
        assert!(!folder.exists());
    }
}
