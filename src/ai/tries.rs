//! One call as the job's result tells it.

use serde::{Deserialize, Serialize};

use super::{
    billing::{Reservation, Settlement},
    errors::CallError,
    provider::{Answer, ProviderName},
    usage::Usage,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Try {
    pub provider: ProviderName,
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_answered: Option<String>,
    /// `answered`, or the class of the failure.
    pub class: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The provider's words, when it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub usage: Usage,
    pub cost_ticks: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<u64>,
    pub latency_ms: u64,
}

impl Try {
    pub fn of(reservation: &Reservation, outcome: &Result<Answer, CallError>, settlement: &Settlement) -> Self {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            provider: reservation.provider,
            model: reservation.model.clone(),
            model_answered: settlement.model_answered.clone(),
            class: settlement.class.to_owned(),
            status: settlement.status,
            message: outcome.as_ref().err().map(|error| error.message.clone()),
            request_id: settlement.request_id.clone(),
            usage: settlement.usage,
            cost_ticks: settlement.cost_ticks,
            first_token_ms: settlement.first_token.map(ms),
            latency_ms: ms(settlement.latency),
        }
    }
}
