//! `Idempotency-Key`: the same write sent twice happens once, and the second gets the first one's answer.
//!
//! The key's row is written in the transaction of the work itself, with the answer (E20): there is no moment at which
//! one exists without the other, and a process that dies leaves nothing behind. While that transaction is open an
//! advisory lock, which ends with it, makes a second request with the same key answer 409 at once instead of waiting.
//!
//! ```ignore
//! let mut tx = app.db.begin().await?;
//! let claim = match key.claim(&mut tx, &caller, body.to_json()).await? {
//!     Turn::Replay(answer) => return Ok(answer),
//!     Turn::New(claim) => claim,
//! };
//! // ... rows and jobs in `tx` ...
//! let answer = claim.keep(&mut tx, Accepted::new(location, body)).await?;
//! tx.commit().await?;
//! ```
//!
//! An answer that holds a secret is kept encrypted ([`IdempotencyKey::claim_sealed`], [`Claim::keep_sealed`]).

use std::time::Duration;

use poem::{Request, RequestBody, http::StatusCode};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaParamIn, MetaSchema, MetaSchemaRef},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{FromRow, PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::{
    Caller, Problem,
    answer::{Answer, Kept},
};
use crate::{
    crypto::{Keyring, Place},
    db::TenantDb,
    ids::{TenantId, UserId},
    rotation::SealedColumn,
};

pub const HEADER: &str = "Idempotency-Key";
/// How long a key is kept, whatever becomes of what it made.
pub const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const LONGEST: usize = 255;
/// When to come back while the first request is still under way.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// A repeat of our own request holds its key for the moment in which it finds that we are at work.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What is encrypted here.
pub const SEALED: SealedColumn = SealedColumn {
    table: "idempotency_keys",
    column: "sealed",
    row: "sealed_id",
    position: "0::smallint",
    place: |row, _| place(row),
};

const fn place(id: Uuid) -> Place {
    Place::new("idempotency_keys", "sealed", id)
}

/// The `Idempotency-Key` of a write, if it has one. A handler takes it as
/// `#[oai(name = "Idempotency-Key")] key: IdempotencyKey`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(Option<Given>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    /// Method and path, and the user where it is a person's: the same key on another call is another key.
    route: String,
    key: String,
}

/// Whose turn it is.
pub enum Turn<A> {
    /// The work was done before: this is its answer.
    Replay(A),
    /// Do the work, then [`Claim::keep`] its answer.
    New(Claim),
}

/// The right to do the work of one key, until the transaction ends.
#[must_use = "keep the answer with the key before the commit"]
pub struct Claim(Option<Claimed>);

struct Claimed {
    tenant: TenantId,
    given: Given,
    request_hash: [u8; 32],
}

impl IdempotencyKey {
    /// Whether the client sent one. Without one a write that needs no transaction of its own may take a faster way.
    pub fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// Whether work was done under it before. To be asked where the body is judged before it is all there; whether it
    /// is the same body says [`Self::claim`].
    pub async fn has_answer(&self, db: &mut PgConnection, tenant: TenantId) -> sqlx::Result<bool> {
        let Some(given) = &self.0 else { return Ok(false) };
        sqlx::query_scalar(
            "select exists (select from idempotency_keys where tenant_id = $1 and route = $2 and key = $3)",
        )
        .bind(tenant)
        .bind(&given.route)
        .bind(&given.key)
        .fetch_one(db)
        .await
    }

    /// For a call that is the caller's own, whoever else is in the workspace: a colleague with the same key does
    /// not get this one's answer.
    pub fn of_person(self, caller: &Caller) -> Self {
        Self(self.0.map(|given| Given { route: persons_route(&given.route, caller.user), ..given }))
    }

    /// Looks the key up in the caller's open transaction. `request` is the body as it was understood, so that
    /// spaces and the order of fields do not make another request of it.
    pub async fn claim<A: Answer>(
        self,
        tx: &mut PgConnection,
        caller: &Caller,
        request: Option<Value>,
    ) -> Result<Turn<A>, Problem> {
        self.turn(tx, caller, request, None).await
    }

    /// The same for an answer that [`Claim::keep_sealed`] keeps.
    pub async fn claim_sealed<A: Answer>(
        self,
        tx: &mut PgConnection,
        caller: &Caller,
        request: Option<Value>,
        keyring: &Keyring,
    ) -> Result<Turn<A>, Problem> {
        self.turn(tx, caller, request, Some(keyring)).await
    }

