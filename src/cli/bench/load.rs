//! Load over HTTP/1.1: keep-alive connections, one request at a time on each, as lean as can be, because it shares
//! the machine with what it measures.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::cli::Failure;

/// An answer that takes longer ends the measurement.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const LONGEST_US: u64 = 60_000_000;

type Request = dyn Fn(u64, &mut Vec<u8>) + Send + Sync;

#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub connections: usize,
    pub lasts: Duration,
    /// Every other answer is an error.
    pub status: u16,
    /// Writes the n-th request into the buffer.
    pub request: Arc<Request>,
}

pub struct Load {
    pub answers: u64,
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
}

/// Sends as fast as answers come.
pub async fn run(plan: Plan) -> Result<Load, Failure> {
    let started = Instant::now();
    let connections = (0..plan.connections).map(|lane| {
        let plan = plan.clone();
        let task = tokio::spawn(async move { connection(plan, lane as u64, started).await });
        async move { task.await.map_err(|error| Failure::failed(format!("the load broke off: {error}")))? }
    });
    let mut all = histogram()?;
    for latencies in try_join_all(connections).await? {
        all.add(latencies).map_err(|error| Failure::failed(error.to_string()))?;
    }
    let at = |quantile| Duration::from_micros(all.value_at_quantile(quantile));
    let (answers, seconds) = (all.len(), started.elapsed().as_secs_f64());
    Ok(Load { answers, per_second: answers as f64 / seconds, p50: at(0.5), p99: at(0.99) })
}

async fn connection(plan: Plan, lane: u64, started: Instant) -> Result<Histogram<u64>, Failure> {
    let broken = |error: std::io::Error| Failure::failed(format!("the connection to {}: {error}", plan.address));
    let mut stream = TcpStream::connect(plan.address).await.map_err(broken)?;
    stream.set_nodelay(true).map_err(broken)?;
    let (mut out, mut buffer, mut latencies) = (Vec::new(), Vec::with_capacity(16 * 1024), histogram()?);
    let mut number = lane << 32;
    while started.elapsed() < plan.lasts {
        out.clear();
        (plan.request)(number, &mut out);
        number += 1;
        let sent = Instant::now();
        stream.write_all(&out).await.map_err(broken)?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, answer(&mut stream, &mut buffer)).await;
        let answer = answer.map_err(|_| Failure::failed("an answer did not come"))?.map_err(broken)?;
        if answer.status != plan.status {
            let text = String::from_utf8_lossy(&buffer[..answer.length]).into_owned();
            return Err(Failure::failed(format!("{} was expected, but the answer was:\n{text}", plan.status)));
        }
        buffer.drain(..answer.length);
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(LONGEST_US);
        latencies.saturating_record(micros.min(LONGEST_US));
    }
    Ok(latencies)
}

struct Answer {
    status: u16,
    /// Head and body, in the buffer.
    length: usize,
}

async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Answer> {
    loop {
        if let Some(answer) = parse(buffer)?
            && buffer.len() >= answer.length
        {
            return Ok(answer);
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `None`: the head is not all there.
fn parse(buffer: &[u8]) -> std::io::Result<Option<Answer>> {
    let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let malformed = || std::io::Error::other("an answer without status or content-length");
    let text = std::str::from_utf8(&buffer[..head]).map_err(std::io::Error::other)?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(malformed)?;
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(Some(Answer { status, length: head + 4 + length.ok_or_else(malformed)? }))
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).map_err(|error| Failure::failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let whole = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 202";
        let answer = parse(whole).unwrap().unwrap();
        assert_eq!((answer.status, answer.length), (202, whole.len() - "HTTP/1.1 202".len()));
        assert!(parse(&whole[..30]).unwrap().is_none());
        assert!(parse(b"HTTP/1.1 202 Accepted\r\nfoo: 5\r\n\r\n").is_err());
    }
}
