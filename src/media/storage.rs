//! Where bytes are kept: a folder by default. Everything goes through the object-store interface, so that a bucket
//! can take the folder's place; only here is it known which of the two it is.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{
    GetOptions, ObjectStore, ObjectStoreExt, WriteMultipart, local::LocalFileSystem, path::Path as Key,
};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

/// Longest one step (opening, one part, finishing) may take.
const STEP_TIME: Duration = Duration::from_secs(60);
/// What is held in memory for each part on its way; a bucket takes no smaller parts than this.
const PART_BYTES: usize = 5 << 20;
const PARTS_AT_ONCE: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the storage folder {0} cannot be used")]
    Folder(PathBuf, #[source] std::io::Error),
    #[error("the storage did not answer within {} s", STEP_TIME.as_secs())]
    Slow,
    #[error("the storage failed")]
    Store(#[from] object_store::Error),
    #[error("a working copy could not be written")]
    Copy(#[source] std::io::Error),
}

impl StorageError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(object_store::Error::NotFound { .. }))
    }
}

/// Whether a folder lies on the disk that the system itself runs from. Nobody else sees what is in it: not another
/// machine, and of a container without a volume not even the next one.
pub fn is_on_own_disk(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    matches!((device(folder), device(Path::new("/"))), (Ok(folder), Ok(root)) if folder == root)
}

#[derive(Debug, Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    /// Set when it is a folder: then a file can be read where it lies.
    folder: Option<Arc<LocalFileSystem>>,
}

/// Bytes on their way out.
pub struct Download {
    pub bytes: BoxStream<'static, std::io::Result<Bytes>>,
    /// Of the whole object.
    pub size_bytes: u64,
    /// What of it is sent.
    pub range: Range<u64>,
}

impl Storage {
    pub fn folder(path: &Path) -> Result<Self, StorageError> {
        std::fs::create_dir_all(path).map_err(|error| StorageError::Folder(path.to_owned(), error))?;
        let folder = LocalFileSystem::new_with_prefix(path)?.with_automatic_cleanup(true).with_fsync(true);
        let folder = Arc::new(folder);
        let store: Arc<dyn ObjectStore> = Arc::clone(&folder) as _;
        Ok(Self { store, folder: Some(folder) })
    }

    /// Opens an object to be written; it appears when it is finished, whole, or never.
    pub async fn create(&self, key: &str) -> Result<Upload, StorageError> {
        let upload = in_time(self.store.put_multipart(&Key::from(key))).await?;
        Ok(Upload(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)))
    }

    /// Copies a file into an object, streaming; returns its size and its hash.
    pub async fn store_file(&self, key: &str, path: &Path) -> Result<(u64, [u8; 32]), StorageError> {
        let mut upload = self.create(key).await?;
        let mut size_bytes = 0;
        let mut hash = Sha256::new();
        let mut file = tokio::fs::File::open(path).await.map_err(StorageError::Copy)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = tokio::io::AsyncReadExt::read(&mut file, &mut buffer).await;
            match read {
                Ok(0) => break,
                Ok(read) => {
                    size_bytes += read as u64;
                    hash.update(&buffer[..read]);
                    upload.write(Bytes::copy_from_slice(&buffer[..read])).await?;
                }
                Err(error) => {
                    upload.abort().await;
                    return Err(StorageError::Copy(error));
                }
            }
        }
        upload.finish().await?;
        Ok((size_bytes, hash.finalize().into()))
    }

    /// Opens an object, or a part of it; the part is cut to what there is.
    pub async fn open(&self, key: &str, range: Option<Range<u64>>) -> Result<Download, StorageError> {
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        let found = in_time(self.store.get_opts(&Key::from(key), options)).await?;
        let (size_bytes, range) = (found.meta.size, found.range.clone());
        let bytes = found.into_stream().map_err(std::io::Error::other);
        // A part that never comes must not hold its reader for ever.
        let bytes = futures::stream::unfold(Some(bytes), |bytes| async {
            let mut bytes = bytes?;
            match tokio::time::timeout(STEP_TIME, bytes.next()).await {
                Ok(chunk) => chunk.map(|chunk| (chunk, Some(bytes))),
                Err(_elapsed) => Some((Err(std::io::Error::other(StorageError::Slow)), None)),
            }
        });
        Ok(Download { bytes: bytes.boxed(), size_bytes, range })
    }

    /// Removes an object; one that is not there is removed already.
    pub async fn remove(&self, key: &str) -> Result<(), StorageError> {
        if let Some(folder) = &self.folder {
            // What a crash in the middle of writing leaves beside it.
            let mut unfinished = folder.path_to_filesystem(&Key::from(key))?.into_os_string();
            unfinished.push("#1");
            match tokio::fs::remove_file(unfinished).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(StorageError::Copy(error)),
                _ => {}
            }
        }
        match in_time(self.store.delete(&Key::from(key))).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// A path under which ffmpeg can read an object: where it lies, or a copy in `scratch`.
    pub async fn on_disk(&self, key: &str, scratch: &Path) -> Result<PathBuf, StorageError> {
        if let Some(folder) = &self.folder {
            return Ok(folder.path_to_filesystem(&Key::from(key))?);
        }
        let path = scratch.join("source");
        let mut file = tokio::fs::File::create_new(&path).await.map_err(StorageError::Copy)?;
        let mut download = self.open(key, None).await?;
        while let Some(chunk) = download.bytes.next().await {
            file.write_all(&chunk.map_err(StorageError::Copy)?).await.map_err(StorageError::Copy)?;
        }
        file.flush().await.map_err(StorageError::Copy)?;
        Ok(path)
    }

    /// Whether an object can be begun at this moment; leaves nothing.
    pub async fn try_out(&self) -> Result<(), StorageError> {
        let key = Key::from(format!("health/{}", uuid::Uuid::now_v7().simple()));
        let mut upload = in_time(self.store.put_multipart(&key)).await?;
        in_time(upload.abort()).await
    }

    /// Whether [`Self::on_disk`] takes room in the scratch folder.
    pub fn needs_copies(&self) -> bool {
        self.folder.is_none()
    }
}