    /// [`Self::claim`] once more, after work that was done in no transaction. The key's row is ours to write, whatever a
    /// repeat of the request holds for a moment.
    pub async fn claim_at_last<A: Answer>(
        &self,
        db: &TenantDb,
        caller: &Caller,
        request: &Value,
    ) -> Result<(Transaction<'static, Postgres>, Turn<A>), Problem> {
        let mut tries = 1;
        loop {
            let mut tx = db.begin(caller).await?;
            match self.clone().claim(&mut tx, caller, Some(request.clone())).await {
                Err(problem) if problem.retry_after().is_some() && tries < TRIES => tries += 1,
                turn => return Ok((tx, turn?)),
            }
            drop(tx);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn turn<A: Answer>(
        self,
        tx: &mut PgConnection,
        caller: &Caller,
        request: Option<Value>,
        keyring: Option<&Keyring>,
    ) -> Result<Turn<A>, Problem> {
        let Some(given) = self.0 else { return Ok(Turn::New(Claim(None))) };
        let request_hash = Sha256::digest(request.unwrap_or_default().to_string()).into();
        let claimed = Claimed { tenant: caller.tenant, given, request_hash };
        let is_ours = try_lock(tx, &claimed).await? != Some(false);
        // A statement of its own, after the lock: its snapshot sees what the lock's last holder committed.
        let Some(kept) = find(tx, &claimed).await? else {
            return if is_ours { Ok(Turn::New(Claim(Some(claimed)))) } else { Err(under_way()) };
        };
        // Kept: whoever holds the lock only reads it as well.
        if kept.request_hash != claimed.request_hash {
            return Err(used_otherwise());
        }
        A::replay(kept.answer(keyring)?).map(Turn::Replay).ok_or_else(|| {
            Problem::internal_with("the answer kept with an Idempotency-Key has not the form this call answers")
        })
    }
}

impl Claim {
    /// Keeps the answer in the work's own transaction and hands it back.
    pub async fn keep<A: Answer>(self, tx: &mut PgConnection, answer: A) -> Result<A, Problem> {
        if let Some(claimed) = self.0 {
            insert(tx, &claimed, answer.kept(), None).await?;
        }
        Ok(answer)
    }

    /// The same for an answer that holds a secret: its body is kept encrypted. Whoever repeats it must be allowed to
    /// see it: bind the key to its person ([`IdempotencyKey::of_person`]).
    pub async fn keep_sealed<A: Answer>(
        self,
        tx: &mut PgConnection,
        keyring: &Keyring,
        answer: A,
    ) -> Result<A, Problem> {
        if let Some(claimed) = self.0 {
            let mut kept = answer.kept();
            let id = Uuid::now_v7();
            let text = SecretString::from(kept.body.take().unwrap_or_default().to_string());
            insert(tx, &claimed, kept, Some((id, keyring.encrypt(place(id), &text)))).await?;
        }
        Ok(answer)
    }
}

/// What a key of a person's own belongs to. `route` is the method and the path.
pub fn persons_route(route: &str, user: UserId) -> String {
    format!("{route} of {user}")
}

/// `None`: there is an answer already, and no lock is taken: a repeat that is only answered would still hold it for a
/// moment after its answer, and the next one would find the key in use.
async fn try_lock(tx: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<Option<bool>> {
    let lock = lock_of(claimed.tenant, &claimed.given.route, &claimed.given.key);
    sqlx::query_scalar(
        "select pg_try_advisory_xact_lock($1) where not exists ( \
           select from idempotency_keys where tenant_id = $2 and route = $3 and key = $4)",
    )
    .bind(lock)
    .bind(claimed.tenant)
    .bind(&claimed.given.route)
    .bind(&claimed.given.key)
    .fetch_optional(tx)
    .await
}

/// The advisory lock that a request holds while it works under a key. `route` is the method and the path.
pub fn lock_of(tenant: TenantId, route: &str, key: &str) -> i64 {
    let name = Sha256::new()
        .chain_update("idempotency")
        .chain_update(tenant.uuid().as_bytes())
        .chain_update(route)
        .chain_update([0])
        .chain_update(key)
        .finalize();
    i64::from_be_bytes(name[..8].try_into().expect("a hash is longer than 8 bytes"))
}

#[derive(FromRow)]
struct Row {
    request_hash: Vec<u8>,
    status: Option<i16>,
    location: Option<String>,
    response: Option<Value>,
    sealed_id: Option<Uuid>,
    sealed: Option<Vec<u8>>,
}

impl Row {
    fn answer(self, keyring: Option<&Keyring>) -> Result<Kept, Problem> {
        let body =
            match (self.sealed_id, self.sealed, keyring) {
                (Some(id), Some(sealed), Some(keyring)) => {
                    let text = keyring.decrypt(place(id), &sealed).map_err(|error| Problem::internal(&error))?;
                    // Of a parser's error, which may repeat what it read, nothing is told.
                    Some(serde_json::from_str(text.expose_secret()).map_err(|_error| {
                        Problem::internal_with("an encrypted answer of an Idempotency-Key is no JSON")
                    })?)
                }
                _ => self.response,
            };
        let status = self.status.unwrap_or_default().try_into().unwrap_or_default();
        Ok(Kept { status, location: self.location, body })
    }
}

async fn find(tx: &mut PgConnection, claimed: &Claimed) -> sqlx::Result<Option<Row>> {
    sqlx::query_as(
        "select request_hash, status, location, response, sealed_id, sealed from idempotency_keys \
         where tenant_id = $1 and route = $2 and key = $3",
    )
    .bind(claimed.tenant)
    .bind(&claimed.given.route)
    .bind(&claimed.given.key)
    .fetch_optional(tx)
    .await
}

async fn insert(
    tx: &mut PgConnection,
    claimed: &Claimed,
    kept: Kept,
    sealed: Option<(Uuid, Vec<u8>)>,
) -> sqlx::Result<()> {
    let (sealed_id, sealed) = sealed.unzip();
    sqlx::query(
        "insert into idempotency_keys (tenant_id, route, key, request_hash, status, location, response, sealed_id, \
           sealed, created_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, now())",
    )
    .bind(claimed.tenant)
    .bind(&claimed.given.route)
    .bind(&claimed.given.key)
    .bind(claimed.request_hash.as_slice())
    .bind(i16::try_from(kept.status).expect("a status has three digits"))
    .bind(kept.location)
    .bind(kept.body)
    .bind(sealed_id)
    .bind(sealed)
    .execute(tx)
    .await?;
    Ok(())
}

/// Forgets up to `limit` keys older than [`KEPT`]; returns how many. The upkeep calls it until it returns fewer.
pub async fn prune(db: impl sqlx::PgExecutor<'_>, limit: i64) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "delete from idempotency_keys where (tenant_id, route, key) in ( \
             select tenant_id, route, key from idempotency_keys \
             where created_at < now() - make_interval(secs => $1) \
             order by created_at limit $2 for update skip locked)",
    )
    .bind(KEPT.as_secs_f64())
    .bind(limit)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

fn under_way() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "idempotency_key_in_use",
        "The same request is under way",
        "A request with this Idempotency-Key is being worked on. Send it again in a moment to get its answer.",
    )
    .with_retry_after(UNDER_WAY)
}

fn used_otherwise() -> Problem {
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "idempotency_key_reused",
        "The key belongs to another request",
        "This Idempotency-Key was used with another body. Use a new key for a new request.",
    )
    .with_errors(vec![super::FieldError::new(HEADER, "was used with another body", "Send a new key")])
}

