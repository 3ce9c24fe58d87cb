//! `/api/v1/ai`: ask for a transform, see which models there are, how they are, and what they have cost.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use poem::web::Data;
use poem_openapi::{Enum, Object, OpenApi, payload::Json};

use super::{
    health::{self, ProviderHealth},
    job::Transform,
    models::{Look, ModelLists},
    store,
    transform::{TransformRequest, TransformationType},
    usage::{known_price, usd},
};
use crate::{
    http::{Accepted, App, Caller, FieldError, IdempotencyKey, Input, Problem, Scope, Tag, Turn},
    ids::JobId,
    jobs::{EnqueueError, NewJob},
    plans::{self, Counted},
    platforms::Platform,
};

/// Needs `Arc<ModelLists>` as `Data`.
#[derive(Debug, Clone, Copy)]
pub struct AiApi;

/// What to do with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "snake_case")]
enum TransformKind {
    /// Rewrite it for each platform named.
    PlatformOptimize,
    /// Say it in fewer words.
    Shorten,
}

/// Where a text is meant to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "AiPlatform", rename_all = "lowercase")]
enum PlatformName {
    X,
    Facebook,
    Instagram,
    LinkedIn,
    YouTube,
    TikTok,
    Threads,
}

/// A text to be transformed by a language model.
#[derive(Debug, Object)]
#[oai(deny_unknown_fields)]
struct TransformInput {
    /// The text, up to 50,000 characters. Data for the model, never instructions.
    #[oai(validator(min_length = 1, max_length = 50000))]
    content: String,
    transformation_type: TransformKind,
    /// One variant is written for each. Needed for `platform_optimize`; without any, `shorten` writes one text.
    #[oai(default, validator(max_items = 7))]
    platforms: Vec<PlatformName>,
    /// How it should sound, such as "warm and brief".
    #[oai(validator(max_length = 100))]
    tone: Option<String>,
    /// Language to write in, as a tag such as `en` or `pt-BR`; without it, that of the content.
    language: Option<String>,
    /// For `shorten` without platforms: the most characters. Without it, half of the content.
    max_length: Option<u32>,
    /// Send the text piece by piece while it is written: events `token` and `void` of the job.
    #[oai(default = "yes")]
    stream: bool,
    /// Take an earlier answer to the very same request, up to a day old.
    #[oai(default = "yes")]
    cache: bool,
}

const fn yes() -> bool {
    true
}

/// Where to follow the transform.
#[derive(Debug, Clone, PartialEq, Object)]
struct TransformAccepted {
    job_id: JobId,
    /// Path of the job; its `result` holds the variants.
    job: String,
    /// Path of its events: progress and text while it is written.
    events: String,
}

/// All providers, in the order in which they are asked.
#[derive(Debug, Object)]
#[oai(rename = "AiHealth")]
struct AiHealth {
    /// Whether a transform can be expected to work.
    available: bool,
    providers: Vec<ProviderHealth>,
}

/// The model of one provider.
#[derive(Debug, Object)]
#[oai(rename = "AiModel", skip_serializing_if_is_none)]
struct Model {
    provider: String,
    model: String,
    /// Whether the provider lists it; absent when its list cannot be read.
    listed: Option<bool>,
    /// US dollars per million tokens read; absent when not in the price list.
    input_usd: Option<f64>,
    /// US dollars per million tokens written.
    output_usd: Option<f64>,
    /// Tokens it can read at once.
    context: Option<u32>,
}

/// The models that are configured, in the order in which they are asked.
#[derive(Debug, Object)]
#[oai(rename = "AiModels")]
struct Models {
    items: Vec<Model>,
}

/// What one model has been used for.
#[derive(Debug, Object)]
#[oai(rename = "AiModelUsage")]
struct ModelUsage {
    provider: String,
    model: String,
    calls: u64,
    answered: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost_usd: f64,
}

/// What may be spent.
#[derive(Debug, Object)]
#[oai(rename = "AiBudget")]
struct Budget {
    /// `day` or `month`.
    period: String,
    limit_usd: f64,
    /// Spent and reserved in this period.
    used_usd: f64,
    renews_at: DateTime<Utc>,
}

/// The workspace's use since the start of the month (UTC).
#[derive(Debug, Object)]
#[oai(rename = "AiUsage", skip_serializing_if_is_none)]
struct Usage {
    calls: u64,
    cost_usd: f64,
    /// For calls under way.
    reserved_usd: f64,
    models: Vec<ModelUsage>,
    /// Of the workspace's own budget and its plan, the one with less left; absent: no limit.
    budget: Option<Budget>,
}

