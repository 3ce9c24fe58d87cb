//! The API's own description: `/openapi.json` and a page to read and try it at `/docs`.
//!
//! The page carries everything it needs and its content security policy lets it load nothing from elsewhere: it
//! works without a network, and a token typed into it goes to this server only.

use std::sync::{Arc, OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use poem::{
    Endpoint, Request, Response, Result,
    http::{StatusCode, header},
};
use sha2::{Digest, Sha256};

/// Serves `/openapi.json`.
pub struct SpecEndpoint(pub Arc<Document>);

/// Serves `/docs`.
pub struct DocsEndpoint(pub Arc<Document>);

/// The document and its page. The page is made when it is first asked for: it is large and most processes never
/// serve it.
pub struct Document {
    spec: Bytes,
    spec_etag: String,
    page: OnceLock<DocsPage>,
    make_page: Box<dyn Fn() -> String + Send + Sync>,
}

struct DocsPage {
    html: Bytes,
    etag: String,
    policy: String,
}

impl Document {
    /// `make_page` makes poem-openapi's page with its script inside.
    pub fn new(spec: String, make_page: impl Fn() -> String + Send + Sync + 'static) -> Self {
        let spec_etag = etag(spec.as_bytes());
        Self { spec: spec.into(), spec_etag, page: OnceLock::new(), make_page: Box::new(make_page) }
    }

    pub fn spec(&self) -> &[u8] {
        &self.spec
    }

    fn page(&self) -> &DocsPage {
        self.page.get_or_init(|| DocsPage::of((self.make_page)()))
    }
}

/// The page's own settings: no fonts from elsewhere, no third party between it and this server.
const SETTINGS: &str = r#"id="api-reference" data-configuration='{"withDefaultFonts":false,"proxyUrl":"","hideClientButton":true,"telemetry":false}'"#;

impl DocsPage {
    fn of(html: String) -> Self {
        let html = html.replacen(r#"id="api-reference""#, SETTINGS, 1).replacen(
            "<title>Scalar</title>",
            "<title>Multivio API</title>",
            1,
        );
        let policy = format!(
            "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src 'self' data: blob:; \
             font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            script_hashes(&html)
        );
        Self { etag: etag(html.as_bytes()), html: html.into(), policy }
    }
}

/// Exactly the scripts that are on the page may run, and none that gets there some other way.
fn script_hashes(html: &str) -> String {
    let mut hashes = Vec::new();
    // The large script ends where the page ends: it may hold the text of an end tag inside of strings.
    if let Some(start) = html.find("<script charset=\"UTF-8\">") {
        let script = &html[start + "<script charset=\"UTF-8\">".len()..];
        let script = script.rfind("</script>").map_or(script, |end| &script[..end]);
        hashes.push(format!("'sha256-{}'", STANDARD.encode(Sha256::digest(script))));
    }
    hashes.join(" ")
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(bytes)[..12]))
}

fn serve(request: &Request, kind: &'static str, etag: &str, body: &Bytes) -> Response {
    let known = request.header(header::IF_NONE_MATCH).is_some_and(|known| super::etag::knows(known, etag));
    let response = Response::builder().header(header::ETAG, etag).header(header::CACHE_CONTROL, "no-cache");
    if known {
        return response.status(StatusCode::NOT_MODIFIED).finish();
    }
    response.content_type(kind).body(body.clone())
}

impl Endpoint for SpecEndpoint {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        Ok(serve(&request, "application/json", &self.0.spec_etag, &self.0.spec))
    }
}

impl Endpoint for DocsEndpoint {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let page = self.0.page();
        let mut response = serve(&request, "text/html; charset=utf-8", &page.etag, &page.html);
        let policy = page.policy.parse().expect("directives and hashes are a valid header");
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use poem_openapi::{OpenApi, OpenApiService};

    use super::*;

    struct NoCalls;

    #[OpenApi]
    impl NoCalls {
        /// Nothing.
        #[oai(path = "/nothing", method = "get")]
        async fn nothing(&self) {}
    }

    #[test]
    fn the_page_is_complete_in_itself_and_may_load_nothing_from_elsewhere() {
        let page = DocsPage::of(OpenApiService::new(NoCalls, "t", "1").scalar_html());
        let html = std::str::from_utf8(&page.html).unwrap();
        assert!(html.contains(r#"{"withDefaultFonts":false"#), "the page's settings found no place");
        assert!(html.contains("/nothing"));
        for outside in ["src=\"http", "href=\"http", "src='http"] {
            let head = &html[..html.find("<script charset").unwrap()];
            assert!(!head.contains(outside));
        }
        assert!(page.policy.contains("script-src 'sha256-") && page.policy.contains("connect-src 'self'"));
        assert!(!page.policy.contains("unsafe-eval"));
    }
}
