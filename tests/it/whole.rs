//! The whole product on one machine, as a person starts it: what it prints, and what it leaves behind.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use multivio::local::ServerFolder;
use serde_json::Value;

use crate::{
    harness::{Ended, Program, eventually, full_size},
    http::client,
    media_api::walk,
    media_clips::{Clips, X264, sources},
};

const SOON: Duration = Duration::from_secs(90);

fn multivio(args: &[&str]) -> Program {
    // Somebody is waiting for the tests, too.
    let fast = ("MEDIA_X264_PRESET".to_owned(), "ultrafast".to_owned());
    Program::start(env!("CARGO_BIN_EXE_multivio"), args, &[fast])
}

/// The result among what a program said.
fn result_in(output: &str) -> Option<Value> {
    let start = output.lines().position(|line| line == "{")?;
    let end = output.lines().position(|line| line == "}")?;
    let lines: Vec<_> = output.lines().skip(start).take(end + 1 - start).collect();
    serde_json::from_str(&lines.join("\n")).ok()
}

/// `multivio up` with its files in this folder, and the addresses that it said.
async fn up_in(data: &Path) -> (Program, Value) {
    let folder = data.to_str().unwrap();
    let mut up = multivio(&["--json", "up", "--sandbox", "--data", folder, "--listen", "127.0.0.1:0"]);
    let said = eventually(SOON, "the addresses", || {
        assert!(!up.has_ended(), "{}", up.log());
        let said = result_in(&up.output());
        async move { said }
    })
    .await;
    (up, said)
}

/// Running programs that were told of a folder, or of where its servers' files are.
fn running_in(folder: &Path) -> Vec<String> {
    let servers = std::fs::read_link(folder.join("servers"));
    let folders = [Some(folder.to_owned()), servers.ok()].map(|path| path.map(|path| path.display().to_string()));
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    lines.filter(|line| folders.iter().flatten().any(|folder| line.contains(folder.as_str()))).collect()
}

#[tokio::test]
async fn up_runs_everything_says_where_and_stops_all_of_it() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let (mut up, said) = up_in(&data).await;
    let address = |name: &str| said[name].as_str().unwrap_or_else(|| panic!("no {name} in {said}")).to_owned();
    let get = |url: String| client().get(url).bearer_auth(address("token")).timeout(SOON).send();
    assert_eq!(get(address("docs")).await.unwrap().status(), 200);
    assert_eq!(get(format!("{}/api/v1/jobs", address("api"))).await.unwrap().status(), 200, "the token is good");
    assert!(get(address("sandbox")).await.is_ok());
    eventually(SOON, "a worker of each queue", || async {
        let health: Value = get(format!("{}/health", address("api"))).await.ok()?.json().await.ok()?;
        let queues = health["checks"].as_array()?.iter().filter(|check| {
            let is_queue = check["name"].as_str().is_some_and(|name| name.starts_with("queue:"));
            is_queue && check["note"].as_str().is_some_and(|note| note.contains("1 worker(s)"))
        });
        (queues.count() == 4).then_some(())
    })
    .await;
    let settings = std::fs::metadata(address("settings")).unwrap();
    assert_eq!(settings.permissions().mode() & 0o777, 0o600, "it holds secrets");
    assert!(!running_in(&data).is_empty());

    assert!(up.stop(SOON).await.success(), "{}", up.log());
    assert_eq!(running_in(&data), Vec::<String>::new());
    assert!(get(format!("{}/health/live", address("api"))).await.is_err());
    ServerFolder::open(&data).unwrap().remove().unwrap();
}

/// The process of this folder's `postgres` or `redis` that began the others.
fn server_in(folder: &Path, name: &str) -> Option<libc::pid_t> {
    let home = std::fs::read_link(folder.join("servers")).unwrap_or_else(|_| folder.to_owned()).join(name);
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).find(|pid: &libc::pid_t| {
        let works_there = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|place| place.starts_with(&home));
        // Its helpers have given themselves other names ("postgres: checkpointer").
        works_there && std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with('/'))
    })
}

