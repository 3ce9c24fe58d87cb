//! The job behind `POST /api/v1/ai/transform`.
//!
//! Its answer is stored before the job completes: a run that is repeated, after a crash or a hand-back, finds it and
//! asks nobody a second time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    billing::PgBilling,
    cache,
    chain::ChainError,
    errors::{CallError, Class},
    partial::Piece,
    transform::{TransformOutput, TransformRequest},
    transformer::{Cause, Order, TransformError, Transformer, Watcher, pieces},
    usage::Usage,
};
use crate::jobs::{Job, JobContext, Queue, Stop, Why};

/// One transform. The value is the request itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Transform(pub TransformRequest);

/// Left of the time limit for storing the answer.
const TO_STORE: Duration = Duration::from_secs(10);
/// How soon to look whether an operator has mended an account.
const OPERATOR_LOOKS_AFTER: Duration = Duration::from_secs(5 * 60);

impl Job for Transform {
    const KIND: &'static str = "transform";
    const QUEUE: Queue = Queue::Ai;
    const MAX_ATTEMPTS: u16 = 5;
    const TIMEOUT: Duration = Duration::from_secs(180);

    type Output = TransformOutput;

    async fn run(&self, cx: &JobContext) -> Result<TransformOutput, Stop> {
        let request = &self.0;
        let mut watcher = Follower(cx);
        // A run that died has shown what nobody will finish, and could not withdraw it (A1).
        if cx.run > 1 {
            watcher.void("run_again");
        }
        if let Some(done) = cx.checkpoint().and_then(|state| serde_json::from_value(state.clone()).ok()) {
            show(&mut watcher, &done);
            return Ok(done);
        }
        if let Some(problem) = request.problems().first() {
            let message = format!("{}: {}. {}", problem.field, problem.message, problem.remedy);
            return Err(Stop::failed("ai_invalid_request", message));
        }
        let key = cache::key(request);
        if request.cache
            && let Some(answer) = earlier(cx, &key).await?
        {
            show(&mut watcher, &answer);
            return Ok(answer);
        }
        let billing = PgBilling {
            db: cx.db().clone(),
            tenant: cx.tenant,
            job: Some(cx.job),
            expires_after: Self::TIMEOUT + Duration::from_secs(60),
        };
        let order = Order {
            tenant: cx.tenant,
            billing: Arc::new(billing),
            deadline: Instant::now() + Self::TIMEOUT - TO_STORE,
            watcher: &mut watcher,
        };
        let transformer = cx.service::<Transformer>();
        let output = match transformer.run(request, order).await {
            Ok(output) => output,
            Err(error) => {
                note_tries(cx, &error).await;
                return Err(stop(error.cause));
            }
        };
        let kept = json!(output);
        cx.save_checkpoint(kept.clone()).await?;
        cache::store(cx.db(), cx.tenant, &key, &kept).await?;
        Ok(output)
    }
}

/// For whoever follows: an answer that was not written in this run.
fn show(watcher: &mut dyn Watcher, answer: &TransformOutput) {
    pieces(&answer.variants).iter().for_each(|piece| watcher.token(piece));
}

/// The answer to the very same request, as one that cost nothing.
async fn earlier(cx: &JobContext, key: &[u8]) -> sqlx::Result<Option<TransformOutput>> {
    let Some(kept) = cache::fetch(cx.db(), cx.tenant, key).await? else { return Ok(None) };
    // One that an older release wrote in another form is no answer.
    let Ok(answer) = serde_json::from_value::<TransformOutput>(kept) else { return Ok(None) };
    Ok(Some(TransformOutput {
        cached: true,
        usage: Usage::default(),
        cost_usd: 0.0,
        first_token_ms: None,
        latency_ms: 0,
        tries: Vec::new(),
        ..answer
    }))
}

/// Who was asked in vain stands in the timeline; in a success it stands in the result.
async fn note_tries(cx: &JobContext, error: &TransformError) {
    if error.tries.is_empty() {
        return;
    }
    if let Err(error) = cx.note("ai_tries", json!(error.tries)).await {
        tracing::warn!(job = %cx.job, cause = crate::telemetry::chain(&error), "a line of the timeline was lost");
    }
}

