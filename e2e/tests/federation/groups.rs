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
        // Every hospital that can decide asks for what no model of two rounds can do.
        let path = federation.site_settings(site);
        let settings = fs::read_to_string(&path).unwrap();
        assert!(settings.contains("min_auroc = 0.0"), "{settings}");
        fs::write(path, settings.replace("min_auroc = 0.0", "min_auroc = 1.0")).unwrap();
    }
    // Of a handful of images a hospital may order all rightly; one that does not is enough.
    let path = federation.aggregator_data().with_file_name("aggregator.toml");
    let settings = fs::read_to_string(&path).unwrap();
    assert!(settings.contains("min_accept_permille = 500"), "{settings}");
    fs::write(path, settings.replace("min_accept_permille = 500", "min_accept_permille = 1000")).unwrap();
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
    let against = |ballot: &&Ballot| **ballot == Ballot::Reject(Objection::LowAuroc);
    assert!(ballots.iter().any(|ballot| against(&ballot)), "{ballots:?}");
    for site in 0..SITES {
        assert!(!federation.site_release(site).exists(), "hospital {} keeps it", site + 1);
    }
    let models = federation.aggregator_data().join("models");
    let graphs = fs::read_dir(&models).map_or(0, Iterator::count);
    assert_eq!(graphs, 0, "a graph of it lies in {}", models.display());
}
