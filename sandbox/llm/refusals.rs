//! How each provider says no (1.4): its envelope, its status, its codes.

use serde_json::{Value, json};

use super::Provider;
use crate::exchange::Answer;

pub struct Refusals(pub(super) Provider);

pub fn of(provider: Provider) -> Refusals {
    Refusals(provider)
}

/// 1.4: xAI's first word for nearly everything.
const INVALID: &str = "Client specified an invalid argument";

impl Refusals {
    /// The envelope: flat strings at xAI, an object elsewhere.
    pub(super) fn say(
        &self,
        status: u16,
        kind: &str,
        code: Option<&str>,
        param: Option<&str>,
        message: &str,
    ) -> Answer {
        match self.0 {
            Provider::Xai => Answer::json(status, json!({"code": code.unwrap_or(kind), "error": message})),
            Provider::Together => {
                Answer::json(status, json!({"error": {"message": message, "type": kind, "param": param, "code": code}}))
            }
            Provider::OpenAi => {
                Answer::json(status, json!({"error": {"message": message, "type": kind, "param": param, "code": code}}))
            }
        }
    }

    // 1.4: 400, the caller's fault.
    pub fn bad_field(&self, param: &str, code: &str, message: &str) -> Answer {
        match self.0 {
            Provider::Xai => self.say(400, INVALID, None, None, message),
            Provider::Together | Provider::OpenAi => {
                self.say(400, "invalid_request_error", Some(code), Some(param), message)
            }
        }
    }

    // 1.4: xAI answers 422 to a field of the wrong form, the others 400.
    pub fn wrong_type(&self, param: &str, expected: &str) -> Answer {
        let message = format!("Invalid type for '{param}': expected {expected}.");
        match self.0 {
            Provider::Xai => {
                let message =
                    format!("Failed to deserialize the JSON body into the target type: {param}: expected {expected}");
                self.say(422, INVALID, None, None, &message)
            }
            Provider::Together | Provider::OpenAi => self.bad_field(param, "invalid_type", &message),
        }
    }

    pub fn bad_json(&self) -> Answer {
        match self.0 {
            Provider::Xai => self.say(422, INVALID, None, None, "Failed to parse the request body as JSON"),
            Provider::Together => self.say(
                400,
                "invalid_request_error",
                Some("invalid_json"),
                None,
                "Input validation error: the body is not JSON",
            ),
            Provider::OpenAi => {
                self.say(400, "invalid_request_error", None, None, "We could not parse the JSON body of your request.")
            }
        }
    }

    // 1.4: 415, no JSON content type.
    pub fn wrong_content_type(&self) -> Answer {
        let message = "Expected request with `Content-Type: application/json`";
        match self.0 {
            Provider::Xai => self.say(415, INVALID, None, None, message),
            Provider::Together | Provider::OpenAi => self.say(400, "invalid_request_error", None, None, message),
        }
    }

    // 1.4: 401, header missing or malformed.
    pub fn missing_key(&self) -> Answer {
        let message = "You didn't provide an API key. Provide it in an Authorization header using Bearer auth.";
        match self.0 {
            Provider::Xai => self.say(401, "unauthenticated:missing-credentials", None, None, message),
            Provider::Together => self.say(401, "invalid_request_error", Some("missing_api_key"), None, message),
            Provider::OpenAi => self.say(401, "invalid_request_error", None, None, message),
        }
    }

    // 1.4: a wrong key is 400 at xAI and 401 elsewhere.
    pub fn wrong_key(&self, key: &str) -> Answer {
        let redacted = redacted(key);
        let message = format!("Incorrect API key provided: {redacted}.");
        match self.0 {
            Provider::Xai => {
                let message = format!("{message} You can obtain an API key from https://console.x.ai.");
                self.say(400, INVALID, None, None, &message)
            }
            Provider::Together | Provider::OpenAi => {
                self.say(401, "invalid_request_error", Some("invalid_api_key"), None, &message)
            }
        }
    }

    // 1.4: credits spent. xAI also answers this with 429, by the fault `credits_spent_429`.
    pub fn exhausted(&self) -> Answer {
        match self.0 {
            Provider::Xai => self.credits_spent(403),
            Provider::Together => {
                let message = "Credit limit exceeded. Add credits or raise your spending limit to go on.";
                self.say(402, "credit_limit", Some("credit_limit_exceeded"), None, message)
            }
            Provider::OpenAi => {
                let message = "You exceeded your current quota, please check your plan and billing details.";
                self.say(429, "insufficient_quota", Some("insufficient_quota"), None, message)
            }
        }
    }

    pub(super) fn credits_spent(&self, status: u16) -> Answer {
        let message = "Your team has either used all available credits or reached its monthly spending limit. \
                       To continue making API requests, purchase more credits or raise your spending limit.";
        let code =
            if status == 403 { "personal-team-blocked:spending-limit" } else { "Some resource has been exhausted" };
        self.say(status, code, None, None, message)
    }

