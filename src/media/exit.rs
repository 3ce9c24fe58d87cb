//! What the end of an ffmpeg run means: whose fault it was, and whether trying again can help.
//!
//! Exit codes changed between versions (1 became 183, 234, 254 ...), so the numbers alone decide nothing: signals
//! are read first, then what was said on standard error.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

/// Why a run of ffmpeg or ffprobe gave no result.
#[derive(Debug, thiserror::Error)]
pub enum FfmpegError {
    #[error("{program} could not be started")]
    Spawn {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the output of {program} could not be read")]
    Pipe {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cancelled")]
    Cancelled,
    #[error("it took longer than {} s", limit.as_secs())]
    TooSlow { limit: Duration },
    #[error("it made no progress for {} s", limit.as_secs())]
    Stalled { limit: Duration },
    #[error("it used more than its {} s of processor time", limit.as_secs())]
    CpuTime { limit: Duration },
    #[error("its output grew past {limit_bytes} bytes")]
    OutputTooLarge { limit_bytes: u64 },
    /// Killed by somebody else, which is the kernel short of memory in all but name.
    #[error("it was killed, as happens when memory runs out")]
    Killed,
    /// A crash in a parser is a bug at best and an attack at worst: the file is not tried again.
    #[error("it crashed with signal {signal}")]
    Crashed { signal: i32 },
    #[error("the disk is full")]
    NoSpace,
    #[error("the file is damaged or not what it claims to be ({detail})")]
    BadMedia { detail: String },
    /// The machine is short of something, or a disk does not answer: no fault of the file.
    #[error("the machine failed it ({detail})")]
    Machine { detail: String },
    /// Our arguments were wrong, or ffmpeg lacks a part: no fault of the file.
    #[error("ffmpeg refused its instructions, exit code {code} ({detail})")]
    Internal { code: i32, detail: String },
    /// Nothing that is known: it says nothing for certain about the file, and must not count against it for ever.
    #[error("it ended with exit code {code} ({detail})")]
    Unknown { code: i32, detail: String },
}

/// What may be done after a failed run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The same again may work: the machine was short of something.
    Retry,
    /// Once more with less memory, then give up.
    RetrySmaller,
    /// The file itself is at fault, or does not fit the limits.
    Permanent,
    /// The file broke the program: keep it away from further runs.
    Quarantine,
    /// We are at fault, or nobody knows who.
    Internal,
    Cancelled,
}

impl FfmpegError {
    pub fn class(&self) -> Class {
        match self {
            Self::Spawn { .. } | Self::Pipe { .. } | Self::NoSpace | Self::Machine { .. } => Class::Retry,
            // A busy machine looks like a stuck file; the number of attempts bounds the difference.
            Self::TooSlow { .. } | Self::Stalled { .. } => Class::Retry,
            Self::Killed => Class::RetrySmaller,
            Self::CpuTime { .. } | Self::OutputTooLarge { .. } | Self::BadMedia { .. } => Class::Permanent,
            Self::Crashed { .. } => Class::Quarantine,
            Self::Internal { .. } | Self::Unknown { .. } => Class::Internal,
            Self::Cancelled => Class::Cancelled,
        }
    }
}

/// The limits of the run, as far as its end is judged by them.
pub struct Ended<'a> {
    pub status: ExitStatus,
    pub stderr: &'a str,
    pub cpu_limit: Duration,
    pub file_limit_bytes: u64,
}

/// `Ok` for exit code 0: what was written still has to be proved.
pub fn judge(ended: &Ended<'_>) -> Result<(), FfmpegError> {
    if let Some(signal) = ended.status.signal() {
        return Err(match signal {
            libc::SIGXFSZ => FfmpegError::OutputTooLarge { limit_bytes: ended.file_limit_bytes },
            libc::SIGXCPU => FfmpegError::CpuTime { limit: ended.cpu_limit },
            libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP => FfmpegError::Killed,
            signal => FfmpegError::Crashed { signal },
        });
    }
    let code = ended.status.code().unwrap_or(-1);
    let says = |marks: &[&str]| marks.iter().any(|mark| ended.stderr.contains(mark));
    match code {
        0 => Ok(()),
        // ffmpeg answers a request to stop by closing its file and leaving with 255.
        255 if says(&["Exiting normally, received signal"]) => Err(FfmpegError::Killed),
        _ if says(&["No space left on device", "Disk quota exceeded"]) => Err(FfmpegError::NoSpace),
        _ if says(&["File too large"]) => Err(FfmpegError::OutputTooLarge { limit_bytes: ended.file_limit_bytes }),
        _ if says(&["Cannot allocate memory"]) => Err(FfmpegError::Killed),
        _ if says(THE_MACHINES) => Err(FfmpegError::Machine { detail: detail(ended.stderr) }),
        69 => Err(FfmpegError::BadMedia { detail: "too many of its frames cannot be decoded".into() }),
        _ if says(OURS) => Err(FfmpegError::Internal { code, detail: detail(ended.stderr) }),
        _ if says(THE_FILES) => Err(FfmpegError::BadMedia { detail: detail(ended.stderr) }),
        _ => Err(FfmpegError::Unknown { code, detail: detail(ended.stderr) }),
    }
}

/// What the system says when a disk, a network folder or a limit of the machine is in trouble.
const THE_MACHINES: &[&str] = &[
    "Input/output error",
    "Resource temporarily unavailable",
    "Too many open files",
    "Stale file handle",
    "Transport endpoint is not connected",
    "Connection timed out",
    "Host is down",
    "No such device",
    "Remote I/O error",
    "Interrupted system call",
];

