//! Which connectors this program has: one line per platform.

use std::{collections::BTreeMap, sync::Arc};

use reqwest::Client;

use super::{Connector, Platform, x::X};
use crate::config::Config;

/// Cheap to clone; a service of the worker and of the API.
#[derive(Clone, Default)]
pub struct Connectors {
    by_platform: BTreeMap<Platform, Arc<dyn Connector>>,
}

impl Connectors {
    pub fn new(config: &Config, client: &Client) -> Self {
        Self::of([Arc::new(X::new(&config.x, client.clone())) as Arc<dyn Connector>])
    }

    /// Exactly these: for tests with connectors of their own.
    pub fn of(connectors: impl IntoIterator<Item = Arc<dyn Connector>>) -> Self {
        Self { by_platform: connectors.into_iter().map(|connector| (connector.platform(), connector)).collect() }
    }

    pub fn get(&self, platform: Platform) -> Option<Arc<dyn Connector>> {
        self.by_platform.get(&platform).cloned()
    }

    /// The platforms posts can go to, for messages that list them.
    pub fn platforms(&self) -> impl Iterator<Item = Platform> + '_ {
        self.by_platform.keys().copied()
    }
}
