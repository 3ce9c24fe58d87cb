//! Makes one rendition out of one file, from the plan to the proof. Knows files and ffmpeg, but neither jobs nor
//! the database. Writes only into the folder it is given; nothing counts before its proof holds.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    encode::{self, Effort, LOUDNESS_MIN_MS, Loudness, RateControl, Source},
    exit::FfmpegError,
    ffmpeg::{Limits, Line, Program, Tools},
    plan::{Action, AudioTarget, Plan, StillTarget, Target, VideoTarget},
    preset::{Preset, PresetKind, StillPreset, VideoPreset},
    probe::Probe,
    progress::ProgressReader,
    proof::{self, DURATION_KEPT, Expected, Proof},
    sniff::Kind,
    still,
};

/// One rendition to make.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub source: &'a Path,
    pub probe: &'a Probe,
    pub preset: &'a Preset,
    pub plan: &'a Plan,
    /// An empty folder of this run's own.
    pub scratch: &'a Path,
    pub effort: &'a Effort,
}

/// A proved file.
#[derive(Debug, Clone)]
pub struct Rendered {
    pub path: PathBuf,
    pub kind: Kind,
    /// Whether it is the source itself.
    pub is_source: bool,
    pub action: Action,
    pub probe: Probe,
    pub proof: Proof,
    /// What turned out on the way, such as why a plan was changed.
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("the file cannot be used for this preset: {0}")]
    Refused(String),
    #[error("{0} failed")]
    Ffmpeg(&'static str, #[source] FfmpegError),
    #[error("the file is damaged: {0}")]
    Damaged(String),
    #[error("it does not fit into {max_bytes} bytes at a quality worth showing: cut it into parts")]
    DoesNotFit { max_bytes: u64 },
    /// What we made is not what we promised: our fault, or a file nobody foresaw.
    #[error("the result was not accepted by its own proof: {}", .0.join("; "))]
    NotProved(Vec<String>),
    #[error("the working folder could not be used")]
    Scratch(#[source] std::io::Error),
}

/// How far it is, 0 to 1, and in which phase.
pub type OnProgress<'a> = &'a mut (dyn FnMut(f64, &'static str) + Send);

/// Measures how loud a source is, where the plan encodes its sound. `None`: there is nothing to correct.
pub async fn measure_loudness(
    tools: &Tools,
    request: &Request<'_>,
    cancel: &CancellationToken,
    on_progress: OnProgress<'_>,
) -> Result<Option<Loudness>, RenderError> {
    let Some(Target::Video(target)) = &request.plan.target else { return Ok(None) };
    let AudioTarget::Stream { index } = target.audio else { return Ok(None) };
    if request.plan.action != Action::Transcode || target.duration_ms.is_some_and(|ms| ms < LOUDNESS_MIN_MS) {
        return Ok(None);
    }
    let args = encode::loudness_args(&source(request), index, request.effort);
    let limits = encode_limits(target, request, 0);
    let stderr = run(tools, &args, &limits, target.duration_ms, cancel, "measuring loudness", on_progress).await?;
    Ok(encode::parse_loudness(&stderr))
}

/// Makes the rendition and proves it.
pub async fn render(
    tools: &Tools,
    request: &Request<'_>,
    loudness: Option<&Loudness>,
    cancel: &CancellationToken,
    on_progress: OnProgress<'_>,
) -> Result<Rendered, RenderError> {
    match (&request.plan.target, &request.preset.kind) {
        (None, _) => Err(RenderError::Refused(request.plan.summary.clone())),
        (Some(Target::Animation), _) => {
            let proved = proof::prove_animation(tools, request.source, request.probe.kind, cancel).await;
            let proof = proved.map_err(|error| RenderError::Ffmpeg("proving", error))?;
            if !proof.holds() {
                return Err(RenderError::Damaged(proof.failures().join("; ")));
            }
            Ok(as_it_is(request, proof, request.probe.clone()))
        }
        (Some(Target::Still(target)), PresetKind::Still(rules)) => {
            render_still(tools, request, target, rules, cancel, on_progress).await
        }
        (Some(Target::Video(target)), PresetKind::Video(rules)) => {
            let run = VideoRun { tools, request, target, rules, cancel };
            run.render(loudness, on_progress).await
        }
        (Some(_), _) => Err(RenderError::Refused("its plan was made for another kind of preset".into())),
    }
}

fn as_it_is(request: &Request<'_>, proof: Proof, probe: Probe) -> Rendered {
    Rendered {
        path: request.source.to_owned(),
        kind: request.probe.kind,
        is_source: true,
        action: Action::LeaveAlone,
        probe,
        proof,
        notes: Vec::new(),
    }
}

fn source<'a>(request: &Request<'a>) -> Source<'a> {
    let max_duration_ms = match &request.preset.kind {
        PresetKind::Video(rules) => rules.max_duration_ms + 1_000,
        PresetKind::Still(_) => 10_000,
    };
    Source { kind: request.probe.kind, path: request.source, max_duration_ms }
}

struct VideoRun<'a> {
    tools: &'a Tools,
    request: &'a Request<'a>,
    target: &'a VideoTarget,
    rules: &'a VideoPreset,
    cancel: &'a CancellationToken,
}

