//! Decides what has to be done to a file for a preset, and says why in words: leave it alone, put it into a new
//! container, encode it again, or refuse it. Pure: no file is touched, so every rule is a plain test.

use serde::{Deserialize, Serialize};

use super::{
    preset::{FrameRule, Preset, PresetKind, PresetName, VideoPreset},
    probe::{Probe, Rational, VideoStream},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub preset: PresetName,
    pub version: u32,
    pub action: Action,
    /// One line, such as "HEVC 50 fps 3840x2160 -> H.264 50 fps 1280x720", or why it is refused.
    pub summary: String,
    /// Everything that speaks against leaving the file as it is.
    pub reasons: Vec<String>,
    pub target: Option<Target>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    LeaveAlone,
    /// The pictures and the sound are right, only the container is not.
    Remux,
    Transcode,
    Refuse,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Target {
    Video(VideoTarget),
    Still(StillTarget),
    /// A moving GIF that goes out as it came.
    Animation,
}

/// Every number an encode needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VideoTarget {
    /// Which stream of the source.
    pub video_index: u32,
    pub width: u32,
    pub height: u32,
    pub fit: Fit,
    pub rate: Rational,
    /// Frames from one key frame to the next.
    pub key_interval: u32,
    pub crf: u8,
    pub max_bit_rate: u64,
    pub deinterlace: bool,
    pub tone_map: Option<ToneMap>,
    pub audio: AudioTarget,
    pub audio_bit_rate: u32,
    /// Of the source's video; `None` when its container does not say.
    pub duration_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// The frame has the source's shape.
    Scale,
    /// The picture is this large, with bars around it.
    Pad { width: u32, height: u32 },
    /// The picture covers the frame and loses a sliver.
    Crop { width: u32, height: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToneMap {
    Pq,
    Hlg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AudioTarget {
    None,
    /// A silent track as long as the video.
    Silence,
    Stream {
        index: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StillTarget {
    /// Which stream of the source.
    pub video_index: u32,
    pub max_side: u32,
    pub png: bool,
    pub square_pixels: bool,
    /// Lay it over white when it becomes a JPEG.
    pub has_alpha: bool,
    pub tone_map: Option<ToneMap>,
    /// Picks a telling frame of a video.
    pub from_video: bool,
}

/// What has to be done to a file for a preset.
pub fn plan(probe: &Probe, preset: &Preset) -> Plan {
    match &preset.kind {
        PresetKind::Video(video) => plan_video(probe, preset, video),
        PresetKind::Still(still) => super::plan_still::plan_still(probe, preset, still),
    }
}

/// A plan for each platform, by the preset that suits the kind of file.
pub fn plan_platforms(probe: &Probe) -> Vec<Plan> {
    let x = if probe.is_still() || probe.is_animation() { PresetName::XImage } else { PresetName::XVideo };
    [x, PresetName::InstagramReel, PresetName::YoutubeVideo].map(|name| plan(probe, name.preset())).into()
}

pub(super) fn refuse(preset: &Preset, why: impl Into<String>) -> Plan {
    Plan {
        preset: preset.name,
        version: preset.version,
        action: Action::Refuse,
        summary: why.into(),
        reasons: Vec::new(),
        target: None,
    }
}

fn plan_video(probe: &Probe, preset: &Preset, rules: &VideoPreset) -> Plan {
    let platform = preset.platform.unwrap_or("this preset");
    let Some(video) = &probe.video else {
        let what = if probe.audio.is_some() { "only sound" } else { "no video" };
        return refuse(preset, format!("the file has {what}: {platform} needs a video"));
    };
    if probe.is_still() {
        return refuse(preset, format!("the file is a picture: {preset} needs a video", preset = preset.name));
    }
    let (width, height) = video.display_size();
    if video.width == 0 || video.height == 0 || u64::from(width) * u64::from(height) > probe.kind.max_pixels() {
        return refuse(preset, format!("frames of {width}x{height} pixels cannot be worked with"));
    }
    let duration_ms = probe.video_duration_ms();
    if let Some(why) = duration_ms.and_then(|ms| wrong_length(ms, rules, platform)) {
        return refuse(preset, why);
    }

    let target = target(probe, video, rules);
    let short_side = target.width.min(target.height);
    if short_side < rules.min_side {
        let least = rules.min_side;
        return refuse(preset, format!("{width}x{height} is too small: {platform} needs {least} pixels on a side"));
    }
    let mut reasons = encode_reasons(probe, video, rules, platform);
    let mut action = if reasons.is_empty() { Action::LeaveAlone } else { Action::Transcode };
    let wrapping = container_reasons(probe);
    if action == Action::LeaveAlone && !wrapping.is_empty() {
        action = Action::Remux;
    }
    reasons.extend(wrapping);
    let summary = match action {
        Action::LeaveAlone => format!("{} is right for {platform} as it is", describe(video, probe)),
        Action::Remux => format!("{} stays as it is, in a new container", describe(video, probe)),
        Action::Transcode | Action::Refuse => format!(
            "{} -> H.264 {} fps {}x{}",
            describe(video, probe),
            fps(target.rate.as_f64()),
            target.width,
            target.height
        ),
    };
    let (preset, version) = (preset.name, preset.version);
    Plan { preset, version, action, summary, reasons, target: Some(Target::Video(target)) }
}

fn wrong_length(duration_ms: u64, rules: &VideoPreset, platform: &str) -> Option<String> {
    let is = format!("the video is {} long", length(duration_ms));
    if duration_ms < rules.min_duration_ms {
        return Some(format!("{is}: {platform} needs at least {}", length(rules.min_duration_ms)));
    }
    (duration_ms > rules.max_duration_ms)
        .then(|| format!("{is}: {platform} takes at most {}, so cut it into parts", length(rules.max_duration_ms)))
}

fn target(probe: &Probe, video: &VideoStream, rules: &VideoPreset) -> VideoTarget {
    let (width, height, fit) = frame(video.display_size(), rules);
    let rate = frame_rate(video, rules);
    let frames = rate.as_f64() * f64::from(rules.key_interval_ms) / 1000.0;
    // Half a frame over is a frame too long where the interval is an upper bound, except for the 1001 rates.
    let key_interval = (frames + 0.1).floor().max(1.0) as u32;
    VideoTarget {
        video_index: video.index,
        width,
        height,
        fit,
        rate,
        key_interval,
        crf: rules.crf,
        max_bit_rate: rules.bit_rate.at(width.min(height), rate),
        deinterlace: video.interlaced,
        tone_map: tone_map(video),
        audio: match &probe.audio {
            Some(audio) => AudioTarget::Stream { index: audio.index },
            None if rules.silent_track => AudioTarget::Silence,
            None => AudioTarget::None,
        },
        audio_bit_rate: rules.audio_bit_rate,
        duration_ms: probe.video_duration_ms(),
    }
}

pub(super) fn tone_map(video: &VideoStream) -> Option<ToneMap> {
    match video.transfer.as_str() {
        "smpte2084" => Some(ToneMap::Pq),
        "arib-std-b67" => Some(ToneMap::Hlg),
        _ => None,
    }
}

/// The frame that is made, and how the picture sits in it.
fn frame(source: (u32, u32), rules: &VideoPreset) -> (u32, u32, Fit) {
    /// A shape that differs by no more than this is covered by cropping a sliver instead of by bars.
    const SLIVER: f64 = 0.02;
    let shape = f64::from(source.0) / f64::from(source.1);
    let (box_width, box_height) = match rules.frame {
        FrameRule::Exact(width, height) => {
            let wanted = f64::from(width) / f64::from(height);
            if (shape / wanted - 1.0).abs() <= SLIVER {
                let (w, h) = cover(shape, width, height);
                let fit = if (w, h) == (width, height) { Fit::Scale } else { Fit::Crop { width: w, height: h } };
                return (width, height, fit);
            }
            let (w, h) = inside(shape, width, height);
            return (width, height, Fit::Pad { width: w, height: h });
        }
        FrameRule::Nearest(boxes) => {
            let distance = |(w, h): (u32, u32)| (f64::from(w) / f64::from(h) / shape).ln().abs();
            let nearest = boxes.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
            nearest.unwrap_or(source)
        }
        FrameRule::Within { long_side, short_side } if source.0 >= source.1 => (long_side, short_side),
        FrameRule::Within { long_side, short_side } => (short_side, long_side),
    };
    let (width, height) = if source.0 <= box_width && source.1 <= box_height {
        (even(f64::from(source.0)), even(f64::from(source.1)))
    } else {
        inside(shape, box_width, box_height)
    };
    let (lowest, highest) = rules.aspect;
    if shape > highest {
        return (width, even(f64::from(width) / highest).max(height), Fit::Pad { width, height });
    }
    if shape < lowest {
        return (even(f64::from(height) * lowest).max(width), height, Fit::Pad { width, height });
    }
    (width, height, Fit::Scale)
}

/// The largest frame of this shape inside a box, with even sides.
fn inside(shape: f64, width: u32, height: u32) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    if shape > w / h { (even(w), even(w / shape)) } else { (even(h * shape), even(h)) }
}

/// The smallest frame of this shape that covers a box.
fn cover(shape: f64, width: u32, height: u32) -> (u32, u32) {
    let (w, h) = (f64::from(width), f64::from(height));
    if shape > w / h { (even(h * shape).max(width), height) } else { (width, even(w / shape).max(height)) }
}

/// The nearest even number that is not larger by more than a rounding, at least 2: 4:2:0 has no odd sides.
fn even(side: f64) -> u32 {
    ((side / 2.0 + 0.001).floor() as u32).max(1) * 2
}

/// Keeps the rates that platforms know, since repeating or dropping frames is seen; everything else becomes 30 or
/// 60. A recommendation of "30 or 60" does not refuse 25.
fn frame_rate(video: &VideoStream, rules: &VideoPreset) -> Rational {
    const KNOWN: [Rational; 9] = [
        Rational::new(24_000, 1001),
        Rational::new(24, 1),
        Rational::new(25, 1),
        Rational::new(30_000, 1001),
        Rational::new(30, 1),
        Rational::new(48, 1),
        Rational::new(50, 1),
        Rational::new(60_000, 1001),
        Rational::new(60, 1),
    ];
    const MIDDLE: f64 = 40.0;
    let rate = video.rate();
    let near = |known: &&Rational| (known.as_f64() / rate - 1.0).abs() < 0.0005;
    let known = KNOWN.iter().find(near).filter(|known| (rules.min_fps..=rules.max_fps).contains(&known.as_f64()));
    match known {
        Some(known) if !video.has_variable_rate() => *known,
        _ if rate > MIDDLE && rules.max_fps >= 60.0 => Rational::new(60, 1),
        _ => Rational::new(30, 1),
    }
}

/// What only a new encode can cure.
fn encode_reasons(probe: &Probe, video: &VideoStream, rules: &VideoPreset, platform: &str) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut because = |broken: bool, why: String| {
        if broken {
            reasons.push(why);
        }
    };
    let (width, height) = video.display_size();
    let (long, short) = (width.max(height), width.min(height));
    let shape = f64::from(width) / f64::from(height);
    let (lowest, highest) = rules.aspect;
    because(video.codec != "h264", format!("the codec is {}: {platform} is sent H.264", codec(&video.codec)));
    let wrong_profile = !matches!(video.profile.as_str(), "High" | "Main" | "Constrained Baseline");
    because(video.codec == "h264" && wrong_profile, format!("the H.264 profile is {}", video.profile));
    because(video.codec == "h264" && video.level > rules.max_level, format!("the H.264 level is {}", video.level));
    because(video.is_hdr(), "it is HDR, which becomes standard range".into());
    because(video.pixel_format != "yuv420p", format!("pixels are {}, not 8-bit 4:2:0", video.pixel_format));
    because(video.interlaced, "it is interlaced".into());
    because(video.rotation != 0, format!("it is turned by a flag ({} degrees), not in its pixels", video.rotation));
    because(!video.has_square_pixels(), "its pixels are not square".into());
    because(
        long > rules.accepted_long_side || short > rules.accepted_short_side,
        format!("{width}x{height} is larger than {}x{}", rules.accepted_long_side, rules.accepted_short_side),
    );
    because(short < rules.min_side, format!("{width}x{height} is smaller than {} on a side", rules.min_side));
    because(width % 2 == 1 || height % 2 == 1, format!("{width}x{height} has an odd side"));
    because(shape < lowest * 0.98 || shape > highest * 1.02, format!("the shape of {width}x{height} is not taken"));
    because(video.has_variable_rate(), "its frame rate varies".into());
    because(
        !(rules.min_fps..=rules.max_fps).contains(&video.rate()),
        format!("{} fps is outside {}..{}", fps(video.rate()), rules.min_fps, rules.max_fps),
    );
    let bit_rate = probe.bit_rate.unwrap_or(0);
    because(
        rules.accepted_bit_rate.is_some_and(|most| bit_rate > most),
        format!("{:.1} Mbit/s is more than {platform} takes", bit_rate as f64 / 1e6),
    );
    because(probe.size_bytes > rules.max_bytes, format!("{:.0} MB is too large", probe.size_bytes as f64 / 1e6));
    because(probe.duration_ms.is_none(), "it does not say how long it is".into());
    match &probe.audio {
        Some(audio) => {
            because(
                audio.codec != "aac" || audio.profile != "LC",
                format!("the sound is {} {}, not AAC-LC", codec(&audio.codec), audio.profile).replace(" ,", ","),
            );
            because(audio.sample_rate != 48_000, format!("the sound has {} Hz, not 48000", audio.sample_rate));
            because(audio.channels > 2, format!("the sound has {} channels", audio.channels));
            let (video_ms, audio_ms) = (video.duration_ms.unwrap_or(0), audio.duration_ms.unwrap_or(0));
            because(video_ms.abs_diff(audio_ms) >= 300, "sound and picture are not equally long".into());
        }
        None => because(rules.silent_track, "it has no sound track".into()),
    }
    reasons
}

/// What a new container cures.
fn container_reasons(probe: &Probe) -> Vec<String> {
    let mut reasons = Vec::new();
    match &probe.boxes {
        None => reasons.push(format!("the container is {}, not MP4", probe.kind.extension().to_uppercase())),
        Some(boxes) => {
            if boxes.major_brand == "qt" {
                reasons.push("the container is MOV, not MP4".into());
            }
            if !boxes.moov_first {
                reasons.push("its index is behind the media".into());
            }
            if boxes.edit_lists > 0 {
                reasons.push("it has edit lists".into());
            }
            if boxes.fragmented {
                reasons.push("it is in fragments".into());
            }
        }
    }
    let boxes = probe.boxes.iter().flat_map(|boxes| &boxes.personal);
    let personal: Vec<_> = probe.personal_tags.iter().chain(boxes).map(String::as_str).collect();
    if !personal.is_empty() {
        reasons.push(format!("it carries data about its making ({})", personal.join(", ")));
    }
    if probe.other_streams > 0 || probe.audio_streams > 1 {
        reasons.push("it has more streams than one picture and one sound".into());
    }
    reasons
}

fn describe(video: &VideoStream, probe: &Probe) -> String {
    let (width, height) = video.display_size();
    let range = if video.is_hdr() { " HDR" } else { "" };
    let sound = if probe.audio.is_none() { " without sound" } else { "" };
    format!("{}{range} {} fps {width}x{height}{sound}", codec(&video.codec), fps(video.rate()))
}

fn codec(name: &str) -> String {
    match name {
        "h264" => "H.264".into(),
        "hevc" => "HEVC".into(),
        "" => "of an unknown kind".into(),
        other => other.to_uppercase(),
    }
}

/// At most two decimals, and none that say nothing.
fn fps(rate: f64) -> String {
    format!("{rate:.2}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn length(ms: u64) -> String {
    match ms {
        0..120_000 => format!("{} s", fps(ms as f64 / 1000.0)),
        _ => format!("{}:{:02} min", ms / 60_000, ms % 60_000 / 1000),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
