//! `/api/v1/media`: send files in, see what becomes of them for each platform, have renditions made, get bytes out.

use std::{sync::Arc, time::Duration};

use poem::{
    Body, IntoResponse, Response,
    web::{Data, Multipart},
};
use poem_openapi::{
    ApiResponse, OpenApi,
    param::{Path, Query},
    payload::{Binary, Json, Payload},
    registry::MetaSchemaRef,
};
use serde_json::json;

use super::{
    api_form::MediaForm,
    api_views::{MediaView, PresetInfo, PresetList, TranscodeAccepted, TranscodeInput, TranscodeJob},
    intake::{self, IntakeError},
    plan::{self, Action},
    preset::PresetName,
    range, rendition_store,
    service::{MediaService, OpenError},
    store::{self, Deleted, MediaRow},
    transcode::Transcode,
    upload::{self, Arrived, UploadError},
};
use crate::{
    http::{
        Accepted, Also, App, Caller, Created, FieldError, Gone, IdempotencyKey, Input, Page, Problem, Scope, Tag, Turn,
        page,
    },
    ids::MediaId,
    jobs::{EnqueueError, NewJob, Ticket},
    plans::{self, Each, Refused},
};

#[derive(Debug, Clone, Copy, Default)]
pub struct MediaApi;

const LIST: &str = "media";
/// Longest wait for a form's next part to begin.
const PART_TIME: Duration = Duration::from_secs(30);

#[OpenApi(prefix_path = "/api/v1/media", tag = "Tag::Media")]
impl MediaApi {
    /// Upload a file
    ///
    /// One video (MP4, MOV, MKV, WebM) or picture (JPEG, PNG, GIF, WebP) as the part `file` of a form. It is streamed,
    /// looked at, and answered with a plan for each platform. A thumbnail is made in the background.
    #[oai(path = "/", method = "post", operation_id = "uploadMedia")]
    async fn upload(
        &self,
        caller: Caller,
        app: Data<&Arc<App>>,
        media: Data<&Arc<MediaService>>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        form: MediaForm,
    ) -> Result<Created<MediaView>, Problem> {
        caller.require(Scope::Publish)?;
        let mut form = form.0;
        let bound = {
            let mut db = app.db.of(&caller).await?;
            // What was taken before is answered as before, whatever the plan has become.
            match key.has_answer(&mut db, caller.tenant).await? {
                true => None,
                false => plans::bound(&mut db, caller.tenant, Each::UploadBytes).await?,
            }
        };
        let (arrived, probe, sent_name) = receive(&caller, &media, &mut form, bound).await?;
        let name = upload::clean_name(sent_name.as_deref(), arrived.kind);
        let kept = keep(&app, &caller, key, &arrived, &probe, &name).await;
        // Not kept, or kept before: these bytes are nobody's. Kept ones are not "arriving" any more and stay.
        if !kept.as_ref().is_ok_and(|kept| kept.uses_arrived) {
            upload::discard(&media, caller.tenant, arrived.object, &arrived.storage_key).await;
        }
        let kept = kept?;
        app.engine.ring(&kept.tickets).await;
        Ok(kept.answer)
    }

    /// List uploads
    ///
    /// Newest first.
    #[oai(path = "/", method = "get", operation_id = "listMedia")]
    async fn list(
        &self,
        caller: Caller,
        app: Data<&Arc<App>>,
        cursor: Query<Option<String>>,
        limit: Query<Option<u16>>,
    ) -> Result<Json<Page<MediaView>>, Problem> {
        caller.require(Scope::Read)?;
        let limit = page::limit(limit.0)?;
        let before: Option<MediaId> = page::decode(LIST, cursor.as_deref())?;
        let mut db = app.db.of(&caller).await?;
        let rows = store::list(&mut *db, caller.tenant, before, i64::from(limit) + 1).await?;
        let sources: Vec<_> = rows.iter().map(|row| row.object_id).collect();
        let renditions = rendition_store::of_sources(&mut *db, caller.tenant, &sources).await?;
        let views = rows.iter().map(|row| MediaView::of(row, &renditions)).collect();
        Ok(Json(Page::of(views, limit, LIST, |view: &MediaView| view.id)))
    }

    /// List presets
    ///
    /// What renditions can be made for, and what each platform takes.
    #[oai(path = "/presets", method = "get", operation_id = "listMediaPresets")]
    async fn presets(&self, caller: Caller) -> Result<Json<PresetList>, Problem> {
        caller.require(Scope::Read)?;
        let items = PresetName::ALL.map(|name| PresetInfo::of(name.preset())).into();
        Ok(Json(PresetList { items }))
    }