/// What a failure means for the job, in words for the person who waits for it.
fn stop(cause: Cause) -> Stop {
    match cause {
        Cause::Unusable(faults) => {
            let faults = faults.0.join("; ");
            Stop::failed("ai_answer_unusable", format!("no model wrote a text that fits. Last faults: {faults}"))
        }
        Cause::Chain(ChainError::NoProvider) => Stop::failed("ai_off", ChainError::NoProvider.to_string()),
        Cause::Chain(ChainError::Budget(spent)) => Stop::failed("ai_budget_spent", spent.to_string()),
        Cause::Chain(ChainError::Deadline) => Stop::retry("ai_too_slow", "no language model answered in time"),
        Cause::Chain(ChainError::Database(error)) => error.into(),
        Cause::Chain(ChainError::Refused(error)) => refused(&error),
        Cause::Chain(ChainError::AllFailed { last, again_after, operator }) => unanswered(&last, again_after, operator),
    }
}

fn refused(error: &CallError) -> Stop {
    let CallError { provider, message, .. } = error;
    match error.class {
        Class::Policy => {
            Stop::failed("ai_declined", format!("{provider} declined to write about this ({message}). Change the text"))
        }
        Class::TooLong => {
            Stop::failed("ai_too_long", "the text is longer than any of the language models can read. Shorten it")
        }
        _ => Stop::failed("ai_request_refused", format!("{provider} refused the request: {message}")),
    }
}

fn unanswered(last: &CallError, again_after: Option<Duration>, operator: bool) -> Stop {
    let CallError { provider, message, .. } = last;
    if !operator {
        let why = Why::new("ai_unavailable", format!("no language model answered; the last was {provider}: {message}"));
        return Stop::Retry { after: again_after, why };
    }
    let (code, what) = match last.class {
        Class::Credential => ("ai_key_refused", "refused the key of this installation"),
        Class::ModelGone => ("ai_model_gone", "no longer has the configured model"),
        _ => ("ai_credit_spent", "has no credit left for this installation"),
    };
    let message = format!("{provider} {what} ({message}), and no other provider could answer. An operator has to act");
    Stop::Retry { after: Some(OPERATOR_LOOKS_AFTER), why: Why::new(code, message) }
}

struct Follower<'a>(&'a JobContext);

impl Watcher for Follower<'_> {
    fn phase(&mut self, fraction: f64, phase: &str) {
        self.0.progress(fraction, phase);
    }

    fn token(&mut self, piece: &Piece) {
        self.0.emit("token", piece);
    }

    fn void(&mut self, why: &str) {
        self.0.emit("void", json!({ "why": why }));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{check::Faults, provider::ProviderName},
        *,
    };

    fn call_error(class: Class) -> CallError {
        CallError { retry_after: Some(Duration::from_secs(7)), ..CallError::new(ProviderName::Grok, class, "words") }
    }

    fn code(stop: &Stop) -> &str {
        match stop {
            Stop::Retry { why, .. } | Stop::Snooze { why, .. } | Stop::Failed { why } => &why.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_would_be_refused_again_is_final() {
        for (class, expected) in
            [(Class::Caller, "ai_request_refused"), (Class::Policy, "ai_declined"), (Class::TooLong, "ai_too_long")]
        {
            let stop = stop(Cause::Chain(ChainError::Refused(call_error(class))));
            assert!(matches!(stop, Stop::Failed { .. }), "{stop:?}");
            assert_eq!(code(&stop), expected);
        }
        assert_eq!(code(&stop(Cause::Unusable(Faults(vec!["x".into()])))), "ai_answer_unusable");
        assert_eq!(code(&stop(Cause::Chain(ChainError::NoProvider))), "ai_off");
    }

    #[test]
    fn an_outage_is_tried_again_when_the_provider_said() {
        let last = call_error(Class::Throttled);
        let stop = stop(Cause::Chain(ChainError::AllFailed { again_after: last.retry_after, last, operator: false }));
        assert!(matches!(&stop, Stop::Retry { after: Some(after), .. } if after.as_secs() == 7), "{stop:?}");
        assert_eq!(code(&stop), "ai_unavailable");
    }

    #[test]
    fn what_an_operator_has_to_mend_says_so_and_waits() {
        for (class, expected) in [
            (Class::Credential, "ai_key_refused"),
            (Class::Exhausted, "ai_credit_spent"),
            (Class::ModelGone, "ai_model_gone"),
        ] {
            let last = call_error(class);
            let stop = stop(Cause::Chain(ChainError::AllFailed { last, again_after: None, operator: true }));
            assert_eq!(code(&stop), expected);
            assert!(matches!(stop, Stop::Retry { after: Some(OPERATOR_LOOKS_AFTER), .. }));
        }
    }

    #[test]
    fn the_arguments_of_the_job_are_the_request() {
        let args = json!({ "content": "a", "transformation_type": "shorten" });
        let Transform(request) = serde_json::from_value(args).unwrap();
        assert!(request.stream && request.cache && request.platforms.is_empty());
    }
}
