use super::*;
use crate::media::{
    boxes::BoxFacts,
    probe::{AudioStream, Rational},
    sniff::Kind,
};

/// A finished H.264 file that X would take as it is.
fn finished() -> Probe {
    Probe {
        kind: Kind::Mp4,
        size_bytes: 5_000_000,
        duration_ms: Some(10_000),
        bit_rate: Some(4_000_000),
        video: Some(VideoStream {
            index: 0,
            codec: "h264".into(),
            codec_tag: "avc1".into(),
            profile: "High".into(),
            level: 31,
            pixel_format: "yuv420p".into(),
            width: 1280,
            height: 720,
            rotation: 0,
            pixel_aspect: Rational::new(1, 1),
            frame_rate: Rational::new(30, 1),
            average_frame_rate: Rational::new(30, 1),
            interlaced: false,
            transfer: "bt709".into(),
            primaries: "bt709".into(),
            start_ms: 0,
            duration_ms: Some(10_000),
            frames: Some(300),
            bit_rate: Some(4_000_000),
            side_data: vec![],
        }),
        audio: Some(AudioStream {
            index: 1,
            codec: "aac".into(),
            profile: "LC".into(),
            sample_rate: 48_000,
            channels: 2,
            start_ms: 0,
            duration_ms: Some(10_000),
            frames: Some(469),
            bit_rate: Some(128_000),
        }),
        audio_streams: 1,
        other_streams: 0,
        personal_tags: vec![],
        boxes: Some(BoxFacts {
            major_brand: "isom".into(),
            moov_first: true,
            has_moov: true,
            edit_lists: 0,
            fragmented: false,
            personal: vec![],
            intact: true,
        }),
    }
}

fn with(change: impl FnOnce(&mut Probe, &mut VideoStream)) -> Probe {
    let mut probe = finished();
    let mut video = probe.video.take().unwrap();
    change(&mut probe, &mut video);
    probe.video = Some(video);
    probe
}

fn for_preset(probe: &Probe, name: PresetName) -> Plan {
    plan(probe, name.preset())
}

fn target_of(probe: &Probe, name: PresetName) -> VideoTarget {
    match for_preset(probe, name).target {
        Some(Target::Video(target)) => target,
        other => panic!("no video is planned: {other:?}"),
    }
}

#[test]
fn a_finished_file_is_left_alone() {
    let plan = for_preset(&finished(), PresetName::XVideo);
    assert_eq!((plan.action, plan.reasons.as_slice()), (Action::LeaveAlone, &[][..]), "{plan:?}");
}

#[test]
fn a_wrong_container_alone_is_only_rewrapped() {
    let mov = with(|probe, _| {
        probe.personal_tags = vec!["location".into()];
        let boxes = probe.boxes.as_mut().unwrap();
        (boxes.moov_first, boxes.edit_lists) = (false, 2);
    });
    let plan = for_preset(&mov, PresetName::XVideo);
    assert_eq!(plan.action, Action::Remux);
    assert_eq!(plan.reasons.len(), 3, "{:?}", plan.reasons);
    let mkv = with(|probe, _| (probe.kind, probe.boxes) = (Kind::Matroska, None));
    assert_eq!(for_preset(&mkv, PresetName::XVideo).action, Action::Remux);
}

#[test]
fn the_summary_says_what_becomes_of_it() {
    let phone = with(|_, video| {
        (video.codec, video.profile) = ("hevc".into(), "Main".into());
        (video.width, video.height) = (3840, 2160);
        video.frame_rate = Rational::new(50, 1);
        video.average_frame_rate = video.frame_rate;
    });
    let plan = for_preset(&phone, PresetName::XVideo);
    assert_eq!(plan.action, Action::Transcode);
    assert_eq!(plan.summary, "HEVC 50 fps 3840x2160 -> H.264 50 fps 1280x720");
}

