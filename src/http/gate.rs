//! The gate before every call: who it is, whether there is still room in the limit, a body of bounded size that
//! arrives in bounded time, and an answer in bounded time. In that order, so that a stranger costs least.
//!
//! Closed by default: below `/api` nothing is answered without a valid credential but what the router names as
//! public, and whoever may only read gets no further with a write than to what the router names as open to readers.

use std::{io, net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use poem::{
    Body, Endpoint, IntoResponse, Middleware, Request, Response, Result,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
};

use super::{
    App, FieldError, Problem,
    auth::{Caller, Scope, caller_of},
    client_address::{ClientAddress, Proxies},
    framing,
    limits::{OPEN_LIMIT, RateLimiter, Subject, Verdict},
};

/// A body that is not a file.
pub const MAX_BODY_BYTES: u64 = 1 << 20;
/// Longest such a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(20);
/// Longest any answer may take to begin, long polls included; uploads take as long as they take.
pub const ANSWER_TIME: Duration = Duration::from_secs(40);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What the gate must know about paths, from the router.
#[derive(Debug, Clone, Copy)]
pub struct Paths {
    /// Beginnings of paths that are open to everyone and counted like every call, wherever they are.
    pub public: &'static [&'static str],
    /// Beginnings of paths where a write is no change of the workspace: questions, and what concerns the caller alone.
    pub open_to_readers: &'static [&'static str],
    /// Paths to which files are posted: streamed, not gathered. An answer there takes as long as its file.
    pub uploads: &'static [&'static str],
    /// The largest of those.
    pub largest_file_bytes: u64,
    /// Beginnings of paths by which others see how we are.
    pub health: &'static [&'static str],
    /// For how many requests a call counts.
    pub cost: fn(&Method, &str) -> u32,
}

impl Default for Paths {
    fn default() -> Self {
        Self { public: &[], open_to_readers: &[], uploads: &[], largest_file_bytes: 0, health: &[], cost: |_, _| 1 }
    }
}

pub struct Gate {
    pub app: Arc<App>,
    pub limiter: Arc<RateLimiter>,
    pub paths: Paths,
}

impl<E: Endpoint> Middleware<E> for Gate {
    type Output = GateEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        let window = self.limiter.window().as_secs();
        let own = format!("\"{OWN}\";q={};w={window}", self.limiter.limit());
        let both = format!("{own}, \"{SHARED}\";q={};w={window}", self.limiter.address_limit());
        GateEndpoint {
            inner,
            app: Arc::clone(&self.app),
            limiter: Arc::clone(&self.limiter),
            paths: self.paths,
            proxies: Proxies::new(&self.app.config.api),
            policy: [text_header(&own), text_header(&both)],
            open_policy: text_header(&format!("\"{OPEN}\";q={OPEN_LIMIT};w={window}")),
        }
    }
}

pub struct GateEndpoint<E> {
    inner: E,
    app: Arc<App>,
    limiter: Arc<RateLimiter>,
    paths: Paths,
    proxies: Proxies,
    /// Of the caller alone, and with that of his address.
    policy: [HeaderValue; 2],
    open_policy: HeaderValue,
}

/// The names of the limits in the headers.
const KEY: &str = "key";
const OWN: &str = "requests";
const SHARED: &str = "address";
const OPEN: &str = "open";

/// What was counted, and the verdict that matters most.
struct Counted {
    name: &'static str,
    verdict: Verdict,
    by_address: bool,
    /// The limit of the key itself, where it has one.
    by_key: Option<NonZeroU32>,
}

impl<E: Endpoint> Endpoint for GateEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let body = Unread::of(&request);
        if let Some(refused) = framing::refused(&request) {
            return Ok(refused);
        }
        if !request.uri().path().starts_with("/api/") && !begins_with(&request, self.paths.public) {
            // Boxed, so that a call does not carry the room for it.
            return Box::pin(self.pass_open(request, body)).await;
        }
        let from = self.proxies.client(&request);
        // Wrong credentials are counted by address: whoever guesses is stopped before his guesses cost anything.
        let exhausted = || self.limiter.exhausted(Subject::strangers(from.ip));
        let caller = caller_of(&request, &self.app.auth, exhausted).await;
        let counted = self.count(&request, from, &caller).await;
        let mut response = match counted.verdict {
            Verdict::Refuse { retry_in } => body.answer(Problem::too_many_requests(retry_in)),
            Verdict::Pass { .. } => match self.admit(request, caller, from.ip) {
                Ok(request) => self.pass(request, body).await?,
                Err(problem) => body.answer(problem),
            },
        };
        self.tell(&counted, &mut response);
        Ok(response)
    }
}

