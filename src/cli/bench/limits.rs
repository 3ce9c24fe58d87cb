//! What the servers do without the product: the limits its figures stand beside.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use sqlx::PgPool;
use uuid::Uuid;

use super::stage::Ground;
use crate::{
    cli::{Failure, working::spinner},
    jobs::belt,
};

const CONNECTIONS: usize = 2;
const ROWS: i64 = 100_000;
const ROWS_AT_ONCE: usize = 500;
const LASTS: Duration = Duration::from_secs(3);
const IDS: usize = 500_000;
const IDS_AT_ONCE: usize = 256;

/// Updates of a logged table as wide as the ledger, with its primary key and nothing else.
pub struct Updates {
    db: PgPool,
    ids: Vec<Uuid>,
}

impl Updates {
    pub async fn prepare(ground: &Ground) -> Result<Self, Failure> {
        let statements =
            "create table bench_rows (like jobs including defaults, primary key (id)) with (fillfactor = 80)";
        sqlx::query(statements).execute(&ground.db).await?;
        let ids = sqlx::query_scalar(
            "insert into bench_rows (id, tenant_id, queue, lane, kind, priority, args, max_attempts, timeout_ms, \
                                     run_at, due_at, state, queued_at) \
             select (lpad(to_hex(n), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' \
                     || substr(md5(n::text), 4, 15))::uuid, md5('')::uuid, 'ops', 'default', 'noop', 1, $2::text::jsonb, 8, \
                    60000, now(), now(), 'queued', now() from generate_series(1, $1::bigint) n returning id",
        )
        .bind(ROWS)
        .bind(super::ledger::noop(crate::ids::TenantId::SYSTEM).args.get())
        .fetch_all(&ground.db)
        .await?;
        sqlx::query("vacuum (analyze) bench_rows").execute(&ground.db).await?;
        Ok(Self { db: ground.db.clone(), ids })
    }

    /// Rows a second, 500 in each statement, on two connections.
    pub async fn batched(&self) -> Result<f64, Failure> {
        spinner("measuring the limit: batched updates", async {
            let started = Instant::now();
            let shares = self.ids.chunks(self.ids.len().div_ceil(CONNECTIONS));
            let updated = try_join_all(shares.map(|share| async move {
                let mut db = self.db.acquire().await?;
                let mut updated = 0;
                for batch in share.chunks(ROWS_AT_ONCE).cycle() {
                    if started.elapsed() > LASTS {
                        break;
                    }
                    let results: Vec<_> = batch.iter().map(|_| "{\"bytes\": 186}").collect();
                    let done = sqlx::query(
                        "update bench_rows j set result = s.result::jsonb, run = j.run + 1, claimed_at = now() \
                         from unnest($1::uuid[], $2::text[]) as s (id, result) where j.id = s.id",
                    )
                    .bind(batch)
                    .bind(results)
                    .execute(&mut *db)
                    .await?;
                    updated += done.rows_affected();
                }
                Ok::<_, sqlx::Error>(updated)
            }))
            .await?;
            Ok(updated.iter().sum::<u64>() as f64 / started.elapsed().as_secs_f64())
        })
        .await
    }

    /// Durable commits a second, one row each, on two connections.
    pub async fn commits(&self) -> Result<f64, Failure> {
        spinner("measuring the limit: commits", async {
            let started = Instant::now();
            let shares = self.ids.chunks(self.ids.len().div_ceil(CONNECTIONS));
            let committed = try_join_all(shares.map(|share| async move {
                let mut db = self.db.acquire().await?;
                let mut committed = 0_u64;
                for id in share.iter().cycle() {
                    if started.elapsed() > LASTS {
                        break;
                    }
                    let one = sqlx::query("update bench_rows set run = run + 1 where id = $1");
                    committed += one.bind(id).execute(&mut *db).await?.rows_affected();
                }
                Ok::<_, sqlx::Error>(committed)
            }))
            .await?;
            Ok(committed.iter().sum::<u64>() as f64 / started.elapsed().as_secs_f64())
        })
        .await
    }
}

/// Ids a second that one connection pops off a list, 256 at once.
pub async fn pops(ground: &Ground) -> Result<f64, Failure> {
    const LIST: &str = "bench:list";
    let away = |error: redis::RedisError| Failure::failed(format!("Redis: {error}"));
    let client = belt::client(&ground.config.redis).map_err(away)?;
    let mut redis = client.get_multiplexed_async_connection().await.map_err(away)?;
    spinner("measuring the limit: BLMPOP", async {
        let ids = vec![Uuid::now_v7().into_bytes().to_vec(); 1_000];
        for _ in 0..IDS / ids.len() {
            let mut push = redis::cmd("RPUSH");
            push.arg(LIST).arg(&ids);
            push.query_async::<()>(&mut redis).await.map_err(away)?;
        }
        let (started, mut popped) = (Instant::now(), 0);
        while popped < IDS {
            let mut pop = redis::cmd("BLMPOP");
            pop.arg(1).arg(1).arg(LIST).arg("LEFT").arg("COUNT").arg(IDS_AT_ONCE);
            let answer: Option<(String, Vec<Vec<u8>>)> = pop.query_async(&mut redis).await.map_err(away)?;
            match answer {
                Some((_, ids)) => popped += ids.len(),
                None => return Err(Failure::failed("Redis lost ids while they were counted")),
            }
        }
        Ok(popped as f64 / started.elapsed().as_secs_f64())
    })
    .await
}
