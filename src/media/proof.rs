//! Proves that a file is what its preset promises, by looking at the file and at nothing else: ffprobe, its
//! packets, its boxes, and a full decode. A rendition that was not proved does not exist.

use std::{ffi::OsString, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    encode::{Args, decode_args},
    exit::{Class, FfmpegError},
    ffmpeg::{Limits, Line, Program, Tools},
    packets::Packets,
    preset::{StillPreset, VideoPreset},
    probe::{Probe, Rational, VideoStream, file_argument, input_options, probe},
    sniff::{self, Kind},
};

/// Every check that was made, with what was found: kept with the rendition.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Proof {
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    pub found: String,
}

impl Proof {
    fn check(&mut self, name: &str, ok: bool, found: impl Into<String>) {
        self.checks.push(Check { name: name.into(), ok, found: found.into() });
    }

    pub fn holds(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    /// What does not hold, in words.
    pub fn failures(&self) -> Vec<String> {
        self.checks.iter().filter(|check| !check.ok).map(|check| format!("{}: {}", check.name, check.found)).collect()
    }

    pub fn failed(&self, name: &str) -> bool {
        self.checks.iter().any(|check| check.name == name && !check.ok)
    }
}

/// What a video is measured against.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    pub rules: &'a VideoPreset,
    /// Exactly this frame and rate where we made them; `None` for a file that is left as it is.
    pub made: Option<(u32, u32, Rational)>,
    pub has_audio: bool,
    pub source_duration_ms: Option<u64>,
}

/// Proves a video. `Err` when it could not be looked at; what it lacks stands in the proof.
pub async fn prove_video(
    tools: &Tools,
    path: &Path,
    expected: &Expected<'_>,
    threads: usize,
    cancel: &CancellationToken,
) -> Result<(Proof, Probe), FfmpegError> {
    let probe = probe(tools, path, Kind::Mp4, cancel).await?;
    let packets = packets(tools, path, &probe, cancel).await?;
    let mut proof = Proof::default();
    check_container(&mut proof, &probe, expected);
    match &probe.video {
        Some(video) => {
            check_picture(&mut proof, video, expected);
            check_packets(&mut proof, video, &packets, expected);
        }
        None => proof.check("video", false, "there is none"),
    }
    check_audio(&mut proof, &probe, &packets, expected);
    check_duration(&mut proof, &probe, expected);
    // The longest check comes last, and only for a file that may still pass.
    if proof.holds() {
        let decoded = decode(tools, path, Kind::Mp4, probe.duration_ms, threads, cancel).await?;
        proof.check("decodes", decoded.is_none(), decoded.unwrap_or_else(|| "to its end without an error".into()));
    }
    Ok((proof, probe))
}

/// Proves a picture.
pub async fn prove_still(
    tools: &Tools,
    path: &Path,
    kind: Kind,
    rules: &StillPreset,
    cancel: &CancellationToken,
) -> Result<(Proof, Probe), FfmpegError> {
    let probe = probe(tools, path, kind, cancel).await?;
    let mut proof = Proof::default();
    let read = |source| FfmpegError::Pipe { program: "file system", source };
    let head = read_head(path).await.map_err(read)?;
    let sniffed = sniff::sniff(&head);
    proof.check("format", sniffed == Ok(kind), format!("{sniffed:?}"));
    let fits = probe.size_bytes > 0 && probe.size_bytes <= rules.max_bytes;
    proof.check("file size", fits, format!("{} bytes", probe.size_bytes));
    let Some(video) = &probe.video else {
        proof.check("picture", false, "there is none");
        return Ok((proof, probe));
    };
    let (width, height) = (video.width, video.height);
    let in_bounds = width.max(height) <= rules.max_side && width.min(height) >= rules.min_side;
    proof.check("size", in_bounds, format!("{width}x{height}"));
    proof.check("not turned by a flag", video.rotation == 0, format!("{} degrees", video.rotation));
    proof.check("privacy", probe.personal_tags.is_empty(), probe.personal_tags.join(", "));
    let decoded = decode(tools, path, kind, None, 1, cancel).await?;
    proof.check("decodes", decoded.is_none(), decoded.unwrap_or_else(|| "without an error".into()));
    Ok((proof, probe))
}

/// Proves a moving picture that goes out as it came: its plan has checked its size, and here it plays to its end.
pub async fn prove_animation(
    tools: &Tools,
    path: &Path,
    kind: Kind,
    cancel: &CancellationToken,
) -> Result<Proof, FfmpegError> {
    let mut proof = Proof::default();
    let decoded = decode(tools, path, kind, None, 1, cancel).await?;
    proof.check("decodes", decoded.is_none(), decoded.unwrap_or_else(|| "to its end without an error".into()));
    Ok(proof)
}