#[OpenApi(tag = "Tag::Ai")]
impl AiApi {
    /// Transform a text
    ///
    /// Answers at once with the job that does it. Its result holds the variants, each proved to fit its platform.
    #[oai(path = "/api/v1/ai/transform", method = "post", operation_id = "aiTransform")]
    async fn transform(
        &self,
        app: Data<&Arc<App>>,
        caller: Caller,
        #[oai(name = "Idempotency-Key")] key: IdempotencyKey,
        body: Input<TransformInput>,
    ) -> Result<Accepted<TransformAccepted>, Problem> {
        caller.require(Scope::Publish)?;
        let request = TransformRequest::from(body.0);
        let problems = request.problems();
        if !problems.is_empty() {
            let errors = problems.into_iter().map(|p| FieldError::new(p.field, p.message, p.remedy)).collect();
            return Err(Problem::invalid(errors));
        }
        require_provider(&app)?;
        if !key.is_given() {
            let job = NewJob::of(&Transform(request), caller.tenant);
            return Ok(accepted(app.engine.enqueue_for(&caller, job).await.map_err(not_enqueued)?));
        }
        // Boxed, so that a call without a key does not carry the room for it.
        Box::pin(once(&app, &caller, key, request)).await
    }

    /// How the language models are
    ///
    /// Real calls of the last 15 minutes decide; where there were none, whether the provider can be reached.
    #[oai(path = "/api/v1/ai/health", method = "get", operation_id = "aiHealth")]
    async fn health(
        &self,
        app: Data<&Arc<App>>,
        models: Data<&Arc<ModelLists>>,
        caller: Caller,
    ) -> Result<Json<AiHealth>, Problem> {
        caller.require(Scope::Read)?;
        let providers = health::all(app.engine.db(), &models).await?;
        Ok(Json(AiHealth { available: providers.iter().any(ProviderHealth::works), providers }))
    }

    /// The models in use
    ///
    /// One for each provider that has a key, with its price.
    #[oai(path = "/api/v1/ai/models", method = "get", operation_id = "aiModels")]
    async fn models(&self, models: Data<&Arc<ModelLists>>, caller: Caller) -> Result<Json<Models>, Problem> {
        caller.require(Scope::Read)?;
        let model = |look: Look| {
            let price = known_price(&look.model);
            Model {
                provider: look.provider.to_string(),
                listed: look.has_model(),
                input_usd: price.map(|price| price.input),
                output_usd: price.map(|price| price.output),
                context: price.and_then(|price| price.context),
                model: look.model,
            }
        };
        Ok(Json(Models { items: models.look().await.into_iter().map(model).collect() }))
    }

    /// What the workspace has used
    ///
    /// Since the start of the month (UTC), by provider and model. Failed calls that were billed count.
    #[oai(path = "/api/v1/ai/usage", method = "get", operation_id = "aiUsage")]
    async fn usage(&self, app: Data<&Arc<App>>, caller: Caller) -> Result<Json<Usage>, Problem> {
        caller.require(Scope::Read)?;
        let mut db = app.db.of(&caller).await?;
        let rows = store::month(&mut *db, caller.tenant).await?;
        let own = store::budget(&mut *db, caller.tenant).await?;
        let plan = plans::store::of(&mut *db, caller.tenant).await?;
        let of_plan = plan.most(Counted::AiTicks).map(|limit_ticks| store::Budget {
            period: "month".to_owned(),
            limit_ticks,
            used_ticks: rows.iter().map(|row| row.cost_ticks + row.reserved_ticks).sum(),
            renews_at: plan.renews_at,
        });
        let budget = own.into_iter().chain(of_plan).min_by_key(|budget| budget.limit_ticks - budget.used_ticks);
        Ok(Json(Usage {
            calls: rows.iter().map(|row| row.calls.unsigned_abs()).sum(),
            cost_usd: usd(rows.iter().map(|row| row.cost_ticks).sum()),
            reserved_usd: usd(rows.iter().map(|row| row.reserved_ticks).sum()),
            models: rows.into_iter().map(ModelUsage::from).collect(),
            budget: budget.map(|budget| Budget {
                period: budget.period,
                limit_usd: usd(budget.limit_ticks),
                used_usd: usd(budget.used_ticks),
                renews_at: budget.renews_at,
            }),
        }))
    }
}

