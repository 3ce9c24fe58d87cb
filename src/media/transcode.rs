//! The job that makes one rendition of one upload: plan, claim, admit, measure, encode, prove, store.
//!
//! A rendition belongs to the content and not to the job: two jobs for the same one make it once, and the other
//! waits and shares it. Nothing is visible before its proof holds and its bytes are stored.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{
    admission::{self, NoRoom, Reservation},
    encode::{Effort, Loudness},
    exit::{Class, FfmpegError},
    plan::{self, Action, Plan},
    preset::PresetName,
    render::{self, RenderError, Rendered, Request},
    rendition_store::{self, Made, Maker, RenditionRow},
    service::MediaService,
    storage::StorageError,
    store::{self, Content, MediaRow, Object},
    upload,
};
use crate::{
    ids::{MediaId, RenditionId, TenantId},
    jobs::{Backoff, Job, JobContext, NewJob, Queue, Stop},
    telemetry::chain,
};

/// Makes the rendition of an upload for a preset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transcode {
    pub media: MediaId,
    pub preset: PresetName,
}

/// What a finished transcode leaves in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Transcoded {
    pub rendition: RenditionId,
    pub media: MediaId,
    pub preset: PresetName,
    pub version: u32,
    pub action: Action,
    pub size_bytes: u64,
    pub mime: String,
    pub width: u32,
    pub height: u32,
    pub duration_ms: Option<u64>,
    /// Whether it had been made before.
    pub reused: bool,
    /// What turned out on the way.
    pub notes: Vec<String>,
}

/// What a run leaves for the next one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Checkpoint {
    measured: bool,
    loudness: Option<Loudness>,
    /// The run before was killed for its memory.
    frugal: bool,
    /// Since when no worker that looked at it was large enough, by the database's clock.
    too_large_since: Option<DateTime<Utc>>,
}

/// How often the claim on the rendition is renewed, well within the time it holds.
const RENEW_EVERY: Duration = Duration::from_secs(15);
/// How long to wait for another job that makes the same rendition.
const SHARE_WAIT: Duration = Duration::from_secs(3);
const ROOM_WAIT: Duration = Duration::from_secs(10);
const LARGER_WORKER_WAIT: Duration = Duration::from_secs(30);
/// How long a job waits for a worker that is large enough.
const LARGER_WORKER_PATIENCE: chrono::TimeDelta = chrono::TimeDelta::hours(1);

impl Job for Transcode {
    const KIND: &'static str = "transcode";
    const QUEUE: Queue = Queue::Media;
    const MAX_ATTEMPTS: u16 = 3;
    const TIMEOUT: Duration = Duration::from_secs(6 * 3600);
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(300) };

    type Output = Transcoded;

    async fn run(&self, cx: &JobContext) -> Result<Transcoded, Stop> {
        let service = cx.service::<MediaService>();
        let Some(media) = store::get_or_equal(cx.db(), cx.tenant, self.media).await? else {
            return Err(Stop::failed("media_deleted", "the upload was deleted before it was worked on"));
        };
        let maker = Maker { job: cx.job, run: cx.run };
        let source = media.object_id;
        let Some(rendition) = rendition_store::claim(cx.db(), cx.tenant, source, self.preset, maker).await? else {
            return self.share(cx, source).await;
        };
        let run = Run { job: self, cx, service: &service, media: &media, rendition, maker };
        let made = tokio::select! {
            made = run.make() => made,
            () = run.renew() => Err(Stopped::Lost),
        };
        match made {
            Ok(transcoded) => Ok(transcoded),
            Err(stopped) => Err(run.settle(stopped).await?),
        }
    }
}

impl Transcode {
    /// The job, as it is enqueued: at most one at a time for the same content and preset.
    pub fn new_job(self, tenant: TenantId, media: &MediaRow) -> NewJob {
        const LONGEST: Duration = Duration::from_secs(24 * 3600);
        let key = format!("{}:{}@{}", media.object_id.simple(), self.preset, self.preset.preset().version);
        // Every pass has limits of its own; this is only the last word.
        let duration = Duration::from_millis(media.probe.video_duration_ms().unwrap_or(600_000));
        let mut job = NewJob::of(&self, tenant).unique(key);
        job.timeout = (Duration::from_secs(1800) + duration.saturating_mul(60)).min(LONGEST);
        job
    }

