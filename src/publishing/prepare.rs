//! `planned` to `prepared`: which text, which files, is it still wanted; then frozen (P5).

use std::time::Duration;

use serde_json::Value;

use super::{
    Halt, MediaTrouble, Phase,
    files::File,
    job::{Run, enqueue_stop},
    late::{self, Verdict},
    media::Making,
    store::{self, Frozen},
    wake_key,
};
use crate::{
    ids::JobId,
    jobs::{EnqueueError, Until},
    platforms::{Content, Draft, DraftMedia, Explanation, Platform, Turn, content::ContentMedia},
    posts::{self, Post},
};

/// How often to look whether a rendition is made.
const MEDIA_POLL: Duration = Duration::from_secs(2);
/// How often a rendition that is not there is asked for again, for each file: each is a transcode.
const MAKINGS: i16 = 2;

pub async fn prepare(run: &mut Run<'_>) -> Result<(), Halt> {
    in_time(run)?;
    let publication = &run.publication;
    let Some(post) = posts::store::get(run.cx.db(), publication.tenant, publication.post).await? else {
        return Err(failed("post_removed", "The post was deleted before it went out."));
    };
    let text = text(run, &post).await?;
    let (files, media) = files(run, &post).await?;
    let problems = run.connector.validate(&Content { text: &text, media: &media });
    if !problems.is_empty() {
        let said: Vec<_> = problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
        return Err(failed("content_invalid", said.join("; ")));
    }
    made(run, &files).await?;
    let draft = Draft {
        text,
        media: files.iter().map(|file| DraftMedia { kind: file.kind, alt_text: file.alt_text.clone() }).collect(),
    };
    let fingerprint = run.connector.fingerprint(&draft);
    let mut tx = run.cx.db().begin().await?;
    match store::freeze(&mut tx, &run.publication, &draft, &fingerprint, &files).await? {
        Frozen::Done => {}
        Frozen::Overtaken => return Err(Halt::Overtaken),
        Frozen::MediaGone => return Err(media_halt(run, MediaTrouble::Gone)),
    }
    tx.commit().await?;
    run.cx.progress(0.1, "prepared");
    Ok(())
}

/// Halts what is too late to go out without its user's word.
pub fn in_time(run: &Run<'_>) -> Result<(), Halt> {
    let publication = &run.publication;
    let verdict = late::judge(
        publication.late_policy,
        publication.due_at,
        publication.max_lateness,
        publication.lateness_accepted,
        publication.now,
    );
    match verdict {
        Verdict::Go => Ok(()),
        Verdict::Skip => Err(failed("skipped_late", "It could not go out in time, and was not to go out late.")),
        // The question was asked for long enough.
        Verdict::Ask if publication.now > publication.due_at + publication.max_lateness + late::ASK_PATIENCE => {
            Err(failed("lateness_unanswered", "It could not go out in time, and nobody said that it still should."))
        }
        Verdict::Ask => {
            let text = "It could not go out in time. Say whether it still should.";
            let problem = Explanation::new("late", Turn::User, text);
            let deadline = publication.due_at + publication.max_lateness + late::ASK_PATIENCE;
            Err(Halt::park(wake_key(publication.id), deadline, problem))
        }
    }
}

fn failed(code: &str, message: impl Into<String>) -> Halt {
    Halt::failed(Explanation::new(code, Turn::User, message))
}

/// The variant a job was asked to write, else the one the user wrote for this platform, else the universal text.
async fn text(run: &Run<'_>, post: &Post) -> Result<String, Halt> {
    let platform = run.publication.platform;
    if let Some(job) = run.publication.variant_job {
        let results = run.cx.parent_results().await?;
        if let Some(text) = written(&results, job, platform) {
            return Ok(text);
        }
        // The user's own words are better than silence; whether they fit is checked like any other text.
        run.cx.note("variant_missing", serde_json::json!({ "job": job })).await?;
    }
    Ok(post.text_for(platform).to_owned())
}

