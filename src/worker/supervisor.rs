//! The thin parent of a worker: it starts it, forwards signals, records how it died, and starts it again.
//!
//! A dead process cannot say why it died, and the jobs it held need to know: a signal, out of memory, an exit code,
//! the last words on standard error (E11). If the parent died too, the relay says "process vanished".

use std::{
    collections::VecDeque,
    io,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use sqlx::Connection;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use crate::{
    config::Config,
    db::{Session, pooler},
    jobs::{
        Queue,
        ledger::{self, Death},
        worker::ENDS_AFTER_GRACE,
    },
    shutdown,
    telemetry::chain,
};

/// Lines of standard error that are kept for the record.
const LAST_LINES: usize = 12;
const LAST_LINE_CHARS: usize = 300;
/// Of these, the lines that a cause repeats.
const LAST_WORDS: usize = 3;
/// How long they are waited for.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A worker that lived this long did not die of its start.
const LIVED: Duration = Duration::from_secs(30);
/// How long the ledger may be away before a death goes unrecorded.
const RECORD_WITHIN: Duration = Duration::from_secs(60);

pub fn run(config: &Config, queue: Queue) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(supervise(config, queue))
}

/// The worker dies with its parent, however that ends.
#[cfg(target_os = "linux")]
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Other systems have no such signal: a worker whose parent was killed goes on, and is seen by its lease.
#[cfg(not(target_os = "linux"))]
pub fn die_with_parent() -> io::Result<()> {
    Ok(())
}

/// A parent that died before the worker asked to die with it sends no signal any more.
pub fn is_there(parent: Option<u32>) -> io::Result<()> {
    if parent.is_some_and(|parent| parent != std::os::unix::process::parent_id()) {
        return Err(io::Error::other("the parent of this worker is gone"));
    }
    Ok(())
}

async fn supervise(config: &Config, queue: Queue) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    let session = Session::worker(&config.database, "multivio-supervisor")?;
    pooler::watch(session, &stop).await?;
    if stop.is_cancelled() {
        return Ok(());
    }
    restart(config, queue, &stop).await
}

async fn restart(config: &Config, queue: Queue, stop: &CancellationToken) -> anyhow::Result<()> {
    // Once: after a deploy the file of this process may be another's, or have no name any more.
    let program = std::env::current_exe().context("the path of this program is not known")?;
    let mut pause = FIRST_PAUSE;
    loop {
        let (process, started) = (Uuid::new_v4(), Instant::now());
        let out_of_memory_before = out_of_memory_kills();
        let mut child = match start(&program, process) {
            Ok(child) => child,
            // No memory or no more processes, or a deploy is under way: it passes, as a crash does.
            Err(error) => {
                error!(%queue, error = %chain(&error), program = %program.display(), "the worker could not be started");
                if !rest(&mut pause, Duration::ZERO, stop).await {
                    return Ok(());
                }
                continue;
            }
        };
        let (last_lines, forwarding) = forward_stderr(&mut child);
        let status = wait(&mut child, stop, config.worker.grace + ENDS_AFTER_GRACE).await?;
        if status.success() {
            return Ok(());
        }
        // What it said last may still be on its way here; a program that it left behind may keep the line open.
        let _all_said = tokio::time::timeout(LAST_WORDS_WITHIN, forwarding).await;
        let out_of_memory = out_of_memory_kills() > out_of_memory_before;
        let cause = cause_of(status, out_of_memory, &last_lines);
        let death = match status.signal() {
            Some(libc::SIGKILL) if !out_of_memory => Death::KilledFromOutside,
            _ => Death::OwnDoing,
        };
        error!(%queue, cause, "the worker died");
        // Beside the restart, not before it: the ledger may be what is away.
        let record = tokio::spawn(record(config.clone(), process, death, cause));
        if stop.is_cancelled() {
            let _ended = record.await;
            anyhow::bail!("the worker did not stop in order: {status}");
        }
        if !rest(&mut pause, started.elapsed(), stop).await {
            let _ended = record.await;
            return Ok(());
        }
    }
}

/// Before the next start, the longer the more often it was in vain. `false`: there is to be none.
async fn rest(pause: &mut Duration, lived: Duration, stop: &CancellationToken) -> bool {
    *pause = if lived > LIVED { FIRST_PAUSE } else { (*pause * 2).min(LONGEST_PAUSE) };
    tokio::time::timeout(*pause, stop.cancelled()).await.is_err()
}

fn start(program: &Path, process: Uuid) -> io::Result<Child> {
    Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--supervised")
        .arg(process.to_string())
        .arg("--parent")
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits for the end; passes a request to stop on once, and kills a worker that has not ended `within` this time.
async fn wait(child: &mut Child, stop: &CancellationToken, within: Duration) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: the call takes numbers only; the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    match tokio::time::timeout(within, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            error!(?within, "the worker does not end; it is killed");
            child.start_kill()?;
            child.wait().await
        }
    }
}

type LastLines = Arc<Mutex<VecDeque<String>>>;

fn forward_stderr(child: &mut Child) -> (LastLines, JoinHandle<()>) {
    let last_lines = LastLines::default();
    let (stderr, kept) = (child.stderr.take(), Arc::clone(&last_lines));
    let forwarding = tokio::spawn(async move {
        let Some(stderr) = stderr else { return };
        let (mut lines, mut out) = (BufReader::new(stderr).lines(), tokio::io::stderr());
        while let Ok(Some(line)) = lines.next_line().await {
            // Whoever reads our log may be gone; the worker must not notice.
            let _gone = out.write_all(format!("{line}\n").as_bytes()).await;
            let mut kept = kept.lock().expect("nothing panics while it holds this lock");
            if kept.len() == LAST_LINES {
                kept.pop_front();
            }
            kept.push_back(line.chars().filter(|c| !c.is_control()).take(LAST_LINE_CHARS).collect());
        }
    });
    (last_lines, forwarding)
}

fn cause_of(status: ExitStatus, out_of_memory: bool, last_lines: &LastLines) -> String {
    let how = match (status.signal(), status.code()) {
        (Some(libc::SIGKILL), _) if out_of_memory => "out of memory (killed by the kernel)".to_owned(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "an unknown end".to_owned(),
    };
    let last_lines = last_lines.lock().expect("nothing panics while it holds this lock");
    if last_lines.is_empty() {
        return how;
    }
    // Another thread may have had a word after the one that tells why.
    let words: Vec<&str> = last_lines.iter().rev().take(LAST_WORDS).rev().map(String::as_str).collect();
    format!("{how}; last words: {}", words.join(" / "))
}

/// Kills for lack of memory so far, in this control group and on the whole machine; only a difference says something.
fn out_of_memory_kills() -> u64 {
    let count = |file: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    count("/sys/fs/cgroup/memory.events") + count("/proc/vmstat")
}

async fn record(config: Config, process: Uuid, death: Death, cause: String) {
    let until = Instant::now() + RECORD_WITHIN;
    loop {
        let attempt = async {
            let mut db = Session::worker(&config.database, "multivio-supervisor")?.connect().await?;
            ledger::report_death(&mut db, process, death, &cause).await?;
            db.close().await
        };
        match tokio::time::timeout(Duration::from_secs(5), attempt).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) if Instant::now() > until => {
                return warn!(error = %chain(&error), "the cause of a death was not recorded");
            }
            Err(_) if Instant::now() > until => return warn!("the cause of a death was not recorded in time"),
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}
