//! Everything one sandbox holds, and keeping it over a restart.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    faults::Faults,
    firebase::Firebase,
    gate::Twin,
    llm::{Llm, Provider},
    log::Log,
    patreon::Patreon,
    wire::Connections,
    x::{X, store::World},
};

pub struct Sandbox {
    pub log: Log,
    pub faults: Faults,
    pub connections: Connections,
    pub x: Arc<X>,
    pub llms: Vec<Arc<Llm>>,
    pub firebase: Arc<Firebase>,
    pub patreon: Arc<Patreon>,
    /// Every twin by its service name; adding a service is one line in [`Sandbox::new`].
    pub twins: Vec<Arc<dyn Twin>>,
    pub started: Instant,
}

impl Sandbox {
    pub fn new(connections: Connections) -> Self {
        let x = Arc::new(X::default());
        let llms: Vec<Arc<Llm>> = Provider::ALL.into_iter().map(|provider| Arc::new(Llm::new(provider))).collect();
        let mut twins: Vec<Arc<dyn Twin>> = vec![Arc::clone(&x) as Arc<dyn Twin>];
        twins.extend(llms.iter().map(|llm| Arc::clone(llm) as Arc<dyn Twin>));
        let firebase = Arc::new(Firebase::default());
        twins.push(Arc::clone(&firebase) as Arc<dyn Twin>);
        let patreon = Arc::new(Patreon::default());
        twins.push(Arc::clone(&patreon) as Arc<dyn Twin>);
        let (log, faults) = (Log::default(), Faults::default());
        Self { log, faults, connections, x, llms, firebase, patreon, twins, started: Instant::now() }
    }

    /// As if it had just been started; the numbers of the log go on.
    pub fn reset(&self) {
        crate::x::control::reset(&self.x);
        self.llms.iter().for_each(|llm| llm.reset());
        self.firebase.reset();
        self.patreon.reset();
        self.faults.clear();
        self.log.clear();
    }
}

/// The pause between two snapshots; longer when a snapshot takes long, so that writing never dominates.
const PAUSE: Duration = Duration::from_millis(100);

/// A JSON file with the state of the twin of X, and a folder beside it with the bytes of its media.
pub struct Snapshot {
    file: PathBuf,
    folder: PathBuf,
    written: HashSet<u64>,
    revision: u64,
}

impl Snapshot {
    pub fn at(file: &Path) -> Self {
        let mut folder = file.as_os_str().to_owned();
        folder.push(".media");
        Self { file: file.to_path_buf(), folder: PathBuf::from(folder), written: HashSet::new(), revision: 0 }
    }

    /// Brings back what an earlier sandbox left; nothing when there is no file.
    pub fn load(&mut self, x: &X) -> io::Result<()> {
        let text = match fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut world: World = serde_json::from_slice(&text).map_err(io::Error::other)?;
        world.index();
        let ids: Vec<u64> = world.media.keys().copied().collect();
        for id in ids {
            if let Ok(bytes) = fs::read(self.folder.join(id.to_string())) {
                world.keep_bytes(id, Bytes::from(bytes));
                self.written.insert(id);
            }
        }
        *x.world() = world;
        Ok(())
    }

    /// Writes the state when it has changed since the last time.
    pub fn save(&mut self, x: &X) -> io::Result<()> {
        let (text, kept) = {
            let world = x.world();
            if world.revision == self.revision {
                return Ok(());
            }
            self.revision = world.revision;
            let text = serde_json::to_vec(&*world).map_err(io::Error::other)?;
            let bytes = |id: &u64| world.media.get(id).and_then(|media| media.bytes.clone()).map(|bytes| (*id, bytes));
            (text, world.kept.iter().filter_map(bytes).collect::<Vec<(u64, Bytes)>>())
        };
        fs::create_dir_all(&self.folder)?;
        for (id, bytes) in &kept {
            if self.written.insert(*id) {
                fs::write(self.folder.join(id.to_string()), bytes)?;
            }
        }
        let keep: HashSet<u64> = kept.iter().map(|(id, _)| *id).collect();
        for gone in self.written.extract_if(|id| !keep.contains(id)) {
            match fs::remove_file(self.folder.join(gone.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        // A reader never sees half a file, also when this process is killed now.
        let fresh = self.file.with_extension("tmp");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &self.file)
    }

    /// Keeps the file up to date until the task is ended; at most about a tenth of a second is lost to a kill.
    pub async fn follow(mut self, x: Arc<X>, mut stop: tokio::sync::watch::Receiver<bool>) -> io::Result<()> {
        let mut pause = PAUSE;
        loop {
            let stopped = tokio::time::timeout(pause, stop.wait_for(|stopped| *stopped)).await.is_ok();
            let x = Arc::clone(&x);
            let begun = Instant::now();
            let (same, result) = tokio::task::spawn_blocking(move || {
                let result = self.save(&x);
                (self, result)
            })
            .await
            .map_err(io::Error::other)?;
            result?;
            if stopped {
                return Ok(());
            }
            self = same;
            pause = PAUSE.max(begun.elapsed() * 5);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::x::control;

    #[test]
    fn accounts_survive_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state.json");
        let x = X::default();
        let account = control::create_account(&x, &json!({"username": "ada"})).expect("made");
        Snapshot::at(&file).save(&x).expect("written");

        let again = X::default();
        Snapshot::at(&file).load(&again).expect("read");
        assert_eq!(control::list_accounts(&again)[0]["id"], account["id"]);
        let token = account["access_token"].as_str().expect("a token");
        assert!(again.world().access_tokens.contains_key(token));
    }

    #[test]
    fn a_broken_file_is_an_error_and_a_missing_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state.json");
        Snapshot::at(&file).load(&X::default()).expect("nothing to read");
        fs::write(&file, "{\"accounts\": 3}").expect("written");
        assert!(Snapshot::at(&file).load(&X::default()).is_err());
    }
}
