//! Answers of the database that are believed for a few seconds, so that a busy caller costs one look now and then.
//! How long is how late a change may be seen by another process; this one forgets at once what it changed itself.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long what was looked up about a user or a key is believed.
pub const BELIEVED: Duration = Duration::from_secs(5);
const ROOM: usize = 10_000;

pub struct Recent<K, V>(Mutex<Answers<K, V>>);

struct Answers<K, V> {
    by_key: HashMap<K, (V, Instant)>,
    /// Raised with each forgetting: a look that began before must not bring back what was forgotten.
    generation: u64,
}

/// A look that is under way.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    at: Instant,
    generation: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Answers { by_key: HashMap::new(), generation: 0 }))
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    pub fn find(&self, key: &K, now: Instant) -> Option<V> {
        let answers = self.lock();
        let (value, until) = answers.by_key.get(key)?;
        (now < *until).then(|| value.clone())
    }

    pub fn ask(&self, now: Instant) -> Asked {
        Asked { at: now, generation: self.lock().generation }
    }

    pub fn keep(&self, key: K, value: V, asked: Asked) {
        let mut answers = self.lock();
        if answers.generation != asked.generation {
            return;
        }
        if answers.by_key.len() >= ROOM {
            answers.by_key.retain(|_, (_, until)| asked.at < *until);
            if answers.by_key.len() >= ROOM {
                answers.by_key.clear();
            }
        }
        answers.by_key.insert(key, (value, asked.at + BELIEVED));
    }

    pub fn forget_all(&self) {
        let mut answers = self.lock();
        answers.by_key.clear();
        answers.generation += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Answers<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_believed_for_its_time_and_not_when_it_is_forgotten() {
        let (recent, now) = (Recent::default(), Instant::now());
        recent.keep("key", 1, recent.ask(now));
        assert_eq!(recent.find(&"key", now + BELIEVED / 2), Some(1));
        assert_eq!(recent.find(&"key", now + BELIEVED), None);
        recent.forget_all();
        assert_eq!(recent.find(&"key", now), None);
    }

    #[test]
    fn a_look_that_began_before_a_forgetting_brings_nothing_back() {
        let (recent, now) = (Recent::default(), Instant::now());
        let asked = recent.ask(now);
        recent.forget_all();
        recent.keep("key", 1, asked);
        assert_eq!(recent.find(&"key", now), None);
    }

    #[test]
    fn a_flood_does_not_grow_the_memory() {
        let (recent, now) = (Recent::default(), Instant::now());
        for number in 0..3 * ROOM {
            recent.keep(number, (), recent.ask(now));
        }
        assert!(recent.lock().by_key.len() <= ROOM);
    }
}
