//! Publications: what becomes of one post on one account, without losing it and without doubling it.
//!
//! A publication goes through phases, each committed before the next step ([`phase`]). Before a request that creates
//! a post leaves, its intent is on record; an attempt that finds an open intent does not know whether the post
//! exists and looks for it ([`reconcile`]) instead of sending again. No end of a job leaves a publication in
//! `sending`: every publish job has a [`Reconcile`] job as its child, which runs however the publish job ended.
//!
//! In reading order: [`phase`], [`job`] (the path of a publication), [`prepare`], [`stage`], [`send`], [`reconcile`].

pub mod budget;
pub mod circuit;
pub mod files;
pub mod halt;
pub mod intents;
pub mod job;
pub mod late;
pub mod media;
pub mod phase;
pub mod prepare;
pub mod reconcile;
pub mod send;
pub mod stage;
pub mod store;

pub use halt::Halt;
pub use job::{Publish, Published};
pub use late::LatePolicy;
pub use media::{MediaSource, MediaTrouble, OpenMedia};
pub use phase::Phase;
pub use reconcile::Reconcile;
pub use store::Publication;

use std::sync::Arc;

use crate::{connections::Accounts, ids::PublicationId};

/// What publishing needs besides the database; a service of the worker and of the API.
#[derive(Clone)]
pub struct Publisher {
    pub accounts: Accounts,
    pub media: Arc<dyn MediaSource>,
}

/// What a publication is parked on while it waits for its user's word.
pub fn wake_key(publication: PublicationId) -> String {
    format!("publication:{publication}")
}