fn bad_key() -> Problem {
    Problem::bad_parameter(
        HEADER,
        "is not a usable key",
        format!("Send 1 to {LONGEST} visible ASCII characters, such as a UUID"),
    )
}

impl<'a> ApiExtractor<'a> for IdempotencyKey {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];

    type ParamType = String;
    type ParamRawType = String;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(MetaSchemaRef::Inline(Box::new(MetaSchema {
            min_length: Some(1),
            max_length: Some(LONGEST),
            description: Some("Sent again with the same body within 7 days, the first answer is given again."),
            ..MetaSchema::new("string")
        })))
    }

    async fn from_request(
        request: &'a Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<String>,
    ) -> poem::Result<Self> {
        let mut keys = request.headers().get_all(HEADER).iter();
        let Some(key) = keys.next() else { return Ok(Self(None)) };
        let usable = keys.next().is_none()
            && (1..=LONGEST).contains(&key.len())
            && key.as_bytes().iter().all(u8::is_ascii_graphic);
        let key = key.to_str().ok().filter(|_| usable).ok_or_else(bad_key)?.to_owned();
        let route = format!("{} {}", request.method(), request.uri().path());
        Ok(Self(Some(Given { route, key })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(keys: &[&str]) -> poem::Result<IdempotencyKey> {
        let mut request = Request::builder().method(poem::http::Method::POST).uri_str("/api/v1/posts?x=1");
        for key in keys {
            request = request.header(HEADER, *key);
        }
        IdempotencyKey::from_request(&request.finish(), &mut RequestBody::default(), ExtractParamOptions::default())
            .await
    }

    #[tokio::test]
    async fn a_key_belongs_to_one_call() {
        let given = read(&["k1"]).await.unwrap().0.unwrap();
        assert_eq!((given.route.as_str(), given.key.as_str()), ("POST /api/v1/posts", "k1"));
        assert!(!read(&[]).await.unwrap().is_given());
    }

    #[tokio::test]
    async fn an_unusable_key_is_refused_by_name() {
        let long = "k".repeat(256);
        for keys in [&["a b"][..], &[""], &[long.as_str()], &["one", "two"]] {
            let error = read(keys).await.unwrap_err();
            let problem = error.downcast_ref::<Problem>().unwrap();
            assert_eq!(
                (problem.status().as_u16(), problem.document().field.as_deref()),
                (400, Some(HEADER)),
                "{keys:?}"
            );
        }
    }
}
