//! Tokens that were verified before: a client sends the same one with every request, and checking its signature
//! anew costs more than the rest of the gate.
//!
//! Only a token that passed every check gets in, it is found by its whole text, and its expiry is looked at each
//! time. The memory is bounded and forgets; forgetting costs one more check.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::{PoisonError, RwLock},
};

use super::Caller;

const SHARDS: usize = 16;
const SHARD_ROOM: usize = 256;

#[derive(Default)]
pub struct SeenTokens {
    /// Keyed at random for each process, so that nobody can aim at one shard.
    hasher: RandomState,
    shards: [RwLock<HashMap<Box<str>, Seen>>; SHARDS],
}

struct Seen {
    caller: Caller,
    /// The last second in which it is good.
    good_until: u64,
}

impl SeenTokens {
    pub fn find(&self, token: &str, now: u64) -> Option<Caller> {
        let shard = self.shard(token).read().unwrap_or_else(PoisonError::into_inner);
        let seen = shard.get(token).filter(|seen| now <= seen.good_until)?;
        Some(seen.caller.clone())
    }

    pub fn remember(&self, token: &str, caller: &Caller, good_until: u64, now: u64) {
        let mut shard = self.shard(token).write().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= SHARD_ROOM {
            shard.retain(|_, seen| now <= seen.good_until);
            if shard.len() >= SHARD_ROOM {
                shard.clear();
            }
        }
        shard.insert(token.into(), Seen { caller: caller.clone(), good_until });
    }

    fn shard(&self, token: &str) -> &RwLock<HashMap<Box<str>, Seen>> {
        // The remainder is below SHARDS, whatever is cut off.
        &self.shards[(self.hasher.hash_one(token) % SHARDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{TenantId, UserId};

    fn caller() -> Caller {
        Caller { tenant: TenantId::new(), user: UserId::new(), scopes: Default::default() }
    }

    #[test]
    fn a_seen_token_is_good_until_it_expires_and_not_a_second_longer() {
        let (seen, caller) = (SeenTokens::default(), caller());
        seen.remember("a.b.c", &caller, 100, 50);
        assert_eq!(seen.find("a.b.c", 100), Some(caller));
        assert_eq!(seen.find("a.b.c", 101), None);
        assert_eq!(seen.find("a.b.d", 50), None);
    }

    #[test]
    fn a_flood_of_tokens_does_not_grow_the_memory() {
        let (seen, caller) = (SeenTokens::default(), caller());
        for number in 0..3 * SHARDS * SHARD_ROOM {
            seen.remember(&format!("token {number}"), &caller, 100, 50);
        }
        let kept: usize = seen.shards.iter().map(|shard| shard.read().unwrap().len()).sum();
        assert!(kept <= SHARDS * SHARD_ROOM);
    }
}
