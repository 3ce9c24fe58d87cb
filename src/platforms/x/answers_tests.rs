//! Every row of X's error tables, as X words it, and what it means.

use reqwest::header::HeaderValue;
use serde_json::json;

use super::*;
use crate::platforms::Class;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

fn problem(status: u16, title: &str, detail: &str, slug: &str) -> (u16, String) {
    let kind = if slug.is_empty() { "about:blank".to_owned() } else { format!("https://api.x.com/2/problems/{slug}") };
    (status, json!({ "title": title, "detail": detail, "type": kind, "status": status }).to_string())
}

fn invalid(message: &str) -> (u16, String) {
    let body = json!({
        "errors": [{ "parameters": { "media.media_ids": ["1"] }, "message": message }],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": "https://api.twitter.com/2/problems/invalid-request",
    });
    (400, body.to_string())
}

fn old(status: u16, code: i64) -> (u16, String) {
    (status, json!({ "errors": [{ "code": code, "message": "Something." }] }).to_string())
}

fn forbidden(detail: &str) -> (u16, String) {
    problem(403, "Forbidden", detail, "")
}

fn class(effect: Effect, (status, body): (u16, String)) -> Class {
    meaning(effect, status, &HeaderMap::new(), body.as_bytes()).class()
}

fn create(answer: (u16, String)) -> Class {
    class(Effect::Creates, answer)
}

const BARE: Class = Class::RetryOnce { after: Duration::from_secs(900) };
const RETRY: Class = Class::Retry { after: None };

#[test]
fn a_400_is_permanent_except_for_media_that_x_has_forgotten() {
    assert_eq!(create(invalid("Your media IDs are invalid.")), Class::Restage);
    assert_eq!(create(invalid("Your Tweet text is too long.")), Class::Permanent);
    assert_eq!(create(invalid("poll and media are mutually exclusive")), Class::Permanent);
    assert_eq!(create(invalid("Your reply tweet ID is invalid.")), Class::Permanent);
}

#[test]
fn a_401_asks_for_new_tokens() {
    assert_eq!(create(problem(401, "Unauthorized", "Unauthorized", "")), Class::Refresh);
    assert_eq!(create(old(401, 89)), Class::Refresh);
    assert_eq!(create(old(401, 32)), Class::Refresh);
    assert_eq!(create(old(401, 135)), Class::Config);
}

#[test]
fn a_402_holds_the_platform_and_not_the_post() {
    assert_eq!(create(problem(402, "CreditsDepleted", "No credits.", "credits")), Class::Config);
    assert_eq!(create(problem(402, "Payment Required", "No credits.", "credits-depleted")), Class::Config);
    assert_eq!(create((402, String::new())), Class::Config);
}

#[test]
fn a_duplicate_is_told_apart_from_other_refusals() {
    let answer = forbidden("You are not allowed to create a Tweet with duplicate content.");
    assert_eq!(create(answer), Class::Duplicate { existing: None });
}

#[test]
fn what_the_content_is_refused_for_is_permanent() {
    for detail in [
        "This user is not allowed to post a video longer than 20 minutes.",
        "User video duration exceeded",
        "Reply to this conversation is not allowed because you have not been mentioned or otherwise engaged by the author.",
        "A post may have one cashtag.",
        "The URL is invalid.",
        "Mentions are not allowed for your package.",
        "Your Tweet text is too long.",
    ] {
        assert_eq!(create(forbidden(detail)), Class::Permanent, "{detail}");
    }
}

#[test]
fn a_refusal_without_a_reason_is_tried_once_more_after_a_while() {
    assert_eq!(create(forbidden("You are not permitted to perform this action.")), BARE);
    assert_eq!(create((403, "<html>Access denied</html>".into())), BARE);
    assert_eq!(create((403, String::new())), BARE);
}

#[test]
fn an_app_that_x_refuses_is_the_operators_turn() {
    let words = "Your client app is not configured with the appropriate oauth1 app permissions for this endpoint.";
    assert_eq!(create(problem(403, "Forbidden", words, "oauth1-permissions")), Class::Config);
    assert_eq!(create(problem(403, "Client Forbidden", "Enroll.", "client-forbidden")), Class::Config);
    let body = json!({ "title": "Client Forbidden", "reason": "client-not-enrolled", "detail": "x" }).to_string();
    assert_eq!(create((403, body)), Class::Config);
}

