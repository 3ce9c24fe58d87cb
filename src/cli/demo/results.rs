//! Puts what was made where a person can look at it: renditions and texts as files with names.

use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use tokio::io::AsyncWriteExt;
use tokio_util::io::StreamReader;

use crate::{
    db,
    ids::{MediaId, TenantId},
    local::Stack,
    media::{MediaService, preset::PresetName},
};

/// A folder of files to look at.
pub struct Results {
    media: MediaService,
    tenant: TenantId,
    folder: PathBuf,
}

impl Results {
    pub async fn of(stack: &Stack, tenant: TenantId) -> anyhow::Result<Self> {
        let folder = stack.folder().join("results");
        tokio::fs::create_dir_all(&folder).await?;
        let media = MediaService::new(&stack.config, db::pool(&stack.config.database, "multivio demo")?)?;
        Ok(Self { media, tenant, folder })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A text, as `name.txt`.
    pub async fn save_text(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name).with_extension("txt");
        tokio::fs::write(&path, format!("{text}\n")).await?;
        Ok(path)
    }

    /// A copy of a rendition, as `name.mp4`.
    pub async fn save(&self, media: MediaId, preset: PresetName, name: &str) -> anyhow::Result<PathBuf> {
        let opened = self.media.open_rendition(self.tenant, media, preset).await?;
        let extension = match opened.mime.as_str() {
            "video/mp4" => "mp4",
            "image/jpeg" => "jpg",
            "image/png" => "png",
            _ => "bin",
        };
        let path = self.folder.join(name).with_extension(extension);
        let mut bytes = StreamReader::new(opened.bytes.map_err(std::io::Error::other));
        let mut file = tokio::fs::File::create(&path).await?;
        tokio::io::copy(&mut bytes, &mut file).await?;
        file.flush().await?;
        Ok(path)
    }
}
