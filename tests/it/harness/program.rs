//! One of the product's programs, run as it is shipped.

use std::{
    collections::VecDeque,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use multivio::local::{Process, Spawning, Stream};
use serde_json::Value;

use super::{answers::Answers, eventually, wait_until};

const KEPT_LINES: usize = 50_000;
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running program with its log. Dropping it kills it; when that is because a test fails, its log is printed. An API that
/// answered otherwise than its document says fails the test.
pub struct Program {
    process: Process,
    lines: Arc<Mutex<VecDeque<(Stream, String)>>>,
    answers: Arc<Mutex<Answers>>,
}

impl Program {
    /// Starts it with this environment and nothing of ours but what finds other programs.
    pub fn start(path: &str, args: &[&str], env: &[(String, String)]) -> Self {
        let name = Path::new(path).file_name().expect("a program has a name").to_string_lossy().into_owned();
        let mut command = Command::new(path);
        // A folder without an .env file.
        command.args(args).env_clear().current_dir(env!("CARGO_TARGET_TMPDIR"));
        #[expect(clippy::disallowed_methods, reason = "what the machine needs to find programs, not a setting")]
        for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(&*name, command, Spawning::default())
            .unwrap_or_else(|error| panic!("{name} could not be started: {error}"));
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let answers = Arc::new(Mutex::new(Answers::default()));
        let (keep, heard) = (lines.clone(), answers.clone());
        process.follow(move |stream, line| {
            heard.lock().unwrap_or_else(PoisonError::into_inner).hear(line);
            let mut lines = keep.lock().unwrap_or_else(PoisonError::into_inner);
            if lines.len() == KEPT_LINES {
                lines.pop_front();
            }
            lines.push_back((stream, line.to_owned()));
        });
        Self { process, lines, answers }
    }

    /// The line of JSON with which a listening program says where: `{"url": "http://127.0.0.1:..."}`.
    pub async fn url(&mut self) -> String {
        let what = format!("{} to say where it listens", self.process.name());
        eventually(READY_WITHIN, &what, || {
            let line = self.find_line(|line| line.starts_with('{') && line.contains("\"url\""));
            let ended = self.process.exit_status();
            assert!(line.is_some() || ended.is_none(), "it ended with {ended:?}:\n{}", self.log());
            async move {
                let said: Value = serde_json::from_str(&line?).ok()?;
                Some(said["url"].as_str()?.trim_end_matches('/').to_owned())
            }
        })
        .await
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.exit_status().is_some()
    }

    /// SIGKILL to it alone, as a crash.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    pub fn pause(&mut self) {
        assert!(self.process.signal_family(libc::SIGSTOP), "{} runs", self.process.name());
    }

    pub fn resume(&mut self) {
        assert!(self.process.signal_family(libc::SIGCONT), "{} runs", self.process.name());
    }

    /// SIGTERM, and how it ended by itself within the time.
    pub async fn stop(&mut self, within: Duration) -> ExitStatus {
        self.process.signal(libc::SIGTERM);
        let what = format!("{} to end after SIGTERM", self.process.name());
        wait_until(within, &what, || {
            let ended = self.process.exit_status().is_some();
            async move { ended }
        })
        .await;
        self.process.exit_status().expect("it has ended")
    }

    /// Its end, for programs that end by themselves.
    pub async fn finish(mut self, within: Duration) -> Ended {
        let status = self.process.exited(within).await;
        let status = status.unwrap_or_else(|| panic!("{} goes on after {within:?}", self.process.name()));
        wait_until(within, "its last words", || {
            // The threads that read its pipes each hold the lines until their pipe ends.
            let is_read = Arc::strong_count(&self.lines) == 1;
            async move { is_read }
        })
        .await;
        Ended { status, said: self.log(), output: self.output() }
    }

    /// All it has said, standard output and error as they came.
    pub fn log(&self) -> String {
        self.joined(|_| true)
    }

    /// What it has said on standard output.
    pub fn output(&self) -> String {
        self.joined(|stream| stream == Stream::Output)
    }

    fn joined(&self, of: impl Fn(Stream) -> bool) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = lines.iter().filter(|(stream, _)| of(*stream)).map(|(_, line)| line.as_str());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// What it is heard to have answered so far.
    pub fn answers(&self) -> Answers {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn find_line(&self, matches: impl Fn(&str) -> bool) -> Option<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|(_, line)| line).find(|line| matches(line)).cloned()
    }
}

/// How a program ended, and what it had said.
pub struct Ended {
    pub status: ExitStatus,
    /// Standard output and error as they came.
    pub said: String,
    /// Standard output alone.
    pub output: String,
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Printed with the failing test's own output.
            println!("--- {} ({}) said:\n{}\n---", self.process.name(), self.process.id(), self.log());
            return;
        }
        if self.answers().is_empty() {
            return;
        }
        // Its last words are on their way until both pipes have ended.
        self.process.signal_group(libc::SIGKILL);
        let until = Instant::now() + LAST_WORDS_WITHIN;
        while Arc::strong_count(&self.lines) > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let answers = self.answers();
        let undocumented = answers.undocumented();
        assert!(undocumented.is_empty(), "answers that openapi.json does not know: {undocumented:?}");
    }
}
