//! What media work needs on this machine: ffmpeg and ffprobe with the right parts, folders that can be written, room.

use std::{ffi::CString, io::Write, os::unix::ffi::OsStrExt, path::Path, process::Stdio, time::Duration};

use tokio::process::Command;

use super::Line;
use crate::config::Config;

const PATIENCE: Duration = Duration::from_secs(10);
const OLDEST: u32 = 5;
const ENCODERS: [&str; 4] = ["libx264", "aac", "mjpeg", "png"];
const FILTERS: [&str; 6] = ["scale", "fps", "pad", "crop", "format", "aresample"];
/// Below this a long clip in its largest rendition may not fit.
const ROOM_BYTES: u64 = 4 << 30;

pub async fn look(config: &Config) -> Vec<Line> {
    let (ffmpeg, ffprobe) =
        tokio::join!(ffmpeg(&config.media.ffmpeg), version("ffprobe", &config.media.ffprobe, "FFPROBE"));
    let folders = [
        folder("media folder", "STORAGE_FOLDER", &config.storage.folder),
        folder("scratch folder", "MEDIA_SCRATCH_FOLDER", &config.media.scratch),
    ];
    [ffmpeg, vec![ffprobe], folders.into()].concat()
}

async fn ffmpeg(program: &Path) -> Vec<Line> {
    let mut lines = vec![version("ffmpeg", program, "FFMPEG").await];
    if lines[0].verdict == super::Verdict::Problem {
        return lines;
    }
    let (encoders, filters) = tokio::join!(output(program, "-encoders"), output(program, "-filters"));
    let listed = |text: &Result<String, String>, name: &str| {
        text.as_ref().is_ok_and(|text| text.lines().any(|line| line.split_whitespace().nth(1) == Some(name)))
    };
    let missing: Vec<_> = ENCODERS
        .into_iter()
        .filter(|name| !listed(&encoders, name))
        .chain(FILTERS.into_iter().filter(|name| !listed(&filters, name)))
        .collect();
    lines.push(match missing.as_slice() {
        [] => Line::ok("ffmpeg parts", "all encoders and filters that are used"),
        missing => Line::problem(
            "ffmpeg parts",
            format!("missing: {}", missing.join(", ")),
            "Install a full build (Debian and Ubuntu: apt-get install ffmpeg)",
        ),
    });
    lines
}

async fn version(name: &'static str, program: &Path, variable: &str) -> Line {
    let install = format!("Install ffmpeg (Debian and Ubuntu: apt-get install ffmpeg) or set {variable} to its path");
    let text = match output(program, "-version").await {
        Ok(text) => text,
        Err(error) => return Line::problem(name, error, install),
    };
    let version = text.split_whitespace().nth(2).unwrap_or_default().to_owned();
    match version.trim_start_matches('n').split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major < OLDEST => {
            Line::problem(name, format!("version {version}"), format!("Upgrade it to {OLDEST} or newer"))
        }
        // A build from the repository has no number.
        _ => Line::ok(name, format!("version {version}")),
    }
}

async fn output(program: &Path, argument: &str) -> Result<String, String> {
    let shown = program.display();
    let mut command = Command::new(program);
    command.args(["-hide_banner", argument]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(format!("{shown} {argument} ended with {}", output.status)),
        Ok(Err(error)) => Err(format!("{shown} cannot be started: {error}")),
        Err(_elapsed) => Err(format!("{shown} {argument} did not end within {} s", PATIENCE.as_secs())),
    }
}

fn folder(name: &'static str, variable: &str, folder: &Path) -> Line {
    let shown = folder.display();
    if let Err(error) = try_to_write(folder) {
        return Line::problem(
            name,
            format!("{shown} cannot be written: {error}"),
            format!("Give this user the right to, or set {variable}"),
        );
    }
    match free_bytes(folder) {
        Some(free) if free < ROOM_BYTES => Line::warning(
            name,
            format!("{shown} has {} MB left", free >> 20),
            format!("Make room, or set {variable} to a larger disk"),
        ),
        Some(free) => Line::ok(name, format!("{shown}, {} GB left", free >> 30)),
        None => Line::ok(name, format!("{shown}")),
    }
}

fn try_to_write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(b"multivio check")?;
    file.as_file().sync_all()?;
    file.close()
}

fn free_bytes(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a NUL-terminated string and `stats` has room for the answer, both for the whole call.
    let done = unsafe { libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has filled the structure.
    let stats = unsafe { stats.assume_init() };
    Some(stats.f_bavail.saturating_mul(stats.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn a_folder_that_cannot_be_written_is_a_problem_that_names_its_variable() {
        let line = folder("media folder", "STORAGE_FOLDER", Path::new("/proc/nothing"));
        assert_eq!(line.verdict, Verdict::Problem);
        assert!(line.remedy.unwrap().contains("STORAGE_FOLDER"));
    }

    #[test]
    fn a_look_leaves_no_file_behind() {
        let place = tempfile::tempdir().unwrap();
        let line = folder("media folder", "STORAGE_FOLDER", &place.path().join("new"));
        assert_ne!(line.verdict, Verdict::Problem);
        assert_eq!(std::fs::read_dir(place.path().join("new")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_missing_program_says_how_to_install_it() {
        let lines = ffmpeg(Path::new("/nowhere/ffmpeg")).await;
        assert_eq!((lines.len(), lines[0].verdict), (1, Verdict::Problem));
        assert!(lines[0].remedy.as_ref().unwrap().contains("apt-get install ffmpeg"));
    }
}
