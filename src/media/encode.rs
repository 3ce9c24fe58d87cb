//! The argument lists: what is said to ffmpeg for a video. Nothing here runs anything, and nothing of a user's
//! text ever gets into a filter.

use std::{ffi::OsString, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    plan::{AudioTarget, Fit, ToneMap, VideoTarget},
    probe::{Rational, file_argument, input_options},
    sniff::Kind,
};

/// How hard the encoder works and how much of the machine it takes: the worker's business, not the preset's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effort {
    /// An x264 preset, such as "medium".
    pub x264_preset: String,
    pub threads: usize,
    /// Looks less far ahead and takes a fraction of the memory, for small instances.
    pub frugal: bool,
}

/// How many bits go into the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateControl {
    /// The preset's quality, with its highest rate.
    Quality,
    /// First and second pass of an exact size.
    Pass { pass: u8, bits_per_second: u64 },
}

/// What the loudness run measured; given back to the encoding run, so that one gain fits the whole clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loudness {
    pub input_i: f64,
    pub input_tp: f64,
    pub input_lra: f64,
    pub input_thresh: f64,
    pub target_offset: f64,
}

const LOUDNESS_TARGET: &str = "I=-14:TP=-1.5:LRA=11";

/// Shorter than this, loudness over time means nothing and is left as it is.
pub const LOUDNESS_MIN_MS: u64 = 3_000;

/// The file that is read.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub kind: Kind,
    pub path: &'a Path,
    /// No more of it than this is read, whatever it claims.
    pub max_duration_ms: u64,
}

/// A list of arguments that takes texts and paths alike.
#[derive(Debug, Default)]
pub struct Args(pub Vec<OsString>);

impl Args {
    pub fn add<T: Into<OsString>>(&mut self, args: impl IntoIterator<Item = T>) -> &mut Self {
        self.0.extend(args.into_iter().map(Into::into));
        self
    }

    /// Words separated by spaces, for what contains nothing but our own constants.
    pub fn words(&mut self, words: &str) -> &mut Self {
        self.add(words.split_whitespace().map(OsString::from))
    }

    /// What every run of ffmpeg starts with.
    pub fn ffmpeg(threads: usize) -> Self {
        let mut args = Self::default();
        args.words("-hide_banner -nostdin -nostats -loglevel level+error -progress pipe:1 -stats_period 0.5 -y");
        args.words(&format!("-filter_threads {threads} -threads {threads}"));
        args
    }

    /// The one file from outside, with everything that pins it.
    pub fn input(&mut self, source: &Source<'_>) -> &mut Self {
        self.add(input_options(source.kind));
        // The header's length is a claim; this holds it to the limit that was planned with.
        self.words(&format!("-fflags +genpts -t {}", seconds(source.max_duration_ms)));
        self.add(["-i".into(), file_argument(source.path)])
    }
}

/// Encodes a file for a target.
pub fn video_args(
    source: &Source<'_>,
    target: &VideoTarget,
    control: RateControl,
    loudness: Option<&Loudness>,
    effort: &Effort,
    output: &Path,
) -> Vec<OsString> {
    let last_pass = !matches!(control, RateControl::Pass { pass: 1, .. });
    let mut args = Args::ffmpeg(effort.threads);
    args.input(source);
    if target.audio == AudioTarget::Silence && last_pass {
        args.words("-f lavfi -i anullsrc=channel_layout=stereo:sample_rate=48000");
    }
    args.words(&format!("-map 0:{}", target.video_index));
    match target.audio {
        AudioTarget::Stream { index } if last_pass => args.words(&format!("-map 0:{index}")),
        AudioTarget::Silence if last_pass => args.words("-map 1:a:0"),
        _ => args.words("-an"),
    };
    args.words("-sn -dn -map_chapters -1 -map_metadata -1");
    args.add(["-vf".to_owned(), video_filters(target)]);
    video_codec(&mut args, target, control, effort, output);
    if target.audio != AudioTarget::None && last_pass {
        args.add(["-af".to_owned(), audio_filters(target, loudness)]);
        args.words(&format!("-c:a aac -profile:a aac_low -b:a {} -ar 48000 -ac 2", target.audio_bit_rate));
        args.words("-flags:a +bitexact -shortest");
    }
    // A few broken frames are shown as they are; a file that is mostly broken is refused.
    args.words("-max_error_rate 0.1 -max_muxing_queue_size 4096 -fflags +bitexact");
    if last_pass {
        mp4(&mut args, output);
    } else {
        args.words("-f null -");
    }
    args.0
}

