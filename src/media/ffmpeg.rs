//! Runs ffmpeg and ffprobe; the only place that starts a subprocess.
//!
//! A run owns a process group of its own. It ends when the program ends, when a limit is reached, when it is
//! cancelled, when its future is dropped and when this process dies: in no case is anything left running. Files
//! from strangers go through here, so nothing of this process's environment goes with them.

use std::{
    collections::VecDeque,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{LazyLock, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    runtime::Handle,
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use super::exit::{self, Ended, FfmpegError};

/// How long a program that was asked to stop may take before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
const STDERR_TAIL_BYTES: usize = 64 << 10;
/// A line longer than this is cut: our own formats stay far below.
const LINE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Ffmpeg,
    Ffprobe,
}

impl Program {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ffmpeg => "ffmpeg",
            Self::Ffprobe => "ffprobe",
        }
    }
}

/// What one run may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub wall: Duration,
    /// Longest time without a line that shows progress; `None` where none is expected.
    pub stall: Option<Duration>,
    pub cpu: Duration,
    /// Largest file it may write; past it the kernel ends it.
    pub file_bytes: u64,
    /// Added to its scheduling priority, so that heartbeats and requests come first.
    pub nice: i32,
}

impl Limits {
    /// For looking at a file: it writes nothing.
    pub const PROBE: Self =
        Self { wall: Duration::from_secs(15), stall: None, cpu: Duration::from_secs(15), file_bytes: 0, nice: 5 };
}

/// What a line on standard output was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The work moved on.
    Moved,
    Same,
    /// The work is done and only the file is being finished, which shows no progress: no more stall limit.
    Finishing,
}

/// Where the two programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    ffmpeg: PathBuf,
    ffprobe: PathBuf,
}

impl Tools {
    /// Bare names are looked up once, here, because the programs themselves start with an empty environment.
    pub fn find(ffmpeg: &Path, ffprobe: &Path) -> Self {
        Self { ffmpeg: on_path(ffmpeg), ffprobe: on_path(ffprobe) }
    }

    /// Runs to the end, gives every line of standard output to `on_line` and returns the tail of standard error.
    pub async fn run(
        &self,
        program: Program,
        args: &[OsString],
        limits: &Limits,
        cancel: &CancellationToken,
        on_line: &mut (dyn FnMut(&str) -> Line + Send),
    ) -> Result<String, FfmpegError> {
        if cancel.is_cancelled() {
            return Err(FfmpegError::Cancelled);
        }
        let name = program.name();
        let mut child = spawn(self.command(program, args, limits))
            .await
            .map_err(|source| FfmpegError::Spawn { program: name, source })?;
        let mut group = Group::of(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let moved = Mutex::new(Some(Instant::now()));
        let stdout_lines = async {
            match stdout {
                Some(stdout) => read_lines(stdout, on_line, &moved).await,
                None => Ok(()),
            }
        };
        let stderr_tail = async {
            match stderr {
                Some(stderr) => read_tail(stderr).await,
                None => Ok(String::new()),
            }
        };
        let work = async {
            // Both pipes are drained at once, or the program blocks on the one that is full.
            let (lines, tail) = tokio::join!(stdout_lines, stderr_tail);
            let status = child.wait().await;
            lines.and(status.and_then(|status| tail.map(|tail| (status, tail))))
        };
        tokio::pin!(work);

        let stopped = tokio::select! {
            ended = &mut work => {
                group.disarm();
                let (status, stderr) = ended.map_err(|source| FfmpegError::Pipe { program: name, source })?;
                let judged = exit::judge(&Ended {
                    status,
                    stderr: &stderr,
                    cpu_limit: limits.cpu,
                    file_limit_bytes: limits.file_bytes,
                });
                return judged.map(|()| stderr);
            }
            () = cancel.cancelled() => FfmpegError::Cancelled,
            () = tokio::time::sleep(limits.wall) => FfmpegError::TooSlow { limit: limits.wall },
            limit = stalled(&moved, limits.stall) => FfmpegError::Stalled { limit },
        };
        group.signal(libc::SIGTERM);
        if tokio::time::timeout(STOP_GRACE, &mut work).await.is_err() {
            group.signal(libc::SIGKILL);
            // A killed process is reaped at once, unless the kernel itself hangs on a disk.
            let _ = tokio::time::timeout(STOP_GRACE, &mut work).await;
        }
        Err(stopped)
    }

    /// Runs to the end and returns all of standard output, which may not be longer than `max_bytes`.
    pub async fn read(
        &self,
        program: Program,
        args: &[OsString],
        limits: &Limits,
        cancel: &CancellationToken,
        max_bytes: usize,
    ) -> Result<String, FfmpegError> {
        let mut text = String::new();
        let mut cut = false;
        let mut keep = |line: &str| {
            cut |= text.len() + line.len() >= max_bytes;
            if !cut {
                text.push_str(line);
                text.push('\n');
            }
            Line::Moved
        };
        self.run(program, args, limits, cancel, &mut keep).await?;
        if cut {
            return Err(FfmpegError::BadMedia { detail: "it describes itself at too great length".into() });
        }
        Ok(text)
    }

    fn command(&self, program: Program, args: &[OsString], limits: &Limits) -> Command {
        let path = match program {
            Program::Ffmpeg => &self.ffmpeg,
            Program::Ffprobe => &self.ffprobe,
        };
        let mut command = Command::new(path);
        command
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let confine = confinement(limits);
        // SAFETY: between fork and exec only system calls are made; nothing is allocated, no lock is taken.
        unsafe { command.pre_exec(confine) };
        command
    }
}

/// What the child does to itself before it becomes ffmpeg.
fn confinement(limits: &Limits) -> impl FnMut() -> std::io::Result<()> + Send + Sync + 'static {
    let (cpu_seconds, file_bytes, nice) = (limits.cpu.as_secs().max(1), limits.file_bytes, limits.nice);
    let parent = std::process::id();
    move || {
        // The hard limit lies above the soft one, so that the end is a SIGXCPU with a name and not a bare SIGKILL.
        limit(libc::RLIMIT_CPU as libc::c_int, cpu_seconds, cpu_seconds + 5)?;
        limit(libc::RLIMIT_FSIZE as libc::c_int, file_bytes, file_bytes)?;
        limit(libc::RLIMIT_CORE as libc::c_int, 0, 0)?;
        // SAFETY: plain system calls on this very process.
        unsafe {
            libc::setpriority(libc::PRIO_PROCESS, 0, nice);
            #[cfg(target_os = "linux")]
            {
                // Set in the child, so it can be too late: a parent that died in between is noticed below.
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
                    || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                {
                    return Err(std::io::Error::last_os_error());
                }
            }
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(std::io::Error::from_raw_os_error(libc::ECHILD));
            }
        }
        Ok(())
    }
}

