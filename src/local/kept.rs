//! A program that is started again when it dies, until it is told to stop.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{LocalError, Process, Spawning, process::tail};

const LOOK_EVERY: Duration = Duration::from_millis(50);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A program that lived this long did not die of its start.
const LIVED: Duration = Duration::from_secs(60);
/// A log beyond this becomes the old one, and the old one before it goes.
const LOG_LIMIT_BYTES: u64 = 20 << 20;

/// What to run, and how much to say about it.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub name: &'static str,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub log: PathBuf,
    /// Also show its log on our standard error.
    pub verbose: bool,
    /// How long it may take to stop after SIGTERM.
    pub grace: Duration,
}

/// A program under our care. [`Kept::stop`] ends it in order; dropping it kills it.
#[derive(Debug)]
pub struct Kept {
    recipe: Arc<Recipe>,
    stop: CancellationToken,
    care: JoinHandle<()>,
}

impl Kept {
    /// Starts it. What goes wrong at once (no such program) is an error here; what goes wrong later is a restart.
    pub fn start(recipe: Recipe) -> Result<Self, LocalError> {
        let recipe = Arc::new(recipe);
        let log = Log::open(&recipe).map_err(LocalError::io(format!("write {}", recipe.log.display())))?;
        let first = spawn(&recipe, &log)?;
        let stop = CancellationToken::new();
        let care = tokio::spawn(care(first, recipe.clone(), log, stop.clone()));
        Ok(Self { recipe, stop, care })
    }

    pub fn name(&self) -> &'static str {
        self.recipe.name
    }

    /// The end of what it said.
    pub fn last_words(&self) -> String {
        tail(&self.recipe.log)
    }

    /// Asks it to stop; [`Self::stopped`] waits. Apart, so that several stop at the same time.
    pub fn ask_to_stop(&self) {
        self.stop.cancel();
    }

    pub async fn stopped(mut self) {
        self.stop.cancel();
        // It cannot be cancelled, and a panic in it was already shown.
        let _ = (&mut self.care).await;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The process is the task's own, and goes with it.
        self.care.abort();
    }
}

async fn care(mut process: Process, recipe: Arc<Recipe>, log: Log, stop: CancellationToken) {
    let mut pauses = Pauses::default();
    loop {
        pauses.up();
        let status = loop {
            if let Some(status) = process.exit_status() {
                break status;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => {
                    if process.stop(libc::SIGTERM, recipe.grace).await.is_none() {
                        log.tell(&format!("did not stop within {} s and was killed", recipe.grace.as_secs()));
                    }
                    return;
                }
            }
        };
        let pause = pauses.next();
        let seconds = pause.as_secs_f32();
        log.tell(&format!("ended with {status}; starts again in {seconds:.0} s ({})", recipe.log.display()));
        // What it left running in its group goes before its successor comes.
        drop(process);
        process = loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            match spawn(&recipe, &log) {
                Ok(process) => break process,
                Err(error) => log.tell(&crate::telemetry::chain(&error)),
            }
        };
    }
}

/// How long to wait before each new start: longer from time to time, and short again after a long life.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    last: Option<Duration>,
    up_since: Option<Instant>,
}

impl Pauses {
    /// It has just come up.
    pub(super) fn up(&mut self) {
        self.up_since = Some(Instant::now());
    }

    /// After an end, or a start that failed.
    pub(super) fn next(&mut self) -> Duration {
        let lived = self.up_since.take().is_some_and(|since| since.elapsed() > LIVED);
        let pause = match self.last {
            Some(last) if !lived => (last * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        *self.last.insert(pause)
    }
}

fn spawn(recipe: &Recipe, log: &Log) -> Result<Process, LocalError> {
    let mut command = Command::new(&recipe.program);
    command.args(&recipe.args).envs(recipe.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::spawn(recipe.name, command, Spawning::default())
        .map_err(LocalError::io(format!("run {}", recipe.program.display())))?;
    let log = log.clone();
    process.follow(move |_, line| log.line(line));
    Ok(process)
}

/// A log file of bounded size, shared by those who write to it.
#[derive(Debug, Clone)]
struct Log {
    name: &'static str,
    verbose: bool,
    file: Arc<Mutex<LogFile>>,
}

#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Log {
    fn open(recipe: &Recipe) -> io::Result<Self> {
        let file = LogFile { path: recipe.log.clone(), file: begin(&recipe.log)?, bytes: 0 };
        Ok(Self { name: recipe.name, verbose: recipe.verbose, file: Arc::new(Mutex::new(file)) })
    }

    fn line(&self, line: &str) {
        if self.verbose {
            eprintln!("{:>8} | {line}", self.name);
        }
        let mut log = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = log.write(line) {
            // A full disk must not end the program whose log this is.
            eprintln!("{:>8} | its log cannot be written: {error}", self.name);
        }
    }

    /// Something that whoever watches has to know.
    fn tell(&self, text: &str) {
        eprintln!("{:>8} | {text}", self.name);
    }
}

impl LogFile {
    fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > LOG_LIMIT_BYTES {
            self.file = begin(&self.path)?;
            self.bytes = 0;
        }
        self.bytes += line.len() as u64 + 1;
        writeln!(self.file, "{line}")
    }
}

/// A new file; the one before it is kept as `.old`.
fn begin(path: &Path) -> io::Result<File> {
    match fs::rename(path, path.with_extension("old")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(folder: &Path, script: &str) -> Recipe {
        Recipe {
            name: "child",
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("FOLDER".into(), folder.display().to_string())],
            log: folder.join("child.log"),
            verbose: false,
            grace: Duration::from_secs(5),
        }
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_program_that_dies_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::start(recipe(folder.path(), "echo started >> $FOLDER/starts; exit 1")).unwrap();
        let starts = || fs::read_to_string(folder.path().join("starts")).unwrap_or_default().lines().count();
        until("two starts", || starts() >= 2).await;
        kept.stopped().await;
    }

    #[tokio::test]
    async fn a_program_that_is_told_to_stop_gets_its_time_and_is_not_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let script = "trap 'sleep 0.2; echo done >> $FOLDER/end; exit 0' TERM; echo up; while :; do sleep 0.05; done";
        let kept = Kept::start(recipe(folder.path(), script)).unwrap();
        until("it is up", || kept.last_words().contains("up")).await;
        kept.stopped().await;
        assert_eq!(fs::read_to_string(folder.path().join("end")).unwrap(), "done\n");
    }

    #[test]
    fn what_dies_of_its_start_is_started_less_and_less_often() {
        let mut pauses = Pauses::default();
        let waits: Vec<_> = std::iter::repeat_with(|| {
            pauses.up();
            pauses.next()
        })
        .take(10)
        .collect();
        assert!(waits.is_sorted() && waits[0] == FIRST_PAUSE && waits[9] == LONGEST_PAUSE, "{waits:?}");
        pauses.up_since = Instant::now().checked_sub(2 * LIVED);
        assert_eq!(pauses.next(), FIRST_PAUSE, "it did not die of its start");
    }

    #[test]
    fn a_log_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("child.log");
        let mut log = LogFile { path: path.clone(), file: begin(&path).unwrap(), bytes: LOG_LIMIT_BYTES + 1 };
        log.write("after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after\n");
        assert!(path.with_extension("old").exists());
    }
}
