//! What a site remembers of a task beside its rounds' folders, so that an aggregator learns no more by asking again.
//!
//! **Candidates.** Every candidate that the site measures tells the aggregator something about its validation images, if only a ballot, and
//! the aggregator chooses the models. So the site measures one after each time that it hears of a round of training, as an honest aggregator
//! asks, and the same one again as often as it is announced. `measured` holds the name of the round's folder from when the site takes part
//! in it until it hears of the next round of training. A site that was away may have missed that round: where the announcement says that a
//! later one made the candidate, it measures all the same, a few times in a row, for it is the aggregator that says so.
//!
//! **Base models.** Training twice on one model gives nearly the same update. An aggregator that has it summed with one site and again without learns
//! that site's update, and the more often it repeats both, the better: the mean takes the noise of rounding and of training out of it. So
//! `bases.json` holds for how many rounds the site's update was put under masks on each base model.
//!
//! **Where the model comes from.** A hospital may name the base models that it begins with. What its own federation makes of them has another digest
//! after every round, so `heard.json` holds the rounds that the site heard of, with what each began with and which round is said to have made
//! that. From these and the list as it is *today* follows what is accepted: a listed model, and what a round that began with an accepted model has
//! made. A name that is taken off the list takes all that came of it along. A round makes one model: the first that is said to be its work is it,
//! and every other is a stranger. That a round has made it is the aggregator's signed word in the announcement, which the ledger bears out or
//! belies; this file makes no proof of it.

use crate::files;
use anyhow::{Context as _, Result};
use medinet_types::{ModelDigest, RoundNumber};
use medinet_wire::message::{RoundKind, RoundPlan};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the file with the candidate that was measured last, while no round of training was heard of since.
const MEASURED: &str = "measured";
/// How many candidates in a row the site measures on the word that a round of training lies between them that it never heard of.
const MAX_UNHEARD: u8 = 3;
/// Name of the file with the base models.
const BASES: &str = "bases.json";
/// Base models that are remembered. An honest task has another one after each sum, and goes back to recent ones if any. Whoever wants an older one
/// forgotten has to hold a round on each of as many others first, and round numbers do not come again.
const MAX_BASES: usize = 1024;

/// Name of the file with the rounds that the site heard of.
const HEARD: &str = "heard.json";
/// Rounds that are remembered. What follows from one that is forgotten then follows from what the first of all those began with; a list that names
/// only a model in between has to name a newer one by then.
const MAX_HEARD: usize = 4096;

/// The files of a task.
#[derive(Debug, Clone)]
pub(crate) struct TaskMemory {
    folder: PathBuf,
}

/// What `measured` says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Measured {
    /// The round's folder.
    folder: String,
    /// How many in a row were measured without a round of training in between that the site heard of.
    unheard: u8,
}

/// How often an update on a base model was put under masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsedBase {
    base: ModelDigest,
    /// In how many rounds.
    rounds: u32,
    /// The last of them.
    newest: RoundNumber,
}

/// A round as it was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HeardRound {
    pub(crate) round: RoundNumber,
    /// Whether it trains, and so makes a model; otherwise it measures one.
    pub(crate) trains: bool,
    /// What it begins with, or measures.
    pub(crate) base: ModelDigest,
    /// The round that is said to have made the base model; none for one that no round has made.
    pub(crate) made_by: Option<RoundNumber>,
    /// What that round began with, or the first round before it that is forgotten by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root: Option<ModelDigest>,
}

impl HeardRound {
    /// A model is made by an earlier round: one that names itself or a later one would vouch for itself.
    #[must_use]
    pub(crate) fn of(plan: &RoundPlan) -> Self {
        let made_by = plan.made_by.as_ref().map(|made_by| made_by.round);
        Self {
            round: plan.round,
            trains: plan.kind == RoundKind::Train,
            base: plan.base.digest,
            made_by: made_by.filter(|made_by| *made_by < plan.round),
            root: None,
        }
    }
}

