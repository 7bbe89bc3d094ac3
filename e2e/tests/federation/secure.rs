//! Secure aggregation between real processes.

use crate::fixture::{SITES, folder, plan, released, run, trained, watching};
use anyhow::ensure;
use medinet_lab::{Federation, Member, Updates};
use medinet_wire::message::TaskStage;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 6;
/// Without one of them there are still three.
const HOSPITALS: usize = 4;
/// A session may lose a site.
const LOSING: Updates = Updates::Secure { bits: 2, kept_permille: 495, losses: 1 };
/// How often a site is lost.
const LOSSES: usize = 2;
/// Longer than a session waits for a site.
const LONGEST: Duration = Duration::from_secs(600);

#[test]
fn sums_are_opened_and_whoever_is_lost_in_a_session_costs_no_round() {
    let folder = folder("secure");
    let sites = (1..=HOSPITALS).map(|number| watching(&folder, number, (number - 1) % SITES + 1)).collect();
    let mut federation = Federation::prepare(plan(&folder, sites, ROUNDS, LOSING)).unwrap();
    let victim = Member::Site(HOSPITALS - 1);
    let (mut lost, mut survived) = (None, Vec::new());
    let mut centre = [Member::Aggregator, Member::Broker].into_iter();
    let mut disturbed = 0;
    run(&mut federation, |federation, status| {
        let Some(aggregator) = &status.aggregator else { return Ok(()) };
        let round = aggregator.round.0;
        match lost {
            // Not in the first round, which shows that all are summed where nothing happens.
            None if aggregator.stage == TaskStage::Aggregating && round > 1 && survived.len() < LOSSES => {
                federation.kill(victim)?;
                lost = Some((round, Instant::now()));
            }
            // The session ends without it.
            Some((lost_in, _)) if round > lost_in => {
                federation.start(victim)?;
                survived.push(lost_in);
                lost = None;
            }
            Some((lost_in, at)) => ensure!(at.elapsed() < LONGEST, "round {lost_in} waits for the lost site"),
            // All of the centre's memory of a session is lost with it: the sites have to leave it and enter another.
            None if aggregator.stage == TaskStage::Aggregating
                && survived.len() == LOSSES
                && round > disturbed.max(*survived.last().unwrap_or(&0)) =>
            {
                if let Some(member) = centre.next() {
                    federation.kill(member)?;
                    federation.start(member)?;
                    disturbed = round;
                }
            }
            None => {}
        }
        Ok(())
    })
    .unwrap();
    released(&federation).unwrap();
    // How many sites each round sums.
    let participants: Vec<usize> = trained(&federation).iter().map(|round| round.sites.len()).collect();
    println!(
        "sites lost in rounds {survived:?}, centre last in {disturbed}, participants by round: {participants:?}"
    );
    assert_eq!(centre.next(), None, "aggregator and broker were killed in a session each");
    assert_eq!(survived.len(), LOSSES);
    assert_eq!(participants.len(), ROUNDS as usize);
    assert_eq!(participants[0], HOSPITALS);
    // A site that is lost after its masked update has come is counted: the others' shares remove its mask.
    assert!(participants.iter().all(|sites| (HOSPITALS - 1..=HOSPITALS).contains(sites)), "{participants:?}");
}