/// The text for a platform in the result of a transform.
fn written(results: &[(JobId, Value)], job: JobId, platform: Platform) -> Option<String> {
    let (_, result) = results.iter().find(|(id, _)| *id == job)?;
    let variants = result.get("variants")?.as_array()?;
    let variant = variants.iter().find(|variant| variant["platform"] == platform.as_str())?;
    variant["text"].as_str().map(str::to_owned)
}

async fn files(run: &Run<'_>, post: &Post) -> Result<(Vec<File>, Vec<ContentMedia>), Halt> {
    let (mut files, mut media) = (Vec::new(), Vec::new());
    for (position, attached) in post.media.iter().enumerate() {
        let facts = run
            .publisher
            .media
            .facts(run.publication.tenant, attached.media)
            .await
            .map_err(|trouble| media_halt(run, trouble))?;
        files.push(File {
            position: i16::try_from(position).expect("a post has few files"),
            media: attached.media,
            kind: facts.kind,
            preset: run.connector.preset_for(facts.kind).map(str::to_owned),
            alt_text: attached.alt_text.clone(),
            state: None,
            remote_id: None,
            expired: false,
        });
        let will_be_made = run.connector.preset_for(facts.kind).is_some();
        media.push(ContentMedia { facts, will_be_made, alt_text: attached.alt_text.clone() });
    }
    Ok((files, media))
}

/// Every rendition is there, or its job is under way and this one waits. Usually they were parents and are there.
async fn made(run: &Run<'_>, files: &[File]) -> Result<(), Halt> {
    let most = i16::try_from(files.len()).unwrap_or(i16::MAX).saturating_mul(MAKINGS);
    for file in files {
        let Some(preset) = &file.preset else { continue };
        let making = run.publisher.media.make(run.publication.tenant, file.media, preset).await;
        match making.map_err(|trouble| media_halt(run, trouble))? {
            Making::Made => {}
            Making::Job(job) => {
                let mut tx = run.cx.db().begin().await?;
                match run.cx.engine.enqueue_in(&mut tx, &[*job]).await {
                    Ok(tickets) => {
                        if !store::count_making(&mut tx, &run.publication, most).await? {
                            let why = "it was tried several times and could not be converted";
                            return Err(media_halt(run, MediaTrouble::Unusable(why.to_owned())));
                        }
                        tx.commit().await?;
                        run.cx.engine.ring(&tickets).await;
                    }
                    // It is being made already: nothing was written.
                    Err(EnqueueError::Duplicate { .. }) => {}
                    Err(error) => return Err(enqueue_stop(error).into()),
                }
                return Err(media_wait(run));
            }
        }
    }
    Ok(())
}

fn media_wait(run: &Run<'_>) -> Halt {
    Halt::snooze(Until::After(MEDIA_POLL), run.waiting("media_under_way", "The media is being prepared."))
}

pub fn media_halt(run: &Run<'_>, trouble: MediaTrouble) -> Halt {
    match trouble {
        MediaTrouble::Gone => failed("media_gone", "A file of the post was deleted before it went out."),
        MediaTrouble::Unusable(why) => failed("media_unusable", format!("A file of the post cannot be used: {why}")),
        MediaTrouble::NotReady => media_wait(run),
        MediaTrouble::Storage(source) => {
            tracing::warn!(cause = crate::telemetry::chain(source.as_ref()), "stored media could not be read");
            Halt::retry(None, run.waiting("media_unreadable", "The stored media could not be read; we try again."))
        }
        MediaTrouble::Database(error) => error.into(),
    }
}

/// From a phase that may fail, with words for the user.
pub fn fail_from(phase: Phase, code: &str, message: impl Into<String>) -> Halt {
    debug_assert!(phase.may_become(Phase::Failed));
    failed(code, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_variant_of_the_right_job_and_platform_is_taken() {
        let (ours, other) = (JobId::new(), JobId::new());
        let result = |text: &str| json!({ "variants": [{ "platform": "threads", "text": "t" }, { "platform": "x", "text": text }] });
        let results = [(other, result("other")), (ours, result("mine"))];
        assert_eq!(written(&results, ours, Platform::X).as_deref(), Some("mine"));
        assert_eq!(written(&results, ours, Platform::LinkedIn), None);
        assert_eq!(written(&[], ours, Platform::X), None);
    }
}
