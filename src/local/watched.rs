//! A server of ours that comes up again when it dies, at the same address and with what it kept, until it is wanted
//! back. Says on standard error what happened: nobody else would.

use std::{future::Future, process::ExitStatus, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{LocalError, Postgres, Redis, kept::Pauses};
use crate::telemetry::chain;

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What can be watched.
pub(super) trait Server: Send + 'static {
    const NAME: &'static str;

    /// How it ended, when it has and nobody here asked it to.
    fn has_died(&mut self) -> Option<ExitStatus>;

    /// Comes up again, and answers.
    fn run_again(&mut self) -> impl Future<Output = Result<(), LocalError>> + Send;
}

impl Server for Postgres {
    const NAME: &'static str = "postgres";

    fn has_died(&mut self) -> Option<ExitStatus> {
        self.exit_status()
    }

    async fn run_again(&mut self) -> Result<(), LocalError> {
        self.run().await
    }
}

impl Server for Redis {
    const NAME: &'static str = "redis";

    fn has_died(&mut self) -> Option<ExitStatus> {
        self.exit_status()
    }

    async fn run_again(&mut self) -> Result<(), LocalError> {
        self.run().await
    }
}

/// A server under care. Dropping it ends the server, as dropping the server itself does.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stop: CancellationToken,
    care: JoinHandle<S>,
}

impl<S: Server> Watched<S> {
    pub(super) fn watch(server: S) -> Self {
        let stop = CancellationToken::new();
        let care = tokio::spawn(care(server, stop.clone()));
        Self { stop, care }
    }

    /// The server, unwatched from now on. `None` when its care panicked, which ended it.
    pub(super) async fn back(mut self) -> Option<S> {
        self.stop.cancel();
        (&mut self.care).await.ok()
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        // The server is the task's own, and goes with it.
        self.care.abort();
    }
}

async fn care<S: Server>(mut server: S, stop: CancellationToken) -> S {
    let mut pauses = Pauses::default();
    loop {
        let status = loop {
            if let Some(status) = server.has_died() {
                break status;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return server,
            }
        };
        tell::<S>(&format!("ended with {status}, which nobody asked for"));
        loop {
            let pause = pauses.next();
            tell::<S>(&format!("starts again in {:.0} s", pause.as_secs_f32()));
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return server;
            }
            // Broken off, it is killed while it comes up: both recover from that at the next start.
            match stop.run_until_cancelled(server.run_again()).await {
                None => return server,
                Some(Ok(())) => break,
                Some(Err(error)) => tell::<S>(&chain(&error)),
            }
        }
        pauses.up();
        tell::<S>("is up again");
    }
}

fn tell<S: Server>(text: &str) {
    eprintln!("{:>8} | {text}", S::NAME);
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::Instant,
    };

    use super::*;

    /// Dies once whenever it is told to, and refuses to come up so often.
    struct Frail {
        deaths: Arc<AtomicU32>,
        starts: Arc<AtomicU32>,
        refusals: u32,
    }

    impl Server for Frail {
        const NAME: &'static str = "frail";

        fn has_died(&mut self) -> Option<ExitStatus> {
            let left = self.deaths.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |deaths| deaths.checked_sub(1));
            left.ok().map(|_| ExitStatus::from_raw(libc::SIGKILL))
        }

        async fn run_again(&mut self) -> Result<(), LocalError> {
            if self.refusals > 0 {
                self.refusals -= 1;
                return Err(LocalError::NotRunning("frail".into()));
            }
            self.starts.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_come_up_at_once_is_tried_again_and_given_back_when_it_is_wanted() {
        let (deaths, starts) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(0)));
        let watched = Watched::watch(Frail { deaths: deaths.clone(), starts: starts.clone(), refusals: 1 });
        until("it is up again", || starts.load(Ordering::SeqCst) == 1).await;
        deaths.store(1, Ordering::SeqCst);
        until("it is up again after its second death", || starts.load(Ordering::SeqCst) == 2).await;
        assert!(watched.back().await.is_some());
    }

    #[tokio::test]
    async fn a_server_that_cannot_come_up_is_given_back_at_once() {
        let (deaths, starts) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicU32::new(0)));
        let watched = Watched::watch(Frail { deaths: deaths.clone(), starts, refusals: u32::MAX });
        until("its death is seen", || deaths.load(Ordering::SeqCst) == 0).await;
        let back = tokio::time::timeout(Duration::from_secs(10), watched.back()).await;
        assert!(back.expect("nobody waits for what does not come up").is_some());
    }
}
