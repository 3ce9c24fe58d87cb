//! Fetches an address that a user gave: the one place from which a request goes where nobody of ours has said.
//!
//! Every hop is judged anew. A name is looked up once, by the connection itself: what is judged is what is connected
//! to, so that a name cannot mean one thing when it is looked at and another when it is used. Nothing of ours goes
//! along: no credential, no cookie, no word about where the request comes from.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use futures::{TryStreamExt, future::BoxFuture};
use reqwest::{
    Client, Response, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::LOCATION,
};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;
use url::{Host, Url};

use super::{
    OutboundError,
    addresses::is_public,
    builder,
    pace::{Pace, Paced},
};

/// From the first byte of a request to the head of its answer.
const HEAD_TIME: Duration = Duration::from_secs(20);
const LOOKUP_TIME: Duration = Duration::from_secs(5);
const MOST_REDIRECTS: usize = 3;
const LONGEST_URL: usize = 2048;
const LONGEST_HOST: usize = 253;
const HTTPS_PORT: u16 = 443;
const EXTENSION_LENGTHS: RangeInclusive<usize> = 2..=5;
/// Names that never lead outside, whatever answers for them.
const OWN_NAMES: [&str; 6] = ["localhost", "local", "internal", "lan", "home.arpa", "onion"];

/// Why an address is not fetched. The text goes on after "url".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error("is not an https address")]
    Scheme,
    #[error("is longer than {LONGEST_URL} characters")]
    TooLong,
    #[error("has a user name or a password in it")]
    Credentials,
    #[error("names a port; only the usual one of https is asked")]
    Port,
    #[error("names no host on the internet")]
    Host,
    #[error("leads into a private network")]
    Address,
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("the address {0}")]
    Forbidden(#[from] Forbidden),
    #[error("the address leads on more than {MOST_REDIRECTS} times")]
    TooManyRedirects,
    #[error("the address leads on to something that is none")]
    BadRedirect,
    #[error("the server answered with status {0}")]
    Status(StatusCode),
    #[error("the server could not be reached, or did not answer in time")]
    Unreachable(#[source] reqwest::Error),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    client: Client,
    loopback_port: Option<u16>,
    pace: Pace,
}

/// A file on its way in.
pub struct Fetched {
    response: Response,
    pace: Pace,
}

impl Fetcher {
    /// `loopback_port` is for development: `http://127.0.0.1` with exactly this port is let pass.
    pub fn new(loopback_port: Option<u16>) -> Result<Self, OutboundError> {
        Self::with(loopback_port, Arc::new(SystemNames))
    }

    fn with(loopback_port: Option<u16>, names: Arc<dyn Names>) -> Result<Self, OutboundError> {
        let client = builder().dns_resolver(Arc::new(Judged(names))).pool_max_idle_per_host(0).build();
        Ok(Self { client: client.map_err(OutboundError::Client)?, loopback_port, pace: Pace::LEAST })
    }

    /// Whether the address may be asked at all, as far as it tells by itself; a name is judged when it is looked up.
    pub fn check(&self, url: &Url) -> Result<(), Forbidden> {
        if url.as_str().len() > LONGEST_URL {
            return Err(Forbidden::TooLong);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Forbidden::Credentials);
        }
        if self.is_let_pass(url) {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(Forbidden::Scheme);
        }
        if url.port_or_known_default() != Some(HTTPS_PORT) {
            return Err(Forbidden::Port);
        }
        // The parser has made one form of all the ways to write an address: 127.1, 0x7f000001, 2130706433, ①②⑦.⓪.⓪.①.
        match url.host() {
            Some(Host::Ipv4(v4)) if is_public(v4.into()) => Ok(()),
            Some(Host::Ipv6(v6)) if is_public(v6.into()) => Ok(()),
            Some(Host::Ipv4(_) | Host::Ipv6(_)) => Err(Forbidden::Address),
            Some(Host::Domain(name)) if is_outside(name) => Ok(()),
            Some(Host::Domain(_)) | None => Err(Forbidden::Host),
        }
    }

    fn is_let_pass(&self, url: &Url) -> bool {
        let here = url.host() == Some(Host::Ipv4(Ipv4Addr::LOCALHOST));
        url.scheme() == "http" && here && url.port().is_some() && url.port() == self.loopback_port
    }

    /// Asks, and follows where it leads; the file itself is still on its way.
    pub async fn open(&self, url: &Url) -> Result<Fetched, FetchError> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            self.check(&url)?;
            url.set_fragment(None);
            // The time is for the head alone; the file has its own.
            let asked = tokio::time::timeout(HEAD_TIME, self.client.get(url.clone()).send()).await;
            let Ok(asked) = asked else { return Err(FetchError::Status(StatusCode::GATEWAY_TIMEOUT)) };
            let response = asked.map_err(failed)?;
            match response.status() {
                StatusCode::OK => return Ok(Fetched { response, pace: self.pace }),
                status if status.is_redirection() => url = next(&url, &response)?,
                status => return Err(FetchError::Status(status)),
            }
        }
        Err(FetchError::TooManyRedirects)
    }
}

