//! What the demo does, in order: a clip goes in and is transcoded, a text is rewritten by a language model, a post goes
//! out; then one call does all three and publishes the result. Every step through the HTTP API.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    bars::{Bar, Bars},
    client::{Client, Event, JobStatus, json, text_of},
    clip,
    results::Results,
    table::{Refused, Report, Row},
};
use crate::{cli::token::developer, http::Scope, ids::MediaId, local::Stack, media::PresetName, telemetry::chain};

const PRESETS: [PresetName; 3] = [PresetName::XVideo, PresetName::InstagramReel, PresetName::YoutubeVideo];
/// For the workflow: long enough to be worth a transcode, short enough to watch.
const CUT_SECONDS: u32 = 6;
const GREETING: &str = "Hello from Multivio: this post went API -> Redis -> worker -> X, exactly once.";
const DRAFT: &str = "We spent the whole evening on the rocks above the town, waiting for the light to turn, and when it \
    finally did nobody said a word for a quarter of an hour. The lamps came on one after another, the wind went down, \
    and the sea kept moving. It is hard to believe that this is twenty minutes from the office. Bring a blanket and \
    something warm to drink, stay until it is properly dark, and do not forget to look up. #coast #evening";

/// Does it all and tells what came of it. Whatever fails is in the report; the rest goes on as far as it can. Nothing
/// is named as to be seen that is gone when `once` the report is read.
pub async fn tell(stack: &Stack, token: &str, file: Option<PathBuf>, once: bool) -> Report {
    let mut story = Story {
        client: Client::new(&stack.api_url, token),
        sandbox: stack.sandbox_url.clone().expect("the demo's stack has a sandbox"),
        bars: Bars::default(),
        rows: Vec::new(),
        problems: Vec::new(),
        refused: Vec::new(),
        posts: None,
        sent: 0,
    };
    if let Err(error) = story.run(stack, file).await {
        story.problems.push(format!("{error:#}"));
    }
    let mut report = story.report(stack);
    if once {
        report.addresses.clear();
        report.rows.iter_mut().for_each(|row| row.see.clear());
    }
    report
}

struct Story {
    client: Client,
    sandbox: String,
    bars: Bars,
    rows: Vec<Row>,
    problems: Vec<String>,
    refused: Vec<Refused>,
    posts: Option<u64>,
    /// Publications whose job succeeded.
    sent: u64,
}

/// A job to follow.
struct Begun {
    what: String,
    job: String,
}

impl Story {
    async fn run(&mut self, stack: &Stack, file: Option<PathBuf>) -> anyhow::Result<()> {
        let results = Results::of(stack, developer(Scope::ALL).tenant).await?;
        let ffmpeg = &stack.config.media.ffmpeg;
        let clip = match file {
            Some(file) => file,
            None => {
                let (to, bar) = (results.folder().join("clip.mov"), self.bars.add("making a clip"));
                clip::make(ffmpeg, &to, &bar).await?;
                bar.done(&format!("{} s of 1080p, {}", clip::SECONDS, size_of(&to)));
                to
            }
        };
        let connection = self.connect().await?;
        let uploaded = self.upload(&clip, "uploading it").await?;
        let media = text_of("POST /api/v1/media", &uploaded, "id")?;
        let (presets, refused) = usable_presets(&uploaded);
        self.refused.extend(refused);

        self.bars.say("One job of every kind:");
        let mut begun = Vec::new();
        let transcodes = self.begin_transcodes(&media, &presets).await;
        begun.extend(self.or_tell("transcode", transcodes));
        let transform = self.begin_transform().await;
        begun.extend(self.or_tell("shorten a text for X", transform.map(|begun| vec![begun])));
        let post = self.begin_publish("post to X", &json!({ "text": GREETING, "connections": [connection] })).await;
        begun.extend(self.or_tell("post to X", post));
        self.follow(begun).await;
        for preset in presets {
            self.save(&results, &media, preset, preset.as_str()).await;
        }
        self.save_texts(&results, "shortened").await;
        if let Err(error) = self.workflow(&results, ffmpeg, &clip, &connection).await {
            self.problems.push(format!("workflow: {error:#}"));
        }
        self.count().await
    }

