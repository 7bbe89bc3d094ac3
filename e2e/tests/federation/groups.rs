//! Groups with a robust rule, and signed votes, between real processes.

use crate::fixture::{SECURE, SITES, folder, plan, records, released, run, trained, watching};
use medinet_lab::{Federation, Updates};
use medinet_ledger::RecordBody;
use medinet_ledger::vote::{Ballot, Objection};
use std::fs;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 2;
/// Three groups of two, so that the median withstands one.
const HOSPITALS: usize = 6;

#[test]
fn six_hospitals_in_three_groups_make_one_model_and_carry_it_by_their_votes() {
    let folder = folder("groups");
    // Twice the three studies: what they learn does not matter here.
    let sites = (1..=HOSPITALS).map(|number| watching(&folder, number, (number - 1) % SITES + 1)).collect();
    let updates = Updates::Groups { bits: 4, sites: 2 };
    let mut federation = Federation::prepare(plan(&folder, sites, ROUNDS, updates)).unwrap();
    run(&mut federation, |_, _| Ok(())).unwrap();
    let model = released(&federation).unwrap();
    let summed: Vec<usize> = trained(&federation).iter().map(|round| round.sites.len()).collect();
    assert_eq!(summed, [HOSPITALS; ROUNDS as usize]);
    let mut votes = Vec::new();
    for record in records(&federation) {
        if let RecordBody::VotesCounted { model: on, votes: cast, quorum, .. } = record {
            assert!(on == model && quorum.is_some());
            votes = cast;
        }
    }
    assert_eq!(votes.len(), HOSPITALS);
    assert!(votes.iter().any(|vote| vote.ballot == Ballot::Accept), "{votes:?}");
}

#[test]
fn a_model_that_the_sites_vote_down_is_bundled_for_nobody_and_kept_nowhere() {
    let folder = folder("voted-down");
    let sites = (1..=SITES).map(|number| watching(&folder, number, number)).collect();
    let mut federation = Federation::prepare(plan(&folder, sites, ROUNDS, SECURE)).unwrap();
    for site in 0..SITES {
        // Every hospital that can decide has accepted better than any model can be: of a handful of images one of two rounds may order all rightly.
        let path = federation.site_settings(site);
        let settings = fs::read_to_string(&path).unwrap();
        assert!(settings.contains("max_accuracy_drop = 1.0"), "{settings}");
        fs::write(path, settings.replace("max_accuracy_drop = 1.0", "max_accuracy_drop = 0.0")).unwrap();
        let best = federation.site_release(site).with_extension("accepted.json");
        fs::create_dir_all(best.parent().unwrap()).unwrap();
        fs::write(best, r#"{"auroc": 1.0, "accuracy": 1.5}"#).unwrap();
    }
    for member in federation.members() {
        federation.start(member).unwrap();
    }
    let mut finished_at = None;
    let ended = federation.follow(Duration::from_secs(600), |federation, status| {
        federation.check_alive()?;
        let Some(aggregator) = &status.aggregator else { return Ok(false) };
        if aggregator.finished {
            finished_at.get_or_insert_with(Instant::now);
        }
        // Time enough for a bundle to come that may not.
        Ok(finished_at.is_some_and(|since: Instant| since.elapsed() > Duration::from_secs(3)))
    });
    ended.unwrap();
    federation.stop().unwrap();
    let (mut ballots, mut verdicts) = (Vec::new(), Vec::new());
    for record in records(&federation) {
        match record {
            RecordBody::VotesCounted { votes, .. } => ballots.extend(votes.iter().map(|vote| vote.ballot)),
            RecordBody::ModelEvaluated { accepted, .. } => verdicts.push(accepted),
            RecordBody::ModelReleased { .. } => panic!("released what was voted down"),
            _ => {}
        }
    }
    assert_eq!(verdicts, [false], "{ballots:?}");
    assert!(ballots.contains(&Ballot::Reject(Objection::AccuracyDrop)), "{ballots:?}");
    assert!(ballots.iter().all(|ballot| *ballot != Ballot::Accept), "{ballots:?}");
    for site in 0..SITES {
        assert!(!federation.site_release(site).exists(), "hospital {} keeps it", site + 1);
    }
    let models = federation.aggregator_data().join("models");
    let graphs = fs::read_dir(&models).map_or(0, Iterator::count);
    assert_eq!(graphs, 0, "a graph of it lies in {}", models.display());
}
