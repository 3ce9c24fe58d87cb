//! Who was erased and who is disabled, for local tokens: they are believed without a look at their user, and must open
//! nothing that is gone, nor let anybody in who is to come in no more. A token that is issued after an erasure has come to
//! its end begins anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{
    AuthError,
    local_tokens::Local,
    recent::BELIEVED,
    store::{self, UserStanding},
};
use crate::{
    db::{self, TenantDb},
    ids::{TenantId, UserId},
    rights::erasures::{self, Gone},
    telemetry::chain,
};

/// The erased and the disabled; what is new among them is looked up every few seconds while anybody asks.
#[derive(Default)]
pub struct Barred {
    known: Mutex<Known>,
    /// Held by whoever looks.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    gone: HashMap<Uuid, Gone>,
    disabled: HashSet<UserId>,
    /// The last change among both.
    as_of: Option<DateTime<Utc>>,
    /// Until when they are all there is; `None`: nobody knows, and whoever asks has to wait for the next look.
    until: Option<Instant>,
    /// Raised with each forgetting: a look that began before says nothing about what came after.
    generation: u64,
    /// Who has begun anew, and whose rows are there.
    begun: HashSet<(TenantId, UserId)>,
}

/// What has changed since the last look, and a while before.
#[derive(Default)]
struct News {
    gone: Vec<Gone>,
    standing: Vec<UserStanding>,
}

enum Standing {
    Known,
    /// For a moment it will do.
    Old,
    Unknown,
}

impl Barred {
    /// Something was erased here: the next to ask waits until that is known.
    pub fn forget(&self) {
        let mut known = self.known();
        known.until = None;
        known.generation += 1;
        known.begun.clear();
    }

    /// # Errors
    /// When its user is disabled, or the token is of before its user's or its workspace's end; when it cannot be found out
    /// whether that is so.
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
                        tracing::debug!(cause = chain(&error), "the erased and the disabled were not looked up");
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
        let news = db::answer(async {
            let mut session = db.nobody().await?;
            Ok(News {
                gone: erasures::since(&mut *session, as_of).await?,
                standing: store::standing_since(&mut *session, as_of).await?,
            })
        });
        let news = news.await?;
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
    fn learn(&mut self, news: News, generation: u64, asked: Instant) {
        let changes = news.gone.iter().map(|gone| gone.changed_at);
        self.as_of = changes.chain(news.standing.iter().map(|user| user.changed_at)).chain(self.as_of).max();
        for gone in news.gone {
            // With the row of a user goes that they were disabled; who begins anew and is disabled again is news as well.
            self.disabled.remove(&UserId::from_uuid(gone.subject));
            self.gone.insert(gone.subject, gone);
        }
        for user in news.standing {
            if user.is_disabled {
                self.disabled.insert(user.id);
            } else {
                self.disabled.remove(&user.id);
            }
        }
        if self.generation == generation {
            self.until = Some(asked + BELIEVED);
        }
    }

    /// Whether the token begins anew what was erased before.
    fn judge(&self, local: &Local) -> Result<bool, AuthError> {
        if self.disabled.contains(&local.caller.user) {
            return Err(AuthError::Disabled);
        }
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
    use crate::identity::{Caller, Scopes};

    fn gone(subject: Uuid, is_finished: bool) -> Gone {
        Gone { subject, requested_at: 100, is_finished, changed_at: Utc::now() }
    }

    #[test]
    fn a_look_that_began_before_something_was_erased_does_not_make_it_known() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert!(matches!(known.standing(now), Standing::Unknown), "nobody is let in before the first look");
        known.learn(News::default(), 0, now);
        assert!(matches!(known.standing(now), Standing::Known));
        assert!(matches!(known.standing(now + BELIEVED), Standing::Old));
        let barred = Barred { known: Mutex::new(known), ..Barred::default() };
        barred.forget();
        barred.known().learn(News { gone: vec![gone(Uuid::nil(), false)], ..News::default() }, 0, now);
        assert!(matches!(barred.known().standing(now), Standing::Unknown));
        barred.known().learn(News::default(), 1, now);
        assert!(matches!(barred.known().standing(now), Standing::Known));
        assert_eq!(barred.known().gone.len(), 1, "what was learned stays");
    }

    #[test]
    fn a_user_is_barred_from_being_disabled_until_they_are_enabled_or_have_gone_and_begun_anew() {
        let (mut known, user) = (Known::default(), UserId::new());
        let standing = |is_disabled| vec![UserStanding { id: user, is_disabled, changed_at: Utc::now() }];
        let caller = Caller::new(TenantId::new(), user, Scopes::default());
        let local = Local { caller, issued_at: 200, is_first: false };
        let learned = |known: &mut Known, news| known.learn(news, 0, Instant::now());
        assert!(known.judge(&local).is_ok());
        learned(&mut known, News { standing: standing(true), ..News::default() });
        assert!(matches!(known.judge(&local), Err(AuthError::Disabled)));
        learned(&mut known, News::default());
        assert!(matches!(known.judge(&local), Err(AuthError::Disabled)), "no news changes nothing");
        learned(&mut known, News { standing: standing(false), ..News::default() });
        assert!(known.judge(&local).is_ok());
        learned(&mut known, News { standing: standing(true), ..News::default() });
        learned(&mut known, News { gone: vec![gone(user.uuid(), true)], ..News::default() });
        assert!(known.judge(&local).is_ok_and(|begins_anew| begins_anew));
        let both = News { gone: vec![gone(user.uuid(), true)], standing: standing(true) };
        learned(&mut known, both);
        assert!(matches!(known.judge(&local), Err(AuthError::Disabled)));
    }
}
