//! A socket behind the API, and how long a client may keep one without moving.
//!
//! A connection is closed when it says nothing for too long, when a request trickles in too slowly, or when the
//! client does not take its answer. The clock is looked at once per tick of some seconds, so watching costs a busy
//! connection next to nothing. Whoever begins with HTTP/2 is turned away: see [`super::opening`].

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    accepting::Place,
    opening::{NOT_SPOKEN, Opening},
};

/// How long a client may take for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How often the clock is looked at.
    tick: Duration,
    /// Longest silence. Longer than the pauses between the events of a stream.
    idle: Duration,
    /// How long after a request began its pace matters, unless an answer began. A socket cannot see whether a
    /// request is complete, so this is longer than any answer may take to begin.
    patience: Duration,
    slowest_bytes_a_second: u64,
}

pub(super) const LIMITS: Limits = Limits {
    tick: Duration::from_secs(5),
    idle: Duration::from_secs(75),
    patience: Duration::from_secs(45),
    slowest_bytes_a_second: 512,
};
const _: () = assert!(LIMITS.patience.as_secs() > super::gate::ANSWER_TIME.as_secs());

/// A socket that is closed while its peer still sends resets the connection, and with it may go the answer that said
/// why: so much is read and thrown away before, and so long.
const FAREWELL_BYTES: usize = 256 * 1024;
const FAREWELL: Duration = Duration::from_millis(500);
/// A stream that ends itself when its peer does not move.
pub struct Connection<S> {
    stream: S,
    limits: Limits,
    pace: Pace,
    tick: Pin<Box<Sleep>>,
    opening: Opening,
    /// Once nothing more is sent: how much is still read.
    farewell_bytes: Option<usize>,
    _place: Option<Place>,
}

/// What was seen of the peer. Bytes and turns are counted as they come, times only at ticks.
struct Pace {
    read_bytes: u64,
    /// Pieces of answers that the peer took.
    turns: u64,
    seen: (u64, u64),
    /// Since when nothing at all has moved.
    quiet_since: Instant,
    /// Since when it only sends, and what had been read by then.
    sending_since: (Instant, u64),
}

impl<S> Connection<S> {
    pub(super) fn new(stream: S, limits: Limits, place: Option<Place>) -> Self {
        let now = Instant::now();
        let pace = Pace { read_bytes: 0, turns: 0, seen: (0, 0), quiet_since: now, sending_since: (now, 0) };
        Self {
            stream,
            limits,
            pace,
            tick: Box::pin(sleep(limits.tick)),
            opening: Opening::UNSAID,
            farewell_bytes: None,
            _place: place,
        }
    }

    /// Called whenever the peer keeps us waiting.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.tick.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            self.pace.look(now, &self.limits)?;
            self.tick.as_mut().reset(now + self.limits.tick);
        }
        Ok(())
    }
}

