//! Files that want something else than to be played: playlists, bombs, lies, and what is only broken.

use std::path::Path;

use multivio::media::{
    exit::{Class, FfmpegError},
    plan::{Action, plan},
    preset::PresetName,
    probe::{Probe, probe},
    render::RenderError,
    sniff::{self, Kind},
};
use tokio_util::sync::CancellationToken;

use crate::{
    media_clips::Clips,
    media_render::{look, make},
};

async fn probe_as(clips: &Clips, path: &Path, kind: Kind) -> Result<Probe, FfmpegError> {
    probe(&clips.tools, path, kind, &CancellationToken::new()).await
}

/// Even if the first bytes had been believed: the demuxer is pinned.
#[tokio::test]
async fn a_playlist_opens_nothing_even_when_it_is_taken_for_a_video() {
    let clips = Clips::new();
    clips.make("secret.ts", "-f lavfi -i testsrc2=size=64x64:duration=0.2 -c:v libx264 -f mpegts").await;
    clips.clip("secret.mp4", "64x64", 0.2, "").await;
    let secret = clips.path("secret.ts");
    let hls = format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{}\n#EXT-X-ENDLIST\n", secret.display());
    let texts = [("hls.mp4", hls), ("concat.mp4", "ffconcat version 1.0\nfile secret.mp4\n".to_owned())];
    for (name, text) in texts {
        let path = clips.path(name);
        std::fs::write(&path, &text).unwrap();
        assert!(sniff::sniff(text.as_bytes()).is_err(), "{name}");
        for kind in [Kind::Mp4, Kind::Webm, Kind::Gif, Kind::Jpeg] {
            match probe_as(&clips, &path, kind).await {
                // A picture without a size is none, and is refused as such.
                Ok(probe) => assert!(probe.video.is_none_or(|video| video.width == 0), "{name} as {kind:?}"),
                Err(error) => assert_eq!(error.class(), Class::Permanent, "{name} as {kind:?}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn junk_and_a_cut_index_are_bad_media_and_not_our_fault() {
    let clips = Clips::new();
    let mut junk = b"\0\0\0\x20ftypisom".to_vec();
    junk.extend((0..50_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8));
    std::fs::write(clips.path("junk.mp4"), &junk).unwrap();
    // The index is at the end of this one: cut in half it has none.
    let whole = clips.clip("whole.mp4", "160x90", 1.0, "").await;
    let bytes = std::fs::read(whole).unwrap();
    std::fs::write(clips.path("no_index.mp4"), &bytes[..bytes.len() / 2]).unwrap();
    for name in ["junk.mp4", "no_index.mp4"] {
        let error = probe_as(&clips, &clips.path(name), Kind::Mp4).await.expect_err(name);
        assert_eq!(error.class(), Class::Permanent, "{name}: {error}");
        assert!(!error.to_string().contains(clips.folder.path().to_str().unwrap()), "a path is told: {error}");
    }
}

#[tokio::test]
async fn a_file_cut_in_half_that_still_promises_its_full_length_is_called_damaged() {
    let clips = Clips::new();
    let whole = clips.clip("faststart.mp4", "160x90", 4.0, "-movflags +faststart -pix_fmt yuv444p").await;
    let bytes = std::fs::read(whole).unwrap();
    let half = clips.path("half.mp4");
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    let promised = look(&clips.tools, &half).await.duration_ms.unwrap();
    assert!(promised > 3_500, "{promised}");
    let (_, rendered) = make(&clips, &half, PresetName::XVideo.preset()).await;
    let error = rendered.expect_err("half of it is missing");
    let said = multivio::telemetry::chain(&error);
    assert!(matches!(error, RenderError::Damaged(_) | RenderError::Ffmpeg(_, FfmpegError::BadMedia { .. })), "{said}");
    assert!(said.contains("damaged"), "{said}");
}

#[tokio::test]
async fn a_frame_of_too_many_pixels_is_refused_before_it_is_decoded() {
    let clips = Clips::new();
    let huge = clips
        .make("huge.mp4", "-f lavfi -i color=black:size=8192x8192:rate=1:duration=1 -c:v libx264 -preset ultrafast")
        .await;
    match probe_as(&clips, &huge, Kind::Mp4).await {
        Ok(probe) => {
            let plan = plan(&probe, PresetName::XVideo.preset());
            assert_eq!(plan.action, Action::Refuse, "{plan:?}");
        }
        Err(error) => assert_eq!(error.class(), Class::Permanent, "{error}"),
    }
}

#[tokio::test]
async fn a_rarely_used_codec_is_refused_by_name() {
    let clips = Clips::new();
    let odd = clips.make("odd.mkv", "-f lavfi -i testsrc2=size=64x64:duration=0.2 -c:v magicyuv -pix_fmt gbrp").await;
    let error = probe_as(&clips, &odd, Kind::Matroska).await.expect_err("not on the list");
    assert_eq!(error.class(), Class::Permanent);
    assert!(error.to_string().contains("magicyuv"), "{error}");
}

#[tokio::test]
async fn a_file_with_damaged_bytes_ends_in_a_proof_or_in_a_reason() {
    let clips = Clips::new();
    let whole = clips.clip("sound.mp4", "320x180", 2.0, "-movflags +faststart -pix_fmt yuv444p").await;
    let mut bytes = std::fs::read(whole).unwrap();
    let (start, end) = (bytes.len() / 3, bytes.len());
    for (count, at) in (start..end).step_by(997).enumerate() {
        bytes[at] ^= 0x55 + (count % 7) as u8;
    }
    let damaged = clips.path("damaged.mp4");
    std::fs::write(&damaged, &bytes).unwrap();
    let (_, rendered) = make(&clips, &damaged, PresetName::XVideo.preset()).await;
    match rendered {
        Ok(rendered) => assert!(rendered.proof.holds()),
        Err(error) => assert!(
            matches!(error, RenderError::Damaged(_) | RenderError::Ffmpeg(_, FfmpegError::BadMedia { .. })),
            "{}",
            multivio::telemetry::chain(&error)
        ),
    }
}
