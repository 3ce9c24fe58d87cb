//! Publications: what becomes of one post on one account, without losing it and without doubling it.
//!
//! A publication goes through phases, each committed before the next step ([`phase`]). Before a request that creates
//! a post leaves, its intent is on record; an attempt that finds an open intent does not know whether the post
//! exists and looks for it ([`reconcile`]) instead of sending again. No end of a job leaves a publication in
//! `sending`: every publish job has a [`Reconcile`] job as its child, which runs however the publish job ended, and
//! [`upkeep`] replaces one that did not get through.
//!
//! In reading order: [`phase`], [`job`] (the path of a publication), [`prepare`], [`stage`], [`send`], [`reconcile`].

mod again;
pub mod api;
pub mod budget;
pub mod check;
pub mod circuit;
pub mod files;
pub mod halt;
pub mod health;
pub mod intents;
pub mod job;
pub mod late;
pub mod library;
pub mod media;
pub mod phase;
pub mod plan;
pub mod prepare;
pub mod reconcile;
pub mod removal;
pub mod request;
pub mod rivals;
pub mod schedule;
pub mod send;
pub mod settle;
pub mod stage;
pub mod store;
pub mod upkeep;
pub mod view;

pub use again::CancelledStays;
pub use halt::Halt;
pub use job::{Publish, Published};
pub use late::LatePolicy;
pub use media::{MediaSource, MediaTrouble, OpenMedia};
pub use phase::Phase;
pub use reconcile::Reconcile;
pub use removal::RemovePost;
pub use store::Publication;
pub use upkeep::PublishingUpkeep;

use std::sync::Arc;

use crate::{
    config::Config,
    connections::Accounts,
    crypto::{CryptoError, Keyring},
    ids::PublicationId,
    platforms::Connectors,
};

/// What publishing needs besides the database; a service of the worker and of the API.
#[derive(Clone)]
pub struct Publisher {
    pub accounts: Accounts,
    pub media: Arc<dyn MediaSource>,
}

impl Publisher {
    /// # Errors
    /// When there is no usable ENCRYPTION_KEY: without one no token can be kept.
    pub fn new(config: &Config, client: &reqwest::Client, media: Arc<dyn MediaSource>) -> Result<Self, CryptoError> {
        let keyring = Keyring::new(&config.encryption_keys)?;
        Ok(Self { accounts: Accounts::new(keyring, Connectors::new(config, client)), media })
    }
}

/// What a publication is parked on while it waits for its user's word.
pub fn wake_key(publication: PublicationId) -> String {
    format!("publication:{publication}")
}