fn limit(resource: libc::c_int, soft: u64, hard: u64) -> std::io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is to a live value of the right type.
    match unsafe { libc::setrlimit(resource as _, &limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// The process group of one run; killed when dropped before the run was seen to end.
struct Group(Option<libc::pid_t>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| libc::pid_t::try_from(id).ok());
        #[cfg(target_os = "linux")]
        if let Some(id) = id {
            // When memory runs out the kernel should end this and not the worker. Best effort: it may be gone.
            let _ = std::fs::write(format!("/proc/{id}/oom_score_adj"), "900");
        }
        Self(id)
    }

    fn signal(&self, signal: libc::c_int) {
        if let Some(id) = self.0 {
            // SAFETY: a plain system call. The number is still the group's: its leader is unreaped, or has been
            // for no longer than it takes to get here.
            unsafe { libc::killpg(id, signal) };
        }
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
    }
}

/// Starts children on a thread that lives as long as the process. The kernel's parent-death signal follows the
/// *thread* that forked, and the runtime's own threads come and go.
async fn spawn(command: Command) -> std::io::Result<Child> {
    struct Request {
        command: Command,
        runtime: Handle,
        reply: oneshot::Sender<std::io::Result<Child>>,
    }
    static SPAWNER: LazyLock<Result<mpsc::Sender<Request>, String>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        let serve = move || {
            for mut request in requests {
                let _runtime = request.runtime.enter();
                // Nobody waiting any more means the child is dropped, and killed by that.
                let _ = request.reply.send(request.command.spawn());
            }
        };
        match std::thread::Builder::new().name("ffmpeg-spawner".into()).spawn(serve) {
            Ok(_) => Ok(sender),
            Err(error) => Err(error.to_string()),
        }
    });
    let gone = || std::io::Error::other("the thread that starts subprocesses is gone");
    let sender = SPAWNER.as_ref().map_err(|error| std::io::Error::other(error.as_str()))?;
    let (reply, answer) = oneshot::channel();
    sender.send(Request { command, runtime: Handle::current(), reply }).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// When the work last moved; `None` once there is no more to expect.
type Moved = Mutex<Option<Instant>>;

async fn stalled(moved: &Moved, limit: Option<Duration>) -> Duration {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let last = *moved.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = last else { return std::future::pending().await };
        match (last + limit).checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
            _ => return limit,
        }
    }
}

async fn read_lines(
    mut stdout: impl AsyncRead + Unpin,
    on_line: &mut (dyn FnMut(&str) -> Line + Send),
    moved: &Moved,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut line = Vec::new();
    loop {
        let read = stdout.read(&mut buffer).await?;
        for &byte in &buffer[..read] {
            match byte {
                b'\n' => {
                    let now = match on_line(&String::from_utf8_lossy(&line)) {
                        Line::Moved => Some(Instant::now()),
                        Line::Finishing => None,
                        Line::Same => *moved.lock().unwrap_or_else(PoisonError::into_inner),
                    };
                    *moved.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    line.clear();
                }
                _ if line.len() < LINE_BYTES => line.push(byte),
                _ => {}
            }
        }
        if read == 0 {
            if !line.is_empty() {
                on_line(&String::from_utf8_lossy(&line));
            }
            return Ok(());
        }
    }
}

async fn read_tail(mut stderr: impl AsyncRead + Unpin) -> std::io::Result<String> {
    let mut buffer = vec![0; 8 << 10];
    let mut tail = VecDeque::with_capacity(STDERR_TAIL_BYTES.min(8 << 10));
    loop {
        let read = stderr.read(&mut buffer).await?;
        if read == 0 {
            return Ok(String::from_utf8_lossy(tail.make_contiguous()).into_owned());
        }
        tail.extend(&buffer[..read]);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}

fn on_path(program: &Path) -> PathBuf {
    if program.components().count() != 1 {
        return program.to_owned();
    }
    #[expect(clippy::disallowed_methods, reason = "PATH says where programs are; it is no setting of ours")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| program.to_owned())
}
