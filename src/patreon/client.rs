//! The wire to Patreon: codes and refresh tokens for tokens, and what a user's memberships entitle to. Knows no
//! database; every request has a deadline, and what Patreon answers is read within bounds.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use reqwest::{RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::{config::PatreonConfig, outbound};

const DEADLINE: Duration = Duration::from_secs(15);
const ANSWER_LIMIT_BYTES: usize = 1 << 20;
/// When Patreon does not say how long it wants to be left alone.
const THROTTLED: Duration = Duration::from_secs(60);
/// A wait is never longer, whatever it says.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Its own page says which memberships there are; without the second scope not all of them.
const SCOPES: &str = "identity identity.memberships";

pub struct Client {
    http: reqwest::Client,
    base: Url,
    client_id: String,
    client_secret: SecretString,
    redirect_uri: String,
}

/// A pair, good for `expires_in` from now.
pub struct Tokens {
    pub access: SecretString,
    pub refresh: SecretString,
    pub expires_in: Duration,
}

/// Whose tokens they are, and what that account is entitled to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub user_id: String,
    /// Of the memberships, the first that there is: `active_patron`, `declined_patron`, `former_patron`.
    pub patron_status: Option<String>,
    /// Entitlement is this alone: amounts are in different currencies, and a status says nothing about the paid rest.
    pub tiers: BTreeSet<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PatreonError {
    #[error("Patreon could not be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("Patreon's answer broke off")]
    Broken(#[source] outbound::OutboundError),
    #[error("Patreon asks to be left alone for a while")]
    Throttled { after: Duration },
    /// The code or token is spent, ended or was taken back.
    #[error("Patreon does not accept the grant any more")]
    Ended,
    #[error("Patreon refused the request with {status}")]
    Refused { status: u16 },
    #[error("Patreon is in trouble: it answered {status}")]
    Away { status: u16 },
    #[error("Patreon answered something that is not what its documentation says")]
    Unreadable,
}

impl Client {
    pub fn new(config: &PatreonConfig, http: reqwest::Client) -> Self {
        Self {
            http,
            base: config.base_url.clone(),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            redirect_uri: config.redirect_uri.clone(),
        }
    }

    /// Where the user allows it.
    pub fn authorize_url(&self, state: &str) -> Url {
        let mut url = self.address("/oauth2/authorize");
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client_id)
            .append_pair("redirect_uri", &self.redirect_uri)
            .append_pair("scope", SCOPES)
            .append_pair("state", state);
        url
    }

    /// A code is good once: without an answer it is spent.
    pub async fn exchange(&self, code: &SecretString) -> Result<Tokens, PatreonError> {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.expose_secret()),
            ("redirect_uri", self.redirect_uri.as_str()),
        ];
        self.tokens(&form).await
    }

    /// The refresh token is spent by this, whether or not the answer arrives.
    pub async fn refresh(&self, refresh: &SecretString) -> Result<Tokens, PatreonError> {
        self.tokens(&[("grant_type", "refresh_token"), ("refresh_token", refresh.expose_secret())]).await
    }

    pub async fn identity(&self, access: &SecretString) -> Result<Identity, PatreonError> {
        let mut url = self.address("/api/oauth2/v2/identity");
        // What is not asked for by name does not come.
        url.query_pairs_mut()
            .append_pair("include", "memberships,memberships.currently_entitled_tiers")
            .append_pair("fields[member]", "patron_status")
            .append_pair("fields[tier]", "title");
        let body = self.send(self.http.get(url).bearer_auth(access.expose_secret())).await?;
        read::<Document>(&body).map(Identity::from)
    }

    async fn tokens(&self, grant: &[(&str, &str)]) -> Result<Tokens, PatreonError> {
        let client = [("client_id", self.client_id.as_str()), ("client_secret", self.client_secret.expose_secret())];
        let form: Vec<_> = grant.iter().chain(&client).collect();
        let body = self.send(self.http.post(self.address("/api/oauth2/token")).form(&form)).await?;
        let pair: Pair = read(&body)?;
        // A pair that is said to be at its end already is refreshed at its next use.
        let expires_in = Duration::from_secs(pair.expires_in.min(366 * 24 * 3600));
        Ok(Tokens { access: pair.access_token, refresh: pair.refresh_token, expires_in })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Bytes, PatreonError> {
        let response = request.timeout(DEADLINE).send().await;
        let response = response.map_err(|error| PatreonError::Unreachable(error.without_url()))?;
        let status = response.status();
        let body = body(response).await;
        if status.is_success() {
            return body;
        }
        // The status alone says that it was refused; a body that broke off only costs the explanation.
        let complaint: Complaint = body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => PatreonError::Throttled { after: complaint.wait() },
            // Of the token endpoint the word counts: a wrong client is refused with the same status as a wrong grant.
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED
                if complaint.error.as_deref() == Some("invalid_grant") =>
            {
                PatreonError::Ended
            }
            // In Patreon's own words: whatever else stands in between does not end a link.
            StatusCode::UNAUTHORIZED if !complaint.errors.is_empty() => PatreonError::Ended,
            status if status.is_server_error() => PatreonError::Away { status: status.as_u16() },
            status => PatreonError::Refused { status: status.as_u16() },
        })
    }

    fn address(&self, path: &str) -> Url {
        let text = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        Url::parse(&text).expect("a path of ours behind an address that was read as one")
    }
}

