//! Figures about the calls themselves, in Prometheus' text form at `/metrics`.
//!
//! Counting is a few atomic additions and never allocates. The labels are the routes of the API document, so that no
//! client can make them grow.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use poem::{Endpoint, IntoResponse, Middleware, Request, Response, Result, http::Method};

/// Upper bounds in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0];
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// Adds figures of its own to `/metrics`.
#[async_trait::async_trait]
pub trait Figures: Send + Sync {
    async fn write(&self, text: &mut String);
}

pub struct Metrics {
    routes: Vec<Route>,
    /// Where in `routes` those of a path are that has no parameter.
    plain: HashMap<String, Vec<usize>>,
    /// Calls that no route answers for.
    unmatched: Route,
    in_flight: AtomicI64,
    started: Instant,
}

struct Route {
    method: Method,
    path: String,
    answers: [AtomicU64; CLASSES.len()],
    buckets: [AtomicU64; BUCKETS.len() + 1],
    total_us: AtomicU64,
}

impl Route {
    fn new(method: Method, path: String) -> Self {
        Self { method, path, answers: Default::default(), buckets: Default::default(), total_us: AtomicU64::new(0) }
    }

    fn matches(&self, method: &Method, path: &str) -> bool {
        if self.method != method {
            return false;
        }
        let (mut ours, mut theirs) = (self.path.split('/'), path.split('/'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return true,
                (Some(ours), Some(theirs)) if ours.starts_with('{') || ours == theirs => {}
                _ => return false,
            }
        }
    }

    fn record(&self, status: u16, took: Duration) {
        let class = usize::from((status / 100).clamp(2, 5) - 2);
        self.answers[class].fetch_add(1, Relaxed);
        let bucket = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BUCKETS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.total_us.fetch_add(took.as_micros().try_into().unwrap_or(u64::MAX), Relaxed);
    }
}

impl Metrics {
    /// For the calls of an OpenAPI document, given as (method, path with `{parameters}`).
    pub fn new(calls: impl IntoIterator<Item = (Method, String)>) -> Self {
        let mut routes: Vec<_> = calls.into_iter().map(|(method, path)| Route::new(method, path)).collect();
        // A path written out goes before one with a parameter in the same place.
        routes.sort_by_key(|route| route.path.matches('{').count());
        let mut plain: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, route) in routes.iter().enumerate().filter(|(_, route)| !route.path.contains('{')) {
            plain.entry(route.path.clone()).or_default().push(place);
        }
        Self {
            routes,
            plain,
            unmatched: Route::new(Method::GET, "unmatched".into()),
            in_flight: AtomicI64::new(0),
            started: Instant::now(),
        }
    }

    fn route(&self, method: &Method, path: &str) -> &Route {
        // At the price of one look for most calls.
        let plain = self.plain.get(path).into_iter().flatten().map(|&place| &self.routes[place]);
        plain.chain(&self.routes).find(|route| route.matches(method, path)).unwrap_or(&self.unmatched)
    }

    /// The methods that `path` answers to, without repetition.
    pub fn methods(&self, path: &str) -> Vec<&Method> {
        // The path that answers: others match as well when it stands in the place of a parameter.
        let Some(answers) = self.routes.iter().find(|route| route.matches(&route.method, path)) else {
            return Vec::new();
        };
        self.routes.iter().filter(|route| route.path == answers.path).map(|route| &route.method).collect()
    }

    /// The name of the parameter at this place (0 is the first) of the path that answers for `path`.
    pub fn parameter(&self, method: &Method, path: &str, place: usize) -> Option<&str> {
        let parts = self.route(method, path).path.split('/');
        parts.filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).nth(place)
    }

    /// The path that answers for `path`, as the document writes it.
    pub fn template(&self, method: &Method, path: &str) -> &str {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        &self.route(method, path).path
    }

    /// All figures in Prometheus' text form.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(8192);
        self.write(&mut text).expect("a String takes everything");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let used: Vec<_> = self.routes.iter().chain([&self.unmatched]).filter(|route| route.count() > 0).collect();
        writeln!(text, "# HELP multivio_http_requests_total Calls answered.")?;
        writeln!(text, "# TYPE multivio_http_requests_total counter")?;
        for route in &used {
            for (class, count) in CLASSES.iter().zip(&route.answers) {
                let (method, path, count) = (&route.method, &route.path, count.load(Relaxed));
                writeln!(
                    text,
                    "multivio_http_requests_total{{method=\"{method}\",route=\"{path}\",status=\"{class}\"}} {count}"
                )?;
            }
        }
        writeln!(text, "# HELP multivio_http_request_seconds From the first byte understood to the answer's head.")?;
        writeln!(text, "# TYPE multivio_http_request_seconds histogram")?;
        for route in &used {
            route.write_histogram(text)?;
        }
        writeln!(text, "# HELP multivio_http_requests_in_flight Calls being answered.")?;
        writeln!(text, "# TYPE multivio_http_requests_in_flight gauge")?;
        writeln!(text, "multivio_http_requests_in_flight {}", self.in_flight.load(Relaxed))?;
        writeln!(text, "# HELP multivio_process_uptime_seconds Since this process started.")?;
        writeln!(text, "# TYPE multivio_process_uptime_seconds gauge")?;
        writeln!(text, "multivio_process_uptime_seconds {:.3}", self.started.elapsed().as_secs_f64())
    }
}

