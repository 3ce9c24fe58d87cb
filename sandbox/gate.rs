//! The way every request takes to a twin: read, logged, struck by a fault or not, worked, answered.
//!
//! The work runs in a task of its own, so that a caller who hangs up changes nothing: a service that has read
//! a request goes on with it. That is the interleaving reliable publishing is about.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use poem::{
    Body, FromRequest, IntoResponse, Request, RequestBody, Response,
    http::{HeaderMap, Method, StatusCode, header},
    web::Multipart,
};
use serde_json::Value;

use crate::{
    exchange::{Answer, Call, Events, Operation, Part, Payload},
    faults::{Effect, Fault, Target, Twist},
    log::{Arrival, State},
    state::Sandbox,
    wire::Line,
};

/// Larger than any single request the twins accept, so that they can refuse it in their own words.
const BODY_LIMIT_BYTES: usize = 64 * 1024 * 1024;
const BODY_DEADLINE: Duration = Duration::from_secs(60);
/// How long the pieces of a stream get to leave before their connection is cut.
const FLUSH_MS: u64 = 30;

/// A stand-in for one outside service.
pub trait Twin: Send + Sync {
    fn service(&self) -> &'static str;

    /// The path under which it is mounted.
    fn prefix(&self) -> &'static str;

    fn operations(&self) -> &'static [Operation];

