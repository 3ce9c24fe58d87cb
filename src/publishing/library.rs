//! The media domain as publishing sees it: uploads, renditions, and any part of their bytes.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::media::{Making, MediaSource, MediaTrouble, OpenMedia};
use crate::{
    ids::{MediaId, TenantId},
    media::{
        MediaService, PresetName, Transcode,
        plan::{self, Action},
        probe::Probe,
        service::OpenError,
        storage::{Storage, StorageError},
        store,
    },
    platforms::{MediaBytes, MediaFacts, MediaKind},
};

#[async_trait]
impl MediaSource for MediaService {
    async fn facts(&self, tenant: TenantId, media: MediaId) -> Result<MediaFacts, MediaTrouble> {
        let row = store::get(&mut *self.rows_of(tenant).await?, tenant, media).await?.ok_or(MediaTrouble::Gone)?;
        facts(&row.probe, &row.mime, row.size_bytes)
    }

    async fn refusal(&self, tenant: TenantId, media: MediaId, preset: &str) -> Result<Option<String>, MediaTrouble> {
        let row = store::get(&mut *self.rows_of(tenant).await?, tenant, media).await?.ok_or(MediaTrouble::Gone)?;
        let plan = plan::plan(&row.probe, preset_of(preset)?.preset());
        Ok((plan.action == Action::Refuse).then_some(plan.summary))
    }

    async fn make(&self, tenant: TenantId, media: MediaId, preset: &str) -> Result<Making, MediaTrouble> {
        let preset = preset_of(preset)?;
        match self.rendition(tenant, media, preset).await {
            Ok(_) => Ok(Making::Made),
            Err(OpenError::NotMade(_)) => {
                let row =
                    store::get(&mut *self.rows_of(tenant).await?, tenant, media).await?.ok_or(MediaTrouble::Gone)?;
                Ok(Making::Job(Box::new(Transcode { media, preset }.new_job(tenant, &row))))
            }
            Err(error) => Err(trouble(error)),
        }
    }

    async fn open(&self, tenant: TenantId, media: MediaId, preset: Option<&str>) -> Result<OpenMedia, MediaTrouble> {
        let (key, facts) = match preset {
            Some(preset) => {
                let preset = preset_of(preset)?;
                let made = self.rendition(tenant, media, preset).await.map_err(trouble)?;
                let (Some(key), Some(probe), Some(mime), Some(size)) =
                    (made.storage_key, made.probe, made.mime, made.size_bytes)
                else {
                    return Err(MediaTrouble::NotReady);
                };
                (key, facts(&probe, &mime, size)?)
            }
            None => {
                let row =
                    store::get(&mut *self.rows_of(tenant).await?, tenant, media).await?.ok_or(MediaTrouble::Gone)?;
                let facts = facts(&row.probe, &row.mime, row.size_bytes)?;
                (row.storage_key, facts)
            }
        };
        let bytes = Box::new(Stored { storage: self.storage().clone(), key, size_bytes: facts.size_bytes });
        Ok(OpenMedia { facts, bytes })
    }
}

/// Any part of a stored object.
struct Stored {
    storage: Storage,
    key: String,
    size_bytes: u64,
}

#[async_trait]
impl MediaBytes for Stored {
    async fn read(&self, start: u64, length: usize) -> std::io::Result<Bytes> {
        let end = start.saturating_add(length as u64).min(self.size_bytes);
        let mut download = self.storage.open(&self.key, Some(start..end)).await.map_err(std::io::Error::other)?;
        let mut read = BytesMut::with_capacity(length);
        while let Some(chunk) = download.bytes.next().await {
            read.extend_from_slice(&chunk?);
        }
        Ok(read.freeze())
    }
}

fn preset_of(name: &str) -> Result<PresetName, MediaTrouble> {
    name.parse().map_err(MediaTrouble::Unusable)
}

fn facts(probe: &Probe, mime: &str, size_bytes: i64) -> Result<MediaFacts, MediaTrouble> {
    let Some(video) = &probe.video else { return Err(MediaTrouble::Unusable("it has no picture".into())) };
    let kind = if probe.is_animation() {
        MediaKind::Animation
    } else if probe.is_still() {
        MediaKind::Image
    } else {
        MediaKind::Video
    };
    let (width, height) = video.display_size();
    Ok(MediaFacts {
        kind,
        content_type: mime.to_owned(),
        size_bytes: size_bytes.unsigned_abs(),
        width,
        height,
        duration_ms: probe.video_duration_ms(),
        frames: video.frames.and_then(|frames| frames.try_into().ok()),
    })
}

fn trouble(error: OpenError) -> MediaTrouble {
    match error {
        OpenError::NoSuchMedia => MediaTrouble::Gone,
        OpenError::NotMade(_) => MediaTrouble::NotReady,
        OpenError::Refused { why, .. } => MediaTrouble::Unusable(why),
        OpenError::Storage(error) if error.is_not_found() => MediaTrouble::Gone,
        OpenError::Storage(error) => storage(error),
        OpenError::Database(error) => error.into(),
    }
}

fn storage(error: StorageError) -> MediaTrouble {
    MediaTrouble::Storage(Box::new(error))
}
