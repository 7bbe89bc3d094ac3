//! The budget: it composes, refuses, survives crashes, and cannot be talked down.

#![allow(clippy::unwrap_used, reason = "tests")]

use medinet_privacy::*;
use medinet_types::{RoundNumber, UnixMillis};
use proptest::prelude::*;

fn limit(epsilon: f64) -> PrivacyLimit {
    PrivacyLimit { epsilon: Epsilon::new(epsilon).unwrap(), delta: Delta::new(1e-5).unwrap() }
}

fn event(sigma: f64, steps: u64) -> Event {
    Event::Gaussian {
        sampling_rate: SamplingRate::new(0.02).unwrap(),
        noise_multiplier: NoiseMultiplier::new(sigma).unwrap(),
        steps,
    }
}

fn budget(epsilon: f64, accounting: Accounting) -> PrivacyBudget {
    let (site, task) = ("north".parse().unwrap(), "pneumonia".parse().unwrap());
    PrivacyBudget::open(site, task, limit(epsilon), accounting, UnixMillis(1))
}

const AT: UnixMillis = UnixMillis(7);

#[test]
fn rounds_compose_instead_of_adding_up() {
    let mut budget = budget(3.0, Accounting::Tight);
    let first = budget.price(&event(1.0, 100)).after;
    let mut rounds = 0;
    while let Ok(reservation) = budget.reserve(RoundNumber(rounds + 1), &event(1.0, 100), AT) {
        budget.settle(reservation, 100, AT).unwrap();
        rounds += 1;
        assert!(rounds < 1000);
    }
    // The sum of epsilons would have ended it much earlier.
    assert!(f64::from(rounds) > 1.5 * 3.0 / first, "{rounds} rounds of {first}");
    assert!(budget.spent() <= 3.0 && budget.spent() > 2.5, "{}", budget.spent());
    let error = budget.reserve(RoundNumber(99), &event(1.0, 100), AT).unwrap_err();
    let BudgetError::Exhausted { before, after, runs_left, asked, .. } = &error else { panic!("{error:?}") };
    assert!(*before <= 3.0 && *after > 3.0 && *runs_left < 100 && *asked == 100);
    let text = error.to_string();
    assert!(text.contains("epsilon 3 at delta 0.00001") && text.contains("of its 100 runs fit"), "{text}");
    // What is said to be left can be had.
    let left = budget.runs_left(&event(1.0, 1));
    assert!(left >= *runs_left);
    assert!(left == 0 || budget.price(&event(1.0, left)).fits());
    assert!(!budget.price(&event(1.0, left + 1)).fits());
}

#[test]
fn a_crash_after_reserving_never_gives_budget_back() {
    let mut budget = budget(5.0, Accounting::Tight);
    let reservation = budget.reserve(RoundNumber(1), &event(1.0, 500), AT).unwrap();
    let kept = budget.encode();
    // The process dies here; the reservation dies with it.
    drop(reservation);
    let restored = PrivacyBudget::restore(&kept, None).unwrap();
    assert_eq!(restored.spent(), budget.spent());
    assert!(restored.spent() > 0.5);
    assert_eq!(restored.records(), budget.records());
}

#[test]
fn what_did_not_run_is_not_charged_when_that_is_known() {
    let mut budget = budget(5.0, Accounting::Tight);
    let reservation = budget.reserve(RoundNumber(1), &event(1.0, 500), AT).unwrap();
    let reserved = budget.spent();
    budget.settle(reservation, 100, AT).unwrap();
    let mut only = Composition::new();
    only.add(&event(1.0, 100));
    assert_eq!(budget.spent(), only.epsilon(limit(5.0).delta, Accounting::Tight));
    assert!(budget.spent() < reserved);
    assert_eq!(PrivacyBudget::restore(&budget.encode(), None).unwrap(), budget);
}

#[test]
fn a_reservation_is_good_for_its_own_budget_alone() {
    let (mut one, mut other) = (budget(5.0, Accounting::Renyi), budget(6.0, Accounting::Renyi));
    let foreign = other.reserve(RoundNumber(1), &event(1.0, 10), AT).unwrap();
    let own = one.reserve(RoundNumber(1), &event(1.0, 10), AT).unwrap();
    assert_eq!(one.settle(foreign, 0, AT), Err(BudgetError::NotReserved(1)));
    assert!(one.spent() > 0.0);
    one.settle(own, 10, AT).unwrap();
}