async fn read_head(path: &Path) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut head = Vec::with_capacity(sniff::HEAD_BYTES);
    tokio::fs::File::open(path).await?.take(sniff::HEAD_BYTES as u64).read_to_end(&mut head).await?;
    Ok(head)
}

fn check_container(proof: &mut Proof, probe: &Probe, expected: &Expected<'_>) {
    let boxes = probe.boxes.clone().unwrap_or_default();
    let brand = boxes.major_brand.as_str();
    let mp4 = matches!(brand, "isom" | "iso2" | "iso4" | "iso5" | "iso6" | "mp41" | "mp42" | "avc1");
    proof.check("container", mp4 && boxes.intact, format!("brand {brand}, boxes intact: {}", boxes.intact));
    proof.check("moov first", boxes.moov_first, boxes.moov_first.to_string());
    proof.check("no edit list", boxes.edit_lists == 0, boxes.edit_lists.to_string());
    proof.check("not fragmented", !boxes.fragmented, boxes.fragmented.to_string());
    let streams = format!("{} audio, {} others", probe.audio_streams, probe.other_streams);
    let alone = probe.other_streams == 0 && probe.audio_streams == u32::from(expected.has_audio);
    proof.check("streams", alone, streams);
    let personal = [probe.personal_tags.clone(), boxes.personal].concat();
    proof.check("privacy", personal.is_empty(), personal.join(", "));
    let size = probe.size_bytes;
    proof.check("file size", size > 0 && size <= expected.rules.max_bytes, format!("{size} bytes"));
    let bit_rate = probe.bit_rate.unwrap_or(u64::MAX);
    let bits_fit = expected.rules.accepted_bit_rate.is_none_or(|most| bit_rate <= most);
    proof.check("bit rate", bits_fit, format!("{bit_rate} bit/s"));
}

fn check_picture(proof: &mut Proof, video: &VideoStream, expected: &Expected<'_>) {
    let rules = expected.rules;
    let profile = matches!(video.profile.as_str(), "High" | "Main" | "Constrained Baseline");
    let h264 = video.codec == "h264" && video.codec_tag == "avc1" && profile && video.level <= rules.max_level;
    let found = format!("{} {} {} level {}", video.codec, video.codec_tag, video.profile, video.level);
    proof.check("codec", h264, found);
    let plain = video.pixel_format == "yuv420p" && !video.interlaced && video.has_square_pixels() && !video.is_hdr();
    let found = format!(
        "{}, interlaced: {}, shape {}:{}, transfer {}",
        video.pixel_format, video.interlaced, video.pixel_aspect.num, video.pixel_aspect.den, video.transfer
    );
    proof.check("pixels", plain, found);
    let (width, height) = (video.width, video.height);
    let (long, short) = (width.max(height), width.min(height));
    let right = match expected.made {
        Some((w, h, _)) => (width, height) == (w, h),
        None => short >= rules.min_side && long <= rules.accepted_long_side && short <= rules.accepted_short_side,
    };
    let even = width.is_multiple_of(2) && height.is_multiple_of(2);
    proof.check("size", right && even && short > 0, format!("{width}x{height}"));
    proof.check("not turned by a flag", video.rotation == 0, format!("{} degrees", video.rotation));
    let rate = video.frame_rate.as_f64();
    let right = match expected.made {
        Some((_, _, made)) => made == video.frame_rate,
        None => (rules.min_fps..=rules.max_fps).contains(&rate),
    };
    let found = format!("{}, {} on average", video.frame_rate, video.average_frame_rate);
    // One frame more or less at the end of a short clip moves the average, so the packets decide on constancy.
    proof.check("frame rate", right && !video.has_variable_rate(), found);
    proof.check("starts at zero", video.start_ms.abs() <= 50, format!("{} ms", video.start_ms));
}

fn check_packets(proof: &mut Proof, video: &VideoStream, packets: &Packets, expected: &Expected<'_>) {
    let rules = expected.rules;
    let constant = packets.has_one_duration();
    proof.check("constant frame rate", constant, format!("{:?} ticks a frame", packets.durations()));
    proof.check("closed groups", packets.open_groups == 0, format!("{} frames reach back", packets.open_groups));
    let rate = video.frame_rate.as_f64().max(1.0);
    let interval_ms = f64::from(packets.longest_group) / rate * 1000.0;
    let most_ms = if expected.made.is_some() { rules.key_interval_ms } else { rules.accepted_key_interval_ms };
    let short_enough = packets.starts_with_key && interval_ms <= f64::from(most_ms) + 1000.0 / rate;
    let found = format!("{interval_ms:.0} ms, first frame is a key: {}", packets.starts_with_key);
    proof.check("key interval", short_enough, found);
    let claimed = video.frames.unwrap_or(0);
    let found = format!("{} of {claimed} frames", packets.video);
    proof.check("complete", packets.video == claimed && claimed > 0, found);
}

