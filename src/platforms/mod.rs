//! One trait that every platform implements, so that the publish job never asks which platform it serves.
//!
//! A connector speaks to its platform and to nothing else: it never touches the database, holds no state between
//! calls, and decides nothing about retries; it says what an answer *means* ([`ConnectorError::class`]). A new
//! platform is a file (or folder) here, one line in [`registry`], and its twin in the sandbox. If it needs an
//! `if platform ==` anywhere else, the trait is missing a method.

pub mod account;
pub mod consent;
pub mod content;
pub mod error;
pub mod limits;
pub mod platform;
pub mod registry;
pub mod x;

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use secrecy::SecretString;
use url::Url;

pub use account::{Account, Call, Exchange, TokenPair, Witness};
pub use consent::{Asking, Grant, Owner};
pub use content::{Content, ContentProblem, Draft, DraftMedia, MediaBytes, MediaFacts, MediaFile, MediaKind};
pub use error::{Class, ConnectorError, Explanation, Turn};
pub use limits::{Budget, RateWindow, Scope, Timing};
pub use platform::Platform;
pub use registry::Connectors;

#[async_trait]
pub trait Connector: Send + Sync {
    fn platform(&self) -> Platform;

    /// Everything that the platform would refuse about this content, all at once, before anything is queued.
    fn validate(&self, content: &Content<'_>) -> Vec<ContentProblem>;

    /// The preset media of this kind is transcoded to before it is uploaded; `None` sends it as it is.
    fn preset_for(&self, kind: MediaKind) -> Option<&'static str>;

    /// How often a post may be created, as published.
    fn budgets(&self) -> &'static [Budget];

    /// How long a create may take and how long after it the post may still be invisible.
    fn timing(&self) -> Timing;

    /// Takes one step in bringing a file to the platform. The caller keeps the state of each step before it asks
    /// for the next, so that a crash repeats one step and not the upload.
    async fn upload(
        &self,
        call: &Call<'_>,
        file: &MediaFile<'_>,
        state: Option<UploadState>,
    ) -> Result<Step, ConnectorError>;

    /// How long the platform keeps a half-done upload, counted from its first step; `None` as long as it takes.
    fn upload_lifetime(&self, _state: &UploadState) -> Option<Duration> {
        None
    }

    /// The platform's own name for a post that is about to be created, where it gives one beforehand (an upload
    /// session, a container): it is kept with the intent and handed to [`Connector::find`].
    fn native_handle(&self, _media: &[Staged]) -> Option<String> {
        None
    }

    /// What marks the end of what was on the account before the intent: [`Connector::find`] looks after it.
    /// `newest_known` is the newest post there that this product made.
    fn baseline(&self, intended_at: DateTime<Utc>, newest_known: Option<&str>) -> String;

    /// A hash of what the content will look like on the platform, after all that the platform does to a text.
    fn fingerprint(&self, draft: &Draft) -> String;

    /// Creates the post. Called once, after the intent is committed. An answer that never came is of the class
    /// [`Class::Uncertain`], and no reason to call again.
    async fn create(&self, call: &Call<'_>, draft: &Draft, media: &[Staged]) -> Result<RemotePost, ConnectorError>;

    /// Looks for a post that an earlier attempt may have made. A list that fails, or is cut, never says "absent".
    async fn find(&self, call: &Call<'_>, search: &Search<'_>) -> Result<Sighting, ConnectorError>;

    /// The platform's page where an account's owner allows us to act for them. `None`: this installation has no app
    /// there, or no page of its own for them to come back to.
    fn consent_page(&self, asking: &Asking<'_>) -> Option<Url>;

    /// Trades what the owner came back with. It is spent as soon as this was sent, answered or not.
    async fn redeem(&self, grant: &Grant<'_>, witness: &dyn Witness) -> Result<TokenPair, ConnectorError>;

    /// What an account's owner has to allow, in the platform's own words.
    fn scopes(&self) -> &'static [&'static str];

    /// Whose account an access token is for.
    async fn owner(&self, access_token: &SecretString, witness: &dyn Witness) -> Result<Owner, ConnectorError>;

    /// Gives a token back: it alone ends, whatever else the same account's owner has allowed. One that is dead already
    /// counts as given back.
    async fn revoke(&self, token: &SecretString, witness: &dyn Witness) -> Result<(), ConnectorError>;

    /// Trades a refresh token. The old pair may be dead as soon as this was sent, answered or not.
    async fn refresh(&self, refresh_token: &SecretString, witness: &dyn Witness) -> Result<TokenPair, ConnectorError>;

    /// Where a person sees what an account has posted.
    fn profile(&self, username: &str) -> String;

    /// The account's post of this id, as a person names it; `None` when no post can be called that.
    fn post_named(&self, username: &str, remote_id: &str) -> Option<RemotePost>;

    /// Removes a post; one that is gone already counts as removed.
    async fn delete(&self, call: &Call<'_>, remote_id: &str) -> Result<(), ConnectorError>;
}

/// Where a half-done upload stands, in the connector's own words. May hold secrets (addresses that need no
/// password): kept encrypted, never logged.
#[derive(Clone)]
pub struct UploadState(pub serde_json::Value);

/// What came of one step of an upload.
pub enum Step {
    /// Keep the state and go on.
    Next(UploadState),
    /// The platform works on it: keep the state, come back later.
    Wait { state: UploadState, after: Duration },
    /// The platform has it.
    Ready(Staged),
}

/// A file that the platform has and a post may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    pub remote_id: String,
    pub kind: MediaKind,
    /// Counted from the first step of its upload; `None` lives for ever.
    pub lifetime: Option<Duration>,
}

/// A post as it exists on the platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePost {
    pub id: String,
    pub permalink: String,
}

/// What an earlier attempt meant to make.
pub struct Search<'a> {
    pub draft: &'a Draft,
    pub fingerprint: &'a str,
    pub baseline: &'a str,
    /// From [`Connector::native_handle`] at the time of the intent.
    pub handle: Option<&'a str>,
    /// Posts of this account that belong to other publications.
    pub taken: &'a [String],
    /// What the platform calls the files of the post, in order, where they are known.
    pub media: &'a [String],
}

/// What a look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sighting {
    Found(RemotePost),
    /// The whole list was read and the post is not on it.
    Absent,
    /// The list could not be read to its end, or holds something that may be the post.
    Unclear {
        why: &'static str,
    },
}