impl Fetched {
    /// As the server says; it may be wrong.
    pub fn size_bytes(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The last part of the address that it came from, where that is a file's name.
    pub fn name(&self) -> Option<String> {
        name_of(self.response.url())
    }

    /// What comes too slowly breaks off with [`super::pace::TooSlow`].
    pub fn into_reader(self) -> impl AsyncRead + Send {
        let bytes = self.response.bytes_stream().map_err(|error| std::io::Error::other(error.without_url()));
        Paced::new(StreamReader::new(bytes), self.pace)
    }
}

/// Whatever has no extension as files have it may be what opens the address, and would be kept in the clear.
fn name_of(url: &Url) -> Option<String> {
    let pair = format!("n={}", url.path_segments()?.next_back()?.replace('+', "%2B"));
    let (_, name) = url::form_urlencoded::parse(pair.as_bytes()).next()?;
    let (stem, extension) = name.rsplit_once('.')?;
    let is_extension = EXTENSION_LENGTHS.contains(&extension.len())
        && extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && extension.bytes().any(|byte| byte.is_ascii_alphabetic());
    (is_extension && !stem.is_empty()).then(|| name.into_owned())
}

fn next(from: &Url, response: &Response) -> Result<Url, FetchError> {
    let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
    to.and_then(|to| from.join(to).ok()).ok_or(FetchError::BadRedirect)
}

fn failed(error: reqwest::Error) -> FetchError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(found) = cause {
        if let Some(forbidden) = found.downcast_ref::<Forbidden>() {
            return FetchError::Forbidden(*forbidden);
        }
        cause = found.source();
    }
    // The address may hold a key.
    FetchError::Unreachable(error.without_url())
}

fn is_outside(name: &str) -> bool {
    let own = |suffix: &&str| name == *suffix || name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    name.len() <= LONGEST_HOST && name.contains('.') && !name.ends_with('.') && !OWN_NAMES.iter().any(own)
}

/// Asks for the addresses of a name.
trait Names: Send + Sync {
    fn look_up(&self, name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>>;
}

struct SystemNames;

impl Names for SystemNames {
    fn look_up(&self, name: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::time::timeout(LOOKUP_TIME, tokio::net::lookup_host((name, 0))).await;
            let found = found.map_err(|_elapsed| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// What a connection asks for addresses: it gets those that were judged, and connects to no other.
struct Judged(Arc<dyn Names>);

impl Resolve for Judged {
    fn resolve(&self, name: Name) -> Resolving {
        let found = self.0.look_up(name.as_str().to_owned());
        Box::pin(async move {
            let found = found.await?;
            // One private address among them is a sign of a game, and not of a choice.
            if !found.iter().copied().all(is_public) {
                return Err(Box::new(Forbidden::Address) as Box<dyn Error + Send + Sync>);
            }
            Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
