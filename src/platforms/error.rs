//! What an answer of a platform means, decided where it is understood; there is no "other".
//!
//! [`ConnectorError`] says what happened, [`Class`] what the publish job has to do about it, [`Explanation`] what
//! the user is told and whose turn it is.

use std::{fmt, str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Platform;
use crate::jobs::job::stored_names;

/// What has to happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// A passing trouble: try again, an attempt is used.
    Retry { after: Option<Duration> },
    /// Not explained by the platform: once more after a while, then it counts as permanent.
    RetryOnce { after: Duration },
    /// Nothing is wrong with the post, it is only too early. `None`: the platform did not say until when.
    Snooze { until: Option<DateTime<Utc>> },
    /// The access token is not accepted: refresh it and try once more, then it needs its owner.
    Refresh,
    /// The uploaded media is not accepted any more: upload it again if it is old.
    Restage,
    /// The account has to be authorised again by its owner.
    Reconnect,
    /// The same post exists already: adopted if an earlier attempt was uncertain, else permanent.
    Duplicate { existing: Option<String> },
    /// This post can never pass as it is.
    Permanent,
    /// It may have happened: look before anything else.
    Uncertain,
    /// The app or its bill, not the post: hold the whole platform and tell the operator.
    Config,
}

stored_names! {
    /// Whose turn it is.
    Turn {
        /// Nobody has to do anything.
        Us = "us",
        User = "user",
        Operator = "operator",
        Platform = "platform",
    }
}

/// For the person who waits for the post.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Stable, for programs.
    pub code: String,
    pub message: String,
    pub turn: Turn,
}

