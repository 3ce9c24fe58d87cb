//! What each request passes through on its way to a call, whichever calls there are. Which there are says
//! [`crate::api`].

use std::sync::Arc;

use poem::{
    Endpoint, EndpointExt, IntoResponse, Request, Response,
    endpoint::make,
    http::{HeaderValue, Method, header},
};
use poem_openapi::{registry::MetaPath, types::Type};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    App, Problem, beside,
    edge::Edge,
    gate::{Gate, Paths},
    limits::RateLimiter,
    metrics::{Count, Figures, Metrics},
    parameters::Parameters,
    request_id::RequestId,
    translate::Translate,
};

/// What every request passes through, from the inside out: what is written last sees it first.
pub fn guarded(
    calls: impl Endpoint + 'static,
    app: Arc<App>,
    limiter: Arc<RateLimiter>,
    metrics: Arc<Metrics>,
    parameters: Arc<Parameters>,
    paths: Paths,
) -> impl Endpoint<Output = Response> + 'static {
    let (edge, gate) = (Edge::new(&app.config), Gate { app: Arc::clone(&app), limiter, paths });
    let translate = Translate { routes: Arc::clone(&metrics), parameters };
    calls.data(app).with(translate).with(gate).with(edge).with(Count(metrics)).with(RequestId)
}

/// Compared by hash, in constant time: nothing is learned from how long it takes, not even the length.
fn has_token(request: &Request, token: &SecretString) -> bool {
    let sent = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let due = format!("Bearer {}", token.expose_secret());
    Sha256::digest(sent).ct_eq(&Sha256::digest(due.as_bytes())).into()
}

/// Figures for every call in an OpenAPI document.
pub fn metrics_of(spec: &[u8]) -> Metrics {
    let spec: Value = serde_json::from_slice(spec).expect("the document was just written as JSON");
    let paths = spec["paths"].as_object().into_iter().flatten();
    let calls = paths.flat_map(|(path, item)| {
        let methods = item.as_object().into_iter().flat_map(|item| item.keys());
        methods.filter_map(|method| Some((method.to_uppercase().parse::<Method>().ok()?, path.clone())))
    });
    Metrics::new(calls)
}

/// What the document says of `/metrics`.
pub fn metrics_described() -> MetaPath {
    let about = "In Prometheus' text form. Where METRICS_TOKEN is set, for whoever sends it as a bearer token alone.";
    let mut operation = beside::operation(Method::GET, "metrics", "Figures", about);
    operation.responses.responses = vec![
        beside::answer(200, "All figures of this process", Some((METRICS_TYPE, String::schema_ref()))),
        beside::refusal(401, "METRICS_TOKEN is set, and was not sent"),
    ];
    beside::path("/metrics", operation)
}

const METRICS_TYPE: &str = "text/plain; version=0.0.4";

/// `/metrics`: what was counted here, and the domains' own figures. With a token, for whoever sends it alone.
pub fn metrics_endpoint(
    metrics: Arc<Metrics>,
    figures: Vec<Arc<dyn Figures>>,
    token: Option<SecretString>,
) -> impl Endpoint<Output = Response> {
    make(move |request: Request| {
        let (metrics, figures) = (Arc::clone(&metrics), figures.clone());
        let is_allowed = token.as_ref().is_none_or(|token| has_token(&request, token));
        async move {
            if !is_allowed {
                return Ok(Problem::unauthorized().into_response());
            }
            let mut text = metrics.render();
            for figures in &figures {
                figures.write(&mut text).await;
            }
            Ok::<_, poem::Error>(Response::builder().header(header::CONTENT_TYPE, METRICS_TYPE).body(text))
        }
    })
}
