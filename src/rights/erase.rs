//! The job that erases a workspace, or what is left of a user elsewhere.
//!
//! It may be killed anywhere and run again: what is done is gone, and what is left to do stands in the tables. First
//! what runs comes to its end, then the platforms get their tokens back, then the bytes go, then the rows, in bounded
//! batches; and all of it once more a minute later, for what a request under way may still have written.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{AssertSqlSafe, FromRow};
use uuid::Uuid;

use super::{
    erasures::{self, Erasure, Subject},
    exports,
    tables::{ERASED, PEOPLE},
};
use crate::{
    connections::{Accounts, GivenBack, store},
    ids::{ConnectionId, ErasureId, TenantId},
    jobs::{Job, JobContext, NewJob, Queue, Stop, ledger},
    media::MediaService,
    telemetry::chain,
};

const BATCH: i64 = 1000;
const OBJECTS: i64 = 100;
/// What is being sent to a platform is waited for: how long at most.
const RUNNING_PATIENCE: chrono::TimeDelta = chrono::TimeDelta::minutes(10);
/// How long a platform in trouble is asked to take its tokens back.
const REVOKE_PATIENCE: chrono::TimeDelta = chrono::TimeDelta::hours(24);
/// Longer than a credential is believed without being looked up, and than an answer may take to begin. What takes longer
/// still (an upload) is found by [`super::RightsUpkeep`].
const SECOND_LOOK: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erase {
    pub erasure: ErasureId,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    pub rows: u64,
    pub objects: u64,
}

impl Erase {
    /// The product's own work: a job of the workspace would erase itself.
    pub fn new_job(erasure: ErasureId) -> NewJob {
        NewJob::of(&Self { erasure }, TenantId::SYSTEM).unique(erasure.to_string())
    }
}

impl Job for Erase {
    const KIND: &'static str = "erase";
    const QUEUE: Queue = Queue::Ops;
    /// It does not give up; if it is made to, [`super::RightsUpkeep`] begins another.
    const MAX_ATTEMPTS: u16 = 1000;
    const TIMEOUT: Duration = Duration::from_secs(30 * 60);
    const IS_BULK: bool = true;

    type Output = Erased;

    async fn run(&self, cx: &JobContext) -> Result<Erased, Stop> {
        let mut erased: Erased =
            cx.checkpoint().and_then(|kept| serde_json::from_value(kept.clone()).ok()).unwrap_or_default();
        let Some(erasure) = erasures::open(cx.db(), self.erasure).await? else { return Ok(erased) };
        let pass = match erasure.subject {
            Subject::User(user) => {
                let service = cx.service::<MediaService>();
                let gone = exports::remove(cx.db(), service.storage(), exports::Of::User(user)).await;
                Erased { objects: gone.map_err(storage)?, rows: 0 }
            }
            Subject::Workspace(tenant) => self.workspace(cx, &erasure, tenant).await?,
        };
        let is_first = cx.checkpoint().is_none();
        erased.rows += pass.rows;
        erased.objects += pass.objects;
        cx.save_checkpoint(json!(erased)).await?;
        if is_first || pass != Erased::default() {
            return Err(Stop::snooze(SECOND_LOOK, "second_look", "what was still under way is looked for"));
        }
        erasures::finish(cx.db(), self.erasure).await?;
        Ok(erased)
    }
}

