//! Moves everything that is encrypted from older keys to the first one, while the product runs.
//!
//! What is left to do stands in the data itself: every ciphertext begins with the id of its key. So it can be broken
//! off and begun again at any time, by anyone, several at once. Each row is changed only if it is still what was
//! read: a token that a worker refreshes meanwhile wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sqlx::{AssertSqlSafe, FromRow, PgPool};
use uuid::Uuid;

use crate::{
    connections, crypto,
    crypto::{CryptoError, Keyring, Place, Standing},
    db,
    http::idempotency,
    media, patreon, publishing,
};

/// A column of secrets, and how each of them is bound to its place.
#[derive(Debug, Clone, Copy)]
pub struct SealedColumn {
    pub table: &'static str,
    pub column: &'static str,
    /// The row's key in SQL: an id, and a number where there is more than one of that id.
    pub row: &'static str,
    pub position: &'static str,
    pub place: fn(Uuid, i16) -> Place,
}

/// Every column that holds secrets. A test compares it with the schema.
pub const SEALED: [SealedColumn; 8] = [
    connections::accounts::SEALED[0],
    connections::accounts::SEALED[1],
    connections::consent::SEALED,
    publishing::stage::SEALED,
    media::import_store::SEALED,
    patreon::SEALED[0],
    patreon::SEALED[1],
    idempotency::SEALED,
];

/// Rows that one statement looks at: short enough to be in nobody's way.
const BATCH: i64 = 200;
/// How often a batch is tried while the database is away or another transaction is in the way.
const TRIES: u32 = 5;
/// A worker that writes with an older key while we go through would have us go round for ever.
const ROUNDS: u32 = 3;

/// How many secrets of a column are under which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    pub table: &'static str,
    pub column: &'static str,
    /// As [`CryptoError::UnknownKey`] names it.
    pub key_id: String,
    pub standing: Standing,
    pub rows: u64,
}

/// What a rotation did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub resealed: u64,
    /// By what is wrong with them. They were left as they are.
    pub unreadable: BTreeMap<String, u64>,
    /// Written with an older key again and again while we went through.
    pub overtaken: bool,
}

/// What stands under which key, every column and key that occurs.
pub async fn survey(db: &PgPool, keyring: &Keyring) -> sqlx::Result<Vec<Count>> {
    let mut counts = Vec::new();
    for sealed in SEALED {
        let SealedColumn { table, column, .. } = sealed;
        let text = format!(
            "select substring({column} from 1 for {}) as prefix, count(*) from {table} \
             where {column} is not null group by 1 order by 1",
            crypto::PREFIX_BYTES
        );
        let rows: Vec<(Vec<u8>, i64)> = sqlx::query_as(AssertSqlSafe(text)).fetch_all(db).await?;
        counts.extend(rows.into_iter().map(|(prefix, rows)| Count {
            table,
            column,
            key_id: hex::encode(prefix.get(1..).unwrap_or_default()),
            standing: keyring.standing(&prefix),
            rows: rows.unsigned_abs(),
        }));
    }
    Ok(counts)
}

/// How many secrets stand so, and under which keys, each named once.
pub fn under(counts: &[Count], standing: Standing) -> (u64, Vec<&str>) {
    let of = counts.iter().filter(|count| count.standing == standing);
    let keys: BTreeSet<_> = of.clone().map(|count| count.key_id.as_str()).collect();
    (of.map(|count| count.rows).sum(), keys.into_iter().collect())
}

/// Encrypts with the first key what older ones encrypted. `tell` hears how many rows more were looked at.
pub async fn rotate(db: &PgPool, keyring: &Keyring, tell: impl Fn(u64)) -> sqlx::Result<Outcome> {
    let mut outcome = Outcome::default();
    for sealed in SEALED {
        for round in 0..ROUNDS {
            let pass = go_through(db, keyring, sealed, &tell).await?;
            outcome.resealed += pass.resealed;
            outcome.overtaken = pass.overtaken && round + 1 == ROUNDS;
            if !pass.overtaken {
                for (error, rows) in pass.unreadable {
                    *outcome.unreadable.entry(error).or_default() += rows;
                }
                break;
            }
        }
        if outcome.overtaken {
            break;
        }
    }
    Ok(outcome)
}

