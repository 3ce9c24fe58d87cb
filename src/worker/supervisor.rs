//! The thin parent of a worker: it starts it, forwards signals, records how it died, and starts it again.
//!
//! A dead process cannot say why it died, and the jobs it held need to know: a signal, out of memory, an exit code,
//! the last words on standard error (E11). If the parent died too, the relay says "process vanished".

use std::{
    collections::VecDeque,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Context;
use sqlx::{Connection, PgConnection};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use crate::{config::Config, db, jobs::Queue, jobs::ledger, shutdown, telemetry::chain};

/// Lines of standard error that are kept for the record.
const LAST_LINES: usize = 12;
const LAST_LINE_CHARS: usize = 300;
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

async fn supervise(config: &Config, queue: Queue) -> anyhow::Result<()> {
    let stop = shutdown::on_signal()?;
    let mut pause = FIRST_PAUSE;
    loop {
        let (process, started) = (Uuid::new_v4(), Instant::now());
        let out_of_memory_before = out_of_memory_kills();
        let mut child = start(process).context("the worker could not be started")?;
        let last_lines = forward_stderr(&mut child);
        let status = wait(&mut child, &stop).await?;
        if status.success() {
            return Ok(());
        }
        let cause = cause_of(status, out_of_memory_kills() > out_of_memory_before, &last_lines);
        error!(%queue, cause, "the worker died");
        // Beside the restart, not before it: the ledger may be what is away.
        let record = tokio::spawn(record(config.clone(), process, cause));
        if stop.is_cancelled() {
            let _ended = record.await;
            anyhow::bail!("the worker did not stop in order: {status}");
        }
        pause = if started.elapsed() > LIVED { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        let _stopping = tokio::time::timeout(pause, stop.cancelled()).await;
        if stop.is_cancelled() {
            let _ended = record.await;
            return Ok(());
        }
    }
}

fn start(process: Uuid) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--supervised")
        .arg(process.to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits for the end; passes a request to stop on once, and lets the worker take its grace time.
async fn wait(child: &mut Child, stop: &CancellationToken) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        () = stop.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|pid| libc::pid_t::try_from(pid).ok()) {
        // SAFETY: the call takes numbers only; the child is not reaped yet, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
    child.wait().await
}

type LastLines = Arc<Mutex<VecDeque<String>>>;

fn forward_stderr(child: &mut Child) -> LastLines {
    let last_lines = LastLines::default();
    let Some(stderr) = child.stderr.take() else { return last_lines };
    let kept = Arc::clone(&last_lines);
    tokio::spawn(async move {
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
    last_lines
}

fn cause_of(status: ExitStatus, out_of_memory: bool, last_lines: &LastLines) -> String {
    let how = match (status.signal(), status.code()) {
        (Some(libc::SIGKILL), _) if out_of_memory => "out of memory (killed by the kernel)".to_owned(),
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "an unknown end".to_owned(),
    };
    let last_lines = last_lines.lock().expect("nothing panics while it holds this lock");
    match last_lines.back() {
        Some(last) => format!("{how}; last words: {last}"),
        None => how,
    }
}

/// Kills for lack of memory in this control group so far; zero where there is none.
fn out_of_memory_kills() -> u64 {
    let events = std::fs::read_to_string("/sys/fs/cgroup/memory.events").unwrap_or_default();
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

async fn record(config: Config, process: Uuid, cause: String) {
    let until = Instant::now() + RECORD_WITHIN;
    loop {
        let attempt = async {
            let options = db::connect_options(&config.database, "multivio-supervisor")?;
            let mut db = PgConnection::connect_with(&options).await?;
            ledger::report_death(&mut db, process, &cause).await?;
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
