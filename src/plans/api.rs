//! `/api/v1/plan`: what a workspace may do, and how much of it it does.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::{http::StatusCode, web::Data};
use poem_openapi::{Object, OpenApi, payload::Json};

use super::{Counted, Each, PlanError, Refused, store};
use crate::{
    ai::usage::usd,
    http::{App, Caller, FieldError, Problem, Scope, Tag},
};

#[derive(Debug, Clone, Copy)]
pub struct PlansApi;

/// A limit over the whole workspace.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
#[oai(skip_serializing_if_is_none)]
struct PlanUse {
    /// Absent: no limit.
    most: Option<i64>,
    used: i64,
}

/// What may be spent on language models in a month.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(skip_serializing_if_is_none)]
struct PlanSpending {
    /// Absent: no limit by the plan.
    most_usd: Option<f64>,
    /// Spent and reserved.
    used_usd: f64,
}

/// What the workspace may do, and how much of it it does. Months are calendar months in UTC.
#[derive(Debug, Clone, PartialEq, Object)]
#[oai(rename = "Plan", skip_serializing_if_is_none)]
struct PlanView {
    name: String,
    /// By whose word: `default`, `operator` or `patreon`.
    source: String,
    /// When it ends by itself; then the default plan holds again.
    until: Option<DateTime<Utc>>,
    connections: PlanUse,
    /// A post counts once for each account that it is put on its way to, unless it is cancelled.
    posts_per_month: PlanUse,
    /// Of all uploads; what is made of them is not counted.
    media_bytes: PlanUse,
    /// Bytes that one upload may have; absent: as many as the installation takes.
    upload_bytes: Option<i64>,
    /// Seconds that one video may be long; absent: as long as its bytes allow.
    upload_seconds: Option<i64>,
    ai_per_month: PlanSpending,
    /// When the next month begins.
    renews_at: DateTime<Utc>,
}

#[OpenApi(prefix_path = "/api/v1", tag = "Tag::Identity")]
impl PlansApi {
    /// Get the plan
    ///
    /// Of the workspace that the call is in. What would go beyond it is refused with the code `plan_limit`; what is
    /// there stays and goes on working.
    #[oai(path = "/plan", method = "get", operation_id = "getPlan")]
    async fn get(&self, app: Data<&Arc<App>>, caller: Caller) -> Result<Json<PlanView>, Problem> {
        caller.require(Scope::Read)?;
        let mut db = app.db.of(&caller).await?;
        let plan = store::of(&mut *db, caller.tenant).await?;
        let mut used = Vec::with_capacity(Counted::ALL.len());
        for limit in Counted::ALL {
            used.push((*limit, store::used(&mut *db, caller.tenant, *limit).await?));
        }
        let used = |limit| used.iter().find(|(counted, _)| *counted == limit).map_or(0, |(_, used)| *used);
        let in_use = |limit| PlanUse { most: plan.most(limit), used: used(limit) };
        Ok(Json(PlanView {
            connections: in_use(Counted::Connections),
            posts_per_month: in_use(Counted::Posts),
            media_bytes: in_use(Counted::MediaBytes),
            upload_bytes: plan.each(Each::UploadBytes),
            upload_seconds: plan.each(Each::UploadSeconds),
            ai_per_month: PlanSpending {
                most_usd: plan.most(Counted::AiTicks).map(usd),
                used_usd: usd(used(Counted::AiTicks)),
            },
            renews_at: plan.renews_at,
            source: plan.source.to_string(),
            until: plan.until,
            name: plan.name,
        }))
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        let sentence = text
            .chars()
            .next()
            .map_or(String::new(), |first| first.to_uppercase().chain(text.chars().skip(1)).collect());
        let remedy = "Ask whoever runs this installation for a larger plan, or free some of it (GET /api/v1/plan)";
        let error = FieldError::new(refused.limit(), text, remedy);
        Self::new(StatusCode::FORBIDDEN, "plan_limit", "Beyond the plan", format!("{sentence}. {remedy}."))
            .with_errors(vec![error])
    }
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Refused(refused) => (*refused).into(),
            PlanError::Database(error) => error.into(),
        }
    }
}
