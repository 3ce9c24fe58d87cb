//! Lets a run begin only where it fits (M2): the kernel's answer to too much is to kill something, and that may be
//! the worker with everything else it does.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    encode::Effort,
    plan::{Plan, Target, VideoTarget},
    preset::{Preset, PresetKind},
    probe::Probe,
};

/// What a run will take at its peak, as predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// What this machine can give in all, and what of it is free now. `None`: nobody can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub memory_bytes: Option<u64>,
    pub free_memory_bytes: Option<u64>,
    pub free_disk_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// It fits when the others are done.
    #[error("it waits for {what}: {} MB are needed and {} MB are free", need / MB, free / MB)]
    Busy { what: &'static str, need: u64, free: u64 },
    /// It does not fit this machine even alone.
    #[error("it needs {} MB of {what}, and this worker has {} MB", need / MB, total / MB)]
    TooLarge { what: &'static str, need: u64, total: u64 },
}

const MB: u64 = 1_000_000;
/// Left to the worker itself and to the system.
const KEEP_FREE_MEMORY: u64 = 64 * MB;
const KEEP_FREE_DISK: u64 = 64 * MB;

#[derive(Debug, Clone)]
pub struct Admission {
    scratch: PathBuf,
    taken: Arc<Mutex<Need>>,
}

/// Room held for a run, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    need: Need,
    taken: Arc<Mutex<Need>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.memory_bytes -= self.need.memory_bytes;
        taken.disk_bytes -= self.need.disk_bytes;
    }
}

impl Admission {
    pub fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.to_owned(), taken: Arc::default() }
    }

    /// Holds room for a run, or says what is short.
    pub fn admit(&self, need: Need) -> Result<Reservation, NoRoom> {
        self.admit_into(need, room(&self.scratch))
    }

    fn admit_into(&self, need: Need, room: Room) -> Result<Reservation, NoRoom> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(total), Some(free)) = (room.memory_bytes, room.free_memory_bytes) {
            let total = total.saturating_sub(KEEP_FREE_MEMORY);
            // What is promised but not used yet is not free; what is used already is counted twice, on the safe side.
            let free = free.saturating_sub(KEEP_FREE_MEMORY).min(total.saturating_sub(taken.memory_bytes));
            fits("memory", need.memory_bytes, free, total)?;
        }
        if let Some(free) = room.free_disk_bytes {
            let free = free.saturating_sub(KEEP_FREE_DISK);
            let alone = taken.disk_bytes == 0;
            let left = free.saturating_sub(taken.disk_bytes);
            fits("disk", need.disk_bytes, left, if alone { free } else { u64::MAX })?;
        }
        taken.memory_bytes += need.memory_bytes;
        taken.disk_bytes += need.disk_bytes;
        Ok(Reservation { need, taken: Arc::clone(&self.taken) })
    }
}

fn fits(what: &'static str, need: u64, free: u64, total: u64) -> Result<(), NoRoom> {
    if need > total {
        return Err(NoRoom::TooLarge { what, need, total });
    }
    if need > free { Err(NoRoom::Busy { what, need, free }) } else { Ok(()) }
}

/// What a run will take. Fitted to measurements: 1080p on two threads 0.46 GB, 1440x1080 to 1080x1920 0.55 GB, 2160p
/// 1.7 GB, at the preset "medium".
pub fn predict(probe: &Probe, preset: &Preset, plan: &Plan, effort: &Effort, copies_source: bool) -> Need {
    const BASE: u64 = 180 * MB;
    const STILL_BYTES_PER_PIXEL: u64 = 16;
    let read_pixels = probe.video.as_ref().map_or(0, |video| u64::from(video.width) * u64::from(video.height));
    let copy = if copies_source { probe.size_bytes } else { 0 };
    match (&plan.target, &preset.kind) {
        (Some(Target::Video(target)), PresetKind::Video(rules)) => {
            let made_pixels = u64::from(target.width) * u64::from(target.height);
            let per_made = if effort.frugal { 45 } else { 120 };
            let tone_map = if target.tone_map.is_some() { made_pixels * 60 } else { 0 };
            let memory_bytes = BASE + made_pixels * per_made + read_pixels * 60 + tone_map;
            // The file itself, and once more while it is moved into storage on the same disk.
            let output = predicted_size(target, rules.max_bytes, rules.max_duration_ms);
            Need { memory_bytes, disk_bytes: copy + 2 * output }
        }
        (Some(Target::Still(_)), PresetKind::Still(rules)) => Need {
            memory_bytes: BASE / 2 + read_pixels * STILL_BYTES_PER_PIXEL,
            disk_bytes: copy + 8 * rules.max_bytes,
        },
        _ => Need { memory_bytes: 0, disk_bytes: copy },
    }
}

