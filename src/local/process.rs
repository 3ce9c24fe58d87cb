//! A child that cannot outlive us.
//!
//! It is stopped when its [`Process`] is dropped, and by the kernel when this process ends in any other way, also
//! by SIGKILL (on Linux, by the parent-death signal). That signal is bound to the *thread* that made the child, so
//! every child is made by one thread that lives as long as the process.

use std::{
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    net::{Ipv4Addr, TcpListener},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{OnceLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::Account;

const POLL: Duration = Duration::from_millis(5);

/// How a child is started, beyond its command line.
#[derive(Debug, Clone, Copy)]
pub struct Spawning {
    /// The user to become; only root may.
    pub account: Option<Account>,
    /// What the kernel sends when we are gone.
    pub on_our_death: libc::c_int,
}

impl Default for Spawning {
    fn default() -> Self {
        Self { account: None, on_our_death: libc::SIGKILL }
    }
}

/// Where a child said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Output,
    Error,
}

/// A child process with a process group of its own. Dropping it kills the whole group, and so does its end.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    was_seen_to_end: bool,
}

impl Process {
    pub fn spawn(name: impl Into<String>, mut command: Command, spawning: Spawning) -> io::Result<Self> {
        command.process_group(0);
        if let Some(account) = spawning.account {
            command.uid(account.uid).gid(account.gid);
        }
        die_with_parent(&mut command, spawning.on_our_death);
        Ok(Self { name: name.into(), child: on_lasting_thread(command)?, was_seen_to_end: false })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, when it has. What it left running in its group ends with that.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("a child of ours can be waited for");
        if status.is_some() && !std::mem::replace(&mut self.was_seen_to_end, true) {
            // Now and not later: while anything of the group lives its number is its own, afterwards it may be given
            // to another.
            send(-self.pid(), libc::SIGKILL);
        }
        status
    }

    /// Sends a signal to the process itself; `false` when it has ended.
    pub fn signal(&mut self, signal: libc::c_int) -> bool {
        // Asked first: a number that has been waited for may belong to another process by now.
        self.exit_status().is_none() && send(self.pid(), signal)
    }

    /// Sends a signal to it and the children in its process group.
    pub fn signal_group(&mut self, signal: libc::c_int) -> bool {
        self.exit_status().is_none() && send(-self.pid(), signal)
    }

    /// Sends a signal to it and to each of its children, whatever their group.
    pub fn signal_family(&mut self, signal: libc::c_int) -> bool {
        let alive = self.signal(signal);
        if alive {
            for child in children_of(self.id()) {
                send(child, signal);
            }
        }
        alive
    }

    /// Waits for the end, at most this long.
    pub async fn exited(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            match self.exit_status() {
                None if Instant::now() < deadline => tokio::time::sleep(POLL).await,
                status => return status,
            }
        }
    }

    /// Itself and its children, at this moment.
    pub fn family(&mut self) -> Vec<u32> {
        if self.exit_status().is_some() {
            return Vec::new();
        }
        let children = children_of(self.id()).into_iter().filter_map(|child| u32::try_from(child).ok());
        std::iter::once(self.id()).chain(children).collect()
    }

    /// Asks it to stop, waits, and kills its group when it did not. `Some` is how it ended by itself.
    pub async fn stop(&mut self, politely: libc::c_int, grace: Duration) -> Option<ExitStatus> {
        self.ask(politely);
        let status = self.exited(grace).await;
        if status.is_none() {
            self.kill().await;
        }
        status
    }

    /// SIGKILL to the process alone, as a crash would be, and its end awaited.
    pub async fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.exited(Duration::from_secs(10)).await;
    }

    /// [`Self::stop`] where nothing can be awaited.
    pub fn stop_now(&mut self, politely: libc::c_int, grace: Duration) {
        self.ask(politely);
        let deadline = Instant::now() + grace;
        while self.exit_status().is_none() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        self.end_group();
    }

    /// A stopped process hears nothing, so it is also told to go on.
    fn ask(&mut self, politely: libc::c_int) {
        self.signal(politely);
        self.signal_family(libc::SIGCONT);
    }

    fn end_group(&mut self) {
        if self.signal_group(libc::SIGKILL) {
            // Killed for certain: this returns as soon as the kernel is done with it.
            let _ = self.child.wait();
        }
    }

    /// Calls `line` with every line of its standard output and error, each from a thread of its own: between the two
    /// there is no order. Both must be piped; call at most once.
    pub fn follow(&mut self, line: impl Fn(Stream, &str) + Send + Sync + Clone + 'static) {
        let output = self.child.stdout.take().map(|pipe| (Stream::Output, Box::new(pipe) as Box<dyn Read + Send>));
        let error = self.child.stderr.take().map(|pipe| (Stream::Error, Box::new(pipe) as Box<dyn Read + Send>));
        for (stream, pipe) in [output, error].into_iter().flatten() {
            let line = line.clone();
            thread::spawn(move || {
                let mut reader = BufReader::new(pipe);
                let mut bytes = Vec::new();
                while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
                    line(stream, String::from_utf8_lossy(&bytes).trim_end());
                    bytes.clear();
                }
            });
        }
    }

    fn pid(&self) -> libc::pid_t {
        libc::pid_t::try_from(self.child.id()).expect("process numbers fit their own type")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end_group();
    }
}