    /// A transcode, a text transform and a post in one call, of a part of the clip.
    async fn workflow(
        &mut self,
        results: &Results,
        ffmpeg: &Path,
        clip: &Path,
        connection: &str,
    ) -> anyhow::Result<()> {
        self.bars.say("All of it in one call (media, optimized text, X):");
        let cut = results.folder().join("cut.mov");
        clip::cut(ffmpeg, clip, &cut, CUT_SECONDS).await?;
        let uploaded = self.upload(&cut, "uploading a cut of it").await?;
        let (_, refused) = usable_presets(&uploaded);
        if let Some(refused) = refused.into_iter().find(|refused| refused.preset == PresetName::XVideo) {
            self.refused.push(Refused { what: "workflow".into(), ..refused });
            return Ok(());
        }
        let media = text_of("POST /api/v1/media", &uploaded, "id")?;
        let wish = json!({
            "text": DRAFT,
            "media": [{ "media_id": media, "alt_text": "Rocks above a town in the evening" }],
            "connections": [connection],
            "optimize": true,
        });
        let begun = self.begin_publish("workflow", &wish).await?;
        self.follow(begun).await;
        self.save(results, &media, PresetName::XVideo, "workflow-x_video").await;
        self.save_texts(results, "workflow-text").await;
        Ok(())
    }

    /// What could not be begun is told, and the rest goes on.
    fn or_tell(&mut self, what: &str, begun: anyhow::Result<Vec<Begun>>) -> Vec<Begun> {
        begun.unwrap_or_else(|error| {
            self.problems.push(format!("{what}: {error:#}"));
            Vec::new()
        })
    }

    /// An account at the sandbox's X, connected with its tokens as its owner would.
    async fn connect(&self) -> anyhow::Result<String> {
        let call = "POST /_sandbox/x/accounts";
        let url = format!("{}/_sandbox/x/accounts", self.sandbox);
        let request = crate::local::http_client().post(url).timeout(Duration::from_secs(20));
        let account = json(call, request.json(&json!({ "username": "demo", "name": "Multivio demo" }))).await?;
        let expires_in = account["expires_in"].as_i64().unwrap_or(7200);
        let connection = json!({
            "platform": "x",
            "remote_account_id": text_of(call, &account, "id")?,
            "username": text_of(call, &account, "username")?,
            "display_name": "Multivio demo",
            "access_token": text_of(call, &account, "access_token")?,
            "refresh_token": text_of(call, &account, "refresh_token")?,
            "expires_at": chrono::Utc::now() + chrono::TimeDelta::seconds(expires_in),
        });
        let path = "/api/v1/connections";
        Ok(text_of(path, &self.client.post(path, &connection).await?, "id")?)
    }

    async fn upload(&self, file: &Path, what: &str) -> anyhow::Result<Value> {
        let bar = self.bars.add(what);
        let moving = bar.clone();
        let media = self.client.upload(file, move |sent| moving.set(sent, "")).await;
        match &media {
            Ok(media) => bar.done(&plans(media)),
            Err(error) => bar.failed(&chain(error)),
        }
        Ok(media?)
    }

    async fn begin_transcodes(&self, media: &str, presets: &[PresetName]) -> anyhow::Result<Vec<Begun>> {
        if presets.is_empty() {
            return Ok(Vec::new());
        }
        let path = format!("/api/v1/media/{media}/transcode");
        let presets: Vec<_> = presets.iter().map(|preset| preset.as_str()).collect();
        let answer = self.client.post(&path, &json!({ "presets": presets })).await?;
        let mut begun = Vec::new();
        for job in answer["jobs"].as_array().into_iter().flatten() {
            let preset = text_of(&path, job, "preset")?;
            begun.push(Begun { what: format!("transcode {preset}"), job: text_of(&path, job, "job_id")? });
        }
        anyhow::ensure!(
            begun.len() == presets.len(),
            "{path} began {} jobs for {} presets",
            begun.len(),
            presets.len()
        );
        Ok(begun)
    }

