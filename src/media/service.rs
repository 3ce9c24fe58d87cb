//! What the rest of the product may ask of media: take files in, look at them, hand renditions out.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream::BoxStream;
use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::{io::AsyncRead, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    admission::Admission,
    encode::Effort,
    exit::FfmpegError,
    ffmpeg::{Limits, Program, Tools},
    preset::PresetName,
    probe::{Probe, probe},
    rendition_store::{self, RenditionRow},
    scratch::Scratch,
    storage::{Storage, StorageError},
    store,
    upload::{self, Arrived, UploadError},
};
use crate::{
    config::Config,
    db::{Tenancy, TenantDb},
    ids::{MediaId, TenantId},
    telemetry::chain,
};

/// When a start sweeps the scratch folder, each after the one before failed: an ffmpeg that outlived its worker for a
/// moment may still have been writing.
const SWEEPS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(10), Duration::from_secs(60)];

/// Cheap to clone; one for each process.
#[derive(Debug, Clone)]
pub struct MediaService {
    rows: Rows,
    storage: Storage,
    tools: Tools,
    effort: Effort,
    scratch: Arc<Scratch>,
    admission: Admission,
    /// Looking at files takes processes: only so many at once, whoever uploads.
    probes: Arc<Semaphore>,
    max_upload_bytes: u64,
}

/// Who asks for rows: a worker, whose sessions see every tenant's, or calls.
#[derive(Debug, Clone)]
enum Rows {
    All(PgPool),
    Callers(TenantDb),
}

