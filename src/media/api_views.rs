//! What the media calls answer, as the API document knows it.

use chrono::{DateTime, Utc};
use poem_openapi::{Enum, Object};

use super::{
    plan::{self, Plan},
    preset::{Preset, PresetKind, PresetName},
    probe::{AudioStream, Probe, VideoStream},
    rendition_store::RenditionRow,
    store::MediaRow,
};
use crate::ids::{JobId, MediaId, RenditionId};

/// An uploaded file: what it is, and what has to be done to it for each platform.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "Media", skip_serializing_if_is_none)]
pub struct MediaView {
    pub id: MediaId,
    pub name: String,
    /// As its first bytes say, not its name.
    pub mime: String,
    pub size_bytes: i64,
    /// Of the content, as hexadecimal digits.
    pub sha256: String,
    pub created_at: DateTime<Utc>,
    pub duration_ms: Option<u64>,
    pub video: Option<VideoView>,
    pub audio: Option<AudioView>,
    /// For each platform: what happens to the file before it is published there, or why it cannot be.
    pub plans: Vec<PlanView>,
    /// What has been made of it.
    pub renditions: Vec<RenditionView>,
    /// Where its bytes are.
    pub content: String,
    /// Where its thumbnail is, once it is made.
    pub thumbnail: String,
}

/// The moving or still picture in a file.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "MediaVideo", skip_serializing_if_is_none)]
pub struct VideoView {
    pub codec: String,
    /// As it is seen: turned, and with square pixels.
    pub width: u32,
    pub height: u32,
    pub frame_rate: f64,
    pub hdr: bool,
}

/// The sound in a file.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "MediaAudio")]
pub struct AudioView {
    pub codec: String,
    pub sample_rate: u32,
    pub channels: u32,
}

/// What happens to a file for a preset.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "MediaPlan", skip_serializing_if_is_none)]
pub struct PlanView {
    /// As a person calls it, such as "Instagram".
    pub platform: Option<String>,
    pub preset: PresetView,
    pub action: ActionView,
    /// One line, such as "HEVC 50 fps 3840x2160 -> H.264 50 fps 1280x720", or why it is refused.
    pub summary: String,
    /// Everything that speaks against the file as it is.
    pub reasons: Vec<String>,
}

/// What a rendition is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "MediaPreset", rename_all = "snake_case")]
pub enum PresetView {
    XVideo,
    XImage,
    InstagramReel,
    YoutubeVideo,
    Thumbnail,
}

/// How much has to be done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "MediaAction", rename_all = "snake_case")]
pub enum ActionView {
    /// It goes out as it is.
    LeaveAlone,
    /// Its pictures and sound stay as they are, in a new container.
    Remux,
    Transcode,
    /// It cannot be used there; the summary says why.
    Refuse,
}

/// What was made of a file for a preset.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "MediaRendition", skip_serializing_if_is_none)]
pub struct RenditionView {
    pub id: RenditionId,
    pub preset: String,
    pub version: i32,
    /// `wanted`, `ready` or `refused`.
    pub state: String,
    pub mime: Option<String>,
    pub size_bytes: Option<i64>,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub duration_ms: Option<u64>,
    /// Why there is none.
    pub refusal: Option<String>,
    /// How many promises of the preset were checked on it, all of them kept.
    pub checks: Option<u64>,
    pub notes: Vec<String>,
}

/// What a platform takes, and what is made for it.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "MediaPresetInfo", skip_serializing_if_is_none)]
pub struct PresetInfo {
    pub name: PresetView,
    pub version: u32,
    pub platform: Option<String>,
    pub about: String,
    pub max_bytes: u64,
    pub min_duration_ms: Option<u64>,
    pub max_duration_ms: Option<u64>,
}

/// All presets.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "MediaPresets")]
pub struct PresetList {
    pub items: Vec<PresetInfo>,
}

/// Which renditions to make.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(rename = "TranscodeInput", deny_unknown_fields)]
pub struct TranscodeInput {
    #[oai(validator(min_items = 1, max_items = 10))]
    pub presets: Vec<PresetView>,
}

/// The jobs that make the renditions.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "TranscodeAccepted")]
pub struct TranscodeAccepted {
    pub jobs: Vec<TranscodeJob>,
}

