//! Bringing a file to X, one step at a time.
//!
//! Images go in one request; animations and videos in segments: initialize, append each, finalize, wait while X
//! processes, describe. Sending a segment again is X's documented way to recover, so a step that is repeated after
//! a crash does no harm.

use std::time::Duration;

use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    answers::{self, Effect},
    exchange::Wire,
    is_id,
};
use crate::platforms::{Call, ConnectorError, MediaFile, MediaKind, Platform, Staged, Step, UploadState};

/// What official clients send; the edge refuses 5 MB at times.
const SEGMENT_BYTES: u64 = 4 << 20;
const SEGMENT_LEAST_BYTES: u64 = 1 << 20;
const SEGMENTS_MAX: u64 = 999;
/// What X promises when an answer leaves it out.
const LIFETIME_SECONDS: u64 = 86_400;
const IMAGE_DEADLINE: Duration = Duration::from_secs(60);
const SEGMENT_DEADLINE: Duration = Duration::from_secs(60);
const STEP_DEADLINE: Duration = Duration::from_secs(20);
/// However often X would like to be asked.
const POLL_LEAST: Duration = Duration::from_secs(1);
const POLL_MOST: Duration = Duration::from_secs(60);

/// Where an upload stands: what was done is kept, the rest follows from it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
struct Progress {
    media_id: String,
    lifetime_seconds: u64,
    stage: Stage,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Append { offset: u64, segment: u64, segment_bytes: u64 },
    Finalize,
    Process,
    Describe,
}

/// Of what was brought so far.
pub fn lifetime(state: &UploadState) -> Option<Duration> {
    let progress = Progress::deserialize(&state.0).ok()?;
    Some(Duration::from_secs(progress.lifetime_seconds))
}

pub async fn step(
    wire: &Wire,
    call: &Call<'_>,
    file: &MediaFile<'_>,
    state: Option<UploadState>,
) -> Result<Step, ConnectorError> {
    // A state that cannot be read (of an older version) costs a new upload, nothing more.
    let Some(progress) = state.and_then(|state| serde_json::from_value::<Progress>(state.0).ok()) else {
        return match file.facts.kind {
            MediaKind::Image => image(wire, call, file).await,
            MediaKind::Animation | MediaKind::Video => initialize(wire, call, file).await,
        };
    };
    match progress.stage {
        Stage::Append { offset, segment, segment_bytes } => {
            append(wire, call, file, progress, offset, segment, segment_bytes).await
        }
        Stage::Finalize => finalize(wire, call, file, progress).await,
        Stage::Process => processing(wire, call, file, progress).await,
        Stage::Describe => describe(wire, call, file, progress).await,
    }
}

async fn image(wire: &Wire, call: &Call<'_>, file: &MediaFile<'_>) -> Result<Step, ConnectorError> {
    let length = usize::try_from(file.facts.size_bytes).expect("images are measured in megabytes");
    let bytes = read(file, 0, length).await?;
    let form = Form::new().text("media_category", "tweet_image").part("media", part(bytes, &file.facts.content_type)?);
    let request = wire.request(Method::POST, "/2/media/upload", call).multipart(form).timeout(IMAGE_DEADLINE);
    let uploaded = answer(wire, call, "upload_image", request).await?;
    Ok(after_upload(uploaded, file, LIFETIME_SECONDS))
}

async fn initialize(wire: &Wire, call: &Call<'_>, file: &MediaFile<'_>) -> Result<Step, ConnectorError> {
    let category = match file.facts.kind {
        MediaKind::Image => "tweet_image",
        MediaKind::Animation => "tweet_gif",
        MediaKind::Video => "tweet_video",
    };
    let body = json!({
        "media_type": file.facts.content_type,
        "total_bytes": file.facts.size_bytes,
        "media_category": category,
    });
    let request = wire.request(Method::POST, "/2/media/upload/initialize", call).json(&body).timeout(STEP_DEADLINE);
    let begun = answer(wire, call, "initialize", request).await?;
    let segment_bytes = SEGMENT_BYTES.max(file.facts.size_bytes.div_ceil(SEGMENTS_MAX));
    let stage = Stage::Append { offset: 0, segment: 0, segment_bytes };
    let lifetime_seconds = begun.expires_after_secs.unwrap_or(LIFETIME_SECONDS);
    Ok(Step::Next(Progress { media_id: begun.id, lifetime_seconds, stage }.state()))
}

