//! Groups with a robust rule, and signed votes, between real processes.

use crate::fixture::{SITES, folder, released, run, studies};
use anyhow::ensure;
use medinet_lab::{BrokerKind, Federation, FederationPlan, SitePlan, Source, TaskKind, Updates};
use medinet_ledger::directory::read_log;
use medinet_ledger::vote::Ballot;
use medinet_ledger::{Record, RecordBody, verify_log};
use medinet_types::SiteId;
use medinet_wire::message::TaskStage;
use std::fs;

const ROUNDS: u32 = 2;
/// Three groups of two, so that the median withstands one.
const HOSPITALS: usize = 6;

#[test]
fn six_hospitals_in_three_groups_make_one_model_and_carry_it_by_their_votes() {
    let folder = folder("groups");
    let sites = (1..=HOSPITALS)
        .map(|number| {
            // Twice the three studies: what they learn does not matter here.
            let from = studies().join(format!("site-{}", (number - 1) % SITES + 1));
            let watched = folder.join(format!("watched-{number}"));
            fs::create_dir(&watched).unwrap();
            for entry in fs::read_dir(&from).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "dcm") {
                    fs::copy(&path, watched.join(path.file_name().unwrap())).unwrap();
                }
            }
            let id = SiteId::new(format!("hospital-{number}")).unwrap();
            SitePlan { id, source: Source::Folder(watched), labels_csv: from.join("labels.csv") }
        })
        .collect();
    let mut federation = Federation::prepare(FederationPlan {
        folder: folder.join("federation"),
        seed: 11,
        rounds: ROUNDS,
        local_epochs: 1,
        updates: Updates::Groups { bits: 4, sites: 2 },
        sites,
        task: TaskKind::Tiny,
        broker: BrokerKind::Own,
        gpu: false,
        privacy: None,
    })
    .unwrap();
    run(&mut federation, |federation, status| {
        if let Some(aggregator) = &status.aggregator {
            ensure!(aggregator.stage != TaskStage::Paused, "the task has paused");
        }
        federation.check_alive()
    })
    .unwrap();
    let model = released(&federation).unwrap();
    let log = read_log(&federation.aggregator_data().join("ledger")).unwrap();
    assert!(verify_log(&log, federation.ledger_key(), None).is_verified());
    let (mut summed, mut votes) = (Vec::new(), Vec::new());
    for record in log.iter().map(|entry| Record::decode(entry).unwrap()) {
        match record.body {
            RecordBody::RoundClosed { participants, .. } => summed.push(participants.len()),
            RecordBody::VotesCounted { model: on, votes: cast, quorum, .. } => {
                assert!(on == model && quorum.is_some());
                votes = cast;
            }
            _ => {}
        }
    }
    assert_eq!(summed, [HOSPITALS; ROUNDS as usize]);
    assert_eq!(votes.len(), HOSPITALS);
    assert!(votes.iter().any(|vote| vote.ballot == Ballot::Accept), "{votes:?}");
}
