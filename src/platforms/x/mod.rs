//! X, API v2: OAuth 2.0 user tokens, chunked media upload, posts, the author's timeline.
//!
//! X has no idempotency key and cannot schedule. A create whose answer was lost is looked up in the author's
//! timeline before anything else happens.

mod answers;
mod consent;
mod exchange;
mod likeness;
mod rules;
mod timeline;
mod upload;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use reqwest::{Client, Method};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use self::{
    answers::Effect,
    exchange::{Answer, Wire},
};
use super::{
    Asking, Budget, Call, Connector, ConnectorError, Content, ContentProblem, Draft, Grant, MediaFile, MediaKind,
    Owner, Platform, RemotePost, Search, Sighting, Staged, Step, Timing, TokenPair, UploadState, Witness,
    consent::Pages,
};
use crate::config::XConfig;

const READ_DEADLINE: Duration = Duration::from_secs(20);
const TOKEN_DEADLINE: Duration = Duration::from_secs(20);
const LOOKS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];
/// X says two hours; used only if an answer leaves it out.
const TOKEN_LIFETIME_SECONDS: u64 = 7200;

pub struct X {
    wire: Wire,
    pages: Option<Pages>,
    timing: Timing,
}

impl X {
    pub fn new(config: &XConfig, client: Client) -> Self {
        let timing = Timing {
            request: config.create_deadline,
            visibility: config.visibility,
            stall: config.stall,
            looks: &LOOKS,
        };
        Self { wire: Wire::new(config, client), pages: consent::pages(config), timing }
    }
}

#[async_trait]
impl Connector for X {
    fn platform(&self) -> Platform {
        Platform::X
    }

    fn validate(&self, content: &Content<'_>) -> Vec<ContentProblem> {
        rules::validate(content)
    }

