//! Whose account some tokens are for: nobody's word counts but the platform's.

use std::time::Duration;

use chrono::Utc;
use poem::http::StatusCode;
use secrecy::SecretString;

use crate::{
    http::Problem,
    platforms::{Class, Connector, ConnectorError, Owner, Platform, Witness},
};

/// How often it is asked at once: somebody waits, and a code that brought the token is spent.
const TRIES: u32 = 2;
const PAUSE: Duration = Duration::from_millis(100);
/// When to come back where the platform does not say.
const AWAY: Duration = Duration::from_secs(5);
const LIMITED: Duration = Duration::from_secs(60);

/// Asks the platform, in no transaction.
pub async fn owner(
    connector: &dyn Connector,
    access_token: &SecretString,
    witness: &dyn Witness,
) -> Result<Owner, ConnectorError> {
    let mut tries = 1;
    loop {
        match connector.owner(access_token, witness).await {
            Err(error) if error.is_outage() && tries < TRIES => tries += 1,
            done => return done,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What whoever typed the tokens in is told when the platform did not say whose they are. Nothing was stored.
pub fn not_proved(connector: &dyn Connector, error: &ConnectorError) -> Problem {
    let platform = connector.platform().title();
    match error {
        ConnectorError::TokenRefused { .. } => Problem::invalid_field(
            "access_token",
            format!("is not accepted by {platform}"),
            "Send one that works now: refresh it first, or have the account's owner allow it again",
        ),
        ConnectorError::PermissionMissing { missing, .. } => {
            let what = missing.map_or_else(
                || format!("is not allowed by {platform} to say whose it is"),
                |scope| format!("lacks the scope {scope}"),
            );
            let scopes = connector.scopes().join(" ");
            Problem::invalid_field("access_token", what, format!("Send a user's token with the scopes {scopes}"))
        }
        ConnectorError::RateLimited { until, .. } => {
            let until = until.and_then(|until| (until - Utc::now()).to_std().ok());
            let text = format!("{platform} answers no more questions of this account for now. Nothing was stored.");
            away("platform_rate_limited", text).with_retry_after(until.unwrap_or(LIMITED))
        }
        error => match error.class() {
            Class::Retry { after } => not_answered(platform, after),
            Class::Uncertain => not_answered(platform, None),
            // Its owner's turn there, or the operator's.
            _ => {
                let explanation = error.explain();
                Problem::conflict(&explanation.code, explanation.message)
            }
        },
    }
}

fn not_answered(platform: &str, after: Option<Duration>) -> Problem {
    let text = format!("{platform} did not say whose account it is. Nothing was stored; try again.");
    away("platform_unavailable", text).with_retry_after(after.unwrap_or(AWAY))
}

fn away(code: &str, text: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, "The platform does not answer", text)
}

/// The tokens are another account's than whoever typed them in has said.
pub fn anothers(platform: Platform) -> Problem {
    Problem::invalid_field(
        "remote_account_id",
        format!("is not the account at {} that the access token is for", platform.title()),
        "Send the id of the account whose tokens these are, or the tokens of this account",
    )
}

/// One account is published on from one place only.
pub fn held_elsewhere(platform: Platform) -> Problem {
    let text = format!(
        "This {} account is connected in another workspace, and one account is published on from one place only. \
         Disconnect it there, or ask whoever can.",
        platform.title()
    );
    Problem::conflict("connected_elsewhere", text)
}