impl VideoRun<'_> {
    /// Does no more than is needed; whatever is not proved gets the next stronger treatment.
    async fn render(&self, loudness: Option<&Loudness>, on_progress: OnProgress<'_>) -> Result<Rendered, RenderError> {
        let mut notes = Vec::new();
        if self.request.plan.action == Action::LeaveAlone {
            let (proof, probe) = self.prove(self.request.source, None, on_progress).await?;
            if proof.holds() {
                return Ok(as_it_is(self.request, proof, probe));
            }
            notes.push(format!("could not be left as it is: {}", proof.failures().join("; ")));
        }
        if self.request.plan.action == Action::Remux {
            match self.remux(on_progress).await {
                Ok(rendered) => return Ok(rendered),
                Err(RenderError::Ffmpeg(phase, error)) if !is_for_the_file(&error) => {
                    return Err(RenderError::Ffmpeg(phase, error));
                }
                Err(error) => {
                    notes.push(format!("a new container was not enough: {}", crate::telemetry::chain(&error)))
                }
            }
        }
        let mut rendered = self.transcode(loudness, on_progress).await?;
        rendered.notes.splice(0..0, notes);
        Ok(rendered)
    }

    async fn remux(&self, on_progress: OnProgress<'_>) -> Result<Rendered, RenderError> {
        let output = self.request.scratch.join("remuxed.mp4");
        let args = encode::remux_args(&source(self.request), self.target, &output);
        self.write(&args, self.rules.max_bytes, "copying", on_progress).await?;
        let (proof, probe) = self.prove(&output, None, on_progress).await?;
        self.accept(output, Action::Remux, proof, probe)
    }

    async fn transcode(
        &self,
        loudness: Option<&Loudness>,
        on_progress: OnProgress<'_>,
    ) -> Result<Rendered, RenderError> {
        let output = self.request.scratch.join("rendition.mp4");
        let mut notes = Vec::new();
        let first = self.encode(RateControl::Quality, loudness, &output, "encoding", on_progress).await;
        match first {
            Ok(()) => {}
            Err(RenderError::Ffmpeg(_, FfmpegError::OutputTooLarge { .. })) => {
                notes.push(self.encode_to_size(loudness, &output, on_progress).await?);
            }
            Err(error) => return Err(error),
        }
        let made = (self.target.width, self.target.height, self.target.rate);
        let (proof, probe) = self.prove(&output, Some(made), on_progress).await?;
        let mut rendered = self.accept(output, Action::Transcode, proof, probe)?;
        rendered.notes = notes;
        Ok(rendered)
    }

    /// The preset's quality was too large: two passes to an exact size.
    async fn encode_to_size(
        &self,
        loudness: Option<&Loudness>,
        output: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<String, RenderError> {
        let max_bytes = self.rules.max_bytes;
        let duration_ms = self.target.duration_ms.unwrap_or(self.rules.max_duration_ms).max(1);
        let bits_per_second =
            encode::rate_for_size(self.target, max_bytes, duration_ms).ok_or(RenderError::DoesNotFit { max_bytes })?;
        for (pass, phase) in [(1, "encoding to size, first pass"), (2, "encoding to size, second pass")] {
            let control = RateControl::Pass { pass, bits_per_second };
            let done = self.encode(control, loudness, output, phase, on_progress).await;
            if matches!(done, Err(RenderError::Ffmpeg(_, FfmpegError::OutputTooLarge { .. }))) {
                return Err(RenderError::DoesNotFit { max_bytes });
            }
            done?;
        }
        Ok(format!("encoded in two passes at {bits_per_second} bit/s, to stay within {max_bytes} bytes"))
    }

    async fn encode(
        &self,
        control: RateControl,
        loudness: Option<&Loudness>,
        output: &Path,
        phase: &'static str,
        on_progress: OnProgress<'_>,
    ) -> Result<(), RenderError> {
        let args =
            encode::video_args(&source(self.request), self.target, control, loudness, self.request.effort, output);
        self.write(&args, self.rules.max_bytes, phase, on_progress).await
    }

    async fn write(
        &self,
        args: &[std::ffi::OsString],
        max_bytes: u64,
        phase: &'static str,
        on_progress: OnProgress<'_>,
    ) -> Result<(), RenderError> {
        let limits = encode_limits(self.target, self.request, max_bytes);
        run(self.tools, args, &limits, self.target.duration_ms, self.cancel, phase, on_progress).await?;
        Ok(())
    }

    async fn prove(
        &self,
        path: &Path,
        made: Option<(u32, u32, super::probe::Rational)>,
        on_progress: OnProgress<'_>,
    ) -> Result<(Proof, Probe), RenderError> {
        on_progress(0.0, "proving");
        let expected = Expected {
            rules: self.rules,
            made,
            has_audio: self.target.audio != AudioTarget::None,
            source_duration_ms: self.target.duration_ms,
        };
        let proved = proof::prove_video(self.tools, path, &expected, self.request.effort.threads, self.cancel).await;
        let proved = proved.map_err(|error| RenderError::Ffmpeg("proving", error))?;
        on_progress(1.0, "proving");
        Ok(proved)
    }

    fn accept(&self, path: PathBuf, action: Action, proof: Proof, probe: Probe) -> Result<Rendered, RenderError> {
        if proof.failed(DURATION_KEPT) {
            let found = proof.failures().join("; ");
            return Err(RenderError::Damaged(format!("not all that it promises could be read ({found})")));
        }
        if !proof.holds() {
            return Err(RenderError::NotProved(proof.failures()));
        }
        Ok(Rendered { path, kind: Kind::Mp4, is_source: false, action, probe, proof, notes: Vec::new() })
    }
}

