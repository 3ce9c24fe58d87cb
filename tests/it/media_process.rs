//! ffmpeg at arm's length: whatever happens, it ends, and nothing of it is left.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use multivio::media::{
    exit::{Class, FfmpegError},
    ffmpeg::{Limits, Line, Program, Tools},
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::harness::eventually;

const LIMITS: Limits = Limits {
    wall: Duration::from_secs(60),
    stall: None,
    cpu: Duration::from_secs(60),
    file_bytes: 100 << 20,
    nice: 10,
};

/// Shell scripts in ffmpeg's place; each notes the numbers of its processes in a file.
struct Stand {
    folder: TempDir,
}

impl Stand {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tools(&self, script: &str) -> Tools {
        let path = self.path("program");
        std::fs::write(
            &path,
            format!("#!/bin/bash\nexport PATH=/usr/bin:/bin\ncd {}\n{script}\n", self.folder.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        Tools::find(&path, &path)
    }

    /// The processes that the script has noted, once there are this many.
    async fn processes(&self, count: usize) -> Vec<u32> {
        let path = self.path("pids");
        eventually(Duration::from_secs(20), "the script to note its processes", || {
            let pids: Vec<u32> = std::fs::read_to_string(&path)
                .unwrap_or_default()
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect();
            async move { (pids.len() == count).then_some(pids) }
        })
        .await
    }
}

async fn run(tools: &Tools, limits: &Limits, cancel: &CancellationToken) -> Result<String, FfmpegError> {
    tools.run(Program::Ffmpeg, &[], limits, cancel, &mut |_| Line::Moved).await
}

fn is_alive(pid: u32) -> bool {
    // A zombie waits to be reaped by whoever adopted it; it runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

async fn all_gone(pids: &[u32]) {
    let pids = pids.to_vec();
    eventually(Duration::from_secs(10), "all processes to end", || {
        let left = pids.iter().filter(|pid| is_alive(**pid)).count();
        async move { (left == 0).then_some(()) }
    })
    .await;
}

const WITH_A_CHILD: &str = "sleep 1000 & echo $$ >> pids; echo $! >> pids; wait";

#[tokio::test]
async fn cancelling_ends_the_whole_group() {
    let stand = Stand::new();
    let tools = stand.tools(WITH_A_CHILD);
    let cancel = CancellationToken::new();
    let (ended, pids) = tokio::join!(run(&tools, &LIMITS, &cancel), async {
        let pids = stand.processes(2).await;
        cancel.cancel();
        pids
    });
    assert!(matches!(ended, Err(FfmpegError::Cancelled)), "{ended:?}");
    all_gone(&pids).await;
}

#[tokio::test]
async fn what_does_not_listen_is_killed_after_its_grace() {
    let stand = Stand::new();
    let tools = stand.tools("trap '' TERM; (trap '' TERM; echo $BASHPID >> pids; while :; do sleep 1; done) & echo $$ >> pids; while :; do sleep 1; done");
    let cancel = CancellationToken::new();
    let (ended, (pids, cancelled_at)) = tokio::join!(run(&tools, &LIMITS, &cancel), async {
        let pids = stand.processes(2).await;
        cancel.cancel();
        (pids, Instant::now())
    });
    assert!(matches!(ended, Err(FfmpegError::Cancelled)), "{ended:?}");
    let took = cancelled_at.elapsed();
    assert!(took >= Duration::from_millis(4_900) && took < Duration::from_secs(15), "{took:?}");
    all_gone(&pids).await;
}

#[tokio::test]
async fn dropping_the_run_kills_the_group_at_once() {
    let stand = Stand::new();
    let tools = stand.tools(&format!("trap '' TERM; {WITH_A_CHILD}"));
    let cancel = CancellationToken::new();
    let pids = tokio::select! {
        ended = run(&tools, &LIMITS, &cancel) => panic!("it ended by itself: {ended:?}"),
        pids = stand.processes(2) => pids,
    };
    all_gone(&pids).await;
}

#[tokio::test]
async fn a_run_that_takes_too_long_or_stands_still_is_ended() {
    let stand = Stand::new();
    let tools = stand.tools("while :; do echo frame=1; sleep 0.05; done");
    let never = CancellationToken::new();
    let short = Limits { wall: Duration::from_millis(300), ..LIMITS };
    let ended = run(&tools, &short, &never).await;
    assert!(matches!(ended, Err(FfmpegError::TooSlow { .. })), "{ended:?}");
    // It talks, but says nothing new.
    let patient = Limits { stall: Some(Duration::from_millis(300)), ..LIMITS };
    let ended = tools.run(Program::Ffmpeg, &[], &patient, &never, &mut |_| Line::Same).await;
    assert!(matches!(ended, Err(FfmpegError::Stalled { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_finished_encode_may_be_silent_while_its_file_is_completed() {
    let stand = Stand::new();
    let tools = stand.tools("echo progress=end; sleep 1");
    let limits = Limits { stall: Some(Duration::from_millis(200)), ..LIMITS };
    let mut finishing = |_: &str| Line::Finishing;
    let ended = tools.run(Program::Ffmpeg, &[], &limits, &CancellationToken::new(), &mut finishing).await;
    assert!(ended.is_ok(), "{ended:?}");
}

#[tokio::test]
async fn a_flood_on_both_pipes_blocks_nothing_and_only_its_end_is_kept() {
    let stand = Stand::new();
    let tools = stand
        .tools("head -c 3000000 /dev/zero | tr '\\0' 'x'; head -c 3000000 /dev/zero | tr '\\0' 'y' >&2; echo last >&2");
    let mut longest = 0;
    let mut on_line = |line: &str| {
        longest = longest.max(line.len());
        Line::Moved
    };
    let said = tools.run(Program::Ffmpeg, &[], &LIMITS, &CancellationToken::new(), &mut on_line).await.unwrap();
    assert!(said.ends_with("last\n") && said.len() <= 64 << 10, "{} bytes", said.len());
    assert!(longest <= 64 << 10);
    let all = tools.read(Program::Ffmpeg, &[], &LIMITS, &CancellationToken::new(), 1000).await;
    assert!(matches!(all, Err(FfmpegError::BadMedia { .. })), "{all:?}");
}

#[tokio::test]
async fn nothing_of_our_environment_goes_with_it() {
    let stand = Stand::new();
    // The harness's own environment is never empty: cargo sets dozens of variables.
    let tools = stand.tools("exec env");
    let said = tools.read(Program::Ffmpeg, &[], &LIMITS, &CancellationToken::new(), 1 << 16).await.unwrap();
    let names: Vec<&str> = said.lines().filter_map(|line| line.split('=').next()).collect();
    let known = ["LC_ALL", "PATH", "PWD", "OLDPWD", "SHLVL", "_"];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
}

#[tokio::test]
async fn too_large_a_file_and_too_much_processor_time_are_told_apart() {
    let stand = Stand::new();
    let never = CancellationToken::new();
    let small = Limits { file_bytes: 100_000, ..LIMITS };
    let ended = run(&stand.tools("exec head -c 1000000 /dev/zero > large"), &small, &never).await;
    assert!(matches!(ended, Err(FfmpegError::OutputTooLarge { limit_bytes: 100_000 })), "{ended:?}");
    assert_eq!(std::fs::metadata(stand.path("large")).unwrap().len(), 100_000);
    let busy = Limits { cpu: Duration::from_secs(1), ..LIMITS };
    let ended = run(&stand.tools("while :; do :; done"), &busy, &never).await;
    assert!(matches!(ended, Err(FfmpegError::CpuTime { .. })), "{ended:?}");
}

#[tokio::test]
async fn a_crash_is_kept_away_and_a_kill_is_tried_with_less() {
    let stand = Stand::new();
    let never = CancellationToken::new();
    let ended = run(&stand.tools("kill -SEGV $$"), &LIMITS, &never).await.unwrap_err();
    assert_eq!(ended.class(), Class::Quarantine, "{ended}");
    let ended = run(&stand.tools("kill -KILL $$"), &LIMITS, &never).await.unwrap_err();
    assert_eq!(ended.class(), Class::RetrySmaller, "{ended}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_said_to_be() {
    let tools = Tools::find(Path::new("/nowhere/ffmpeg"), Path::new("/nowhere/ffprobe"));
    let ended = run(&tools, &LIMITS, &CancellationToken::new()).await;
    assert!(matches!(ended, Err(FfmpegError::Spawn { program: "ffmpeg", .. })), "{ended:?}");
}

/// The worker is killed in the middle: the kernel ends what it had started.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_killed_worker_leaves_no_orphan() {
    let stand = Stand::new();
    stand.tools("echo $$ >> pids; exec sleep 1000");
    let mut worker = tokio::process::Command::new(std::env::current_exe().unwrap());
    worker
        .args(["--exact", "media_process::stands_for_a_worker", "--ignored", "--nocapture"])
        .env("STAND_PROGRAM", stand.path("program"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut worker = worker.spawn().unwrap();
    let pids = stand.processes(1).await;
    assert!(is_alive(pids[0]));
    worker.kill().await.unwrap();
    all_gone(&pids).await;
}

#[ignore = "run as a process of its own by a_killed_worker_leaves_no_orphan"]
#[tokio::test(flavor = "multi_thread")]
async fn stands_for_a_worker() {
    #[expect(clippy::disallowed_methods, reason = "handed over by the test that starts this process")]
    let Some(program) = std::env::var_os("STAND_PROGRAM") else { return };
    let tools = Tools::find(Path::new(&program), Path::new(&program));
    let ended = run(&tools, &LIMITS, &CancellationToken::new()).await;
    panic!("it ended by itself: {ended:?}");
}