/// Bytes of something stored, on their way out.
pub struct Opened {
    pub bytes: BoxStream<'static, std::io::Result<Bytes>>,
    pub size_bytes: u64,
    pub mime: String,
    pub probe: Option<Probe>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("there is no such media")]
    NoSuchMedia,
    /// Nobody has made it yet: a transcode job for the preset comes first.
    #[error("the rendition for {0} has not been made")]
    NotMade(PresetName),
    #[error("there is no rendition for {preset}: {why}")]
    Refused { preset: PresetName, why: String },
    #[error("the storage failed")]
    Storage(#[from] StorageError),
    #[error("the database could not be reached")]
    Database(#[from] sqlx::Error),
}

impl MediaService {
    /// Makes the storage folder if it is not there; touches neither the database nor the scratch folder.
    pub fn new(config: &Config, db: PgPool) -> Result<Self, StorageError> {
        Self::with(config, Rows::All(db))
    }

    /// The same for the API, whose sessions see one tenant's rows at a time.
    pub fn for_callers(config: &Config, db: TenantDb) -> Result<Self, StorageError> {
        Self::with(config, Rows::Callers(db))
    }

    fn with(config: &Config, rows: Rows) -> Result<Self, StorageError> {
        let media = &config.media;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            rows,
            storage: Storage::folder(&config.storage.folder)?,
            tools: Tools::find(&media.ffmpeg, &media.ffprobe),
            effort: Effort {
                x264_preset: media.x264_preset.clone(),
                threads: media.threads.unwrap_or(processors),
                frugal: false,
            },
            scratch: Arc::new(Scratch::new(&media.scratch)),
            admission: Admission::new(&media.scratch),
            probes: Arc::new(Semaphore::new(2 * processors)),
            max_upload_bytes: media.max_upload_bytes,
        })
    }

    /// A connection that sees this tenant's rows.
    pub async fn rows_of(&self, tenant: TenantId) -> sqlx::Result<PoolConnection<Postgres>> {
        match &self.rows {
            Rows::All(db) => db.acquire().await,
            Rows::Callers(db) => db.of(Tenancy::of_things(tenant)).await,
        }
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    pub fn effort(&self) -> &Effort {
        &self.effort
    }

    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    pub fn max_upload_bytes(&self) -> u64 {
        self.max_upload_bytes
    }

    /// Removes what dead workers left in the scratch folder, beside whatever else goes on; for a worker's start.
    pub fn sweep_scratch(&self) {
        let scratch = Arc::clone(&self.scratch);
        tokio::spawn(async move {
            for pause in SWEEPS {
                tokio::time::sleep(pause).await;
                let scratch = Arc::clone(&scratch);
                let swept = tokio::task::spawn_blocking(move || scratch.sweep()).await.map_err(std::io::Error::other);
                match swept.flatten() {
                    Ok(0) => return,
                    Ok(folders) => return tracing::info!(folders, "what dead workers had left was removed"),
                    Err(error) => tracing::warn!(error = %chain(&error), "the scratch folder could not be swept"),
                }
            }
        });
    }

    /// Takes a file in and looks at it. It belongs to nobody until the caller keeps it with [`store::keep`]; a
    /// caller that does not must [`upload::discard`] it.
    pub async fn receive(
        &self,
        tenant: TenantId,
        reader: impl AsyncRead,
        limit_bytes: u64,
    ) -> Result<(Arrived, Probe), UploadError> {
        let arrived = upload::receive(self, tenant, reader, limit_bytes.min(self.max_upload_bytes)).await?;
        match self.look(&arrived).await {
            Ok(probe) => Ok((arrived, probe)),
            Err(error) => {
                upload::discard(self, tenant, arrived.object, &arrived.storage_key).await;
                Err(error)
            }
        }
    }

    async fn look(&self, arrived: &Arrived) -> Result<Probe, UploadError> {
        const QUEUE_TIME: Duration = Duration::from_secs(30);
        let turn = tokio::time::timeout(QUEUE_TIME, self.probes.acquire()).await;
        let _turn = turn.map_err(|_elapsed| UploadError::Busy)?.map_err(|_closed| UploadError::Busy)?;
        let scratch;
        let folder: &Path = if self.storage.needs_copies() {
            scratch = self.scratch.run_folder().map_err(StorageError::Copy)?;
            scratch.path()
        } else {
            self.scratch.root()
        };
        let path = self.storage.on_disk(&arrived.storage_key, folder).await?;
        let never = CancellationToken::new();
        let probed = probe(&self.tools, &path, arrived.kind, &never).await;
        let probe = probed.map_err(|error| UploadError::of_probe(arrived.kind, error))?;
        match &probe.video {
            Some(video) if video.width > 0 && video.height > 0 => Ok(probe),
            // A picture nobody can see is not a picture; sound alone is kept, since its plans say why not.
            _ if probe.audio.is_some() => Ok(probe),
            _ => Err(UploadError::NoPicture),
        }
    }

    /// A rendition's bytes, for whoever publishes it.
    pub async fn open_rendition(
        &self,
        tenant: TenantId,
        media: MediaId,
        preset: PresetName,
    ) -> Result<Opened, OpenError> {
        let row = self.rendition(tenant, media, preset).await?;
        let (Some(key), Some(mime)) = (row.storage_key, row.mime) else { return Err(OpenError::NotMade(preset)) };
        let download = self.storage.open(&key, None).await?;
        let probe = row.probe.map(|probe| probe.0);
        Ok(Opened { bytes: download.bytes, size_bytes: download.size_bytes, mime, probe })
    }

    /// A rendition that is made; an error says why there is none.
    pub async fn rendition(
        &self,
        tenant: TenantId,
        media: MediaId,
        preset: PresetName,
    ) -> Result<RenditionRow, OpenError> {
        let mut db = self.rows_of(tenant).await?;
        let row = store::get(&mut *db, tenant, media).await?.ok_or(OpenError::NoSuchMedia)?;
        let found = rendition_store::find(&mut *db, tenant, row.object_id, preset).await?;
        match found {
            Some(row) if row.state == "ready" => Ok(row),
            Some(RenditionRow { refusal: Some(why), .. }) => Err(OpenError::Refused { preset, why }),
            _ => Err(OpenError::NotMade(preset)),
        }
    }

    /// Whether uploads can be looked at on this machine.
    pub async fn try_ffprobe(&self) -> Result<(), FfmpegError> {
        let never = CancellationToken::new();
        self.tools.read(Program::Ffprobe, &["-version".into()], &Limits::PROBE, &never, 1 << 16).await.map(drop)
    }
}
