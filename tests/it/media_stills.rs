//! Pictures made for real: upright, without their EXIF data, small enough, and with transparency handled.

use std::path::Path;

use multivio::media::{
    plan::Action,
    preset::{PresetKind, PresetName},
    sniff::Kind,
};

use crate::{
    media_clips::Clips,
    media_render::{look, make},
};

/// A JPEG with an EXIF block that says "turned by 90 degrees" and where it was taken.
fn with_exif(jpeg: &[u8]) -> Vec<u8> {
    let mut tiff = b"MM\0\x2a\0\0\0\x08".to_vec();
    let entry = |tag: u16, kind: u16, count: u32, value: [u8; 4]| {
        [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &count.to_be_bytes(), &value].concat()
    };
    tiff.extend(2_u16.to_be_bytes());
    tiff.extend(entry(0x0112, 3, 1, [0, 6, 0, 0]));
    // The GPS block follows this one: 8 + 2 + 2 * 12 + 4.
    tiff.extend(entry(0x8825, 4, 1, 38_u32.to_be_bytes()));
    tiff.extend(0_u32.to_be_bytes());
    tiff.extend(1_u16.to_be_bytes());
    tiff.extend(entry(0x0001, 2, 4, *b"NSEW"));
    tiff.extend(0_u32.to_be_bytes());
    let app1 = [b"Exif\0\0".as_slice(), &tiff].concat();
    let length = u16::try_from(app1.len() + 2).unwrap();
    [&jpeg[..2], b"\xff\xe1", &length.to_be_bytes(), &app1, &jpeg[2..]].concat()
}

fn contains(path: &Path, text: &str) -> bool {
    std::fs::read(path).unwrap().windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_photo_is_turned_upright_and_says_no_more_where_it_was_taken() {
    let clips = Clips::new();
    let plain = clips.make("plain.jpg", "-f lavfi -i testsrc2=size=320x180 -frames:v 1 -update 1").await;
    let photo = clips.path("photo.jpg");
    std::fs::write(&photo, with_exif(&std::fs::read(plain).unwrap())).unwrap();
    let probe = look(&clips.tools, &photo).await;
    assert_eq!(probe.video.as_ref().unwrap().display_size(), (180, 320), "{probe:?}");
    assert!(!probe.personal_tags.is_empty());

    let (plan, rendered) = make(&clips, &photo, PresetName::XImage.preset()).await;
    let rendered = rendered.unwrap();
    assert_eq!((plan.action, rendered.kind), (Action::Transcode, Kind::Jpeg));
    let video = rendered.probe.video.unwrap();
    assert_eq!((video.width, video.height), (180, 320));
    assert!(!contains(&rendered.path, "Exif") && !contains(&rendered.path, "NSEW"));
}

#[tokio::test]
async fn transparency_stays_where_it_can_and_becomes_white_where_it_cannot() {
    let clips = Clips::new();
    // Fully transparent, with red underneath.
    let words = "-f lavfi -i color=red@0.0:size=200x100,format=rgba -frames:v 1 -update 1 -pix_fmt rgba";
    let source = clips.make("clear.png", words).await;
    let (_, kept) = make(&clips, &source, PresetName::XImage.preset()).await;
    let kept = kept.unwrap();
    assert_eq!(kept.kind, Kind::Png);
    assert!(kept.probe.video.unwrap().has_alpha());

    let (_, flat) = make(&clips, &source, PresetName::Thumbnail.preset()).await;
    let flat = flat.unwrap();
    assert_eq!(flat.kind, Kind::Jpeg);
    let raw = clips.path("flat.rgb");
    clips.ffmpeg(&format!("-i {} -f rawvideo -pix_fmt rgb24", flat.path.display()), &raw).await;
    let darkest = std::fs::read(raw).unwrap().into_iter().min().unwrap();
    assert!(darkest > 245, "something shows through: {darkest}");
}

#[tokio::test]
async fn a_large_picture_loses_quality_before_size() {
    let clips = Clips::new();
    let source = clips
        .make("noise.png", "-f lavfi -i nullsrc=size=600x400,geq=random(1)*255:128:128 -frames:v 1 -update 1")
        .await;
    let mut preset = PresetName::XImage.preset().clone();
    let PresetKind::Still(rules) = &mut preset.kind else { panic!("a preset for pictures") };
    rules.max_bytes = 90_000;
    let (_, fitted) = make(&clips, &source, &preset).await;
    let fitted = fitted.unwrap();
    assert!(fitted.probe.size_bytes <= 90_000);
    assert_eq!(fitted.kind, Kind::Jpeg);
    assert!(fitted.probe.video.unwrap().width >= 300);
}

#[tokio::test]
async fn a_moving_gif_goes_to_x_as_it_is_and_to_youtube_as_a_video() {
    let clips = Clips::new();
    let gif = clips.make("two.gif", "-f lavfi -i testsrc2=size=64x48:rate=2:duration=1").await;
    let probe = look(&clips.tools, &gif).await;
    assert_eq!(probe.video.as_ref().unwrap().frames, Some(2));
    let (plan, left) = make(&clips, &gif, PresetName::XImage.preset()).await;
    let left = left.unwrap();
    assert_eq!((plan.action, left.kind, left.is_source), (Action::LeaveAlone, Kind::Gif, true));
    assert!(left.proof.holds());
    let (_, film) = make(&clips, &gif, PresetName::YoutubeVideo.preset()).await;
    let film = film.unwrap();
    assert_eq!((film.kind, film.proof.holds()), (Kind::Mp4, true));
}

#[tokio::test]
async fn a_webp_becomes_a_jpeg() {
    let clips = Clips::new();
    let source = clips.make("still.webp", "-f lavfi -i testsrc2=size=120x80 -frames:v 1 -c:v libwebp").await;
    let (_, made) = make(&clips, &source, PresetName::XImage.preset()).await;
    assert!(made.unwrap().proof.holds());
}
