//! Text transforms through a chain of language models.
//!
//! In reading order: [`transform`] is what can be asked and what comes back, [`prompt`] puts it into words,
//! [`transformer`] carries it out, [`check`] decides whether an answer may be passed on, [`job`] runs it in the
//! background, [`api`] is how it is reached. Below: [`chain`] asks the providers in their order, [`breaker`] leaves
//! out who is down, [`chat_completions`] speaks to one, and [`grok`], [`together`], [`openai`] are what each of them
//! says differently.
//!
//! A user's text is data, never instructions; a text that does not fit its platform is never passed on; money is
//! reserved before it is spent.

/// The words of the HTTP API.
pub mod api;
/// Reservations, settlements, budgets.
pub mod billing;
/// Circuit breakers.
pub mod breaker;
/// Earlier answers.
pub mod cache;
/// Grok, then Together, then OpenAI.
pub mod chain;
/// The wire.
pub mod chat_completions;
/// Whether an answer may be passed on.
pub mod check;
#[cfg(test)]
mod classification;
/// What a refusal means.
pub mod errors;
/// xAI.
pub mod grok;
/// How the providers are.
pub mod health;
/// The background job.
pub mod job;
/// Which models the providers list.
pub mod models;
/// A call between reservation and settlement.
mod open_call;
/// OpenAI.
pub mod openai;
/// An answer while it is being written.
pub mod partial;
/// Prompt files and how a request becomes messages.
pub mod prompt;
/// The neutral request and answer.
pub mod provider;
/// What was used, read back.
pub mod store;
/// Server-sent events.
pub mod stream;
/// Together AI.
pub mod together;
/// Requests, transforms, variants.
pub mod transform;
/// The work itself.
pub mod transformer;
/// One call as a result tells it.
pub mod tries;
/// Writes off, forgets, and looks for models that are gone.
pub mod upkeep;
/// Tokens and money.
pub mod usage;

pub use job::Transform;
pub use transform::{TransformOutput, TransformRequest, TransformationType, Variant};
pub use transformer::Transformer;
pub use upkeep::AiUpkeep;
