//! Every error that leaves the API: an RFC 9457 problem document with a stable `code`.
//!
//! A problem names the field and the remedy, and never carries what only the log may know: SQL, addresses of
//! servers, secrets. What went wrong inside is logged once, here, with the request's id; the document repeats that
//! id so that a person can be helped.

use std::{error::Error, fmt, time::Duration};

use poem::{
    IntoResponse, Response,
    error::ResponseError,
    http::{HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaResponses, Registry},
    types::Type,
};
use serde::{Deserialize, Serialize};

use crate::telemetry::chain;

/// What a handler returns when it cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem(Box<ProblemDocument>);

/// What is wrong, in the form of RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Object, Serialize, Deserialize)]
#[oai(rename = "Problem", skip_serializing_if_is_none, skip_serializing_if_is_empty)]
pub struct ProblemDocument {
    /// `urn:multivio:problem:` and the code.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, in a few words.
    pub title: String,
    pub status: u16,
    /// Stable: programs decide by this.
    pub code: String,
    /// This occurrence, in a sentence a person can act on.
    pub detail: String,
    /// The field that is wrong, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Every field that is wrong, all at once.
    #[oai(default)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Seconds after which trying again makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// Names this request in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// One field that is wrong and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Object, Serialize, Deserialize)]
pub struct FieldError {
    /// Where: `content`, `media[2].alt_text`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
    /// What to send instead.
    pub remedy: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), remedy: remedy.into() }
    }
}

/// How long a client should wait when a server behind us is away.
const AWAY: Duration = Duration::from_secs(2);

impl Problem {
    pub fn new(status: StatusCode, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(ProblemDocument {
            kind: format!("urn:multivio:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            code: code.to_owned(),
            detail: detail.into(),
            field: None,
            errors: Vec::new(),
            retry_after: None,
            request_id: None,
        }))
    }

    /// The request could not be understood: not JSON, a parameter of the wrong form.
    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, "The request could not be understood", detail)
    }

    /// A parameter that is not what it must be.
    pub fn bad_parameter(field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let error = FieldError::new(field, message, remedy);
        Self::bad_request("bad_parameter", format!("{}: {}. {}", error.field, error.message, error.remedy))
            .with_errors(vec![error])
    }

    /// One answer for every way in which a credential can be wrong: an attacker learns nothing from it.
    pub fn unauthorized() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Not signed in",
            "Send a valid, unexpired token or API key: `Authorization: Bearer <token>` (`multivio token` makes one for development).",
        )
    }

    /// Signed in, but not allowed to do this: by scope, role or the limits of a key.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    /// The token is good, but whoever it names is not let in.
    pub fn user_disabled() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "user_disabled",
            "Not let in any more",
            "This user is disabled. Whoever runs this installation can say why, and enable them again.",
        )
    }

    /// Signed in, but too long ago for what they want to do.
    pub fn sign_in_again(limit: Duration) -> Self {
        let text = format!(
            "This needs a sign-in of the last {} seconds. Sign in again, and send the call with the new token.",
            limit.as_secs()
        );
        Self::new(StatusCode::FORBIDDEN, "sign_in_again", "Sign in again", text)
    }

    /// As many event streams as one caller may follow at once.
    pub fn too_many_streams(most: usize, retry_after: Duration) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_streams",
            "Too many event streams",
            format!("You follow {most} jobs at once already. Close a stream, or wait for news with `wait`."),
        )
        .with_retry_after(retry_after)
    }

    /// One answer for a workspace that does not exist and one that the caller is no member of.
    pub fn no_such_workspace() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "no_such_workspace",
            "Not your workspace",
            "X-Workspace names no workspace that this credential opens. GET /api/v1/workspaces lists yours.",
        )
    }

    /// Also the answer for what exists but belongs to someone else. `what` is a word such as "post".
    pub fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "Not found",
            format!("There is no such {what}, or it is not yours."),
        )
    }

    /// What was asked does not fit the state the thing is in.
    pub fn conflict(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "Conflict with the present state", detail)
    }

    /// The moment at which this was still possible has passed.
    pub fn too_late(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "too_late", "Too late", detail)
    }

    pub fn payload_too_large(limit_bytes: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "payload_too_large",
            "The body is too large",
            format!("The body may have up to {limit_bytes} bytes here. Send files to /api/v1/media instead."),
        )
    }

    pub fn unsupported_media_type(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "The content type is not supported",
            detail,
        )
    }

    /// Understood, but some fields cannot be accepted: all of them at once.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => format!("{}: {}. {}", one.field, one.message, one.remedy),
            many => format!("{} fields cannot be accepted; see \"errors\".", many.len()),
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Some fields cannot be accepted", detail)
            .with_errors(errors)
    }

    /// Like [`Self::invalid`] for one field.
    pub fn invalid_field(field: impl Into<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(field, message, remedy)])
    }

    pub fn too_many_requests(retry_after: Duration) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limited",
            "Too many requests",
            "The limit of requests for this time window is used up.",
        )
        .with_retry_after(retry_after)
    }

    /// A server behind us (the database above all) is away for a moment.
    pub fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "Temporarily unavailable",
            "A server that is needed for this cannot be reached at the moment. Nothing was changed; try again.",
        )
        .with_retry_after(AWAY)
    }

    /// Our fault. The cause goes to the log, not to the client.
    pub fn internal(error: &(dyn Error + 'static)) -> Self {
        Self::internal_with(&chain(error))
    }

    /// Like [`Self::internal`] when there is no error value.
    pub fn internal_with(cause: &str) -> Self {
        let request_id = super::request_id::current();
        tracing::error!(request_id, cause, "a request failed");
        let mut problem = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something went wrong on our side",
            "The cause is in the server's log under this request's id.",
        );
        problem.0.request_id = request_id;
        problem
    }

    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.field = match errors.as_slice() {
            [one] => Some(one.field.clone()),
            _ => None,
        };
        self.0.errors = errors;
        self
    }

    pub fn with_retry_after(mut self, after: Duration) -> Self {
        // Rounded up: a client that waits this long must not come too early.
        self.0.retry_after = Some(after.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX));
        self
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).expect("made from a StatusCode")
    }

    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// Seconds after which the same request may succeed.
    pub fn retry_after(&self) -> Option<u64> {
        self.0.retry_after
    }

    pub fn document(&self) -> &ProblemDocument {
        &self.0
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.detail)
    }
}

