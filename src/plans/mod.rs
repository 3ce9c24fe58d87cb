//! How much a workspace may do. Limits stand in the table `plans`, which plan a workspace has in `workspace_plans`;
//! the default plan of a new installation limits nothing.
//!
//! The one place that enforces them: whoever writes what counts asks [`allow`] in the transaction of the write, after
//! it. What is there stays and goes on working when a plan shrinks or ends; only nothing is added.

pub mod api;
pub mod store;

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

pub use store::{Plan, Source};

use crate::{ai::usage::usd, ids::TenantId, jobs::job::stored_names};

stored_names! {
    /// What is counted over a whole workspace.
    Counted {
        Connections = "connections",
        /// One for each account that a post is put on its way to, unless it is cancelled.
        Posts = "posts_per_month",
        /// Of the uploads that were not deleted; what is made of them is not counted.
        MediaBytes = "media_bytes",
        /// Spent and reserved for language models.
        AiTicks = "ai_ticks_per_month",
    }
}

impl Counted {
    pub const fn is_monthly(self) -> bool {
        matches!(self, Self::Posts | Self::AiTicks)
    }
}

stored_names! {
    /// What bounds each upload by itself.
    Each {
        UploadBytes = "upload_bytes",
        UploadSeconds = "upload_seconds",
    }
}

/// A write that goes beyond the plan. The text is for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    pub plan: String,
    pub most: i64,
    pub what: Beyond,
    /// When monthly limits begin anew.
    pub renews_at: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    Counted {
        limit: Counted,
        /// With this write.
        would_be: i64,
    },
    Each(Each),
}

impl Refused {
    /// As the columns of the plan and the fields of the API call it.
    pub const fn limit(&self) -> &'static str {
        match self.what {
            Beyond::Counted { limit, .. } => limit.as_str(),
            Beyond::Each(limit) => limit.as_str(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, most, what, renews_at } = self;
        write!(f, "the plan \"{plan}\" of this workspace allows ")?;
        match what {
            Beyond::Counted { limit, would_be } => {
                match limit {
                    Counted::Connections => write!(f, "{most} connections, and this would make {would_be}"),
                    Counted::Posts => write!(f, "{most} posts a month, and this would make {would_be}"),
                    Counted::MediaBytes => write!(f, "{most} bytes of uploads, and this would make {would_be}"),
                    Counted::AiTicks => {
                        let (most, would_be) = (usd(*most), usd(*would_be));
                        write!(f, "${most:.2} a month for language models, and this might make ${would_be:.2}")
                    }
                }?;
                if limit.is_monthly() {
                    write!(f, "; it starts anew on {}", renews_at.format("%Y-%m-%d"))
                } else {
                    Ok(())
                }
            }
            Beyond::Each(Each::UploadBytes) => write!(f, "uploads of up to {most} bytes, and this one has more"),
            Beyond::Each(Each::UploadSeconds) => {
                write!(f, "videos of up to {most} seconds, and this one is longer or does not say how long it is")
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Refused(Box<Refused>),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

impl From<Refused> for PlanError {
    fn from(refused: Refused) -> Self {
        Self::Refused(Box::new(refused))
    }
}

impl Plan {
    fn refuses(&self, most: i64, what: Beyond) -> Refused {
        Refused { plan: self.name.clone(), most, what, renews_at: self.renews_at }
    }
}

/// Whether the workspace is still within its plan, with what `tx` has written so far. In the transaction of the write
/// and after it, as late as possible: the writers of one limited workspace take turns from here to the commit, so
/// that no two can have the last place. A workspace without that limit waits for nobody.
pub async fn allow(tx: &mut PgConnection, tenant: TenantId, limit: Counted) -> Result<(), PlanError> {
    let plan = store::of(&mut *tx, tenant).await?;
    let Some(most) = plan.most(limit) else { return Ok(()) };
    store::take_turns(&mut *tx, tenant, limit).await?;
    let would_be = store::used(&mut *tx, tenant, limit).await?;
    if would_be <= most {
        return Ok(());
    }
    Err(plan.refuses(most, Beyond::Counted { limit, would_be }).into())
}

/// The bound of each upload, as the refusal of whatever is beyond it.
pub async fn bound(tx: &mut PgConnection, tenant: TenantId, limit: Each) -> sqlx::Result<Option<Refused>> {
    let plan = store::of(tx, tenant).await?;
    Ok(plan.each(limit).map(|most| plan.refuses(most, Beyond::Each(limit))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_plan_its_limit_and_what_this_would_make_it() {
        let renews_at = "2026-12-01T00:00:00Z".parse().unwrap();
        let says = |what, most| Refused { plan: "free".into(), most, what, renews_at }.to_string();
        let counted = |limit, would_be| Beyond::Counted { limit, would_be };
        assert_eq!(
            says(counted(Counted::Connections, 4), 3),
            "the plan \"free\" of this workspace allows 3 connections, and this would make 4"
        );
        assert_eq!(
            says(counted(Counted::AiTicks, 52_000_000_000), 50_000_000_000),
            "the plan \"free\" of this workspace allows $5.00 a month for language models, and this might make $5.20; \
             it starts anew on 2026-12-01"
        );
        assert!(says(Beyond::Each(Each::UploadSeconds), 60).contains("up to 60 seconds"));
    }
}