fn check_audio(proof: &mut Proof, probe: &Probe, packets: &Packets, expected: &Expected<'_>) {
    let Some(audio) = &probe.audio else {
        proof.check("audio", !expected.has_audio, "there is none");
        return;
    };
    let right =
        audio.codec == "aac" && audio.profile == "LC" && audio.sample_rate == 48_000 && matches!(audio.channels, 1 | 2);
    let found = format!("{} {} {} Hz, {} channels", audio.codec, audio.profile, audio.sample_rate, audio.channels);
    proof.check("audio", right && expected.has_audio, found);
    if expected.made.is_some() {
        // Silence takes next to nothing, so only the upper bound says something.
        let (bits, asked) = (audio.bit_rate.unwrap_or(u64::MAX), u64::from(expected.rules.audio_bit_rate));
        proof.check("audio bit rate", bits <= asked * 5 / 4, format!("{bits} bit/s"));
    }
    let claimed = audio.frames.unwrap_or(0);
    let found = format!("{} of {claimed} frames", packets.audio);
    proof.check("audio complete", packets.audio == claimed && claimed > 0, found);
    proof.check("audio starts at zero", audio.start_ms.abs() <= 50, format!("{} ms", audio.start_ms));
    let video_ms = probe.video_duration_ms().unwrap_or(0);
    let apart = audio.duration_ms.unwrap_or(0).abs_diff(video_ms);
    proof.check("audio as long as video", apart < 300, format!("{apart} ms apart"));
}

fn check_duration(proof: &mut Proof, probe: &Probe, expected: &Expected<'_>) {
    let rules = expected.rules;
    let duration_ms = probe.duration_ms.unwrap_or(0);
    let within = duration_ms >= rules.min_duration_ms && duration_ms <= rules.max_duration_ms + 500;
    proof.check("duration", within, format!("{duration_ms} ms"));
    if let Some(source_ms) = expected.source_duration_ms {
        let video_ms = probe.video_duration_ms().unwrap_or(0);
        let most = (source_ms / 100).max(500);
        proof.check(DURATION_KEPT, video_ms.abs_diff(source_ms) <= most, format!("{video_ms} of {source_ms} ms"));
    }
}

/// The check that tells a damaged source from a fault of ours.
pub const DURATION_KEPT: &str = "as long as its source";

async fn packets(
    tools: &Tools,
    path: &Path,
    probe: &Probe,
    cancel: &CancellationToken,
) -> Result<Packets, FfmpegError> {
    let mut args = Args::default();
    args.words("-hide_banner -v error");
    args.add(input_options(Kind::Mp4));
    args.words("-show_entries packet=codec_type,pts,duration,flags -of csv=p=0 -i");
    args.add::<OsString>([file_argument(path)]);
    let limits = Limits { wall: wall(probe.duration_ms), cpu: wall(probe.duration_ms), ..Limits::PROBE };
    let mut packets = Packets::default();
    let mut on_line = |line: &str| {
        packets.line(line);
        Line::Moved
    };
    tools.run(Program::Ffprobe, &args.0, &limits, cancel, &mut on_line).await?;
    packets.finish();
    Ok(packets)
}

/// `None` when the whole file decodes, else what was wrong.
async fn decode(
    tools: &Tools,
    path: &Path,
    kind: Kind,
    duration_ms: Option<u64>,
    threads: usize,
    cancel: &CancellationToken,
) -> Result<Option<String>, FfmpegError> {
    let limits = Limits { wall: wall(duration_ms), cpu: wall(duration_ms) * 4, ..Limits::PROBE };
    let args = decode_args(kind, path, threads);
    match tools.run(Program::Ffmpeg, &args, &limits, cancel, &mut |_| Line::Moved).await {
        // An error that did not end the run is written all the same.
        Ok(stderr) => Ok(stderr.lines().find(|line| line.contains("[error]")).map(str::to_owned)),
        Err(error) if error.class() == Class::Permanent || matches!(error, FfmpegError::Unknown { .. }) => {
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Looking at a file takes a fraction of its length; a busy machine may take twice that.
fn wall(duration_ms: Option<u64>) -> Duration {
    Duration::from_secs(60) + Duration::from_millis(duration_ms.unwrap_or(0)) * 2
}
