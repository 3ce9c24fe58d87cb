//! Requests that two servers could understand differently: where their body ends, and whom they are for.
//!
//! The HTTP library refuses most of these (two lengths, malformed ones, folded headers). What it lets through is refused
//! here, before anything else looks at the request, and the connection is closed: what comes behind is nobody's request.

use poem::{
    IntoResponse, Request, Response,
    http::{HeaderValue, Version, header},
};

use super::Problem;

/// The answer to a request that is not plain; `None`: it is.
pub fn refused(request: &Request) -> Option<Response> {
    let mut problem = if !is_plainly_chunked(request) {
        Problem::bad_parameter("Transfer-Encoding", "is not plain", "Send chunked once, or a Content-Length")
            .into_response()
    } else if !has_its_host(request) {
        Problem::bad_parameter("Host", "does not come exactly once", "Send the name of this server once")
            .into_response()
    } else {
        return None;
    };
    problem.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Some(problem)
}

/// Codings in a row, also the same one twice, are read in one way by one server and in another by the next.
fn is_plainly_chunked(request: &Request) -> bool {
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let Some(first) = codings.next() else { return true };
    first.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
}

/// Only clients of before HTTP/1.1 leave it out.
fn has_its_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let first = hosts.next();
    hosts.next().is_none() && (first.is_some() || request.version() < Version::HTTP_11)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(version: Version, headers: &[(&'static str, &'static str)]) -> bool {
        let request = Request::builder().version(version);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        refused(&request.finish()).is_some()
    }

    #[test]
    fn a_request_says_once_how_its_body_ends_and_whom_it_is_for() {
        let (now, before, host) = (Version::HTTP_11, Version::HTTP_10, ("host", "x"));
        assert!(!is_refused(now, &[host]));
        assert!(!is_refused(now, &[host, ("transfer-encoding", "Chunked")]));
        assert!(!is_refused(before, &[]));
        for wrong in ["chunked, chunked", "gzip, chunked", "identity", "chunked;q=1", ""] {
            assert!(is_refused(now, &[host, ("transfer-encoding", wrong)]), "{wrong}");
        }
        let twice = ("transfer-encoding", "chunked");
        assert!(is_refused(now, &[host, twice, twice]));
        for hosts in [&[][..], &[host, host], &[host, ("host", "y")]] {
            assert!(is_refused(now, hosts), "{hosts:?}");
        }
        assert!(is_refused(before, &[host, host]));
    }
}
