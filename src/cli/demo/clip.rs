//! A clip that looks and sounds like footage: a camera held by hand over a rocky coast in the evening, a town below,
//! grain, and a tune. Every run makes the same one, of this machine's own ffmpeg.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::bars::Bar;
use crate::local::{Process, Spawning};

pub const SECONDS: u32 = 15;
const MADE_WITHIN: Duration = Duration::from_secs(10 * 60);
const CUT_WITHIN: Duration = Duration::from_secs(2 * 60);

const SKY: &str = "gradients=s=960x540:r=30:n=5:c0=0x0b1b3a:c1=0x274b7a:c2=0xd9825b:c3=0xf2c879:c4=0x1d2b4f:\
    x0=0:y0=0:x1=0:y1=540:speed=0.008";
const ROCKS: &str = "mandelbrot=s=480x270:r=30:start_scale=1.2:end_scale=0.15:end_pts=450:start_x=-0.743643:\
    start_y=-0.131825:maxiter=160:inner=black";
const TOWN: &str = "life=s=160x24:r=10:ratio=0.28:seed=7:mold=12:life_color=0xffd27a:death_color=0x3a2a18:\
    mold_color=0x0a0a12";
const TUNE: &str = "aevalsrc=0.16*sin(2*PI*110*t)*(0.7+0.3*sin(PI*t/2))+0.1*sin(2*PI*(164.81*t+0.04*sin(10*PI*t)))+\
    0.08*sin(2*PI*220*t)*exp(-2*mod(t\\,0.5))+0.06*sin(2*PI*329.63*pow(2\\,floor(mod(t\\,4))/6)*t)*exp(-3*mod(t\\,0.25))|\
    0.16*sin(2*PI*110.4*t)+0.1*sin(2*PI*165.2*t)+0.08*sin(2*PI*220*t)*exp(-2*mod(t\\,0.5)):s=48000";
const WIND: &str = "anoisesrc=c=pink:a=0.02:r=48000:seed=7";
/// Painted small and held by an unsteady hand, then enlarged: a quarter of the work.
const CAMERA: &str = "[1:v]scale=960:540:flags=fast_bilinear,format=yuv420p[rocks];[0:v]format=yuv420p[sky];\
    [sky][rocks]blend=all_mode=softlight:all_opacity=0.75[land];\
    [2:v]scale=1200:150:flags=neighbor,fps=30,gblur=sigma=1,format=yuv420p[town];\
    [land][town]overlay=x='-120+100*sin(t/6)':y='H-130+5*sin(t*1.3)'[scene];\
    [scene]noise=alls=5:allf=t,crop=920:518:x='20+17*sin(t*0.9)+3*sin(t*7.3)':y='11+8*sin(t*1.1)+3*sin(t*6.1)',\
    scale=1920:1080:flags=bilinear,setsar=1,format=yuv420p[v];[3:a][4:a]amix=inputs=2:normalize=0[a]";

#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    #[error("{0} could not be started: install ffmpeg")]
    Start(String, #[source] std::io::Error),
    #[error("ffmpeg could not make the clip: {0}")]
    Failed(String),
    #[error("ffmpeg did not end within {} s", .0.as_secs())]
    Slow(Duration),
}

/// Makes the clip, as a camera would have stored it: a QuickTime file, H.264 and uncompressed sound.
pub async fn make(ffmpeg: &Path, to: &Path, bar: &Bar) -> Result<(), ClipError> {
    let mut command = ffmpeg_command(ffmpeg);
    for source in [SKY, ROCKS, TOWN, TUNE, WIND] {
        command.args(["-f", "lavfi", "-i", source]);
    }
    command.args(["-filter_complex", CAMERA, "-map", "[v]", "-map", "[a]", "-t", &SECONDS.to_string()]);
    command.args(["-c:v", "libx264", "-preset", "ultrafast", "-crf", "21", "-g", "60", "-c:a", "pcm_s16le"]);
    command.args(["-progress", "pipe:1"]).arg(to);
    let bar = bar.clone();
    run(ffmpeg, command, MADE_WITHIN, move |line| {
        let done_us = line.strip_prefix("out_time_us=").and_then(|digits| digits.parse::<f64>().ok());
        if let Some(done_us) = done_us {
            bar.set(done_us / (f64::from(SECONDS) * 1e6), "painting");
        }
    })
    .await
}

/// The first seconds of a video, untouched: new content, so what is made of it is not there yet.
pub async fn cut(ffmpeg: &Path, from: &Path, to: &Path, seconds: u32) -> Result<(), ClipError> {
    let mut command = ffmpeg_command(ffmpeg);
    command.arg("-i").arg(from).args(["-t", &seconds.to_string(), "-map", "0:v:0", "-map", "0:a:0?", "-c", "copy"]);
    command.args(["-map_metadata", "-1"]).arg(to);
    run(ffmpeg, command, CUT_WITHIN, |_line| {}).await
}

fn ffmpeg_command(ffmpeg: &Path) -> Command {
    let mut command = Command::new(ffmpeg);
    command.args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn run(
    ffmpeg: &Path,
    command: Command,
    within: Duration,
    hear: impl Fn(&str) + Send + Sync + Clone + 'static,
) -> Result<(), ClipError> {
    let name = ffmpeg.display().to_string();
    let mut process =
        Process::spawn("ffmpeg", command, Spawning::default()).map_err(|error| ClipError::Start(name, error))?;
    let (words, mut said) = tokio::sync::mpsc::unbounded_channel();
    process.follow(move |_, line| {
        hear(line);
        // Nobody listens any more once it has ended.
        let _ = words.send(line.to_owned());
    });
    let status = process.exited(within).await.ok_or(ClipError::Slow(within))?;
    if status.success() {
        return Ok(());
    }
    let mut last = String::new();
    while let Ok(Some(line)) = tokio::time::timeout(Duration::from_secs(1), said.recv()).await {
        last = line;
    }
    Err(ClipError::Failed(if last.is_empty() { status.to_string() } else { last }))
}
