//! The whole API on one screen: every call, and what each request passes through on its way.

use std::sync::Arc;

use poem::{
    Endpoint, EndpointExt, Response, Route,
    endpoint::make,
    http::{Method, header},
};
use poem_openapi::{LicenseObject, OpenApi, OpenApiService};
use serde_json::Value;

use super::{
    App,
    docs::{DocsEndpoint, Document, SpecEndpoint},
    edge::Edge,
    gate::{Gate, Paths},
    health::{Health, HealthApi},
    limits::RateLimiter,
    metrics::{Count, Figures, Metrics},
    request_id::RequestId,
    translate::Translate,
};
use crate::{
    ai::{api::AiApi, models::ModelLists},
    connections::api::ConnectionsApi,
    jobs::api::JobsApi,
    media::{MediaApi, MediaService},
    posts::api::PostsApi,
    publishing::{Publisher, api::PublishingApi},
};

/// Every call of every domain.
fn calls() -> impl OpenApi + Clone {
    (PostsApi, PublishingApi, ConnectionsApi, MediaApi, AiApi, JobsApi, HealthApi)
}

const PATHS: Paths = Paths { public: &[], uploads: &["/api/v1/media"] };

/// What the routes need beyond [`App`]. Domains hang their own services on the endpoint with `.data(...)`.
pub struct Services {
    pub app: Arc<App>,
    pub limiter: Arc<RateLimiter>,
    pub health: Arc<Health>,
    pub figures: Vec<Arc<dyn Figures>>,
    pub publisher: Publisher,
    pub models: Arc<ModelLists>,
    pub media: Arc<MediaService>,
}

/// The API, ready to be served.
pub fn routes(services: Services) -> impl Endpoint<Output = Response> + 'static {
    let document = Arc::new(document());
    let metrics = Arc::new(metrics_of(document.spec()));
    let calls = Route::new()
        .at("/openapi.json", SpecEndpoint(Arc::clone(&document)))
        .at("/docs", DocsEndpoint(document))
        .at("/metrics", metrics_endpoint(Arc::clone(&metrics), services.figures))
        .nest("/", service())
        .data(services.health)
        .data(services.publisher)
        .data(services.models)
        .data(services.media);
    guarded(calls, services.app, services.limiter, metrics)
}

/// What every request passes through, from the inside out: what is written last sees it first.
pub fn guarded(
    calls: impl Endpoint + 'static,
    app: Arc<App>,
    limiter: Arc<RateLimiter>,
    metrics: Arc<Metrics>,
) -> impl Endpoint<Output = Response> + 'static {
    let (edge, gate) = (Edge::new(&app.config), Gate { app: Arc::clone(&app), limiter, paths: PATHS });
    calls.data(app).with(Translate(Arc::clone(&metrics))).with(gate).with(edge).with(Count(metrics)).with(RequestId)
}

/// The OpenAPI document, as it is served and as it is kept in `openapi.json`.
pub fn openapi_json() -> String {
    service().spec() + "\n"
}

fn service() -> OpenApiService<impl OpenApi + Clone, ()> {
    OpenApiService::new(calls(), "Multivio", env!("CARGO_PKG_VERSION"))
        .summary("Write once; it appears, correct and exactly once, on every platform.")
        .description(DESCRIPTION)
        .license(LicenseObject::new("Apache-2.0").url("https://www.apache.org/licenses/LICENSE-2.0"))
}

const DESCRIPTION: &str = "\
Slow or fragile work is a job: a call that starts one answers `202` with the `Location` to follow.

- **Signing in**: `Authorization: Bearer <token>`.
- **Errors** are problem documents (RFC 9457): `code` is stable, `errors` names every wrong field with its remedy.
- **Repeating a write** is safe with an `Idempotency-Key`: the same key and body give the first answer again for 7 days.
- **Lists** are newest first; pass `next_cursor` as `cursor` for the next page.
- **Limits** are told in `RateLimit` and `RateLimit-Policy`; beyond them `429` says when in `Retry-After`.";

fn document() -> Document {
    Document::new(openapi_json(), || service().scalar_html())
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

fn metrics_endpoint(metrics: Arc<Metrics>, figures: Vec<Arc<dyn Figures>>) -> impl Endpoint<Output = Response> {
    make(move |_request| {
        let (metrics, figures) = (Arc::clone(&metrics), figures.clone());
        async move {
            let mut text = metrics.render();
            for figures in &figures {
                figures.write(&mut text).await;
            }
            Ok::<_, poem::Error>(
                Response::builder().header(header::CONTENT_TYPE, "text/plain; version=0.0.4").body(text),
            )
        }
    })
}