#[test]
fn a_missing_permission_or_a_blocked_account_is_its_owners_turn() {
    let app_only = "Authenticating with OAuth 2.0 Application-Only is forbidden for this endpoint.";
    assert_eq!(
        create(problem(403, "Unsupported Authentication", app_only, "unsupported-authentication")),
        Class::Reconnect
    );
    assert_eq!(create(forbidden("Missing scope tweet.write")), Class::Reconnect);
    assert_eq!(create(problem(403, "Forbidden", "The user is suspended.", "user-suspended")), Class::Reconnect);
    assert_eq!(create(old(403, 64)), Class::Reconnect);
    assert_eq!(create(old(403, 326)), Class::Reconnect);
}

#[test]
fn a_404_is_permanent_on_a_create_and_gone_elsewhere() {
    let answer = problem(404, "Not Found Error", "Could not find tweet.", "resource-not-found");
    assert_eq!(create(answer.clone()), Class::Permanent);
    let error = meaning(Effect::Repeatable, answer.0, &HeaderMap::new(), answer.1.as_bytes());
    assert!(matches!(error, ConnectorError::Gone { .. }));
}

#[test]
fn a_piece_too_large_for_the_edge_is_recognised_without_a_body() {
    for status in [413, 431] {
        let error = meaning(Effect::Appends, status, &HeaderMap::new(), b"");
        assert!(matches!(error, ConnectorError::MediaRefused { detail, .. } if detail == PIECE_TOO_LARGE));
    }
    assert_eq!(create((413, String::new())), Class::Permanent);
}

#[test]
fn a_429_waits_for_the_reset_that_comes_last() {
    let at = |seconds| Class::Snooze { until: DateTime::from_timestamp(seconds, 0) };
    let meaning = |pairs: &[(&'static str, &str)]| meaning(Effect::Creates, 429, &headers(pairs), b"{}").class();
    assert_eq!(meaning(&[("x-rate-limit-reset", "1700000900")]), at(1_700_000_900));
    let day = [
        ("x-rate-limit-reset", "1700000900"),
        ("x-user-limit-24hour-remaining", "0"),
        ("x-user-limit-24hour-reset", "1700080000"),
    ];
    assert_eq!(meaning(&day), at(1_700_080_000));
    let enough = [day[0], ("x-user-limit-24hour-remaining", "3"), day[2]];
    assert_eq!(meaning(&enough), at(1_700_000_900));
    assert_eq!(meaning(&[]), Class::Snooze { until: None });
    assert_eq!(create(old(429, 88)), Class::Snooze { until: None });
}

#[test]
fn a_monthly_cap_is_the_operators_turn() {
    assert_eq!(create(problem(429, "UsageCapExceeded", "Usage cap exceeded.", "usage-capped")), Class::Config);
}

#[test]
fn a_server_error_on_a_create_is_uncertain_and_elsewhere_a_retry() {
    for status in [500, 502, 503, 504] {
        assert_eq!(create((status, "<html>".into())), Class::Uncertain);
        assert_eq!(class(Effect::Repeatable, (status, String::new())), RETRY);
        assert_eq!(class(Effect::Appends, (status, String::new())), RETRY);
    }
    let error = meaning(Effect::Repeatable, 503, &headers(&[("retry-after", "7")]), b"");
    assert_eq!(error.class(), Class::Retry { after: Some(Duration::from_secs(7)) });
}

#[test]
fn a_dead_refresh_token_needs_its_owner_and_a_wrong_secret_the_operator() {
    let oauth = |status, error: &str, description: &str| {
        (status, json!({ "error": error, "error_description": description }).to_string())
    };
    let trade = |answer| class(Effect::Trades, answer);
    assert_eq!(trade(oauth(400, "invalid_request", "Value passed for the token was invalid.")), Class::Reconnect);
    assert_eq!(trade(oauth(400, "invalid_grant", "")), Class::Reconnect);
    assert_eq!(trade(oauth(401, "unauthorized_client", "Missing valid authorization header")), Class::Config);
    assert_eq!(trade(oauth(400, "invalid_client", "")), Class::Config);
}

#[test]
fn an_outage_of_the_token_endpoint_is_not_a_revoked_token() {
    let trade = |status, body: &str| class(Effect::Trades, (status, body.to_owned()));
    assert_eq!(trade(429, r#"{"error":"rate_limited"}"#), Class::Snooze { until: None });
    assert_eq!(trade(403, "<html>blocked</html>"), RETRY);
    for status in [500, 503] {
        assert_eq!(trade(status, r#"{"error":"temporarily_unavailable"}"#), Class::Uncertain);
    }
}

#[test]
fn every_meaning_has_words_for_its_reader_and_leaks_no_markup() {
    for status in 400..=599 {
        let error = meaning(Effect::Creates, status, &HeaderMap::new(), b"<html>secret</html>");
        let words = error.explain();
        assert!(!words.message.is_empty() && !words.code.is_empty());
        assert!(!words.message.contains("secret") && !words.message.contains('<'));
    }
}
