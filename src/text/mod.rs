//! How long a text is to each platform, and what else about a text a platform refuses.
//!
//! Shared by whatever writes texts (AI transforms) and whatever checks them (posts), so that the two can never
//! disagree. Pure: no server, no clock. It must never count less than a platform does: a text that passes here and
//! is refused there fails a publication at its due time.

mod emoji;
pub mod limits;
pub mod links;
pub mod weighted;

pub use limits::{Field, Measure, Problem, Rule, Unit, X_PREMIUM, measure, measure_field, rule};
pub use weighted::weighted_length;
