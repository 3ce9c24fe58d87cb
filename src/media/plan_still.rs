//! The plan for pictures: they are always decoded and encoded again, because a copy would keep where and when
//! they were taken. Only a moving GIF that fits goes out as it came.

use super::{
    plan::{Action, Plan, StillTarget, Target, refuse, tone_map},
    preset::{Preset, StillPreset},
    probe::Probe,
};

pub(super) fn plan_still(probe: &Probe, preset: &Preset, rules: &StillPreset) -> Plan {
    let Some(video) = &probe.video else {
        return refuse(preset, "the file has no picture");
    };
    if probe.kind.is_video_container() && !rules.from_video {
        return refuse(preset, format!("the file is a video: {} takes pictures", preset.name));
    }
    let (width, height) = video.display_size();
    let shrunk = u64::from(width.min(height)) * u64::from(rules.max_side) / u64::from(width.max(height).max(1));
    if u64::from(width.min(height)).min(shrunk) < u64::from(rules.min_side) {
        return refuse(
            preset,
            format!("{width}x{height} is too small or too thin: it needs {} pixels on a side", rules.min_side),
        );
    }
    if u64::from(width) * u64::from(height) > probe.kind.max_pixels() {
        return refuse(preset, format!("a picture of {width}x{height} pixels cannot be worked with"));
    }
    let done = |action, summary, reasons, target| Plan {
        preset: preset.name,
        version: preset.version,
        action,
        summary,
        reasons,
        target: Some(target),
    };
    if let Some(limits) = rules.animation.as_ref().filter(|_| probe.is_animation()) {
        let frames = video.frames.unwrap_or(u64::MAX);
        let fits = probe.size_bytes <= limits.max_bytes
            && width <= limits.max_width
            && height <= limits.max_height
            && frames <= limits.max_frames
            && (u64::from(width) * u64::from(height)).saturating_mul(frames) <= limits.max_pixels_in_sum;
        let what = format!("a GIF of {frames} frames, {width}x{height}");
        if fits {
            return done(Action::LeaveAlone, format!("{what} is right as it is"), Vec::new(), Target::Animation);
        }
        return refuse(
            preset,
            format!(
                "{what} and {:.1} MB is too much: at most {} frames, {}x{} and {} MB; as a video (x_video) it fits",
                probe.size_bytes as f64 / 1e6,
                limits.max_frames,
                limits.max_width,
                limits.max_height,
                limits.max_bytes / 1_000_000
            ),
        );
    }

    let png = rules.keeps_transparency && video.has_alpha();
    let from_video = probe.kind.is_video_container() || probe.is_animation();
    let mut reasons = vec![if from_video {
        "a picture is taken out of it".to_owned()
    } else {
        "pictures are always encoded again, so that nothing about their making goes out".to_owned()
    }];
    if width.max(height) > rules.max_side {
        reasons.push(format!("{width}x{height} is larger than {} on a side", rules.max_side));
    }
    if probe.size_bytes > rules.max_bytes && !from_video {
        reasons.push(format!("{:.1} MB is too large", probe.size_bytes as f64 / 1e6));
    }
    if !probe.personal_tags.is_empty() {
        reasons.push(format!("it carries data about its making ({})", probe.personal_tags.join(", ")));
    }
    let summary = format!(
        "{} {width}x{height} -> {} inside {side}x{side}",
        probe.kind.extension().to_uppercase(),
        if png { "PNG" } else { "JPEG" },
        side = rules.max_side,
    );
    let target = StillTarget {
        video_index: video.index,
        square_pixels: video.has_square_pixels(),
        has_alpha: video.has_alpha(),
        // Of the picture itself where that is smaller: steps that halve it have to begin there.
        max_side: rules.max_side.min(width.max(height)),
        png,
        tone_map: tone_map(video),
        from_video,
    };
    done(Action::Transcode, summary, reasons, Target::Still(target))
}
