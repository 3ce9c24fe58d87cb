//! OAuth 2.0 with PKCE at X: the page, the code's trade, whose account it is, and giving tokens back.

use std::time::Duration;

use reqwest::Method;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use super::{Tokens, answers::Effect, exchange::Wire, is_id, is_name};
use crate::{
    config::XConfig,
    platforms::{Asking, ConnectorError, Grant, Owner, Platform, TokenPair, Witness, consent::Pages},
};

/// A code lives half a minute, and somebody waits for the answer.
const DEADLINE: Duration = Duration::from_secs(12);
/// To write, to upload, to see what was written, and to go on without its owner.
pub const SCOPES: [&str; 5] = ["tweet.read", "tweet.write", "users.read", "media.write", "offline.access"];
const NAME_CHARS: usize = 200;

/// `None` without an app at X, or without a page of ours to come back to.
pub fn pages(config: &XConfig) -> Option<Pages> {
    config.client_id.as_ref()?;
    Some(Pages { authorize: config.authorize_page.clone(), callback: config.callback.clone()? })
}

pub fn page(wire: &Wire, pages: &Pages, asking: &Asking<'_>) -> Option<Url> {
    let mut page = pages.authorize.clone();
    page.query_pairs_mut()
        .append_pair("response_type", "code")
        .append_pair("client_id", wire.client_id()?)
        .append_pair("redirect_uri", pages.callback.as_str())
        .append_pair("scope", &SCOPES.join(" "))
        .append_pair("state", asking.state.expose_secret())
        .append_pair("code_challenge", asking.challenge)
        .append_pair("code_challenge_method", "S256");
    Some(page)
}

pub async fn redeem(
    wire: &Wire,
    pages: &Pages,
    grant: &Grant<'_>,
    witness: &dyn Witness,
) -> Result<TokenPair, ConnectorError> {
    let form = [
        ("grant_type", "authorization_code"),
        ("code", grant.code.expose_secret()),
        ("redirect_uri", pages.callback.as_str()),
        ("code_verifier", grant.verifier.expose_secret()),
    ];
    let request = wire.token_request(&form).timeout(DEADLINE);
    let answer = wire.send("redeem", Effect::Trades, request, witness).await;
    let answer = answer.map_err(|error| match error {
        // The token endpoint says the same of a code as of a refresh token.
        ConnectorError::RefreshRefused { platform } => ConnectorError::ConsentRefused { platform },
        other => other,
    })?;
    let Some(tokens) = answer.json::<Tokens>() else {
        return Err(ConnectorError::AnswerUnclear { platform: Platform::X, status: answer.status });
    };
    // Less than was asked for would fail later, at the worst moment. Not said: all of it (RFC 6749, 5.1).
    let given = tokens.scope.as_deref().unwrap_or_default();
    let lacks = |scope: &&str| !given.split(' ').any(|word| word == *scope);
    let missing = SCOPES.into_iter().find(lacks).filter(|_| !given.is_empty());
    if missing.is_some() {
        let pair = tokens.pair();
        for token in [Some(&pair.access_token), pair.refresh_token.as_ref()].into_iter().flatten() {
            // What cannot be used is given back; if X does not take it, it ends by itself.
            let _given_back = revoke(wire, token, witness).await;
        }
        return Err(ConnectorError::PermissionMissing { platform: Platform::X, missing });
    }
    Ok(tokens.pair())
}

pub async fn owner(wire: &Wire, token: &SecretString, witness: &dyn Witness) -> Result<Owner, ConnectorError> {
    let request = wire.request_with(Method::GET, "/2/users/me", token).timeout(DEADLINE);
    let answer = wire.send("owner", Effect::Repeatable, request, witness).await?;
    let owner = answer.json::<Me>().map(|me| me.data).filter(|me| is_id(&me.id) && is_name(&me.username));
    let Some(owner) = owner else {
        return Err(ConnectorError::Unreadable { platform: Platform::X, status: answer.status });
    };
    let name: String = owner.name.chars().filter(|c| !c.is_control()).take(NAME_CHARS).collect();
    let display_name = if name.trim().is_empty() { owner.username.clone() } else { name };
    Ok(Owner { remote_id: owner.id, username: owner.username, display_name })
}

pub async fn revoke(wire: &Wire, token: &SecretString, witness: &dyn Witness) -> Result<(), ConnectorError> {
    let request = wire.app_request("/2/oauth2/revoke", &[("token", token.expose_secret())]).timeout(DEADLINE);
    // Revoking twice does no harm: a lost answer is asked for again.
    match wire.send("revoke", Effect::Revokes, request, witness).await {
        // Dead already: what was asked for.
        Ok(_) | Err(ConnectorError::RefreshRefused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Me {
    data: MeData,
}

#[derive(Deserialize)]
struct MeData {
    id: String,
    username: String,
    #[serde(default)]
    name: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config(pairs: &[(&str, &str)]) -> XConfig {
        let all = [&[("DATABASE_URL", "postgres://localhost/m"), ("REDIS_URL", "redis://localhost")], pairs].concat();
        let lookup = |name: &str| all.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        crate::config::Config::load(&lookup).unwrap().x
    }

    #[test]
    fn the_page_is_asked_for_exactly_what_the_settings_and_the_flow_say() {
        let config = config(&[("TWITTER_CLIENT_ID", "app"), ("TWITTER_CALLBACK_URL", "https://a.example/back?x=1")]);
        let wire = Wire::new(&config, crate::outbound::client().unwrap());
        let asking = Asking { state: &"the state&".into(), challenge: "the-hash" };
        let page = page(&wire, &pages(&config).unwrap(), &asking).unwrap();
        assert!(page.as_str().starts_with("https://x.com/i/oauth2/authorize?"));
        let query: BTreeMap<_, _> = page.query_pairs().into_owned().collect();
        let of = |name: &str| query[name].as_str();
        assert_eq!((of("redirect_uri"), of("state")), ("https://a.example/back?x=1", "the state&"));
        assert_eq!((of("code_challenge"), of("code_challenge_method")), ("the-hash", "S256"));
        assert_eq!(of("scope"), "tweet.read tweet.write users.read media.write offline.access");
        assert_eq!(query.len(), 7);
    }

    #[test]
    fn where_to_come_back_is_said_letter_by_letter_as_it_is_registered() {
        let config = config(&[("TWITTER_CLIENT_ID", "app"), ("TWITTER_CALLBACK_URL", "https://a.example")]);
        let wire = Wire::new(&config, crate::outbound::client().unwrap());
        let asking = Asking { state: &"state".into(), challenge: "hash" };
        let page = page(&wire, &pages(&config).unwrap(), &asking).unwrap();
        let told = page.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1.into_owned();
        assert_eq!(told, "https://a.example");
    }

    #[test]
    fn without_an_app_or_a_page_of_ours_there_is_nowhere_to_go() {
        assert!(pages(&config(&[("TWITTER_CLIENT_ID", "app")])).is_none());
        assert!(pages(&config(&[("TWITTER_CALLBACK_URL", "https://a.example/back")])).is_none());
    }
}