impl<E: Endpoint> GateEndpoint<E> {
    /// A caller by the key he came with, by who he is and, with all others there, by where he comes from; a stranger by
    /// where he comes from. What one limit refuses does not use up the next.
    async fn count(&self, request: &Request, from: ClientAddress, caller: &Result<Option<Caller>, Problem>) -> Counted {
        let ClientAddress { ip, is_own } = from;
        let cost = (self.paths.cost)(request.method(), request.uri().path());
        let caller = caller.as_ref().ok().and_then(Option::as_ref);
        let key = caller.and_then(|caller| Some(Subject::Key(caller.key?, caller.key_limit?)));
        let by_key = caller.and_then(|caller| caller.key_limit);
        let own = caller.map_or_else(|| Subject::strangers(ip), |caller| Subject::User(caller.user));
        let (mut name, mut verdict) = match key {
            Some(key) => (KEY, self.limiter.count(key, cost).await),
            None => (OWN, self.limiter.count(own, cost).await),
        };
        let others = [(OWN, key.map(|_| own)), (SHARED, is_own.then(|| Subject::address(ip)))];
        for (other, subject) in others {
            let (Verdict::Pass { remaining, .. }, Some(subject)) = (verdict, subject) else { continue };
            match self.limiter.count(subject, cost).await {
                Verdict::Pass { remaining: as_well, .. } if as_well >= remaining => {}
                tighter => (name, verdict) = (other, tighter),
            }
        }
        Counted { name, verdict, by_address: is_own, by_key }
    }

    /// What is no call: open to everybody, and counted by address alone.
    async fn pass_open(&self, request: Request, body: Unread) -> Result<Response> {
        let ip = self.proxies.client(&request).ip;
        let is_health = begins_with(&request, self.paths.health);
        let subject = if is_health { Subject::health(ip) } else { Subject::open(ip) };
        let verdict = self.limiter.count(subject, (self.paths.cost)(request.method(), request.uri().path())).await;
        let mut response = match verdict {
            Verdict::Refuse { retry_in } => body.answer(Problem::too_many_requests(retry_in)),
            Verdict::Pass { .. } => self.pass(request, body).await?,
        };
        let headers = response.headers_mut();
        headers.insert(RATE_LIMIT_POLICY, self.open_policy.clone());
        headers.insert(RATE_LIMIT, left(OPEN, verdict));
        Ok(response)
    }

    fn admit(
        &self,
        mut request: Request,
        caller: Result<Option<Caller>, Problem>,
        address: IpAddr,
    ) -> Result<Request, Problem> {
        match caller? {
            Some(caller) => {
                // Each call says which scope it needs; that a reader writes nothing does not hang on any of them.
                if !caller.scopes.may_write()
                    && is_write(&request)
                    && !begins_with(&request, self.paths.open_to_readers)
                {
                    caller.require(Scope::Publish)?;
                }
                request.extensions_mut().insert(Caller { address: Some(address), ..caller });
            }
            None if begins_with(&request, self.paths.public) => {}
            None => return Err(Problem::unauthorized()),
        }
        Ok(request)
    }

    async fn pass(&self, mut request: Request, body: Unread) -> Result<Response> {
        if !is_write(&request) {
            // Nothing reads what comes with a question.
            return Ok(body.answer(self.answer(request).await?));
        }
        if let Some(refused) = encoded(&request) {
            return Ok(body.answer(refused));
        }
        if is_upload(&request, self.paths.uploads) {
            if let Err(problem) = bound_file(&mut request, self.paths.largest_file_bytes) {
                return Ok(body.answer(problem));
            }
            // Boxed, so that the usual request does not carry the room for it.
            let response = Box::pin(self.inner.call(request)).await?.into_response();
            // A refused file is not read to its end.
            return Ok(if response.status().is_success() { response } else { body.answer(response) });
        }
        match gather_body(&mut request).await {
            Ok(()) => self.answer(request).await,
            Err(problem) => Ok(body.answer(problem)),
        }
    }

