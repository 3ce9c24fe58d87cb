//! How many event streams each caller follows in this process: each holds a connection and asks again and again, and
//! a caller's other limits count how it began and not how long it lasts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::Problem;
use crate::ids::UserId;

/// Of one user, with all their keys.
pub const MOST_STREAMS: usize = 64;
/// Streams end when their jobs do.
const COME_BACK: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Default)]
pub struct Followers(Arc<Mutex<HashMap<UserId, usize>>>);

/// One stream; the caller may have another one when it ends.
#[derive(Debug)]
pub struct Follower {
    followers: Followers,
    user: UserId,
}

impl Followers {
    /// # Errors
    /// 429 with `Retry-After` when this user follows [`MOST_STREAMS`] already.
    pub fn join(&self, user: UserId) -> Result<Follower, Problem> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = streams.entry(user).or_default();
        if *of_this >= MOST_STREAMS {
            return Err(Problem::too_many_streams(MOST_STREAMS, COME_BACK));
        }
        *of_this += 1;
        Ok(Follower { followers: self.clone(), user })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut streams = self.followers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_this) = streams.get_mut(&self.user) {
            *of_this -= 1;
            if *of_this == 0 {
                streams.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_so_many_streams_and_another_when_one_ends() {
        let (followers, one, other) = (Followers::default(), UserId::new(), UserId::new());
        let mut streams: Vec<_> = (0..MOST_STREAMS).map(|_| followers.join(one).unwrap()).collect();
        let refused = followers.join(one).unwrap_err();
        assert_eq!((refused.status().as_u16(), refused.code()), (429, "too_many_streams"));
        assert!(followers.join(other).is_ok());
        streams.pop();
        streams.push(followers.join(one).unwrap());
        drop(streams);
        assert!(followers.0.lock().unwrap().is_empty(), "what is over is forgotten");
    }
}
