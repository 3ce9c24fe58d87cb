//! The table of refusals, row by row: what each provider says and what it means.

use super::{
    errors::{Class, CoolDown, Refusal},
    grok::Grok,
    openai::OpenAi,
    provider::Dialect,
    together::Together,
};

fn class(dialect: &dyn Dialect, status: u16, body: &str) -> Class {
    dialect.classify(&Refusal::read(status, &Default::default(), body.as_bytes()))
}

#[test]
fn xai_is_understood() {
    let spent = "Your team has either used all available credits or reached its monthly spending limit.";
    for (status, body, expected) in [
        (400, r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa***z"}"#.to_owned(), Class::Credential),
        (400, r#"{"code":"Client specified an invalid argument","error":"Model does not support parameter stop"}"#.to_owned(), Class::Caller),
        (400, r#"{"code":"invalid-argument","error":"This model's maximum prompt length is 131072 but the request contains 200000 tokens."}"#.to_owned(), Class::TooLong),
        (401, r#"{"code":"unauthenticated","error":"No credentials"}"#.to_owned(), Class::Credential),
        (403, format!(r#"{{"code":"permission-denied","error":"{spent}"}}"#), Class::Exhausted),
        (403, r#"{"code":"personal-team-blocked:spending-limit","error":"blocked"}"#.to_owned(), Class::Exhausted),
        (403, r#"{"code":"permission-denied","error":"Your team is blocked"}"#.to_owned(), Class::Credential),
        (403, r#"{"code":"permission-denied","error":"Content violates usage guidelines."}"#.to_owned(), Class::Policy),
        (404, r#"{"code":"not-found","error":"The model grok-2 does not exist"}"#.to_owned(), Class::ModelGone),
        (415, r#"{"code":"x","error":"Expected JSON"}"#.to_owned(), Class::Caller),
        (422, r#"{"code":"x","error":"Failed to deserialize"}"#.to_owned(), Class::Caller),
        (429, format!(r#"{{"code":"resource-exhausted","error":"{spent}"}}"#), Class::Exhausted),
        (429, r#"{"code":"rate-limit","error":"Too many requests"}"#.to_owned(), Class::Throttled),
        (503, String::new(), Class::Transient),
    ] {
        assert_eq!(class(&Grok, status, &body), expected, "{status} {body}");
    }
}

#[test]
fn together_is_understood() {
    for (status, body, expected) in [
        (400, r#"{"error":{"message":"bad JSON"}}"#, Class::Caller),
        (401, r#"{"error":{"message":"Invalid API key"}}"#, Class::Credential),
        (402, r#"{"error":{"message":"payment required"}}"#, Class::Exhausted),
        (403, r#"{"error":{"message":"inputs tokens + max_new_tokens must be <= 131073"}}"#, Class::TooLong),
        (404, r#"{"error":{"message":"Unable to access model"}}"#, Class::ModelGone),
        (422, r#"{"error":{"message":"unprocessable"}}"#, Class::Caller),
        (429, r#"{"error":{"message":"slow down","error_type":"dynamic_request_limited"}}"#, Class::Throttled),
        (500, "", Class::Transient),
        (503, r#"{"error":{"message":"The model is overloaded"}}"#, Class::Throttled),
    ] {
        assert_eq!(class(&Together, status, body), expected, "{status} {body}");
    }
}

#[test]
fn openai_is_understood() {
    let quota = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    for (status, body, expected) in [
        (
            400,
            r#"{"error":{"message":"m","type":"invalid_request_error","param":"max_tokens","code":"unsupported_parameter"}}"#,
            Class::Caller,
        ),
        (
            400,
            r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            Class::TooLong,
        ),
        (400, r#"{"error":{"message":"m","type":"invalid_request_error","code":"content_filter"}}"#, Class::Policy),
        (401, r#"{"error":{"message":"m","code":"invalid_api_key"}}"#, Class::Credential),
        (403, r#"{"error":{"message":"Country, region, or territory not supported"}}"#, Class::Credential),
        (404, r#"{"error":{"message":"m","code":"model_not_found"}}"#, Class::ModelGone),
        (408, "", Class::Transient),
        (409, "", Class::Transient),
        (413, "", Class::Caller),
        (429, quota, Class::Exhausted),
        (429, r#"{"error":{"message":"m","code":"rate_limit_exceeded"}}"#, Class::Throttled),
        (500, "<html>oops</html>", Class::Transient),
        (502, "", Class::Transient),
        (503, r#"{"error":{"message":"overloaded"}}"#, Class::Transient),
        (504, "", Class::Transient),
        (302, "", Class::Transient),
    ] {
        assert_eq!(class(&OpenAi, status, body), expected, "{status} {body}");
    }
}

/// Same provider again, next provider, leaves the provider alone for a while.
#[test]
fn each_class_has_its_consequences() {
    for (class, same, next, leaves_alone) in [
        (Class::Transient, true, true, true),
        (Class::Throttled, true, true, true),
        (Class::Exhausted, false, true, true),
        (Class::Credential, false, true, true),
        (Class::ModelGone, false, true, true),
        (Class::TooLong, false, true, false),
        (Class::Caller, false, false, false),
        (Class::Policy, false, false, false),
        (Class::Cancelled, false, false, false),
    ] {
        let found = (class.retries_same(), class.asks_next(), class.cool_down() != CoolDown::None);
        assert_eq!(found, (same, next, leaves_alone), "{class:?}");
    }
}
