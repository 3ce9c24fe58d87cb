//! Waiting for a condition, with a deadline and a message; never for a time.

use std::{
    future::Future,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(15);

/// Until `cond` holds.
///
/// # Panics
/// When it does not within `within`; the message says what was waited for.
pub async fn wait_until<F: Future<Output = bool>>(within: Duration, what: &str, mut cond: impl FnMut() -> F) {
    eventually(within, what, || {
        let holds = cond();
        async move { holds.await.then_some(()) }
    })
    .await;
}

/// What `find` finds, as soon as it finds something.
///
/// # Panics
/// Like [`wait_until`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    within: Duration,
    what: &str,
    mut find: impl FnMut() -> F,
) -> T {
    let started = Instant::now();
    loop {
        // A look that hangs must not outlast the deadline either.
        let left = within.saturating_sub(started.elapsed()).max(Duration::from_millis(100));
        if let Ok(Some(found)) = tokio::time::timeout(left, find()).await {
            return found;
        }
        assert!(started.elapsed() < within, "waited {within:?} in vain for: {what}");
        tokio::time::sleep(POLL).await;
    }
}