/// Puts the streams of a file into a new container as they are.
pub fn remux_args(source: &Source<'_>, target: &VideoTarget, output: &Path) -> Vec<OsString> {
    let mut args = Args::ffmpeg(1);
    args.input(source);
    args.words(&format!("-map 0:{}", target.video_index));
    if let AudioTarget::Stream { index } = target.audio {
        args.words(&format!("-map 0:{index}"));
    }
    args.words("-sn -dn -map_chapters -1 -map_metadata -1 -c copy -fflags +bitexact");
    // Supplemental data can hold anything, such as captions or where it was recorded.
    args.words("-bsf:v filter_units=remove_types=6");
    mp4(&mut args, output);
    args.0
}

/// Measures loudness; the numbers come on standard error.
pub fn loudness_args(source: &Source<'_>, audio_index: u32, effort: &Effort) -> Vec<OsString> {
    let mut args = Args::ffmpeg(effort.threads);
    args.input(source);
    args.words(&format!("-map 0:{audio_index} -vn -sn -dn"));
    // loudnorm prints at the level "info".
    args.words("-loglevel level+info");
    args.add(["-af".to_owned(), format!("{TO_STEREO},loudnorm={LOUDNESS_TARGET}:print_format=json")]);
    args.words("-f null -");
    args.0
}

/// Decodes a whole file and throws the result away; any error ends it with a failure.
pub fn decode_args(kind: Kind, path: &Path, threads: usize) -> Vec<OsString> {
    const A_DAY_MS: u64 = 86_400_000;
    let mut args = Args::ffmpeg(threads);
    args.words("-xerror -err_detect explode");
    args.input(&Source { kind, path, max_duration_ms: A_DAY_MS }).words("-map 0 -f null -");
    args.0
}

const TO_STEREO: &str = "aresample=48000:async=1:first_pts=0,aformat=sample_fmts=fltp:channel_layouts=stereo";

fn video_filters(target: &VideoTarget) -> String {
    let mut chain: Vec<String> = Vec::new();
    if target.deinterlace {
        chain.push("bwdif=mode=send_frame".into());
    }
    let rate = target.rate;
    chain.push(format!("fps={}/{}", rate.num, rate.den));
    // ffmpeg has turned the picture already; scaling to exact sides also makes the pixels square, and keeps the
    // frame constant when a stream changes its size on the way.
    let (width, height) = match target.fit {
        Fit::Scale => (target.width, target.height),
        Fit::Pad { width, height } | Fit::Crop { width, height } => (width, height),
    };
    chain.push(format!("scale={width}:{height}:flags=bicubic"));
    if let Some(tone_map) = target.tone_map {
        chain.push(tone_map_filters(tone_map).into());
    }
    match target.fit {
        Fit::Scale => {}
        Fit::Pad { .. } => chain.push(format!("pad={}:{}:(ow-iw)/2:(oh-ih)/2:black", target.width, target.height)),
        Fit::Crop { .. } => chain.push(format!("crop={}:{}", target.width, target.height)),
    }
    chain.push("setsar=1,format=yuv420p".into());
    // At the end of the chain: as output options the tags are lost in newer versions.
    chain.push("setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709".into());
    chain.join(",")
}

/// High dynamic range to standard: linear light, then the narrower gamut, then the curve of a television.
pub(super) fn tone_map_filters(tone_map: ToneMap) -> &'static str {
    match tone_map {
        ToneMap::Pq => concat!(
            "zscale=transfer=linear:npl=100,format=gbrpf32le,zscale=primaries=bt709,",
            "tonemap=tonemap=hable:desat=0,zscale=transfer=bt709:matrix=bt709:range=limited,format=yuv420p"
        ),
        ToneMap::Hlg => concat!(
            "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,",
            "tonemap=tonemap=hable:desat=0,zscale=transfer=bt709:matrix=bt709:range=limited,format=yuv420p"
        ),
    }
}