    async fn answer(&self, request: Request) -> Result<Response> {
        match tokio::time::timeout(ANSWER_TIME, self.inner.call(request)).await {
            Ok(answer) => Ok(answer?.into_response()),
            Err(_elapsed) => Ok(took_too_long().into_response()),
        }
    }

    fn tell(&self, counted: &Counted, response: &mut Response) {
        let headers = response.headers_mut();
        let policy = &self.policy[usize::from(counted.by_address)];
        let policy = counted.by_key.map_or_else(|| policy.clone(), |limit| self.policy_with(limit, policy));
        headers.insert(RATE_LIMIT_POLICY, policy);
        headers.insert(RATE_LIMIT, left(counted.name, counted.verdict));
    }

    fn policy_with(&self, key_limit: NonZeroU32, others: &HeaderValue) -> HeaderValue {
        let others = others.to_str().expect("it was made of text");
        let window = self.limiter.window().as_secs();
        text_header(&format!("\"{KEY}\";q={key_limit};w={window}, {others}"))
    }
}

/// Whether a body comes with a request. An answer that is given before all of it was read ends the connection, and says
/// so: a client that took the connection for a good one would lose its next request there.
#[derive(Clone, Copy)]
struct Unread(bool);

impl Unread {
    fn of(request: &Request) -> Self {
        Self(request.headers().contains_key(header::TRANSFER_ENCODING) || declared_length(request) > Some(0))
    }

    fn answer(self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        if self.0 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// What is left of the limit of that name.
fn left(name: &str, verdict: Verdict) -> HeaderValue {
    let (remaining, resets_in) = match verdict {
        Verdict::Pass { remaining, resets_in } => (remaining, resets_in),
        Verdict::Refuse { retry_in } => (0, retry_in),
    };
    let seconds = resets_in.as_millis().div_ceil(1000);
    text_header(&format!("\"{name}\";r={remaining};t={seconds}"))
}

/// A body is read as it comes: what is packed could grow without bound when it is unpacked.
fn encoded(request: &Request) -> Option<Response> {
    let encodings = request.headers().get_all(header::CONTENT_ENCODING);
    if encodings.iter().all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return None;
    }
    let mut response = Problem::unsupported_media_type("Send the body as it is, without Content-Encoding.")
        .with_errors(vec![FieldError::new("Content-Encoding", "is not taken", "Leave it out")])
        .into_response();
    response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Some(response)
}

fn text_header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("quotes, letters and digits are a valid header")
}

fn is_write(request: &Request) -> bool {
    !matches!(*request.method(), Method::GET | Method::HEAD)
}

fn begins_with(request: &Request, paths: &[&str]) -> bool {
    paths.iter().any(|path| request.uri().path().starts_with(path))
}

/// Whether a file comes with it. Everything else has to be small and to be answered in time, also where files are.
fn is_upload(request: &Request, paths: &[&str]) -> bool {
    let is_json = |kind: &str| kind.trim_start().to_ascii_lowercase().starts_with("application/json");
    *request.method() == Method::POST
        && paths.contains(&request.uri().path())
        && !request.content_type().is_some_and(is_json)
}

fn declared_length(request: &Request) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a small body whole, here, so that no handler can be kept waiting by a slow client or fed without end.
async fn gather_body(request: &mut Request) -> Result<(), Problem> {
    if declared_length(request).is_some_and(|length| length > MAX_BODY_BYTES) {
        return Err(Problem::payload_too_large(MAX_BODY_BYTES));
    }
    let body = request.take_body();
    if body.is_empty() {
        return Ok(());
    }
    let gathered = tokio::time::timeout(BODY_TIME, gather(body.into_bytes_stream())).await;
    let bytes = gathered.map_err(|_elapsed| body_too_slow())??;
    request.set_body(bytes);
    Ok(())
}

async fn gather(mut chunks: impl Stream<Item = io::Result<Bytes>> + Unpin) -> Result<Bytes, Problem> {
    let mut bytes = Bytes::new();
    let mut more = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_error| cut_off())?;
        if (bytes.len() + more.len() + chunk.len()) as u64 > MAX_BODY_BYTES {
            return Err(Problem::payload_too_large(MAX_BODY_BYTES));
        }
        // The usual body comes in one piece and is passed on as it is.
        if bytes.is_empty() && more.is_empty() {
            bytes = chunk;
        } else {
            if more.is_empty() {
                more.extend_from_slice(&std::mem::take(&mut bytes));
            }
            more.extend_from_slice(&chunk);
        }
    }
    Ok(if more.is_empty() { bytes } else { more.into() })
}

