//! Groups with a robust rule, and signed votes, between real processes.

use crate::fixture::{SITES, folder, plan, records, released, run, trained, watching};
use medinet_lab::{Federation, Updates};
use medinet_ledger::RecordBody;
use medinet_ledger::vote::Ballot;

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