async fn append(
    wire: &Wire,
    call: &Call<'_>,
    file: &MediaFile<'_>,
    mut progress: Progress,
    offset: u64,
    segment: u64,
    segment_bytes: u64,
) -> Result<Step, ConnectorError> {
    let length = segment_bytes.min(file.facts.size_bytes - offset);
    let bytes = read(file, offset, usize::try_from(length).expect("a segment fits in memory")).await?;
    let form =
        Form::new().text("segment_index", segment.to_string()).part("media", part(bytes, "application/octet-stream")?);
    let path = format!("/2/media/upload/{}/append", progress.media_id);
    let request = wire.request(Method::POST, &path, call).multipart(form).timeout(SEGMENT_DEADLINE);
    progress.stage = match wire.send("append", Effect::Appends, request, call.witness).await {
        Ok(_) if offset + length >= file.facts.size_bytes => Stage::Finalize,
        Ok(_) => Stage::Append { offset: offset + length, segment: segment + 1, segment_bytes },
        Err(error) => match smaller(&error, file.facts.size_bytes - offset, segment, segment_bytes) {
            Some(segment_bytes) => Stage::Append { offset, segment, segment_bytes },
            None => return Err(error),
        },
    };
    Ok(Step::Next(progress.state()))
}

/// Half the size, while the rest of the file still fits in the segments that are left.
fn smaller(error: &ConnectorError, rest_bytes: u64, segment: u64, segment_bytes: u64) -> Option<u64> {
    let too_large = matches!(error, ConnectorError::MediaRefused { detail, .. } if detail == answers::PIECE_TOO_LARGE);
    let half = segment_bytes / 2;
    (too_large && half >= SEGMENT_LEAST_BYTES && segment + rest_bytes.div_ceil(half) <= SEGMENTS_MAX).then_some(half)
}

async fn finalize(
    wire: &Wire,
    call: &Call<'_>,
    file: &MediaFile<'_>,
    progress: Progress,
) -> Result<Step, ConnectorError> {
    let path = format!("/2/media/upload/{}/finalize", progress.media_id);
    let request = wire.request(Method::POST, &path, call).timeout(STEP_DEADLINE);
    let finished = answer(wire, call, "finalize", request).await?;
    processed(finished, file, progress)
}

async fn processing(
    wire: &Wire,
    call: &Call<'_>,
    file: &MediaFile<'_>,
    progress: Progress,
) -> Result<Step, ConnectorError> {
    let query = [("command", "STATUS"), ("media_id", progress.media_id.as_str())];
    let request = wire.get("/2/media/upload", &query, call).timeout(STEP_DEADLINE);
    let status = answer(wire, call, "status", request).await?;
    processed(status, file, progress)
}

fn processed(media: Media, file: &MediaFile<'_>, mut progress: Progress) -> Result<Step, ConnectorError> {
    let Some(info) = media.processing_info else { return Ok(finished(file, progress)) };
    match info.state.as_str() {
        "succeeded" => Ok(finished(file, progress)),
        "failed" => Err(refused(info.error)),
        _ => {
            let after = Duration::from_secs(info.check_after_secs.unwrap_or(5)).clamp(POLL_LEAST, POLL_MOST);
            progress.stage = Stage::Process;
            Ok(Step::Wait { state: progress.state(), after })
        }
    }
}

async fn describe(
    wire: &Wire,
    call: &Call<'_>,
    file: &MediaFile<'_>,
    progress: Progress,
) -> Result<Step, ConnectorError> {
    if let Some(text) = file.alt_text {
        let body = json!({ "id": progress.media_id, "metadata": { "alt_text": { "text": text } } });
        let request = wire.request(Method::POST, "/2/media/metadata", call).json(&body).timeout(STEP_DEADLINE);
        wire.send("alt_text", Effect::Repeatable, request, call.witness).await?;
    }
    Ok(Step::Ready(progress.staged(file)))
}