/// A file is never gathered: it is counted as it flows, and breaks off where it grows beyond the limit.
fn bound_file(request: &mut Request, limit_bytes: u64) -> Result<(), Problem> {
    match declared_length(request) {
        Some(length) if length > limit_bytes => return Err(Problem::payload_too_large(limit_bytes)),
        Some(_kept_by_hyper) => return Ok(()),
        None => {}
    }
    let mut seen = 0;
    let counted = request.take_body().into_bytes_stream().map(move |chunk| {
        let chunk = chunk?;
        seen += chunk.len() as u64;
        if seen > limit_bytes { Err(io::Error::other(TooLarge { limit_bytes })) } else { Ok(chunk) }
    });
    request.set_body(Body::from_bytes_stream(counted));
    Ok(())
}

/// Inside the error of a body that grew beyond its limit while it was streamed.
#[derive(Debug, thiserror::Error)]
#[error("the body has more than {limit_bytes} bytes")]
pub struct TooLarge {
    pub limit_bytes: u64,
}

fn body_too_slow() -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "body_too_slow",
        "The body took too long",
        format!("The body has to arrive within {} seconds. Send the request again.", BODY_TIME.as_secs()),
    )
}

fn cut_off() -> Problem {
    Problem::bad_request("body_cut_off", "The body ended before it was complete. Send the request again.")
}

fn took_too_long() -> Problem {
    tracing::warn!("a call took longer than any may and was given up");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "timeout",
        "The answer took too long",
        "The call was given up. It may or may not have been done: send it again with the same Idempotency-Key.",
    )
    .with_retry_after(Duration::from_secs(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_that_is_posted_where_files_are_taken_has_the_time_of_an_upload() {
        let is_upload = |method: Method, path: &str, kind: &str| {
            let request = Request::builder().method(method).uri_str(path).header("content-type", kind).finish();
            is_upload(&request, &["/api/v1/media"])
        };
        let form = "multipart/form-data; boundary=b";
        assert!(is_upload(Method::POST, "/api/v1/media", form));
        assert!(is_upload(Method::POST, "/api/v1/media?x=1", "application/octet-stream"));
        for (method, path, kind) in [
            (Method::POST, "/api/v1/media", "application/json"),
            (Method::DELETE, "/api/v1/media/med_1", form),
            (Method::DELETE, "/api/v1/media/med_1", ""),
            (Method::DELETE, "/api/v1/media", form),
            (Method::POST, "/api/v1/media/med_1/transcode", form),
            (Method::POST, "/api/v1/media/import", form),
            (Method::POST, "/api/v1/mediawiki", form),
            (Method::POST, "/api/v1/posts", form),
        ] {
            assert!(!is_upload(method.clone(), path, kind), "{method} {path} {kind}");
        }
    }

    async fn gathered(chunks: Vec<io::Result<&'static [u8]>>) -> Result<Bytes, Problem> {
        gather(futures::stream::iter(chunks.into_iter().map(|chunk| chunk.map(Bytes::from_static)))).await
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_put_together() {
        assert_eq!(gathered(vec![Ok(b"one")]).await.unwrap(), "one");
        assert_eq!(gathered(vec![Ok(b"one "), Ok(b""), Ok(b"two "), Ok(b"three")]).await.unwrap(), "one two three");
    }

    #[tokio::test]
    async fn a_body_that_grows_beyond_the_limit_or_breaks_off_is_refused() {
        static HALF: [u8; (MAX_BODY_BYTES as usize) / 2] = [b'x'; (MAX_BODY_BYTES as usize) / 2];
        assert!(gathered(vec![Ok(&HALF), Ok(&HALF)]).await.is_ok());
        assert_eq!(gathered(vec![Ok(&HALF), Ok(&HALF), Ok(b"x")]).await.unwrap_err().status(), 413);
        assert_eq!(gathered(vec![Ok(b"x"), Err(io::Error::other("gone"))]).await.unwrap_err().code(), "body_cut_off");
    }
}