    fn preset_for(&self, kind: MediaKind) -> Option<&'static str> {
        match kind {
            MediaKind::Video => Some("x_video"),
            MediaKind::Image | MediaKind::Animation => Some("x_image"),
        }
    }

    fn budgets(&self) -> &'static [Budget] {
        rules::BUDGETS
    }

    fn timing(&self) -> Timing {
        self.timing
    }

    async fn upload(
        &self,
        call: &Call<'_>,
        file: &MediaFile<'_>,
        state: Option<UploadState>,
    ) -> Result<Step, ConnectorError> {
        upload::step(&self.wire, call, file, state).await
    }

    fn upload_lifetime(&self, state: &UploadState) -> Option<Duration> {
        upload::lifetime(state)
    }

    fn baseline(&self, intended_at: DateTime<Utc>, newest_known: Option<&str>) -> String {
        timeline::baseline(intended_at, self.wire.their_time(), newest_known)
    }

    fn fingerprint(&self, draft: &Draft) -> String {
        likeness::fingerprint(&likeness::of_draft(&draft.text))
    }

    async fn create(&self, call: &Call<'_>, draft: &Draft, media: &[Staged]) -> Result<RemotePost, ConnectorError> {
        let mut body = json!({ "text": draft.text });
        if !media.is_empty() {
            let ids: Vec<_> = media.iter().map(|file| &file.remote_id).collect();
            body["media"] = json!({ "media_ids": ids });
        }
        let request = self.wire.request(Method::POST, "/2/tweets", call).json(&body).timeout(self.timing.request);
        let answer = self.wire.send("create", Effect::Creates, request, call.witness).await?;
        let Some(Created { data }) = answer.json::<Created>().filter(|created| is_id(&created.data.id)) else {
            // Accepted, but we cannot tell under which id: it has to be looked up.
            return Err(ConnectorError::AnswerUnclear { platform: Platform::X, status: answer.status });
        };
        Ok(RemotePost { permalink: permalink(&call.account.username, &data.id), id: data.id })
    }

    async fn find(&self, call: &Call<'_>, search: &Search<'_>) -> Result<Sighting, ConnectorError> {
        timeline::find(&self.wire, call, search).await
    }

    fn consent_page(&self, asking: &Asking<'_>) -> Option<Url> {
        consent::page(&self.wire, self.pages.as_ref()?, asking)
    }

    async fn redeem(&self, grant: &Grant<'_>, witness: &dyn Witness) -> Result<TokenPair, ConnectorError> {
        let Some(pages) = &self.pages else {
            // Begun by a process with other settings than ours.
            let detail = "TWITTER_CLIENT_ID or TWITTER_CALLBACK_URL is not set".to_owned();
            return Err(ConnectorError::AppRefused { platform: Platform::X, detail });
        };
        consent::redeem(&self.wire, pages, grant, witness).await
    }

    fn scopes(&self) -> &'static [&'static str] {
        &consent::SCOPES
    }

    async fn owner(&self, access_token: &SecretString, witness: &dyn Witness) -> Result<Owner, ConnectorError> {
        consent::owner(&self.wire, access_token, witness).await
    }

    async fn revoke(&self, token: &SecretString, witness: &dyn Witness) -> Result<(), ConnectorError> {
        consent::revoke(&self.wire, token, witness).await
    }

    async fn refresh(&self, refresh_token: &SecretString, witness: &dyn Witness) -> Result<TokenPair, ConnectorError> {
        let request = self
            .wire
            .token_request(&[("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())])
            .timeout(TOKEN_DEADLINE);
        let answer = self.wire.send("refresh", Effect::Trades, request, witness).await?;
        let Some(tokens) = answer.json::<Tokens>() else {
            // The old token is spent and the new one unreadable: the same as an answer that was lost.
            return Err(ConnectorError::AnswerUnclear { platform: Platform::X, status: answer.status });
        };
        Ok(tokens.pair())
    }

    fn profile(&self, username: &str) -> String {
        if is_name(username) { format!("https://x.com/{username}") } else { "https://x.com/home".to_owned() }
    }

    fn post_named(&self, username: &str, remote_id: &str) -> Option<RemotePost> {
        is_id(remote_id).then(|| RemotePost { id: remote_id.to_owned(), permalink: permalink(username, remote_id) })
    }

    async fn delete(&self, call: &Call<'_>, remote_id: &str) -> Result<(), ConnectorError> {
        if !is_id(remote_id) {
            return Err(ConnectorError::Gone { platform: Platform::X });
        }
        let path = format!("/2/tweets/{remote_id}");
        let request = self.wire.request(Method::DELETE, &path, call).timeout(READ_DEADLINE);
        match self.wire.send("delete", Effect::Repeatable, request, call.witness).await {
            Ok(answer) => deleted(&answer),
            Err(ConnectorError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn deleted(answer: &Answer) -> Result<(), ConnectorError> {
    let gone = answer.json::<serde_json::Value>().is_some_and(|body| body["data"]["deleted"] == json!(true));
    let unreadable = ConnectorError::Unreadable { platform: Platform::X, status: answer.status };
    if gone { Ok(()) } else { Err(unreadable) }
}

/// Needs no name, so that it outlives a change of the account's name; the name is for people who read it.
fn permalink(username: &str, id: &str) -> String {
    if is_name(username) {
        format!("https://x.com/{username}/status/{id}")
    } else {
        format!("https://x.com/i/status/{id}")
    }
}

fn is_name(username: &str) -> bool {
    !username.is_empty() && username.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Ids of X go into addresses and comparisons: only digits, at most as many as 64 bits have.
fn is_id(id: &str) -> bool {
    (1..=19).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit())
}

#[derive(Deserialize)]
struct Created {
    data: CreatedData,
}

#[derive(Deserialize)]
struct CreatedData {
    id: String,
}

#[derive(Deserialize)]
struct Tokens {
    access_token: SecretString,
    refresh_token: Option<SecretString>,
    expires_in: Option<u64>,
    scope: Option<String>,
}

impl Tokens {
    fn pair(self) -> TokenPair {
        TokenPair {
            access_token: self.access_token,
            refresh_token: self.refresh_token,
            expires_in: Duration::from_secs(self.expires_in.unwrap_or(TOKEN_LIFETIME_SECONDS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permalink_never_carries_a_name_that_is_not_one() {
        assert_eq!(permalink("multivio", "12"), "https://x.com/multivio/status/12");
        assert_eq!(permalink("../evil", "12"), "https://x.com/i/status/12");
        assert_eq!(permalink("", "12"), "https://x.com/i/status/12");
    }

    #[test]
    fn an_id_is_digits_and_nothing_else() {
        assert!(is_id("1834974657"));
        for id in ["", "12/../me", "12345678901234567890", "-1"] {
            assert!(!is_id(id), "{id}");
        }
    }
}