    /// The operation of a call, where the route alone does not tell.
    fn refine(&self, operation: &'static Operation, _call: &Call) -> &'static Operation {
        operation
    }

    /// Whose account the call is about, as far as its credentials tell. Never a reason to refuse.
    fn account(&self, call: &Call) -> Option<String>;

    /// The account that is meant by an id or a name; `None` when there is none.
    fn find_account(&self, id_or_name: &str) -> Option<String>;

    /// Does the work. `operation` is `None` for a path or method the service does not have.
    fn serve(&self, operation: Option<&'static Operation>, call: &Call, twist: Option<&Twist>) -> Answer;

    /// What of a body may stand in the log; `None` for bodies that carry secrets.
    fn loggable(&self, operation: &'static str, call: &Call) -> Option<String>;

    /// The service's documented errors by name.
    fn errors(&self) -> Vec<&'static str>;
    fn error(&self, name: &str) -> Option<Answer>;
    fn rate_limited(&self, operation: &'static str, reset_in_s: u64) -> Answer;

    /// The faults only this service has.
    fn twists(&self) -> &'static [&'static str];
    /// The one operation they belong to.
    fn twist_operation(&self) -> &'static str;
    fn check_twist(&self, name: &str, value: &Value) -> Result<(), String>;

    /// Headers that every answer carries.
    fn common_headers(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Answers one request to a twin.
pub async fn pass(sandbox: Arc<Sandbox>, twin: Arc<dyn Twin>, request: Request) -> Response {
    let peer = request.remote_addr().as_socket_addr().copied();
    let line = peer.and_then(|peer| sandbox.connections.line(peer));
    let call = match read(request, twin.prefix()).await {
        Ok(call) => call,
        Err(status) => return status.into_response(),
    };
    let (operation, name) = find(twin.as_ref(), &call);
    let account = twin.account(&call);
    let seq = sandbox.log.arrive(Arrival {
        service: twin.service(),
        operation: name,
        method: call.method.to_string(),
        path: call.path.clone(),
        account: account.clone(),
        body: twin.loggable(name, &call),
    });
    let target = Target { service: twin.service(), operation: name, account: account.as_deref(), body: &call.body };
    let fault = sandbox.faults.strike(&target);
    if let Some(fault) = &fault {
        sandbox.log.update(seq, |entry| entry.fault = Some(fault.id));
    }

    let work = tokio::spawn(work(Arc::clone(&sandbox), Arc::clone(&twin), operation, name, call, fault, seq));
    let outcome = work.await;
    if line.as_ref().is_some_and(|line| line.has_left()) {
        sandbox.log.update(seq, |entry| entry.caller_gone = true);
    }
    match outcome {
        Ok(Some(answer)) => respond(answer, twin.common_headers(), line),
        Ok(None) => {
            if let Some(line) = line {
                line.cut();
            }
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        // A panic in a twin: the server says so itself rather than pretending to be the service.
        Err(error) => {
            tracing::error!(%error, operation = name, "a twin failed");
            StatusCode::NOT_IMPLEMENTED.into_response()
        }
    }
}

/// `None` is the answer that never comes.
async fn work(
    sandbox: Arc<Sandbox>,
    twin: Arc<dyn Twin>,
    operation: Option<&'static Operation>,
    name: &'static str,
    call: Call,
    fault: Option<Fault>,
    seq: u64,
) -> Option<Answer> {
    let committed = |id: Option<String>| {
        if id.is_some() {
            sandbox.log.update(seq, |entry| entry.committed = id);
        }
    };
    let (effect, delay_ms) = fault.map_or((Effect::Delay, 0), |fault| (fault.effect, fault.delay_ms));
    pause(delay_ms).await;
    let serve = |twist: Option<&Twist>| {
        let answer = twin.serve(operation, &call, twist);
        committed(answer.committed.clone());
        answer
    };
    let answer = match &effect {
        Effect::Delay => Some(serve(None)),
        Effect::Refuse(refusal) => Some(refusal.answer(twin.as_ref())),
        Effect::RateLimited { reset_in_s } => Some(twin.rate_limited(name, *reset_in_s)),
        Effect::DropBefore => None,
        Effect::HangMs(wait_ms) => {
            pause(*wait_ms).await;
            None
        }
        Effect::AcceptThenDrop => {
            serve(None);
            None
        }
        Effect::AcceptThenHangMs(wait_ms) => {
            serve(None);
            pause(*wait_ms).await;
            None
        }
        Effect::AcceptThenDelayMs(wait_ms) => {
            let answer = serve(None);
            pause(*wait_ms).await;
            Some(answer)
        }
        Effect::AcceptThenStatus(refusal) => {
            serve(None);
            Some(refusal.answer(twin.as_ref()))
        }
        Effect::Malformed => Some(serve(None).malformed()),
        Effect::Twist(twist) => Some(serve(Some(twist))),
    };
    if let Some(answer) = &answer {
        pause(answer.wait_ms).await;
    }
    match &answer {
        Some(answer) => sandbox.log.finish(seq, State::Answered, Some(answer.status), answer.committed.clone()),
        None => sandbox.log.finish(seq, State::Dropped, None, None),
    }
    answer
}

async fn pause(wait_ms: u64) {
    if wait_ms > 0 {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
}

fn find(twin: &dyn Twin, call: &Call) -> (Option<&'static Operation>, &'static str) {
    let method = call.method.as_str();
    let known = twin.operations().iter().find(|op| op.method == method && op.captures(&call.path).is_some());
    match known {
        Some(operation) => {
            let operation = twin.refine(operation, call);
            (Some(operation), operation.name)
        }
        None => (None, "unknown"),
    }
}

async fn read(mut request: Request, prefix: &str) -> Result<Call, StatusCode> {
    let body = request.take_body();
    let bytes = tokio::time::timeout(BODY_DEADLINE, body.into_bytes_limit(BODY_LIMIT_BYTES));
    let body = match bytes.await {
        Err(_) => return Err(StatusCode::REQUEST_TIMEOUT),
        Ok(Err(poem::error::ReadBodyError::PayloadTooLarge)) => {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        Ok(Err(_)) => return Err(StatusCode::BAD_REQUEST),
        Ok(Ok(body)) => body,
    };
    let uri = request.original_uri().clone();
    let origin = format!("http://{}", request.header("host").unwrap_or("127.0.0.1"));
    let path = uri.path().strip_prefix(prefix).unwrap_or(uri.path());
    let query = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let headers = request.headers().clone();
    let parts = parts(&headers, body.clone()).await;
    Ok(Call { method: request.method().clone(), path: String::from(path), query, headers, body, parts, origin })
}

async fn parts(headers: &HeaderMap, body: Bytes) -> Option<Vec<Part>> {
    let content_type = headers.get(header::CONTENT_TYPE)?;
    if !content_type.to_str().ok()?.to_ascii_lowercase().starts_with("multipart/form-data") {
        return None;
    }
    let request = Request::builder().method(Method::POST).header(header::CONTENT_TYPE, content_type).finish();
    let mut form = Multipart::from_request(&request, &mut RequestBody::new(Body::from_bytes(body))).await.ok()?;
    let mut parts = Vec::new();
    while let Some(field) = form.next_field().await.ok()? {
        let name = String::from(field.name()?);
        parts.push(Part { name, bytes: field.bytes().await.ok()?.into() });
    }
    Some(parts)
}

/// Turns an answer into an HTTP response.
pub fn respond(answer: Answer, common: Vec<(String, String)>, line: Option<Arc<Line>>) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder().status(status);
    for (name, value) in common.iter().chain(&answer.headers) {
        response = response.header(name.as_str(), value.as_str());
    }
    match answer.payload {
        Payload::Empty => response.finish(),
        Payload::Json(body) => response.content_type("application/json; charset=utf-8").body(body.to_string()),
        Payload::Text { content_type, text } => response.content_type(content_type).body(text),
        Payload::Bytes { content_type, bytes } => response.content_type(content_type).body(bytes),
        Payload::Events(events) => {
            let response =
                response.content_type("text/event-stream; charset=utf-8").header("cache-control", "no-cache");
            response.body(Body::from_bytes_stream(piece_by_piece(events, line)))
        }
    }
}

fn piece_by_piece(
    events: Events,
    line: Option<Arc<Line>>,
) -> impl futures::Stream<Item = Result<Bytes, io::Error>> + Send + 'static {
    let Events { pieces, first_delay_ms, delay_ms, cut } = events;
    let pieces = pieces.into_iter().map(Some).chain(cut.then_some(None)).enumerate();
    stream::unfold((pieces, line), move |(mut pieces, line)| async move {
        let (index, piece) = pieces.next()?;
        pause(if index == 0 { first_delay_ms } else { delay_ms }).await;
        let item = match piece {
            Some(text) => Ok(Bytes::from(text)),
            None => {
                // What was said so far has to leave first. An error alone is not enough: the server would end
                // the stream properly, and the caller could not tell that something is missing.
                pause(FLUSH_MS).await;
                if let Some(line) = &line {
                    line.cut();
                }
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault"))
            }
        };
        Some((item, (pieces, line)))
    })
}