    /// Get an upload
    ///
    /// With its plans and what has been made of it.
    #[oai(path = "/:media_id", method = "get", operation_id = "getMedia")]
    async fn get(
        &self,
        caller: Caller,
        app: Data<&Arc<App>>,
        media_id: Path<MediaId>,
    ) -> Result<Json<MediaView>, Problem> {
        let mut db = app.db.of(&caller).await?;
        let row = find(&caller, &mut db, media_id.0).await?;
        let renditions = rendition_store::of_sources(&mut *db, caller.tenant, &[row.object_id]).await?;
        Ok(Json(MediaView::of(&row, &renditions)))
    }

    /// Get an upload's bytes
    ///
    /// As they were sent; `Range` is understood.
    #[oai(path = "/:media_id/content", method = "get", operation_id = "getMediaContent")]
    async fn content(
        &self,
        caller: Caller,
        app: Data<&Arc<App>>,
        media: Data<&Arc<MediaService>>,
        media_id: Path<MediaId>,
        /// Part of the file, such as `bytes=0-1023`.
        #[oai(name = "Range")]
        range: poem_openapi::param::Header<Option<String>>,
    ) -> Result<BytesAnswer, Problem> {
        let row = find(&caller, &mut *app.db.of(&caller).await?, media_id.0).await?;
        let size_bytes = u64::try_from(row.size_bytes).unwrap_or_default();
        let range = range::parse(range.as_deref(), size_bytes)?;
        let opened = media.storage().open(&row.storage_key, range.clone()).await;
        let opened = opened.map_err(|error| Problem::internal(&error))?;
        let etag = format!("\"{}\"", hex::encode(&row.sha256));
        let body = FileBytes(Body::from_bytes_stream(opened.bytes));
        let sent = opened.range;
        let length = sent.end - sent.start;
        Ok(if range.is_some() {
            let place = format!("bytes {}-{}/{size_bytes}", sent.start, sent.end.saturating_sub(1));
            BytesAnswer::Part(body, row.mime, length, place, etag)
        } else {
            BytesAnswer::Whole(body, row.mime, length, etag, "bytes".into(), CACHE.into())
        })
    }

    /// Get an upload's thumbnail
    ///
    /// A small JPEG. 404 with `Retry-After` while it is being made.
    #[oai(path = "/:media_id/thumbnail", method = "get", operation_id = "getMediaThumbnail")]
    async fn thumbnail(
        &self,
        caller: Caller,
        media: Data<&Arc<MediaService>>,
        media_id: Path<MediaId>,
    ) -> Result<BytesAnswer, Also<409>> {
        caller.require(Scope::Read)?;
        let opened = media.open_rendition(caller.tenant, media_id.0, PresetName::Thumbnail).await;
        let opened = opened.map_err(open_problem)?;
        let (body, etag) = (FileBytes(Body::from_bytes_stream(opened.bytes)), format!("\"{}\"", media_id.0));
        Ok(BytesAnswer::Whole(body, opened.mime, opened.size_bytes, etag, "none".into(), CACHE.into()))
    }

    /// Delete an upload
    ///
    /// 409 while a post uses it. Its bytes go a day later, unless another upload of yours has the same ones.
    #[oai(path = "/:media_id", method = "delete", operation_id = "deleteMedia")]
    async fn delete(
        &self,
        caller: Caller,
        app: Data<&Arc<App>>,
        media_id: Path<MediaId>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
    ) -> Result<Gone, Problem> {
        caller.require(Scope::Publish)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, None).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        match store::delete(&mut tx, caller.tenant, media_id.0).await? {
            Deleted::Done => {}
            Deleted::NotFound => return Err(Problem::not_found("media")),
            Deleted::InUse => {
                let text = "A post uses this file. Take it out of the post, or delete the post, first.";
                return Err(Problem::conflict("media_in_use", text));
            }
        }
        let answer = claim.keep(&mut tx, Gone::default()).await?;
        tx.commit().await?;
        Ok(answer)
    }

    /// Make renditions
    ///
    /// One job for each preset. What is made already is found at once; what is being made is not begun twice.
    #[oai(path = "/:media_id/transcode", method = "post", operation_id = "transcodeMedia")]
    async fn transcode(
        &self,
        caller: Caller,
        app: Data<&Arc<App>>,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        media_id: Path<MediaId>,
        input: Input<TranscodeInput>,
    ) -> Result<Accepted<TranscodeAccepted>, Problem> {
        caller.require(Scope::Publish)?;
        let row = find(&caller, &mut *app.db.of(&caller).await?, media_id.0).await?;
        let presets = usable_presets(&row, &input.0)?;
        let mut tx = app.db.begin(&caller).await?;
        let request = json!(presets);
        let claim = match key.claim(&mut tx, &caller, Some(request)).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let group = match presets.len() {
            1 => None,
            _ => Some(app.engine.new_group(&mut tx, caller.tenant, &format!("transcode {}", row.name)).await?),
        };
        let (mut jobs, mut tickets) = (Vec::new(), Vec::new());
        for preset in presets {
            let mut job = Transcode { media: row.id, preset }.new_job(caller.tenant, &row);
            job.group = group;
            let (job_id, ticket) = enqueue(&app, &mut tx, job).await?;
            let existing = ticket.is_none();
            tickets.extend(ticket);
            jobs.push(TranscodeJob { preset: preset.into(), job_id, job: format!("/api/v1/jobs/{job_id}"), existing });
        }
        let location = match group {
            Some(group) if !tickets.is_empty() => format!("/api/v1/groups/{group}"),
            _ => jobs[0].job.clone(),
        };
        let answer = claim.keep(&mut tx, Accepted::new(location, TranscodeAccepted { jobs })).await?;
        tx.commit().await?;
        app.engine.ring(&tickets).await;
        Ok(answer)
    }
}

