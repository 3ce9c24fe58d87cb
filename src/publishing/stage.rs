//! `prepared` to `uploaded`: every file at the platform, step by step, each step kept before the next.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{
    Halt, Phase,
    files::{self, File},
    job::Run,
    prepare::media_halt,
    send, store,
};
use crate::{
    crypto::Place,
    jobs::Until,
    platforms::{Account, Call, Class, MediaFile, Step, UploadState},
};

/// A platform that processes a file for longer has lost it.
const PROCESSING_MOST: Duration = Duration::from_secs(15 * 60);

pub async fn stage(run: &mut Run<'_>) -> Result<(), Halt> {
    let files = files::of(run.cx.db(), run.publication.id).await?;
    let open: Vec<_> = files.iter().filter(|file| file.remote_id.is_none() || file.expired).collect();
    if !open.is_empty() {
        let mut account = send::account(run).await?;
        for (done, file) in open.iter().enumerate() {
            upload(run, &mut account, file, done, open.len()).await?;
        }
    }
    if store::advance(run.cx.db(), &run.publication, Phase::Uploaded, None).await? {
        run.cx.progress(0.6, "uploaded");
        return Ok(());
    }
    Err(Halt::Overtaken)
}

async fn upload(run: &mut Run<'_>, account: &mut Account, file: &File, done: usize, all: usize) -> Result<(), Halt> {
    let opened = run.publisher.media.open(run.publication.tenant, file.media, file.preset.as_deref()).await;
    let opened = opened.map_err(|trouble| media_halt(run, trouble))?;
    let media = MediaFile { facts: &opened.facts, alt_text: file.alt_text.as_deref(), bytes: opened.bytes.as_ref() };
    let mut state = if file.expired { None } else { kept_state(run, file) };
    let mut resumed = state.is_some();
    if !resumed {
        // A lifetime counts from the first step: what was begun before, and cannot be used, must not count.
        files::forget(run.cx.db(), run.publication.id, file.position).await?;
    }
    loop {
        run.cx.progress(0.1 + 0.5 * done as f64 / all as f64, "uploading");
        let call = Call { account, witness: &run.seen };
        match run.connector.upload(&call, &media, state.take()).await {
            Ok(Step::Next(next)) => {
                keep(run, file, &next, false).await?;
                state = Some(next);
            }
            Ok(Step::Wait { state, after }) => {
                if keep(run, file, &state, true).await? > PROCESSING_MOST {
                    files::forget(run.cx.db(), run.publication.id, file.position).await?;
                    let text = "The platform did not finish processing the media; it is uploaded once more.";
                    return Err(Halt::retry(None, run.waiting("processing_stuck", text)));
                }
                let problem = run.waiting("platform_processing", "The platform is processing the media.");
                return Err(Halt::snooze(Until::After(after), problem));
            }
            Ok(Step::Ready(staged)) => {
                let kept = files::keep_staged(
                    run.cx.db(),
                    &run.publication,
                    file.position,
                    &staged.remote_id,
                    staged.lifetime,
                );
                return if kept.await? { Ok(()) } else { Err(Halt::Overtaken) };
            }
            Err(error) if error.class() == Class::Refresh && !run.renewed => {
                *account = send::renew(run, account).await?;
                state = reread(run, file).await?;
            }
            // What an earlier run began may be what is refused: the platform has let go of it.
            Err(error) if resumed && matches!(error.class(), Class::Restage | Class::Permanent) => {
                resumed = false;
                files::forget(run.cx.db(), run.publication.id, file.position).await?;
            }
            Err(error) => {
                // A new upload is cheaper than one that may never work again.
                if matches!(error.class(), Class::Restage | Class::Permanent) {
                    files::forget(run.cx.db(), run.publication.id, file.position).await?;
                }
                return Err(send::halted(run, account, &error).await?);
            }
        }
    }
}

async fn reread(run: &Run<'_>, file: &File) -> Result<Option<UploadState>, Halt> {
    let files = files::of(run.cx.db(), run.publication.id).await?;
    Ok(files.iter().find(|kept| kept.position == file.position).and_then(|kept| kept_state(run, kept)))
}

/// How long the platform has been processing the file.
async fn keep(run: &Run<'_>, file: &File, state: &UploadState, processing: bool) -> Result<Duration, Halt> {
    let sealed = run.publisher.accounts.keyring().encrypt(place(run, file), &SecretString::from(state.0.to_string()));
    let progress = files::Progress { state: &sealed, lifetime: run.connector.upload_lifetime(state), processing };
    files::keep_state(run.cx.db(), &run.publication, file.position, &progress).await?.ok_or(Halt::Overtaken)
}

/// A state that cannot be read any more (a lost key) costs a new upload and nothing else.
fn kept_state(run: &Run<'_>, file: &File) -> Option<UploadState> {
    let opened = run.publisher.accounts.keyring().decrypt(place(run, file), file.state.as_deref()?);
    match opened {
        Ok(text) => serde_json::from_str(text.expose_secret()).ok().map(UploadState),
        Err(error) => {
            tracing::warn!(publication = %run.publication.id, %error, "a half-done upload starts again");
            None
        }
    }
}

fn place(run: &Run<'_>, file: &File) -> Place {
    const COLUMNS: [&str; 4] = ["upload_state", "upload_state_1", "upload_state_2", "upload_state_3"];
    let column = usize::try_from(file.position).ok().and_then(|at| COLUMNS.get(at)).unwrap_or(&"upload_state_more");
    Place::new("publication_media", column, run.publication.id.uuid())
}
