//! Settings that stand in several files and must agree.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use multivio::config::Config;

const SAMPLE: &str = include_str!("../../.env.sample");
const APP_SPEC: &str = include_str!("../../app-spec.yaml");
const COMPOSE: &str = include_str!("../../deploy/compose.yaml");
const MANIFEST: &str = include_str!("../../Cargo.toml");
const API_IMAGE: &str = include_str!("../../Dockerfile.api");
const WORKER_IMAGE: &str = include_str!("../../Dockerfile.worker");
const HAZARDS: &str = include_str!("../../docs/hazards.md");
const SECURITY: &str = include_str!("../../docs/security.md");

/// Between a worker's own grace time and its killing: for handing back what is not finished.
const HAND_BACK_SECONDS: u64 = 10;

#[test]
fn the_sample_lists_every_setting_that_is_read_and_no_other() {
    let asked = RefCell::new(BTreeSet::new());
    // Some are asked only when others are set, some only when others are not.
    for answer in [None, Some("1")] {
        let lookup = |name: &str| {
            asked.borrow_mut().insert(name.to_owned());
            answer.map(str::to_owned)
        };
        // Whether these values make sense is not the question.
        let _ = Config::load(&lookup);
    }
    let listed: BTreeSet<_> = sample().keys().map(|name| (*name).to_owned()).collect();
    let asked = asked.into_inner();
    assert_eq!(asked.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new(), "not in .env.sample");
    assert_eq!(listed.difference(&asked).collect::<Vec<_>>(), Vec::<&String>::new(), "in .env.sample, never read");
}

#[test]
fn the_defaults_in_the_sample_are_the_defaults() {
    let sample = sample();
    let needed = ["DATABASE_URL", "REDIS_URL"].map(|name| (name, sample[name]));
    let load = |pairs: &[(&str, &str)]| {
        let lookup = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        format!("{:?}", Config::load(&lookup).unwrap_or_else(|error| panic!("{error}")))
    };
    let without = load(&needed);
    // Examples, not defaults: nothing is set without them.
    let examples = [
        "ALLOWED_ORIGINS",
        "TRUSTED_PROXY_NETWORKS",
        "WORKER_CONCURRENCY",
        "WORKER_METRICS_LISTEN",
        "DATABASE_URL",
        "REDIS_URL",
        "TWITTER_CALLBACK_URL",
    ];
    for (name, value) in sample.iter().filter(|(name, value)| !value.is_empty() && !examples.contains(name)) {
        let with = load(&[needed[0], needed[1], (name, value)]);
        assert_eq!(with, without, "{name}={value} is not what happens without it");
    }
}

#[test]
fn whoever_stops_a_worker_waits_longer_than_the_worker_does() {
    let mut seen = 0;
    // In each block the worker's own time comes first, then that of whoever stops it.
    for (file, kill_after) in [(APP_SPEC, "grace_period_seconds:"), (COMPOSE, "stop_grace_period:")] {
        let mut grace = None;
        for line in file.lines().filter(|line| !line.trim_start().starts_with('#')) {
            if let Some(own) = number_after(line, "WORKER_GRACE_SECONDS") {
                grace = Some(own);
            }
            if let (Some(own), Some(kill)) = (grace, number_after(line, kill_after)) {
                assert!(own + HAND_BACK_SECONDS <= kill, "{own} s of grace, killed after {kill} s: {line}");
                seen += 1;
                grace = None;
            }
        }
    }
    assert!(seen >= 5, "only {seen} places were compared");
}

#[test]
fn every_worker_is_in_the_image_the_app_spec_and_compose() {
    let workers: Vec<_> =
        MANIFEST.lines().filter_map(|line| line.strip_prefix("path = \"workers/")?.strip_suffix(".rs\"")).collect();
    assert!(workers.len() >= 4, "{workers:?}");
    for worker in workers {
        let program = format!("multivio-{worker}");
        assert!(WORKER_IMAGE.contains(&format!("--bin {program}")), "{program} is not in Dockerfile.worker");
        assert!(APP_SPEC.contains(&format!("run_command: {program}\n")), "{program} is not in app-spec.yaml");
        assert!(COMPOSE.contains(&format!("[\"{program}\"]")), "{program} is not in deploy/compose.yaml");
    }
}

/// What a program starts must be in its image, whoever else has it.
#[test]
fn both_images_have_the_programs_that_are_started_in_them() {
    for (name, file) in [("Dockerfile.api", API_IMAGE), ("Dockerfile.worker", WORKER_IMAGE)] {
        let last = file.rsplit("\nFROM ").next().unwrap();
        let install = last.split("apt-get install").nth(1).expect(name).lines().next().unwrap();
        // ffprobe looks at uploads and renditions; tini buries what a crash orphans.
        for package in ["ffmpeg", "ca-certificates", "tini"] {
            assert!(install.split_whitespace().any(|word| word == package), "{name} does not install {package}");
        }
        assert!(last.contains("ENTRYPOINT [\"tini\""), "{name} does not use tini");
    }
}

