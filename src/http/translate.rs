//! The last line of defence: whatever error leaves a handler, or never reached one, becomes a [`Problem`].
//!
//! poem's and poem-openapi's own errors (no such path, wrong method, a parameter that does not parse, a body that
//! breaks off) are put into our words, naming field and remedy; a panic becomes a 500 of that one request.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use poem::{
    Endpoint, Error, IntoResponse, Middleware, Request, Response, Result,
    error::{MethodNotAllowedError, NotFoundError, ParseMultipartError, ReadBodyError},
    http::{Method, StatusCode, header},
};
use poem_openapi::error::{
    AuthorizationError, ContentTypeError, ParseMultipartError as ParseFormError, ParseParamError, ParsePathError,
    ParseRequestPayloadError,
};

use super::{
    FieldError, Problem,
    metrics::Metrics,
    parameters::{self, Call, Parameters},
    problem, schema,
};

/// Turns every error into a problem document.
pub struct Translate {
    /// Know the methods of each path, and how the document writes it.
    pub routes: Arc<Metrics>,
    pub parameters: Arc<Parameters>,
}

impl<E: Endpoint> Middleware<E> for Translate {
    type Output = TranslateEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        TranslateEndpoint { inner, routes: Arc::clone(&self.routes), parameters: Arc::clone(&self.parameters) }
    }
}

pub struct TranslateEndpoint<E> {
    inner: E,
    routes: Arc<Metrics>,
    parameters: Arc<Parameters>,
}

impl<E: Endpoint> Endpoint for TranslateEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        // What the document does not describe, such as a probe's own address, takes whatever stands in a query.
        if let Some(query) = uri.query().filter(|_| uri.path().starts_with("/api/"))
            && let Some(problem) = self.call_at(&method, uri.path()).and_then(|call| call.refuse(query))
        {
            return Ok(problem.into_response());
        }
        let response = match AssertUnwindSafe(self.inner.call(request)).catch_unwind().await {
            Ok(Ok(output)) => output.into_response(),
            Ok(Err(error)) if error.is::<MethodNotAllowedError>() => {
                return Ok(not_allowed(&self.routes.methods(uri.path())));
            }
            Ok(Err(error)) => {
                let name_of = |place| self.routes.parameter(&method, uri.path(), place);
                let call = self.call_at(&method, uri.path());
                return Ok(translate(error, name_of, call).into_response());
            }
            Err(panic) => return Ok(panicked(panic.as_ref()).into_response()),
        };
        Ok(dressed(response))
    }
}

impl<E> TranslateEndpoint<E> {
    /// What the document says of the call that answers for this path.
    fn call_at(&self, method: &Method, path: &str) -> Option<&Call> {
        self.parameters.call(method, self.routes.template(method, path))
    }
}

/// `name_of` tells the name of a path's parameter by its place; `call` is what the document says of the call.
fn translate<'a>(error: Error, name_of: impl Fn(usize) -> Option<&'a str>, call: Option<&Call>) -> Problem {
    let error = match error.downcast::<Problem>() {
        Ok(problem) => return problem,
        Err(error) => error,
    };
    if error.is::<NotFoundError>() {
        return Problem::new(
            StatusCode::NOT_FOUND,
            "no_such_path",
            "No such path",
            "There is no such call. All calls are described at /docs and in /openapi.json.",
        );
    }
    if let Some(error) = error.downcast_ref::<ParseParamError>() {
        return bad_parameter(error.name, &error.reason, call);
    }
    if let Some(error) = error.downcast_ref::<ParsePathError>() {
        // The library knows a path's parameters by number only.
        let place = error.name.strip_prefix("param").and_then(|place| place.parse().ok());
        return bad_parameter(place.and_then(name_of).unwrap_or(error.name), &error.reason, call);
    }
    if let Some(error) = error.downcast_ref::<ParseRequestPayloadError>() {
        let field = schema::field_in(&error.reason).unwrap_or("body");
        return Problem::invalid_field(
            field,
            error.reason.trim_end_matches('.'),
            "See the schema of this call at /docs",
        );
    }
    if let Some(error) = error.downcast_ref::<ParseFormError>() {
        let field = schema::field_in(&error.reason).unwrap_or("body");
        return Problem::invalid_field(
            field,
            error.reason.trim_end_matches('.'),
            "See the parts of this form at /docs",
        );
    }
    if let Some(error) = error.downcast_ref::<ParseMultipartError>() {
        return multipart(error);
    }
    if let Some(error) = error.downcast_ref::<ContentTypeError>() {
        return content_type(error, call);
    }
    if error.is::<AuthorizationError>() {
        return Problem::unauthorized();
    }
    if error.is::<ReadBodyError>() {
        return Problem::bad_request("body_cut_off", "The body ended before it was complete. Send the request again.");
    }
    let status = error.status();
    if status.is_server_error() {
        return Problem::internal(&error);
    }
    of_status(status)
}

/// The text of a parse error starts and may end with the type's name in our library's words; what helps is between.
fn bad_parameter(name: &str, reason: &str, call: Option<&Call>) -> Problem {
    let reason = match reason.strip_prefix("failed to parse ").and_then(|rest| rest.split_once("\": ")) {
        Some((_, reason)) => reason,
        None if reason.contains("expects an input value") => parameters::MISSING,
        None => reason,
    };
    let reason = reason.split(" (occurred while parsing").next().unwrap_or(reason).trim_end_matches('.');
    call.map_or_else(|| parameters::bad_parameter(name, reason), |call| call.bad_parameter(name, reason))
}