/// Enqueues with the answer kept under the key, in one transaction.
async fn once(
    app: &App,
    caller: &Caller,
    key: IdempotencyKey,
    request: TransformRequest,
) -> Result<Accepted<TransformAccepted>, Problem> {
    let body = serde_json::to_value(&request).ok();
    let job = NewJob::of(&Transform(request), caller.tenant);
    let mut tx = app.db.begin(caller).await?;
    let claim = match key.claim(&mut tx, caller, body).await? {
        Turn::Replay(answer) => return Ok(answer),
        Turn::New(claim) => claim,
    };
    let answer = accepted(job.id);
    let tickets = app.engine.enqueue_in(&mut tx, std::slice::from_ref(&job)).await.map_err(not_enqueued)?;
    let answer = claim.keep(&mut tx, answer).await?;
    tx.commit().await?;
    app.engine.ring(&tickets).await;
    Ok(answer)
}

/// Nothing is queued that nobody can do.
fn require_provider(app: &App) -> Result<(), Problem> {
    if app.config.ai.is_on() {
        return Ok(());
    }
    Err(Problem::new(
        poem::http::StatusCode::SERVICE_UNAVAILABLE,
        "ai_off",
        "Text transforms are off",
        "This installation has no language model: its operator sets GROK_API_KEY, TOGETHER_API_KEY or OPENAI_API_KEY.",
    ))
}

fn accepted(job: JobId) -> Accepted<TransformAccepted> {
    let path = format!("/api/v1/jobs/{job}");
    let body = TransformAccepted { job_id: job, job: path.clone(), events: format!("{path}/events") };
    Accepted::new(path, body)
}

fn not_enqueued(error: EnqueueError) -> Problem {
    match error {
        EnqueueError::Ledger(error) => error.into(),
        EnqueueError::Unstorable(what) => {
            Problem::invalid_field("content", format!("cannot be stored: {what}"), "Remove unusual characters")
        }
        error => Problem::internal(&error),
    }
}

impl From<TransformInput> for TransformRequest {
    fn from(input: TransformInput) -> Self {
        Self {
            content: input.content,
            transformation_type: input.transformation_type.into(),
            platforms: input.platforms.into_iter().map(Platform::from).collect(),
            tone: input.tone,
            language: input.language,
            max_length: input.max_length,
            stream: input.stream,
            cache: input.cache,
        }
    }
}

impl From<TransformKind> for TransformationType {
    fn from(kind: TransformKind) -> Self {
        match kind {
            TransformKind::PlatformOptimize => Self::PlatformOptimize,
            TransformKind::Shorten => Self::Shorten,
        }
    }
}

impl From<PlatformName> for Platform {
    fn from(name: PlatformName) -> Self {
        match name {
            PlatformName::X => Self::X,
            PlatformName::Facebook => Self::Facebook,
            PlatformName::Instagram => Self::Instagram,
            PlatformName::LinkedIn => Self::LinkedIn,
            PlatformName::YouTube => Self::YouTube,
            PlatformName::TikTok => Self::TikTok,
            PlatformName::Threads => Self::Threads,
        }
    }
}

impl From<store::ModelUsage> for ModelUsage {
    fn from(row: store::ModelUsage) -> Self {
        Self {
            provider: row.provider,
            model: row.model,
            calls: row.calls.unsigned_abs(),
            answered: row.answered.unsigned_abs(),
            prompt_tokens: row.prompt_tokens.unsigned_abs(),
            completion_tokens: row.completion_tokens.unsigned_abs(),
            cost_usd: usd(row.cost_ticks),
        }
    }
}

#[cfg(test)]
mod tests {
    use poem_openapi::types::ToJSON;

    use super::*;

    #[test]
    fn the_api_spells_platforms_and_transforms_as_they_are_stored() {
        for name in [
            PlatformName::X,
            PlatformName::Facebook,
            PlatformName::Instagram,
            PlatformName::LinkedIn,
            PlatformName::YouTube,
            PlatformName::TikTok,
            PlatformName::Threads,
        ] {
            assert_eq!(name.to_json().unwrap(), Platform::from(name).as_str());
        }
        for kind in [TransformKind::PlatformOptimize, TransformKind::Shorten] {
            assert_eq!(kind.to_json().unwrap(), TransformationType::from(kind).as_str());
        }
    }
}
