//! The job that writes a copy of somebody's data: a file of JSON lines, `{"table": "...", "row": {...}}`.
//!
//! It reads one moment of the database, however long it takes, and holds no more in memory than a page. Pictures and
//! films are named in it and not in it: `GET /api/v1/media/{id}/content` has their bytes.

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::io::{AsyncWriteExt, BufWriter};

use super::{
    exports::{self, ExportRow, Written},
    tables::{EXPORTED, EXPORTED_OF_JOBS, EXPORTED_OF_PERSONS, Exported as Table, PEOPLE},
};
use crate::{
    ids::{ExportId, TenantId, UserId},
    jobs::{Backoff, Job, JobContext, NewJob, Queue, Stop},
    media::MediaService,
    telemetry::chain,
};

const PAGE: i64 = 200;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub export: ExportId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    pub rows: u64,
    pub size_bytes: u64,
}

impl Export {
    /// One at a time for each who asks.
    pub fn new_job(export: ExportId, tenant: TenantId, user: UserId, kind: &str) -> NewJob {
        NewJob::of(&Self { export }, tenant).unique(format!("{kind}:{user}"))
    }
}

impl Job for Export {
    const KIND: &'static str = "export";
    const QUEUE: Queue = Queue::Ops;
    const MAX_ATTEMPTS: u16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(30 * 60);
    const BACKOFF: Backoff = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(5 * 60) };
    const IS_BULK: bool = true;

    type Output = Exported;

    async fn run(&self, cx: &JobContext) -> Result<Exported, Stop> {
        let Some(row) = exports::begin(cx.db(), cx.tenant, self.export, cx.run).await? else {
            return Err(Stop::failed("export_gone", "the export is not wanted any more"));
        };
        // A run that died before its end was known has given it out, and nothing is read for it any more.
        if let Some(written) = row.written() {
            return Ok(written.into());
        }
        let service = cx.service::<MediaService>();
        let folder = service.scratch().run_folder().map_err(unwritten)?;
        let path = folder.path().join("export.jsonl");
        let rows = write(cx, &row, &path).await?;
        let file = exports::file_of(&row.storage_key, cx.run);
        let stored = service.storage().store_file(&file, &path).await;
        let (size_bytes, _) = stored.map_err(|error| Stop::retry("storage_failed", chain(&error)))?;
        if exports::ready(cx.db(), row.id, cx.run, rows, size_bytes).await? {
            return Ok(Exported { rows, size_bytes });
        }
        let removed = service.storage().remove(&file).await;
        removed.map_err(|error| Stop::retry("storage_failed", chain(&error)))?;
        match exports::begin(cx.db(), cx.tenant, self.export, cx.run).await?.and_then(|row| row.written()) {
            Some(written) => Ok(written.into()),
            None => Err(Stop::failed("export_gone", "what was to be exported was erased meanwhile")),
        }
    }
}

impl From<Written> for Exported {
    fn from(Written { rows, size_bytes, .. }: Written) -> Self {
        Self { rows, size_bytes }
    }
}

async fn write(cx: &JobContext, export: &ExportRow, path: &Path) -> Result<u64, Stop> {
    let file = tokio::fs::File::create_new(path).await.map_err(unwritten)?;
    let mut out = Lines { file: BufWriter::new(file), rows: 0 };
    let mut tx = cx.db().begin().await?;
    sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *tx).await?;
    for table in OF_PEOPLE {
        let statement = format!("select app.export_people($1, '{table}')");
        out.table(&mut tx, table, statement, export.id.uuid()).await?;
    }
    if export.kind == "user" {
        for (name, column, exported) in EXPORTED_OF_PERSONS {
            let statement = format!("{} t where t.{column} = $1", columns_of(&exported));
            out.table(&mut tx, name, statement, export.user_id.uuid()).await?;
        }
    }
    for tenant in exports::tenants(&mut *tx, export.id).await? {
        for exported in EXPORTED.iter().filter(|exported| !PEOPLE.contains(&exported.table)) {
            let statement = format!("{} t where t.tenant_id = $1", columns_of(exported));
            out.table(&mut tx, exported.table, statement, tenant.uuid()).await?;
        }
        for exported in EXPORTED_OF_JOBS {
            let statement =
                format!("{} t join jobs j on j.id = t.job_id where j.tenant_id = $1", columns_of(&exported));
            out.table(&mut tx, exported.table, statement, tenant.uuid()).await?;
        }
    }
    tx.rollback().await?;
    out.file.flush().await.map_err(unwritten)?;
    out.file.get_ref().sync_all().await.map_err(unwritten)?;
    Ok(out.rows)
}

fn columns_of(exported: &Table) -> String {
    format!("select to_jsonb(t) - '{{{}}}'::text[] from {}", exported.without.join(","), exported.table)
}

/// What is closed to workers, by the function that gives it for an export that somebody asked for: what is a person's
/// and no workspace's, and who and what opens the workspaces.
const OF_PEOPLE: [&str; 6] = ["users", "memberships", "own_api_keys", "workspaces", "workspace_members", "api_keys"];

struct Lines {
    file: BufWriter<tokio::fs::File>,
    rows: u64,
}

impl Lines {
    /// Every row that the statement gives, a page at a time.
    async fn table(
        &mut self,
        tx: &mut PgConnection,
        table: &str,
        statement: String,
        of: uuid::Uuid,
    ) -> Result<(), Stop> {
        let declare = format!("declare rows no scroll cursor for {statement}");
        sqlx::query(AssertSqlSafe(declare)).bind(of).execute(&mut *tx).await?;
        loop {
            let page: Vec<Value> =
                sqlx::query_scalar(AssertSqlSafe(format!("fetch {PAGE} from rows"))).fetch_all(&mut *tx).await?;
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            for row in page {
                let line = format!("{}\n", json!({ "table": table, "row": row }));
                self.file.write_all(line.as_bytes()).await.map_err(unwritten)?;
                self.rows += 1;
            }
            if is_last {
                break;
            }
        }
        sqlx::query("close rows").execute(tx).await?;
        Ok(())
    }
}

fn unwritten(error: std::io::Error) -> Stop {
    Stop::retry("not_written", chain(&error))
}
