//! The API's own description: `/openapi.json` and a page to read and try it at `/docs`.
//!
//! The page carries everything it needs and its content security policy lets it load nothing from elsewhere: it
//! works without a network, and a token typed into it goes to this server only.

use std::sync::{Arc, OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use poem::{
    Endpoint, Request, Response, Result,
    http::{Method, header},
};
use poem_openapi::{registry::MetaPath, types::Type};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Problem, beside, packed::File};

/// Serves `/openapi.json`.
pub struct SpecEndpoint(pub Arc<Document>);

/// Serves `/docs`.
pub struct DocsEndpoint(pub Arc<Document>);

/// The document and its page. The page is made when it is first asked for: it is large and most processes never
/// serve it.
pub struct Document {
    spec: File,
    page: OnceLock<DocsPage>,
    make_page: Box<dyn Fn() -> String + Send + Sync>,
}

struct DocsPage {
    html: File,
    policy: String,
}

impl Document {
    /// `make_page` makes poem-openapi's page with its script inside.
    pub fn new(spec: String, make_page: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { spec: File::new(spec.into()), page: OnceLock::new(), make_page: Box::new(make_page) }
    }

    pub fn spec(&self) -> &[u8] {
        self.spec.bytes()
    }

    fn page(&self) -> &DocsPage {
        self.page.get_or_init(|| DocsPage::of((self.make_page)()))
    }

    /// Makes and packs one of the two where no call waits for it: that takes a moment.
    async fn prepare(self: &Arc<Self>, file: fn(&Self) -> &File) -> Result<()> {
        let document = Arc::clone(self);
        let made = tokio::task::spawn_blocking(move || file(&document).pack()).await;
        made.map_err(|error| Problem::internal(&error))?;
        Ok(())
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
        Self { html: File::new(html.into()), policy }
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

/// What the document says of itself and of its page.
pub fn described() -> [MetaPath; 2] {
    let served = |name, summary, about, kind, schema| {
        let mut operation = beside::operation(Method::GET, name, summary, about);
        operation.responses.responses = vec![
            beside::answer(200, "As it is now, with its `ETag`", Some((kind, schema))),
            beside::answer(304, "It is what `If-None-Match` names", None),
        ];
        operation
    };
    let spec = served("openapi", "This document", "", "application/json", Value::schema_ref());
    let about = "It needs nothing from elsewhere. Counts for 20 requests.";
    let page = served("docs", "This document as a page", about, "text/html; charset=utf-8", String::schema_ref());
    [beside::path("/openapi.json", spec), beside::path("/docs", page)]
}

impl Endpoint for SpecEndpoint {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        if !self.0.spec.is_packed() {
            self.0.prepare(|document| &document.spec).await?;
        }
        Ok(self.0.spec.answer(&request, "application/json"))
    }
}

impl Endpoint for DocsEndpoint {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        if self.0.page.get().is_none_or(|page| !page.html.is_packed()) {
            self.0.prepare(|document| &document.page().html).await?;
        }
        let page = self.0.page();
        let mut response = page.html.answer(&request, "text/html; charset=utf-8");
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
        let html = std::str::from_utf8(page.html.bytes()).unwrap();
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
