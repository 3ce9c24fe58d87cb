//! The errors of X by the names faults ask for: every row of the tables in A1 and A6.

use serde_json::{Value, json};

use super::refusals::*;
use crate::{clock, exchange::Answer};

/// A name, and what X answers.
type Named = (&'static str, fn() -> Answer);

/// The named errors a fault can ask for: every row of the tables in A1 and A6.
pub const NAMED: [Named; 47] = [
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

fn soon_s(seconds: u64) -> u64 {
    clock::now_ms() / 1000 + seconds
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