#[test]
fn limits_change_by_the_sites_decision_and_on_record() {
    let mut budget = budget(1.0, Accounting::Renyi);
    assert!(budget.reserve(RoundNumber(1), &event(0.8, 2000), AT).is_err());
    budget.set_limit(limit(20.0), AT).unwrap();
    drop(budget.reserve(RoundNumber(1), &event(0.8, 2000), AT).unwrap());
    let other = PrivacyLimit { delta: Delta::new(1e-3).unwrap(), ..limit(20.0) };
    assert!(matches!(budget.set_limit(other, AT), Err(BudgetError::OtherDelta { .. })));
    let restored = PrivacyBudget::restore(&budget.encode(), None).unwrap();
    assert_eq!(restored.limit(), limit(20.0));
    assert_eq!(restored.report().unwrap().limit, limit(20.0));
}

#[test]
fn damage_and_old_copies_are_found() {
    let mut budget = budget(8.0, Accounting::Renyi);
    let old = budget.encode();
    for round in 1..4 {
        let reservation = budget.reserve(RoundNumber(round), &event(1.0, 50), AT).unwrap();
        budget.settle(reservation, 50, AT).unwrap();
    }
    let (bytes, checkpoint) = (budget.encode(), budget.checkpoint());
    assert_eq!(PrivacyBudget::restore(&bytes, Some(&checkpoint)).unwrap(), budget);
    assert_eq!(
        PrivacyBudget::restore(&old, Some(&checkpoint)),
        Err(RestoreError::RolledBack { entries: 7, got: 1 })
    );
    // A log that goes on from the checkpoint is fine.
    let mut longer = budget.clone();
    drop(longer.reserve(RoundNumber(9), &event(1.0, 1), AT).unwrap());
    assert!(PrivacyBudget::restore(&longer.encode(), Some(&checkpoint)).is_ok());
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bit;
            let restored = PrivacyBudget::restore(&damaged, None);
            // The first byte may become that of an earlier version, whose entries mean the same.
            let earlier = at == 0 && restored.as_ref() == Ok(&budget);
            assert!(restored.is_err() || earlier, "bit {bit} of byte {at}");
        }
        assert!(PrivacyBudget::restore(&bytes[..at], None).is_err(), "{at} bytes");
    }
    assert_eq!(PrivacyBudget::restore(&[9, 0], None), Err(RestoreError::Version(9)));
}

#[test]
fn training_without_noise_is_on_record_for_ever() {
    let mut budget = budget(8.0, Accounting::Renyi);
    drop(budget.reserve(RoundNumber(1), &event(1.0, 50), AT).unwrap());
    let (spent, bounded) = (budget.spent(), budget.report().unwrap());
    assert!(!budget.is_unbounded() && !bounded.unbounded);
    assert_eq!(bounded.rounds, 1);
    // One that was written before these were there.
    let limit = serde_json::to_string(&bounded.limit).unwrap();
    let short = format!(r#"{{"spent": {}, "limit": {limit}}}"#, bounded.spent);
    assert_eq!(
        serde_json::from_str::<PrivacyReport>(&short).unwrap(),
        PrivacyReport { rounds: 0, ..bounded }
    );
    for round in [2, 3] {
        budget.note_unprotected(RoundNumber(round), AT);
    }
    assert_eq!(budget.records().len(), 3);
    let mut restored = PrivacyBudget::restore(&budget.encode(), None).unwrap();
    assert_eq!(restored, budget);
    // Later private rounds are charged all the same, and do not hide it.
    drop(restored.reserve(RoundNumber(4), &event(1.0, 50), AT).unwrap());
    let report = restored.report().unwrap();
    assert!(restored.is_unbounded() && report.unbounded && report.spent.get() > spent);
    assert_eq!(report.rounds, 2);
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<PrivacyReport>(&json).unwrap(), report);
}

#[test]
fn logs_of_earlier_versions_are_read() {
    let mut budget = budget(8.0, Accounting::Renyi);
    drop(budget.reserve(RoundNumber(1), &event(1.0, 50), AT).unwrap());
    let mut bytes = budget.encode();
    assert_eq!(bytes[0], 3);
    for earlier in [1, 2] {
        bytes[0] = earlier;
        assert_eq!(PrivacyBudget::restore(&bytes, None).unwrap(), budget);
    }
    bytes[0] = 4;
    assert_eq!(PrivacyBudget::restore(&bytes, None), Err(RestoreError::Version(4)));
}

