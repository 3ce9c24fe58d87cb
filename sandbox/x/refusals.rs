//! Every way X says no (A1, A6), in its own words, each citing its section.

use serde_json::{Value, json};

use crate::exchange::Answer;

/// Shape (a): a problem object with `about:blank`.
pub fn problem(status: u16, title: &str, detail: &str) -> Answer {
    Answer::json(status, json!({"title": title, "detail": detail, "type": "about:blank", "status": status}))
}

/// Shape (a) with a slug that clients match on.
pub fn slugged(status: u16, slug: &str, title: &str, detail: &str) -> Answer {
    let kind = format!("https://api.x.com/2/problems/{slug}");
    Answer::json(status, json!({"title": title, "detail": detail, "type": kind, "status": status}))
}

/// Shape (b): validation, one entry per problem.
pub fn invalid(errors: Vec<(String, Value, String)>) -> Answer {
    let errors: Vec<Value> = errors
        .into_iter()
        .map(|(parameter, values, message)| {
            let parameters = if parameter.is_empty() { json!({}) } else { json!({ parameter: values }) };
            json!({"parameters": parameters, "message": message})
        })
        .collect();
    Answer::json(
        400,
        json!({
            "errors": errors,
            "title": "Invalid Request",
            "detail": "One or more parameters to your request was invalid.",
            "type": "https://api.x.com/2/problems/invalid-request",
        }),
    )
}

pub fn invalid_one(parameter: &str, value: impl Into<Value>, message: impl Into<String>) -> Answer {
    let values = match value.into() {
        Value::Array(values) => Value::Array(values),
        Value::Null => json!([]),
        Value::String(text) => json!([text]),
        other => json!([other.to_string()]),
    };
    invalid(vec![(String::from(parameter), values, message.into())])
}

/// Shape (c): the old style.
pub fn coded(status: u16, code: u32, message: &str) -> Answer {
    Answer::json(status, json!({"errors": [{"code": code, "message": message}]}))
}

pub fn oauth(status: u16, error: &str, description: &str) -> Answer {
    Answer::json(status, json!({"error": error, "error_description": description}))
}

// A1, refresh table.
pub fn token_invalid() -> Answer {
    oauth(400, "invalid_request", "Value passed for the token was invalid.")
}

// A1, refresh table.
pub fn code_invalid() -> Answer {
    oauth(400, "invalid_request", "Value passed for the authorization code was invalid.")
}

// A1, refresh table: the client secret is wrong or missing.
pub fn unauthorized_client() -> Answer {
    oauth(401, "unauthorized_client", "Missing valid authorization header")
}

// A1, refresh table.
pub fn invalid_client() -> Answer {
    oauth(401, "invalid_client", "Value passed for the client credentials was invalid.")
}

// A6: 401.
pub fn unauthorized() -> Answer {
    problem(401, "Unauthorized", "Unauthorized")
}

pub fn forbidden(detail: &str) -> Answer {
    problem(403, "Forbidden", detail)
}

// A1, A6: an app-only token where a user's is needed.
pub fn unsupported_authentication() -> Answer {
    let detail = "Authenticating with OAuth 2.0 Application-Only is forbidden for this endpoint.  Supported authentication \
                  types are [OAuth 1.0a User Context, OAuth 2.0 User Context].";
    slugged(403, "unsupported-authentication", "Unsupported Authentication", detail)
}

// A6: 403 missing scope.
pub fn missing_scope(scope: &str) -> Answer {
    forbidden(&format!("The access token is missing the required scope: {scope}."))
}

// A6: 403 user-suspended.
pub fn user_suspended() -> Answer {
    let detail = "The user is suspended and is not allowed to perform this action.";
    slugged(403, "user-suspended", "User Suspended", detail)
}

// A6: code 326, the owner must log in.
pub fn account_locked() -> Answer {
    coded(
        403,
        326,
        "To protect our users from spam and other malicious activity, this account is temporarily locked. Please log in to https://x.com to unlock your account.",
    )
}

// A6: 403 duplicate; it does not name the earlier post.
pub fn duplicate_content() -> Answer {
    forbidden("You are not allowed to create a Tweet with duplicate content.")
}