    /// What another job made, or is making.
    async fn share(&self, cx: &JobContext, source: Uuid) -> Result<Transcoded, Stop> {
        let found = rendition_store::find(cx.db(), cx.tenant, source, self.preset).await?;
        match found {
            Some(row) if row.state == "ready" => self.transcoded(&row, true),
            Some(RenditionRow { refusal: Some(why), .. }) => Err(Stop::failed("media_refused", why)),
            _ => Err(Stop::snooze(SHARE_WAIT, "made_elsewhere", "another job is making the same rendition")),
        }
    }

    fn transcoded(&self, row: &RenditionRow, reused: bool) -> Result<Transcoded, Stop> {
        let incomplete = || Stop::failed("rendition_incomplete", "the rendition's record lacks its bytes");
        let video = row.probe.as_ref().and_then(|probe| probe.video.as_ref());
        let (width, height) = video.map(super::probe::VideoStream::display_size).ok_or_else(incomplete)?;
        Ok(Transcoded {
            rendition: row.id,
            media: self.media,
            preset: self.preset,
            version: u32::try_from(row.preset_version).unwrap_or_default(),
            action: row.action.as_deref().and_then(action).ok_or_else(incomplete)?,
            size_bytes: row.size_bytes.and_then(|size| u64::try_from(size).ok()).ok_or_else(incomplete)?,
            mime: row.mime.clone().ok_or_else(incomplete)?,
            width,
            height,
            duration_ms: row.probe.as_ref().and_then(|probe| probe.duration_ms),
            reused,
            notes: serde_json::from_value(row.notes.clone()).unwrap_or_default(),
        })
    }
}

fn action(name: &str) -> Option<Action> {
    serde_json::from_value(name.into()).ok()
}

/// One run of one job that holds the claim on its rendition.
struct Run<'a> {
    job: &'a Transcode,
    cx: &'a JobContext,
    service: &'a MediaService,
    media: &'a MediaRow,
    rendition: RenditionId,
    maker: Maker,
}

/// Why a run that held the claim ended without the rendition.
enum Stopped {
    Render(RenderError),
    /// Somebody else holds the claim now.
    Lost,
    /// As the engine says it; the claim is given back.
    Stop(Stop),
}

impl From<Stop> for Stopped {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<sqlx::Error> for Stopped {
    fn from(error: sqlx::Error) -> Self {
        Self::Stop(error.into())
    }
}

impl From<StorageError> for Stopped {
    fn from(error: StorageError) -> Self {
        if error.is_not_found() {
            return Self::Stop(Stop::failed("media_gone", "the upload's bytes are no longer in storage"));
        }
        Self::Stop(Stop::retry("storage_failed", chain(&error)))
    }
}

impl From<RenderError> for Stopped {
    fn from(error: RenderError) -> Self {
        Self::Render(error)
    }
}

impl Run<'_> {
    async fn make(&self) -> Result<Transcoded, Stopped> {
        let (cx, preset, probe) = (self.cx, self.job.preset.preset(), &self.media.probe.0);
        let plan = plan::plan(probe, preset);
        cx.note("planned", json!({ "action": plan.action, "summary": plan.summary, "reasons": plan.reasons })).await?;
        if plan.action == Action::Refuse {
            return Err(RenderError::Refused(plan.summary).into());
        }
        let mut checkpoint: Checkpoint =
            cx.checkpoint().and_then(|saved| serde_json::from_value(saved.clone()).ok()).unwrap_or_default();
        let (effort, _room) = self.admit(&plan, &mut checkpoint).await?;

        let scratch = self.service.scratch().run_folder().map_err(RenderError::Scratch)?;
        cx.progress(0.0, "fetching");
        let source = self.service.storage().on_disk(&self.media.storage_key, scratch.path()).await?;
        let request = Request { source: &source, probe, preset, plan: &plan, scratch: scratch.path(), effort: &effort };
        let tools = self.service.tools();
        if !checkpoint.measured {
            let mut tell = |fraction: f64, phase: &str| cx.progress(0.02 + 0.08 * fraction, phase);
            checkpoint.loudness = render::measure_loudness(tools, &request, cx.cancelled(), &mut tell).await?;
            checkpoint.measured = true;
            cx.save_checkpoint(json!(checkpoint)).await?;
        }
        let mut tell = |fraction: f64, phase: &str| cx.progress(overall(fraction, phase), phase);
        let loudness = checkpoint.loudness.as_ref();
        let rendered = render::render(tools, &request, loudness, cx.cancelled(), &mut tell).await?;

        cx.progress(0.97, "storing");
        self.keep(&rendered).await?;
        cx.note(
            "proved",
            json!({ "checks": rendered.proof.checks.len(), "action": rendered.action, "notes": rendered.notes,
                    "size_bytes": rendered.probe.size_bytes }),
        )
        .await?;
        let row = rendition_store::find(cx.db(), cx.tenant, self.media.object_id, self.job.preset).await?;
        let row = row.ok_or_else(|| Stop::retry("rendition_gone", "the rendition was removed while it was made"))?;
        Ok(self.job.transcoded(&row, false)?)
    }

