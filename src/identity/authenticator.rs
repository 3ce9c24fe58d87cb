//! The one door: a credential, and perhaps the workspace that is wished for, become a [`Caller`].
//!
//! Which kind a credential is says its form. Each kind is checked by its own verifier with its own algorithm; nothing
//! that a token says about itself chooses how it is checked. The common path (a token or key that was seen a moment
//! ago) touches neither the database nor a signature.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use super::{
    Caller, LocalTokens, Scope, Scopes, WeakSecret,
    api_keys::{self, ApiKeys, Presented},
    barred::Barred,
    firebase::Firebase,
    health::FirebaseProbe,
    local_tokens::Local,
    recent::Recent,
    store::{self, Access},
};
use crate::{
    config::Config,
    db::{self, TenantDb},
    http::health::Probe,
    ids::{TenantId, UserId},
    outbound::OutboundError,
    telemetry::chain,
};

/// How far two machines' clocks may be apart.
pub const SKEW: Duration = Duration::from_secs(30);
/// A longer credential is nothing of ours, and must not cost a decoding. Firebase's may be this long.
const LONGEST_TOKEN_BYTES: usize = 8192;
/// Rows of first sights written at once; more are left to the next time.
const FIRST_SIGHTS: usize = 4;

pub struct Authenticator {
    local: Option<LocalTokens>,
    firebase: Option<Firebase>,
    keys: ApiKeys,
    barred: Barred,
    access: Recent<(UserId, Option<TenantId>), Option<Access>>,
    first_sights: Arc<Semaphore>,
    db: TenantDb,
}