    // 1.4: 403, no permission, or a key that is blocked.
    pub fn blocked(&self) -> Answer {
        match self.0 {
            Provider::Xai => self.say(403, "permission-denied", None, None, "The team or the API key is blocked."),
            Provider::Together => {
                self.say(401, "invalid_request_error", Some("invalid_api_key"), None, "The API key is disabled.")
            }
            Provider::OpenAi => self.say(
                401,
                "invalid_request_error",
                Some("account_deactivated"),
                None,
                "The account has been deactivated.",
            ),
        }
    }

    // 1.4: 404, unknown model.
    pub fn no_such_model(&self, model: &str) -> Answer {
        match self.0 {
            Provider::Xai => {
                let message = format!("The model {model} does not exist or your team does not have access to it.");
                self.say(404, "Some requested entity was not found", None, None, &message)
            }
            Provider::Together => {
                let message = format!("Unable to access model {model}. Please visit the list of supported models.");
                self.say(404, "invalid_request_error", Some("model_not_available"), None, &message)
            }
            Provider::OpenAi => {
                let message = format!("The model `{model}` does not exist or you do not have access to it.");
                self.say(404, "invalid_request_error", Some("model_not_found"), None, &message)
            }
        }
    }

    // 1.4: 404, unknown URL.
    pub fn no_such_url(&self, path: &str) -> Answer {
        let message = format!("Invalid URL ({path})");
        self.say(404, "invalid_request_error", None, None, &message)
    }

    // 1.4: 405.
    pub fn wrong_method(&self, method: &str) -> Answer {
        let message = format!("The method {method} is not allowed for this URL.");
        self.say(405, "invalid_request_error", Some("method_not_supported"), None, &message)
    }

    // 1.4: input and max_tokens over the context: 403 at Together, 400 elsewhere.
    pub fn too_much_context(&self, context_tokens: u64, asked: u64) -> Answer {
        let message = format!(
            "This model's maximum context length is {context_tokens} tokens. However, you requested {asked} tokens."
        );
        match self.0 {
            Provider::Together => {
                self.say(403, "invalid_request_error", Some("context_length_exceeded"), None, &message)
            }
            Provider::Xai | Provider::OpenAi => self.bad_field("messages", "context_length_exceeded", &message),
        }
    }

    // 1.4: 429, to be tried again.
    pub fn rate_limited(&self, reset_in_s: u64) -> Answer {
        match self.0 {
            Provider::Xai => {
                let message = "Too many requests: the rate limit of your team was reached.";
                self.say(429, "Some resource has been exhausted", None, None, message)
                    .with_header("retry-after", reset_in_s.to_string())
            }
            Provider::Together => self
                .say(
                    429,
                    "rate_limit",
                    Some("dynamic_request_limited"),
                    None,
                    "You have reached the dynamic rate limit for this model.",
                )
                .with_header("x-ratelimit-limit", "10")
                .with_header("x-ratelimit-remaining", "0")
                .with_header("x-ratelimit-reset", reset_in_s.to_string()),
            Provider::OpenAi => self
                .say(
                    429,
                    "requests",
                    Some("rate_limit_exceeded"),
                    None,
                    "Rate limit reached on requests per min (RPM).",
                )
                .with_header("retry-after", reset_in_s.to_string())
                .with_header("x-ratelimit-limit-requests", "500")
                .with_header("x-ratelimit-remaining-requests", "0")
                .with_header("x-ratelimit-reset-requests", format!("{reset_in_s}s")),
        }
    }

    // 1.4: 500, 502, 503, 504.
    pub(super) fn transient(&self, status: u16, message: &str) -> Answer {
        let kind = if status == 503 { "service_unavailable" } else { "server_error" };
        self.say(status, kind, None, None, message)
    }

    /// 1.3: an error inside a stream that began with 200.
    pub fn in_stream(&self) -> Value {
        json!({"error": {"message": "The server had an error while processing your request.", "type": "server_error", "code": null}})
    }
}

fn redacted(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    if chars.len() < 8 {
        return String::from("***");
    }
    let (head, tail): (String, String) = (chars[..2].iter().collect(), chars[chars.len() - 2..].iter().collect());
    format!("{head}***{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Payload;

    #[test]
    fn each_answers_in_its_own_envelope() {
        let body = |provider| match of(provider).wrong_key("xai-abcdefgh").payload {
            Payload::Json(body) => body,
            other => panic!("{other:?}"),
        };
        assert_eq!(body(Provider::Xai)["code"], INVALID);
        assert!(
            body(Provider::Xai)["error"]
                .as_str()
                .is_some_and(|text| text.starts_with("Incorrect API key provided: xa***gh"))
        );
        assert_eq!(body(Provider::OpenAi)["error"]["code"], "invalid_api_key");
        assert!(body(Provider::Together)["error"]["message"].is_string());
    }

    #[test]
    fn spent_credits_look_different_everywhere() {
        assert_eq!(of(Provider::Xai).exhausted().status, 403);
        assert_eq!(of(Provider::Together).exhausted().status, 402);
        assert_eq!(of(Provider::OpenAi).exhausted().status, 429);
    }

    #[test]
    fn names_of_errors_are_unique() {
        for provider in Provider::ALL {
            let mut names: Vec<&str> = of(provider).named().iter().map(|(name, _)| *name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
