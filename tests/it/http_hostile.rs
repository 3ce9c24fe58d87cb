//! Streams of bytes that misbehave: without end, without sense, or with two meanings.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{harness::App, http::Served};

#[tokio::test]
async fn a_body_without_a_length_is_counted_while_it_flows() {
    let served = Served::new(&App::new().await).await;
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b'x'; 64 << 10]));
    let request = served.echo(reqwest::Body::wrap_stream(endless));
    // The server answers and closes before the client has sent everything; either end may see it first.
    if let Ok(response) = request.send().await {
        assert_eq!(response.status(), 413);
    }
    assert_eq!(served.echo("{\"text\": \"on\"}").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_is_no_http_or_ends_early_harms_nobody() {
    let served = Served::new(&App::new().await).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    let heads = [
        "\u{0}\u{1}\u{2}\r\n\r\n".to_owned(),
        "GET /api/v1/list HTTP/9.9\r\n\r\n".to_owned(),
        "POST /api/v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{".to_owned(),
        format!("GET /api/v1/list HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)),
    ];
    for head in heads {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let _cut = stream.write_all(head.as_bytes()).await;
        let _closed = stream.shutdown().await;
        let mut answer = Vec::new();
        let _reset = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains(" 200 ") && !answer.contains(" 500 "), "{answer}");
    }
    assert_eq!(served.echo("{\"text\": \"on\"}").send().await.unwrap().status(), 200);
}

/// One connection of HTTP/2 carries any number of calls, and pings keep it whatever its client takes.
#[tokio::test]
async fn http_2_is_told_to_speak_http_1_and_left() {
    let served = Served::new(&App::new().await).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    // The preface, an empty SETTINGS, and a PING that a server of HTTP/2 answers.
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    let ping = b"\0\0\x08\x06\0\0\0\0\0pingpong";
    let opening = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], settings, ping].concat();
    for piece in [opening.len(), 5] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        for bytes in opening.chunks(piece) {
            let _left = stream.write_all(bytes).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        ended.expect("the connection ends").expect("the answer arrives");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 505 ") && !answer.contains("pingpong"), "{answer:?}");
    }
    assert_eq!(served.echo("{\"text\": \"on\"}").send().await.unwrap().status(), 200);
}

/// What two servers could understand differently is understood by none: behind each body waits a request that only
/// who was misled would answer.
#[tokio::test]
async fn a_request_smuggled_in_anothers_body_is_never_answered() {
    let served = Served::new(&App::new().await).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\nx-request-id: smuggled\r\n\r\n";
    let chunk = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    let good = "{\"text\": \"on\"}".to_owned();
    let behind = format!("{:x}\r\n{good}\r\n0\r\n\r\n{smuggled}", good.len());
    let body = smuggled.to_owned();
    let long = smuggled.len();
    for (head, body) in [
        // Two lengths.
        (format!("content-length: {long}\r\ncontent-length: 0\r\n"), &body),
        (format!("content-length: 0, {long}\r\n"), &body),
        (format!("content-length: +{long}\r\n"), &body),
        (format!("content-length : {long}\r\n"), &body),
        // A length beside chunks: the chunks count, so that what is inside of them is body.
        ("content-length: 0\r\ntransfer-encoding: chunked\r\n".to_owned(), &chunk),
        ("transfer-encoding: chunked\r\ncontent-length: 4\r\n".to_owned(), &chunk),
        // Chunks that are none.
        (format!("transfer-encoding: xchunked\r\ncontent-length: {long}\r\n"), &body),
        (format!("transfer-encoding: chunked, identity\r\ncontent-length: {long}\r\n"), &body),
        (format!("transfer-encoding : chunked\r\ncontent-length: {long}\r\n"), &body),
        // A header in two lines, as nobody writes them any more.
        (format!("x-a: b\r\n content-length: 0\r\ncontent-length: {long}\r\n"), &body),
        (format!("transfer-encoding:\r\n chunked\r\ncontent-length: {long}\r\n"), &body),
        (format!("x\0y: z\r\ncontent-length: {long}\r\n"), &body),
        // Codings in a row: whoever stops at the first takes what comes behind the chunks for body.
        ("transfer-encoding: chunked, chunked\r\n".to_owned(), &behind),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n".to_owned(), &behind),
        ("transfer-encoding: gzip, chunked\r\n".to_owned(), &behind),
        // For two servers at once.
        (format!("host: y\r\ncontent-length: {}\r\n", good.len()), &good),
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "POST /api/v1/echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\n{head}\r\n{body}",
            served.token
        );
        let _cut = stream.write_all(request.as_bytes()).await;
        let _closed = stream.shutdown().await;
        let mut answer = Vec::new();
        let _reset = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 4"), "{head:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head:?} was answered twice: {answer}");
        assert!(!answer.contains("smuggled"), "{head:?}: {answer}");
    }
    assert_eq!(served.echo("{\"text\": \"on\"}").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_packed_body_is_refused_before_it_is_read() {
    let served = Served::new(&App::new().await).await;
    for encoding in ["gzip", "br", "zstd", "deflate", "identity, gzip", "x-unheard-of"] {
        let response = served.echo(vec![0x1f; 4096]).header("content-encoding", encoding).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["accept-encoding"]),
            (415, &"identity".parse().unwrap())
        );
        assert_eq!(response.json::<Value>().await.unwrap()["field"], "Content-Encoding");
    }
    let plain = served.echo("{\"text\": \"on\"}").header("content-encoding", "identity").send().await.unwrap();
    assert_eq!(plain.status(), 200);
}

/// A client that took such a connection for a good one would lose its next request there.
#[tokio::test]
async fn an_answer_given_before_the_body_was_read_ends_the_connection_and_says_so() {
    let app = App::new().await;
    let served = Served::new(&app).await;
    let api = app.api().await;
    let large = vec![b' '; (2 << 20) + 1];
    let unread = [
        ("of a stranger", 401, api.client.post(format!("{}/api/v1/posts", api.url)).body("{}")),
        ("too large", 413, served.echo(large)),
        ("packed", 415, served.echo("x").header("content-encoding", "gzip")),
        ("that nobody asked for", 200, served.request(Method::GET, "/api/v1/list").body("x")),
    ];
    for (which, status, request) in unread {
        let answer = request.send().await.unwrap();
        let ends = answer.headers().get("connection").is_some_and(|value| value == "close");
        assert_eq!((answer.status().as_u16(), ends), (status, true), "a body {which}");
    }
    let read = [
        ("none from a stranger", 401, api.client.get(format!("{}/api/v1/posts", api.url))),
        ("a wrong one", 422, served.echo("{\"text\": 1}")),
        ("a good one", 200, served.echo("{\"text\": \"on\"}")),
    ];
    for (which, status, request) in read {
        let answer = request.send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().get("connection")), (status, None), "{which}");
    }
}

/// 127 levels are read; what is deeper is refused before it could exhaust a stack.
#[tokio::test]
async fn a_body_nested_without_end_is_refused_at_any_depth() {
    let served = Served::new(&App::new().await).await;
    for (depth, status) in [(100, 422), (128, 400), (200_000, 400)] {
        let body = format!("{{\"text\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(served.echo(body).send().await.unwrap().status(), status, "{depth} levels");
    }
}
