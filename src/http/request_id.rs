//! Every request has an id: the caller's own `X-Request-Id` when it is a sane one, otherwise a new one. It is in the
//! answer's headers, in the log and in problem documents about our own faults.

use poem::{Endpoint, IntoResponse, Middleware, Request, Response, Result, http::HeaderValue};
use uuid::Uuid;

pub const HEADER: &str = "x-request-id";

tokio::task_local! {
    static CURRENT: HeaderValue;
}

/// The id of the request that this task is answering.
pub fn current() -> Option<String> {
    CURRENT.try_with(|id| id.to_str().ok().map(str::to_owned)).ok().flatten()
}

/// Gives each request its id. Outermost, so that everything within can name it.
pub struct RequestId;

impl<E: Endpoint> Middleware<E> for RequestId {
    type Output = RequestIdEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        RequestIdEndpoint { inner }
    }
}

pub struct RequestIdEndpoint<E> {
    inner: E,
}

impl<E: Endpoint> Endpoint for RequestIdEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let id = of(&request);
        let mut response = match CURRENT.scope(id.clone(), self.inner.call(request)).await {
            Ok(output) => output.into_response(),
            Err(error) => error.into_response(),
        };
        response.headers_mut().insert(HEADER, id);
        Ok(response)
    }
}

fn of(request: &Request) -> HeaderValue {
    match request.headers().get(HEADER) {
        Some(given) if is_sane(given.as_bytes()) => given.clone(),
        _ => {
            let mut text = [0; uuid::fmt::Simple::LENGTH];
            let text = Uuid::now_v7().simple().encode_lower(&mut text);
            HeaderValue::from_str(text).expect("hexadecimal digits are a valid header")
        }
    }
}

/// Nothing that could break a line of a log or grow it.
fn is_sane(id: &[u8]) -> bool {
    (1..=64).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_forge_a_log_line_is_replaced() {
        let given = |text: &'static str| of(&Request::builder().header(HEADER, text).finish());
        assert_eq!(given("abc-123"), "abc-123");
        assert_ne!(given("a b\tc"), "a b\tc");
        assert_eq!(given("").len(), 32);
    }
}
