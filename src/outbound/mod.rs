//! The one way to speak HTTP to the outside: every client has deadlines, follows no redirect and repeats nothing.
//!
//! A redirect could carry a token to another host, and a client that repeats a request by itself could post twice:
//! both decisions belong to the code that knows what the request does. Proxies named in the environment are
//! ignored, so that what leaves a process is what its settings say. An address that a user gave goes through
//! [`fetch`] and nothing else.

pub mod addresses;
pub mod fetch;
pub mod pace;

use std::{sync::Once, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::{Client, ClientBuilder, Response, redirect, retry};

/// To reach a host at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two pieces of an answer. A whole request needs a deadline of its own: [`reqwest::RequestBuilder::timeout`].
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Shorter than the idle limit of common load balancers, so that a kept connection is rarely a dead one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("the HTTP client could not be made: this machine needs its CA certificates (package ca-certificates)")]
    Client(#[source] reqwest::Error),
    #[error("the answer is larger than the {limit_bytes} bytes allowed for it")]
    TooLarge { limit_bytes: usize },
    #[error("the answer broke off")]
    Broken(#[source] reqwest::Error),
}

/// A client for all requests of one program: cheap to clone, keeps its connections.
pub fn client() -> Result<Client, OutboundError> {
    builder().build().map_err(OutboundError::Client)
}

/// The agreed limits, for a caller that needs its own on top.
pub fn builder() -> ClientBuilder {
    install_tls_provider();
    Client::builder()
        .user_agent(concat!("Multivio/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(15))
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .no_proxy()
        // Nothing is unpacked, whatever a dependency switches on: a small answer stays small.
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
}

/// Reads a whole answer, never more than `limit_bytes` of it.
pub async fn body(mut response: Response, limit_bytes: usize) -> Result<Bytes, OutboundError> {
    if response.content_length().is_some_and(|length| length > limit_bytes as u64) {
        return Err(OutboundError::TooLarge { limit_bytes });
    }
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(OutboundError::Broken)? {
        if body.len() + chunk.len() > limit_bytes {
            return Err(OutboundError::TooLarge { limit_bytes });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another part of the program may have installed one already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers every connection with `answer` and tells how many there were.
    async fn server(answer: &'static str) -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = served.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, served)
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_not_a_journey() {
        let (url, served) = server("HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n").await;
        let response = client().unwrap().get(url).send().await.unwrap();
        assert_eq!(response.status(), 302);
        assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_answer_is_read_as_it_comes_and_never_unpacked() {
        let packed = "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\npacked";
        let (url, _) = server(packed).await;
        let response = client().unwrap().get(url).send().await.unwrap();
        assert_eq!(body(response, 6).await.unwrap(), "packed");
    }

    #[tokio::test]
    async fn a_lost_answer_is_not_asked_for_again() {
        let (url, served) = server("").await;
        assert!(client().unwrap().post(url).body("once").send().await.is_err());
        assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_answer_larger_than_its_limit_is_refused_whether_or_not_it_says_so() {
        let said = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n";
        let unsaid = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n0123456789";
        for answer in [said, unsaid] {
            let (url, _) = server(answer).await;
            let response = client().unwrap().get(url).send().await.unwrap();
            assert!(matches!(body(response, 5).await, Err(OutboundError::TooLarge { limit_bytes: 5 })));
        }
    }
}
