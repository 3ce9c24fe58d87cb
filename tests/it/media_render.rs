//! Renditions made for real, and proved: the ordinary clip and every awkward one.

use std::path::Path;

use multivio::media::{
    ffmpeg::Tools,
    plan::{Action, Plan, plan},
    preset::{Preset, PresetKind, PresetName},
    probe::{Probe, probe},
    render::{RenderError, Rendered, Request, measure_loudness, render},
    sniff::{self, Kind},
};
use tokio_util::sync::CancellationToken;

use crate::media_clips::{Clips, X264, sources};

pub async fn look(tools: &Tools, path: &Path) -> Probe {
    let kind = sniff::sniff(&std::fs::read(path).unwrap()).expect("a known kind");
    probe(tools, path, kind, &CancellationToken::new()).await.expect("it can be probed")
}

async fn make(clips: &Clips, path: &Path, preset: &Preset) -> (Plan, Result<Rendered, RenderError>) {
    let probe = look(&clips.tools, path).await;
    let plan = plan(&probe, preset);
    let (scratch, effort, cancel) = (clips.scratch(), clips.effort(), CancellationToken::new());
    let request = Request { source: path, probe: &probe, preset, plan: &plan, scratch: &scratch, effort: &effort };
    let loudness = measure_loudness(&clips.tools, &request, &cancel, &mut |_, _| {}).await.expect("it can be measured");
    let rendered = render(&clips.tools, &request, loudness.as_ref(), &cancel, &mut |_, _| {}).await;
    (plan, rendered)
}

async fn made(clips: &Clips, path: &Path, name: PresetName) -> (Plan, Rendered) {
    let (plan, rendered) = make(clips, path, name.preset()).await;
    let rendered = rendered.unwrap_or_else(|error| panic!("{}: {}", plan.summary, multivio::telemetry::chain(&error)));
    assert!(rendered.proof.holds(), "{:?}", rendered.proof.failures());
    (plan, rendered)
}

#[tokio::test]
async fn an_ordinary_clip_becomes_what_x_takes() {
    let clips = Clips::new();
    let source = clips.clip("ordinary.mp4", "640x360", 1.0, "").await;
    let (plan, rendered) = made(&clips, &source, PresetName::XVideo).await;
    assert_eq!(plan.action, Action::Transcode, "{plan:?}");
    assert_eq!(rendered.kind, Kind::Mp4);
}
