//! `/api/v1/media/import`: a file that is fetched from an address instead of being sent.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::{Object, OpenApi, types::ToJSON};
use url::Url;

use super::{import::Import, import_store};
use crate::{
    http::{Accepted, App, Caller, IdempotencyKey, Input, Problem, Scope, Tag, Turn},
    ids::{ImportId, JobId},
    outbound::fetch::Fetcher,
    publishing::Publisher,
};

#[derive(Debug, Clone, Copy, Default)]
pub struct ImportApi;

/// Where the file is.
#[derive(Object)]
#[oai(deny_unknown_fields, skip_serializing_if_is_none)]
struct ImportInput {
    /// An https address that anybody on the internet could open. It is kept encrypted until the job has ended.
    #[oai(validator(min_length = 1, max_length = 2048))]
    url: String,
    /// What to call the file; without it the last part of the address, where that looks like a name.
    #[oai(validator(min_length = 1, max_length = 255))]
    name: Option<String>,
}

/// Where to follow it. The job's result names the upload: `{"media": "med_..."}`.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
struct ImportAccepted {
    job_id: JobId,
}

#[OpenApi(prefix_path = "/api/v1/media", tag = "Tag::Media")]
impl ImportApi {
    /// Import a file
    ///
    /// Fetches it from an address of the internet and takes it in like an upload. Nothing is fetched from private
    /// networks, wherever the address leads; at most three redirects are followed.
    #[oai(path = "/import", method = "post", operation_id = "importMedia")]
    async fn import(
        &self,
        app: Data<&Arc<App>>,
        publisher: Data<&Publisher>,
        fetcher: Data<&Fetcher>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<ImportInput>,
    ) -> Result<Accepted<ImportAccepted>, Problem> {
        caller.require(Scope::Publish)?;
        let url = checked(&fetcher, &body.0.url)?;
        let mut tx = app.db.begin(&caller).await?;
        let claim = match key.claim(&mut tx, &caller, body.0.to_json()).await? {
            Turn::Replay(answer) => return Ok(answer),
            Turn::New(claim) => claim,
        };
        let keyring = publisher.accounts.keyring();
        let import = ImportId::new();
        let job = Import::new_job(import, caller.tenant);
        let ids = (import, job.id);
        import_store::insert(&mut tx, keyring, caller.tenant, ids, &url, body.0.name.as_deref()).await?;
        let tickets = app.engine.enqueue_in(&mut tx, std::slice::from_ref(&job)).await?;
        let answer = Accepted::new(format!("/api/v1/jobs/{}", job.id), ImportAccepted { job_id: job.id });
        let answer = claim.keep(&mut tx, answer).await?;
        tx.commit().await?;
        app.engine.ring(&tickets).await;
        Ok(answer)
    }
}

fn checked(fetcher: &Fetcher, text: &str) -> Result<Url, Problem> {
    const REMEDY: &str = "Send an https address of the internet, without a password and a port";
    let url = Url::parse(text).map_err(|_error| Problem::invalid_field("url", "is no address", REMEDY))?;
    fetcher.check(&url).map_err(|why| Problem::invalid_field("url", why.to_string(), REMEDY))?;
    Ok(url)
}