// A6: 403 for a video that is longer than the account may post.
pub fn video_too_long(minutes: u64) -> Answer {
    forbidden(&format!("This user is not allowed to post a video longer than {minutes} minutes."))
}

// A6: 403, also seen for too long texts and anti-abuse.
pub fn bare() -> Answer {
    forbidden("You are not permitted to perform this action.")
}

const TOO_LONG: &str = "Your Tweet text is too long.";

// A6: 403 in newer reports.
pub fn too_long_forbidden() -> Answer {
    forbidden(TOO_LONG)
}

// A6: 400 in older reports.
pub fn too_long_invalid() -> Answer {
    invalid_one("text", Value::Null, TOO_LONG)
}

// A2, A6: replies to people who did not ask for one.
pub fn reply_not_allowed() -> Answer {
    forbidden(
        "Reply to this conversation is not allowed because you have not been mentioned or otherwise engaged by the \
         author of the post you are replying to.",
    )
}

// A2, A6: more than one cashtag.
pub fn too_many_cashtags() -> Answer {
    forbidden("Your post may contain at most one cashtag.")
}

// A2: quotes are for Enterprise; A6 client-forbidden.
pub fn client_forbidden() -> Answer {
    let detail = "When authenticating requests to the X API v2 endpoints, you must use keys and tokens from a developer App \
                  that is attached to a Project with the appropriate access level.";
    Answer::json(
        403,
        json!({
            "client_id": "sandbox-client", "detail": detail, "registration_url": "https://developer.x.com/en/docs/projects/overview",
            "title": "Client Forbidden", "required_enrollment": "Appropriate Level of API Access",
            "reason": "client-not-enrolled", "type": "https://api.x.com/2/problems/client-forbidden", "status": 403,
        }),
    )
}

// A6: media ids unknown, expired, not ready or of another account.
pub fn media_ids_invalid(ids: &[String]) -> Answer {
    invalid_one("media.media_ids", json!(ids), "Your media IDs are invalid.")
}

// A6: parent gone, as the 400 of the local emulator.
pub fn reply_parent_invalid(id: &str) -> Answer {
    invalid_one("reply.in_reply_to_tweet_id", id, "Your reply tweet ID is invalid.")
}

// A6: 402.
pub fn credits_depleted() -> Answer {
    let detail = "Your enrolled account does not have any credits to fulfill this request.";
    Answer::json(
        402,
        json!({"title": "CreditsDepleted", "detail": detail, "type": "https://api.x.com/2/problems/credits", "status": 402}),
    )
}

pub fn not_found(resource: &str, parameter: &str, id: &str) -> Value {
    json!({
        "value": id, "detail": format!("Could not find {resource} with {parameter}: [{id}]."), "title": "Not Found Error",
        "resource_type": resource, "parameter": parameter, "resource_id": id,
        "type": "https://api.x.com/2/problems/resource-not-found",
    })
}

pub fn no_such_route(path: &str) -> Answer {
    problem(404, "Not Found", &format!("There is nothing at {path}."))
}

pub fn too_many_requests() -> Answer {
    problem(429, "Too Many Requests", "Too Many Requests")
}

pub fn with_window(answer: Answer, limit: u64, remaining: u64, reset_s: u64) -> Answer {
    answer
        .with_header("x-rate-limit-limit", limit.to_string())
        .with_header("x-rate-limit-remaining", remaining.to_string())
        .with_header("x-rate-limit-reset", reset_s.to_string())
}

/// A6: 429 with the three headers.
pub fn rate_limited(limit: u64, reset_s: u64) -> Answer {
    with_window(too_many_requests(), limit, 0, reset_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Payload;

    #[test]
    fn a_validation_error_has_the_documented_shape() {
        let Payload::Json(body) = media_ids_invalid(&[String::from("17")]).payload else { panic!("json") };
        assert_eq!(
            body,
            json!({
                "errors": [{"parameters": {"media.media_ids": ["17"]}, "message": "Your media IDs are invalid."}],
                "title": "Invalid Request",
                "detail": "One or more parameters to your request was invalid.",
                "type": "https://api.x.com/2/problems/invalid-request",
            })
        );
    }
}