impl Erase {
    async fn workspace(&self, cx: &JobContext, erasure: &Erasure, tenant: TenantId) -> Result<Erased, Stop> {
        // First what waits: it is not freed then by the end of what it waits for.
        let mut after = None;
        loop {
            after = ledger::cancel_waiting_of_tenant(cx.db(), tenant, after, BATCH).await?;
            if after.is_none() {
                break;
            }
        }
        while ledger::cancel_of_tenant(cx.db(), tenant, BATCH).await? > 0 {}
        let waits = erasure.now < erasure.requested_at + RUNNING_PATIENCE;
        if waits && ledger::is_at_work_for(cx.db(), tenant).await? {
            return Err(Stop::snooze(Duration::from_secs(2), "under_way", "what is under way comes to its end first"));
        }
        self.give_tokens_back(cx, erasure, tenant).await?;
        let service = cx.service::<MediaService>();
        let exported = exports::remove(cx.db(), service.storage(), exports::Of::Workspace(tenant)).await;
        let mut erased = Erased { rows: 0, objects: exported.map_err(storage)? };
        erased.objects += remove_bytes(cx, &service, tenant).await?;
        // Rows without a tenant of their own.
        for statement in [
            "delete from media_references where ctid = any(array(select r.ctid from media_references r \
               join media m on m.id = r.media_id where m.tenant_id = $1 limit $2))",
            "delete from job_edges where ctid = any(array(select e.ctid from job_edges e \
               join jobs j on j.id = e.parent_id where j.tenant_id = $1 limit $2))",
        ] {
            erased.rows += empty(cx, statement.to_owned(), tenant).await?;
        }
        for table in ERASED.iter().filter(|table| !PEOPLE.contains(table)) {
            let statement = format!(
                "delete from {table} where ctid = any(array(select ctid from {table} where tenant_id = $1 limit $2))"
            );
            erased.rows += empty(cx, statement, tenant).await?;
        }
        let budget = sqlx::query("delete from ai_budgets where subject = $1").bind(format!("tenant:{}", tenant.uuid()));
        erased.rows += budget.execute(cx.db()).await?.rows_affected();
        erased.rows += erasures::erase_workspace(cx.db(), self.erasure).await?;
        Ok(erased)
    }

    /// One after another, each forgotten here as soon as the platform has it back.
    async fn give_tokens_back(&self, cx: &JobContext, erasure: &Erasure, tenant: TenantId) -> Result<(), Stop> {
        let accounts = cx.service::<Accounts>();
        let held: Vec<ConnectionId> = sqlx::query_scalar(
            "select id from connections where tenant_id = $1 and access_token is not null order by id",
        )
        .bind(tenant)
        .fetch_all(cx.db())
        .await?;
        let mut in_trouble = false;
        for connection in held {
            let is_last = erasure.now > erasure.requested_at + REVOKE_PATIENCE;
            let Some(row) = store::sealed(cx.db(), connection).await? else { continue };
            match accounts.give_back(cx.db(), &row).await? {
                GivenBack::Done => {}
                GivenBack::Later if !is_last => {
                    in_trouble = true;
                    continue;
                }
                GivenBack::Later | GivenBack::Never => erasures::note_not_revoked(cx.db(), self.erasure).await?,
            }
            // A pair that was traded for this one meanwhile has to go back as well.
            in_trouble |= !store::forget_tokens(cx.db(), connection, row.generation).await?;
        }
        if in_trouble {
            let text = "a platform does not take its tokens back yet";
            return Err(Stop::snooze(Duration::from_secs(60), "platform_in_trouble", text));
        }
        Ok(())
    }
}

#[derive(FromRow)]
struct Stored {
    id: Uuid,
    storage_key: String,
}

/// The bytes first and the row after them: a row without bytes is found again, bytes without a row never.
async fn remove_bytes(cx: &JobContext, service: &MediaService, tenant: TenantId) -> Result<u64, Stop> {
    let mut removed = 0;
    let mut after = Uuid::nil();
    loop {
        let batch: Vec<Stored> = sqlx::query_as(
            "select id, storage_key from media_objects where tenant_id = $1 and id > $2 order by id limit $3",
        )
        .bind(tenant)
        .bind(after)
        .bind(OBJECTS)
        .fetch_all(cx.db())
        .await?;
        let Some(last) = batch.last() else { return Ok(removed) };
        after = last.id;
        for object in &batch {
            service.storage().remove(&object.storage_key).await.map_err(|error| storage(error.into()))?;
            removed += 1;
        }
    }
}

async fn empty(cx: &JobContext, statement: String, tenant: TenantId) -> Result<u64, Stop> {
    let mut gone = 0;
    loop {
        let step = sqlx::query(AssertSqlSafe(statement.clone())).bind(tenant).bind(BATCH).execute(cx.db()).await?;
        gone += step.rows_affected();
        if step.rows_affected() < BATCH.unsigned_abs() {
            return Ok(gone);
        }
    }
}

fn storage(error: exports::ExportError) -> Stop {
    match error {
        exports::ExportError::Database(error) => error.into(),
        exports::ExportError::Storage(error) => Stop::retry("storage_failed", chain(&error)),
    }
}