impl Error for Problem {}

/// The database away is the client's cue to come back; anything else is ours to look into.
impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        if !crate::db::is_away(&error) {
            return Self::internal(&error);
        }
        tracing::warn!(cause = chain(&error), "the database cannot be reached");
        Self::unavailable()
    }
}

impl ResponseError for Problem {
    fn status(&self) -> StatusCode {
        Self::status(self)
    }

    fn as_response(&self) -> Response {
        let body = serde_json::to_vec(&*self.0).expect("a problem is plain data");
        let mut response = Response::builder().status(self.status()).content_type(CONTENT_TYPE).body(body);
        let headers = response.headers_mut();
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.0.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"multivio\""));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.as_response()
    }
}

pub const CONTENT_TYPE: &str = "application/problem+json";

/// Which refusals a call knows is told by its shape: see [`super::refusals`].
impl ApiResponse for Problem {
    fn meta() -> MetaResponses {
        MetaResponses { responses: Vec::new() }
    }

    fn register(registry: &mut Registry) {
        ProblemDocument::register(registry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(problem: &Problem) -> serde_json::Value {
        serde_json::to_value(problem.document()).unwrap()
    }

    #[test]
    fn a_problem_with_one_wrong_field_names_it() {
        let problem = Problem::invalid_field("content", "is empty", "Send at least one character");
        assert_eq!(problem.status(), 422);
        assert_eq!(json(&problem)["field"], "content");
        assert_eq!(json(&problem)["errors"][0]["remedy"], "Send at least one character");
    }

    #[test]
    fn an_unreachable_database_asks_to_come_back_and_leaks_nothing() {
        let problem = Problem::from(sqlx::Error::Io(std::io::Error::other("10.0.0.7:5432 refused")));
        assert_eq!((problem.status().as_u16(), problem.document().retry_after), (503, Some(2)));
        assert!(!json(&problem).to_string().contains("10.0.0.7"));
    }

    #[test]
    fn another_database_error_is_ours_and_leaks_nothing() {
        let problem = Problem::from(sqlx::Error::ColumnNotFound("secret detail".into()));
        assert_eq!((problem.status().as_u16(), problem.code()), (500, "internal"));
        assert!(!json(&problem).to_string().contains("secret detail"));
    }

    #[test]
    fn waiting_times_are_rounded_up() {
        let problem = Problem::too_many_requests(Duration::from_millis(1001));
        assert_eq!(problem.document().retry_after, Some(2));
    }
}
