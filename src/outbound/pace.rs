//! The least pace at which a file from outside has to come: a server that sends a byte now and then would hold a slot for
//! as long as a job may run.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Instant,
};

/// So many bytes in every so much waiting.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub window: Duration,
    pub least_bytes: u64,
}

impl Pace {
    /// 16 KiB a second, looked at every half minute.
    pub const LEAST: Self = Self { window: Duration::from_secs(30), least_bytes: 30 * (16 << 10) };
}

#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("less than {least_bytes} bytes came in {} s", .window.as_secs_f32())]
pub struct TooSlow {
    window: Duration,
    least_bytes: u64,
}

impl TooSlow {
    pub fn is_cause_of(error: &std::io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Fails with [`TooSlow`] when less comes. Only the time counts in which we wait for the other side: that our own disk is
/// slow is not its fault.
pub struct Paced<R> {
    inner: R,
    pace: Pace,
    waited: Duration,
    came_bytes: u64,
    /// Since when we wait.
    since: Option<Instant>,
}

impl<R> Paced<R> {
    pub fn new(inner: R, pace: Pace) -> Self {
        Self { inner, pace, waited: Duration::ZERO, came_bytes: 0, since: None }
    }

    fn came(&mut self, bytes: u64) -> Result<(), TooSlow> {
        self.waited += self.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.came_bytes += bytes;
        if self.waited >= self.pace.window {
            if self.came_bytes < self.pace.least_bytes {
                return Err(TooSlow { window: self.pace.window, least_bytes: self.pace.least_bytes });
            }
            (self.waited, self.came_bytes) = (Duration::ZERO, 0);
        }
        Ok(())
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Paced<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Pending => {
                self.since.get_or_insert_with(Instant::now);
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                let bytes = buf.filled().len() - before;
                let is_end = bytes == 0;
                match self.came(bytes as u64) {
                    // A slow file that is all there is there.
                    Err(error) if !is_end => {
                        // Who fails has read nothing.
                        buf.set_filled(before);
                        Poll::Ready(Err(std::io::Error::other(error)))
                    }
                    _ => Poll::Ready(Ok(())),
                }
            }
            failed @ Poll::Ready(Err(_)) => failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PACE: Pace = Pace { window: Duration::from_millis(200), least_bytes: 1000 };

    /// So many bytes every 30 ms.
    async fn read(bytes: usize, times: usize) -> std::io::Result<usize> {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let sender = tokio::spawn(async move {
            for _ in 0..times {
                tokio::time::sleep(Duration::from_millis(30)).await;
                if theirs.write_all(&vec![7; bytes]).await.is_err() {
                    return;
                }
            }
        });
        let mut paced = Paced::new(ours, PACE);
        let mut all = Vec::new();
        let read = paced.read_to_end(&mut all).await;
        sender.abort();
        read
    }

    #[tokio::test]
    async fn what_comes_byte_by_byte_is_left_and_what_comes_steadily_is_not() {
        let error = read(1, 1000).await.unwrap_err();
        assert!(TooSlow::is_cause_of(&error), "{error}");
        assert_eq!(read(2000, 20).await.unwrap(), 40_000);
        assert_eq!(read(1, 3).await.unwrap(), 3, "a small file is never slow");
    }

    #[tokio::test]
    async fn a_reader_that_takes_its_time_does_not_make_the_other_side_slow() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        theirs.write_all(&[7; 10]).await.unwrap();
        let mut paced = Paced::new(ours, PACE);
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(paced.read_u8().await.unwrap(), 7);
        }
    }

    #[tokio::test]
    async fn a_fast_beginning_buys_no_slow_end() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let sender = tokio::spawn(async move {
            theirs.write_all(&vec![7; 1 << 19]).await.unwrap();
            while theirs.write_all(&[7]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let error = Paced::new(ours, PACE).read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(TooSlow::is_cause_of(&error), "{error}");
        sender.abort();
    }
}
