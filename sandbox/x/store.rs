//! What the twin of X knows: accounts, apps, tokens, media and posts.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{rates::Windows, settings::Settings};
use crate::clock;

/// A6: ids are Snowflakes counted from this instant.
pub const EPOCH_MS: u64 = 1_288_834_974_657;

pub const DEFAULT_CLIENT_ID: &str = "sandbox-client";
pub const DEFAULT_CLIENT_SECRET: &str = "sandbox-secret";

#[derive(Deserialize, Serialize)]
#[serde(default)]
pub struct World {
    pub settings: Settings,
    pub accounts: BTreeMap<String, Account>,
    pub apps: BTreeMap<String, App>,
    pub access_tokens: HashMap<String, Grant>,
    pub refresh_tokens: HashMap<String, Grant>,
    pub codes: HashMap<String, Code>,
    pub posts: BTreeMap<u64, Post>,
    pub media: BTreeMap<u64, Media>,
    pub windows: Windows,
    pub last_snowflake: u64,
    /// Ids of posts by account, oldest first: timelines are read a lot more often than anything else.
    #[serde(skip)]
    pub by_account: HashMap<String, Vec<u64>>,
    /// (account, content) to the time it was last posted.
    pub recent: HashMap<String, u64>,
    /// Media whose bytes are kept, oldest first, and their size together.
    #[serde(skip)]
    pub kept: VecDeque<u64>,
    #[serde(skip)]
    pub kept_bytes: usize,
    /// Raised by every change, so that a snapshot is only written when there is something new.
    #[serde(skip)]
    pub revision: u64,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct Account {
    pub id: String,
    pub username: String,
    pub name: String,
    pub premium: bool,
    /// A6: `user-suspended`.
    pub suspended: bool,
    /// A6: code 326, the owner has to log in first.
    pub locked: bool,
    pub created_ms: u64,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct App {
    pub client_id: String,
    /// `None` for a public client.
    pub client_secret: Option<String>,
    /// A1: at most 10, matched exactly.
    pub callback_urls: Vec<String>,
    /// Takes any `http://127.0.0.1` callback; only the app that is there from the start does.
    pub any_loopback_callback: bool,
}

/// What a token allows, on whose behalf.
#[derive(Clone, Deserialize, Serialize)]
pub struct Grant {
    /// `None` for an app-only token.
    pub account: Option<String>,
    pub client_id: String,
    pub scopes: Vec<String>,
    pub expires_ms: u64,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct Code {
    pub account: String,
    pub client_id: String,
    pub scopes: Vec<String>,
    pub redirect_uri: String,
    pub challenge: String,
    pub method: Challenge,
    pub expires_ms: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub enum Challenge {
    S256,
    Plain,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct Post {
    pub id: u64,
    pub account: String,
    /// As the author wrote it, NFC-normalised.
    pub text: String,
    pub links: Vec<ShortLink>,
    pub media: Vec<u64>,
    /// The t.co link X appends for attached media.
    pub media_link: Option<String>,
    pub reply_to: Option<u64>,
    pub quote_of: Option<u64>,
    pub conversation: u64,
    pub reply_settings: Option<String>,
    pub poll: Option<Vec<String>>,
    /// Every version of an edited post, oldest first; the last is this one.
    pub history: Vec<u64>,
    pub created_ms: u64,
    pub deleted_ms: Option<u64>,
    /// A later version took its place.
    pub superseded: bool,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct ShortLink {
    /// Where it stands in the author's text, in characters.
    pub start: usize,
    pub end: usize,
    pub short: String,
    pub expanded: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Image,
    Gif,
    Video,
    Subtitles,
}

#[derive(Clone, Deserialize, Serialize)]
pub struct Media {
    pub id: u64,
    pub owner: String,
    pub additional_owners: Vec<String>,
    pub kind: Kind,
    pub category: String,
    pub content_type: String,
    pub total_bytes: u64,
    pub expires_ms: u64,
    pub width: u32,
    pub height: u32,
    pub duration_ms: u64,
    pub alt_text: Option<String>,
    pub stage: Stage,
    /// A3: accepted at upload, refused when posted (frame rate, frame size).
    pub refused_at_post: bool,
    #[serde(skip)]
    pub segments: BTreeMap<u32, Bytes>,
    /// The finished file while it is kept.
    #[serde(skip)]
    pub bytes: Option<Bytes>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Uploading,
    Processing { started_ms: u64, ends_ms: Option<u64>, failure: Option<Failure> },
    Ready,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub code: u64,
    pub name: String,
    pub message: String,
}

impl Default for World {
    fn default() -> Self {
        let app = App {
            client_id: String::from(DEFAULT_CLIENT_ID),
            client_secret: Some(String::from(DEFAULT_CLIENT_SECRET)),
            callback_urls: Vec::new(),
            any_loopback_callback: true,
        };
        Self {
            settings: Settings::default(),
            accounts: BTreeMap::new(),
            apps: BTreeMap::from([(app.client_id.clone(), app)]),
            access_tokens: HashMap::new(),
            refresh_tokens: HashMap::new(),
            codes: HashMap::new(),
            posts: BTreeMap::new(),
            media: BTreeMap::new(),
            windows: Windows::default(),
            last_snowflake: 0,
            by_account: HashMap::new(),
            recent: HashMap::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            revision: 0,
        }
    }
}

impl World {
    /// The next id: the time, and never one that was given before.
    pub fn snowflake(&mut self) -> u64 {
        let by_time = clock::now_ms().saturating_sub(EPOCH_MS) << 22;
        self.last_snowflake = by_time.max(self.last_snowflake + 1);
        self.revision += 1;
        self.last_snowflake
    }

    pub fn insert_post(&mut self, post: Post) {
        self.by_account.entry(post.account.clone()).or_default().push(post.id);
        self.posts.insert(post.id, post);
        self.revision += 1;
    }

    /// Keeps a finished file to look at, and lets the oldest go when the cap is passed.
    pub fn keep_bytes(&mut self, id: u64, bytes: Bytes) {
        let Some(media) = self.media.get_mut(&id) else {
            return;
        };
        self.kept_bytes += bytes.len();
        media.bytes = Some(bytes);
        self.kept.push_back(id);
        while self.kept_bytes > self.settings.media_kept_bytes && self.kept.len() > 1 {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            if let Some(dropped) = self.media.get_mut(&oldest).and_then(|media| media.bytes.take()) {
                self.kept_bytes -= dropped.len();
            }
        }
        self.revision += 1;
    }

    /// Rebuilds what a snapshot leaves out.
    pub fn index(&mut self) {
        self.by_account.clear();
        for (id, post) in &self.posts {
            self.by_account.entry(post.account.clone()).or_default().push(*id);
        }
    }

    pub fn account_named(&self, id_or_name: &str) -> Option<&Account> {
        let by_name = || self.accounts.values().find(|account| account.username.eq_ignore_ascii_case(id_or_name));
        self.accounts.get(id_or_name).or_else(by_name)
    }
}

impl Post {
    /// There for everyone to see: neither deleted nor replaced by a later version.
    pub fn is_live(&self) -> bool {
        self.deleted_ms.is_none() && !self.superseded
    }
}

impl Media {
    pub fn owned_by(&self, account: &str) -> bool {
        self.owner == account || self.additional_owners.iter().any(|owner| owner == account)
    }

    pub fn is_ready(&self, now_ms: u64) -> bool {
        match &self.stage {
            Stage::Ready => true,
            Stage::Uploading => false,
            Stage::Processing { ends_ms, failure, .. } => {
                failure.is_none() && ends_ms.is_some_and(|ends_ms| ends_ms <= now_ms)
            }
        }
    }

    /// A3: `3_` photos, `7_` videos, `16_` animations.
    pub fn key(&self) -> String {
        let prefix = match self.kind {
            Kind::Image | Kind::Subtitles => 3,
            Kind::Video => 7,
            Kind::Gif => 16,
        };
        format!("{prefix}_{}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_and_tell_their_time() {
        let mut world = World::default();
        let before_ms = clock::now_ms();
        let first = world.snowflake();
        let second = world.snowflake();
        assert!(second > first);
        let told_ms = (second >> 22) + EPOCH_MS;
        assert!(told_ms.abs_diff(before_ms) < 5_000, "{told_ms} {before_ms}");
        assert!(second < 10_u64.pow(19), "at most 19 digits");
    }
}
