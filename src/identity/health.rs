//! Firebase's part of `/health`: whether there are keys to check its tokens by.

use std::sync::Arc;

use async_trait::async_trait;

use super::firebase_keys::{PublishedKeys, Standing};
use crate::http::health::{Finding, Probe};

pub struct FirebaseProbe(pub Arc<PublishedKeys>);

#[async_trait]
impl Probe for FirebaseProbe {
    fn name(&self) -> String {
        "firebase".into()
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        match self.0.standing().await {
            Standing::Fresh => Finding::ok(),
            Standing::Stale => Finding::degraded("its keys cannot be had; the last ones serve on for a day"),
            Standing::None => Finding::down("its keys cannot be had: nobody can sign in with it"),
        }
    }
}