/// What ffmpeg and ffprobe say when it is the file. Only these are held against it.
const THE_FILES: &[&str] = &[
    "Invalid data found",
    "moov atom not found",
    "not on whitelist",
    "Picture size",
    "matches no streams",
    "does not contain any stream",
    "Could not find codec parameters",
    "rror while decoding",
    "Decode error rate",
    "Decoding error",
    "Error submitting packet to decoder",
    "corrupt",
    "truncat",
    "Invalid NAL",
    "header damaged",
    "header parsing failed",
    "Not yet implemented in FFmpeg",
    "Output file is empty",
    "Nothing was written into output file",
    "End of file",
];

/// What ffmpeg says when the instructions, not the file, are wrong.
const OURS: &[&str] = &[
    "Unrecognized option",
    "Option not found",
    "No such filter",
    "Unknown encoder",
    "Unknown decoder",
    "Unknown input format",
    "Requested output format",
    "Unable to parse option",
    "Error parsing",
    "Error splitting the argument list",
    "No such file or directory",
    "Permission denied",
    "Read-only file system",
    "no path between colorspaces",
    "Error initializing complex filters",
    "Error reinitializing filters",
    "Error initializing output stream",
];

/// The most telling line of standard error, made safe to show: it quotes the file, which nobody trusts.
fn detail(stderr: &str) -> String {
    const TELLING: &[&str] =
        &["not on whitelist", "moov atom not found", "Invalid data found", "Picture size", "matches no streams"];
    let lines = || stderr.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let line = TELLING
        .iter()
        .find_map(|mark| lines().find(|line| line.contains(mark)))
        .or_else(|| lines().next())
        .unwrap_or("it gave no reason");
    let line = strip_prefixes(line);
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Takes off `[mov,mp4 @ 0x55...]`, `[error]` and the like.
fn strip_prefixes(mut line: &str) -> &str {
    while let Some(rest) = line.strip_prefix('[')
        && let Some((_, rest)) = rest.split_once(']')
    {
        line = rest.trim_start();
    }
    // "file:/scratch/source: Invalid data found": where our files lie is nobody's business.
    match line.strip_prefix("file:").and_then(|rest| rest.split_once(": ")) {
        Some((_, rest)) => rest,
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(raw: i32, stderr: &str) -> Result<(), FfmpegError> {
        judge(&Ended {
            status: ExitStatus::from_raw(raw),
            stderr,
            cpu_limit: Duration::from_secs(9),
            file_limit_bytes: 1000,
        })
    }

    const fn code(code: i32) -> i32 {
        code << 8
    }

    #[test]
    fn the_same_trouble_is_known_in_old_and_new_versions() {
        for exit in [1, 183] {
            let error = ended(code(exit), "[error] file:/s/x: Invalid data found when processing input\n").unwrap_err();
            assert_eq!(error.class(), Class::Permanent, "{error}");
            assert!(!error.to_string().contains("/s/x"), "{error}");
        }
        for exit in [1, 8, 234] {
            let error = ended(code(exit), "[error] No such filter: 'zscale'\n").unwrap_err();
            assert_eq!(error.class(), Class::Internal, "{error}");
        }
    }

    #[test]
    fn a_signal_is_read_as_what_it_is() {
        assert!(matches!(ended(libc::SIGXFSZ, ""), Err(FfmpegError::OutputTooLarge { limit_bytes: 1000 })));
        assert!(matches!(ended(libc::SIGXCPU, ""), Err(FfmpegError::CpuTime { .. })));
        assert_eq!(ended(libc::SIGKILL, "").unwrap_err().class(), Class::RetrySmaller);
        assert_eq!(ended(libc::SIGSEGV, "").unwrap_err().class(), Class::Quarantine);
    }

    #[test]
    fn a_sick_machine_is_not_held_against_the_file() {
        for said in [
            "[error] file:/s/x: Input/output error\n",
            "[error] file:/s/x: Too many open files\n",
            "[error] Error opening input: Stale file handle\n",
            "[error] pthread_create failed: Resource temporarily unavailable\n",
        ] {
            let error = ended(code(1), said).unwrap_err();
            assert_eq!(error.class(), Class::Retry, "{error}");
        }
        for said in ["", "[error] Something that nobody has met before\n"] {
            let error = ended(code(234), said).unwrap_err();
            assert_eq!(error.class(), Class::Internal, "what is not known is no fault of the file: {error}");
        }
    }

    #[test]
    fn a_refused_codec_is_the_files_fault_and_named() {
        let error = ended(code(1), "[magicyuv @ 0x1] Codec (magicyuv) not on whitelist 'h264'\nx\n").unwrap_err();
        assert_eq!(error.class(), Class::Permanent);
        assert!(error.to_string().contains("(magicyuv)"), "{error}");
    }

    #[test]
    fn a_detail_carries_no_control_characters_and_is_short() {
        let error = ended(code(1), &format!("\x1b[31m{}", "a".repeat(5000))).unwrap_err().to_string();
        assert!(!error.contains('\x1b') && error.len() < 300);
    }

    #[test]
    fn success_and_a_full_disk_are_told_apart_from_the_rest() {
        assert!(ended(0, "warnings\n").is_ok());
        assert_eq!(ended(code(1), "x: No space left on device\n").unwrap_err().class(), Class::Retry);
        assert_eq!(ended(code(69), "").unwrap_err().class(), Class::Permanent);
    }
}
