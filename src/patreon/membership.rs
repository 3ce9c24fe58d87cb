//! What a membership is worth, and reading it anew.

use std::time::Duration;

use secrecy::SecretString;
use sqlx::{PgConnection, PgPool};

use super::{
    ACCESS, Patreon, PatreonError, REFRESH, Tokens,
    client::Identity,
    place,
    store::{self, SealedLink},
};
use crate::{
    crypto::CryptoError,
    ids::{PatreonLinkId, TenantId},
    plans::{self, Source},
};

/// A token this close to its end is refreshed before it is used.
const FRESH_FOR_S: f64 = 60.0;
/// How often new tokens are tried to be kept: they exist nowhere else.
const SAVES: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Patreon(#[from] PatreonError),
    #[error("the stored token cannot be read")]
    Sealed(#[from] CryptoError),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What a look came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The plan that was given or renewed, if any.
    Done(Option<String>),
    /// Patreon refuses the tokens.
    Broken,
    /// Nobody has the link any more.
    Gone,
}

/// Gives or renews the plan that these tiers are worth. Without any, what was given before runs out by itself.
pub async fn give(
    tx: &mut PgConnection,
    tenant: TenantId,
    identity: &Identity,
    grace: Duration,
) -> sqlx::Result<Option<String>> {
    let Some((plan, until)) = store::worth(&mut *tx, &identity.tiers, grace).await? else { return Ok(None) };
    plans::store::give(tx, tenant, Source::Patreon, &plan, Some(until)).await?;
    Ok(Some(plan))
}

impl Patreon {
    pub async fn read(&self, db: &PgPool, id: PatreonLinkId) -> Result<Read, ReadError> {
        let Some(link) = store::sealed(db, id).await? else { return Ok(Read::Gone) };
        if link.state != "active" {
            return Ok(Read::Broken);
        }
        let is_fresh = link.expires_in_s > FRESH_FOR_S;
        let (access, generation) = if is_fresh {
            self.open(&link)?
        } else {
            match self.renew(db, &link).await? {
                Some(renewed) => renewed,
                None => return Ok(Read::Broken),
            }
        };
        let identity = match self.client.identity(&access).await {
            // Ended before its time: once more with another one.
            Err(PatreonError::Ended) if is_fresh => match self.renew(db, &link).await? {
                Some((access, generation)) => self.identity_or_broken(db, id, &access, generation).await?,
                None => None,
            },
            Err(PatreonError::Ended) => {
                store::broken(db, id, generation).await?;
                None
            }
            identity => Some(identity?),
        };
        let Some(identity) = identity else { return Ok(Read::Broken) };
        let mut tx = db.begin().await?;
        let Some(tenant) = store::note_read(&mut tx, id, &identity).await? else { return Ok(Read::Gone) };
        let plan = give(&mut tx, tenant, &identity, self.config.grace).await?;
        tx.commit().await?;
        Ok(Read::Done(plan))
    }

    async fn identity_or_broken(
        &self,
        db: &PgPool,
        id: PatreonLinkId,
        access: &SecretString,
        generation: i32,
    ) -> Result<Option<Identity>, ReadError> {
        match self.client.identity(access).await {
            Err(PatreonError::Ended) => {
                store::broken(db, id, generation).await?;
                Ok(None)
            }
            identity => Ok(Some(identity?)),
        }
    }

    fn open(&self, link: &SealedLink) -> Result<(SecretString, i32), CryptoError> {
        Ok((self.keyring.decrypt(place(ACCESS, link.id), &link.access_token)?, link.generation))
    }

    /// Another access token; one job of a link runs at a time, so nobody else trades the same pair. `None`: Patreon
    /// refuses it.
    async fn renew(&self, db: &PgPool, link: &SealedLink) -> Result<Option<(SecretString, i32)>, ReadError> {
        let refresh = self.keyring.decrypt(place(REFRESH, link.id), &link.refresh_token)?;
        match self.client.refresh(&refresh).await {
            Ok(tokens) => {
                self.save(db, link, &tokens).await?;
                Ok(Some((tokens.access, link.generation + 1)))
            }
            Err(PatreonError::Ended) => {
                if store::broken(db, link.id, link.generation).await? {
                    return Ok(None);
                }
                // A run whose lease was lost may have traded the pair meanwhile: then its pair is the good one.
                let Some(now) = store::sealed(db, link.id).await? else { return Ok(None) };
                Ok(Some(self.open(&now)?))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Committed before the tokens are used, and tried hard.
    async fn save(&self, db: &PgPool, link: &SealedLink, tokens: &Tokens) -> sqlx::Result<()> {
        let sealed = self.seal(link.id, tokens);
        for tried in 1.. {
            match store::save_pair(db, link.id, link.generation, &sealed).await {
                Ok(_) => break,
                Err(error) if tried == SAVES => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100) * 2_u32.pow(tried.min(4))).await,
            }
        }
        Ok(())
    }
}