/// An object being written. Dropped unfinished, it never appears.
pub struct Upload(WriteMultipart);

impl Upload {
    /// Takes bytes once there is room for them: memory does not grow with the file.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        in_time(self.0.wait_for_capacity(PARTS_AT_ONCE)).await?;
        self.0.put(bytes);
        Ok(())
    }

    pub async fn finish(self) -> Result<(), StorageError> {
        in_time(self.0.finish()).await?;
        Ok(())
    }

    pub async fn abort(self) {
        if let Err(error) = in_time(self.0.abort()).await {
            // Its row says "arriving" and upkeep removes what is left.
            tracing::warn!(error = %crate::telemetry::chain(&error), "an unfinished upload could not be removed");
        }
    }
}

async fn in_time<T>(step: impl Future<Output = object_store::Result<T>>) -> Result<T, StorageError> {
    Ok(tokio::time::timeout(STEP_TIME, step).await.map_err(|_elapsed| StorageError::Slow)??)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(download: Download) -> Vec<u8> {
        let chunks: Vec<Bytes> = download.bytes.try_collect().await.unwrap();
        chunks.concat()
    }

    fn storage() -> (tempfile::TempDir, Storage) {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::folder(&folder.path().join("media")).unwrap();
        (folder, storage)
    }

    #[tokio::test]
    async fn an_object_appears_whole_and_can_be_read_in_parts() {
        let (_folder, storage) = storage();
        let mut upload = storage.create("t/a").await.unwrap();
        upload.write(Bytes::from(vec![7; PART_BYTES + 3])).await.unwrap();
        assert!(storage.open("t/a", None).await.is_err_and(|error| error.is_not_found()));
        upload.finish().await.unwrap();
        let whole = storage.open("t/a", None).await.unwrap();
        assert_eq!((whole.size_bytes, read(whole).await.len()), (PART_BYTES as u64 + 3, PART_BYTES + 3));
        let part = storage.open("t/a", Some(PART_BYTES as u64..PART_BYTES as u64 + 100)).await.unwrap();
        assert_eq!(part.range.end, PART_BYTES as u64 + 3);
        assert_eq!(read(part).await.len(), 3);
    }

    #[tokio::test]
    async fn what_is_not_finished_leaves_nothing() {
        let (folder, storage) = storage();
        let mut upload = storage.create("t/b").await.unwrap();
        upload.write(Bytes::from(vec![7; 2 * PART_BYTES])).await.unwrap();
        upload.abort().await;
        storage.remove("t/b").await.unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path().join("media"))
            .unwrap()
            .flatten()
            .flat_map(|entry| std::fs::read_dir(entry.path()).into_iter().flatten())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn trying_out_leaves_nothing_and_tells_when_nothing_can_be_written() {
        let (folder, storage) = storage();
        storage.try_out().await.unwrap();
        let media = folder.path().join("media");
        assert!(!std::fs::read_dir(media.join("health")).unwrap().any(|_| true));
        std::fs::remove_dir_all(&media).unwrap();
        std::fs::write(&media, "a file in the folder's place").unwrap();
        assert!(storage.try_out().await.is_err());
    }

    #[test]
    fn a_folder_on_another_mount_is_not_on_the_own_disk() {
        assert!(is_on_own_disk(Path::new("/")));
        assert!(!is_on_own_disk(Path::new("/proc")));
        assert!(!is_on_own_disk(Path::new("/nowhere/at/all")));
    }

    #[tokio::test]
    async fn removing_twice_is_no_error() {
        let (_folder, storage) = storage();
        storage.create("t/c").await.unwrap().finish().await.unwrap();
        storage.remove("t/c").await.unwrap();
        storage.remove("t/c").await.unwrap();
    }
}