/// A job that makes one rendition.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct TranscodeJob {
    pub preset: PresetView,
    pub job_id: JobId,
    /// Path of the job.
    pub job: String,
    /// Whether it was under way already.
    pub existing: bool,
}

impl MediaView {
    /// `renditions` may hold those of other uploads too.
    pub fn of(row: &MediaRow, renditions: &[RenditionRow]) -> Self {
        let probe = &row.probe.0;
        let path = format!("/api/v1/media/{}", row.id);
        Self {
            id: row.id,
            name: row.name.clone(),
            mime: row.mime.clone(),
            size_bytes: row.size_bytes,
            sha256: hex::encode(&row.sha256),
            created_at: row.created_at,
            duration_ms: probe.duration_ms.filter(|_| !probe.is_still()),
            video: probe.video.as_ref().map(|video| VideoView::of(video, probe)),
            audio: probe.audio.as_ref().map(AudioView::of),
            plans: plan::plan_platforms(probe).into_iter().map(PlanView::of).collect(),
            renditions: (renditions.iter())
                .filter(|rendition| rendition.source_id == row.object_id)
                .map(RenditionView::of)
                .collect(),
            content: format!("{path}/content"),
            thumbnail: format!("{path}/thumbnail"),
        }
    }
}

impl VideoView {
    fn of(video: &VideoStream, probe: &Probe) -> Self {
        let (width, height) = video.display_size();
        let frame_rate = if probe.is_still() { 0.0 } else { (video.rate() * 1000.0).round() / 1000.0 };
        Self { codec: video.codec.clone(), width, height, frame_rate, hdr: video.is_hdr() }
    }
}

impl AudioView {
    fn of(audio: &AudioStream) -> Self {
        Self { codec: audio.codec.clone(), sample_rate: audio.sample_rate, channels: audio.channels }
    }
}

impl PlanView {
    pub fn of(plan: Plan) -> Self {
        Self {
            platform: plan.preset.preset().platform.map(str::to_owned),
            preset: plan.preset.into(),
            action: match plan.action {
                plan::Action::LeaveAlone => ActionView::LeaveAlone,
                plan::Action::Remux => ActionView::Remux,
                plan::Action::Transcode => ActionView::Transcode,
                plan::Action::Refuse => ActionView::Refuse,
            },
            summary: plan.summary,
            reasons: plan.reasons,
        }
    }
}

impl RenditionView {
    fn of(row: &RenditionRow) -> Self {
        let probe = row.probe.as_ref().map(|probe| &probe.0);
        let size = probe.and_then(|probe| probe.video.as_ref()).map(VideoStream::display_size);
        Self {
            id: row.id,
            preset: row.preset.clone(),
            version: row.preset_version,
            state: row.state.clone(),
            mime: row.mime.clone(),
            size_bytes: row.size_bytes,
            width: size.map(|size| size.0),
            height: size.map(|size| size.1),
            duration_ms: probe.and_then(|probe| probe.duration_ms.filter(|_| !probe.is_still())),
            refusal: row.refusal.clone(),
            checks: row.proof.as_ref().map(|proof| proof.checks.len() as u64),
            notes: serde_json::from_value(row.notes.clone()).unwrap_or_default(),
        }
    }
}

impl PresetInfo {
    pub fn of(preset: &Preset) -> Self {
        let (max_bytes, durations) = match &preset.kind {
            PresetKind::Video(rules) => (rules.max_bytes, Some((rules.min_duration_ms, rules.max_duration_ms))),
            PresetKind::Still(rules) => (rules.max_bytes, None),
        };
        Self {
            name: preset.name.into(),
            version: preset.version,
            platform: preset.platform.map(str::to_owned),
            about: preset.about.to_owned(),
            max_bytes,
            min_duration_ms: durations.map(|(min, _)| min),
            max_duration_ms: durations.map(|(_, max)| max),
        }
    }
}

macro_rules! same_presets {
    ($($name:ident),+) => {
        impl From<PresetName> for PresetView {
            fn from(name: PresetName) -> Self {
                match name { $(PresetName::$name => Self::$name,)+ }
            }
        }

        impl From<PresetView> for PresetName {
            fn from(view: PresetView) -> Self {
                match view { $(PresetView::$name => Self::$name,)+ }
            }
        }
    };
}

same_presets!(XVideo, XImage, InstagramReel, YoutubeVideo, Thumbnail);
