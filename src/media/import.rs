//! The job that fetches a file from an address its user gave, and takes it in like any upload.
//!
//! It runs beside the transcodes and not among them, because a slow server would keep them waiting, and in a lane of its
//! own, where it keeps nothing else waiting; one of a tenant after another, so that nobody takes every slot. It may run
//! twice: its row says what it has made.

use std::time::Duration;

use reqwest::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    import_store::{self, ImportRow},
    intake::{self, IntakeError},
    service::MediaService,
    upload::{self, UploadError},
};
use crate::{
    connections::Accounts,
    ids::{ImportId, MediaId, TenantId},
    jobs::{Backoff, Job, JobContext, Lane, NewJob, Queue, Stop},
    outbound::{
        fetch::{FetchError, Fetcher},
        pace::TooSlow,
    },
    plans::{self, Each, PlanError},
    publishing::job::enqueue_stop,
    telemetry::chain,
};

/// How long one import waits for an earlier one that has to be tried again.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub import: ImportId,
}

/// What a finished import leaves in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    pub media: MediaId,
}

impl Import {
    pub fn new_job(import: ImportId, tenant: TenantId) -> NewJob {
        // A serial order is nobody's by itself: it has to name its tenant.
        NewJob::of(&Self { import }, tenant).serial(format!("import:{tenant}")).serial_patience(PATIENCE)
    }
}

impl Job for Import {
    const KIND: &'static str = "media_import";
    const QUEUE: Queue = Queue::Ops;
    const LANE: Lane = Lane::Imports;
    const MAX_ATTEMPTS: u16 = 4;
    /// Also the longest that a server may take to send a file, at the least pace ([`crate::outbound::pace::Pace::LEAST`]) or above.
    const TIMEOUT: Duration = Duration::from_secs(30 * 60);
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(5), cap: Duration::from_secs(120) };

    type Output = Imported;

    async fn run(&self, cx: &JobContext) -> Result<Imported, Stop> {
        let Some(row) = import_store::get(cx.db(), cx.tenant, self.import).await? else {
            return Err(Stop::failed("import_gone", "what was to be fetched is not known any more"));
        };
        if let Some(media) = row.media_id {
            return Ok(Imported { media });
        }
        let outcome = self.fetch(cx, &row).await;
        let is_last = cx.attempt >= cx.max_attempts;
        let ends = matches!(outcome, Err(Stop::Failed { .. })) || is_last && matches!(outcome, Err(Stop::Retry { .. }));
        if ends {
            import_store::finish(cx.db(), cx.tenant, self.import, None).await?;
        }
        outcome
    }
}

