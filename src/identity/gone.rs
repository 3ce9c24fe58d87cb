//! Who was erased, for local tokens: they are believed without a look at their user, and must open nothing that is gone.
//! A token that is issued after the erasure has come to its end begins anew.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use uuid::Uuid;

use super::{AuthError, local_tokens::Local, recent::BELIEVED};
use crate::{
    db::{self, TenantDb},
    rights::erasures::{self, Gone},
    telemetry::chain,
};

/// The erased, looked up anew every few seconds while anybody asks.
#[derive(Default)]
pub struct Erased(Mutex<Known>);

#[derive(Default)]
struct Known {
    gone: HashMap<Uuid, Gone>,
    until: Option<Instant>,
}

impl Erased {
    pub fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).until = None;
    }

    /// # Errors
    /// When the token is of before its user's or its workspace's end.
    pub async fn check(&self, db: &TenantDb, local: &Local) -> Result<(), AuthError> {
        let now = Instant::now();
        if self.is_stale(now) {
            match db::answer(async { erasures::all(&mut *db.nobody().await?).await }).await {
                Ok(gone) => {
                    let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    known.gone = gone.into_iter().map(|gone| (gone.subject, gone)).collect();
                }
                // Without the database there is nothing that the token could open either.
                Err(error) => {
                    tracing::debug!(cause = chain(&error), "the erased were not looked up");
                    self.forget();
                }
            }
        }
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let issued_at = i64::try_from(local.issued_at).unwrap_or(i64::MAX);
        let ends =
            |id: Uuid| known.gone.get(&id).is_some_and(|gone| !gone.is_finished || issued_at <= gone.requested_at);
        if ends(local.caller.user.uuid()) || ends(local.caller.tenant.uuid()) {
            return Err(AuthError::SignedOut);
        }
        Ok(())
    }

    /// One who asks looks it up; the others go by what is known, for the moment that it takes.
    fn is_stale(&self, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stale = known.until.is_none_or(|until| until <= now);
        if stale {
            known.until = Some(now + BELIEVED);
        }
        stale
    }
}
