//! The platforms' part of `/health`: which are set up, and whether their publications are held.

use async_trait::async_trait;
use sqlx::PgPool;

use crate::{
    http::health::{Finding, Probe},
    platforms::Platform,
    telemetry::chain,
};

/// One platform of this installation.
pub struct PlatformProbe {
    pub db: PgPool,
    pub platform: Platform,
    /// Why nothing can be published there; `None`: it is set up.
    pub off: Option<&'static str>,
}

#[async_trait]
impl Probe for PlatformProbe {
    fn name(&self) -> String {
        format!("platform:{}", self.platform)
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        if let Some(why) = self.off {
            return Finding::off(why);
        }
        let held = sqlx::query_scalar("select open_until is not null from platform_circuits where platform = $1")
            .bind(self.platform.as_str())
            .fetch_optional(&self.db)
            .await;
        match held {
            Ok(Some(true)) => Finding::degraded("in trouble: its publications are held, and go out in order later"),
            Ok(_) => Finding::ok().noted("its publications are not held"),
            Err(error) => {
                tracing::warn!(platform = %self.platform, cause = chain(&error), "a platform could not be looked at");
                Finding::down("whether its publications are held cannot be read")
            }
        }
    }
}
