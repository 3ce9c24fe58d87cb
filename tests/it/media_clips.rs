//! Clips and pictures made on the spot by ffmpeg's own sources: awkward ones, and as small as they can be.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use multivio::media::{encode::Effort, ffmpeg::Tools};
use tempfile::TempDir;

/// A folder with clips that goes away with the test.
pub struct Clips {
    pub folder: TempDir,
    pub tools: Tools,
}

impl Clips {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self { folder, tools: Tools::find(Path::new("ffmpeg"), Path::new("ffprobe")) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A fresh folder inside, for one rendition.
    pub fn scratch(&self) -> PathBuf {
        tempfile::tempdir_in(self.folder.path()).expect("a folder can be made").keep()
    }

    pub fn effort(&self) -> Effort {
        Effort { x264_preset: "ultrafast".into(), threads: 1, frugal: false }
    }

    /// Runs ffmpeg with these words and the file's path at the end.
    pub async fn make(&self, name: &str, words: &str) -> PathBuf {
        let path = self.path(name);
        self.ffmpeg(words, &path).await;
        path
    }

    pub async fn ffmpeg(&self, words: &str, output: &Path) {
        let mut command = tokio::process::Command::new("ffmpeg");
        command.args("-hide_banner -v error -nostdin -y -threads 1".split(' ')).current_dir(self.folder.path());
        let run = command.args(words.split_whitespace()).arg(output).stdin(Stdio::null()).output().await;
        let run = run.expect("ffmpeg is installed");
        assert!(run.status.success(), "ffmpeg {words}: {}", String::from_utf8_lossy(&run.stderr));
    }

    /// A small clip with picture and sound; `video` and `more` are further words.
    pub async fn clip(&self, name: &str, size: &str, seconds: f32, more: &str) -> PathBuf {
        self.make(name, &format!("{} {X264} -c:a aac -shortest {more}", sources(size, seconds))).await
    }
}

pub const X264: &str = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p";

/// A moving picture and a tone.
pub fn sources(size: &str, seconds: f32) -> String {
    format!(
        "-f lavfi -i testsrc2=size={size}:rate=30:duration={seconds} -f lavfi -i sine=440:sample_rate=48000:duration={seconds}"
    )
}