/// The API refuses what no worker could do, so both read the same keys.
#[test]
fn keys_of_services_are_given_to_all_programs() {
    let shared = APP_SPEC.split("\njobs:").next().unwrap();
    let single = APP_SPEC.split("\njobs:").nth(1).unwrap();
    for name in [
        "GROK_API_KEY",
        "TOGETHER_API_KEY",
        "OPENAI_API_KEY",
        "TWITTER_CLIENT_ID",
        "TWITTER_CLIENT_SECRET",
        "PATREON_CLIENT_ID",
        "PATREON_CLIENT_SECRET",
        "PATREON_WEBHOOK_SECRET",
        "ENCRYPTION_KEY",
        "JWT_SECRET_KEY",
    ] {
        assert!(shared.contains(&format!("key: {name},")), "{name} is not among the settings of all");
        assert!(!single.contains(name), "{name} is set for a single program as well");
    }
    // Compose gives one file of settings to all of them.
    assert_eq!(COMPOSE.matches("env_file:").count(), 1);
}

#[test]
fn every_variable_of_the_app_spec_and_compose_is_a_setting() {
    let sample = sample();
    let names = APP_SPEC.lines().filter_map(|line| line.split("key: ").nth(1)?.split(',').next());
    let compose = COMPOSE.lines().filter_map(|line| line.trim().split_once(": ").map(|(name, _)| name));
    let compose = compose.filter(|name| name.contains('_') && *name == name.to_ascii_uppercase());
    let known = |name: &&str| sample.contains_key(name) || name.starts_with("POSTGRES_");
    let unknown: Vec<_> = names.chain(compose).filter(|name| !known(name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// Names and what stands behind them, commented out or not.
fn sample() -> BTreeMap<&'static str, &'static str> {
    let lines = SAMPLE.lines().filter_map(|line| line.strip_prefix('#').unwrap_or(line).split_once('='));
    lines.filter(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).collect()
}

fn number_after(line: &str, word: &str) -> Option<u64> {
    let rest = &line[line.find(word)? + word.len()..];
    let digits: String = rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// A rule whose test was renamed would be a rule that nobody proves.
#[test]
fn the_tests_that_prove_the_hazards_rules_and_fail_attacks_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in ["src", "tests", "sandbox"] {
        read_all(&root.join(folder), &mut sources);
    }
    let rows = HAZARDS.lines().chain(SECURITY.split("## Attacks").nth(1).expect("its table").lines());
    let rows = rows.filter(|line| line.starts_with("| ") && line.ends_with(" |"));
    let proofs = rows.filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next());
    let names = proofs.flat_map(|proof| proof.split('`').skip(1).step_by(2)).filter(|name| !name.contains(' '));
    let missing: Vec<_> = names.filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/hazards.md or docs/security.md names tests that do not exist: {missing:#?}");
}

fn read_all(folder: &std::path::Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// T1: an error on one side must not hide an error on the other.
#[test]
fn the_sandbox_imports_nothing_of_the_library() {
    let mut sources = String::new();
    read_all(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sandbox"), &mut sources);
    assert!(sources.contains("fn serve("), "the twins were not found");
    let code = sources.lines().filter(|line| !line.trim_start().starts_with("//"));
    let named: Vec<_> = code.filter(|line| line.contains("multivio::") || line.contains("../src/")).collect();
    assert!(named.is_empty(), "the sandbox uses the library: {named:?}");
}

/// The map is what a newcomer reads first.
#[test]
fn the_map_names_every_part_of_the_source() {
    let map = include_str!("../../ARCHITECTURE.md");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut parts = Vec::new();
    for folder in ["src", "tests", "bin"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().flatten();
        parts.extend(entries.map(|entry| (format!("{folder}/{}", entry.file_name().display()), entry.path().is_dir())));
    }
    for folder in ["workers", "sandbox", "migrations", "prompts", "docs", "deploy", ".ci"] {
        parts.push((folder.to_owned(), true));
    }
    let is_missing = |(part, is_folder): &(String, bool)| {
        let name = if *is_folder { format!("`{part}/`") } else { format!("`{part}`") };
        !map.contains(&name)
    };
    let missing: Vec<_> = parts.iter().filter(|part| is_missing(part)).collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md does not say what these are: {missing:?}");
}

/// What a build reads is what `bin/dev` builds again for.
#[test]
fn dev_watches_every_folder_that_is_built_in() {
    let dev = include_str!("../../bin/dev");
    let watched = dev.lines().find_map(|line| line.strip_prefix("sources=(")).expect("its list").trim_end_matches(')');
    let watched: BTreeSet<_> = watched.split(' ').collect();
    let mut sources = String::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    read_all(&root.join("src"), &mut sources);
    // `include_str!("../../prompts/shorten.md")`
    let included = sources.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next());
    let folders = included.filter_map(|path| path.rsplit_once("../")?.1.split_once('/').map(|(folder, _)| folder));
    let folders: BTreeSet<_> = folders.filter(|folder| root.join(folder).is_dir()).collect();
    assert!(folders.contains("prompts"), "nothing was found: {folders:?}");
    let missing: Vec<_> = folders.iter().filter(|folder| !watched.contains(*folder)).collect();
    assert!(missing.is_empty(), "bin/dev does not watch {missing:?}");
    for needed in ["src", "workers", "sandbox", "migrations", "Cargo.toml", "Cargo.lock"] {
        assert!(watched.contains(needed), "bin/dev does not watch {needed}");
    }
}
