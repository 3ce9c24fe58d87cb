//! What browsers are told: security headers on every answer, and CORS exactly as configured.
//!
//! An origin is allowed when `ALLOWED_ORIGINS` names it, letter by letter; others get no CORS header at all, and the
//! browser keeps their scripts from the answer. Callers bring bearer tokens, never cookies, so credentials are never
//! allowed.

use poem::{
    Endpoint, IntoResponse, Middleware, Request, Response, Result,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
};

use crate::config::{Config, Environment};

const ALLOWED_METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
const ALLOWED_HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, if-none-match, last-event-id, x-request-id, x-workspace",
);
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static(
    "location, etag, retry-after, ratelimit, ratelimit-policy, idempotent-replayed, x-request-id",
);
const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("600");

const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// For answers that are data: nothing in them may run, nobody may frame them.
const DATA_CSP: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000; includeSubDomains");

/// No page of ours needs any of it.
const PERMISSIONS: HeaderValue = HeaderValue::from_static(
    "accelerometer=(), camera=(), display-capture=(), geolocation=(), gyroscope=(), microphone=(), payment=(), usb=()",
);

/// Adds the headers. Works on errors too, as everything inside it answers with a response.
pub struct Edge {
    origins: Vec<HeaderValue>,
    any_origin: bool,
    hsts: bool,
}

impl Edge {
    pub fn new(config: &Config) -> Self {
        let origins = &config.api.allowed_origins;
        Self {
            origins: origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect(),
            any_origin: origins.iter().any(|origin| origin == "*"),
            hsts: config.environment == Environment::Production,
        }
    }
}

impl<E: Endpoint> Middleware<E> for Edge {
    type Output = EdgeEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        let rules = Self { origins: self.origins.clone(), any_origin: self.any_origin, hsts: self.hsts };
        EdgeEndpoint { inner, rules }
    }
}

pub struct EdgeEndpoint<E> {
    inner: E,
    rules: Edge,
}

impl<E: Endpoint> Endpoint for EdgeEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let preflight = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let mut response = if preflight {
            StatusCode::NO_CONTENT.into_response()
        } else {
            self.inner.call(request).await?.into_response()
        };
        let headers = response.headers_mut();
        // Once, rather than in steps: about so many are added here and further out.
        headers.reserve(16);
        self.rules.secure(headers);
        self.rules.share(origin, preflight, headers);
        Ok(response)
    }
}

impl Edge {
    fn secure(&self, headers: &mut HeaderMap) {
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(PERMISSIONS_POLICY, PERMISSIONS);
        headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        // A page that needs more (the docs) says so itself; a list of posts must not stay in a shared cache.
        headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(DATA_CSP);
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        if self.hsts {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
    }

    fn share(&self, origin: Option<HeaderValue>, preflight: bool, headers: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        if !self.any_origin {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = origin.filter(|origin| self.any_origin || self.origins.contains(origin)) else { return };
        let allowed = if self.any_origin { HeaderValue::from_static("*") } else { origin };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if preflight {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, ALLOWED_METHODS);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
        } else {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use poem::{EndpointExt, endpoint::make_sync};

    use super::*;

    async fn answer(edge: Edge, method: Method, origin: &str) -> HeaderMap {
        let endpoint = make_sync(|_| "data").with(edge);
        let mut request = Request::builder().method(method.clone()).header(header::ORIGIN, origin);
        if method == Method::OPTIONS {
            request = request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST");
        }
        endpoint.get_response(request.finish()).await.headers().clone()
    }

    fn edge(origins: &[&'static str]) -> Edge {
        Edge {
            origins: origins.iter().map(|origin| HeaderValue::from_static(origin)).collect(),
            any_origin: origins.contains(&"*"),
            hsts: false,
        }
    }

    #[tokio::test]
    async fn only_an_origin_that_is_named_letter_by_letter_is_allowed() {
        let allowed = header::ACCESS_CONTROL_ALLOW_ORIGIN;
        for method in [Method::GET, Method::OPTIONS] {
            let named = answer(edge(&["https://app.example"]), method.clone(), "https://app.example").await;
            assert_eq!(named[&allowed], "https://app.example");
            for other in ["https://app.example.evil", "http://app.example", "https://App.example", "null"] {
                let headers = answer(edge(&["https://app.example"]), method.clone(), other).await;
                assert!(!headers.contains_key(&allowed), "{other} was allowed");
                assert_eq!(headers[header::VARY], "Origin");
            }
        }
        assert!(!answer(edge(&[]), Method::GET, "https://app.example").await.contains_key(&allowed));
        assert_eq!(answer(edge(&["*"]), Method::GET, "https://any.example").await[&allowed], "*");
    }

    #[tokio::test]
    async fn every_answer_is_sealed_and_none_allows_credentials() {
        let headers = answer(edge(&["https://app.example"]), Method::GET, "https://app.example").await;
        assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
        assert_eq!(headers[header::X_FRAME_OPTIONS], "DENY");
        assert!([OPENER_POLICY, RESOURCE_POLICY].iter().all(|policy| headers[policy] == "same-origin"));
        assert!(headers[PERMISSIONS_POLICY].to_str().unwrap().contains("camera=()"));
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
        assert!(!headers.contains_key(header::STRICT_TRANSPORT_SECURITY));
        let production = Edge { hsts: true, ..edge(&[]) };
        assert!(answer(production, Method::GET, "null").await.contains_key(header::STRICT_TRANSPORT_SECURITY));
    }
}
