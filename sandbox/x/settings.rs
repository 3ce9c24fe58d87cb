//! What a test may change about the twin of X. Each value's default is what the facts say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rates::Quota;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A6: a new post may take a moment until a timeline shows it.
    pub visibility_delay_ms: u64,
    /// A6: the same text by the same account is refused within this window; 0 turns it off.
    pub duplicate_window_s: u64,
    /// A6: whether other media makes the text another post is not known.
    pub duplicate_considers_media: bool,
    /// A3: how long videos and animations are processed, and how long a client is told to wait between looks.
    pub processing_ms: u64,
    pub check_after_secs: u64,
    /// A1, A3: lifetimes.
    pub code_lifetime_s: u64,
    pub access_token_lifetime_s: u64,
    pub refresh_token_lifetime_s: u64,
    pub media_lifetime_s: u64,
    /// A3: the edge refuses larger segments with a bare 413.
    pub segment_max_bytes: usize,
    /// A3: older answers to append have no body.
    pub append_answers_empty: bool,
    /// A5: video limits of ordinary and Premium accounts.
    pub video_max_s: u64,
    pub premium_video_max_s: u64,
    /// A6: which of the seen answers a too long text gets.
    pub too_long: TooLong,
    /// A6: whether `& < >` come back escaped is not confirmed.
    pub html_escape: bool,
    /// Links come back with everything but ASCII percent-encoded, as another spelling of the same address.
    pub encode_links: bool,
    /// A8: which set of names the server speaks.
    pub naming: Naming,
    /// A2: quotes are for Enterprise apps only.
    pub enterprise: bool,
    /// A7: off for tests that post more than a real account may.
    pub rate_limits_enabled: bool,
    /// Quotas that replace the published ones, by operation.
    pub rate_limits: BTreeMap<String, Quota>,
    /// A2: what is left to spend, in millionths of a dollar; null is without end.
    pub credits_micro_usd: Option<u64>,
    /// Answer every authorization at once as this account (an id or a username), without a page.
    pub auto_approve: Option<String>,
    /// Uploaded bytes kept for looking at; the oldest go first.
    pub media_kept_bytes: usize,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// 403 with "Your Tweet text is too long." (newer reports)
    Forbidden,
    /// 400 with the same message (older reports)
    Invalid,
    /// 403 "You are not permitted to perform this action."
    Bare,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    Tweet,
    Post,
}

impl Naming {
    pub fn fields_parameter(self) -> &'static str {
        match self {
            Self::Tweet => "tweet.fields",
            Self::Post => "post.fields",
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            visibility_delay_ms: 0,
            duplicate_window_s: 24 * 3600,
            duplicate_considers_media: false,
            processing_ms: 1_200,
            check_after_secs: 1,
            code_lifetime_s: 30,
            access_token_lifetime_s: 7_200,
            refresh_token_lifetime_s: 180 * 24 * 3600,
            media_lifetime_s: 86_400,
            segment_max_bytes: 4_500_000,
            append_answers_empty: false,
            video_max_s: 20 * 60,
            premium_video_max_s: 125 * 60,
            too_long: TooLong::Forbidden,
            html_escape: true,
            encode_links: false,
            naming: Naming::Tweet,
            enterprise: false,
            rate_limits_enabled: true,
            rate_limits: BTreeMap::new(),
            credits_micro_usd: None,
            auto_approve: None,
            media_kept_bytes: 256 * 1024 * 1024,
        }
    }
}