/// What follows from a list of base models, round by round.
struct Lineage<'a> {
    listed: &'a [ModelDigest],
    models: BTreeSet<ModelDigest>,
    /// Rounds of training that began with one of these models.
    rounds: BTreeSet<RoundNumber>,
    /// The one model that a round has made.
    products: BTreeMap<RoundNumber, ModelDigest>,
}

impl<'a> Lineage<'a> {
    fn new(listed: &'a [ModelDigest], heard: &[HeardRound]) -> Self {
        // Which of two models is a round's work is settled by what was heard first, whichever round it was heard of.
        let mut products = BTreeMap::new();
        for known in heard {
            if let Some(made_by) = known.made_by {
                products.entry(made_by).or_insert(known.base);
            }
        }
        let mut lineage = Self { listed, models: BTreeSet::new(), rounds: BTreeSet::new(), products };
        let mut in_order: Vec<&HeardRound> = heard.iter().collect();
        // Rounds come after the ones that made their models, so one pass finds all that follows.
        in_order.sort_by_key(|known| known.round);
        for known in in_order {
            if lineage.accepts(known) {
                lineage.models.insert(known.base);
                if known.trains {
                    lineage.rounds.insert(known.round);
                }
            }
        }
        lineage
    }

    fn accepts(&self, round: &HeardRound) -> bool {
        let made = |made_by: RoundNumber| {
            self.rounds.contains(&made_by)
                && self.products.get(&made_by).is_none_or(|product| *product == round.base)
        };
        self.listed.contains(&round.base)
            || self.models.contains(&round.base)
            || round.made_by.is_some_and(made)
            || round.root.is_some_and(|root| self.listed.contains(&root))
    }
}

impl TaskMemory {
    /// That of the task whose rounds lie in this folder.
    #[must_use]
    pub(crate) fn of(task_folder: &Path) -> Self {
        Self { folder: task_folder.to_owned() }
    }

