//! Connecting an account by its owner's consent (OAuth 2.0 with PKCE): who asked, and what may come back.
//!
//! The state and the verifier are bound to a row, and the row to the user and the workspace that asked. Only they can
//! bring the answer back, once, within ten minutes: whoever lures somebody else to a platform's page, or to our own
//! with a code of theirs, gets nothing (docs/decisions/0012).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use sqlx::{FromRow, PgConnection, PgExecutor};
use url::Url;

use crate::{
    crypto::{self, CryptoError, Keyring, Place, random_text},
    identity::Caller,
    ids::ConsentId,
    platforms::{Asking, Connector, Platform},
    rotation::SealedColumn,
};

/// How long somebody may think about it at the platform.
pub const LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Longer than the two calls that an answer leads to may take.
const UNDER_WAY: Duration = Duration::from_secs(60);
/// How long one that is over is told apart from one that never was.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// What is encrypted here.
pub const SEALED: SealedColumn = SealedColumn {
    table: "account_consents",
    column: "sealed",
    row: "id",
    position: "0::smallint",
    place: |row, _| place(ConsentId::from_uuid(row)),
};

const fn place(id: ConsentId) -> Place {
    Place::new("account_consents", "sealed", id.uuid())
}

/// What only we know until it comes back: never shown, never logged, kept encrypted.
pub struct Secrets {
    state: SecretString,
    pub verifier: SecretString,
}

impl Secrets {
    fn generate() -> Self {
        Self { state: random_text(), verifier: random_text() }
    }

    fn seal(&self, keyring: &Keyring, id: ConsentId) -> Vec<u8> {
        let both = format!("{} {}", self.state.expose_secret(), self.verifier.expose_secret());
        keyring.encrypt(place(id), &both.into())
    }

    fn open(keyring: &Keyring, id: ConsentId, sealed: &[u8]) -> Result<Self, CryptoError> {
        let both = keyring.decrypt(place(id), sealed)?;
        let (state, verifier) = both.expose_secret().split_once(' ').ok_or(CryptoError::Malformed)?;
        Ok(Self { state: state.into(), verifier: verifier.into() })
    }

    /// The platform's page. `None`: this installation cannot ask there.
    fn page(&self, connector: &dyn Connector) -> Option<Url> {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(self.verifier.expose_secret()));
        connector.consent_page(&Asking { state: &self.state, challenge: &challenge })
    }
}

/// An asking that is open: where to send the account's owner, and until when.
pub struct Asked {
    pub id: ConsentId,
    pub page: Url,
    pub expires_at: DateTime<Utc>,
}

/// Begins one. `None`: this installation cannot ask at the platform.
pub async fn ask(
    tx: &mut PgConnection,
    keyring: &Keyring,
    caller: &Caller,
    connector: &dyn Connector,
) -> sqlx::Result<Option<Asked>> {
    let secrets = Secrets::generate();
    let Some(page) = secrets.page(connector) else { return Ok(None) };
    let id = ConsentId::new();
    let expires_at = sqlx::query_scalar(
        "insert into account_consents (id, tenant_id, user_id, platform, state_hash, sealed, expires_at) \
         values ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)) returning expires_at",
    )
    .bind(id)
    .bind(caller.tenant)
    .bind(caller.user)
    .bind(connector.platform().as_str())
    .bind(hash(secrets.state.expose_secret()))
    .bind(secrets.seal(keyring, id))
    .bind(LIFETIME.as_secs_f64())
    .fetch_one(tx)
    .await?;
    Ok(Some(Asked { id, page, expires_at }))
}

/// What became of an answer's state.
pub enum Taken {
    /// Ours to work on, and nobody else's from now on.
    Now(ConsentId, Result<Secrets, CryptoError>),
    /// Never asked, or by somebody else, or in another workspace, or for another platform: all the same to whoever asks.
    Unknown,
    Expired,
    /// Another request brings it in at this moment.
    UnderWay,
    Used,
}

#[derive(FromRow)]
struct Row {
    id: ConsentId,
    sealed: Option<Vec<u8>>,
    is_expired: bool,
    is_under_way: bool,
}

/// Takes an answer's state, which works once. Whoever comes second waits for the first one's commit and sees it used.
pub async fn take(
    tx: &mut PgConnection,
    keyring: &Keyring,
    caller: &Caller,
    platform: Platform,
    state: &str,
) -> sqlx::Result<Taken> {
    let row: Option<Row> = sqlx::query_as(
        "select id, sealed, expires_at <= now() as is_expired, \
           coalesce(finished_at is null and taken_at > now() - make_interval(secs => $5), false) as is_under_way \
         from account_consents where state_hash = $1 and tenant_id = $2 and user_id = $3 and platform = $4 for update",
    )
    .bind(hash(state))
    .bind(caller.tenant)
    .bind(caller.user)
    .bind(platform.as_str())
    .bind(UNDER_WAY.as_secs_f64())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(Taken::Unknown) };
    let Some(sealed) = row.sealed else {
        return Ok(if row.is_under_way { Taken::UnderWay } else { Taken::Used });
    };
    if row.is_expired {
        return Ok(Taken::Expired);
    }
    sqlx::query("update account_consents set taken_at = now(), sealed = null where id = $1")
        .bind(row.id)
        .execute(tx)
        .await?;
    Ok(Taken::Now(row.id, Secrets::open(keyring, row.id, &sealed)))
}

/// Whatever came of it, it is over. `false`: it was before, or went with its workspace or its user.
pub async fn finish(db: impl PgExecutor<'_>, id: ConsentId) -> sqlx::Result<bool> {
    let done = sqlx::query("update account_consents set finished_at = now() where id = $1 and finished_at is null")
        .bind(id)
        .execute(db)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// For upkeep: those that are over for so long that nobody asks for them any more.
pub async fn forget_old(db: impl PgExecutor<'_>) -> sqlx::Result<u64> {
    let gone = sqlx::query("delete from account_consents where expires_at < now() - make_interval(secs => $1)")
        .bind(REMEMBERED.as_secs_f64())
        .execute(db)
        .await?;
    Ok(gone.rows_affected())
}

/// Whether another workspace than the call's holds the account. Two that connect it at once take turns until their transactions end.
pub async fn is_held_elsewhere(tx: &mut PgConnection, platform: Platform, remote_id: &str) -> sqlx::Result<bool> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('account:' || $1 || ':' || $2, 0))")
        .bind(platform.as_str())
        .bind(remote_id)
        .execute(&mut *tx)
        .await?;
    sqlx::query_scalar("select app.account_is_held_elsewhere($1, $2)")
        .bind(platform.as_str())
        .bind(remote_id)
        .fetch_one(tx)
        .await
}

fn hash(state: &str) -> Vec<u8> {
    crypto::sha256(state).to_vec()
}
