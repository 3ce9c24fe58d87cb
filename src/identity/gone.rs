//! Who was erased, for local tokens: they are believed without a look at their user, and must open nothing that is gone.
//! A token that is issued after the erasure has come to its end begins anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{AuthError, local_tokens::Local, recent::BELIEVED, store};
use crate::{
    db::{self, TenantDb},
    ids::{TenantId, UserId},
    rights::erasures::{self, Gone},
    telemetry::chain,
};

/// The erased; what is new among them is looked up every few seconds while anybody asks.
#[derive(Default)]
pub struct Erased {
    known: Mutex<Known>,
    /// Held by whoever looks.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    gone: HashMap<Uuid, Gone>,
    /// The last change among them.
    as_of: Option<DateTime<Utc>>,
    /// Until when they are all there is; `None`: nobody knows, and whoever asks has to wait for the next look.
    until: Option<Instant>,
    /// Raised with each forgetting: a look that began before says nothing about what came after.
    generation: u64,
    /// Who has begun anew, and whose rows are there.
    begun: HashSet<(TenantId, UserId)>,
}

enum Standing {
    Known,
    /// For a moment it will do.
    Old,
    Unknown,
}

impl Erased {
    /// Something was erased here: the next to ask waits until that is known.
    pub fn forget(&self) {
        let mut known = self.known();
        known.until = None;
        known.generation += 1;
        known.begun.clear();
    }

    /// # Errors
    /// When the token is of before its user's or its workspace's end; when it cannot be found out whether it is.
    pub async fn check(&self, db: &TenantDb, local: &Local) -> Result<(), AuthError> {
        loop {
            let standing = self.known().standing(Instant::now());
            match standing {
                Standing::Known => break,
                // One who asks looks it up; the others go by what is known, for the moment that it takes.
                Standing::Old => {
                    let Ok(_alone) = self.looking.try_lock() else { break };
                    if let Err(error) = self.look(db).await {
                        // Without the database there is little that the token could open.
                        tracing::debug!(cause = chain(&error), "the erased were not looked up");
                        break;
                    }
                }
                Standing::Unknown => {
                    let _in_turn = self.looking.lock().await;
                    let standing = self.known().standing(Instant::now());
                    if matches!(standing, Standing::Unknown) {
                        self.look(db).await?;
                    }
                }
            }
        }
        let whose = (local.caller.tenant, local.caller.user);
        let begins = {
            let known = self.known();
            known.judge(local)? && !known.begun.contains(&whose)
        };
        if begins {
            // Their rows went with the erasure, and what has rows and no workspace is taken for a rest of it.
            db::answer(async { store::ensure_local(&mut *db.nobody().await?, whose.0, whose.1).await }).await?;
            self.known().begun.insert(whose);
        }
        Ok(())
    }

    async fn look(&self, db: &TenantDb) -> sqlx::Result<()> {
        let (as_of, generation) = {
            let known = self.known();
            (known.as_of, known.generation)
        };
        let asked = Instant::now();
        let news = db::answer(async { erasures::since(&mut *db.nobody().await?, as_of).await }).await?;
        self.known().learn(news, generation, asked);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn standing(&self, now: Instant) -> Standing {
        match self.until {
            Some(until) if now < until => Standing::Known,
            Some(_) => Standing::Old,
            None => Standing::Unknown,
        }
    }

    /// What is true of them stays true; whether it is all there is hangs on when it was asked.
    fn learn(&mut self, news: Vec<Gone>, generation: u64, asked: Instant) {
        self.as_of = news.iter().map(|gone| gone.changed_at).chain(self.as_of).max();
        self.gone.extend(news.into_iter().map(|gone| (gone.subject, gone)));
        if self.generation == generation {
            self.until = Some(asked + BELIEVED);
        }
    }

    /// Whether the token begins anew what was erased before.
    fn judge(&self, local: &Local) -> Result<bool, AuthError> {
        let issued_at = i64::try_from(local.issued_at).unwrap_or(i64::MAX);
        let mut is_anew = false;
        for id in [local.caller.user.uuid(), local.caller.tenant.uuid()] {
            let Some(gone) = self.gone.get(&id) else { continue };
            if !gone.is_finished || issued_at <= gone.requested_at {
                return Err(AuthError::SignedOut);
            }
            is_anew = true;
        }
        Ok(is_anew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(subject: Uuid, is_finished: bool) -> Gone {
        Gone { subject, requested_at: 100, is_finished, changed_at: Utc::now() }
    }

    #[test]
    fn a_look_that_began_before_something_was_erased_does_not_make_it_known() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert!(matches!(known.standing(now), Standing::Unknown), "nobody is let in before the first look");
        known.learn(Vec::new(), 0, now);
        assert!(matches!(known.standing(now), Standing::Known));
        assert!(matches!(known.standing(now + BELIEVED), Standing::Old));
        let erased = Erased { known: Mutex::new(known), ..Erased::default() };
        erased.forget();
        erased.known().learn(vec![gone(Uuid::nil(), false)], 0, now);
        assert!(matches!(erased.known().standing(now), Standing::Unknown));
        erased.known().learn(Vec::new(), 1, now);
        assert!(matches!(erased.known().standing(now), Standing::Known));
        assert_eq!(erased.known().gone.len(), 1, "what was learned stays");
    }
}