/// Whether a failed copy says something about the file, so that encoding it may still work.
fn is_for_the_file(error: &FfmpegError) -> bool {
    use FfmpegError::{BadMedia, Internal, OutputTooLarge, Unknown};
    matches!(error, BadMedia { .. } | Internal { .. } | Unknown { .. } | OutputTooLarge { .. })
}

async fn render_still(
    tools: &Tools,
    request: &Request<'_>,
    target: &StillTarget,
    rules: &StillPreset,
    cancel: &CancellationToken,
    on_progress: OnProgress<'_>,
) -> Result<Rendered, RenderError> {
    let steps = still::steps(target);
    let count = steps.len() as f64;
    for (tried, step) in steps.into_iter().enumerate() {
        on_progress(tried as f64 / count, "encoding");
        let kind = if step.png { Kind::Png } else { Kind::Jpeg };
        let output = request.scratch.join(format!("still-{tried}.{}", kind.extension()));
        let args = still::still_args(&source(request), target, step, &output);
        let limits = Limits {
            wall: Duration::from_secs(60),
            stall: None,
            cpu: Duration::from_secs(60),
            file_bytes: rules.max_bytes.max(1 << 20) * 8,
            nice: 10,
        };
        run(tools, &args, &limits, None, cancel, "encoding", &mut |_, _| {}).await?;
        let size = tokio::fs::metadata(&output).await.map_err(RenderError::Scratch)?.len();
        if size > rules.max_bytes {
            tokio::fs::remove_file(&output).await.map_err(RenderError::Scratch)?;
            continue;
        }
        let proved = proof::prove_still(tools, &output, kind, rules, cancel).await;
        let (proof, probe) = proved.map_err(|error| RenderError::Ffmpeg("proving", error))?;
        if !proof.holds() {
            return Err(RenderError::NotProved(proof.failures()));
        }
        on_progress(1.0, "proving");
        let action = Action::Transcode;
        return Ok(Rendered { path: output, kind, is_source: false, action, probe, proof, notes: Vec::new() });
    }
    Err(RenderError::DoesNotFit { max_bytes: rules.max_bytes })
}

async fn run(
    tools: &Tools,
    args: &[std::ffi::OsString],
    limits: &Limits,
    duration_ms: Option<u64>,
    cancel: &CancellationToken,
    phase: &'static str,
    on_progress: OnProgress<'_>,
) -> Result<String, RenderError> {
    on_progress(0.0, phase);
    let mut reader = ProgressReader::new(duration_ms);
    let mut on_line = |line: &str| {
        let moved = reader.line(line);
        if moved != Line::Same {
            on_progress(reader.fraction(), phase);
        }
        moved
    };
    let ran = tools.run(Program::Ffmpeg, args, limits, cancel, &mut on_line).await;
    ran.map_err(|error| RenderError::Ffmpeg(phase, error))
}

/// Generous for an honest file on a busy machine, and still an end for every other.
fn encode_limits(target: &VideoTarget, request: &Request<'_>, max_bytes: u64) -> Limits {
    const TIMES_REAL: f64 = 12.0;
    const FULL_HD_30: f64 = 1920.0 * 1080.0 * 30.0;
    let out = f64::from(target.width) * f64::from(target.height) * target.rate.as_f64();
    let video = request.probe.video.as_ref();
    let read = video.map_or(0.0, |v| f64::from(v.width) * f64::from(v.height) * v.rate().clamp(1.0, 240.0));
    let effort = (out.max(read) / FULL_HD_30).max(1.0);
    let duration_ms = target.duration_ms.unwrap_or(source(request).max_duration_ms);
    let wall = Duration::from_secs(120) + Duration::from_millis(duration_ms).mul_f64(TIMES_REAL * effort);
    Limits {
        wall,
        stall: Some(Duration::from_secs(60)),
        cpu: wall.saturating_mul(u32::try_from(request.effort.threads).unwrap_or(1).max(1)),
        // Past the preset's size there is no use in going on; two passes follow.
        file_bytes: max_bytes.max(1 << 20),
        nice: 10,
    }
}
