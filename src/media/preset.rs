//! What each platform takes, as data. The facts and their sources are in the media sheet of the documentation.
//!
//! A rendition is named by (source, preset, version): whoever changes what a preset makes raises its version, or
//! old renditions pass for new ones. A test holds the digests.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::probe::Rational;

/// Stored with every rendition: never rename, only add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresetName {
    XVideo,
    XImage,
    InstagramReel,
    YoutubeVideo,
    Thumbnail,
}

impl PresetName {
    pub const ALL: [Self; 5] = [Self::XVideo, Self::XImage, Self::InstagramReel, Self::YoutubeVideo, Self::Thumbnail];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::XVideo => "x_video",
            Self::XImage => "x_image",
            Self::InstagramReel => "instagram_reel",
            Self::YoutubeVideo => "youtube_video",
            Self::Thumbnail => "thumbnail",
        }
    }

    pub const fn preset(self) -> &'static Preset {
        match self {
            Self::XVideo => &X_VIDEO,
            Self::XImage => &X_IMAGE,
            Self::InstagramReel => &INSTAGRAM_REEL,
            Self::YoutubeVideo => &YOUTUBE_VIDEO,
            Self::Thumbnail => &THUMBNAIL,
        }
    }
}

impl fmt::Display for PresetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for PresetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|name| name.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("\"{text}\" is no preset: use one of {names}")
        })
    }
}

/// What one surface of one platform takes, and what is made for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    pub name: PresetName,
    pub version: u32,
    /// Whose it is, as a person calls it, such as "X"; `None` for our own use.
    pub platform: Option<&'static str>,
    /// One sentence for the list of presets.
    pub about: &'static str,
    pub kind: PresetKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PresetKind {
    Video(VideoPreset),
    Still(StillPreset),
}