#[test]
fn the_number_of_patients_is_fixed_once_and_for_all() {
    let mut budget = budget(8.0, Accounting::Renyi);
    assert_eq!(budget.public_patients(), None);
    assert_eq!(budget.fix_public_patients(90, AT), 90);
    drop(budget.reserve(RoundNumber(1), &event(1.0, 50), AT).unwrap());
    let mut restored = PrivacyBudget::restore(&budget.encode(), None).unwrap();
    assert_eq!(restored, budget);
    assert_eq!(restored.fix_public_patients(100, AT), 90);
    assert_eq!((restored.public_patients(), restored.records().len()), (Some(90), 3));
    assert_eq!(restored.report().unwrap().rounds, 1);
}

#[test]
fn the_newest_mechanism_is_what_was_charged_last() {
    let mut budget = budget(8.0, Accounting::Renyi);
    assert_eq!(budget.newest_mechanism(), None);
    for sigma in [1.0, 1.2] {
        let reservation = budget.reserve(RoundNumber(1), &event(sigma, 50), AT).unwrap();
        budget.settle(reservation, 20, AT).unwrap();
    }
    budget.note_unprotected(RoundNumber(3), AT);
    assert_eq!(budget.newest_mechanism(), Some(event(1.2, 1)));
}

#[test]
fn the_log_reads_as_json() {
    let mut budget = budget(8.0, Accounting::Tight);
    let reservation = budget.reserve(RoundNumber(1), &event(1.0, 50), AT).unwrap();
    budget.settle(reservation, 50, AT).unwrap();
    let json = serde_json::to_string(budget.records()).unwrap();
    assert_eq!(serde_json::from_str::<Vec<BudgetRecord>>(&json).unwrap(), budget.records());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any sequence of reservations, settlements and crashes: within the limit, never cheaper than what ran,
    /// replayable.
    #[test]
    fn whatever_happens_the_limit_holds(
        epsilon in 0.5f64..6.0,
        moves in prop::collection::vec((0.6f64..4.0, 1u64..400, 0u8..4, 0.0f64..1.0), 1..25),
    ) {
        let mut budget = budget(epsilon, Accounting::Renyi);
        let mut ran = Composition::new();
        let mut before = 0.0;
        for (number, (sigma, steps, fate, share)) in (1u32..).zip(moves) {
            let event = event(sigma, steps);
            let price = budget.price(&event);
            match budget.reserve(RoundNumber(number), &event, AT) {
                Err(_) => prop_assert!(!price.fits() && budget.spent() == before),
                Ok(reservation) => {
                    prop_assert!(price.fits());
                    prop_assert_eq!(budget.spent(), price.after);
                    prop_assert!(budget.spent() >= before, "reserving never lowers");
                    let steps_run = (steps as f64 * share) as u64;
                    if fate == 0 {
                        // A crash: some steps ran, nobody knows how many.
                        ran.add(&event.with_count(steps_run));
                        drop(reservation);
                        budget = PrivacyBudget::restore(&budget.encode(), Some(&budget.checkpoint())).unwrap();
                    } else {
                        let steps_run = if fate == 1 { steps_run } else { steps };
                        ran.add(&event.with_count(steps_run));
                        budget.settle(reservation, steps_run, AT).unwrap();
                    }
                }
            }
            prop_assert!(budget.spent() >= before * (1.0 - 1e-12), "spending never falls");
            prop_assert!(budget.spent() <= epsilon);
            prop_assert!(budget.spent() >= ran.epsilon(limit(epsilon).delta, Accounting::Renyi) * (1.0 - 1e-9));
            before = budget.spent();
        }
        let restored = PrivacyBudget::restore(&budget.encode(), None).unwrap();
        prop_assert!((restored.spent() - budget.spent()).abs() <= 1e-9 * budget.spent());
    }

    #[test]
    fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        let _ = PrivacyBudget::restore(&bytes, None);
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        prop_assert!(PrivacyBudget::restore(&bytes, None).is_err());
    }
}