    /// Holds room on this machine, with less ambition where there is too little for more.
    async fn admit(&self, plan: &Plan, checkpoint: &mut Checkpoint) -> Result<(Effort, Reservation), Stopped> {
        let (service, preset) = (self.service, self.job.preset.preset());
        let copies = service.storage().needs_copies();
        let ample = service.effort().clone();
        let threads = (ample.threads / 2).max(1);
        let small = Effort { threads, frugal: true, ..ample.clone() };
        let mut last = None;
        for effort in if checkpoint.frugal { vec![small] } else { vec![ample, small] } {
            let need = admission::predict(&self.media.probe, preset, plan, &effort, copies);
            match service.admission().admit(need) {
                Ok(room) => {
                    checkpoint.too_large_since = None;
                    return Ok((effort, room));
                }
                Err(busy @ NoRoom::Busy { .. }) => {
                    return Err(Stop::snooze(ROOM_WAIT, "worker_full", busy.to_string()).into());
                }
                Err(too_large @ NoRoom::TooLarge { .. }) => last = Some(too_large),
            }
        }
        let why = last.map_or_else(String::new, |no_room| no_room.to_string());
        let now: DateTime<Utc> = sqlx::query_scalar("select now()").fetch_one(self.cx.db()).await?;
        let since = *checkpoint.too_large_since.get_or_insert(now);
        let stop = if now - since > LARGER_WORKER_PATIENCE {
            // Whoever retries it by hand gives it as long again.
            checkpoint.too_large_since = None;
            Stop::failed("no_worker_large_enough", format!("no worker had room for it: {why}"))
        } else {
            Stop::snooze(LARGER_WORKER_WAIT, "worker_too_small", why)
        };
        self.cx.save_checkpoint(json!(checkpoint)).await?;
        Err(stop.into())
    }

    /// Stores what was proved, and makes it the rendition in one transaction.
    async fn keep(&self, rendered: &Rendered) -> Result<(), Stopped> {
        let (cx, service) = (self.cx, self.service);
        if rendered.is_source {
            let mut tx = cx.db().begin().await?;
            let media = self.media;
            let (storage_key, mime) = (media.storage_key.clone(), media.mime.clone());
            let object = Object { id: media.object_id, storage_key, size_bytes: media.size_bytes, mime };
            self.finish(&mut tx, &object, rendered).await?;
            tx.commit().await?;
            return Ok(());
        }
        let arrived = Uuid::now_v7();
        let storage_key = format!("{}/{}", cx.tenant.uuid().simple(), arrived.simple());
        store::insert_arriving(cx.db(), cx.tenant, arrived, &storage_key).await?;
        let stored = async {
            let (size_bytes, sha256) = service.storage().store_file(&storage_key, &rendered.path).await?;
            let content = Content { sha256: &sha256, size_bytes, mime: rendered.kind.mime() };
            let mut tx = cx.db().begin().await?;
            let object = store::keep(&mut tx, cx.tenant, arrived, content).await?;
            self.finish(&mut tx, &object, rendered).await?;
            tx.commit().await?;
            Ok::<_, Stopped>(object)
        };
        let object = stored.await;
        // Not needed: the claim was lost, or the tenant has the very same bytes already.
        if !matches!(&object, Ok(object) if object.id == arrived) {
            upload::discard(service, cx.tenant, arrived, &storage_key).await;
        }
        object.map(|_| ())
    }

