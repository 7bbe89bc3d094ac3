//! The study of attacks and defences, of a few seconds.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use anyhow::Result;
use medinet_model::ModelParameters;
use medinet_study::poisoning::{Attack, Defence, PoisoningStudy, heat_map, markdown};
use medinet_study::setup::{Setup, Source};
use medinet_study::{Channel, Council, Dataset, Mean, Sgd, Voting};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_quick_study_reports_every_case_and_resumes() {
    let study = PoisoningStudy { rounds: 1, ..PoisoningStudy::quick() };
    let outcomes = study.run(&repository(), 2, &[], &|_| {}).unwrap();
    assert_eq!(outcomes.len(), study.cases().len());
    let all = study.of(&outcomes);
    let table = markdown(&all);
    assert!(study.defences.iter().all(|defence| table.contains(&defence.name())), "{table}");
    assert!(
        table.contains("**PneumoniaMNIST, 3 of 10 sites attack**") && table.contains("sign flip"),
        "{table}"
    );
    let svg = heat_map(&all, Source::PneumoniaMnist).unwrap();
    assert!(svg.contains("no attack") && svg.contains("backdoor by 3"));
    // What is done is not run again: nothing is watched.
    let again = study.run(&repository(), 2, &outcomes, &|_| panic!("run again")).unwrap();
    assert_eq!(again, outcomes);
    // Another number of images is another study.
    assert!(PoisoningStudy { head: None, ..study }.of(&outcomes).is_empty());
}

#[test]
fn every_defence_of_the_study_can_be_applied_and_has_its_own_name() {
    let study = PoisoningStudy::full();
    let names: BTreeSet<String> = study.defences.iter().copied().map(Defence::name).collect();
    assert_eq!(names.len(), study.defences.len());
    let quick = PoisoningStudy {
        defences: study.defences,
        attacks: vec![Attack::LittleIsEnough],
        rounds: 1,
        head: Some(80),
        ..PoisoningStudy::quick()
    };
    assert_eq!(quick.run(&repository(), 2, &[], &|_| {}).unwrap().len(), 2 * names.len());
}

/// Four of ten sites send what no delta is encoded to: without the ceiling the mean is longer than the clip norm, with it no longer than honest
/// sites make one, and nobody who keeps to the codec is ever scaled down.
#[test]
fn sites_that_leave_the_codec_are_held_by_the_ceiling() {
    let set =
        Dataset::pneumonia_mnist(&repository().join("study/data/pneumoniamnist.npz")).unwrap().head(200, 20);
    let plan = Setup::plan(0.05);
    let network = Setup::network(set.test.shape(), 8);
    let setup = Setup { network, plan: plan.clone(), sites: 10, label_skew: None, rounds: 2, seed: 1 };
    let training = Sgd::new(plan);
    let lengths = |attack: Attack| {
        let mut federation = setup.federation(&set, &training, &Mean).unwrap();
        for site in &mut federation.sites[..4] {
            site.behaviour = Some(Arc::new(attack));
        }
        // Deltas are longer than that, so that honest sites are at the clip norm.
        let reference = federation.sites.iter().map(|site| site.images.len()).max().unwrap();
        federation.channel = "secure:8:1000".parse::<Channel>().unwrap();
        federation.channel = federation.channel.with_clip_norm(0.05).with_reference(reference as u32);
        let run = federation.run(&mut |_| {}).unwrap();
        run.rounds.iter().map(|round| (round.mean_norm, round.shortened)).collect::<Vec<_>>()
    };
    for (norm, shortened) in lengths(Attack::Corner) {
        assert!(shortened && (0.049..0.0505).contains(&norm), "{norm}, scaled down: {shortened}");
    }
    for attack in [Attack::SignFlip, Attack::LabelFlip] {
        for (norm, shortened) in lengths(attack) {
            assert!(!shortened && norm < 0.0505, "{attack:?}: {norm}");
        }
    }
    // The same through the study, with and without.
    let defences = ["mean, norm bound at the sites only", "mean, norm bound"];
    let mut study = PoisoningStudy { attacks: vec![Attack::Corner], rounds: 2, ..PoisoningStudy::quick() };
    study.defences = PoisoningStudy::full().defences;
    study.defences.retain(|defence| defences.contains(&defence.name().as_str()));
    let outcomes = study.run(&repository(), 2, &[], &|_| {}).unwrap();
    assert_eq!(outcomes.len(), 4);
    for outcome in &outcomes {
        let attacked = outcome.case.attack == Attack::Corner;
        assert!(attacked || outcome.shortened == 0, "{outcome:?}");
    }
    let attacked: Vec<_> = outcomes.iter().filter(|o| o.case.attack == Attack::Corner).collect();
    assert!(attacked.iter().any(|outcome| outcome.shortened > 0), "{attacked:?}");
    assert_ne!(attacked[0].by_round, attacked[1].by_round);
    let table = markdown(&study.of(&outcomes));
    assert!(table.contains("corner") && table.contains("scaled down"), "{table}");
}

/// Takes the initial model and no other.
struct Never;

impl Voting for Never {
    fn council<'a>(&'a self, _: &'a medinet_model::NetworkManifest) -> Box<dyn Council + 'a> {
        Box::new(Self)
    }
}

impl Council for Never {
    fn accepts(&mut self, _: &ModelParameters) -> Result<bool> {
        Ok(false)
    }
}

#[test]
fn a_rejected_model_goes_nowhere() {
    let set =
        Dataset::pneumonia_mnist(&repository().join("study/data/pneumoniamnist.npz")).unwrap().head(40, 20);
    let plan = Setup::plan(0.05);
    let network = Setup::network(set.test.shape(), 8);
    let setup = Setup { network, plan: plan.clone(), sites: 2, label_skew: None, rounds: 2, seed: 1 };
    let training = Sgd::new(plan);
    let mut federation = setup.federation(&set, &training, &Mean).unwrap();
    federation.voting = Some(&Never);
    let run = federation.run(&mut |_| {}).unwrap();
    assert_eq!(run.model, ModelParameters::initial(&setup.network, 1).unwrap());
    assert!(run.rounds.iter().all(|round| !round.accepted));
    assert_eq!(run.rounds[0].figures, run.rounds[1].figures);
}