impl Route {
    fn count(&self) -> u64 {
        self.answers.iter().map(|count| count.load(Relaxed)).sum()
    }

    fn write_histogram(&self, text: &mut String) -> std::fmt::Result {
        let labels = format!("method=\"{}\",route=\"{}\"", self.method, self.path);
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().zip(&self.buckets) {
            below += count.load(Relaxed);
            writeln!(text, "multivio_http_request_seconds_bucket{{{labels},le=\"{bound}\"}} {below}")?;
        }
        below += self.buckets[BUCKETS.len()].load(Relaxed);
        writeln!(text, "multivio_http_request_seconds_bucket{{{labels},le=\"+Inf\"}} {below}")?;
        let seconds = self.total_us.load(Relaxed) as f64 / 1e6;
        writeln!(text, "multivio_http_request_seconds_sum{{{labels}}} {seconds}")?;
        writeln!(text, "multivio_http_request_seconds_count{{{labels}}} {below}")
    }
}

/// Counts every call.
pub struct Count(pub Arc<Metrics>);

impl<E: Endpoint> Middleware<E> for Count {
    type Output = CountEndpoint<E>;

    fn transform(&self, inner: E) -> Self::Output {
        CountEndpoint { inner, metrics: Arc::clone(&self.0) }
    }
}

pub struct CountEndpoint<E> {
    inner: E,
    metrics: Arc<Metrics>,
}

impl<E: Endpoint> Endpoint for CountEndpoint<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let started = Instant::now();
        let route = self.metrics.route(request.method(), request.uri().path());
        let _in_flight = InFlight::enter(&self.metrics.in_flight);
        let response = match self.inner.call(request).await {
            Ok(output) => output.into_response(),
            Err(error) => error.into_response(),
        };
        let (status, took) = (response.status().as_u16(), started.elapsed());
        route.record(status, took);
        tracing::debug!(
            request_id = super::request_id::current(),
            method = %route.method,
            route = route.path,
            status,
            took_us = took.as_micros(),
            "answered"
        );
        Ok(response)
    }
}

/// A client that leaves drops the call's future: the count must go down all the same.
struct InFlight<'a>(&'a AtomicI64);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicI64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        let calls = ["/api/v1/jobs/{id}", "/api/v1/jobs/stats", "/api/v1/jobs"];
        Metrics::new(calls.map(|path| (Method::GET, path.to_owned())))
    }

    #[test]
    fn labels_are_routes_and_cannot_be_grown_by_clients() {
        let metrics = metrics();
        let path = |path| metrics.route(&Method::GET, path).path.as_str();
        assert_eq!(path("/api/v1/jobs/job_1"), "/api/v1/jobs/{id}");
        assert_eq!(path("/api/v1/jobs/stats"), "/api/v1/jobs/stats");
        assert_eq!(path("/api/v1/jobs"), "/api/v1/jobs");
        assert_eq!(path("/api/v1/jobs/a/b"), "unmatched");
        assert_eq!(metrics.route(&Method::POST, "/api/v1/jobs").path, "unmatched");
    }

    #[test]
    fn figures_are_in_prometheus_text_form() {
        let metrics = metrics();
        let route = metrics.route(&Method::GET, "/api/v1/jobs");
        route.record(200, Duration::from_millis(3));
        route.record(503, Duration::from_secs(60));
        let text = metrics.render();
        let labels = "method=\"GET\",route=\"/api/v1/jobs\"";
        for line in [
            format!("multivio_http_requests_total{{{labels},status=\"5xx\"}} 1\n"),
            format!("multivio_http_request_seconds_bucket{{{labels},le=\"0.0025\"}} 0\n"),
            format!("multivio_http_request_seconds_bucket{{{labels},le=\"0.005\"}} 1\n"),
            format!("multivio_http_request_seconds_bucket{{{labels},le=\"+Inf\"}} 2\n"),
            format!("multivio_http_request_seconds_count{{{labels}}} 2\n"),
        ] {
            assert!(text.contains(&line), "{line} is missing from:\n{text}");
        }
    }
}
