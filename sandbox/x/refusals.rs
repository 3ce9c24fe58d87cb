//! Every way X says no (A1, A6), in its own words, and the names by which faults ask for them.

use serde_json::{Value, json};

use crate::{clock, exchange::Answer};

/// Shape (a): a problem object with `about:blank`.
pub fn problem(status: u16, title: &str, detail: &str) -> Answer {
    Answer::json(status, json!({"title": title, "detail": detail, "type": "about:blank", "status": status}))
}

/// Shape (a) with a slug that clients match on.
fn slugged(status: u16, slug: &str, title: &str, detail: &str) -> Answer {
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
fn coded(status: u16, code: u32, message: &str) -> Answer {
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

fn too_many_requests() -> Answer {
    problem(429, "Too Many Requests", "Too Many Requests")
}

fn with_window(answer: Answer, limit: u64, remaining: u64, reset_s: u64) -> Answer {
    answer
        .with_header("x-rate-limit-limit", limit.to_string())
        .with_header("x-rate-limit-remaining", remaining.to_string())
        .with_header("x-rate-limit-reset", reset_s.to_string())
}

fn soon_s(seconds: u64) -> u64 {
    clock::now_ms() / 1000 + seconds
}

/// A6: 429 with the three headers.
pub fn rate_limited(limit: u64, reset_s: u64) -> Answer {
    with_window(too_many_requests(), limit, 0, reset_s)
}

/// The named errors a fault can ask for: every row of the tables in A1 and A6.
pub const NAMED: [(&str, fn() -> Answer); 47] = [
    // A1: the token endpoint.
    ("token_invalid", token_invalid),
    ("code_invalid", code_invalid),
    ("invalid_grant", || oauth(400, "invalid_grant", "The provided grant is invalid.")),
    ("unauthorized_client", unauthorized_client),
    ("invalid_client", invalid_client),
    ("oauth_rate_limited", || oauth(429, "rate_limited", "Too many requests.")),
    ("temporarily_unavailable", || oauth(503, "temporarily_unavailable", "The service is temporarily unavailable.")),
    // A6: 400.
    ("invalid_media_ids", || media_ids_invalid(&[])),
    ("mutually_exclusive", || {
        invalid_one(
            "",
            Value::Null,
            "Only one of poll, quote_tweet_id, direct_message_deep_link, media and card_uri may be given.",
        )
    }),
    ("poll_bounds", || {
        invalid_one("poll.duration_minutes", Value::Null, "poll.duration_minutes must be between 5 and 10080.")
    }),
    ("text_too_long_400", too_long_invalid),
    // A6: 401.
    ("unauthorized", unauthorized),
    ("unauthorized_code_32", || coded(401, 32, "Could not authenticate you.")),
    ("unauthorized_code_89", || coded(401, 89, "Invalid or expired token.")),
    // A6: 402.
    ("credits_depleted", credits_depleted),
    ("payment_required", || slugged(402, "credits-depleted", "Payment Required", "Your credits are used up.")),
    // A6: 403.
    ("duplicate_content", duplicate_content),
    ("video_too_long", || video_too_long(20)),
    ("video_duration_exceeded", || forbidden("User video duration exceeded")),
    ("reply_not_allowed", reply_not_allowed),
    ("too_many_cashtags", too_many_cashtags),
    ("invalid_url", || forbidden("The Tweet contains an invalid URL.")),
    ("mentions_not_allowed", || forbidden("Mentions are not allowed for your package.")),
    ("text_too_long_403", too_long_forbidden),
    ("forbidden_bare", bare),
    ("read_only_app", read_only_app),
    ("client_forbidden", client_forbidden),
    ("unsupported_authentication", unsupported_authentication),
    ("missing_scope", || missing_scope("tweet.write")),
    ("user_suspended", user_suspended),
    ("suspended_code_64", || coded(403, 64, "Your account is suspended and is not permitted to access this feature.")),
    ("account_locked", account_locked),
    ("reply_parent_gone_400", || reply_parent_invalid("0")),
    ("reply_parent_gone_403", || forbidden("You attempted to reply to a Tweet that is deleted or not visible to you.")),
    ("reply_parent_gone_404", || problem(404, "Not Found", "The Tweet you are replying to was not found.")),
    // A6: 404, and the 200 that means it.
    ("not_found", || Answer::json(404, not_found("tweet", "id", "0"))),
    ("not_found_200", || Answer::ok(json!({"errors": [not_found("tweet", "id", "0")]}))),
    // A6: the edge.
    ("payload_too_large", || Answer::empty(413)),
    ("header_fields_too_large", || Answer::empty(431)),
    // A6: 429 in its forms.
    ("rate_limited", || rate_limited(100, soon_s(60))),
    ("rate_limited_code_88", || with_window(coded(429, 88, "Rate limit exceeded"), 100, 0, soon_s(60))),
    ("rate_limited_without_headers", too_many_requests),
    ("daily_limit", daily_limit),
    ("usage_capped", || slugged(429, "usage-capped", "UsageCapExceeded", "Usage cap exceeded: Monthly product cap")),
    // A6: 5xx.
    ("internal_error", || {
        problem(500, "Internal Server Error", "Something is broken. This is usually a temporary error.")
    }),
    ("service_unavailable", || problem(503, "Service Unavailable", "Service Unavailable")),
    ("edge_html", || {
        Answer::html(
            503,
            String::from("<html><head><title>503 Service Temporarily Unavailable</title></head><body></body></html>"),
        )
    }),
];

// A6: CONFIG, the app may only read.
fn read_only_app() -> Answer {
    let detail = "Your client app is not configured with the appropriate oauth1 app permissions for this endpoint.";
    slugged(403, "oauth1-permissions", "Forbidden", detail)
}

// A6: legacy plans have a cap per day with headers of its own.
fn daily_limit() -> Answer {
    with_window(too_many_requests(), 100, 40, soon_s(300))
        .with_header("x-user-limit-24hour-limit", "100")
        .with_header("x-user-limit-24hour-remaining", "0")
        .with_header("x-user-limit-24hour-reset", soon_s(6 * 3600).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Payload;

    #[test]
    fn every_named_error_is_an_error_and_named_once() {
        let mut names: Vec<&str> = NAMED.iter().map(|(name, _)| *name).collect();
        for (name, answer) in NAMED {
            let status = answer().status;
            assert!((400..600).contains(&status) || name == "not_found_200", "{name}: {status}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMED.len());
    }

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
