//! Fills the ledger: jobs that wait for a worker, jobs that were done long ago.

use sqlx::PgPool;

use super::stage::Ground;
use crate::{
    cli::{Failure, working::progress},
    ids::{JobId, TenantId},
    jobs::{
        NewJob,
        ledger::{self, Insert},
        noop::Noop,
    },
};

const ROWS_AT_ONCE: usize = 1_000;
const FINISHED_AT_ONCE: u32 = 100_000;
/// With its name and quotes, 200 bytes of arguments.
const PAYLOAD_BYTES: usize = 186;

pub fn noop(tenant: TenantId) -> NewJob {
    NewJob::of(&Noop { payload: "x".repeat(PAYLOAD_BYTES) }, tenant)
}

/// Writes `count` no-op jobs that are runnable at once, by the statement every enqueue uses: of so many tenants, each
/// one's crowd behind the last one's. Returns their ids in order.
pub async fn enqueue(db: &PgPool, count: u32, tenants: u16, what: &'static str) -> Result<Vec<JobId>, Failure> {
    let bar = progress(what, u64::from(count));
    let mut connection = db.acquire().await?;
    let mut ids = Vec::with_capacity(count as usize);
    for crowd in crowds(count, tenants) {
        let tenant = TenantId::new();
        for first in (0..crowd).step_by(ROWS_AT_ONCE) {
            let jobs: Vec<NewJob> = (first..crowd).take(ROWS_AT_ONCE).map(|_| noop(tenant)).collect();
            let rows: Vec<_> = jobs.iter().map(|job| Insert { job, pushed: false, open_parents: 0 }).collect();
            ledger::insert(&mut connection, &rows).await?;
            ids.extend(jobs.iter().map(|job| job.id));
            bar.inc(rows.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(ids)
}

/// `count` shared out: all of it, and no part more than one larger than another.
fn crowds(count: u32, tenants: u16) -> impl Iterator<Item = u32> {
    let tenants = u32::from(tenants.max(1));
    (0..tenants).map(move |place| count / tenants + u32::from(place < count % tenants))
}

/// Writes `count` jobs that succeeded before, older than any other.
pub async fn add_finished(ground: &Ground, count: u32) -> Result<(), Failure> {
    let bar = progress("writing finished jobs", u64::from(count));
    let mut written = 0;
    while written < count {
        let rows = FINISHED_AT_ONCE.min(count - written);
        // Ids of a day ago, one millisecond for each eight of them.
        sqlx::query(
            "insert into jobs (id, tenant_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, run_at, \
                               due_at, state, queued_at, claimed_at, finished_at, run, result) \
             select (lpad(to_hex((extract(epoch from now())::bigint - 86400) * 1000 + n / 8), 12, '0') || '7' \
                     || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid, \
                    md5((n % 10)::text)::uuid, 'ops', 'default', 'noop', 1, $3::text::jsonb, 8, 60000, t.at, t.at, \
                    'succeeded', t.at, t.at, t.at, 1, '{\"bytes\": 186}' \
             from generate_series($1::bigint, $2::bigint) n, (select now() - interval '1 day' as at) t",
        )
        .bind(i64::from(written))
        .bind(i64::from(written + rows - 1))
        .bind(noop(TenantId::SYSTEM).args.get())
        .execute(&ground.db)
        .await?;
        written += rows;
        bar.inc(u64::from(rows));
    }
    bar.finish_and_clear();
    Ok(())
}

/// What autovacuum has done by itself to a ledger that grew over days.
pub async fn settle_down(ground: &Ground) -> Result<(), Failure> {
    sqlx::query("vacuum (analyze) jobs").execute(&ground.db).await?;
    sqlx::query("checkpoint").execute(&ground.db).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_share_all_of_the_jobs_and_no_one_more_than_another() {
        assert_eq!(crowds(1_000, 3).collect::<Vec<_>>(), [334, 333, 333]);
        assert_eq!(crowds(7, 1).collect::<Vec<_>>(), [7]);
        assert_eq!(crowds(2, 3).collect::<Vec<_>>(), [1, 1, 0]);
    }
}
