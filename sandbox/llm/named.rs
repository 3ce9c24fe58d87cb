//! The errors of each provider by the names faults ask for: every row of 1.4.

use super::{Provider, refusals::Refusals};
use crate::exchange::Answer;

impl Refusals {
    /// The errors a fault can ask for: every row of 1.4.
    pub fn named(&self) -> Vec<(&'static str, Answer)> {
        let mut named = vec![
            ("bad_request", self.bad_field("messages", "invalid_value", "Invalid value for 'messages'.")),
            (
                "unsupported_parameter",
                self.bad_field(
                    "stop",
                    "unsupported_parameter",
                    "Unsupported parameter: 'stop' is not supported with this model.",
                ),
            ),
            ("context_length_exceeded", self.too_much_context(131_072, 200_000)),
            ("missing_key", self.missing_key()),
            ("invalid_key", self.wrong_key("sandbox-wrong-key")),
            ("blocked", self.blocked()),
            ("credits_spent", self.exhausted()),
            ("model_not_found", self.no_such_model("sandbox-unknown-model")),
            ("url_not_found", self.no_such_url("/v1/unknown")),
            ("method_not_allowed", self.wrong_method("PUT")),
            ("unsupported_media_type", self.say(415, "invalid_request_error", None, None, "Unsupported content type.")),
            ("payload_too_large", self.say(413, "invalid_request_error", None, None, "The request body is too large.")),
            ("unprocessable", self.say(422, "invalid_request_error", None, None, "A field has the wrong form.")),
            ("request_timeout", self.say(408, "server_error", None, None, "The request timed out.")),
            ("conflict", self.say(409, "server_error", None, None, "The request conflicts with another.")),
            ("rate_limited", self.rate_limited(2)),
            ("rate_limited_without_headers", self.say(429, "rate_limit", None, None, "Too many requests.")),
            ("internal_error", self.transient(500, "The server had an error while processing your request.")),
            ("bad_gateway", self.transient(502, "Bad gateway.")),
            ("overloaded", self.transient(503, "The model is overloaded. Please try again later.")),
            ("gateway_timeout", self.transient(504, "Gateway timeout.")),
            (
                "edge_html",
                Answer::html(
                    502,
                    String::from("<html><head><title>502 Bad Gateway</title></head><body></body></html>"),
                ),
            ),
        ];
        match self.0 {
            Provider::Xai => named.push(("credits_spent_429", self.credits_spent(429))),
            Provider::Together => {
                let message = "You have reached the dynamic token limit for this model.";
                named
                    .push(("token_limited", self.say(429, "rate_limit", Some("dynamic_token_limited"), None, message)));
            }
            Provider::OpenAi => {
                let message = "Country, region, or territory not supported";
                let code = Some("unsupported_country_region_territory");
                named.push(("country_not_supported", self.say(403, "request_forbidden", code, None, message)));
                let message = "The request was refused by the usage policy.";
                named.push((
                    "policy_refused",
                    self.say(403, "invalid_request_error", Some("content_policy_violation"), None, message),
                ));
            }
        }
        named
    }
}