    async fn begin_transform(&self) -> anyhow::Result<Begun> {
        let path = "/api/v1/ai/transform";
        let wish = json!({ "content": DRAFT, "transformation_type": "shorten", "platforms": ["x"] });
        let answer = self.client.post(path, &wish).await?;
        Ok(Begun { what: "shorten a text for X".into(), job: text_of(path, &answer, "job_id")? })
    }

    async fn begin_publish(&self, what: &str, wish: &Value) -> anyhow::Result<Vec<Begun>> {
        let path = "/api/v1/publish";
        let answer = self.client.post(path, wish).await?;
        let jobs = answer["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
        anyhow::ensure!(!jobs.is_empty(), "{path} began no job");
        let begun = jobs.iter().map(|job| {
            let kind = text_of(path, job, "kind")?;
            let what = if jobs.len() == 1 { what.to_owned() } else { format!("{what}: {kind}") };
            Ok(Begun { what, job: text_of(path, job, "id")? })
        });
        begun.collect()
    }

    /// All of them at once, each to its end.
    async fn follow(&mut self, begun: Vec<Begun>) {
        let following = begun.into_iter().map(|Begun { what, job }| {
            let (client, bar) = (self.client.clone(), self.bars.add(&what));
            async move {
                let status = client.follow(&job, |event| show(event, &bar)).await;
                match &status {
                    Ok(status) if status.succeeded() => bar.done(&result_of(status)),
                    Ok(status) => bar.failed(&result_of(status)),
                    Err(error) => bar.failed(&chain(error)),
                }
                (what, status)
            }
        });
        for (what, status) in futures::future::join_all(following).await {
            match status {
                Ok(job) => self.add(what, job),
                Err(error) => self.problems.push(format!("{what}: {}", chain(&error))),
            }
        }
    }

    fn add(&mut self, what: String, job: JobStatus) {
        let result = result_of(&job);
        if !job.succeeded() {
            self.problems.push(format!("{what} ended as {}: {result}", job.state));
        }
        let mut see = String::new();
        if job.kind == "publish" && job.succeeded() {
            self.sent += 1;
            let permalink = job.result.as_ref().and_then(|result| result["permalink"].as_str()).unwrap_or_default();
            see = self.page_of(permalink).unwrap_or_else(|| permalink.to_owned());
        }
        self.rows.push(Row { what, job, result, see });
    }

    /// The same post on the sandbox's own page.
    fn page_of(&self, permalink: &str) -> Option<String> {
        let path = url::Url::parse(permalink).ok()?.path().to_owned();
        Some(format!("{}{path}", self.sandbox))
    }

    /// The rendition as a file, shown in its job's row.
    async fn save(&mut self, results: &Results, media: &str, preset: PresetName, name: &str) {
        let Ok(id) = media.parse::<MediaId>() else { return };
        let made_here = |row: &&mut Row| {
            let result = row.job.result.as_ref();
            result.is_some_and(|result| result["media"] == media && result["preset"] == preset.as_str())
        };
        match results.save(id, preset, name).await {
            Ok(path) => {
                for row in self.rows.iter_mut().filter(|row| made_here(row)) {
                    row.see = path.display().to_string();
                }
            }
            Err(error) => self.problems.push(format!("the rendition {name} cannot be read: {error:#}")),
        }
    }

    /// A language model's text as a file, shown in its job's row.
    async fn save_texts(&mut self, results: &Results, name: &str) {
        for row in self.rows.iter_mut().filter(|row| row.see.is_empty()) {
            let Some(text) = row.job.result.as_ref().and_then(text_in) else { continue };
            match results.save_text(name, text).await {
                Ok(path) => row.see = path.display().to_string(),
                Err(error) => self.problems.push(format!("the text {name} cannot be written: {error:#}")),
            }
        }
    }

    /// What the platform itself says: each publication is there, once.
    async fn count(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/_sandbox/x/posts/count", self.sandbox);
        let request = crate::local::http_client().get(url).timeout(Duration::from_secs(20));
        let counted = json("GET /_sandbox/x/posts/count", request).await?;
        let total = counted["total"].as_u64().unwrap_or_default();
        let repeated = counted["repeated"].as_array().is_some_and(|repeated| !repeated.is_empty());
        if repeated || total != self.sent {
            self.problems.push(format!("{} publications succeeded, but the sandbox counted: {counted}", self.sent));
        } else {
            self.posts = Some(total);
        }
        Ok(())
    }

    fn report(self, stack: &Stack) -> Report {
        let address = |name: &str, address: String| (name.to_owned(), address);
        Report {
            succeeded: self.problems.is_empty() && !self.rows.is_empty(),
            rows: self.rows,
            problems: self.problems,
            refused: self.refused,
            posts: self.posts,
            addresses: vec![
                address("API documents", format!("{}/docs", stack.api_url)),
                address("health", format!("{}/health", stack.api_url)),
                address("sandbox", self.sandbox),
                address("results", stack.folder().join("results").display().to_string()),
                address("logs", stack.logs().display().to_string()),
            ],
        }
    }
}

fn show(event: &Event, bar: &Bar) {
    match event.name.as_str() {
        "progress" => {
            let doing = event.data["phase"].as_str().unwrap_or_default();
            bar.set(event.data["fraction"].as_f64().unwrap_or_default(), doing);
        }
        "state" => {
            let waits = event.data["reason"].as_str().or(event.data["state"].as_str());
            bar.doing(waits.unwrap_or_default());
        }
        "token" => bar.doing("writing"),
        _ => {}
    }
}

/// A job's result in a few words.
fn result_of(job: &JobStatus) -> String {
    if let Some(error) = job.error.as_ref().filter(|_| !job.succeeded()) {
        return error.message.clone();
    }
    let Some(result) = &job.result else { return job.state.clone() };
    if let (Some(width), Some(height)) = (result["width"].as_u64(), result["height"].as_u64()) {
        let size = bytes(result["size_bytes"].as_u64().unwrap_or_default());
        let how = result["action"].as_str().unwrap_or("made");
        return format!("{width}x{height}, {size} ({how})");
    }
    if let Some(text) = text_in(result) {
        return format!("{}: {text}", result["provider"].as_str().unwrap_or("?"));
    }
    match result["permalink"].as_str() {
        Some(permalink) => permalink.to_owned(),
        None => result.to_string(),
    }
}

/// What a language model wrote.
fn text_in(result: &Value) -> Option<&str> {
    result["variants"][0]["text"].as_str()
}

/// The presets that the file can be made into, and those that its plan refuses, which is an answer and no failure.
fn usable_presets(media: &Value) -> (Vec<PresetName>, Vec<Refused>) {
    let plan_of = |preset: &PresetName| {
        let plans = media["plans"].as_array().into_iter().flatten();
        plans.into_iter().find(|plan| plan["preset"] == preset.as_str() && plan["action"] == "refuse")
    };
    let (refused, usable): (Vec<_>, Vec<_>) = PRESETS.into_iter().partition(|preset| plan_of(preset).is_some());
    let why = |preset: PresetName| Refused {
        what: format!("transcode {preset}"),
        preset,
        why: plan_of(&preset).and_then(|plan| plan["summary"].as_str()).unwrap_or_default().to_owned(),
    };
    (usable, refused.into_iter().map(why).collect())
}

/// What will become of a file, platform by platform.
fn plans(media: &Value) -> String {
    let plans = media["plans"].as_array().into_iter().flatten();
    let named = plans.filter_map(|plan| Some(format!("{} {}", plan["platform"].as_str()?, plan["action"].as_str()?)));
    named.collect::<Vec<_>>().join(", ").replace('_', " ")
}

fn size_of(file: &Path) -> String {
    std::fs::metadata(file).map_or_else(|_| String::new(), |meta| bytes(meta.len()))
}

fn bytes(count: u64) -> String {
    format!("{:.1} MB", count as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preset_that_the_file_does_not_suit_is_told_and_the_others_are_made() {
        let media = json!({ "plans": [
            { "preset": "x_video", "action": "transcode", "summary": "" },
            { "preset": "instagram_reel", "action": "refuse", "summary": "the video is 1 s long" },
            { "preset": "youtube_video", "action": "remux", "summary": "" },
        ] });
        let (usable, refused) = usable_presets(&media);
        assert_eq!(usable, [PresetName::XVideo, PresetName::YoutubeVideo]);
        assert_eq!((refused.len(), &*refused[0].why), (1, "the video is 1 s long"));
    }
}