#[tokio::test]
async fn up_starts_a_postgres_and_a_redis_again_that_died_and_says_so() {
    let place = tempfile::tempdir().unwrap();
    let data = place.path().join("data");
    let (mut up, said) = up_in(&data).await;
    let ready = format!("{}/health/ready", said["api"].as_str().unwrap());
    for server in ["postgres", "redis"] {
        let before = server_in(&data, server).unwrap_or_else(|| panic!("no {server} runs"));
        // SAFETY: a plain call; the process is a child of ours that was found alive just now.
        assert_eq!(unsafe { libc::kill(before, libc::SIGKILL) }, 0);
        eventually(SOON, &format!("{server} to be back"), || {
            let up_again = up.find_line(|line| line.contains(server) && line.contains("is up again"));
            async move { up_again }
        })
        .await;
        assert_ne!(server_in(&data, server).expect("it runs again"), before);
        assert!(up.find_line(|line| line.contains(server) && line.contains("signal: 9")).is_some(), "{}", up.log());
        eventually(SOON, "the API to be ready", || async {
            let answer = client().get(&ready).timeout(SOON).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }
    assert!(up.stop(SOON).await.success(), "{}", up.log());
    assert_eq!(running_in(&data), Vec::<String>::new());
    ServerFolder::open(&data).unwrap().remove().unwrap();
}

/// What the demo's table says of each row: its name and its state.
fn states(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = report["rows"].as_array().into_iter().flatten();
    rows.map(|row| (text(&row["what"]), text(&row["job"]["state"]))).collect()
}

#[tokio::test]
async fn the_demo_shows_a_job_of_every_kind_and_tells_what_a_file_is_not_fit_for() {
    let clips = Clips::new();
    // Too short for a reel.
    let words = format!("{} {X264} -pix_fmt yuv420p -c:a aac -shortest", sources("320x180", 2.0));
    let clip = clips.make("short.mp4", &words).await;
    let folder = clips.path("demo");
    let args = ["--json", "demo", "--once", "--folder", folder.to_str().unwrap(), clip.to_str().unwrap()];
    let Ended { status, said, output } = multivio(&args).finish(2 * SOON).await;
    let report = result_in(&output).unwrap_or_else(|| panic!("no report in {said}"));
    assert!(status.success() && report["succeeded"] == true, "{said}");
    let states = states(&report);
    assert!(states.iter().all(|(_, state)| state == "succeeded"), "{said}");
    let done = |name: &str| states.iter().any(|(what, _)| what == name);
    for what in ["transcode x_video", "transcode youtube_video", "shorten a text for X", "post to X"] {
        assert!(done(what), "{what} is missing: {states:?}");
    }
    for what in ["workflow: transform", "workflow: transcode", "workflow: publish"] {
        assert!(done(what), "{what} is missing: {states:?}");
    }
    assert_eq!(report["refused"][0]["what"], "transcode instagram_reel", "{said}");
    assert!(report["refused"][0]["why"].as_str().unwrap().contains("2 s long"), "{said}");
    assert_eq!(report["posts"], 2, "{said}");
    // Nothing is named that is gone by the time it is read.
    assert_eq!(report["addresses"], serde_json::json!([]), "{said}");
    assert!(report["rows"].as_array().unwrap().iter().all(|row| row["see"] == ""), "{said}");
    assert!(!folder.exists(), "it removes what it made");
    assert_eq!(running_in(&folder), Vec::<String>::new());
}

#[tokio::test]
async fn what_the_demo_names_is_there_until_it_is_stopped() {
    let clips = Clips::new();
    let words = format!("{} {X264} -pix_fmt yuv420p -c:a aac -shortest", sources("320x180", 2.0));
    let clip = clips.make("short.mp4", &words).await;
    let folder = clips.path("demo");
    let mut demo = multivio(&["--json", "demo", "--folder", folder.to_str().unwrap(), clip.to_str().unwrap()]);
    let report = eventually(2 * SOON, "the report", || {
        assert!(!demo.has_ended(), "{}", demo.log());
        let said = result_in(&demo.output());
        async move { said }
    })
    .await;
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() >= 6 && report["succeeded"] == true, "{report}");
    for row in rows {
        let (see, job) = (row["see"].as_str().unwrap(), &row["job"]);
        assert!(job["id"].as_str().unwrap().starts_with("job_"), "{row}");
        if see.starts_with("http") {
            assert_eq!(client().get(see).send().await.unwrap().status(), 200, "{row}");
        } else {
            let file = std::fs::read(see).unwrap_or_else(|error| panic!("{error}: {row}"));
            if let Some(text) = job["result"]["variants"][0]["text"].as_str() {
                assert_eq!(String::from_utf8_lossy(&file).trim_end(), text);
            }
        }
    }
    assert!(demo.stop(SOON).await.success(), "{}", demo.log());
    assert!(!folder.exists(), "it removes what it made");
}

/// With the clip that it makes itself: minutes of work for two processors.
#[tokio::test]
async fn the_demo_makes_a_clip_and_every_rendition_of_it() {
    if !full_size() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("demo");
    let args = ["--json", "demo", "--once", "--folder", folder.to_str().unwrap()];
    let Ended { status, said, output } = multivio(&args).finish(10 * SOON).await;
    let report = result_in(&output).unwrap_or_else(|| panic!("no report in {said}"));
    assert!(status.success() && report["rows"].as_array().unwrap().len() == 8, "{said}");
    assert_eq!(report["refused"], serde_json::json!([]), "{said}");
    assert!(!folder.exists(), "it removes what it made");
}

#[tokio::test]
async fn a_demo_that_is_interrupted_removes_what_it_made() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("demo");
    let mut demo = multivio(&["demo", "--once", "--folder", folder.to_str().unwrap()]);
    eventually(SOON, "the demo to be at work", || {
        let is_up = demo.find_line(|line| line.contains("making a clip")).is_some();
        async move { is_up.then_some(()) }
    })
    .await;
    assert_eq!(demo.stop(SOON).await.code(), Some(1), "{}", demo.log());
    assert!(!folder.exists());
    assert_eq!(running_in(&folder), Vec::<String>::new());
}