fn predicted_size(target: &VideoTarget, max_bytes: u64, max_duration_ms: u64) -> u64 {
    let duration_ms = target.duration_ms.unwrap_or(max_duration_ms);
    let bits_per_second = target.max_bit_rate + u64::from(target.audio_bit_rate);
    (bits_per_second / 8).saturating_mul(duration_ms / 1000 + 1).min(max_bytes)
}

fn room(scratch: &Path) -> Room {
    let (memory_bytes, free_memory_bytes) = memory();
    Room { memory_bytes, free_memory_bytes, free_disk_bytes: free_bytes(scratch) }
}

/// The machine's memory, or the container's share of it.
fn memory() -> (Option<u64>, Option<u64>) {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").map(|text| (meminfo(&text, "MemTotal:"), meminfo(&text, "MemAvailable:")));
    let (mut total, mut free) = machine.unwrap_or_default();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let limit = read("/sys/fs/cgroup/memory.max").and_then(number);
    if let Some(limit) = limit {
        let used = read("/sys/fs/cgroup/memory.current").and_then(number).unwrap_or(0);
        // Files in the cache are given up before anything is killed.
        let stat = read("/sys/fs/cgroup/memory.stat").unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok()).unwrap_or(0);
        let left = limit.saturating_sub(used.saturating_sub(cached));
        total = Some(total.map_or(limit, |total| total.min(limit)));
        free = Some(free.map_or(left, |free| free.min(left)));
    }
    (total, free)
}

fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes that may still be written where a path lies.
#[allow(clippy::useless_conversion, reason = "these numbers have 32 bits on some systems")]
pub fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: all fields of this plain struct may be zero; the path ends with a NUL.
    let stat = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut stat) == 0).then_some(stat)?
    };
    Some(u64::from(stat.f_bavail).saturating_mul(u64::from(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Room =
        Room { memory_bytes: Some(512 * MB), free_memory_bytes: Some(480 * MB), free_disk_bytes: Some(2_000 * MB) };

    fn admission() -> Admission {
        Admission::new(Path::new("/"))
    }

    fn need(memory: u64, disk: u64) -> Need {
        Need { memory_bytes: memory * MB, disk_bytes: disk * MB }
    }

    #[test]
    fn what_can_never_fit_is_told_from_what_has_to_wait() {
        let admission = admission();
        let first = admission.admit_into(need(300, 100), SMALL).unwrap();
        let busy = admission.admit_into(need(300, 100), SMALL).unwrap_err();
        assert!(matches!(busy, NoRoom::Busy { what: "memory", .. }), "{busy}");
        drop(first);
        assert!(admission.admit_into(need(300, 100), SMALL).is_ok());
        let never = admission.admit_into(need(1_700, 100), SMALL).unwrap_err();
        assert!(matches!(never, NoRoom::TooLarge { what: "memory", .. }), "{never}");
        let never = admission.admit_into(need(10, 5_000), SMALL).unwrap_err();
        assert!(matches!(never, NoRoom::TooLarge { what: "disk", .. }), "{never}");
    }

    #[test]
    fn two_runs_do_not_get_the_same_disk() {
        let admission = admission();
        let _first = admission.admit_into(need(1, 1_500), SMALL).unwrap();
        let second = admission.admit_into(need(1, 1_500), SMALL).unwrap_err();
        assert!(matches!(second, NoRoom::Busy { what: "disk", .. }), "{second}");
    }

    #[test]
    fn a_machine_that_says_nothing_lets_everything_in() {
        let silent = Room { memory_bytes: None, free_memory_bytes: None, free_disk_bytes: None };
        assert!(admission().admit_into(need(9_999_999, 9_999_999), silent).is_ok());
    }

    #[test]
    fn this_machine_says_something() {
        let room = room(Path::new("/"));
        assert!(room.free_disk_bytes.is_some());
        #[cfg(target_os = "linux")]
        assert!(room.memory_bytes.is_some_and(|total| total > 64 * MB) && room.free_memory_bytes.is_some());
    }
}