    /// A round of training is announced, whether or not the site takes part: it may measure a candidate after it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn heard_of_training(&self) -> Result<()> {
        let path = self.folder.join(MEASURED);
        if path.exists() { files::remove(&path) } else { Ok(()) }
    }

    /// Why the site does not measure the candidate of a round, by the name of its folder and the round of training that made the candidate; none
    /// when it does.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn measuring_refusal(
        &self,
        round_folder: &str,
        made_by: Option<RoundNumber>,
    ) -> Result<Option<String>> {
        let Some(measured) = self.measured()? else { return Ok(None) };
        if measured.folder == round_folder {
            return Ok(None);
        }
        // A site that was away did not hear of the training in between, and its vote may be the one that is missing.
        if let (Some(before), Some(made_by)) = (number_of(&measured.folder), made_by)
            && made_by > before
            && measured.unheard < MAX_UNHEARD
        {
            tracing::warn!(measured = %before, %made_by, "measures a candidate of a round of training that this site never heard of");
            return Ok(None);
        }
        Ok(Some(
            "this site has measured a candidate and has not heard of a round of training since: it measures one after each of them"
                .to_owned(),
        ))
    }

    /// The site measures the candidate of a round, and no other until it hears of training again. Durable when it returns.
    ///
    /// # Errors
    /// When the disk refuses: then nothing may be measured.
    pub(crate) fn measures(&self, round_folder: &str) -> Result<()> {
        let unheard = match self.measured()? {
            Some(before) if before.folder == round_folder => return Ok(()),
            Some(before) => before.unheard.saturating_add(1),
            None => 0,
        };
        files::replace(&self.folder.join(MEASURED), format!("{round_folder} {unheard}").as_bytes())
    }

    /// The candidate that was measured last. A file that cannot be read stands for one after which no other is measured.
    fn measured(&self) -> Result<Option<Measured>> {
        let Some(bytes) = files::read(&self.folder.join(MEASURED))? else { return Ok(None) };
        let text = String::from_utf8_lossy(&bytes);
        let (folder, unheard) = text.split_once(' ').unwrap_or((&text, ""));
        Ok(Some(Measured { folder: folder.to_owned(), unheard: unheard.parse().unwrap_or(MAX_UNHEARD) }))
    }

    /// Why the site's update on this base model is not put under masks in this round; none when it is, as it was in fewer than `most` others.
    ///
    /// # Errors
    /// When what the site remembers cannot be read.
    pub(crate) fn base_refusal(
        &self,
        base: &ModelDigest,
        round: RoundNumber,
        most: u32,
    ) -> Result<Option<String>> {
        let bases = self.bases()?;
        let Some(used) = bases.iter().find(|used| used.base == *base) else { return Ok(None) };
        // This round itself, before a restart: a site enters no round of a lower number.
        let others = used.rounds - u32::from(used.newest == round);
        Ok((others >= most).then(|| {
            format!(
                "this site's update on base model {base} was under masks in {others} rounds, and is in at most {most} without differential \
                 privacy: sums of nearly the same updates can be told apart"
            )
        }))
    }

    /// The site's update on this base model goes under masks in a round. Durable when it returns; once for a round.
    ///
    /// # Errors
    /// When the disk refuses: then nothing may leave.
    pub(crate) fn use_base(&self, base: &ModelDigest, round: RoundNumber) -> Result<()> {
        let mut bases = self.bases()?;
        let at = bases.iter().position(|used| used.base == *base);
        let before = at.map(|at| bases.remove(at));
        if before.is_some_and(|used| used.newest == round) {
            return Ok(());
        }
        let rounds = before.map_or(0, |used| used.rounds).saturating_add(1);
        bases.push(UsedBase { base: *base, rounds, newest: round });
        // The one whose last round is longest ago stands first.
        let forgotten = bases.len().saturating_sub(MAX_BASES);
        bases.drain(..forgotten);
        files::replace(&self.folder.join(BASES), &serde_json::to_vec(&bases)?)
    }

    /// Whether a round's base model is one of these, or was made from one of them by rounds that the site heard of.
    ///
    /// # Errors
    /// When what the site remembers cannot be read.
    pub(crate) fn follows(&self, listed: &[ModelDigest], round: &HeardRound) -> Result<bool> {
        Ok(Lineage::new(listed, &self.heard()?).accepts(round))
    }

    /// A round is announced, whether or not the site takes part. Durable when it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn hear(&self, round: &HeardRound) -> Result<()> {
        let mut heard = self.heard()?;
        if heard.iter().any(|known| HeardRound { root: None, ..*known } == *round) {
            return Ok(());
        }
        heard.push(*round);
        forget(&mut heard, MAX_HEARD);
        files::replace(&self.folder.join(HEARD), &serde_json::to_vec(&heard)?)
    }

    fn heard(&self) -> Result<Vec<HeardRound>> {
        let path = self.folder.join(HEARD);
        let Some(bytes) = files::read(&path)? else { return Ok(Vec::new()) };
        serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{}: expected the rounds that this site has heard of: restore it from a backup, or move it away and name the \
                 task's present base model in policy.base_models",
                path.display()
            )
        })
    }

    fn bases(&self) -> Result<Vec<UsedBase>> {
        let path = self.folder.join(BASES);
        let Some(bytes) = files::read(&path)? else { return Ok(Vec::new()) };
        serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{}: expected the base models that this site has trained on under masks: restore it from a backup, or move it away to begin \
                 anew with an aggregator that you trust not to have repeated rounds",
                path.display()
            )
        })
    }
}

/// Forgets the rounds that were heard of first, and has what they made follow from what they began with.
fn forget(heard: &mut Vec<HeardRound>, most: usize) {
    while heard.len() > most {
        let forgotten = heard.remove(0);
        let product = heard.iter().find(|known| known.made_by == Some(forgotten.round));
        let Some(product) = product.filter(|_| forgotten.trains).map(|known| known.base) else { continue };
        let root = Some(forgotten.root.unwrap_or(forgotten.base));
        for known in heard.iter_mut() {
            if known.made_by == Some(forgotten.round) && known.base == product && known.root.is_none() {
                known.root = root;
            }
        }
    }
}

/// The round's number in the name of its folder.
fn number_of(folder: &str) -> Option<RoundNumber> {
    folder.split('-').next()?.parse().ok().map(RoundNumber)
}

#[cfg(test)]
mod tests {
    use super::*;
    use medinet_types::Digest;

