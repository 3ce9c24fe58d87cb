//! `bin/setup` on machines that it cannot be tried on: a copy that sees only programs that are made up here, none of
//! which does anything but write down that it was called.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

use tempfile::TempDir;

/// A machine with what a build needs and nothing else.
struct Machine {
    place: TempDir,
}

/// What `bin/setup` did there.
struct Done {
    code: Option<i32>,
    said: String,
    /// Every call of a program that could change the machine, one a line.
    calls: String,
}

impl Machine {
    fn new() -> Self {
        let machine = Self { place: tempfile::tempdir().unwrap() };
        for folder in ["bin", "usr", "package"] {
            fs::create_dir(machine.path(folder)).unwrap();
        }
        for tool in ["bash", "sh", "cat", "cp", "paste", "rm", "sed"] {
            let found = multivio::local::find_in_path(tool).unwrap_or_else(|| panic!("{tool} is in PATH"));
            symlink(found, machine.path("bin").join(tool)).unwrap();
        }
        for (name, script) in [("cargo", ""), ("cc", "cat >/dev/null"), ("make", ""), ("id", "echo 1000")] {
            machine.program("bin", name, script);
        }
        machine.kernel("Linux");
        machine.program("bin", "apt-get", "");
        machine.program("bin", "systemctl", r#"[ "$1" != cat ] || [ -e "$PLACE/unit-$2" ]"#);
        machine.program(
            "bin",
            "dpkg-query",
            r#"for last; do :; done; [ -e "$PLACE/dpkg-$last" ] && cat "$PLACE/dpkg-$last""#,
        );
        // Nobody becomes root here: it is written down, and packages that are installed are only then there.
        let sudo = r#"printf '%s\n' "$*" >>"$PLACE/calls"; case "$*" in *tee*) cat >/dev/null ;; *install*) cp "$PLACE/package/"* "$PLACE/bin" ;; esac"#;
        machine.program("bin", "sudo", sudo);
        for (name, script) in FRESH {
            machine.program("package", name, script);
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn program(&self, folder: &str, name: &str, script: &str) {
        let file = self.path(folder).join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn kernel(&self, name: &str) {
        self.program("bin", "uname", &format!("echo {name}"));
    }

    /// These packages' programs, new enough.
    fn has(self, names: &[&str]) -> Self {
        for (name, script) in FRESH.iter().filter(|(name, _)| names.contains(name)) {
            self.program("bin", name, script);
        }
        self
    }

    fn knows_package(&self, name: &str) {
        fs::write(self.path(&format!("dpkg-{name}")), "installed").unwrap();
    }

    fn setup(&self, args: &[&str]) -> Done {
        let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/bin/setup")).unwrap();
        // What it looks for beyond PATH it must not find either.
        let places = [("/usr/", "usr/"), ("/opt/", "opt/"), ("/Applications/", "apps/"), ("/etc/", "etc/")];
        let script = places.into_iter().fold(script, |script, (real, ours)| {
            script.replace(real, &format!("{}/", self.path(ours.trim_end_matches('/')).display()))
        });
        fs::write(self.path("setup"), script).unwrap();
        let mut command = Command::new(self.path("bin").join("bash"));
        command.arg(self.path("setup")).args(args).env_clear().env("PATH", self.path("bin"));
        let output = command.env("PLACE", self.place.path()).stdin(std::process::Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        Done { code: output.status.code(), said, calls }
    }
}

const FRESH: [(&str, &str); 6] = [
    ("postgres", "echo 'postgres (PostgreSQL) 15.14'"),
    ("initdb", "echo 'initdb (PostgreSQL) 15.14'"),
    ("redis-server", "echo 'Redis server v=7.0.15 sha=0'"),
    ("ffmpeg", "echo 'ffmpeg version 5.1.6'"),
    ("ffprobe", "echo 'ffprobe version 5.1.6'"),
    ("pgbouncer", "echo 'PgBouncer 1.18.0'"),
];

#[test]
fn what_setup_installs_neither_runs_nor_starts_at_the_next_boot() {
    let done = Machine::new().setup(&["--tests"]);
    assert_eq!(done.code, Some(0), "{}", done.said);
    let install = done.calls.lines().find(|call| call.contains("apt-get install")).expect("it installs");
    for package in ["postgresql", "redis-server", "ffmpeg", "pgbouncer"] {
        assert!(install.split(' ').any(|word| word == package), "{install}");
    }
    for service in ["redis-server", "pgbouncer"] {
        assert!(done.calls.contains(&format!("systemctl disable --quiet {service}")), "{}", done.calls);
    }
    assert!(done.calls.contains("policy-rc.d") && done.calls.contains("createcluster.conf"), "{}", done.calls);
}

#[test]
fn setup_leaves_a_server_alone_that_was_there_before() {
    let others = ["postgres", "initdb", "ffmpeg", "ffprobe"];
    for by_package in [true, false] {
        let machine = Machine::new().has(&others);
        machine.program("bin", "redis-server", "echo 'Redis server v=6.0.16 sha=0'");
        if by_package {
            machine.knows_package("redis-server");
        } else {
            // Built by hand, and run as a service.
            fs::write(machine.path("unit-redis-server"), "").unwrap();
        }
        let done = machine.setup(&[]);
        assert_eq!(done.code, Some(1), "{}", done.said);
        assert!(!done.calls.contains("install") && !done.calls.contains("systemctl"), "{}", done.calls);
        assert!(done.said.contains("too old: redis-server") && done.said.contains("do it yourself"), "{}", done.said);
    }
}

#[test]
fn setup_disables_only_the_server_that_it_has_installed() {
    let machine = Machine::new().has(&["postgres", "initdb", "ffmpeg", "ffprobe", "redis-server"]);
    machine.knows_package("redis-server");
    let done = machine.setup(&["--tests"]);
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert!(done.calls.contains("disable --quiet pgbouncer") && !done.calls.contains("redis"), "{}", done.calls);
}

#[test]
fn pgbouncer_is_asked_for_where_tests_are_to_run_and_nowhere_else() {
    let all_but_it = ["postgres", "initdb", "redis-server", "ffmpeg", "ffprobe"];
    let done = Machine::new().has(&all_but_it).setup(&["--check"]);
    assert_eq!((done.code, done.said.as_str(), done.calls.as_str()), (Some(0), "", ""));
    let done = Machine::new().has(&all_but_it).setup(&["--check", "--tests"]);
    assert_eq!((done.code, done.calls.as_str()), (Some(1), ""));
    assert!(done.said.contains("pgbouncer"), "{}", done.said);
    for (program, words) in [("bin/demo", "bin/setup\""), ("bin/dev", "bin/setup"), ("bin/test", "bin/setup --tests")] {
        let script = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(program)).unwrap();
        assert!(script.lines().any(|line| line.ends_with(words)), "{program}");
    }
}

#[test]
fn on_a_mac_setup_only_says_what_to_install() {
    let machine = Machine::new();
    machine.kernel("Darwin");
    fs::remove_file(machine.path("bin").join("apt-get")).unwrap();
    let done = machine.setup(&["--tests"]);
    assert_eq!((done.code, done.calls.as_str()), (Some(1), ""), "{}", done.said);
    assert!(done.said.contains("brew install postgresql@17 redis ffmpeg pgbouncer"), "{}", done.said);
}
