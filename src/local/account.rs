//! Which user the servers run as. Only root has to choose: everybody else runs them as themselves.

use std::{
    ffi::CString,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

use super::LocalError;

/// Users that exist for such work, in order of preference.
const CANDIDATES: [&str; 3] = ["postgres", "_postgres", "nobody"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// The user to become, or `None` when this process is not root and stays who it is.
    pub fn for_servers() -> Result<Option<Self>, LocalError> {
        // SAFETY: takes nothing, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return Ok(None);
        }
        let found = CANDIDATES.iter().find_map(|name| Self::named(name));
        found.map(Some).ok_or_else(|| LocalError::NoAccount { tried: CANDIDATES.join(", ") })
    }

    fn named(name: &str) -> Option<Self> {
        let name = CString::new(name).expect("the names above hold no NUL");
        let mut buffer = vec![0; 16 * 1024];
        // SAFETY: a zeroed `passwd` is valid (null pointers and zeros).
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: every pointer is to a live local of the length given; `entry` is read only after success.
        let code = unsafe {
            libc::getpwnam_r(name.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        (code == 0 && !found.is_null()).then_some(Self { uid: entry.pw_uid, gid: entry.pw_gid })
    }

    /// Whether this user may pass through every folder down to `path`, which exists.
    pub fn can_reach(self, path: &Path) -> bool {
        path.ancestors().all(|folder| {
            std::fs::metadata(folder).is_ok_and(|meta| {
                let search = match () {
                    () if meta.uid() == self.uid => 0o100,
                    () if meta.gid() == self.gid => 0o010,
                    () => 0o001,
                };
                meta.mode() & search != 0
            })
        })
    }

    pub fn give(self, path: &Path) -> std::io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_below_a_closed_one_cannot_be_reached_by_others() {
        let stranger = Account { uid: 4_000_001, gid: 4_000_001 };
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let inner = folder.path().join("open");
        std::fs::create_dir(&inner).unwrap();
        std::fs::set_permissions(&inner, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert!(!stranger.can_reach(&inner));
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
        assert!(stranger.can_reach(&inner));
    }

    #[test]
    fn a_user_is_found_by_name_and_an_unknown_one_is_not() {
        assert_eq!(Account::named("root"), Some(Account { uid: 0, gid: 0 }));
        assert_eq!(Account::named("no-such-user-here"), None);
    }
}