impl Import {
    async fn fetch(&self, cx: &JobContext, row: &ImportRow) -> Result<Imported, Stop> {
        let (service, fetcher) = (cx.service::<MediaService>(), cx.service::<Fetcher>());
        let url = row.url(cx.service::<Accounts>().keyring(), self.import);
        let url = match url {
            Ok(Some(url)) => url,
            Ok(None) => return Err(Stop::failed("import_over", "it was tried before and came to nothing")),
            Err(error) => {
                return Err(Stop::snooze(Duration::from_secs(600), "address_unreadable", chain(&error)));
            }
        };
        cx.progress(0.05, "asking");
        let fetched = fetcher.open(&url).await.map_err(|error| self.refused(cx, &error))?;
        let bound = plans::bound(&mut *cx.db().acquire().await?, cx.tenant, Each::UploadBytes).await?;
        let most = bound.as_ref().map_or(u64::MAX, |bound| bound.most.unsigned_abs());
        let too_large = |limit_bytes| match &bound {
            Some(bound) if limit_bytes == most => beyond(bound),
            _ => too_large(limit_bytes),
        };
        let limit_bytes = service.max_upload_bytes().min(most);
        if fetched.size_bytes().is_some_and(|size| size > limit_bytes) {
            return Err(too_large(limit_bytes));
        }
        let name = row.name.clone().or_else(|| fetched.name());
        cx.progress(0.1, "fetching");
        let received = service.receive(cx.tenant, fetched.into_reader(), most).await;
        let (arrived, probe) = received.map_err(|error| match error {
            UploadError::TooLarge { limit_bytes } => too_large(limit_bytes),
            error => not_received(error),
        })?;
        let name = upload::clean_name(name.as_deref(), arrived.kind);
        let kept = async {
            let mut tx = cx.db().begin().await?;
            if !import_store::lock(&mut tx, cx.tenant, self.import).await? {
                return Err(Stop::snooze(Duration::from_secs(1), "made_elsewhere", "another run has ended it"));
            }
            let taken = intake::take(&cx.engine, &mut tx, cx.tenant, &arrived, &probe, &name).await;
            let taken = taken.map_err(not_taken)?;
            import_store::finish(&mut *tx, cx.tenant, self.import, Some(taken.row.id)).await?;
            tx.commit().await?;
            Ok(taken)
        }
        .await;
        if !kept.as_ref().is_ok_and(|taken| taken.uses_arrived) {
            upload::discard(&service, cx.tenant, arrived.object, &arrived.storage_key).await;
        }
        let taken = kept?;
        cx.engine.ring(&taken.tickets).await;
        Ok(Imported { media: taken.row.id })
    }

    fn refused(&self, cx: &JobContext, error: &FetchError) -> Stop {
        match error {
            FetchError::Forbidden(why) => {
                // Somebody may be trying doors: what kind of door is for the log alone.
                tracing::warn!(tenant = %cx.tenant, import = %self.import, %why, "an address was not fetched: security");
                Stop::failed("address_forbidden", "the address leads where nothing is fetched from")
            }
            FetchError::TooManyRedirects | FetchError::BadRedirect => {
                Stop::failed("address_leads_on", error.to_string())
            }
            FetchError::Status(status) if is_passing(*status) => Stop::retry("server_busy", error.to_string()),
            FetchError::Status(_) => Stop::failed("not_there", error.to_string()),
            FetchError::Unreachable(cause) => {
                tracing::debug!(import = %self.import, error = chain(cause), "an address could not be reached");
                Stop::retry("unreachable", error.to_string())
            }
        }
    }
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

fn too_large(limit_bytes: u64) -> Stop {
    Stop::failed("too_large", format!("the file has more than {limit_bytes} bytes"))
}

fn beyond(bound: &plans::Refused) -> Stop {
    Stop::failed("plan_limit", bound.to_string())
}

fn not_taken(error: IntakeError) -> Stop {
    match error {
        IntakeError::Plan(PlanError::Refused(refused)) => beyond(&refused),
        IntakeError::Plan(PlanError::Database(error)) | IntakeError::Database(error) => error.into(),
        IntakeError::Enqueue(error) => enqueue_stop(error),
    }
}

/// As an upload would be told, in the words of a job.
fn not_received(error: UploadError) -> Stop {
    match error {
        UploadError::Kind(error) => Stop::failed("unsupported_media_type", error.to_string()),
        UploadError::TooLarge { limit_bytes } => too_large(limit_bytes),
        error @ (UploadError::Unreadable(..) | UploadError::NoPicture) => Stop::failed("unusable", chain(&error)),
        UploadError::CutOff(cause) if TooSlow::is_cause_of(&cause) => Stop::retry("too_slow", cause.to_string()),
        UploadError::TooSlow => Stop::retry("too_slow", error.to_string()),
        UploadError::CutOff(_) => Stop::retry("cut_off", error.to_string()),
        UploadError::Busy => Stop::snooze(Duration::from_secs(10), "busy", error.to_string()),
        UploadError::Database(error) => error.into(),
        error @ (UploadError::Probe(_) | UploadError::Storage(_)) => Stop::retry("intake_failed", chain(&error)),
    }
}
