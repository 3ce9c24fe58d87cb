//! Working folders. Each process has one of its own and holds a lock on it; what a dead process left behind can be
//! told by its lock being free, whatever machine or container it ran in.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tempfile::TempDir;
use uuid::Uuid;

#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    own: OnceLock<Own>,
}

#[derive(Debug)]
struct Own {
    folder: PathBuf,
    lock_path: PathBuf,
    /// Held, not read.
    _lock: File,
}

impl Scratch {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), own: OnceLock::new() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A fresh folder for one run, readable by nobody else, gone when it is dropped.
    pub fn run_folder(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("run-").tempdir_in(self.own()?)
    }

    /// Removes what dead processes left. Returns how many folders that was. One that cannot be removed holds up no
    /// other; then the last such error comes back.
    pub fn sweep(&self) -> io::Result<usize> {
        let (mut swept, mut failed) = (0, None);
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "lock") {
                continue;
            }
            match sweep_one(&path) {
                Ok(true) => swept += 1,
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(swept), Err)
    }

    fn own(&self) -> io::Result<&Path> {
        if let Some(own) = self.own.get() {
            return Ok(&own.folder);
        }
        let made = Own::make(&self.root)?;
        // Another thread may have been faster; the loser's folder goes again by its drop.
        Ok(&self.own.get_or_init(|| made).folder)
    }
}

impl Own {
    fn make(root: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        // ffmpeg runs elsewhere in mind: its paths must not depend on our working directory.
        let root = root.canonicalize()?;
        loop {
            let name = Uuid::now_v7().simple().to_string();
            let lock_path = root.join(format!("{name}.lock"));
            let lock = File::create_new(&lock_path)?;
            lock.lock()?;
            // A sweep may have taken the file between its making and its locking: then this one is nobody's.
            if lock.metadata()?.nlink() == 0 {
                continue;
            }
            let folder = root.join(name);
            std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
            return Ok(Self { folder, lock_path, _lock: lock });
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // What fails here is found by the next sweep.
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

fn sweep_one(lock_path: &Path) -> io::Result<bool> {
    let lock = match File::open(lock_path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        lock => lock?,
    };
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    for removed in [std::fs::remove_dir_all(lock_path.with_extension("")), std::fs::remove_file(lock_path)] {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_keeps_its_folder_and_a_dead_ones_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let living = Scratch::new(root.path());
        let run = living.run_folder().unwrap();
        // Dead: its files are there, its lock is not held.
        std::fs::create_dir(root.path().join("0dead")).unwrap();
        std::fs::write(root.path().join("0dead/half.mp4"), "x").unwrap();
        std::fs::write(root.path().join("0dead.lock"), "").unwrap();

        assert_eq!(Scratch::new(root.path()).sweep().unwrap(), 1);
        assert!(run.path().is_dir() && !root.path().join("0dead").exists());
        let runs = run.path().to_owned();
        drop(run);
        assert!(!runs.exists());
        drop(living);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_root_that_is_not_there_has_nothing_to_sweep() {
        assert_eq!(Scratch::new(Path::new("/nowhere/at/all")).sweep().unwrap(), 0);
    }
}
