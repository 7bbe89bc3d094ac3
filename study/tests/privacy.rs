//! The study of epsilon against AUROC, small: every mechanism runs, costs what it should, and is not run twice.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_study::privacy::{self, Case, Kind, Mechanism, Outcome, PrivacyStudy};
use std::path::Path;
use std::sync::Mutex;

fn run(study: &PrivacyStudy, done: &[Outcome]) -> (Vec<Outcome>, usize) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let watched = Mutex::new(0);
    let outcomes = study.run(repository, 1, done, &|_| *watched.lock().unwrap() += 1).unwrap();
    let ran = *watched.lock().unwrap();
    (outcomes, ran)
}

#[test]
fn every_mechanism_runs_once_and_costs_what_it_should() {
    let study = PrivacyStudy { head: Some(60), ..PrivacyStudy::quick() };
    let (outcomes, ran) = run(&study, &[]);
    assert_eq!((outcomes.len(), ran), (3, 3));
    let of = |kind: Kind| outcomes.iter().find(|outcome| outcome.case.mechanism.kind() == kind).unwrap();
    assert_eq!((of(Kind::None).epsilon, of(Kind::None).noise_multiplier), (None, None));
    let epsilon = of(Kind::Training).epsilon.unwrap();
    assert!(epsilon <= 8.0 && epsilon > 7.5, "{epsilon}");
    // Two sums at a multiplier of 0.1: far beyond what is any promise, and said all the same.
    let epsilon = of(Kind::Sum).epsilon.unwrap();
    assert!(epsilon > 50.0 && epsilon < 1000.0, "{epsilon}");
    // Noise of three sites, of which one tenth, none, may collude, in steps of one: it is longer than the delta that it is on.
    let noisy = of(Kind::Sum);
    assert!(noisy.mean_norms[0] > 5.0 * noisy.delta_norms[0], "{noisy:?}");
    assert_eq!(of(Kind::None).untrained, noisy.untrained);

    let (again, ran) = run(&study, &outcomes);
    assert_eq!((again, ran), (outcomes.clone(), 0));
    let table = privacy::markdown(&outcomes);
    for expected in ["no noise", "private training", "noise inside the sum", "the untrained model"] {
        assert!(table.contains(expected), "{expected}: {table}");
    }
    assert!(privacy::curve(&outcomes).unwrap().starts_with("<svg"));
}

#[test]
fn other_epsilons_take_the_place_of_the_studys() {
    let mut study = PrivacyStudy::full();
    study.train_at(&[3.0]);
    let training = |case: &&Case| case.mechanism.kind() == Kind::Training;
    let trained: Vec<Case> = study.cases.iter().filter(training).copied().collect();
    let expected = [3, 10].map(|sites| Case { sites, mechanism: Mechanism::Training { epsilon: 3.0 } });
    assert_eq!(trained, expected);
    assert!(study.cases.iter().any(|case| case.mechanism.kind() == Kind::Sum));
}