async fn body(response: Response) -> Result<Bytes, PatreonError> {
    outbound::body(response, ANSWER_LIMIT_BYTES).await.map_err(PatreonError::Broken)
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, PatreonError> {
    serde_json::from_slice(body).map_err(|_error| PatreonError::Unreadable)
}

#[derive(Deserialize)]
struct Pair {
    access_token: SecretString,
    refresh_token: SecretString,
    expires_in: u64,
}

/// Both forms: the token endpoint names an `error`, everything else lists `errors`.
#[derive(Default, Deserialize)]
struct Complaint {
    error: Option<String>,
    #[serde(default)]
    errors: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    retry_after_seconds: Option<u64>,
}

impl Complaint {
    fn wait(&self) -> Duration {
        let seconds = self.errors.iter().find_map(|detail| detail.retry_after_seconds);
        seconds.map_or(THROTTLED, Duration::from_secs).clamp(Duration::from_secs(1), LONGEST_WAIT)
    }
}

/// JSON:API, as far as it matters here.
#[derive(Deserialize)]
struct Document {
    data: Resource,
    #[serde(default)]
    included: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    attributes: Attributes,
    #[serde(default)]
    relationships: Relationships,
}

#[derive(Default, Deserialize)]
struct Attributes {
    patron_status: Option<String>,
}

#[derive(Default, Deserialize)]
struct Relationships {
    #[serde(default)]
    currently_entitled_tiers: Related,
}

#[derive(Default, Deserialize)]
struct Related {
    #[serde(default)]
    data: Vec<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    id: String,
}

impl From<Document> for Identity {
    fn from(document: Document) -> Self {
        let mut identity = Self { user_id: document.data.id, ..Self::default() };
        for member in document.included.into_iter().filter(|resource| resource.kind == "member") {
            identity.patron_status = identity.patron_status.or(member.attributes.patron_status);
            identity.tiers.extend(member.relationships.currently_entitled_tiers.data.into_iter().map(|tier| tier.id));
        }
        identity
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entitlement_is_the_tiers_of_all_memberships_and_nothing_else() {
        let member = |id: &str, status, tiers: &[&str]| {
            let tiers: Vec<_> = tiers.iter().map(|id| json!({"id": id, "type": "tier"})).collect();
            json!({"id": id, "type": "member", "attributes": {"patron_status": status},
                "relationships": {"currently_entitled_tiers": {"data": tiers}}})
        };
        let document = json!({
            "data": {"id": "7", "type": "user", "attributes": {}},
            "included": [member("a", json!(null), &[]), member("b", json!("active_patron"), &["1", "2"]),
                {"id": "3", "type": "tier", "attributes": {"title": "Never theirs"}}],
        });
        let identity: Identity = serde_json::from_value::<Document>(document).unwrap().into();
        assert_eq!((identity.user_id.as_str(), identity.patron_status.as_deref()), ("7", Some("active_patron")));
        assert_eq!(identity.tiers.into_iter().collect::<Vec<_>>(), ["1", "2"]);
        // Nobody is a patron of anything, and nothing was asked for.
        let bare: Identity =
            serde_json::from_value::<Document>(json!({"data": {"id": "7", "type": "user"}})).unwrap().into();
        assert_eq!(bare, Identity { user_id: "7".into(), ..Identity::default() });
    }

    #[test]
    fn a_wait_is_as_asked_within_reason() {
        let wait = |body| serde_json::from_value::<Complaint>(body).unwrap().wait().as_secs();
        assert_eq!(wait(json!({"errors": [{"code_name": "RequestThrottled", "retry_after_seconds": 7}]})), 7);
        assert_eq!(wait(json!({"errors": [{"retry_after_seconds": 999_999_999}]})), 3600);
        assert_eq!(wait(json!({})), 60);
    }
}
