//! What ffprobe says about a file, typed. Fields of a stranger's file are claims: good for planning, no proof.

use std::{ffi::OsString, path::Path};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    boxes::{self, BoxFacts},
    exit::FfmpegError,
    ffmpeg::{Limits, Program, Tools},
    sniff::Kind,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    pub kind: Kind,
    pub size_bytes: u64,
    pub duration_ms: Option<u64>,
    pub bit_rate: Option<u64>,
    /// The first real video stream (never cover art), or the picture.
    pub video: Option<VideoStream>,
    /// The default audio stream, else the first.
    pub audio: Option<AudioStream>,
    pub audio_streams: u32,
    /// Subtitles, data, attachments, cover art, further videos: none of them is ever passed on.
    pub other_streams: u32,
    /// Names of tags that say where, when or with what it was made. The values are not kept.
    pub personal_tags: Vec<String>,
    pub boxes: Option<BoxFacts>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoStream {
    pub index: u32,
    pub codec: String,
    pub codec_tag: String,
    pub profile: String,
    pub level: i32,
    pub pixel_format: String,
    /// As stored, before rotation and before pixels are made square.
    pub width: u32,
    pub height: u32,
    /// Degrees, as the display matrix or EXIF has it: -270..=270.
    pub rotation: i32,
    pub pixel_aspect: Rational,
    pub frame_rate: Rational,
    pub average_frame_rate: Rational,
    pub interlaced: bool,
    pub transfer: String,
    pub primaries: String,
    pub start_ms: i64,
    pub duration_ms: Option<u64>,
    /// Frames the container claims; packets counted for GIF.
    pub frames: Option<u64>,
    pub bit_rate: Option<u64>,
    pub side_data: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AudioStream {
    pub index: u32,
    pub codec: String,
    pub profile: String,
    pub sample_rate: u32,
    pub channels: u32,
    pub start_ms: i64,
    pub duration_ms: Option<u64>,
    pub frames: Option<u64>,
    pub bit_rate: Option<u64>,
}

/// An exact ratio: 30000/1001 frames a second is not 29.97.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rational {
    pub num: u32,
    pub den: u32,
}

impl Rational {
    pub const fn new(num: u32, den: u32) -> Self {
        Self { num, den }
    }

    /// Zero for a ratio that is none.
    pub fn as_f64(self) -> f64 {
        if self.den == 0 { 0.0 } else { f64::from(self.num) / f64::from(self.den) }
    }

    fn parse(text: &str, separator: char) -> Option<Self> {
        let (num, den) = text.split_once(separator)?;
        Some(Self { num: num.parse().ok()?, den: den.parse().ok()? })
    }
}

impl std::fmt::Display for Rational {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.den == 1 { write!(f, "{}", self.num) } else { write!(f, "{}/{}", self.num, self.den) }
    }
}

impl VideoStream {
    /// As a person sees it: turned, and with square pixels.
    pub fn display_size(&self) -> (u32, u32) {
        let (num, den) = match self.pixel_aspect {
            Rational { num: 0, .. } | Rational { den: 0, .. } => (1, 1),
            Rational { num, den } => (num, den),
        };
        let width = u64::from(self.width) * u64::from(num) / u64::from(den);
        let width = u32::try_from(width.clamp(1, u64::from(u32::MAX))).unwrap_or(u32::MAX);
        if self.is_turned() { (self.height, width) } else { (width, self.height) }
    }

    /// Whether rotation swaps width and height.
    pub fn is_turned(&self) -> bool {
        (45..135).contains(&(self.rotation.abs() % 180))
    }

    pub fn has_square_pixels(&self) -> bool {
        self.pixel_aspect.num == self.pixel_aspect.den || self.pixel_aspect.num == 0
    }

    /// Whether frames come at changing distances: the container's two rates disagree.
    pub fn has_variable_rate(&self) -> bool {
        let (base, average) = (self.frame_rate.as_f64(), self.average_frame_rate.as_f64());
        base > 0.0 && average > 0.0 && ((base - average) / base).abs() > 0.005
    }

    /// Frames a second as they come, by the average where the rate varies.
    pub fn rate(&self) -> f64 {
        match self.average_frame_rate.as_f64() {
            0.0 => self.frame_rate.as_f64(),
            average => average,
        }
    }

