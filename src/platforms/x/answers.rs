//! What X's refusals mean: every row of its error tables, as one pure function.
//!
//! X answers in four shapes: a problem object, a list of validation errors, an old list of code and message, and
//! whatever the edge in front of it says (HTML or nothing). Texts are matched because X gives no code for most.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::{
    consent::SCOPES,
    exchange::{instant, number},
};
use crate::platforms::{ConnectorError, Platform};

/// What a request may have done when its answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A post may exist.
    Creates,
    /// A refresh token may be spent.
    Trades,
    /// A token is given back: said in the words of a trade, and harmless to send again.
    Revokes,
    /// Sending it again does no harm.
    Repeatable,
    /// Like [`Self::Repeatable`], for a piece of a file: it may be too large for the edge.
    Appends,
}

const X: Platform = Platform::X;
/// What of X's own words a user is shown.
const DETAIL_LIMIT_CHARS: usize = 300;

pub fn meaning(effect: Effect, status: u16, headers: &HeaderMap, body: &[u8]) -> ConnectorError {
    let said = Said::read(body);
    if matches!(effect, Effect::Trades | Effect::Revokes) && (400..429).contains(&status) {
        return refused_trade(status, &said);
    }
    match status {
        400 => refused_request(effect, &said),
        401 if said.has_code(135) => {
            ConnectorError::AppRefused { platform: X, detail: "the clock of this machine is wrong".into() }
        }
        401 => ConnectorError::TokenRefused { platform: X },
        402 => ConnectorError::CreditGone { platform: X },
        403 => forbidden(effect, &said),
        404 if effect == Effect::Creates => said.refused("not_found"),
        404 => ConnectorError::Gone { platform: X },
        // The origin or the edge gave up waiting for a request that may have been read all the same.
        408 | 409 | 425 if effect == Effect::Creates => ConnectorError::AnswerUnclear { platform: X, status },
        408 | 409 | 425 => ConnectorError::Unavailable { platform: X, status, after: retry_after(headers) },
        413 | 431 if effect == Effect::Appends => {
            ConnectorError::MediaRefused { platform: X, detail: PIECE_TOO_LARGE.into() }
        }
        429 if said.is("usage-capped") => ConnectorError::CreditGone { platform: X },
        429 => ConnectorError::RateLimited { platform: X, until: reset_at(headers) },
        _ if (400..500).contains(&status) => said.refused("refused"),
        // Trouble, or neither success nor refusal (a redirect, an informational status): X is not itself, and only
        // what can be repeated is.
        _ if effect == Effect::Creates || effect == Effect::Trades => {
            ConnectorError::AnswerUnclear { platform: X, status }
        }
        _ => ConnectorError::Unavailable { platform: X, status, after: retry_after(headers) },
    }
}

/// Told apart by the look, which tries again in other words.
pub const INVALID_REQUEST: &str = "invalid_request";
/// Told apart by the upload, which tries again with smaller pieces.
pub const PIECE_TOO_LARGE: &str = "a piece of the file is too large for X";

fn refused_request(effect: Effect, said: &Said) -> ConnectorError {
    if effect == Effect::Creates && said.contains("media ids are invalid") {
        return ConnectorError::MediaUnknown { platform: X };
    }
    if said.contains("too long") {
        return said.refused("too_long");
    }
    match effect {
        Effect::Appends => ConnectorError::MediaRefused { platform: X, detail: said.detail() },
        Effect::Creates | Effect::Trades | Effect::Revokes | Effect::Repeatable => said.refused(INVALID_REQUEST),
    }
}