#[derive(Debug, Clone, PartialEq)]
pub struct VideoPreset {
    pub frame: FrameRule,
    /// Width divided by height that is taken; what lies outside is padded up to the nearer bound.
    pub aspect: (f64, f64),
    /// A finished file is left as it is only up to this size; the box may be turned.
    pub accepted_long_side: u32,
    pub accepted_short_side: u32,
    pub min_side: u32,
    pub min_fps: f64,
    pub max_fps: f64,
    /// Distance of key frames that is made, and the longest that is accepted in a finished file.
    pub key_interval_ms: u32,
    pub accepted_key_interval_ms: u32,
    /// Constant rate factor of x264: smaller is better and larger.
    pub crf: u8,
    pub bit_rate: BitRate,
    /// The most a finished file may have.
    pub accepted_bit_rate: Option<u64>,
    pub audio_bit_rate: u32,
    pub min_duration_ms: u64,
    pub max_duration_ms: u64,
    pub max_bytes: u64,
    pub max_level: i32,
    /// Silent sources get a silent track, where players behave better with one.
    pub silent_track: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FrameRule {
    /// Inside the one of these boxes that is nearest in shape; never enlarged.
    Nearest(&'static [(u32, u32)]),
    /// Exactly this: enlarged if need be, with bars where the shape differs.
    Exact(u32, u32),
    /// Inside this box, turned as the source is; never enlarged.
    Within { long_side: u32, short_side: u32 },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BitRate {
    /// At most so many bits a second.
    Flat(u64),
    /// By height and rate: half as much again as YouTube recommends, since it encodes again.
    Youtube,
}

impl BitRate {
    pub fn at(self, short_side: u32, rate: Rational) -> u64 {
        const YOUTUBE_KBPS: [(u32, u64, u64); 6] = [
            (1440, 40_000, 60_000),
            (1080, 16_000, 24_000),
            (720, 8_000, 12_000),
            (480, 5_000, 7_500),
            (360, 2_500, 4_000),
            (0, 1_000, 1_500),
        ];
        match self {
            Self::Flat(bits) => bits,
            Self::Youtube => {
                let row = YOUTUBE_KBPS.iter().find(|row| short_side > row.0);
                let (_, slow, fast) = *row.unwrap_or(&YOUTUBE_KBPS[5]);
                (if rate.as_f64() > 40.0 { fast } else { slow }) * 1_500
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct StillPreset {
    /// Fits inside this square; never enlarged.
    pub max_side: u32,
    pub min_side: u32,
    pub max_bytes: u64,
    /// Pictures with transparency stay PNG; elsewhere they are laid over white.
    pub keeps_transparency: bool,
    /// Takes a frame of a video too.
    pub from_video: bool,
    /// A moving GIF that fits goes out as it is.
    pub animation: Option<AnimationLimits>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnimationLimits {
    pub max_bytes: u64,
    pub max_width: u32,
    pub max_height: u32,
    pub max_frames: u64,
    /// Width x height x frames.
    pub max_pixels_in_sum: u64,
}

const MB: u64 = 1_000_000;
const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;

static X_VIDEO: Preset = Preset {
    name: PresetName::XVideo,
    version: 1,
    platform: Some("X"),
    about: "A video in a post on X: H.264 inside 1280x720 or 720x1280 (or 720x720), AAC, at most 20 minutes.",
    kind: PresetKind::Video(VideoPreset {
        frame: FrameRule::Nearest(&[(1280, 720), (720, 1280), (720, 720)]),
        aspect: (1.0 / 3.0, 3.0),
        accepted_long_side: 1280,
        accepted_short_side: 1024,
        min_side: 32,
        min_fps: 23.0,
        max_fps: 60.0,
        key_interval_ms: 2_000,
        accepted_key_interval_ms: 5_000,
        crf: 21,
        bit_rate: BitRate::Flat(8 * MB),
        accepted_bit_rate: Some(25 * MB),
        audio_bit_rate: 128_000,
        min_duration_ms: 500,
        max_duration_ms: 20 * MINUTE_MS,
        max_bytes: 8_000 * MB,
        max_level: 42,
        silent_track: false,
    }),
};

static X_IMAGE: Preset = Preset {
    name: PresetName::XImage,
    version: 1,
    platform: Some("X"),
    about: "A picture in a post on X: JPEG, or PNG where it is transparent, at most 5 MB, without its EXIF data.",
    kind: PresetKind::Still(StillPreset {
        max_side: 4096,
        min_side: 4,
        max_bytes: 5 * MB,
        keeps_transparency: true,
        from_video: false,
        animation: Some(AnimationLimits {
            max_bytes: 15 * MB,
            max_width: 1280,
            max_height: 1080,
            max_frames: 350,
            max_pixels_in_sum: 300_000_000,
        }),
    }),
};

static INSTAGRAM_REEL: Preset = Preset {
    name: PresetName::InstagramReel,
    version: 1,
    platform: Some("Instagram"),
    about: "A reel on Instagram: H.264 1080x1920, AAC, 3 seconds to 15 minutes, at most 300 MB.",
    kind: PresetKind::Video(VideoPreset {
        frame: FrameRule::Exact(1080, 1920),
        aspect: (9.0 / 16.0, 9.0 / 16.0),
        accepted_long_side: 1920,
        accepted_short_side: 1080,
        min_side: 540,
        min_fps: 23.0,
        max_fps: 60.0,
        key_interval_ms: 2_000,
        accepted_key_interval_ms: 5_000,
        crf: 20,
        bit_rate: BitRate::Flat(10 * MB),
        accepted_bit_rate: Some(25 * MB),
        audio_bit_rate: 128_000,
        min_duration_ms: 3 * SECOND_MS,
        max_duration_ms: 15 * MINUTE_MS,
        max_bytes: 300 * MB,
        max_level: 42,
        silent_track: true,
    }),
};

static YOUTUBE_VIDEO: Preset = Preset {
    name: PresetName::YoutubeVideo,
    version: 1,
    platform: Some("YouTube"),
    about: "A video on YouTube: H.264 at its own size up to 2160p, AAC 384 kbit/s, at most 15 minutes.",
    kind: PresetKind::Video(VideoPreset {
        frame: FrameRule::Within { long_side: 3840, short_side: 2160 },
        aspect: (0.01, 100.0),
        accepted_long_side: 4096,
        accepted_short_side: 2304,
        min_side: 2,
        min_fps: 23.0,
        max_fps: 60.0,
        key_interval_ms: 500,
        // It encodes everything again: a longer distance costs nothing that a second generation would not.
        accepted_key_interval_ms: 10_000,
        crf: 18,
        bit_rate: BitRate::Youtube,
        accepted_bit_rate: None,
        audio_bit_rate: 384_000,
        min_duration_ms: 1,
        // Longer ones only for accounts that proved who they are.
        max_duration_ms: 15 * MINUTE_MS,
        max_bytes: 256_000 * MB,
        // 2160 lines at 60 frames a second are level 5.2; below that an encoder stays far under it.
        max_level: 52,
        silent_track: false,
    }),
};

static THUMBNAIL: Preset = Preset {
    name: PresetName::Thumbnail,
    version: 1,
    platform: None,
    about: "A small JPEG of a picture, or of a telling frame near the start of a video, for lists.",
    kind: PresetKind::Still(StillPreset {
        max_side: 640,
        min_side: 1,
        max_bytes: MB,
        keeps_transparency: false,
        from_video: true,
        animation: None,
    }),
};

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn a_name_survives_its_text_form_and_an_unknown_one_is_answered_with_the_known() {
        for name in PresetName::ALL {
            assert_eq!(name.as_str().parse(), Ok(name));
            assert_eq!(serde_json::to_value(name).unwrap(), name.as_str());
            assert_eq!(name.preset().name, name);
        }
        let error = "tiktok".parse::<PresetName>().unwrap_err();
        assert!(error.contains("x_video") && error.contains("thumbnail"));
    }

    /// When this fails, raise the version of the preset and put its new digest here.
    #[test]
    fn a_changed_preset_has_a_new_version() {
        let digests = PresetName::ALL.map(|name| {
            let preset = name.preset();
            let digest = Sha256::digest(format!("{:?}", preset.kind));
            format!("{name}@{} {}", preset.version, hex::encode(&digest[..6]))
        });
        assert_eq!(digests, DIGESTS);
    }

    const DIGESTS: [&str; 5] = [
        "x_video@1 fe446a4c2c41",
        "x_image@1 c56d3520047e",
        "instagram_reel@1 2786cf109cd5",
        "youtube_video@1 017276e77f3d",
        "thumbnail@1 022e4c43cb39",
    ];

    #[test]
    fn a_larger_frame_gets_more_bits_on_youtube() {
        let rate = Rational::new(30, 1);
        let steps = [240, 480, 720, 1080, 1440, 2160].map(|side| BitRate::Youtube.at(side, rate));
        assert!(steps.is_sorted());
        assert_eq!(BitRate::Youtube.at(1080, rate), 12_000_000);
        assert_eq!(BitRate::Youtube.at(1080, Rational::new(60, 1)), 18_000_000);
    }
}