    /// Formats with an alpha channel, and palettes, which may have one.
    pub fn has_alpha(&self) -> bool {
        let format = self.pixel_format.as_str();
        ["rgba", "bgra", "argb", "abgr", "ya8", "ya16", "yuva", "gbrap", "pal8"]
            .iter()
            .any(|name| format.starts_with(name))
    }

    pub fn is_hdr(&self) -> bool {
        matches!(self.transfer.as_str(), "smpte2084" | "arib-std-b67")
    }
}

impl Probe {
    /// The video's own length where it is known: audio may be longer.
    pub fn video_duration_ms(&self) -> Option<u64> {
        self.video.as_ref().and_then(|video| video.duration_ms).or(self.duration_ms)
    }

    /// A picture that does not move.
    pub fn is_still(&self) -> bool {
        !self.kind.is_video_container() && !self.is_animation()
    }

    pub fn is_animation(&self) -> bool {
        self.kind == Kind::Gif && self.video.as_ref().and_then(|video| video.frames).is_some_and(|frames| frames > 1)
    }
}

/// Options before `-i` that pin what may be opened and how much of it, the same for both programs.
pub fn input_options(kind: Kind) -> Vec<OsString> {
    let max_pixels = kind.max_pixels().to_string();
    [
        ["-protocol_whitelist", "file"],
        ["-format_whitelist", kind.demuxer()],
        ["-codec_whitelist", kind.decoders()],
        ["-max_pixels", &max_pixels],
        ["-max_streams", "16"],
        ["-probesize", "20M"],
        ["-analyzeduration", "10M"],
        ["-f", kind.demuxer()],
    ]
    .concat()
    .into_iter()
    .map(OsString::from)
    .collect()
}

/// A path that cannot be taken for an option, a protocol or a pattern.
pub fn file_argument(path: &Path) -> OsString {
    let mut argument = OsString::from("file:");
    argument.push(path);
    argument
}

/// Looks at a file with ffprobe, and at its boxes where it has them.
pub async fn probe(tools: &Tools, path: &Path, kind: Kind, cancel: &CancellationToken) -> Result<Probe, FfmpegError> {
    const MAX_JSON_BYTES: usize = 1 << 20;
    let mut args: Vec<OsString> = ["-hide_banner", "-v", "error"].map(OsString::from).into();
    args.extend(input_options(kind));
    args.extend(["-show_format", "-show_streams"].map(OsString::from));
    match kind {
        // EXIF lives in the frame; one frame is the whole picture, so this also shows that it decodes.
        Kind::Jpeg | Kind::Png | Kind::Webp => {
            args.extend(["-show_frames", "-read_intervals", "%+#1"].map(OsString::from));
        }
        // A GIF does not say how many frames it has.
        Kind::Gif => args.push("-count_packets".into()),
        Kind::Mp4 | Kind::QuickTime | Kind::Matroska | Kind::Webm => {}
    }
    args.extend(["-of".into(), "json".into(), "-i".into(), file_argument(path)]);
    let json = tools.read(Program::Ffprobe, &args, &Limits::PROBE, cancel, MAX_JSON_BYTES).await?;
    let raw: raw::Output = serde_json::from_str(&json)
        .map_err(|_| FfmpegError::BadMedia { detail: "its description cannot be read".into() })?;

    let io = |source| FfmpegError::Pipe { program: "file system", source };
    let size_bytes = tokio::fs::metadata(path).await.map_err(io)?.len();
    let boxes = if kind.has_boxes() {
        let path = path.to_owned();
        let walked = tokio::task::spawn_blocking(move || boxes::walk(&path)).await;
        Some(walked.map_err(std::io::Error::other).flatten().map_err(io)?)
    } else {
        None
    };
    Ok(raw.typed(kind, size_bytes, boxes))
}

/// The JSON as ffprobe writes it: numbers are often texts, and everything may be missing.
mod raw {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::Value;

    use super::{AudioStream, BoxFacts, Kind, Probe, Rational, VideoStream};

    #[derive(Deserialize)]
    pub struct Output {
        #[serde(default)]
        streams: Vec<Stream>,
        #[serde(default)]
        format: Format,
        #[serde(default)]
        frames: Vec<Frame>,
    }

    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Format {
        duration: Option<String>,
        bit_rate: Option<String>,
        tags: BTreeMap<String, Value>,
    }