    fn memory() -> (tempfile::TempDir, TaskMemory) {
        let folder = tempfile::tempdir().unwrap();
        let memory = TaskMemory::of(folder.path());
        (folder, memory)
    }

    fn base(number: u16) -> ModelDigest {
        ModelDigest(Digest::of(&number.to_le_bytes()))
    }

    #[test]
    fn one_candidate_is_measured_after_each_round_of_training() {
        let (_folder, memory) = memory();
        let refusal = |name| memory.measuring_refusal(name, Some(RoundNumber(1))).unwrap();
        // A site that is new, or was away, may have missed the training.
        assert_eq!(refusal("000002-a"), None);
        memory.measures("000002-a").unwrap();
        // The same one as often as it is announced, also by a site that was started anew.
        assert_eq!(TaskMemory::of(&memory.folder).measuring_refusal("000002-a", None).unwrap(), None);
        for other in ["000002-b", "000003-a"] {
            assert!(refusal(other).unwrap().contains("one after each"), "{other}");
        }
        // Away while the third round trained: the candidate of the fourth says that it comes from there.
        let made_by = |round| memory.measuring_refusal("000004-a", Some(RoundNumber(round))).unwrap();
        assert_eq!(made_by(3), None);
        assert!(made_by(2).is_some());
        // The site has only the aggregator's word for it, and takes it three times in a row.
        for round in [4, 6, 8] {
            let folder = format!("{round:06}-a");
            for _ in 0..2 {
                let made_by = Some(RoundNumber(round - 1));
                assert_eq!(memory.measuring_refusal(&folder, made_by).unwrap(), None, "{folder}");
                memory.measures(&folder).unwrap();
            }
        }
        assert!(memory.measuring_refusal("000010-a", Some(RoundNumber(9))).unwrap().is_some());
        assert_eq!(memory.measuring_refusal("000008-a", None).unwrap(), None);
        // Rounds of training do not add up.
        for _ in 0..3 {
            memory.heard_of_training().unwrap();
        }
        assert_eq!(refusal("000016-a"), None);
        memory.measures("000016-a").unwrap();
        assert!(refusal("000017-a").is_some());
        // The one before is over too: its figures might be others by now.
        assert!(refusal("000002-a").is_some());
        assert_eq!(memory.measuring_refusal("000018-a", Some(RoundNumber(17))).unwrap(), None);
    }

    #[test]
    fn a_base_model_is_trained_on_under_masks_a_few_times_only() {
        let (folder, memory) = memory();
        let refusal = |base, round| memory.base_refusal(&base, RoundNumber(round), 2).unwrap();
        assert_eq!(refusal(base(1), 1), None);
        for _ in 0..3 {
            // Several sessions of one round.
            memory.use_base(&base(1), RoundNumber(1)).unwrap();
        }
        assert_eq!(refusal(base(1), 2), None);
        memory.use_base(&base(1), RoundNumber(2)).unwrap();
        memory.use_base(&base(2), RoundNumber(3)).unwrap();
        // The round that used it up goes on after a restart; the next does not begin.
        assert_eq!(refusal(base(1), 2), None);
        let reason = refusal(base(1), 4).unwrap();
        assert!(reason.contains("in 2 rounds") && reason.contains(&base(1).to_string()), "{reason}");
        assert_eq!(refusal(base(2), 4), None);
        assert_eq!(memory.base_refusal(&base(1), RoundNumber(4), 3).unwrap(), None);
        std::fs::write(folder.path().join(BASES), b"[").unwrap();
        let error = memory.base_refusal(&base(1), RoundNumber(4), 3).unwrap_err();
        assert!(format!("{error:#}").contains("move it away"), "{error:#}");
    }