#[test]
fn each_fault_of_the_picture_alone_asks_for_a_new_encode() {
    type Fault = (&'static str, fn(&mut Probe, &mut VideoStream));
    let faults: [Fault; 12] = [
        ("4:2:0", |_, video| video.pixel_format = "yuv444p".into()),
        ("interlaced", |_, video| video.interlaced = true),
        ("turned", |_, video| video.rotation = -90),
        ("square", |_, video| video.pixel_aspect = Rational::new(4, 3)),
        ("varies", |_, video| video.average_frame_rate = Rational::new(27, 1)),
        ("HDR", |_, video| video.transfer = "smpte2084".into()),
        ("larger", |_, video| (video.width, video.height) = (1920, 1080)),
        ("odd", |_, video| video.height = 719),
        ("Hz", |probe, _| probe.audio.as_mut().unwrap().sample_rate = 44_100),
        ("channels", |probe, _| probe.audio.as_mut().unwrap().channels = 6),
        ("AAC-LC", |probe, _| probe.audio.as_mut().unwrap().profile = "HE-AAC".into()),
        ("Mbit/s", |probe, _| probe.bit_rate = Some(30_000_000)),
    ];
    for (word, fault) in faults {
        let plan = for_preset(&with(fault), PresetName::XVideo);
        assert_eq!(plan.action, Action::Transcode, "{word}");
        assert!(plan.reasons.iter().any(|reason| reason.contains(word)), "{word}: {:?}", plan.reasons);
    }
}

#[test]
fn what_cannot_be_made_right_is_refused_with_the_reason() {
    let refused = |probe: &Probe, name| {
        let plan = for_preset(probe, name);
        assert_eq!(plan.action, Action::Refuse, "{plan:?}");
        plan.summary
    };
    let short = with(|_, video| video.duration_ms = Some(2_000));
    assert!(refused(&short, PresetName::InstagramReel).contains("at least 3 s"));
    let long = with(|_, video| video.duration_ms = Some(21 * 60_000));
    assert!(refused(&long, PresetName::XVideo).contains("at most 20:00 min"));
    let mut sound = finished();
    sound.video = None;
    assert!(refused(&sound, PresetName::XVideo).contains("only sound"));
    assert!(refused(&sound, PresetName::Thumbnail).contains("no picture"));
    let tiny = with(|_, video| (video.width, video.height) = (16, 16));
    assert!(refused(&tiny, PresetName::XVideo).contains("32 pixels"));
    let picture = with(|probe, _| (probe.kind, probe.boxes) = (Kind::Jpeg, None));
    assert!(refused(&picture, PresetName::InstagramReel).contains("picture"));
    assert!(refused(&finished(), PresetName::XImage).contains("video"));
}

#[test]
fn a_frame_keeps_its_shape_has_even_sides_and_is_never_enlarged_for_x() {
    let frame = |width, height| {
        let probe = with(|_, video| (video.width, video.height) = (width, height));
        let target = target_of(&probe, PresetName::XVideo);
        (target.width, target.height, target.fit)
    };
    assert_eq!(frame(641, 359), (640, 358, Fit::Scale));
    assert_eq!(frame(3840, 2160), (1280, 720, Fit::Scale));
    assert_eq!(frame(1080, 1920), (720, 1280, Fit::Scale));
    assert_eq!(frame(1000, 1000), (720, 720, Fit::Scale));
    assert_eq!(frame(4000, 1000), (1280, 426, Fit::Pad { width: 1280, height: 320 }));
    assert_eq!(frame(300, 1000), (332, 1000, Fit::Pad { width: 300, height: 1000 }));
}

#[test]
fn a_reel_is_always_its_full_frame() {
    let frame = |width, height| {
        let probe = with(|_, video| (video.width, video.height) = (width, height));
        let target = target_of(&probe, PresetName::InstagramReel);
        assert_eq!((target.width, target.height), (1080, 1920));
        target.fit
    };
    assert_eq!(frame(1280, 720), Fit::Pad { width: 1080, height: 606 });
    assert_eq!(frame(720, 1280), Fit::Scale);
    assert_eq!(frame(720, 1270), Fit::Crop { width: 1088, height: 1920 });
}

#[test]
fn a_known_rate_is_kept_and_any_other_becomes_30_or_60() {
    let rate = |num, den, average: (u32, u32)| {
        let probe = with(|_, video| {
            video.frame_rate = Rational::new(num, den);
            video.average_frame_rate = Rational::new(average.0, average.1);
        });
        let target = target_of(&probe, PresetName::XVideo);
        (target.rate, target.key_interval)
    };
    assert_eq!(rate(25, 1, (25, 1)), (Rational::new(25, 1), 50));
    assert_eq!(rate(30_000, 1001, (30_000, 1001)), (Rational::new(30_000, 1001), 60));
    assert_eq!(rate(24_000, 1001, (24_000, 1001)), (Rational::new(24_000, 1001), 48));
    assert_eq!(rate(120, 1, (120, 1)), (Rational::new(60, 1), 120));
    assert_eq!(rate(12, 1, (12, 1)), (Rational::new(30, 1), 60));
    assert_eq!(rate(60, 1, (378, 10)), (Rational::new(30, 1), 60));
    assert_eq!(rate(90_000, 1, (55, 1)), (Rational::new(60, 1), 120));
}

#[test]
fn a_silent_file_gets_a_silent_track_only_where_one_is_needed() {
    let mut silent = finished();
    (silent.audio, silent.audio_streams) = (None, 0);
    assert_eq!(for_preset(&silent, PresetName::XVideo).action, Action::LeaveAlone);
    assert_eq!(target_of(&silent, PresetName::InstagramReel).audio, AudioTarget::Silence);
}

#[test]
fn a_moving_gif_goes_out_as_it_is_when_it_fits_and_is_a_video_elsewhere() {
    let gif = |frames| {
        with(|probe, video| {
            (probe.kind, probe.boxes, probe.audio) = (Kind::Gif, None, None);
            (video.codec, video.pixel_format, video.frames) = ("gif".into(), "bgra".into(), Some(frames));
            (video.width, video.height) = (400, 300);
        })
    };
    assert_eq!(for_preset(&gif(2), PresetName::XImage).action, Action::LeaveAlone);
    assert_eq!(for_preset(&gif(351), PresetName::XImage).action, Action::Refuse);
    assert_eq!(for_preset(&gif(2), PresetName::InstagramReel).action, Action::Transcode);
    assert_eq!(for_preset(&gif(1), PresetName::XImage).action, Action::Transcode);
    assert_eq!(for_preset(&gif(1), PresetName::InstagramReel).action, Action::Refuse);
}

#[test]
fn a_transparent_picture_stays_png_on_x_and_becomes_jpeg_as_a_thumbnail() {
    let png = with(|probe, video| {
        (probe.kind, probe.boxes, probe.audio) = (Kind::Png, None, None);
        video.pixel_format = "rgba".into();
    });
    let is_png = |name| match for_preset(&png, name).target {
        Some(Target::Still(target)) => target.png,
        other => panic!("no picture is planned: {other:?}"),
    };
    assert!(is_png(PresetName::XImage));
    assert!(!is_png(PresetName::Thumbnail));
}

#[test]
fn each_platform_has_a_plan_for_each_upload() {
    let platforms: Vec<_> = plan_platforms(&finished()).into_iter().map(|plan| plan.preset).collect();
    assert_eq!(platforms, [PresetName::XVideo, PresetName::InstagramReel, PresetName::YoutubeVideo]);
}
