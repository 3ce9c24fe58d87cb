use std::sync::Arc;

use serde_json::json;

use super::{parse::LONGEST_WAIT_MS, *};
use crate::x::X;

fn twins() -> Vec<Arc<dyn Twin>> {
    vec![Arc::new(X::default())]
}

fn create(account: &str) -> Target<'_> {
    Target { service: "x", operation: "tweets.create", account: Some(account), body: b"{\"text\":\"hello\"}" }
}

fn added(faults: &Faults, body: Value) -> u64 {
    faults.add(parse(&body, &twins()).expect("a right fault")).id
}

#[test]
fn a_fault_spares_the_first_calls_and_then_strikes_its_times() {
    let faults = Faults::default();
    added(
        &faults,
        json!({"service": "x", "operation": "tweets.create", "after": 1, "times": 2, "effect": "accept_then_drop"}),
    );
    let struck: Vec<bool> = (0..5).map(|_| faults.strike(&create("7")).is_some()).collect();
    assert_eq!(struck, [false, true, true, false, false]);
}

#[test]
fn every_third_call_can_be_struck_without_end() {
    let faults = Faults::default();
    added(&faults, json!({"service": "x", "every": 3, "times": "always", "effect": "drop_before"}));
    let struck = (0..30).filter(|_| faults.strike(&create("7")).is_some()).count();
    assert_eq!(struck, 10);
}

#[test]
fn only_one_fault_strikes_a_call() {
    let faults = Faults::default();
    let first = added(&faults, json!({"service": "x", "effect": "accept_then_drop"}));
    let second = added(&faults, json!({"service": "x", "effect": "accept_then_drop"}));
    assert_eq!(faults.strike(&create("7")).map(|fault| fault.id), Some(first));
    assert_eq!(faults.strike(&create("7")).map(|fault| fault.id), Some(second));
    assert!(faults.strike(&create("7")).is_none());
}

#[test]
fn account_and_body_narrow_a_fault() {
    let (faults, x) = (Faults::default(), Arc::new(X::default()));
    let made = crate::x::control::create_account(&x, &json!({"username": "ada"})).expect("made");
    let ada = made["id"].as_str().expect("an id");
    let twins: Vec<Arc<dyn Twin>> = vec![x];
    for body in [
        json!({"service": "x", "account": "ada", "effect": "drop_before"}),
        json!({"service": "x", "body_contains": "goodbye", "effect": "drop_before"}),
    ] {
        faults.add(parse(&body, &twins).expect("a right fault"));
    }
    assert!(faults.strike(&create("7")).is_none());
    assert!(faults.strike(&create(ada)).is_some());
    assert!(parse(&json!({"service": "x", "account": "bob"}), &twins).is_err());
}

#[test]
fn an_operation_can_be_named_by_its_route() {
    let fault = parse(&json!({"service": "x", "operation": "POST /2/tweets", "effect": {"hang_ms": 5}}), &twins());
    let fault = fault.expect("a right fault");
    assert_eq!((fault.operation.as_str(), fault.effect), ("tweets.create", Effect::HangMs(5)));
}

#[test]
fn whatever_is_misspelt_is_refused_with_what_would_be_right() {
    let cases = [
        (json!({"service": "y", "effect": "drop_before"}), "x"),
        (json!({"service": "x", "operation": "tweet.create"}), "tweets.create (POST /2/tweets)"),
        (json!({"service": "x", "effect": "accept_then_dorp"}), "accept_then_drop"),
        (json!({"service": "x", "effect": {"refuse": {"error": "duplicate"}}}), "duplicate_content"),
        (json!({"service": "x", "effects": "drop_before"}), "effect"),
        (json!({"service": "x", "times": 0}), "always"),
    ];
    for (body, right) in cases {
        let complaint = parse(&body, &twins()).expect_err("refused");
        assert!(complaint.valid.iter().any(|valid| valid == right), "{body}: {:?}", complaint.valid);
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for body in [
        json!({"service": "x", "effect": {"hang_ms": "long"}}),
        json!({"service": "x", "effect": {"hang_ms": LONGEST_WAIT_MS + 1}}),
        json!({"service": "x", "effect": {"refuse": 99}}),
        json!({"service": "x", "effect": {"refuse": {"status": 503, "headers": {"a b": "c"}}}}),
        json!({"service": "x", "effect": {"drop_before": 3}}),
        json!({"service": "x", "effect": {"processing_failed": {"oops": 1}}}),
        json!({"service": "x", "every": 0}),
        json!([]),
    ] {
        assert!(parse(&body, &twins()).is_err(), "{body}");
    }
}