/// Why a credential was not accepted. For the log: outside, most of these are one 401.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the Authorization header is not a bearer token")]
    Malformed,
    #[error("no kind of token that this could be is switched on")]
    Off,
    #[error("the token was not accepted")]
    Rejected(#[from] jsonwebtoken::errors::Error),
    #[error("the token's {0} is not what it must be")]
    Claim(&'static str),
    #[error("the token names a key that its issuer does not publish")]
    UnknownSigningKey,
    #[error("no such API key")]
    UnknownKey,
    #[error("the API key is revoked, expired, or its maker is no member any more")]
    DeadKey,
    #[error("the user is disabled")]
    Disabled,
    #[error("the user has signed out everywhere, or was erased, since they signed in")]
    SignedOut,
    #[error("the workspace does not exist or is not theirs")]
    NoSuchWorkspace,
    #[error("too many wrong credentials came from there")]
    TooManyGuesses { retry_in: Duration },
    #[error("the issuer's keys cannot be had at the moment")]
    KeysAway,
    #[error("the database failed")]
    Away(#[from] sqlx::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Secret(#[from] WeakSecret),
    #[error(transparent)]
    Client(#[from] OutboundError),
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authenticator").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Authenticator {
    pub fn new(config: &Config, db: TenantDb) -> Result<Self, SetupError> {
        if config.jwt_ignored {
            tracing::warn!("JWT_SECRET_KEY is ignored: local tokens are off in production unless LOCAL_TOKENS=on");
        }
        Ok(Self {
            local: config.jwt.as_ref().map(LocalTokens::new).transpose()?,
            firebase: config.firebase.as_ref().map(Firebase::new).transpose()?,
            barred: Barred::default(),
            keys: ApiKeys::default(),
            access: Recent::default(),
            first_sights: Arc::new(Semaphore::new(FIRST_SIGHTS)),
            db,
        })
    }

    /// What is looked at for `/health`; nothing where nobody signs in with Firebase.
    pub fn probe(&self) -> Option<Box<dyn Probe>> {
        let firebase = self.firebase.as_ref()?;
        Some(Box::new(FirebaseProbe(Arc::clone(firebase.keys()))))
    }

    /// `exhausted` says how long the sender has to wait because of wrong credentials before. It is asked before
    /// anything that costs a signature or a look into the database, and not for what is known already.
    pub async fn caller(
        &self,
        authorization: &[u8],
        workspace: Option<TenantId>,
        exhausted: impl FnOnce() -> Option<Duration> + Send,
    ) -> Result<Caller, AuthError> {
        let token = bearer(authorization).ok_or(AuthError::Malformed)?;
        let may_look = || exhausted().map_or(Ok(()), |retry_in| Err(AuthError::TooManyGuesses { retry_in }));
        if token.starts_with(api_keys::START) {
            return Box::pin(self.by_key(token, workspace, may_look)).await;
        }
        let error = match &self.local {
            Some(local) => match local.verify(token) {
                Ok(local) => return self.by_local(local, workspace).await,
                Err(error) => error,
            },
            None => AuthError::Off,
        };
        match &self.firebase {
            Some(firebase) => Box::pin(self.by_firebase(firebase, token, workspace, may_look)).await,
            None => Err(error),
        }
    }

    /// What this process believes about users, their roles and keys is looked up anew: after a change of any of it.
    pub fn forget(&self) {
        self.access.forget_all();
        self.keys.forget_all();
        self.barred.forget();
    }

    async fn by_local(&self, local: Local, workspace: Option<TenantId>) -> Result<Caller, AuthError> {
        self.barred.check(&self.db, &local).await?;
        let Local { caller, is_first, .. } = local;
        if is_first {
            self.note_first_sight(&caller);
        }
        match workspace {
            Some(other) if other != caller.tenant => {
                let access = Box::pin(self.access_of(caller.user, Some(other))).await?;
                Ok(in_workspace(&access.ok_or(AuthError::NoSuchWorkspace)?, caller.user, caller.scopes))
            }
            _ => Ok(caller),
        }
    }

    async fn by_firebase(
        &self,
        firebase: &Firebase,
        token: &str,
        workspace: Option<TenantId>,
        may_look: impl FnOnce() -> Result<(), AuthError>,
    ) -> Result<Caller, AuthError> {
        let person = match firebase.seen(token) {
            Some(person) => person,
            None => {
                may_look()?;
                firebase.verify(token).await?
            }
        };
        let first = || async {
            let found = db::answer(async { store::firebase_user(&mut *self.db.nobody().await?, &person).await });
            found.await?.ok_or(AuthError::SignedOut)
        };
        let user = *person.user.get_or_try_init(first).await?;
        let access = match self.access_of(user, workspace).await? {
            Some(access) => access,
            // They are no more: it is their credential that is wrong, and not the workspace that they name.
            None if workspace.is_none() || self.access_of(user, None).await?.is_none() => {
                return Err(AuthError::SignedOut);
            }
            None => return Err(AuthError::NoSuchWorkspace),
        };
        if access.is_disabled {
            return Err(AuthError::Disabled);
        }
        if access.tokens_valid_after.is_some_and(|after| person.signed_in_at < after) {
            return Err(AuthError::SignedOut);
        }
        let all =
            if access.is_admin { Scopes::of([Scope::Workspace, Scope::Admin]) } else { Scopes::of([Scope::Workspace]) };
        let signed_in_at = Some(person.signed_in_at);
        Ok(Caller { signed_in_at, ..in_workspace(&access, user, all) })
    }

    async fn by_key(
        &self,
        token: &str,
        workspace: Option<TenantId>,
        may_look: impl FnOnce() -> Result<(), AuthError>,
    ) -> Result<Caller, AuthError> {
        let presented = Presented::parse(token).ok_or(AuthError::UnknownKey)?;
        let caller = match self.keys.seen(&presented) {
            Some(caller) => caller,
            None => {
                may_look()?;
                self.keys.verify(&self.db, &presented).await?
            }
        };
        match workspace {
            Some(other) if other != caller.tenant => Err(AuthError::NoSuchWorkspace),
            _ => Ok(caller),
        }
    }

    async fn access_of(&self, user: UserId, workspace: Option<TenantId>) -> Result<Option<Access>, AuthError> {
        let now = Instant::now();
        if let Some(access) = self.access.find(&(user, workspace), now) {
            return Ok(access);
        }
        let asked = self.access.ask(now);
        let access = db::answer(async { store::access(&mut *self.db.nobody().await?, user, workspace).await }).await?;
        self.access.keep((user, workspace), access.clone(), asked);
        Ok(access)
    }

    /// Writes the rows of a local token's user and workspace, beside the call and not before it. What cannot be
    /// written now is written at the next token, or by the calls that need the rows.
    fn note_first_sight(&self, caller: &Caller) {
        let Ok(permit) = Arc::clone(&self.first_sights).try_acquire_owned() else { return };
        let (db, tenant, user) = (self.db.clone(), caller.tenant, caller.user);
        tokio::spawn(async move {
            let _permit = permit;
            let written = db::answer(async { store::ensure_local(&mut *db.nobody().await?, tenant, user).await });
            if let Err(error) = written.await {
                tracing::debug!(cause = chain(&error), "a user was not noted at first sight");
            }
        });
    }
}

fn in_workspace(access: &Access, user: UserId, scopes: Scopes) -> Caller {
    let role = access.role;
    Caller { role, ..Caller::new(access.tenant, user, scopes.within(role.scopes())) }
}

/// The scheme's name has no case (RFC 9110).
fn bearer(authorization: &[u8]) -> Option<&str> {
    let (scheme, token) = authorization.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") || token.len() > LONGEST_TOKEN_BYTES {
        return None;
    }
    std::str::from_utf8(token).ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bearer_token_is_refused() {
        assert_eq!(bearer(b"bEaReR a.b.c"), Some("a.b.c"));
        let long = format!("Bearer {}", "a".repeat(LONGEST_TOKEN_BYTES + 1));
        for header in ["", "Bearer", "Basic dXNlcjpwYXNz", "\u{0}\u{0}", long.as_str()] {
            assert_eq!(bearer(header.as_bytes()), None, "{header:?}");
        }
        assert_eq!(bearer(b"Bearer \xff"), None);
    }
}
