//! What media work needs on this machine: ffmpeg and ffprobe with the right parts, folders that can be written, room.

use std::{
    io::{Error, ErrorKind, Write},
    path::Path,
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

use super::Line;
use crate::{
    config::{Config, Environment},
    media::{admission, storage},
};

const PATIENCE: Duration = Duration::from_secs(10);
/// What the argument lists were written for and measured with.
const OLDEST: (u32, u32) = (5, 1);
/// Everything of ffmpeg that an argument list names; a test compares them.
const ENCODERS: &[&str] = &["libx264", "aac", "mjpeg", "png"];
const FILTERS: &[&str] = &[
    "aformat",
    "anullsrc",
    "apad",
    "aresample",
    "atrim",
    "bwdif",
    "crop",
    "format",
    "fps",
    "loudnorm",
    "lutrgb",
    "overlay",
    "pad",
    "scale",
    "setparams",
    "setsar",
    "split",
    "thumbnail",
    "tonemap",
    "zscale",
];
const BITSTREAM_FILTERS: &[&str] = &["filter_units"];
const MUXERS: &[&str] = &["image2", "mp4", "null"];
/// Below this a long clip in its largest rendition may not fit.
const ROOM_BYTES: u64 = 4 << 30;

pub async fn look(config: &Config) -> Vec<Line> {
    let (ffmpeg, ffprobe) =
        tokio::join!(ffmpeg(&config.media.ffmpeg), version("ffprobe", &config.media.ffprobe, "FFPROBE"));
    let mut folders = vec![
        folder("media folder", "STORAGE_FOLDER", &config.storage.folder),
        folder("scratch folder", "MEDIA_SCRATCH_FOLDER", &config.media.scratch),
    ];
    folders.extend(sharing(config));
    [ffmpeg, vec![ffprobe], folders].concat()
}

/// What one process takes in, another has to find.
fn sharing(config: &Config) -> Option<Line> {
    let folder = &config.storage.folder;
    if config.environment != Environment::Production || !storage::is_on_own_disk(existing(folder)) {
        return None;
    }
    Some(Line::warning(
        "media sharing",
        format!("{} is on this machine's or container's own disk", folder.display()),
        "Right where everything runs on this one machine; else set STORAGE_FOLDER to a folder that the API and all \
         workers share, or posts with media fail",
    ))
}

async fn ffmpeg(program: &Path) -> Vec<Line> {
    let mut lines = vec![version("ffmpeg", program, "FFMPEG").await];
    if lines[0].verdict == super::Verdict::Problem {
        return lines;
    }
    let kinds = [("-encoders", ENCODERS), ("-filters", FILTERS), ("-bsfs", BITSTREAM_FILTERS), ("-muxers", MUXERS)];
    let mut missing = Vec::new();
    for (list, names) in kinds {
        let text = match output(program, list).await {
            Ok(text) => text,
            Err(error) => {
                lines.push(Line::problem("ffmpeg parts", error, "Install ffmpeg anew: it cannot list its parts"));
                return lines;
            }
        };
        // A line is a name, or marks and a name.
        let listed = |name: &str| text.lines().any(|line| line.split_whitespace().take(2).any(|word| word == name));
        missing.extend(names.iter().copied().filter(|name| !listed(name)));
    }
    lines.push(match missing.as_slice() {
        [] => Line::ok("ffmpeg parts", "all encoders, filters and formats that are used"),
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
    match parse_version(&version) {
        Some(number) if number < OLDEST => Line::problem(
            name,
            format!("version {version}"),
            format!("Upgrade it to {}.{} or newer (Debian 12, Ubuntu 24.04)", OLDEST.0, OLDEST.1),
        ),
        // A build from the repository has no number.
        _ => Line::ok(name, format!("version {version}")),
    }
}

/// "5.1.9-0+deb12u1", "n7.1", "6.0".
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('n').split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let major = numbers.next()?.ok()?;
    Some((major, numbers.next().and_then(Result::ok).unwrap_or(0)))
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
    match admission::free_bytes(existing(folder)) {
        Some(free) if free < ROOM_BYTES => Line::warning(
            name,
            format!("{shown} has {} MB left", free >> 20),
            format!("Make room, or set {variable} to a larger disk"),
        ),
        Some(free) => Line::ok(name, format!("{shown}, {} GB left", free >> 30)),
        None => Line::ok(name, format!("{shown}")),
    }
}

/// The folder, or the one above it in which the first program that starts makes it.
fn existing(folder: &Path) -> &Path {
    let found = folder.ancestors().find(|place| place.exists());
    found.filter(|place| !place.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Leaves nothing behind, not even the folder.
fn try_to_write(folder: &Path) -> std::io::Result<()> {
    let place = existing(folder);
    if !place.is_dir() {
        return Err(Error::new(ErrorKind::NotADirectory, format!("{} is no folder", place.display())));
    }
    if place != folder {
        tempfile::tempdir_in(place)?.close()?;
    }
    let mut file = tempfile::NamedTempFile::new_in(place)?;
    file.write_all(b"multivio check")?;
    file.as_file().sync_all()?;
    file.close()
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
        for asked in [place.path().join("new/media"), place.path().to_owned()] {
            let line = folder("media folder", "STORAGE_FOLDER", &asked);
            assert_ne!(line.verdict, Verdict::Problem, "{line:?}");
            assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
        }
        assert_eq!(existing(Path::new("no/such/folder")), Path::new("."));
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_a_problem() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for asked in [file.path().to_owned(), file.path().join("media")] {
            assert_eq!(folder("media folder", "STORAGE_FOLDER", &asked).verdict, Verdict::Problem);
        }
    }

    #[test]
    fn versions_are_compared_with_their_second_number() {
        assert_eq!(parse_version("5.1.9-0+deb12u1"), Some((5, 1)));
        assert_eq!(parse_version("n7.1"), Some((7, 1)));
        assert_eq!(parse_version("9-full"), Some((9, 0)));
        assert_eq!(parse_version("N-118000-g12"), None);
        assert!(parse_version("4.4.2-0ubuntu0.22.04.1").unwrap() < OLDEST);
        assert!(parse_version("5.0.1").unwrap() < OLDEST);
    }

    #[test]
    fn every_part_that_an_argument_list_names_is_looked_for() {
        let sources = [include_str!("../../media/encode.rs"), include_str!("../../media/still.rs")];
        let sources = sources.map(|source| source.split("#[cfg(test)]").next().unwrap()).concat();
        let known: Vec<&str> = [ENCODERS, FILTERS, BITSTREAM_FILTERS, MUXERS].concat();
        for name in &known {
            assert!(sources.contains(name), "{name} is looked for and not used");
        }
        // Names in the texts: behind an option, or at the start of a filter of a chain.
        let after = |option: &str| {
            let words = sources.split(option).skip(1).filter_map(|rest| rest.split([' ', '=', '"', '{']).next());
            words.filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let mut used = [after("-c:v "), after("-c:a "), after("-bsf:v "), after("-f ")].concat();
        for text in sources.split('"').skip(1).step_by(2) {
            let filters = text.split([',', ';']).filter_map(|filter| {
                let filter = filter.rsplit(']').find(|part| !part.is_empty()).unwrap_or(filter);
                filter.trim_start_matches('[').split_once('=').map(|(name, _)| name.to_owned())
            });
            used.extend(filters.filter(|name| name.len() > 2 && name.chars().all(|c| c.is_ascii_lowercase())));
        }
        for name in used.iter().filter(|name| !["lavfi", "ih", "copy"].contains(&name.as_str())) {
            assert!(known.contains(&name.as_str()), "{name} is used and not looked for");
        }
    }

    #[tokio::test]
    async fn a_missing_program_says_how_to_install_it() {
        let lines = ffmpeg(Path::new("/nowhere/ffmpeg")).await;
        assert_eq!((lines.len(), lines[0].verdict), (1, Verdict::Problem));
        assert!(lines[0].remedy.as_ref().unwrap().contains("apt-get install ffmpeg"));
    }
}