/// A port of 127.0.0.1 that nobody listens on at this moment.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The end of a log file.
pub(super) fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let read = || {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(8192)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    match read() {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes), LINES),
        Err(error) => format!("({} could not be read: {error})", log.display()),
    }
}

pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(count);
    if lines.is_empty() { "  (nothing)".into() } else { format!("  {}", lines[from..].join("\n  ")) }
}

fn send(pid: libc::pid_t, signal: libc::c_int) -> bool {
    // SAFETY: plain numbers; the worst answer is an error.
    unsafe { libc::kill(pid, signal) == 0 }
}

#[cfg(target_os = "linux")]
fn children_of(pid: u32) -> Vec<libc::pid_t> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect()
}

#[cfg(not(target_os = "linux"))]
fn children_of(_pid: u32) -> Vec<libc::pid_t> {
    Vec::new()
}

#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command, signal: libc::c_int) {
    let parent = std::process::id();
    // SAFETY: between fork and exec; only calls that POSIX or Linux declare safe there, and no allocation. It runs
    // after the change of user, which would clear the setting.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(io::Error::last_os_error());
            }
            // We may have gone between fork and prctl: then no signal would ever come.
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
            Ok(())
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command, _signal: libc::c_int) {}

fn on_lasting_thread(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::SyncSender<io::Result<Child>>);
    static NURSERY: OnceLock<mpsc::Sender<Request>> = OnceLock::new();

    let nursery = NURSERY.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        let spawn = move || {
            while let Ok((mut command, answer)) = requests.recv() {
                // The asker waits; it can only be gone together with the process.
                let _ = answer.send(command.spawn());
            }
        };
        thread::Builder::new().name("nursery".into()).spawn(spawn).expect("a thread can be started");
        sender
    });
    let (answer, child) = mpsc::sync_channel(1);
    nursery.send((command, answer)).expect("the nursery lives as long as the process");
    child.recv().expect("the nursery answers every request")
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    fn is_alive(pid: libc::pid_t) -> bool {
        send(pid, 0)
    }

    fn first_line(process: &mut Process) -> String {
        let (sender, lines) = mpsc::channel();
        process.follow(move |_, line| drop(sender.send(line.to_owned())));
        lines.recv_timeout(Duration::from_secs(10)).expect("the child writes a line")
    }

    #[test]
    fn a_dropped_process_takes_its_group_with_it() {
        let mut process = Process::spawn("pair", shell("sleep 60 & echo $!; wait"), Spawning::default()).unwrap();
        let grandchild: libc::pid_t = first_line(&mut process).parse().unwrap();
        assert!(is_alive(grandchild));
        drop(process);
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_running(grandchild) {
            assert!(Instant::now() < deadline, "the grandchild lives on");
            thread::sleep(POLL);
        }
    }

    #[tokio::test]
    async fn what_a_process_leaves_running_goes_when_its_end_is_seen() {
        let mut process = Process::spawn("parent", shell("sleep 60 & echo $!"), Spawning::default()).unwrap();
        let orphan: libc::pid_t = first_line(&mut process).parse().unwrap();
        assert!(process.exited(Duration::from_secs(10)).await.is_some());
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_running(orphan) {
            assert!(Instant::now() < deadline, "the orphan lives on");
            thread::sleep(POLL);
        }
    }

    /// Alive and not merely waiting to be buried by whoever adopts orphans here.
    fn is_running(pid: libc::pid_t) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        is_alive(pid) && !stat.contains(") Z ")
    }

    #[test]
    fn a_child_survives_the_thread_that_asked_for_it() {
        let asker = thread::spawn(|| Process::spawn("child", shell("sleep 60"), Spawning::default()).unwrap());
        let mut process = asker.join().unwrap();
        thread::sleep(Duration::from_millis(50));
        assert_eq!(process.exit_status(), None);
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_request_to_stop_is_killed() {
        let mut deaf = Process::spawn("deaf", shell("trap '' TERM; echo on; sleep 60"), Spawning::default()).unwrap();
        assert_eq!(first_line(&mut deaf), "on");
        assert_eq!(deaf.stop(libc::SIGTERM, Duration::from_millis(50)).await, None);
        assert!(deaf.exit_status().is_some());
        assert!(!deaf.signal(libc::SIGTERM), "nothing is sent to a number that is no longer ours");
    }

    #[test]
    fn the_end_of_a_log_is_what_is_shown() {
        let lines: Vec<_> = (0..50).map(|n| format!("line {n}")).collect();
        let text = last_lines(&lines.join("\n"), 2);
        assert_eq!(text, "  line 48\n  line 49");
        assert_eq!(last_lines("\n", 3), "  (nothing)");
    }
}
