//! Takes an upload in: streamed to storage while it is hashed, with memory that does not grow with the file; known
//! by its first bytes before the second megabyte is taken; counted against the limit as it flows.
//!
//! It is probed here and not by a job, because the answer to the upload carries the plan for each platform; a probe
//! reads headers only and has 15 seconds.

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use uuid::Uuid;

use super::{
    exit::{Class, FfmpegError},
    service::MediaService,
    sniff::{self, HEAD_BYTES, Kind, SniffError},
    storage::{StorageError, Upload},
    store,
};
use crate::{ids::TenantId, telemetry::chain};

/// Longest silence of a client in the middle of a file.
const CHUNK_TIME: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 256 << 10;

/// A file that is in storage, but nobody's yet.
#[derive(Debug)]
pub struct Arrived {
    pub object: Uuid,
    pub storage_key: String,
    pub kind: Kind,
    pub size_bytes: u64,
    pub sha256: [u8; 32],
}

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error(transparent)]
    Kind(#[from] SniffError),
    #[error("the file has more than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    #[error("the file broke off")]
    CutOff(#[source] std::io::Error),
    #[error("nothing of the file arrived for {} s", CHUNK_TIME.as_secs())]
    TooSlow,
    #[error("the file cannot be read as {}", .0.extension())]
    Unreadable(Kind, #[source] FfmpegError),
    #[error("the file could not be looked at")]
    Probe(#[source] FfmpegError),
    #[error("the file has no picture in it that could be shown")]
    NoPicture,
    #[error("too many files are being looked at")]
    Busy,
    #[error("the file could not be stored")]
    Storage(#[from] StorageError),
    #[error("the database could not be reached")]
    Database(#[from] sqlx::Error),
}

impl UploadError {
    pub(super) fn of_probe(kind: Kind, error: FfmpegError) -> Self {
        match error.class() {
            Class::Permanent | Class::Quarantine => Self::Unreadable(kind, error),
            // A file that keeps the probe busy for 15 seconds is no ordinary file.
            Class::Retry if matches!(error, FfmpegError::TooSlow { .. }) => Self::Unreadable(kind, error),
            Class::Retry | Class::RetrySmaller | Class::Internal | Class::Cancelled => Self::Probe(error),
        }
    }
}

/// Streams a file into storage. Its row exists before its first byte, and says what to do when we die meanwhile.
/// It may have so many bytes and no more.
pub async fn receive(
    service: &MediaService,
    tenant: TenantId,
    reader: impl AsyncRead,
    limit_bytes: u64,
) -> Result<Arrived, UploadError> {
    let object = Uuid::now_v7();
    let storage_key = format!("{}/{}", tenant.uuid().simple(), object.simple());
    store::insert_arriving(&mut *service.rows_of(tenant).await?, tenant, object, &storage_key).await?;
    let mut upload = service.storage().create(&storage_key).await?;
    match stream(&mut upload, reader, limit_bytes).await {
        Ok((kind, size_bytes, sha256)) => {
            upload.finish().await?;
            Ok(Arrived { object, storage_key, kind, size_bytes, sha256 })
        }
        Err(error) => {
            upload.abort().await;
            discard(service, tenant, object, &storage_key).await;
            Err(error)
        }
    }
}

/// Takes back a file that came to nothing. What fails here is done by upkeep a day later.
pub async fn discard(service: &MediaService, tenant: TenantId, object: Uuid, storage_key: &str) {
    let discarded = async {
        // A commit whose answer was lost may have kept it: only the row says whether the bytes may go.
        if !store::start_removing(&mut *service.rows_of(tenant).await?, object).await? {
            return Ok(());
        }
        service.storage().remove(storage_key).await?;
        store::forget_object(&mut *service.rows_of(tenant).await?, object).await?;
        Ok::<(), UploadError>(())
    };
    if let Err(error) = discarded.await {
        tracing::warn!(%object, error = %chain(&error), "an unused file is left to upkeep");
    }
}

async fn stream(
    upload: &mut Upload,
    reader: impl AsyncRead,
    limit_bytes: u64,
) -> Result<(Kind, u64, [u8; 32]), UploadError> {
    let mut reader = pin!(reader);
    let mut hash = Sha256::new();
    let mut size_bytes = 0_u64;
    let mut head = Head::default();
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let read = tokio::time::timeout(CHUNK_TIME, reader.read_buf(&mut chunk)).await;
        if read.map_err(|_elapsed| UploadError::TooSlow)?.map_err(UploadError::CutOff)? == 0 {
            break;
        }
        let chunk: Bytes = chunk.freeze();
        size_bytes += chunk.len() as u64;
        if size_bytes > limit_bytes {
            return Err(UploadError::TooLarge { limit_bytes });
        }
        head.take(&chunk)?;
        hash.update(&chunk);
        upload.write(chunk).await?;
    }
    Ok((head.kind()?, size_bytes, hash.finalize().into()))
}

/// The first bytes, until they are enough to know the file by.
#[derive(Default)]
struct Head {
    bytes: Vec<u8>,
    kind: Option<Kind>,
}

impl Head {
    fn take(&mut self, chunk: &[u8]) -> Result<(), SniffError> {
        if self.kind.is_none() {
            let missing = HEAD_BYTES - self.bytes.len();
            self.bytes.extend_from_slice(&chunk[..chunk.len().min(missing)]);
            if self.bytes.len() == HEAD_BYTES {
                self.kind = Some(sniff::sniff(&self.bytes)?);
            }
        }
        Ok(())
    }

    fn kind(self) -> Result<Kind, SniffError> {
        self.kind.map_or_else(|| sniff::sniff(&self.bytes), Ok)
    }
}

/// The name a file is shown by: the last part of whatever path the client sent, without what could be taken for
/// more than a name. It is never used to open anything.
pub fn clean_name(sent: Option<&str>, kind: Kind) -> String {
    const MAX_CHARS: usize = 120;
    let last = sent.unwrap_or_default().rsplit(['/', '\\']).next().unwrap_or_default();
    let harmless = |c: &char| {
        !c.is_control() && !"<>:\"|?*\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}\u{200e}\u{200f}\u{feff}".contains(*c)
    };
    let clean: String = last.chars().filter(harmless).collect();
    let clean = clean.trim_matches(|c: char| c.is_whitespace() || c == '.' || c == '-');
    if clean.is_empty() {
        return format!("untitled.{}", kind.extension());
    }
    clean.chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_only_ever_a_name() {
        let clean = |name| clean_name(Some(name), Kind::Mp4);
        assert_eq!(clean("holiday.mp4"), "holiday.mp4");
        assert_eq!(clean("../../etc/passwd"), "passwd");
        assert_eq!(clean("C:\\Users\\me\\clip.mov"), "clip.mov");
        assert_eq!(clean("-i.mp4"), "i.mp4");
        assert_eq!(clean("a\u{202e}4pm.exe\r\n\0"), "a4pm.exe");
        assert_eq!(clean("Ferien in Köln 🏖.mp4"), "Ferien in Köln 🏖.mp4");
        assert_eq!(clean(" .. "), "untitled.mp4");
        assert_eq!(clean_name(None, Kind::Png), "untitled.png");
        assert_eq!(clean(&"ü".repeat(500)).chars().count(), 120);
    }

    #[test]
    fn a_file_is_known_from_its_head_however_it_is_cut_into_chunks() {
        let mut file = b"\0\0\0\x20ftypisom".to_vec();
        file.resize(3 * HEAD_BYTES, 0);
        for size in [1, 7, HEAD_BYTES - 1, HEAD_BYTES, file.len()] {
            let mut head = Head::default();
            file.chunks(size).for_each(|chunk| head.take(chunk).unwrap());
            assert_eq!(head.kind(), Ok(Kind::Mp4), "{size}");
        }
        let mut head = Head::default();
        assert_eq!(head.take(&[0; HEAD_BYTES]), Err(SniffError::Unknown));
    }
}
