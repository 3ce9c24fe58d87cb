//! How the language models are: real calls of late decide; where there were none, whether a provider can be reached.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use poem_openapi::{Enum, Object};
use sqlx::PgPool;

use super::{
    errors::Class,
    models::{Look, ModelLists},
    provider::ProviderName,
    store::{self, Traffic},
};
use crate::{
    http::health::{Finding, Probe},
    telemetry::chain,
};

/// How a provider is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "AiProviderState", rename_all = "snake_case")]
pub enum ProviderState {
    /// It has answered of late, more often than not.
    Healthy,
    /// Its list of models can be read; nobody has asked it anything of late.
    Reachable,
    /// It has answered less than half of what it was asked of late.
    Failing,
    /// Its list of models cannot be read.
    Unreachable,
    /// It has no key.
    Off,
}

/// One provider, as real traffic shows it.
#[derive(Debug, Object)]
#[oai(rename = "AiProviderHealth", skip_serializing_if_is_none)]
pub struct ProviderHealth {
    pub provider: String,
    pub state: ProviderState,
    /// Calls in the last 15 minutes that say something about the provider.
    pub calls: u64,
    pub answered: u64,
    pub last_answer_at: Option<DateTime<Utc>>,
    /// Class of the newest failure: transient, throttled, exhausted, credential or model_gone.
    pub last_failure: Option<String>,
    pub last_failure_at: Option<DateTime<Utc>>,
    /// Median time of an answer.
    pub latency_ms: Option<f64>,
}

impl ProviderHealth {
    /// Whether a transform can be expected to work with it.
    pub fn works(&self) -> bool {
        matches!(self.state, ProviderState::Healthy | ProviderState::Reachable)
    }
}

/// All providers, in the order in which they are asked.
pub async fn all(db: &PgPool, models: &ModelLists) -> sqlx::Result<Vec<ProviderHealth>> {
    let traffic = store::recent_traffic(db).await?;
    let looks = models.look().await;
    Ok(ProviderName::ALL.iter().map(|name| provider_health(*name, &looks, &traffic)).collect())
}

/// What calls of late and a look at its list tell about one provider.
pub fn provider_health(provider: ProviderName, looks: &[Look], traffic: &[Traffic]) -> ProviderHealth {
    let look = looks.iter().find(|look| look.provider == provider);
    let traffic = traffic.iter().find(|traffic| traffic.provider == provider.as_str());
    let (calls, answered) = traffic.map_or((0, 0), |t| (t.calls.unsigned_abs(), t.answered.unsigned_abs()));
    let state = match look.map(|look| &look.listed) {
        None => ProviderState::Off,
        Some(_) if calls > 0 && answered * 2 > calls => ProviderState::Healthy,
        Some(_) if calls > 0 => ProviderState::Failing,
        Some(Ok(_)) => ProviderState::Reachable,
        Some(Err(_)) => ProviderState::Unreachable,
    };
    // A list that cannot be read is news only where no call has failed.
    let refused = look.and_then(|look| look.listed.as_ref().err()).map(|(class, _): &(Class, _)| class.as_str());
    ProviderHealth {
        provider: provider.to_string(),
        state,
        calls,
        answered,
        last_answer_at: traffic.and_then(|t| t.last_answer_at),
        last_failure: traffic.and_then(|t| t.last_failure.clone()).or_else(|| refused.map(str::to_owned)),
        last_failure_at: traffic.and_then(|t| t.last_failure_at),
        latency_ms: traffic.and_then(|t| t.latency_ms),
    }
}

/// The domain's part of `/health`.
pub struct LanguageModels {
    pub db: PgPool,
    pub models: Arc<ModelLists>,
}

#[async_trait]
impl Probe for LanguageModels {
    fn name(&self) -> String {
        "language models".into()
    }

    fn is_vital(&self) -> bool {
        false
    }

    async fn look(&self) -> Finding {
        match all(&self.db, &self.models).await {
            Ok(providers) => finding(&providers),
            Err(error) => {
                tracing::warn!(cause = chain(&error), "the language models' use could not be read");
                Finding::down("what they have answered cannot be read")
            }
        }
    }
}

fn finding(providers: &[ProviderHealth]) -> Finding {
    let on: Vec<_> = providers.iter().filter(|provider| provider.state != ProviderState::Off).collect();
    let names = |works: bool| {
        let some = on.iter().filter(|provider| provider.works() == works).map(|provider| provider.provider.as_str());
        some.collect::<Vec<_>>().join(", ")
    };
    match (on.is_empty(), names(true), names(false)) {
        (true, ..) => Finding::off("no key: set GROK_API_KEY, TOGETHER_API_KEY or OPENAI_API_KEY"),
        (_, works, fails) if fails.is_empty() => Finding::ok().noted(works),
        (_, works, fails) if works.is_empty() => Finding::down(format!("{fails} cannot be reached, or do not answer")),
        (_, works, fails) => Finding::degraded(format!("{works} answers, {fails} does not")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_traffic_decides_and_reachability_is_only_the_next_best() {
        let look = |listed| Look { provider: ProviderName::Grok, model: "m".into(), listed };
        let traffic = |calls, answered| Traffic {
            provider: "grok".into(),
            calls,
            answered,
            last_answer_at: None,
            last_failure: None,
            last_failure_at: None,
            latency_ms: None,
        };
        let state = |listed, traffic: &[Traffic]| provider_health(ProviderName::Grok, &[look(listed)], traffic).state;
        let down = || Err((Class::Transient, "no".to_owned()));
        assert_eq!(state(Ok(vec![]), &[]), ProviderState::Reachable);
        assert_eq!(state(down(), &[]), ProviderState::Unreachable);
        assert_eq!(state(down(), &[traffic(10, 9)]), ProviderState::Healthy);
        assert_eq!(state(Ok(vec![]), &[traffic(10, 5)]), ProviderState::Failing);
        assert_eq!(provider_health(ProviderName::OpenAi, &[], &[]).state, ProviderState::Off);
    }

    #[test]
    fn one_that_answers_is_enough_and_without_keys_it_is_off() {
        use crate::http::health::ProbeState;
        let look = |provider, listed| Look { provider, model: "m".into(), listed };
        let down = || Err((Class::Transient, "no".to_owned()));
        let of = |looks: &[Look]| {
            let all: Vec<_> = ProviderName::ALL.iter().map(|name| provider_health(*name, looks, &[])).collect();
            finding(&all).state
        };
        let (grok, openai) = (ProviderName::Grok, ProviderName::OpenAi);
        assert_eq!(of(&[]), ProbeState::Off);
        assert_eq!(of(&[look(grok, Ok(vec![]))]), ProbeState::Ok);
        assert_eq!(of(&[look(grok, down()), look(openai, Ok(vec![]))]), ProbeState::Degraded);
        assert_eq!(of(&[look(grok, down())]), ProbeState::Down);
    }
}