#[tokio::test]
async fn a_demo_that_is_interrupted_while_it_starts_fails_as_well() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join(".multivio/demo");
    let mut demo = multivio(&["demo", "--once", "--folder", folder.to_str().unwrap()]);
    eventually(SOON, "the demo to begin", || {
        let begins = demo.find_line(|line| line.contains("starting Postgres"));
        async move { begins }
    })
    .await;
    assert_eq!(demo.stop(SOON).await.code(), Some(1), "{}", demo.log());
    assert!(demo.find_line(|line| line.contains("interrupted")).is_some(), "{}", demo.log());
    assert!(!folder.parent().unwrap().exists(), "nor is the folder above it left");
    assert_eq!(running_in(&folder), Vec::<String>::new());
}

#[tokio::test]
async fn bench_prints_each_figure_beside_its_limit_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().to_str().unwrap();
    let args = ["--json", "bench", "--folder", folder, "drain", "--jobs", "1000", "--tenants", "3"];
    let Ended { status, said, output } = multivio(&args).finish(4 * SOON).await;
    let report = result_in(&output).unwrap_or_else(|| panic!("no report in {said}"));
    assert!(status.success(), "{said}");
    let drain = &report["figures"][0];
    assert!(drain["value"].as_f64().unwrap() > 0.0 && drain["limit"]["value"].as_f64().unwrap() > 0.0, "{said}");
    let of_turns = "3 tenants' throughput as a share of one tenant's";
    let shared = report["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == of_turns);
    let shared = shared.unwrap_or_else(|| panic!("not what turns cost: {said}"));
    assert!(shared["value"].as_f64().unwrap() > 0.0 && shared["target"]["bound"] == 0.95, "{said}");
    assert_eq!(running_in(place.path()), Vec::<String>::new());
    assert_eq!(walk(place.path()), Vec::<std::path::PathBuf>::new());
}