fn audio_filters(target: &VideoTarget, loudness: Option<&Loudness>) -> String {
    let mut chain = TO_STEREO.to_owned();
    if let Some(measured) = loudness {
        chain.push_str(&format!(
            ",loudnorm={LOUDNESS_TARGET}:linear=true:measured_I={}:measured_TP={}:measured_LRA={}:measured_thresh={}\
             :offset={}",
            measured.input_i, measured.input_tp, measured.input_lra, measured.input_thresh, measured.target_offset
        ));
        // loudnorm works at 192 kHz and would leave it so.
        chain.push_str(",aresample=48000");
    }
    // Sound ends with the picture: short sound is followed by silence, long sound is cut.
    match target.duration_ms.map(seconds) {
        Some(end) => chain.push_str(&format!(",apad=whole_dur={end},atrim=end={end}")),
        None => chain.push_str(",apad"),
    }
    chain
}

fn video_codec(args: &mut Args, target: &VideoTarget, control: RateControl, effort: &Effort, output: &Path) {
    let Rational { num, den } = target.rate;
    let (gop, max_rate) = (target.key_interval, target.max_bit_rate);
    args.words(&format!("-r {num}/{den} -fps_mode cfr -c:v libx264 -preset {} -profile:v high", effort.x264_preset));
    args.words(&format!("-g {gop} -keyint_min {gop} -sc_threshold 0 -bf 2 -flags:v +cgop+bitexact"));
    args.words(&format!("-threads:v {}", effort.threads));
    if effort.frugal {
        args.words("-rc-lookahead 10 -refs 1");
    }
    match control {
        RateControl::Quality => {
            args.words(&format!("-crf {} -maxrate {max_rate} -bufsize {}", target.crf, 2 * max_rate));
        }
        RateControl::Pass { pass, bits_per_second } => {
            let max_rate = max_rate.min(bits_per_second * 2);
            args.words(&format!("-b:v {bits_per_second} -maxrate {max_rate} -bufsize {}", 2 * max_rate));
            args.words(&format!("-pass {pass} -passlogfile"));
            args.add([output.with_extension("pass").into_os_string()]);
        }
    }
    // Takes out the encoder's own note of its settings too.
    args.words("-bsf:v filter_units=remove_types=6");
}

/// An MP4 that plays while it arrives, without edit lists: the first two frames' reordering is told by negative
/// offsets instead, which leaves both tracks starting at zero.
fn mp4(args: &mut Args, output: &Path) {
    args.words("-movflags +faststart+negative_cts_offsets -use_editlist 0 -f mp4");
    args.add([file_argument(output)]);
}

pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// Finds loudnorm's numbers in standard error. `None` for silence, which has no loudness.
pub fn parse_loudness(stderr: &str) -> Option<Loudness> {
    #[derive(Deserialize)]
    struct Raw {
        input_i: String,
        input_tp: String,
        input_lra: String,
        input_thresh: String,
        target_offset: String,
    }
    let start = stderr.rfind('{')?;
    let end = start + stderr[start..].find('}')?;
    // Each line may carry the level's prefix, depending on the version.
    let json: String = stderr[start..=end].lines().map(|line| line.trim_start_matches("[info] ")).collect();
    let raw: Raw = serde_json::from_str(&json).ok()?;
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
    Some(Loudness {
        input_i: number(&raw.input_i)?,
        input_tp: number(&raw.input_tp)?,
        input_lra: number(&raw.input_lra)?,
        input_thresh: number(&raw.input_thresh)?,
        target_offset: number(&raw.target_offset)?,
    })
}