    #[derive(Deserialize)]
    struct Frame {
        #[serde(default)]
        tags: BTreeMap<String, Value>,
        #[serde(default)]
        side_data_list: Vec<SideData>,
    }

    #[derive(Deserialize)]
    struct SideData {
        #[serde(default)]
        side_data_type: String,
        rotation: Option<f64>,
    }

    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Stream {
        index: u32,
        codec_type: String,
        codec_name: String,
        codec_tag_string: String,
        profile: String,
        level: i32,
        pix_fmt: String,
        width: u32,
        height: u32,
        sample_aspect_ratio: String,
        r_frame_rate: String,
        avg_frame_rate: String,
        field_order: String,
        color_transfer: String,
        color_primaries: String,
        start_time: Option<String>,
        duration: Option<String>,
        nb_frames: Option<String>,
        nb_read_packets: Option<String>,
        bit_rate: Option<String>,
        sample_rate: Option<String>,
        channels: u32,
        disposition: BTreeMap<String, Value>,
        tags: BTreeMap<String, Value>,
        side_data_list: Vec<SideData>,
    }

    impl Output {
        pub fn typed(self, kind: Kind, size_bytes: u64, boxes: Option<BoxFacts>) -> Probe {
            let is = |stream: &&Stream, flag: &str| stream.disposition.get(flag).is_some_and(|on| on == 1);
            let video = self.streams.iter().find(|s| s.codec_type == "video" && !is(s, "attached_pic"));
            let audios: Vec<_> = self.streams.iter().filter(|s| s.codec_type == "audio").collect();
            let audio = audios.iter().copied().find(|s| is(s, "default")).or(audios.first().copied());
            let used = usize::from(video.is_some()) + audios.len();
            Probe {
                kind,
                size_bytes,
                duration_ms: ms(self.format.duration.as_deref()),
                bit_rate: number(self.format.bit_rate.as_deref()),
                video: video.map(|stream| stream.video(&self.frames)),
                audio: audio.map(Stream::audio),
                audio_streams: u32::try_from(audios.len()).unwrap_or(u32::MAX),
                other_streams: u32::try_from(self.streams.len() - used).unwrap_or(u32::MAX),
                personal_tags: self.personal_tags(),
                boxes,
            }
        }

        /// Everything but what containers need and ffmpeg itself writes.
        fn personal_tags(&self) -> Vec<String> {
            let mut names: Vec<String> = (self.format.tags.iter())
                .chain(self.streams.iter().flat_map(|stream| &stream.tags))
                .chain(self.frames.iter().flat_map(|frame| &frame.tags))
                .filter(|(name, value)| !is_plain(&name.to_ascii_lowercase(), value.as_str().unwrap_or_default()))
                .map(|(name, _)| name.chars().filter(|c| !c.is_control()).take(60).collect())
                .collect();
            names.sort();
            names.dedup();
            names.truncate(64);
            names
        }
    }

    fn is_plain(name: &str, value: &str) -> bool {
        match name {
            "major_brand" | "minor_version" | "compatible_brands" | "language" | "vendor_id" | "rotate" => true,
            "handler_name" => matches!(value, "VideoHandler" | "SoundHandler"),
            "encoder" => value.starts_with("Lav"),
            "duration" | "color_range" => true,
            _ => false,
        }
    }

    impl Stream {
        fn video(&self, frames: &[Frame]) -> VideoStream {
            let side_data = || self.side_data_list.iter().chain(frames.iter().flat_map(|frame| &frame.side_data_list));
            VideoStream {
                index: self.index,
                codec: self.codec_name.clone(),
                codec_tag: self.codec_tag_string.clone(),
                profile: self.profile.clone(),
                level: self.level,
                pixel_format: self.pix_fmt.clone(),
                width: self.width,
                height: self.height,
                rotation: side_data().find_map(|data| data.rotation).map_or(0, |degrees| degrees as i32),
                pixel_aspect: Rational::parse(&self.sample_aspect_ratio, ':').unwrap_or(Rational::new(1, 1)),
                frame_rate: Rational::parse(&self.r_frame_rate, '/').unwrap_or(Rational::new(0, 1)),
                average_frame_rate: Rational::parse(&self.avg_frame_rate, '/').unwrap_or(Rational::new(0, 1)),
                interlaced: matches!(self.field_order.as_str(), "tt" | "bb" | "tb" | "bt"),
                transfer: self.color_transfer.clone(),
                primaries: self.color_primaries.clone(),
                start_ms: start_ms(self.start_time.as_deref()),
                duration_ms: ms(self.duration.as_deref()),
                frames: number(self.nb_frames.as_deref()).or(number(self.nb_read_packets.as_deref())),
                bit_rate: number(self.bit_rate.as_deref()),
                side_data: side_data().map(|data| data.side_data_type.clone()).take(16).collect(),
            }
        }