#[derive(FromRow)]
struct Row {
    row: Uuid,
    position: i16,
    /// `None`: it is under the first key already.
    stale: Option<Vec<u8>>,
}

#[derive(Default)]
struct Pass {
    resealed: u64,
    unreadable: BTreeMap<String, u64>,
    overtaken: bool,
}

async fn go_through(db: &PgPool, keyring: &Keyring, sealed: SealedColumn, tell: &impl Fn(u64)) -> sqlx::Result<Pass> {
    let mut pass = Pass::default();
    let mut after = (Uuid::nil(), -1_i16);
    loop {
        let rows = patiently(|| read(db, keyring, sealed, after)).await?;
        let Some(last) = rows.last() else { return Ok(pass) };
        after = (last.row, last.position);
        tell(rows.len() as u64);
        let mut old = Vec::new();
        let mut new = Vec::new();
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        for Row { row, position, stale } in rows {
            let Some(stale) = stale else { continue };
            match keyring.reseal((sealed.place)(row, position), &stale) {
                Ok(resealed) => {
                    ids.push(row);
                    positions.push(position);
                    old.push(stale);
                    new.push(resealed);
                }
                Err(error) => *pass.unreadable.entry(wording(sealed, &error)).or_default() += 1,
            }
        }
        if ids.is_empty() {
            continue;
        }
        let changed = patiently(|| write(db, sealed, &ids, &positions, &old, &new)).await?;
        pass.resealed += changed;
        pass.overtaken |= changed < ids.len() as u64;
    }
}

async fn read(db: &PgPool, keyring: &Keyring, sealed: SealedColumn, after: (Uuid, i16)) -> sqlx::Result<Vec<Row>> {
    let SealedColumn { table, column, row, position, .. } = sealed;
    let text = format!(
        "select {row} as row, {position} as position, \
           case when substring({column} from 1 for {}) <> $4 then {column} end as stale \
         from {table} where {column} is not null and ({row}, {position}) > ($1, $2) \
         order by {row}, {position} limit $3",
        crypto::PREFIX_BYTES
    );
    sqlx::query_as(AssertSqlSafe(text))
        .bind(after.0)
        .bind(after.1)
        .bind(BATCH)
        .bind(keyring.current_prefix().as_slice())
        .fetch_all(db)
        .await
}

async fn write(
    db: &PgPool,
    sealed: SealedColumn,
    rows: &[Uuid],
    positions: &[i16],
    old: &[Vec<u8>],
    new: &[Vec<u8>],
) -> sqlx::Result<u64> {
    let SealedColumn { table, column, row, position, .. } = sealed;
    let text = format!(
        "update {table} t set {column} = n.new \
         from unnest($1::uuid[], $2::smallint[], $3::bytea[], $4::bytea[]) as n (row, position, old, new) \
         where t.{row} = n.row and {position} = n.position and t.{column} = n.old"
    );
    let done = sqlx::query(AssertSqlSafe(text)).bind(rows).bind(positions).bind(old).bind(new).execute(db).await?;
    Ok(done.rows_affected())
}

/// A failover or a lost race with a worker is no reason to begin again by hand.
async fn patiently<T, F: Future<Output = sqlx::Result<T>>>(mut attempt: impl FnMut() -> F) -> sqlx::Result<T> {
    let mut tries = 1;
    loop {
        match db::answer(attempt()).await {
            Err(error) if db::is_away(&error) && tries < TRIES => {
                tokio::time::sleep(Duration::from_millis(200) * tries).await;
                tries += 1;
            }
            done => return done,
        }
    }
}

fn wording(sealed: SealedColumn, error: &CryptoError) -> String {
    format!("{}.{}: {error}", sealed.table, sealed.column)
}
