//! No process outlives its lease with a creating request in its hand (P1).
//!
//! A process can be stopped (SIGSTOP, a frozen host) between the check of its lease and the last byte of its
//! request; by then another worker may have sent the same post. So the kernel is asked beforehand to kill this
//! process when the lease is about to end. The clock is `CLOCK_BOOTTIME`, which also runs while the machine sleeps.

#[cfg(any(test, not(target_os = "linux")))]
#[path = "lease_guard_elsewhere.rs"]
mod elsewhere;

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};
#[cfg(target_os = "linux")]
use std::{mem::MaybeUninit, ptr};

#[cfg(not(target_os = "linux"))]
pub use elsewhere::{Timer, boottime_ns};

/// How long before the end of the lease the process ends.
pub const MARGIN: Duration = Duration::from_millis(1_000);

/// Disarms when dropped.
#[derive(Debug)]
pub struct LeaseGuard(Arc<Timer>);

impl LeaseGuard {
    pub(super) fn new(lease_ends_ns: u64) -> io::Result<Self> {
        let timer = Timer::new()?;
        timer.rearm(lease_ends_ns)?;
        Ok(Self(Arc::new(timer)))
    }

    pub(super) fn timer(&self) -> Weak<Timer> {
        Arc::downgrade(&self.0)
    }
}

/// A kernel timer that sends SIGKILL to this process.
#[derive(Debug)]
#[cfg(target_os = "linux")]
pub struct Timer(libc::timer_t);

#[cfg(target_os = "linux")]
// SAFETY: a timer id is a number of the process, not of the thread that made it.
unsafe impl Send for Timer {}
#[cfg(target_os = "linux")]
// SAFETY: as above; the kernel serialises calls on one timer.
unsafe impl Sync for Timer {}

#[cfg(target_os = "linux")]
impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut id: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are valid for the length of the call.
        match unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut id) } {
            0 => Ok(Self(id)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Moves the end to [`MARGIN`] before `lease_ends_ns`. One that is past already ends the process at once.
    pub(super) fn rearm(&self, lease_ends_ns: u64) -> io::Result<()> {
        // Zero would disarm.
        let at_ns = lease_ends_ns.saturating_sub(u64::try_from(MARGIN.as_nanos()).unwrap_or(0)).max(1);
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(at_ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::try_from(at_ns % 1_000_000_000).unwrap_or(0),
        };
        let spec = libc::itimerspec { it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // SAFETY: the timer exists as long as `self`, `spec` for the length of the call.
        match unsafe { libc::timer_settime(self.0, libc::TIMER_ABSTIME, &raw const spec, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Nanoseconds since boot, including time asleep.
#[cfg(target_os = "linux")]
pub fn boottime_ns() -> u64 {
    let mut now = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is valid; the clock exists on every Linux since 2.6.39, so the call fills it.
    let now = unsafe {
        assert_eq!(libc::clock_gettime(libc::CLOCK_BOOTTIME, now.as_mut_ptr()), 0, "CLOCK_BOOTTIME is missing");
        now.assume_init()
    };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
