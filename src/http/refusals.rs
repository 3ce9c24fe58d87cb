//! With what each call may refuse: told in the document by the shape that a call has, in one place, so that no call lists
//! it by hand and none is forgotten. What is special to a call is declared where it stands, by [`Also`].

use poem::{Error, http::Method};
use poem_openapi::{
    ApiResponse,
    registry::{MetaHeader, MetaMediaType, MetaOperation, MetaResponse, MetaResponses, Registry},
    types::Type,
};

use super::{
    Problem, idempotency,
    problem::{CONTENT_TYPE, ProblemDocument},
};

/// The shape of a call, as far as refusals follow from it.
struct Shape {
    /// Who calls is asked for.
    needs_caller: bool,
    /// The path names a thing.
    names_a_thing: bool,
    /// Whatever comes with it is read, also where nothing is wanted.
    is_write: bool,
    takes_body: bool,
    takes_key: bool,
    /// Parts of a file can be asked for.
    has_parts: bool,
}

impl Shape {
    fn of(path: &str, operation: &MetaOperation) -> Self {
        Self {
            needs_caller: !operation.security.is_empty(),
            names_a_thing: path.contains('{'),
            is_write: operation.method != Method::GET,
            takes_body: operation.request.is_some(),
            takes_key: operation.params.iter().any(|parameter| parameter.name == idempotency::HEADER),
            has_parts: operation.params.iter().any(|parameter| parameter.name == "Range"),
        }
    }
}

/// A status, what it means, and which calls may answer with it by their shape alone.
type Refusal = (u16, &'static str, fn(&Shape) -> bool);

/// In ascending order, as the document has them.
const REFUSALS: [Refusal; 12] = [
    (400, "The request could not be understood", |_| true),
    (401, "No valid token", |call| call.needs_caller),
    (403, "Scope, role, key or plan do not allow it, or X-Workspace is none of yours", |call| call.needs_caller),
    (404, "No such thing, or it is not yours", |call| call.names_a_thing),
    (408, "The body took too long to arrive", |call| call.is_write),
    (409, "It does not fit the present state, or the same Idempotency-Key is under way", |call| call.takes_key),
    (413, "The body is too large", |call| call.is_write),
    (415, "The content type is not supported", |call| call.is_write),
    (416, "The file has no such part", |call| call.has_parts),
    (422, "Some fields cannot be accepted, or the Idempotency-Key was used with another body", |call| {
        call.takes_body || call.takes_key
    }),
    (429, "Too many requests", |_| true),
    (500, "Something went wrong on our side", |_| true),
];

/// Every call may be given up; some answer so in a form of their own as well.
const AWAY: (u16, &str) = (503, "A server that is needed is away for a moment");

/// Adds what this call may refuse with to what its handler answers.
pub fn tell(path: &str, operation: &mut MetaOperation) {
    let shape = Shape::of(path, operation);
    let answers = &mut operation.responses.responses;
    if !shape.has_parts {
        // Files that are only ever sent whole are answered in the same form.
        answers.retain(|answer| answer.status != Some(206));
    }
    for (status, description, meets) in REFUSALS {
        if meets(&shape) && answers.iter().all(|answer| answer.status != Some(status)) {
            answers.push(refusal(status, description));
        }
    }
    match answers.iter_mut().find(|answer| answer.status == Some(AWAY.0)) {
        Some(own) => own.content.push(problem_content()),
        None => answers.push(refusal(AWAY.0, AWAY.1)),
    }
    answers.sort_by_key(|answer| answer.status);
}

/// One answer with a problem document.
pub fn refusal(status: u16, description: &'static str) -> MetaResponse {
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: vec![problem_content()],
        headers: if matches!(status, 429 | 503) { vec![retry_after(status)] } else { Vec::new() },
    }
}

fn problem_content() -> MetaMediaType {
    MetaMediaType { content_type: CONTENT_TYPE, schema: ProblemDocument::schema_ref() }
}

/// What an installation does not have at all is a 503 as well, and does not come by waiting.
fn retry_after(status: u16) -> MetaHeader {
    MetaHeader {
        name: "Retry-After".to_owned(),
        description: Some("Seconds to wait before trying again".to_owned()),
        required: status == 429,
        deprecated: false,
        schema: u64::schema_ref(),
    }
}

/// A [`Problem`] of a call that also refuses with `STATUS`, which does not follow from its shape: 404 where the path
/// names nothing, 409 where nothing is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Also<const STATUS: u16>(Problem);

impl<E: Into<Problem>, const STATUS: u16> From<E> for Also<STATUS> {
    fn from(problem: E) -> Self {
        Self(problem.into())
    }
}

impl<const STATUS: u16> From<Also<STATUS>> for Error {
    fn from(also: Also<STATUS>) -> Self {
        also.0.into()
    }
}

impl<const STATUS: u16> ApiResponse for Also<STATUS> {
    fn meta() -> MetaResponses {
        let known = REFUSALS.iter().find(|(status, ..)| *status == STATUS);
        let (status, description, _) = known.expect("it is a status that refusals have");
        MetaResponses { responses: vec![refusal(*status, description)] }
    }

    fn register(registry: &mut Registry) {
        Problem::register(registry);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::beside, *};

    fn told(path: &str, method: Method, change: impl FnOnce(&mut MetaOperation)) -> Vec<u16> {
        let mut operation = beside::operation(method, "call", "A call", "");
        change(&mut operation);
        tell(path, &mut operation);
        operation.responses.responses.iter().filter_map(|answer| answer.status).collect()
    }

    #[test]
    fn a_call_tells_what_follows_from_its_shape_and_nothing_else() {
        assert_eq!(told("/open", Method::GET, |_| ()), [400, 429, 500, 503]);
        let secured = |call: &mut MetaOperation| call.security = vec![[("bearer", vec![])].into()];
        assert_eq!(told("/things", Method::GET, secured), [400, 401, 403, 429, 500, 503]);
        assert_eq!(told("/things/{id}", Method::GET, |_| ()), [400, 404, 429, 500, 503]);
        assert_eq!(told("/things", Method::POST, |_| ()), [400, 408, 413, 415, 429, 500, 503]);
    }

    #[test]
    fn what_a_call_says_itself_is_told_once_and_a_503_in_both_forms() {
        let own = |call: &mut MetaOperation| {
            let mut unwell = refusal(503, "Unwell");
            unwell.content = vec![MetaMediaType { content_type: "application/json", schema: String::schema_ref() }];
            call.responses.responses = [unwell, refusal(404, "Nothing")].into();
        };
        assert_eq!(told("/open", Method::GET, own), [400, 404, 429, 500, 503]);
        let mut operation = beside::operation(Method::GET, "call", "A call", "");
        own(&mut operation);
        tell("/open", &mut operation);
        let kinds: Vec<_> =
            operation.responses.responses.last().unwrap().content.iter().map(|it| it.content_type).collect();
        assert_eq!(kinds, ["application/json", CONTENT_TYPE]);
    }
}
