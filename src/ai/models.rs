//! Which models the providers list, kept for a while.
//!
//! A list proves the key and the way there, never that a model will answer: that is for real traffic to say.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::sync::Mutex;

use super::{errors::Class, provider::ProviderName, transformer::Transformer};

/// How long a look counts.
const FRESH: Duration = Duration::from_secs(60);

/// Looks at the providers' lists, at most once a minute however often it is asked.
pub struct ModelLists {
    transformer: Arc<Transformer>,
    last: Mutex<Option<(Instant, Vec<Look>)>>,
}

/// One provider's list, or why there is none.
#[derive(Debug, Clone)]
pub struct Look {
    pub provider: ProviderName,
    pub model: String,
    pub listed: Result<Vec<String>, (Class, String)>,
}

impl Look {
    /// Whether the configured model is in the list; `None` when there is no list.
    pub fn has_model(&self) -> Option<bool> {
        self.listed.as_ref().ok().map(|models| models.contains(&self.model))
    }
}

impl ModelLists {
    pub fn new(transformer: Arc<Transformer>) -> Self {
        Self { transformer, last: Mutex::new(None) }
    }

    /// Everyone who looks at the same time shares one look.
    pub async fn look(&self) -> Vec<Look> {
        let mut last = self.last.lock().await;
        if let Some((at, looks)) = &*last
            && at.elapsed() < FRESH
        {
            return looks.clone();
        }
        let looks = look(&self.transformer).await;
        *last = Some((Instant::now(), looks.clone()));
        looks
    }
}

/// Asks all providers for their lists at once.
pub async fn look(transformer: &Transformer) -> Vec<Look> {
    join_all(transformer.chain().clients().iter().map(async |client| Look {
        provider: client.name(),
        model: client.model().to_owned(),
        listed: client.list_models().await.map_err(|error| (error.class, error.message)),
    }))
    .await
}
