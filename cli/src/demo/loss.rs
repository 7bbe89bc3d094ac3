//! A hospital that is lost in the middle of a round's secure aggregation, as by a power cut, and comes back when the round is over.

use anyhow::{Context as _, Result, ensure};
use medinet_lab::{Federation, FleetStatus, Member};
use medinet_ledger::directory::read_log;
use medinet_ledger::{Record, RecordBody};
use medinet_types::SiteId;
use medinet_wire::message::TaskStage;
use std::time::{Duration, Instant};

/// The fewest hospitals of which one may be lost: three have to remain, so that none of them knows another's update from the sum.
pub(crate) const FEWEST: usize = 4;
/// Much longer than a session waits for a lost hospital.
const LONGEST: Duration = Duration::from_secs(20 * 60);

/// What happened to the hospital that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostSite {
    /// The hospital.
    pub(crate) site: SiteId,
    /// The round that it was lost in.
    pub(crate) round: u32,
    /// Hospitals in that round's sum, by the ledger.
    pub(crate) summed: usize,
    /// Whether its own update is among them: it was sent under its masks before the hospital was lost, and the others' shares removed them.
    pub(crate) counted: bool,
    /// Rounds after it that summed its updates again.
    pub(crate) rounds_after: usize,
}

impl LostSite {
    /// One sentence for people.
    pub(crate) fn text(&self, hospitals: usize) -> String {
        let Self { site, round, summed, rounds_after, .. } = self;
        let own = if self.counted { "its own masked update among them" } else { "its own not among them" };
        format!(
            "{site} was killed in the middle of round {round}'s secure aggregation: the sum of {summed} of {hospitals} hospitals was opened \
             all the same, {own}. Started again, it took part in {rounds_after} more rounds."
        )
    }
}

/// Loses the last hospital once.
pub(crate) struct Loss {
    site: usize,
    /// The first round that may lose it.
    from: u32,
    state: State,
}

enum State {
    Before,
    Lost { round: u32, at: Instant },
    Back { round: u32 },
}

impl Loss {
    /// Of the last of so many hospitals, in the middle of so many rounds.
    pub(crate) fn of(sites: usize, rounds: u32) -> Self {
        Self { site: sites.saturating_sub(1), from: rounds / 2 + 1, state: State::Before }
    }

    /// Kills the hospital when its moment has come, and starts it when the round is over; gives what to tell when it did either.
    pub(crate) fn watch(
        &mut self,
        federation: &mut Federation,
        status: &FleetStatus,
    ) -> Result<Option<String>> {
        let Some(aggregator) = &status.aggregator else { return Ok(None) };
        let (round, member) = (aggregator.round.0, Member::Site(self.site));
        let name = federation.plan().sites[self.site].id.clone();
        match self.state {
            State::Before if aggregator.stage == TaskStage::Aggregating && round >= self.from => {
                federation.kill(member)?;
                self.state = State::Lost { round, at: Instant::now() };
                Ok(Some(format!("{name} is killed in the middle of round {round}'s secure aggregation")))
            }
            State::Lost { round: lost, .. } if round > lost || aggregator.finished => {
                federation.start(member)?;
                self.state = State::Back { round: lost };
                Ok(Some(format!("round {lost} ended without {name}, which is started again")))
            }
            State::Lost { round, at } => {
                ensure!(
                    at.elapsed() < LONGEST,
                    "round {round} still waits for {name}: see {}",
                    federation.log(Member::Aggregator).display()
                );
                Ok(None)
            }
            State::Before | State::Back { .. } => Ok(None),
        }
    }

    /// What the ledger says of it; none if the hospital was never lost.
    pub(crate) fn told_by_ledger(&self, federation: &Federation) -> Result<Option<LostSite>> {
        let State::Back { round: lost } = self.state else { return Ok(None) };
        let site = federation.plan().sites[self.site].id.clone();
        let entries = read_log(&federation.aggregator_data().join("ledger"))?;
        let mut rounds = Vec::new();
        for entry in entries.iter() {
            if let RecordBody::RoundClosed { round, participants, .. } = Record::decode(entry)?.body {
                let counted = participants.iter().any(|participant| participant.site == site);
                rounds.push((round.0, participants.len(), counted));
            }
        }
        let &(round, summed, counted) = rounds
            .iter()
            .find(|(round, ..)| *round == lost)
            .with_context(|| format!("round {lost}, which {site} was lost in, ended without a model"))?;
        let rounds_after = rounds.iter().filter(|(round, _, counted)| *round > lost && *counted).count();
        Ok(Some(LostSite { site, round, summed, counted, rounds_after }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_with_what_became_of_the_hospitals_own_update() {
        let site = SiteId::new("hospital-4").unwrap();
        let lost = LostSite { site, round: 7, summed: 3, counted: false, rounds_after: 5 };
        let text = lost.text(4);
        assert!(text.contains("round 7") && text.contains("3 of 4") && text.contains("not among"), "{text}");
        let text = LostSite { counted: true, summed: 4, ..lost }.text(4);
        assert!(text.contains("4 of 4") && !text.contains("not among"), "{text}");
    }

    #[test]
    fn the_last_hospital_is_lost_in_the_middle_of_the_rounds() {
        let loss = Loss::of(4, 12);
        assert_eq!((loss.site, loss.from), (3, 7));
        assert_eq!(Loss::of(5, 1).from, 1);
    }
}