const CACHE: &str = "private, max-age=3600";

/// The bytes of a file, of whatever type it is.
struct FileBytes(Body);

impl Payload for FileBytes {
    const CONTENT_TYPE: &'static str = "*/*";

    fn schema_ref() -> MetaSchemaRef {
        Binary::<Body>::schema_ref()
    }
}

impl IntoResponse for FileBytes {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// Bytes, with what a browser needs to know about them.
#[derive(ApiResponse)]
enum BytesAnswer {
    /// All of them.
    #[oai(status = 200)]
    Whole(
        FileBytes,
        #[oai(header = "Content-Type")] String,
        #[oai(header = "Content-Length")] u64,
        #[oai(header = "ETag")] String,
        #[oai(header = "Accept-Ranges")] String,
        #[oai(header = "Cache-Control")] String,
    ),
    /// The part that was asked for.
    #[oai(status = 206)]
    Part(
        FileBytes,
        #[oai(header = "Content-Type")] String,
        #[oai(header = "Content-Length")] u64,
        #[oai(header = "Content-Range")] String,
        #[oai(header = "ETag")] String,
    ),
}

async fn receive(
    caller: &Caller,
    media: &MediaService,
    form: &mut Multipart,
    bound: Option<Refused>,
) -> Result<(Arrived, super::probe::Probe, Option<String>), Problem> {
    let missing =
        || Problem::invalid_field("file", "is missing", "Send the file as the part \"file\" of a multipart form");
    let part = tokio::time::timeout(PART_TIME, form.next_field()).await;
    let part = part.map_err(|_elapsed| upload_problem(UploadError::TooSlow))?;
    let part = part.map_err(super::api_form::broken_form)?.ok_or_else(missing)?;
    match part.name() {
        Some("file") => {}
        name => {
            let name = name.unwrap_or("a part without a name").to_owned();
            return Err(Problem::invalid_field(name, "is no part of this form", "Send one part, named \"file\""));
        }
    }
    let sent_name = part.file_name().map(str::to_owned);
    let limit_bytes = bound.as_ref().map_or(u64::MAX, |bound| bound.most.unsigned_abs());
    let received = media.receive(caller.tenant, part.into_async_read(), limit_bytes).await;
    let (arrived, probe) = received.map_err(|error| match (error, bound) {
        (UploadError::TooLarge { limit_bytes: passed }, Some(bound)) if passed == limit_bytes => bound.into(),
        (error, _) => upload_problem(error),
    })?;
    Ok((arrived, probe, sent_name))
}

struct Kept {
    answer: Created<MediaView>,
    tickets: Vec<Ticket>,
    /// Whether the upload is made of the bytes that have just arrived.
    uses_arrived: bool,
}

/// The upload, its thumbnail's job and the answer, in one transaction.
async fn keep(
    app: &App,
    caller: &Caller,
    key: IdempotencyKey,
    arrived: &Arrived,
    probe: &super::probe::Probe,
    name: &str,
) -> Result<Kept, Problem> {
    let mut tx = app.db.begin(caller).await?;
    let sha256 = hex::encode(arrived.sha256);
    let claim = match key.claim(&mut tx, caller, Some(json!({ "sha256": sha256, "name": name }))).await? {
        Turn::Replay(answer) => return Ok(Kept { answer, tickets: Vec::new(), uses_arrived: false }),
        Turn::New(claim) => claim,
    };
    let taken = intake::take(&app.engine, &mut tx, caller.tenant, arrived, probe, name).await.map_err(not_taken)?;
    let renditions = rendition_store::of_sources(&mut *tx, caller.tenant, &[taken.row.object_id]).await?;
    let created = Created::new(format!("/api/v1/media/{}", taken.row.id), MediaView::of(&taken.row, &renditions));
    let answer = claim.keep(&mut tx, created).await?;
    tx.commit().await?;
    Ok(Kept { answer, tickets: taken.tickets, uses_arrived: taken.uses_arrived })
}

fn not_taken(error: IntakeError) -> Problem {
    match error {
        IntakeError::Plan(error) => error.into(),
        IntakeError::Enqueue(error) => error.into(),
        IntakeError::Database(error) => error.into(),
    }
}

/// The job's id and its ticket, or the id of the one that does the same already.
async fn enqueue(
    app: &App,
    tx: &mut sqlx::PgConnection,
    job: NewJob,
) -> Result<(crate::ids::JobId, Option<Ticket>), Problem> {
    match app.engine.enqueue_in(tx, &[job]).await {
        Ok(tickets) => {
            let ticket = tickets.into_iter().next();
            let ticket = ticket.ok_or_else(|| Problem::internal_with("a job was written without a ticket"))?;
            Ok((ticket.job, Some(ticket)))
        }
        Err(EnqueueError::Duplicate { existing }) => Ok((existing, None)),
        Err(EnqueueError::Ledger(error)) => Err(error.into()),
        Err(EnqueueError::Stopping) => Err(Problem::unavailable()),
        Err(error @ (EnqueueError::Unstorable(_) | EnqueueError::Nobodys)) => Err(Problem::internal(&error)),
    }
}

/// Each preset once, and only those that the plan does not refuse: all that are refused are named.
fn usable_presets(row: &MediaRow, input: &TranscodeInput) -> Result<Vec<PresetName>, Problem> {
    let mut presets: Vec<PresetName> = Vec::new();
    let mut errors = Vec::new();
    for (index, preset) in input.presets.iter().map(|preset| PresetName::from(*preset)).enumerate() {
        let plan = plan::plan(&row.probe, preset.preset());
        if plan.action == Action::Refuse {
            let message = format!("cannot be made of this file: {}", plan.summary);
            let remedy = "Leave it out, or upload a file that fits (see the plans of the upload)";
            errors.push(FieldError::new(format!("presets[{index}]"), message, remedy));
        } else if !presets.contains(&preset) {
            presets.push(preset);
        }
    }
    if errors.is_empty() { Ok(presets) } else { Err(Problem::invalid(errors)) }
}

async fn find(caller: &Caller, db: &mut sqlx::PgConnection, id: MediaId) -> Result<MediaRow, Problem> {
    caller.require(Scope::Read)?;
    store::get(db, caller.tenant, id).await?.ok_or_else(|| Problem::not_found("media"))
}

fn open_problem(error: OpenError) -> Problem {
    match error {
        OpenError::NoSuchMedia => Problem::not_found("media"),
        OpenError::NotMade(_) => Problem::new(
            poem::http::StatusCode::NOT_FOUND,
            "not_made_yet",
            "Not made yet",
            "It is still being made. Ask again in a moment.",
        )
        .with_retry_after(Duration::from_secs(2)),
        OpenError::Refused { why, .. } => Problem::conflict("cannot_be_made", format!("It cannot be made: {why}.")),
        OpenError::Database(error) => error.into(),
        error @ OpenError::Storage(_) => Problem::internal(&error),
    }
}

pub(super) fn upload_problem(error: UploadError) -> Problem {
    let unusable = |error: &UploadError| {
        let text = crate::telemetry::chain(error);
        Problem::invalid_field("file", text, "Send a file that plays, as MP4, MOV, MKV, WebM, JPEG, PNG, GIF or WebP")
    };
    match error {
        UploadError::Kind(error) => Problem::unsupported_media_type(format!("{}.", sentence(&error.to_string()))),
        UploadError::TooLarge { limit_bytes } => Problem::payload_too_large(limit_bytes),
        UploadError::CutOff(error) => super::api_form::broken_body(&error),
        UploadError::TooSlow => Problem::new(
            poem::http::StatusCode::REQUEST_TIMEOUT,
            "body_too_slow",
            "The body took too long",
            "Nothing of the file arrived for 30 seconds. Send it again.",
        ),
        error @ (UploadError::Unreadable(..) | UploadError::NoPicture) => unusable(&error),
        UploadError::Busy => Problem::unavailable().with_retry_after(Duration::from_secs(10)),
        UploadError::Database(error) => error.into(),
        error @ (UploadError::Probe(_) | UploadError::Storage(_)) => Problem::internal(&error),
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