    #[test]
    fn models_follow_from_the_rounds_that_made_them() {
        let (_folder, memory) = memory();
        let training = |round, base, made_by: Option<u32>| HeardRound {
            round: RoundNumber(round),
            trains: true,
            base,
            made_by: made_by.map(RoundNumber),
            root: None,
        };
        let listed = [base(1)];
        let follows = |base, made_by| memory.follows(&listed, &training(99, base, made_by)).unwrap();
        assert!(follows(base(1), None) && !follows(base(2), Some(1)));
        for _ in 0..2 {
            memory.hear(&training(1, base(1), None)).unwrap();
        }
        assert_eq!(memory.heard().unwrap().len(), 1);
        assert!(follows(base(2), Some(1)) && !follows(base(2), None) && !follows(base(2), Some(2)));
        // A round that measures makes nothing, and says which model its round has made: no other is, whoever comes later.
        memory.hear(&HeardRound { trains: false, ..training(2, base(2), Some(1)) }).unwrap();
        assert!(follows(base(2), Some(1)) && follows(base(2), None));
        assert!(!follows(base(3), Some(1)) && !follows(base(3), Some(2)));
        // Heard of out of order, as after an extension.
        memory.hear(&training(4, base(4), Some(3))).unwrap();
        assert!(!follows(base(5), Some(4)));
        memory.hear(&training(3, base(2), Some(1))).unwrap();
        assert!(follows(base(4), Some(3)) && follows(base(5), Some(4)) && !follows(base(6), Some(3)));
        // Whoever strikes the first model from the list strikes what came of it; the list may name a later one.
        for (listed, expected) in [(base(9), [false; 3]), (base(4), [false, true, true])] {
            let follows = |base| memory.follows(&[listed], &training(99, base, None)).unwrap();
            let made = memory.follows(&[listed], &training(99, base(5), Some(4))).unwrap();
            assert_eq!([follows(base(2)), follows(base(4)), made], expected);
        }
    }

    #[test]
    fn rounds_that_were_heard_of_are_bounded_and_damage_is_told() {
        let (folder, memory) = memory();
        let many = u32::try_from(MAX_HEARD).unwrap();
        let training = |round| HeardRound {
            round: RoundNumber(round),
            trains: true,
            base: base(u16::try_from(round).unwrap()),
            made_by: (round > 1).then(|| RoundNumber(round - 1)),
            root: None,
        };
        let all: Vec<HeardRound> = (1..=many).map(training).collect();
        std::fs::write(folder.path().join(HEARD), serde_json::to_vec(&all).unwrap()).unwrap();
        memory.hear(&training(many + 1)).unwrap();
        let heard = memory.heard().unwrap();
        assert_eq!((heard.len(), heard[0].round), (MAX_HEARD, RoundNumber(2)));
        // What began with the first model still follows from it, and from each that is remembered.
        memory.hear(&training(many + 2)).unwrap();
        let follows = |listed| memory.follows(&[base(listed)], &training(many + 3)).unwrap();
        assert!(follows(1) && follows(4) && !follows(9999));
        // A second product of a forgotten round is none still.
        let stranger = HeardRound { base: base(9998), ..training(3) };
        assert!(!memory.follows(&[base(1)], &stranger).unwrap());
        std::fs::write(folder.path().join(HEARD), b"{").unwrap();
        let error = memory.follows(&[], &training(1)).unwrap_err();
        assert!(format!("{error:#}").contains("policy.base_models"), "{error:#}");
    }

    #[test]
    fn memory_is_bounded_and_forgets_what_was_used_longest_ago() {
        let (folder, memory) = memory();
        let many = u16::try_from(MAX_BASES).unwrap();
        let bases: Vec<UsedBase> = (0..many)
            .map(|number| UsedBase { base: base(number), rounds: 1, newest: RoundNumber(number.into()) })
            .collect();
        std::fs::write(folder.path().join(BASES), serde_json::to_vec(&bases).unwrap()).unwrap();
        // Used again, it is the newest.
        memory.use_base(&base(0), RoundNumber(5000)).unwrap();
        memory.use_base(&base(many), RoundNumber(5001)).unwrap();
        let known = memory.bases().unwrap();
        assert_eq!(known.len(), MAX_BASES);
        let find = |number| known.iter().find(|used| used.base == base(number)).map(|used| used.rounds);
        assert_eq!([find(0), find(1), find(2), find(many)], [Some(2), None, Some(1), Some(1)]);
    }
}