/// The rate that makes a video fit a size, or `None` when it would look like nothing.
pub fn rate_for_size(target: &VideoTarget, max_bytes: u64, duration_ms: u64) -> Option<u64> {
    const CONTAINER_SHARE: f64 = 0.97;
    const LOWEST_AT_720P: f64 = 300_000.0;
    let audio = if target.audio == AudioTarget::None { 0.0 } else { f64::from(target.audio_bit_rate) };
    let rate = max_bytes as f64 * 8.0 * CONTAINER_SHARE / (duration_ms as f64 / 1000.0) - audio;
    let pixels = f64::from(target.width) * f64::from(target.height);
    let lowest = LOWEST_AT_720P * pixels / (1280.0 * 720.0);
    (rate >= lowest).then_some(rate as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> VideoTarget {
        VideoTarget {
            video_index: 0,
            width: 1280,
            height: 720,
            fit: Fit::Scale,
            rate: Rational::new(30, 1),
            key_interval: 60,
            crf: 21,
            max_bit_rate: 8_000_000,
            deinterlace: false,
            tone_map: None,
            audio: AudioTarget::Stream { index: 1 },
            audio_bit_rate: 128_000,
            duration_ms: Some(10_500),
        }
    }

    fn effort() -> Effort {
        Effort { x264_preset: "medium".into(), threads: 2, frugal: false }
    }

    fn text(args: &[OsString]) -> String {
        args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn args(target: &VideoTarget, control: RateControl) -> String {
        let source = Source { kind: Kind::Mp4, path: Path::new("/s/in"), max_duration_ms: 1_200_000 };
        text(&video_args(&source, target, control, None, &effort(), Path::new("/s/out.mp4")))
    }

    #[test]
    fn the_input_is_pinned_before_it_is_named() {
        let args = args(&target(), RateControl::Quality);
        let input = args.find(" -i file:/s/in").unwrap();
        for pin in ["-protocol_whitelist file", "-format_whitelist mov", "-codec_whitelist", "-max_pixels", "-f mov"] {
            assert!(args.find(pin).unwrap() < input, "{pin}");
        }
        assert!(args.ends_with("file:/s/out.mp4"));
    }

    #[test]
    fn the_first_pass_writes_no_file_and_no_sound() {
        let first = args(&target(), RateControl::Pass { pass: 1, bits_per_second: 900_000 });
        assert!(first.ends_with("-f null -") && first.contains("-an") && !first.contains("aac_low"), "{first}");
        let second = args(&target(), RateControl::Pass { pass: 2, bits_per_second: 900_000 });
        assert!(
            second.contains("-b:v 900000 ") && second.contains("aac_low") && second.contains("-pass 2"),
            "{second}"
        );
    }

    #[test]
    fn filters_come_in_the_order_that_keeps_colours_and_shape() {
        let mut target = target();
        target.deinterlace = true;
        target.tone_map = Some(ToneMap::Pq);
        target.fit = Fit::Pad { width: 1280, height: 300 };
        let filters = video_filters(&target);
        let at = |word: &str| filters.find(word).unwrap_or_else(|| panic!("{word} is missing from {filters}"));
        let order = ["bwdif", "fps=", "scale=1280:300", "zscale", "tonemap", "pad=1280:720", "setsar", "setparams"];
        assert!(order.map(at).is_sorted(), "{filters}");
    }

    #[test]
    fn loudness_is_read_and_silence_has_none() {
        let json = |i: &str| {
            format!(
                "[info] [Parsed_loudnorm_2 @ 0x5] \n[info] {{\n\t\"input_i\" : \"{i}\",\n\t\"input_tp\" : \"-18.06\",\n\
                 \t\"input_lra\" : \"0.00\",\n\t\"input_thresh\" : \"-31.75\",\n\t\"output_i\" : \"-14.0\",\n\
                 \t\"target_offset\" : \"0.05\"\n}}\nvideo:0kB audio:1kB"
            )
        };
        assert_eq!(parse_loudness(&json("-21.75")).unwrap().input_i, -21.75);
        assert_eq!(parse_loudness(&json("-inf")), None);
        assert_eq!(parse_loudness("nothing"), None);
    }

    #[test]
    fn a_size_is_turned_into_a_rate_unless_it_would_look_like_nothing() {
        let rate = rate_for_size(&target(), 1_000_000, 10_000).unwrap();
        assert_eq!(rate, (800_000.0 * 0.97_f64 - 128_000.0) as u64);
        assert_eq!(rate_for_size(&target(), 400_000, 10_000), None);
    }
}