fn forbidden(effect: Effect, said: &Said) -> ConnectorError {
    let app_refused = || ConnectorError::AppRefused { platform: X, detail: said.detail() };
    if said.contains("duplicate content") {
        return ConnectorError::Duplicate { platform: X, existing: None };
    }
    if said.is("oauth1-permissions") || said.is("client-forbidden") || said.contains("client-not-enrolled") {
        return app_refused();
    }
    if said.is("user-suspended") || said.has_code(64) || said.has_code(326) || said.contains("is suspended") {
        return ConnectorError::AccountBlocked { platform: X };
    }
    if said.contains("unsupported authentication") || said.is("unsupported-authentication") || said.contains("scope") {
        let missing = SCOPES.into_iter().find(|scope| said.contains(scope));
        return ConnectorError::PermissionMissing { platform: X, missing };
    }
    if said.contains("video longer than") || said.contains("video duration") {
        return ConnectorError::MediaRefused { platform: X, detail: said.detail() };
    }
    if said.contains("reply to this conversation") {
        return said.refused("reply_not_allowed");
    }
    if said.contains("too long") {
        return said.refused("too_long");
    }
    // Said of a text too long, of a throttle, of an app with too small a plan, and of nothing at all. The edge's
    // own refusals (HTML, or nothing) explain as little.
    if effect == Effect::Creates && (said.contains("not permitted to perform this action") || said.is_nothing()) {
        return ConnectorError::RefusedBare { platform: X };
    }
    said.refused("not_allowed")
}

/// The token endpoint speaks OAuth: `error` and `error_description`.
fn refused_trade(status: u16, said: &Said) -> ConnectorError {
    match said.error.as_str() {
        "invalid_client" | "unauthorized_client" | "invalid_scope" | "unsupported_grant_type" => {
            ConnectorError::AppRefused { platform: X, detail: said.detail() }
        }
        "invalid_grant" => ConnectorError::RefreshRefused { platform: X },
        "invalid_request" if said.contains("authorization header") => {
            ConnectorError::AppRefused { platform: X, detail: said.detail() }
        }
        "invalid_request" => ConnectorError::RefreshRefused { platform: X },
        // No word of OAuth: the edge, not the token endpoint. An outage is not a revoked token.
        _ => ConnectorError::Unavailable { platform: X, status, after: None },
    }
}

/// The 24-hour limits outlast the 15-minute ones where a plan has them.
fn reset_at(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    let day = ["x-user-limit-24hour", "x-app-limit-24hour"]
        .iter()
        .filter(|limit| number(headers, &format!("{limit}-remaining")) == Some(0))
        .filter_map(|limit| instant(headers, &format!("{limit}-reset")))
        .max();
    day.or_else(|| instant(headers, "x-rate-limit-reset"))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    number(headers, "retry-after").and_then(|seconds| seconds.try_into().ok()).map(Duration::from_secs)
}

/// What X said, from whichever shape it came in.
#[derive(Default)]
struct Said {
    /// The last part of a problem's `type`.
    slug: String,
    error: String,
    codes: Vec<i64>,
    /// Everything readable, for people.
    words: Vec<String>,
    /// The same in lower case, for matching.
    lower: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    title: Option<String>,
    detail: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    reason: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
    errors: Vec<Item>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Item {
    code: Option<i64>,
    message: Option<String>,
    detail: Option<String>,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let Ok(body) = serde_json::from_slice::<Body>(body) else { return Self::default() };
        let kind = body.kind.unwrap_or_default();
        let slug = kind.rsplit('/').next().filter(|slug| *slug != "about:blank").unwrap_or_default().to_owned();
        let codes = body.errors.iter().filter_map(|item| item.code).collect();
        // The most particular first: that is what a user is shown.
        let words: Vec<String> = body
            .errors
            .into_iter()
            .flat_map(|item| [item.message, item.detail])
            .chain([body.error_description, body.detail, body.title, body.reason])
            .flatten()
            .filter(|word| !word.trim().is_empty())
            .collect();
        let lower = words.join("\n").to_lowercase();
        Self { slug, error: body.error.unwrap_or_default(), codes, words, lower }
    }

    fn contains(&self, text: &str) -> bool {
        self.lower.contains(text)
    }

    fn is(&self, slug: &str) -> bool {
        self.slug == slug
    }

    fn has_code(&self, code: i64) -> bool {
        self.codes.contains(&code)
    }

    fn is_nothing(&self) -> bool {
        self.words.is_empty() && self.codes.is_empty()
    }

    fn detail(&self) -> String {
        let words = self.words.first().map_or("no reason was given", String::as_str);
        words.chars().filter(|c| !c.is_control()).take(DETAIL_LIMIT_CHARS).collect()
    }

    fn refused(&self, code: &'static str) -> ConnectorError {
        ConnectorError::Refused { platform: X, code, detail: self.detail() }
    }
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