fn after_upload(media: Media, file: &MediaFile<'_>, lifetime_seconds: u64) -> Step {
    let lifetime_seconds = media.expires_after_secs.unwrap_or(lifetime_seconds);
    finished(file, Progress { media_id: media.id, lifetime_seconds, stage: Stage::Process })
}

/// X takes a description for what stands still or loops, not for videos.
fn finished(file: &MediaFile<'_>, mut progress: Progress) -> Step {
    if file.alt_text.is_none_or(str::is_empty) || file.facts.kind == MediaKind::Video {
        return Step::Ready(progress.staged(file));
    }
    progress.stage = Stage::Describe;
    Step::Next(progress.state())
}

fn refused(error: Option<ProcessingError>) -> ConnectorError {
    let detail = error.and_then(|error| error.message.or(error.name)).unwrap_or_else(|| "processing failed".into());
    ConnectorError::MediaRefused { platform: Platform::X, detail }
}

impl Progress {
    fn state(self) -> UploadState {
        UploadState(serde_json::to_value(self).expect("plain data"))
    }

    fn staged(&self, file: &MediaFile<'_>) -> Staged {
        let lifetime = Some(Duration::from_secs(self.lifetime_seconds));
        Staged { remote_id: self.media_id.clone(), kind: file.facts.kind, lifetime }
    }
}

#[derive(Deserialize)]
struct Envelope {
    data: Media,
}

#[derive(Deserialize)]
struct Media {
    #[serde(default)]
    id: String,
    expires_after_secs: Option<u64>,
    processing_info: Option<Processing>,
}

#[derive(Deserialize)]
struct Processing {
    state: String,
    check_after_secs: Option<u64>,
    error: Option<ProcessingError>,
}

#[derive(Deserialize)]
struct ProcessingError {
    name: Option<String>,
    message: Option<String>,
}

async fn answer(
    wire: &Wire,
    call: &Call<'_>,
    what: &'static str,
    request: reqwest::RequestBuilder,
) -> Result<Media, ConnectorError> {
    let answer = wire.send(what, Effect::Repeatable, request, call.witness).await?;
    let media = answer.json::<Envelope>().map(|envelope| envelope.data);
    // A status need not repeat the id; where it is new it must be one, because it goes into addresses.
    media
        .filter(|media| is_id(&media.id) || what == "status" || what == "finalize")
        .ok_or(ConnectorError::Unreadable { platform: Platform::X, status: answer.status })
}

async fn read(file: &MediaFile<'_>, start: u64, length: usize) -> Result<bytes::Bytes, ConnectorError> {
    let bytes = file.bytes.read(start, length).await.map_err(|source| ConnectorError::MediaUnreadable { source })?;
    if bytes.len() == length {
        return Ok(bytes);
    }
    let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the stored file is shorter than it was");
    Err(ConnectorError::MediaUnreadable { source })
}

fn part(bytes: bytes::Bytes, content_type: &str) -> Result<Part, ConnectorError> {
    let length = bytes.len() as u64;
    let part = Part::stream_with_length(bytes, length).file_name("media");
    part.mime_str(content_type).map_err(|_| ConnectorError::MediaRefused {
        platform: Platform::X,
        detail: "its type is not one that can be sent".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_refused_for_its_size_is_halved_while_the_rest_still_fits() {
        let too_large = ConnectorError::MediaRefused { platform: Platform::X, detail: answers::PIECE_TOO_LARGE.into() };
        assert_eq!(smaller(&too_large, 100 << 20, 0, 4 << 20), Some(2 << 20));
        assert_eq!(smaller(&too_large, 100 << 20, 0, 1 << 20), None);
        assert_eq!(smaller(&too_large, 4 << 30, 0, 5 << 20), None, "too many segments");
        let other = ConnectorError::Unavailable { platform: Platform::X, status: 503, after: None };
        assert_eq!(smaller(&other, 100 << 20, 0, 4 << 20), None);
    }

    #[test]
    fn an_upload_goes_on_where_its_state_says() {
        let stage = Stage::Append { offset: 4, segment: 1, segment_bytes: 4 };
        let progress = Progress { media_id: "1".into(), lifetime_seconds: 60, stage };
        let UploadState(state) = progress.clone().state();
        assert_eq!(serde_json::from_value::<Progress>(state).unwrap(), progress);
    }
}