fn multipart(error: &ParseMultipartError) -> Problem {
    match error {
        ParseMultipartError::InvalidContentType(_) | ParseMultipartError::ContentTypeRequired => {
            Problem::unsupported_media_type("Send a form: `Content-Type: multipart/form-data; boundary=...`.")
        }
        _ => Problem::bad_request("malformed_form", "The multipart body is broken or ended early. Send it again."),
    }
}

fn content_type(error: &ContentTypeError, call: Option<&Call>) -> Problem {
    let detail = match error {
        ContentTypeError::NotSupported { .. } => "The body's content type is not one this call takes",
        ContentTypeError::ExpectContentType => "The body has no content type",
    };
    let wanted = call.and_then(Call::content_type);
    let remedy = wanted.map_or_else(|| "Send what /docs says for this call".to_owned(), |kind| format!("Send {kind}"));
    let mut problem = Problem::unsupported_media_type(format!("{detail}. {remedy}."));
    problem = problem.with_errors(vec![FieldError::new("Content-Type", detail, remedy)]);
    problem
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Problem {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Problem::internal_with(&format!("a handler panicked: {}", text.unwrap_or("no message")))
}

/// An error answer that some library made without a body of ours gets one.
fn dressed(response: Response) -> Response {
    let status = response.status();
    let bare = response.content_type().is_none_or(|kind| kind.starts_with("text/plain"));
    if !(status.is_client_error() || status.is_server_error()) || !bare {
        return response;
    }
    let mut dressed = of_status(status).into_response();
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            dressed.headers_mut().insert(name, value.clone());
        }
    }
    dressed
}

fn not_allowed(methods: &[&Method]) -> Response {
    let mut names: Vec<&str> = methods.iter().map(|method| method.as_str()).collect();
    // A path that can be read also tells what reading it would say.
    if names.contains(&"GET") && !names.contains(&"HEAD") {
        names.push("HEAD");
    }
    let names = names.join(", ");
    let mut problem = of_status(StatusCode::METHOD_NOT_ALLOWED);
    if !names.is_empty() {
        let detail = format!("This path takes {names}. See /docs.");
        problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "Method Not Allowed", detail);
    }
    let mut response = problem.into_response();
    if let Ok(names) = names.parse() {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
}

/// A problem about which nothing is known but its status.
pub fn of_status(status: StatusCode) -> Problem {
    let title = status.canonical_reason().unwrap_or("Error");
    let code = title.to_ascii_lowercase().replace([' ', '-'], "_").replace('\'', "");
    let detail = match status {
        StatusCode::METHOD_NOT_ALLOWED => "This path has no such method. See /docs.".to_owned(),
        _ => format!("{title}. See /docs."),
    };
    Problem::new(status, &code, title, detail)
}

/// Whether a response is a problem document; for tests and metrics.
pub fn is_problem(response: &Response) -> bool {
    response.content_type() == Some(problem::CONTENT_TYPE)
}

#[cfg(test)]
mod tests {
    use poem::{EndpointExt, endpoint::make};
    use serde_json::Value;

    use super::*;

    fn undescribed() -> Translate {
        let routes = Arc::new(Metrics::new([(Method::GET, "/{id}".to_owned())]));
        Translate { routes, parameters: Arc::default() }
    }

    async fn answer(error: impl Fn() -> Error + Send + Sync + 'static) -> (u16, Value) {
        let endpoint = make(move |_| std::future::ready(Err::<Response, _>(error()))).with(undescribed());
        let response = endpoint.get_response(Request::builder().uri_str("/job_1").finish()).await;
        assert!(is_problem(&response));
        let status = response.status().as_u16();
        (status, response.into_body().into_json().await.unwrap())
    }

    #[tokio::test]
    async fn a_parameter_that_does_not_parse_is_named() {
        let reason = "failed to parse \"string_job_id\": not the id of a job (occurred while parsing \"x\")";
        let (status, body) = answer(move || ParsePathError { name: "param0", reason: reason.into() }.into()).await;
        assert_eq!((status, &body["field"], &body["code"]), (400, &"id".into(), &"bad_parameter".into()));
        assert!(body["detail"].as_str().unwrap().starts_with("id: not the id of a job. See"), "{body}");
    }

    #[tokio::test]
    async fn a_library_error_keeps_its_status_and_loses_its_words() {
        let (status, body) = answer(|| Error::from_string("internal words", StatusCode::IM_A_TEAPOT)).await;
        assert_eq!((status, &body["code"]), (418, &"im_a_teapot".into()));
        assert!(!body.to_string().contains("internal words"));
        let (status, body) = answer(|| Error::from_string("secret", StatusCode::BAD_GATEWAY)).await;
        assert_eq!(status, 500);
        assert!(!body.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn a_panic_is_the_fault_of_one_request() {
        let endpoint = make(|_| async { if true { panic!("boom") } else { Ok::<_, Error>(()) } }).with(undescribed());
        let response = endpoint.get_response(Request::default()).await;
        assert_eq!(response.status(), 500);
        assert!(!response.into_body().into_string().await.unwrap().contains("boom"));
    }
}
