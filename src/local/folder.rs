//! The one folder that everything local is in, locked by its owner.
//!
//! As root the servers run as another user, who may be unable to reach the folder asked for (below `/root`, say).
//! Then their files go to `/var/tmp` and a link in the folder points there, so that both can be found and removed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{Account, LocalError};

const LINK: &str = "servers";

#[derive(Debug)]
pub struct ServerFolder {
    asked: PathBuf,
    path: PathBuf,
    account: Option<Account>,
    /// The kernel lets go of it when the process ends, however it ends.
    lock: Arc<File>,
}

impl ServerFolder {
    pub fn open(asked: &Path) -> Result<Self, LocalError> {
        let fail = |path: &Path| LocalError::io(format!("prepare the folder {}", path.display()));
        fs::create_dir_all(asked).map_err(fail(asked))?;
        let asked = fs::canonicalize(asked).map_err(fail(asked))?;
        let lock = lock(&asked.join("lock"), &asked)?;
        let account = Account::for_servers()?;
        let path = match account {
            Some(account) if !account.can_reach(&asked) => elsewhere(&asked).map_err(fail(&asked))?,
            _ => asked.clone(),
        };
        Ok(Self { asked, path, account, lock: Arc::new(lock) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn asked(&self) -> &Path {
        &self.asked
    }

    pub(super) fn account(&self) -> Option<Account> {
        self.account
    }

    /// A folder of the servers' user alone.
    pub(super) fn private(&self, name: &str) -> Result<PathBuf, LocalError> {
        let path = self.path.join(name);
        let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(&path);
        made.and_then(|()| self.account.map_or(Ok(()), |account| account.give(&path)))
            .map_err(LocalError::io(format!("make the folder {}", path.display())))?;
        Ok(path)
    }

    /// A file that only its owner reads: ours, or the servers' user's when it is theirs to read.
    pub(super) fn write_private(&self, path: &Path, text: &str, for_server: bool) -> Result<(), LocalError> {
        let write = || {
            // Never through a file that another user may have put there.
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            if for_server { self.account.map_or(Ok(()), |account| account.give(path)) } else { Ok(()) }
        };
        write().map_err(LocalError::io(format!("write {}", path.display())))
    }

    /// A server's password.
    pub(super) fn password(&self, name: &str) -> Result<String, LocalError> {
        self.kept(name, || hex::encode(rand::random::<[u8; 24]>()))
    }

    /// A text that is made once and the same at every start, for nobody else to read.
    pub(super) fn kept(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, LocalError> {
        let path = self.asked.join(name);
        match fs::read_to_string(&path) {
            Ok(text) if !text.is_empty() => Ok(text),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LocalError::Io { doing: format!("read {}", path.display()), source: error })
            }
            _ => {
                let text = make();
                self.write_private(&path, &text, false)?;
                Ok(text)
            }
        }
    }

    pub(super) fn share(&self) -> Self {
        Self { asked: self.asked.clone(), path: self.path.clone(), account: self.account, lock: self.lock.clone() }
    }

    /// Removes the folder and what the servers wrote elsewhere. They must have stopped.
    pub fn remove(self) -> Result<(), LocalError> {
        for folder in [&self.path, &self.asked] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LocalError::Io { doing: format!("remove {}", folder.display()), source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what runs that were killed left in `parent`: folders whose owner no longer holds their lock.
    pub fn sweep(parent: &Path) {
        let Ok(entries) = fs::read_dir(parent) else { return };
        for entry in entries.flatten().filter(|entry| entry.path().join("lock").is_file()) {
            // One still in use, or not ours to remove, is left alone.
            if let Ok(folder) = Self::open(&entry.path()) {
                let _ = folder.remove();
            }
        }
    }
}

/// Waits a moment: a sweep by another run may hold it just to look.
fn lock(file: &Path, folder: &Path) -> Result<File, LocalError> {
    let fail = |source| LocalError::Io { doing: format!("lock {}", file.display()), source };
    let deadline = Instant::now() + Duration::from_millis(500);
    loop {
        fs::create_dir_all(folder).map_err(fail)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(file).map_err(fail)?;
        match lock.try_lock() {
            // A sweep may have removed the file between opening and locking it.
            Ok(()) if lock.metadata().map_err(fail)?.nlink() > 0 => return Ok(lock),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(LocalError::FolderInUse(folder.to_owned()));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
    }
}

/// A folder that everybody can reach, ours alone to write, always the same for the same `asked`.
fn elsewhere(asked: &Path) -> io::Result<PathBuf> {
    let digest = Sha256::digest(asked.as_os_str().as_encoded_bytes());
    let path = Path::new("/var/tmp").join(format!("multivio-{}", hex::encode(&digest[..8])));
    match fs::DirBuilder::new().mode(0o711).create(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Anybody may write to /var/tmp: use only what is ours already.
            let meta = fs::symlink_metadata(&path)?;
            if !meta.is_dir() || meta.uid() != 0 {
                return Err(io::Error::other(format!("{} belongs to somebody else: remove it", path.display())));
            }
        }
        other => other?,
    }
    fs::set_permissions(&path, PermissionsExt::from_mode(0o711))?;
    let link = asked.join(LINK);
    if fs::read_link(&link).ok().as_deref() != Some(&path) {
        let _ = fs::remove_file(&link);
        symlink(&path, &link)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let first = ServerFolder::open(&path).unwrap();
        assert!(matches!(ServerFolder::open(&path), Err(LocalError::FolderInUse(_))));
        ServerFolder::sweep(parent.path());
        assert!(path.exists(), "a folder in use must not be swept");
        drop(first);
        ServerFolder::sweep(parent.path());
        assert!(!path.exists());
    }

    #[test]
    fn a_secret_stays_the_same_and_only_its_owner_reads_it() {
        let parent = tempfile::tempdir().unwrap();
        let folder = ServerFolder::open(&parent.path().join("data")).unwrap();
        let secret = folder.password("password").unwrap();
        assert_eq!(folder.password("password").unwrap(), secret);
        assert_eq!(secret.len(), 48);
        let mode = fs::metadata(folder.asked.join("password")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn files_go_elsewhere_when_the_servers_user_cannot_reach_the_folder() {
        let parent = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(parent.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let folder = ServerFolder::open(&parent.path().join("data")).unwrap();
        let Some(account) = folder.account else { return assert_eq!(folder.path, folder.asked) };
        let private = folder.private("postgres").unwrap();
        assert!(account.can_reach(&private));
        assert_eq!(fs::read_link(folder.asked.join(LINK)).unwrap(), folder.path);
        let (asked, path) = (folder.asked.clone(), folder.path.clone());
        folder.remove().unwrap();
        assert!(!asked.exists() && !path.exists());
    }
}