    async fn finish(&self, tx: &mut sqlx::PgConnection, object: &Object, rendered: &Rendered) -> Result<(), Stopped> {
        let made = Made {
            object,
            action: rendered.action,
            probe: &rendered.probe,
            proof: &rendered.proof,
            notes: &rendered.notes,
        };
        if rendition_store::finish(tx, self.rendition, self.maker, made).await? { Ok(()) } else { Err(Stopped::Lost) }
    }

    /// Keeps the claim until it is lost.
    async fn renew(&self) {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match rendition_store::renew(self.cx.db(), self.rendition, self.maker).await {
                Ok(true) => {}
                Ok(false) => return,
                // The claim outlives three of these; should it not, the result is refused at the end.
                Err(error) => tracing::warn!(error = %chain(&error), "a claim on a rendition could not be renewed"),
            }
        }
    }

    /// Gives the claim back, or records that it cannot be made; then says it in the engine's words.
    async fn settle(&self, stopped: Stopped) -> Result<Stop, Stop> {
        let (db, rendition, maker) = (self.cx.db(), self.rendition, self.maker);
        let (stop, is_final) = match stopped {
            Stopped::Lost => {
                (Stop::snooze(SHARE_WAIT, "made_elsewhere", "another job makes this rendition now"), false)
            }
            Stopped::Stop(stop) => (stop, false),
            Stopped::Render(error) => self.judge(&error).await?,
        };
        match &stop {
            Stop::Failed { why } if is_final => rendition_store::refuse(db, rendition, maker, &why.message).await?,
            _ => rendition_store::release(db, rendition, maker).await?,
        }
        Ok(stop)
    }

    /// What a failed rendering means for the job, and whether it is a final answer for this content.
    async fn judge(&self, error: &RenderError) -> Result<(Stop, bool), Stop> {
        let message = chain(error);
        let judged = match error {
            RenderError::Refused(why) => (Stop::failed("media_refused", why.clone()), true),
            RenderError::Damaged(_) => (Stop::failed("media_damaged", message), true),
            RenderError::DoesNotFit { .. } => (Stop::failed("media_too_large", message), true),
            RenderError::NotProved(_) => (Stop::failed("rendition_not_proved", message), false),
            RenderError::Scratch(_) => (Stop::retry("scratch_failed", message), false),
            RenderError::Ffmpeg(_, error) => match error.class() {
                Class::Retry => (Stop::retry("ffmpeg_interrupted", message), false),
                Class::RetrySmaller => self.smaller(message).await?,
                Class::Permanent => (Stop::failed("media_damaged", message), true),
                Class::Quarantine => (Stop::failed("media_quarantined", message), true),
                Class::Internal => (Stop::failed("ffmpeg_fault", message), false),
                Class::Cancelled => (Stop::Cancelled, false),
            },
        };
        if let RenderError::Ffmpeg(_, FfmpegError::Crashed { .. } | FfmpegError::Internal { .. }) = error {
            tracing::error!(media = %self.job.media, preset = %self.job.preset, error = %chain(error), "ffmpeg fault");
        }
        Ok(judged)
    }

    /// Killed for its memory: once more with less, then never again.
    async fn smaller(&self, message: String) -> Result<(Stop, bool), Stop> {
        let mut saved = self.cx.checkpoint().cloned().unwrap_or_else(|| json!({}));
        if saved["frugal"] == true {
            return Ok((Stop::failed("out_of_memory", message), false));
        }
        saved["frugal"] = true.into();
        self.cx.save_checkpoint(saved).await?;
        Ok((Stop::retry("out_of_memory", format!("{message}; it is tried once more with less memory")), false))
    }
}

/// The whole job's progress from the present phase's.
fn overall(fraction: f64, phase: &str) -> f64 {
    match phase {
        "proving" => 0.90 + 0.06 * fraction,
        "encoding to size, first pass" => 0.10 + 0.30 * fraction,
        "encoding to size, second pass" => 0.40 + 0.50 * fraction,
        _ => 0.10 + 0.80 * fraction,
    }
}
