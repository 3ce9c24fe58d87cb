//! The rules of certainty (P2), without a server.

use super::*;

const TIMING: Timing = Timing {
    request: Duration::from_secs(20),
    visibility: Duration::from_secs(60),
    stall: Duration::ZERO,
    looks: &[Duration::from_secs(5), Duration::from_secs(60)],
};

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn intent(looks: i16) -> Intent {
    Intent {
        attempt: 1,
        fingerprint: "f".into(),
        baseline: "b1".into(),
        native_handle: None,
        intended_at: at(0),
        certain_after: at(85),
        looks,
        outcome: Outcome::Open,
        code: None,
    }
}

#[test]
fn p2_nothing_seen_before_the_instant_of_certainty_proves_nothing() {
    for looks in 0..5 {
        assert!(matches!(judge(&intent(looks), Sighting::Absent, at(84), &TIMING), Finding::NotYet(_)));
    }
}

#[test]
fn p2_one_look_proves_nothing_however_late() {
    let Finding::NotYet(again) = judge(&intent(0), Sighting::Absent, at(500), &TIMING) else { panic!("believed") };
    assert!(again > at(500));
}

#[test]
fn p2_two_looks_the_last_after_the_instant_prove_absence() {
    assert_eq!(judge(&intent(1), Sighting::Absent, at(85), &TIMING), Finding::CertainlyAbsent);
}

#[test]
fn p2_a_list_that_is_unclear_is_never_absence() {
    let unclear = Sighting::Unclear { why: "cut" };
    assert_eq!(judge(&intent(9), unclear, at(9999), &TIMING), Finding::Unknown);
}

#[test]
fn absence_is_not_believed_against_the_platforms_word_that_it_exists() {
    let doubted = Intent { code: Some(send::DUPLICATE.into()), ..intent(5) };
    assert_eq!(judge(&doubted, Sighting::Absent, at(9999), &TIMING), Finding::Unknown);
}

#[test]
fn looks_follow_the_schedule_and_the_last_waits_for_certainty() {
    let dues: Vec<_> = (0..4).map(|looks| due(&intent(0), looks, &TIMING)).collect();
    assert_eq!(dues, [at(5), at(60), at(85), at(85)]);
}

#[test]
fn a_look_begins_before_the_first_attempt_that_was_ever_in_doubt() {
    let refused = Intent { outcome: Outcome::Refused, ..intent(0) };
    let absent = Intent { attempt: 2, baseline: "b2".into(), outcome: Outcome::Absent, ..intent(2) };
    let open = Intent { attempt: 3, baseline: "b3".into(), ..intent(0) };
    assert_eq!(baseline(&[refused, absent, open.clone()], &open), "b2");
    assert_eq!(baseline(std::slice::from_ref(&open), &open), "b3");
}