impl Explanation {
    pub fn new(code: &str, turn: Turn, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), turn }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    #[error("{platform} could not be reached")]
    Unreachable { platform: Platform, source: reqwest::Error },
    #[error("{platform} broke off a request that can be repeated")]
    Interrupted { platform: Platform, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{platform} is in trouble (status {status})")]
    Unavailable { platform: Platform, status: u16, after: Option<Duration> },
    #[error("{platform} was sent a creating request, but its answer was lost")]
    AnswerLost { platform: Platform, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{platform} answered a creating request with status {status}, which does not say whether it was done")]
    AnswerUnclear { platform: Platform, status: u16 },
    #[error("{platform} allows no more requests for now")]
    RateLimited { platform: Platform, until: Option<DateTime<Utc>> },
    #[error("{platform} refused the access token")]
    TokenRefused { platform: Platform },
    #[error("{platform} refused the refresh token")]
    RefreshRefused { platform: Platform },
    #[error("{platform} refused what the account's owner came back with")]
    ConsentRefused { platform: Platform },
    #[error("{platform} wants a permission that the account's owner has not given")]
    PermissionMissing {
        platform: Platform,
        /// Its name there, where the platform says it.
        missing: Option<&'static str>,
    },
    #[error("{platform} has suspended or locked the account")]
    AccountBlocked { platform: Platform },
    #[error("{platform} has this post already")]
    Duplicate { platform: Platform, existing: Option<String> },
    #[error("{platform} does not know the uploaded media")]
    MediaUnknown { platform: Platform },
    #[error("{platform} does not accept the media: {detail}")]
    MediaRefused { platform: Platform, detail: String },
    #[error("the media could not be read")]
    MediaUnreadable { source: std::io::Error },
    #[error("{platform} does not accept the post: {detail}")]
    Refused { platform: Platform, code: &'static str, detail: String },
    #[error("{platform} refused the request without saying why")]
    RefusedBare { platform: Platform },
    #[error("{platform} has no credit left for this app")]
    CreditGone { platform: Platform },
    #[error("{platform} refused this app: {detail}")]
    AppRefused { platform: Platform, detail: String },
    #[error("{platform} has nothing under that name any more")]
    Gone { platform: Platform },
    #[error("{platform} answered in a form that is not understood (status {status})")]
    Unreadable { platform: Platform, status: u16 },
}

impl ConnectorError {
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } | Self::MediaUnreadable { .. } => {
                Class::Retry { after: None }
            }
            Self::Unavailable { after, .. } => Class::Retry { after: *after },
            Self::Unreadable { .. } => Class::Retry { after: None },
            Self::AnswerLost { .. } | Self::AnswerUnclear { .. } => Class::Uncertain,
            Self::RateLimited { until, .. } => Class::Snooze { until: *until },
            Self::TokenRefused { .. } => Class::Refresh,
            Self::RefreshRefused { .. }
            | Self::ConsentRefused { .. }
            | Self::PermissionMissing { .. }
            | Self::AccountBlocked { .. } => Class::Reconnect,
            Self::Duplicate { existing, .. } => Class::Duplicate { existing: existing.clone() },
            Self::MediaUnknown { .. } => Class::Restage,
            Self::MediaRefused { .. } | Self::Refused { .. } | Self::Gone { .. } => Class::Permanent,
            Self::RefusedBare { .. } => Class::RetryOnce { after: BARE_REFUSAL_PAUSE },
            Self::CreditGone { .. } | Self::AppRefused { .. } => Class::Config,
        }
    }

    /// Whether the platform itself is in trouble: what its circuit breaker counts.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Interrupted { .. }
                | Self::Unavailable { .. }
                | Self::AnswerLost { .. }
                | Self::AnswerUnclear { .. }
        )
    }

    /// Said to a creating request: whether it was done is not known. Whatever is neither a refusal that is understood
    /// nor certainly never left counts.
    pub fn leaves_doubt(&self) -> bool {
        matches!(
            self,
            Self::AnswerLost { .. }
                | Self::AnswerUnclear { .. }
                | Self::Unavailable { .. }
                | Self::Interrupted { .. }
                | Self::Unreadable { .. }
        )
    }

    /// In words a user understands.
    pub fn explain(&self) -> Explanation {
        let (code, turn, message): (&str, Turn, String) = match self {
            Self::Unreachable { platform, .. } => (
                "platform_unreachable",
                Turn::Platform,
                format!("{} cannot be reached; we try again.", platform.title()),
            ),
            Self::Interrupted { platform, .. } => {
                ("interrupted", Turn::Us, format!("The exchange with {} broke off; we try again.", platform.title()))
            }
            Self::Unavailable { platform, status, .. } => (
                "platform_unavailable",
                Turn::Platform,
                format!("{} has trouble of its own (status {status}); we try again.", platform.title()),
            ),
            Self::AnswerLost { platform, .. } | Self::AnswerUnclear { platform, .. } => (
                "answer_lost",
                Turn::Us,
                format!(
                    "The post was sent to {} but the answer was lost; we look whether it is there.",
                    platform.title()
                ),
            ),
            Self::RateLimited { platform, .. } => (
                "rate_limited",
                Turn::Platform,
                format!(
                    "{} takes no more posts of this account for now; it goes out when the limit resets.",
                    platform.title()
                ),
            ),
            Self::TokenRefused { platform } | Self::RefreshRefused { platform } => (
                "reconnect",
                Turn::User,
                format!(
                    "{} no longer accepts our access to this account. Connect the account again.",
                    platform.title()
                ),
            ),
            Self::ConsentRefused { platform } => (
                "consent_refused",
                Turn::User,
                format!(
                    "{} does not accept the code: it is good once and for half a minute. Begin again.",
                    platform.title()
                ),
            ),
            Self::PermissionMissing { platform, .. } => (
                "permission_missing",
                Turn::User,
                format!(
                    "{} says we lack a permission. Connect the account again and grant everything asked.",
                    platform.title()
                ),
            ),
            Self::AccountBlocked { platform } => (
                "account_blocked",
                Turn::User,
                format!(
                    "{0} has suspended or locked this account. Sign in at {0}, then connect it again.",
                    platform.title()
                ),
            ),
            Self::Duplicate { platform, .. } => (
                "duplicate",
                Turn::User,
                format!(
                    "{} refuses this because the account has posted the same recently. Change the text.",
                    platform.title()
                ),
            ),
            Self::MediaUnknown { platform } => {
                ("media_unknown", Turn::Us, format!("{} does not know the uploaded media.", platform.title()))
            }
            Self::MediaRefused { platform, detail } => {
                ("media_refused", Turn::User, format!("{} does not accept the media: {detail}", platform.title()))
            }
            Self::MediaUnreadable { .. } => {
                ("media_unreadable", Turn::Us, "The stored media could not be read; we try again.".to_owned())
            }
            Self::Refused { platform, code, detail } => {
                (code, Turn::User, format!("{} does not accept the post: {detail}", platform.title()))
            }
            Self::RefusedBare { platform } => (
                "refused_bare",
                Turn::User,
                format!(
                    "{} refused the post without a reason. Shorten or change it, or post by hand.",
                    platform.title()
                ),
            ),
            Self::CreditGone { platform } => (
                "credit_gone",
                Turn::Operator,
                format!(
                    "This installation's credit at {} is used up; posts wait until it is topped up.",
                    platform.title()
                ),
            ),
            Self::AppRefused { platform, detail } => (
                "app_refused",
                Turn::Operator,
                format!(
                    "{} refuses this installation's app ({detail}); posts wait until that is settled.",
                    platform.title()
                ),
            ),
            Self::Gone { platform } => {
                ("gone", Turn::User, format!("What the post refers to is no longer on {}.", platform.title()))
            }
            Self::Unreadable { platform, .. } => (
                "unreadable_answer",
                Turn::Us,
                format!("{} answered in a form we do not understand.", platform.title()),
            ),
        };
        Explanation::new(code, turn, message)
    }
}

/// A refusal without a reason is often a throttle against abuse: asking again at once makes it worse.
const BARE_REFUSAL_PAUSE: Duration = Duration::from_secs(15 * 60);