impl Pace {
    fn look(&mut self, now: Instant, limits: &Limits) -> io::Result<()> {
        let seen = (self.read_bytes, self.turns);
        if seen != self.seen {
            self.quiet_since = now;
        }
        // An answer went out, or nothing is coming in: what comes next is a request of its own.
        if seen.1 != self.seen.1 || seen.0 == self.sending_since.1 {
            self.sending_since = (now, seen.0);
        }
        self.seen = seen;
        if now - self.quiet_since >= limits.idle {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client said nothing for too long"));
        }
        let (since, before) = self.sending_since;
        let sending = now - since;
        let slowest = limits.slowest_bytes_a_second * sending.as_secs();
        if seen.0 > before && sending >= limits.patience && seen.0 - before < slowest {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the client sends too slowly"));
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Says why, as far as it is taken at once, and ends.
    fn turn_away(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_shutdown(cx))?;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the client speaks HTTP/2")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.opening == Opening::Http2 {
            return self.turn_away(cx);
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => match self.watch(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            ready => {
                self.pace.read_bytes += (buffer.filled().len() - before) as u64;
                self.opening = self.opening.after(&buffer.filled()[before..]);
                if self.opening == Opening::Http2 {
                    buffer.set_filled(before);
                    // A connection that has just begun has room for it; whoever leaves none is not told.
                    let _told = Pin::new(&mut self.stream).poll_write(cx, NOT_SPOKEN);
                    return self.turn_away(cx);
                }
                ready
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    fn wrote<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match poll {
            Poll::Pending => match self.watch(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
            ready => {
                self.pace.turns += 1;
                ready
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut left = match this.farewell_bytes {
            Some(left) => left,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                this.tick.as_mut().reset(Instant::now() + FAREWELL);
                FAREWELL_BYTES
            }
        };
        let mut scrap = [0; 4096];
        while left > 0 {
            let mut buffer = ReadBuf::new(&mut scrap);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => left = left.saturating_sub(buffer.filled().len()),
                Poll::Ready(_ended) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    this.farewell_bytes = Some(left);
                    return this.tick.as_mut().poll(cx).map(Ok);
                }
            }
        }
        this.farewell_bytes = Some(0);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        net::{TcpListener, TcpStream},
        sync::Semaphore,
    };

    use super::{
        super::accepting::{Seats, Watched},
        *,
    };

    /// Looks at the pace once per tick for `seconds`, after `moves` was called with the second.
    fn paced(seconds: u64, mut moves: impl FnMut(u64, &mut Pace)) -> io::Result<()> {
        let start = Instant::now();
        let mut pace = Pace { read_bytes: 0, turns: 0, seen: (0, 0), quiet_since: start, sending_since: (start, 0) };
        for second in 1..=seconds {
            moves(second, &mut pace);
            if second % LIMITS.tick.as_secs() == 0 {
                pace.look(start + Duration::from_secs(second), &LIMITS)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_client_that_trickles_is_left_and_one_that_keeps_pace_is_not() {
        assert!(paced(60, |_, pace| pace.read_bytes += 1).is_err());
        assert!(paced(60, |second, pace| pace.read_bytes += second % 7 / 6).is_err());
        assert!(paced(600, |_, pace| pace.read_bytes += 2 * LIMITS.slowest_bytes_a_second).is_ok());
    }

    #[test]
    fn short_requests_over_a_long_time_are_no_trickle() {
        let often = paced(600, |_, pace| (pace.read_bytes, pace.turns) = (pace.read_bytes + 100, pace.turns + 1));
        assert!(often.is_ok());
        let seldom = |second, pace: &mut Pace| {
            pace.read_bytes += u64::from(second % 60 == 0) * 100;
            pace.turns += u64::from(second % 60 == 1);
        };
        assert!(paced(600, seldom).is_ok());
    }

    #[test]
    fn a_client_that_waits_for_its_answer_or_follows_events_is_kept() {
        let answer_at = super::super::gate::ANSWER_TIME.as_secs();
        assert!(
            paced(60, |second, pace| match second {
                1 => pace.read_bytes += 100,
                second if second == answer_at => pace.turns += 1,
                _ => {}
            })
            .is_ok()
        );
        assert!(paced(600, |second, pace| pace.turns += u64::from(second % 15 == 0)).is_ok());
    }

    const QUICK: Limits = Limits { tick: Duration::from_millis(5), idle: Duration::from_millis(30), ..LIMITS };

    #[tokio::test]
    async fn a_silent_client_is_left_and_its_place_given_to_another() {
        let (_client, server) = duplex(64);
        let room = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&room).try_acquire_owned().unwrap();
        let place = Place { _permit: permit, _seat: Seats::default().take([127, 0, 0, 1].into()).unwrap() };
        let mut connection = Connection::new(server, QUICK, Some(place));
        let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(connection);
        assert_eq!(room.available_permits(), 1);
    }

    #[tokio::test]
    async fn what_a_client_still_sends_is_read_before_its_connection_is_closed_and_a_silent_one_waited_for_briefly() {
        let (mut client, server) = duplex(1024);
        let mut connection = Connection::new(server, LIMITS, None);
        let sends = async {
            client.write_all(&[0; 10_000]).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let (closed, ()) = tokio::join!(connection.shutdown(), sends);
        closed.unwrap();

        let (_silent, server) = duplex(64);
        let began = Instant::now();
        Connection::new(server, LIMITS, None).shutdown().await.unwrap();
        assert!(began.elapsed() >= FAREWELL && began.elapsed() < 10 * FAREWELL, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answer_is_left() {
        let (_client, server) = duplex(64);
        let mut connection = Connection::new(server, QUICK, None);
        let error = connection.write_all(&[0; 1024]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// A server with little patience, and a client that says `first` and then one byte at a time.
    async fn trickle(first: &str) -> (Duration, Vec<u8>) {
        const IMPATIENT: Limits =
            Limits { tick: Duration::from_millis(20), patience: Duration::from_secs(1), ..LIMITS };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = Watched::with(listener, IMPATIENT).unwrap();
        let calls = poem::Route::new().at(
            "/",
            poem::post(poem::endpoint::make(|request: poem::Request| async move {
                request.into_body().into_bytes().await.map(|bytes| bytes.len().to_string()).map_err(poem::Error::from)
            })),
        );
        let serving = tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(calls));
        let started = Instant::now();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(first.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while started.elapsed() < Duration::from_secs(20) && client.write_all(b"x").await.is_ok() {
            let mut byte = [0; 256];
            match tokio::time::timeout(Duration::from_millis(40), client.read(&mut byte)).await {
                Err(_nothing_yet) => {}
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(read)) => answer.extend_from_slice(&byte[..read]),
            }
        }
        serving.abort();
        (started.elapsed(), answer)
    }

    #[tokio::test]
    async fn a_head_that_never_ends_costs_a_connection_for_a_moment_only() {
        let (took, answer) = trickle("POST / HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_body_that_never_ends_costs_a_connection_for_a_moment_only() {
        let (took, answer) = trickle("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n").await;
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
}
