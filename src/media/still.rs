//! The argument lists for pictures, and the steps by which one is made small enough.

use std::{ffi::OsString, path::Path};

use super::{
    encode::{Args, Source, tone_map_filters},
    plan::StillTarget,
};

/// One try at a picture: its format, its quality and its largest side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StillStep {
    pub png: bool,
    /// JPEG's quantiser: 2 is about quality 95, 12 about 70.
    pub quantiser: u8,
    pub max_side: u32,
}

/// What is tried, one after another, until the file is small enough: less quality first, then fewer pixels. A PNG
/// that stays too large becomes a JPEG over white.
pub fn steps(target: &StillTarget) -> Vec<StillStep> {
    let side = |share: f64| ((f64::from(target.max_side) * share) as u32).max(64);
    let mut steps = Vec::new();
    if target.png {
        steps.extend([1.0, 0.7, 0.5].map(|share| StillStep { png: true, quantiser: 0, max_side: side(share) }));
    }
    steps.extend([2, 4, 7, 12].map(|quantiser| StillStep { png: false, quantiser, max_side: target.max_side }));
    steps.extend([0.7, 0.5, 0.25].map(|share| StillStep { png: false, quantiser: 7, max_side: side(share) }));
    steps
}

/// Decodes one frame and encodes it as a picture without any of its metadata.
pub fn still_args(source: &Source<'_>, target: &StillTarget, step: StillStep, output: &Path) -> Vec<OsString> {
    let mut args = Args::ffmpeg(1);
    args.input(source);
    args.words(&format!("-map 0:{} -an -sn -dn -map_metadata -1", target.video_index));
    args.add(["-vf".to_owned(), filters(target, step)]);
    args.words("-frames:v 1 -update 1 -fflags +bitexact -flags:v +bitexact");
    if step.png {
        args.words("-c:v png -f image2");
    } else {
        args.words(&format!("-c:v mjpeg -q:v {} -f image2", step.quantiser));
    }
    args.add([super::probe::file_argument(output)]);
    args.0
}

fn filters(target: &StillTarget, step: StillStep) -> String {
    let side = step.max_side;
    let mut chain: Vec<String> = Vec::new();
    if target.from_video {
        chain.push("fps=5".into());
    }
    if !target.square_pixels {
        chain.push("scale=trunc(iw*sar):ih".into());
    }
    // First of all smaller: what follows would otherwise hold several copies of a hundred million pixels.
    chain.push(format!("scale=w='min(iw,{side})':h='min(ih,{side})':force_original_aspect_ratio=decrease"));
    if let Some(tone_map) = target.tone_map {
        chain.push(tone_map_filters(tone_map).into());
    }
    if target.from_video {
        // The frame that is most like the first ten seconds as a whole: neither black nor a flash.
        chain.push("thumbnail=n=50".into());
    }
    match (step.png, target.has_alpha) {
        (true, _) => chain.push("format=rgba".into()),
        // Transparent pixels keep a colour that nobody was meant to see: it must not come to light.
        (false, true) => chain.push(
            "format=rgba,split[back][front];[back]lutrgb=r=255:g=255:b=255:a=255[white];\
             [white][front]overlay=format=rgb"
                .into(),
        ),
        (false, false) => {}
    }
    if !step.png {
        chain.push("scale=out_color_matrix=bt601:out_range=full,format=yuvj420p".into());
    }
    chain.push("setsar=1".into());
    chain.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(png: bool) -> StillTarget {
        StillTarget {
            video_index: 0,
            max_side: 4096,
            png,
            square_pixels: true,
            has_alpha: png,
            tone_map: None,
            from_video: false,
        }
    }

    #[test]
    fn quality_goes_before_size_and_a_png_ends_as_a_jpeg() {
        let steps = steps(&target(true));
        assert!(steps[0].png && steps[0].max_side == 4096);
        assert!(!steps.last().unwrap().png);
        let jpegs: Vec<_> = steps.iter().filter(|step| !step.png).collect();
        assert!(jpegs.windows(2).all(|pair| pair[1].max_side <= pair[0].max_side));
    }

    #[test]
    fn transparency_is_laid_over_white_only_for_jpeg() {
        let steps = steps(&target(true));
        assert!(!filters(&target(true), steps[0]).contains("white"));
        assert!(filters(&target(true), *steps.last().unwrap()).contains("white"));
        assert!(!filters(&target(false), *steps.last().unwrap()).contains("white"));
    }
}