        fn audio(&self) -> AudioStream {
            AudioStream {
                index: self.index,
                codec: self.codec_name.clone(),
                profile: self.profile.clone(),
                sample_rate: number(self.sample_rate.as_deref()).unwrap_or(0),
                channels: self.channels,
                start_ms: start_ms(self.start_time.as_deref()),
                duration_ms: ms(self.duration.as_deref()),
                frames: number(self.nb_frames.as_deref()),
                bit_rate: number(self.bit_rate.as_deref()),
            }
        }
    }

    fn number<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
        text?.parse().ok()
    }

    /// Seconds as text to milliseconds; a negative or absurd length is no length.
    fn ms(text: Option<&str>) -> Option<u64> {
        const YEAR_S: f64 = 31_536_000.0;
        let seconds: f64 = number(text)?;
        (0.0..YEAR_S).contains(&seconds).then(|| (seconds * 1000.0).round() as u64)
    }

    fn start_ms(text: Option<&str>) -> i64 {
        number::<f64>(text).filter(|seconds| seconds.is_finite()).map_or(0, |seconds| (seconds * 1000.0).round() as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(kind: Kind, json: &str) -> Probe {
        serde_json::from_str::<raw::Output>(json).unwrap().typed(kind, 1, None)
    }

    const PHONE: &str = r#"{"streams": [
        {"index": 0, "codec_type": "video", "codec_name": "mjpeg", "disposition": {"attached_pic": 1}},
        {"index": 1, "codec_type": "audio", "codec_name": "aac", "sample_rate": "44100", "channels": 1},
        {"index": 2, "codec_type": "video", "codec_name": "hevc", "width": 1440, "height": 1080,
         "sample_aspect_ratio": "4:3", "r_frame_rate": "60/1", "avg_frame_rate": "37800/1000",
         "color_transfer": "arib-std-b67", "field_order": "tt",
         "side_data_list": [{"side_data_type": "Display Matrix", "rotation": -90}]},
        {"index": 3, "codec_type": "audio", "codec_name": "aac", "disposition": {"default": 1}},
        {"index": 4, "codec_type": "data"}],
        "format": {"duration": "12.345", "tags": {"location": "+48.1-011.5/", "major_brand": "qt  "}}}"#;

    #[test]
    fn the_real_video_and_the_default_audio_are_chosen() {
        let probe = typed(Kind::QuickTime, PHONE);
        assert_eq!(probe.video.as_ref().unwrap().index, 2);
        assert_eq!(probe.audio.as_ref().unwrap().index, 3);
        assert_eq!((probe.audio_streams, probe.other_streams, probe.duration_ms), (2, 2, Some(12_345)));
        assert_eq!(probe.personal_tags, ["location"]);
    }

    #[test]
    fn a_turned_frame_with_wide_pixels_is_sized_as_it_is_seen() {
        let video = typed(Kind::QuickTime, PHONE).video.unwrap();
        assert_eq!(video.display_size(), (1080, 1920));
        assert!(video.has_variable_rate() && video.is_hdr() && video.interlaced);
    }

    #[test]
    fn absurd_claims_are_no_claims() {
        let json = r#"{"streams": [{"codec_type": "video", "sample_aspect_ratio": "0:1", "width": 5, "height": 7,
            "duration": "1e300", "r_frame_rate": "0/0"}], "format": {"duration": "-4"}}"#;
        let probe = typed(Kind::Mp4, json);
        let video = probe.video.as_ref().unwrap();
        assert_eq!((probe.video_duration_ms(), video.display_size()), (None, (5, 7)));
        assert!(!video.has_variable_rate());
    }
}
