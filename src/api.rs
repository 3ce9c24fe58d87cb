//! The whole API on one screen: every call of every domain, and the document that describes them.

use std::{collections::HashMap, sync::Arc};

use poem::{
    Endpoint, Request, Response, Result, Route,
    endpoint::BoxEndpoint,
    get,
    http::{Extensions, Method},
    post,
};
use poem_openapi::{
    LicenseObject, OpenApi, OpenApiService,
    registry::{MetaApi, Registry},
};

use crate::{
    ai::{api::AiApi, models::ModelLists},
    audit::api::AuditApi,
    connections::{api::ConnectionsApi, consent_api::ConsentApi},
    http::{
        App,
        docs::{self, DocsEndpoint, Document, SpecEndpoint},
        gate::Paths,
        health::{Health, HealthApi},
        limits::RateLimiter,
        metrics::Figures,
        one_description::OneDescription,
        parameters::Parameters,
        router,
    },
    identity::{api::IdentityApi, key_api::KeysApi},
    jobs::{
        RetryRules,
        api::{JobsApi, SteeringApi},
    },
    media::{ImportApi, MediaApi, MediaService},
    outbound::fetch::Fetcher,
    patreon::{Patreon, WebhookEndpoint, api::PatreonApi, webhook},
    plans::api::PlansApi,
    posts::api::PostsApi,
    publishing::{CancelledStays, Publisher, api::PublishingApi},
    rights::RightsApi,
};

fn calls() -> impl OpenApi + Clone {
    let work = (PostsApi, PublishingApi, ConnectionsApi, ConsentApi, MediaApi, ImportApi, AiApi, JobsApi, SteeringApi);
    OneDescription((work, (IdentityApi, KeysApi, AuditApi, RightsApi, PlansApi, PatreonApi), HealthApi, Beside))
}

/// What endpoints of their own answer: described like every call, routed in [`routes`].
#[derive(Clone)]
struct Beside;

impl OpenApi for Beside {
    fn meta() -> Vec<MetaApi> {
        let [spec, page] = docs::described();
        vec![MetaApi { paths: vec![spec, page, router::metrics_described(), webhook::described()] }]
    }

    fn register(_registry: &mut Registry) {}

    fn add_routes(self, _table: &mut HashMap<String, HashMap<Method, BoxEndpoint<'static>>>) {}
}

/// What the routes need beyond [`App`].
pub struct Services {
    pub app: Arc<App>,
    pub limiter: Arc<RateLimiter>,
    pub health: Arc<Health>,
    pub figures: Vec<Arc<dyn Figures>>,
    pub publisher: Publisher,
    pub models: Arc<ModelLists>,
    pub media: Arc<MediaService>,
    pub fetcher: Fetcher,
    pub patreon: Arc<Option<Patreon>>,
}

/// The API, ready to be served.
pub fn routes(services: Services) -> impl Endpoint<Output = Response> + 'static {
    let document = Arc::new(Document::new(openapi_json(), || service().scalar_html()));
    let metrics = Arc::new(router::metrics_of(document.spec()));
    let parameters = Arc::new(Parameters::new(document.spec()));
    let metrics_token = services.app.config.api.metrics_token.clone();
    let paths = Paths {
        public: &["/webhooks/"],
        open_to_readers: &["/api/v1/posts/validate", "/api/v1/me/", "/api/v1/workspaces"],
        uploads: &["/api/v1/media"],
        largest_file_bytes: services.media.max_upload_bytes(),
        health: &["/health"],
        cost,
    };
    let webhook = WebhookEndpoint { app: Arc::clone(&services.app), patreon: Arc::clone(&services.patreon) };
    let calls = Route::new()
        .at("/openapi.json", get(SpecEndpoint(Arc::clone(&document))))
        .at("/docs", get(DocsEndpoint(document)))
        .at("/metrics", get(router::metrics_endpoint(Arc::clone(&metrics), services.figures, metrics_token)))
        .at("/webhooks/patreon", post(webhook))
        .nest("/", service());
    let rules = Arc::new(retry_rules());
    let keyring = services.publisher.accounts.keyring().clone();
    let Services { app, limiter, health, publisher, models, media, fetcher, patreon, .. } = services;
    let calls = Give(calls, move |extensions: &mut Extensions| {
        extensions.insert(Arc::clone(&health));
        extensions.insert(publisher.clone());
        extensions.insert(keyring.clone());
        extensions.insert(Arc::clone(&models));
        extensions.insert(Arc::clone(&media));
        extensions.insert(fetcher.clone());
        extensions.insert(Arc::clone(&patreon));
        extensions.insert(Arc::clone(&rules));
    });
    router::guarded(calls, app, limiter, metrics, parameters, paths)
}

/// What the domains have against running a job once more, by call and at the command line.
pub fn retry_rules() -> RetryRules {
    RetryRules(vec![Box::new(CancelledStays)])
}

/// Gives every request what handlers take as `Data`, in one step: each of the library's own steps is a future around
/// the next, through which the whole request is moved.
struct Give<E, F>(E, F);

impl<E: Endpoint, F: Fn(&mut Extensions) + Send + Sync> Endpoint for Give<E, F> {
    type Output = E::Output;

    fn call(&self, mut request: Request) -> impl Future<Output = Result<E::Output>> + Send {
        self.1(request.extensions_mut());
        self.0.call(request)
    }
}

/// Patreon's callback.
const PATREON_BACK: &str = "/api/v1/patreon/link/finish";

/// For how many requests a call counts in its caller's limit: more where it keeps ffmpeg or a language model busy.
fn cost(method: &Method, path: &str) -> u32 {
    match path {
        // A megabyte for nobody in particular, and four for who takes it as it is.
        "/docs" => 20,
        "/api/v1/ai/transform" if method == Method::POST => 10,
        "/api/v1/media" | "/api/v1/media/import" if method == Method::POST => 5,
        path if method == Method::POST && path.ends_with("/transcode") => 10,
        path if method == Method::POST && (path.ends_with("/callback") || path == PATREON_BACK) => 5,
        _ => 1,
    }
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

- **Signing in**: `Authorization: Bearer <token>`, with a token or an API key.
- **Workspaces**: a call is in your own workspace, or in the one that `X-Workspace` names; a key is in its own.
- **Errors** are problem documents (RFC 9457): `code` is stable, `errors` names every wrong field with its remedy.
- **Repeating a write** is safe with an `Idempotency-Key`: the same key and body give the first answer again for 7 days.
- **Lists** are newest first; pass `next_cursor` as `cursor` for the next page.
- **Limits** are told in `RateLimit` and `RateLimit-Policy`; beyond them `429` says when in `Retry-After`. A transform
  and a transcode count for 10 requests, an upload, an import and a callback for 5.
- **Plans** bound what a workspace has and does (`GET /api/v1/plan`); beyond that it is a `403` with the code
  `plan_limit`.";
