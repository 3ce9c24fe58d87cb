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

const SHARDS: usize = 16;
const SHARD_ROOM: usize = 256;

pub struct SeenTokens<T> {
    /// Keyed at random for each process, so that nobody can aim at one shard.
    hasher: RandomState,
    shards: [RwLock<HashMap<Box<str>, Seen<T>>>; SHARDS],
}

struct Seen<T> {
    /// What the token was found to say.
    said: T,
    /// The last second in which it is good.
    good_until: u64,
}

impl<T> Default for SeenTokens<T> {
    fn default() -> Self {
        Self { hasher: RandomState::default(), shards: Default::default() }
    }
}

impl<T: Clone> SeenTokens<T> {
    pub fn find(&self, token: &str, now: u64) -> Option<T> {
        let shard = self.shard(token).read().unwrap_or_else(PoisonError::into_inner);
        let seen = shard.get(token).filter(|seen| now <= seen.good_until)?;
        Some(seen.said.clone())
    }

    pub fn remember(&self, token: &str, said: T, good_until: u64, now: u64) {
        let mut shard = self.shard(token).write().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= SHARD_ROOM {
            shard.retain(|_, seen| now <= seen.good_until);
            if shard.len() >= SHARD_ROOM {
                shard.clear();
            }
        }
        shard.insert(token.into(), Seen { said, good_until });
    }

    fn shard(&self, token: &str) -> &RwLock<HashMap<Box<str>, Seen<T>>> {
        // The remainder is below SHARDS, whatever is cut off.
        &self.shards[(self.hasher.hash_one(token) % SHARDS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seen_token_is_good_until_it_expires_and_not_a_second_longer() {
        let seen = SeenTokens::default();
        seen.remember("a.b.c", 7, 100, 50);
        assert_eq!(seen.find("a.b.c", 100), Some(7));
        assert_eq!(seen.find("a.b.c", 101), None);
        assert_eq!(seen.find("a.b.d", 50), None);
    }

    #[test]
    fn a_flood_of_tokens_does_not_grow_the_memory() {
        let seen = SeenTokens::default();
        for number in 0..3 * SHARDS * SHARD_ROOM {
            seen.remember(&format!("token {number}"), (), 100, 50);
        }
        let kept: usize = seen.shards.iter().map(|shard| shard.read().unwrap().len()).sum();
        assert!(kept <= SHARDS * SHARD_ROOM);
    }
}
