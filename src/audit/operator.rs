//! Who is at the command line, and where: all that the machine itself knows of them.

use std::{ffi::CStr, mem::MaybeUninit, ptr};

use crate::jobs::worker::hostname;

/// Such as `uid 1000 (deploy) at ops-1`; without the name where the machine knows none.
pub fn operator() -> String {
    // SAFETY: takes nothing and cannot fail.
    let user = unsafe { libc::getuid() };
    let login = login(user).map(|login| format!(" ({login})")).unwrap_or_default();
    format!("uid {user}{login} at {}", hostname())
}

/// The account's name. Asked of the machine and not of the environment, which says what its user likes.
fn login(user: libc::uid_t) -> Option<String> {
    let mut texts = vec![0; 16 * 1024];
    let mut entry = MaybeUninit::uninit();
    let mut found = ptr::null_mut();
    // SAFETY: all four are ours for the length of the call, and the length is that of `texts`.
    let failed = unsafe { libc::getpwuid_r(user, entry.as_mut_ptr(), texts.as_mut_ptr(), texts.len(), &raw mut found) };
    if failed != 0 || found.is_null() {
        return None;
    }
    // SAFETY: what was found is in `entry`, and its name in `texts`, ended by a zero; both are still there.
    let name = unsafe { CStr::from_ptr((*found).pw_name) };
    Some(name.to_string_lossy().into_owned())
}
