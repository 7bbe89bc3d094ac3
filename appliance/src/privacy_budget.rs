//! The site's privacy budget on disk: what it has given away about its patients for a task, charged before anything starts.
//!
//! `privacy/<task>.budget` holds the log of [`PrivacyBudget`], `privacy/<task>.newest` its newest checkpoint, and `rounds/<task>/budget.newest`
//! the same once more: a lost or old `privacy` folder is noticed as long as `rounds` is neither. A round is charged in
//! three durable steps, none of which touches a patient: the round's folder notes which entry of the log pays for it, the
//! log gets that entry, the checkpoints follow. Training starts only when the log holds the entry that the folder notes. A kill
//! at any point therefore leaves a round either unpaid and not begun, or paid:
//!
//! The result is what holds the noise: the trained model in private training, the update in a round with noise inside the sum.
//!
//! | folder's note | log | result | then |
//! | --- | --- | --- | --- |
//! | none, or of an entry that the log does not hold | | | charged before it starts |
//! | of an entry in the log | holds it | none yet | begun, or about to: goes on, paid |
//! | the same, training ended | holds it | there | used again from disk, paid |
//! | the same, training ended | holds it | gone | trained anew with fresh noise: charged again |
//!
//! That a training has ended is noted before its update is made, so nothing of a paid training can have left the site while its
//! folder still says that it goes on. Noise inside the sum is in the update alone: its end is noted when the update is on disk, before the
//! site is ready for a session. Charges are never given back.
//!
//! A round that trains without noise is put on record too, before it starts: beside one, what was charged bounds nothing.

use crate::files;
use crate::round_cost::RoundCost;
use anyhow::{Context as _, Result, bail};
use medinet_privacy::{
    Accounting, BudgetCheckpoint, BudgetEntry, BudgetError, Delta, Event, PrivacyBudget, PrivacyLimit,
    PrivacyReport,
};
use medinet_types::{Digest, RoundNumber, SiteId, TaskId, UnixMillis};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the note within a round's folder.
const NOTE: &str = "privacy.json";

/// The budget of this site for its task.
#[derive(Debug)]
pub(crate) struct BudgetKeeper {
    files: Files,
    budget: PrivacyBudget,
    /// Whether the log holds more than a checkpoint says.
    checkpoints_behind: bool,
}

/// Where a budget lies.
#[derive(Debug, Clone)]
struct Files {
    log: PathBuf,
    /// The newest checkpoint, in two places that are not lost together.
    checkpoints: [PathBuf; 2],
}

/// Which entry of the log pays for a round, and how far the round is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    /// Number of the entry, from 0.
    entry: u64,
    /// Its digest, which chains all before it.
    digest: Digest,
    /// Whether what was paid for is made, and so may have left.
    ended: bool,
}

/// What became of a charge.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Charge {
    /// The round may start, or go on.
    Paid,
    /// It does not fit; why, for the operator.
    Refused(String),
}

impl BudgetKeeper {
    /// Opens the budget of a site for a task. One that has never been is opened fresh; of one that has been, the limit's epsilon may
    /// be another than before.
    ///
    /// # Errors
    /// When the budget was lost, damaged, put back from an old copy, or is another's: then nothing may be spent until somebody has
    /// found out why. When the disk refuses.
    pub(crate) fn open(
        data_dir: &Path,
        site: &SiteId,
        task: &TaskId,
        limit: PrivacyLimit,
        now: UnixMillis,
    ) -> Result<Self> {
        let files = Files::of(data_dir, task)?;
        let fresh = || PrivacyBudget::open(site.clone(), task.clone(), limit, Accounting::Tight, now);
        let newest = files.newest_checkpoint()?;
        let path = files.log.display();
        let mut budget = match (files::read(&files.log)?, &newest) {
            (None, None) => fresh(),
            (None, Some(newest)) => {
                let [near, far] = files.checkpoints.each_ref().map(|path| path.display());
                bail!(
                    "{path}: expected the privacy budget of {} entries, and it is not there: restore it from a backup; without it nobody \
                     knows what was spent. To begin a new budget all the same, move {near} and {far} away",
                    newest.entries
                )
            }
            (Some(bytes), newest) => {
                PrivacyBudget::restore(&bytes, newest.as_ref()).with_context(|| path.to_string())?
            }
        };
        anyhow::ensure!(
            budget.site() == site && budget.task() == task,
            "{path}: expected the privacy budget of {site} for {task}, got that of {} for {}",
            budget.site(),
            budget.task()
        );
        if budget.limit().delta != limit.delta && !is_charged(&budget) {
            // Nothing was spent at the other delta.
            let unprotected = first_unprotected(&budget);
            for checkpoint in &files.checkpoints {
                files::remove(checkpoint)?;
            }
            budget = fresh();
            if let Some(round) = unprotected {
                budget.note_unprotected(round, now);
            }
        }
        if budget.limit() != limit {
            budget.set_limit(limit, now).context("policy.delta")?;
        }
        files.write_log(&budget)?;
        files.write_checkpoints(&budget)?;
        let keeper = Self { files, budget, checkpoints_behind: false };
        tracing::info!(
            spent = keeper.budget.spent(),
            epsilon = limit.epsilon.get(),
            delta = limit.delta.get(),
            unbounded = keeper.budget.is_unbounded(),
            "privacy budget"
        );
        Ok(keeper)
    }

    /// What is spent of what; none as long as no round was charged.
    #[must_use]
    pub(crate) fn report(&self) -> Option<PrivacyReport> {
        is_charged(&self.budget).then(|| self.budget.report()).flatten()
    }

    /// Whether a private round of the task was ever charged.
    #[must_use]
    pub(crate) fn is_charged(&self) -> bool {
        is_charged(&self.budget)
    }

    /// Epsilon spent so far.
    #[must_use]
    pub(crate) fn spent(&self) -> f64 {
        self.budget.spent()
    }

    /// Epsilon at `delta`, which need not be the limit's, of all rounds that were charged, with one of this cost that is not paid for yet; infinite
    /// where no bound is found.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn composed(
        &self,
        delta: Delta,
        cost: Option<&RoundCost>,
        round_folder: &Path,
    ) -> Result<f64> {
        let mut composition = self.budget.charged();
        if let Some(cost) = cost
            && !self.is_paid(cost, round_folder)?
        {
            composition.add(&cost.event);
        }
        Ok(composition.epsilon(delta, Accounting::Tight))
    }

    /// The mechanism of the private round that was charged last, as one run.
    #[must_use]
    pub(crate) fn newest_mechanism(&self) -> Option<Event> {
        self.budget.newest_mechanism()
    }

    /// Fixes the number of patients that all private training of the task counts on, unless it is fixed already; gives the one that is. Durable when
    /// it returns.
    ///
    /// # Errors
    /// When the disk refuses: then the round must not start.
    pub(crate) fn fix_public_patients(&mut self, count: u64, now: UnixMillis) -> Result<u64> {
        self.catch_up()?;
        if let Some(fixed) = self.budget.public_patients() {
            return Ok(fixed);
        }
        let mut budget = self.budget.clone();
        let fixed = budget.fix_public_patients(count, now);
        self.adopt(budget)?;
        tracing::info!(
            patients = fixed,
            "private training of the task counts on this many patients from here on"
        );
        Ok(fixed)
    }

    /// Puts on record that a round trains without noise. Durable when it returns.
    ///
    /// # Errors
    /// When the disk refuses: then the round must not start.
    pub(crate) fn note_unprotected(&mut self, round: RoundNumber, now: UnixMillis) -> Result<()> {
        self.catch_up()?;
        if self.budget.is_unbounded() {
            return Ok(());
        }
        let mut noted = self.budget.clone();
        noted.note_unprotected(round, now);
        self.adopt(noted)?;
        if self.is_charged() {
            tracing::warn!(
                %round,
                spent = self.budget.spent(),
                "trains without noise after private rounds of the task: from here on nothing bounds what leaves about its patients"
            );
        }
        Ok(())
    }

    /// Why a round would be refused now; none when it fits, or is paid for already. Changes nothing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn refusal(&self, cost: &RoundCost, round_folder: &Path) -> Result<Option<String>> {
        if self.is_paid(cost, round_folder)? {
            return Ok(None);
        }
        // Of a copy: its reservation is never written down.
        let mut tried = self.budget.clone();
        Ok(tried.reserve(RoundNumber(0), &cost.event, UnixMillis(0)).err().map(|error| error.to_string()))
    }

    /// Charges a round, unless it is paid for already. Durable when it returns.
    ///
    /// # Errors
    /// When the disk refuses: then the round must not start.
    pub(crate) fn charge(
        &mut self,
        round: RoundNumber,
        cost: &RoundCost,
        round_folder: &Path,
        now: UnixMillis,
    ) -> Result<Charge> {
        self.catch_up()?;
        if self.is_paid(cost, round_folder)? {
            return Ok(Charge::Paid);
        }
        let mut charged = self.budget.clone();
        match charged.reserve(round, &cost.event, now) {
            // Never settled: all of its steps run before anything leaves.
            Ok(_reservation) => {}
            Err(error @ BudgetError::Exhausted { .. }) => return Ok(Charge::Refused(error.to_string())),
            Err(error) => return Err(error.into()),
        }
        let BudgetCheckpoint { entries, head } = charged.checkpoint();
        write_note(round_folder, Note { entry: entries - 1, digest: head, ended: false })?;
        // Known here only once it is on the disk: a failed attempt must not look paid to the next one.
        self.adopt(charged)?;
        tracing::info!(
            %round,
            spent = self.budget.spent(),
            left = self.budget.left(),
            delta = self.budget.limit().delta.get(),
            "charged a round to the privacy budget"
        );
        Ok(Charge::Paid)
    }

    /// Notes that what a charge paid for is made, before anything of it leaves.
    ///
    /// # Errors
    /// When the round is not paid for, or the disk refuses.
    pub(crate) fn ended(&self, round_folder: &Path) -> Result<()> {
        let note = self.note(round_folder)?.context("a private round ended that was not charged")?;
        if note.ended { Ok(()) } else { write_note(round_folder, Note { ended: true, ..note }) }
    }

    /// Makes a longer budget the one that counts. What the log holds is not made again if a checkpoint fails: a second entry in its place would
    /// contradict the checkpoint that did not.
    fn adopt(&mut self, budget: PrivacyBudget) -> Result<()> {
        self.files.write_log(&budget)?;
        self.budget = budget;
        self.checkpoints_behind = true;
        self.catch_up()
    }

    /// Writes the checkpoints that an earlier failure of the disk left behind the log.
    fn catch_up(&mut self) -> Result<()> {
        if self.checkpoints_behind {
            self.files.write_checkpoints(&self.budget)?;
            self.checkpoints_behind = false;
        }
        Ok(())
    }

    fn is_paid(&self, cost: &RoundCost, round_folder: &Path) -> Result<bool> {
        let Some(note) = self.note(round_folder)? else { return Ok(false) };
        Ok(!note.ended || files::read(&round_folder.join(cost.product))?.is_some())
    }

    /// The folder's note, where the log holds the entry.
    fn note(&self, round_folder: &Path) -> Result<Option<Note>> {
        let Some(bytes) = files::read(&round_folder.join(NOTE))? else { return Ok(None) };
        // A note that cannot be read pays for nothing.
        let Ok(note) = serde_json::from_slice::<Note>(&bytes) else { return Ok(None) };
        let entry = usize::try_from(note.entry).ok().and_then(|at| self.budget.records().get(at));
        Ok(entry.is_some_and(|entry| entry.digest == note.digest).then_some(note))
    }
}

impl Files {
    fn of(data_dir: &Path, task: &TaskId) -> Result<Self> {
        let (own, rounds) = (data_dir.join("privacy"), data_dir.join("rounds").join(task.as_str()));
        files::private_folder(&own)?;
        fs::create_dir_all(&rounds).with_context(|| format!("cannot make {}", rounds.display()))?;
        Ok(Self {
            log: own.join(format!("{task}.budget")),
            checkpoints: [own.join(format!("{task}.newest")), rounds.join("budget.newest")],
        })
    }

    /// The checkpoint of most entries, if there is any.
    fn newest_checkpoint(&self) -> Result<Option<BudgetCheckpoint>> {
        let mut newest: Option<BudgetCheckpoint> = None;
        for path in &self.checkpoints {
            let Some(bytes) = files::read(path)? else { continue };
            let found: BudgetCheckpoint = serde_json::from_slice(&bytes).with_context(|| {
                format!("{}: the privacy budget's checkpoint cannot be read", path.display())
            })?;
            if newest.is_none_or(|newest| found.entries > newest.entries) {
                newest = Some(found);
            }
        }
        Ok(newest)
    }

    /// Before the checkpoints: one that the log does not reach would refuse it.
    fn write_log(&self, budget: &PrivacyBudget) -> Result<()> {
        files::replace(&self.log, &budget.encode())
    }

    fn write_checkpoints(&self, budget: &PrivacyBudget) -> Result<()> {
        let checkpoint = serde_json::to_vec(&budget.checkpoint())?;
        self.checkpoints.iter().try_for_each(|path| files::replace(path, &checkpoint))
    }
}

/// The first round that trained without noise.
fn first_unprotected(budget: &PrivacyBudget) -> Option<RoundNumber> {
    budget.records().iter().find_map(|record| match record.entry {
        BudgetEntry::Unprotected { round } => Some(round),
        _ => None,
    })
}

fn is_charged(budget: &PrivacyBudget) -> bool {
    budget.records().iter().any(|record| matches!(record.entry, BudgetEntry::Reserved { .. }))
}

fn write_note(round_folder: &Path, note: Note) -> Result<()> {
    files::replace(&round_folder.join(NOTE), &serde_json::to_vec(&note)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::UNMASKED;
    use crate::trainer::RESULT;
    use medinet_privacy::{DpSgdPlan, Epsilon, SamplingRate};

    fn limit(epsilon: f64) -> PrivacyLimit {
        PrivacyLimit { epsilon: Epsilon::new(epsilon).unwrap(), delta: Delta::new(1e-5).unwrap() }
    }

    fn plan() -> RoundCost {
        let plan = DpSgdPlan::for_target(&limit(1.0), 1.0, SamplingRate::new(0.05).unwrap(), 20).unwrap();
        RoundCost { event: plan.event(), product: RESULT }
    }

    /// All that a budget is on the disk.
    const FILES: [&str; 3] =
        ["privacy/pneumonia.budget", "privacy/pneumonia.newest", "rounds/pneumonia/budget.newest"];

    struct Site {
        data: tempfile::TempDir,
        keeper: BudgetKeeper,
    }

    fn open(data: &Path, limit: PrivacyLimit) -> Result<BudgetKeeper> {
        let (site, task) = (SiteId::new("north").unwrap(), TaskId::new("pneumonia").unwrap());
        BudgetKeeper::open(data, &site, &task, limit, UnixMillis(1))
    }

    impl Site {
        fn new(epsilon: f64) -> Self {
            let data = tempfile::tempdir().unwrap();
            let keeper = open(data.path(), limit(epsilon)).unwrap();
            Self { data, keeper }
        }

        fn folder(&self, round: u32) -> PathBuf {
            let folder = self.data.path().join(format!("rounds/{round}"));
            fs::create_dir_all(&folder).unwrap();
            folder
        }

        fn charge(&mut self, round: u32) -> Charge {
            let folder = self.folder(round);
            self.keeper.charge(RoundNumber(round), &plan(), &folder, UnixMillis(2)).unwrap()
        }

        fn restart(&mut self) {
            let limit = self.keeper.budget.limit();
            self.keeper = open(self.data.path(), limit).unwrap();
        }

        fn spent(&self) -> f64 {
            self.keeper.budget.spent()
        }
    }

    #[test]
    fn a_round_is_charged_once_however_often_it_is_interrupted() {
        let mut site = Site::new(8.0);
        assert_eq!(site.keeper.report(), None);
        assert_eq!(site.charge(1), Charge::Paid);
        let once = site.spent();
        assert!(once > 0.9 && once <= 1.0, "{once}");
        for _ in 0..3 {
            site.restart();
            assert_eq!(site.charge(1), Charge::Paid);
        }
        assert_eq!(site.spent(), once);
        // The training ends; its result is used again from disk.
        fs::write(site.folder(1).join(RESULT), b"{}").unwrap();
        site.keeper.ended(&site.folder(1)).unwrap();
        site.restart();
        assert_eq!(site.charge(1), Charge::Paid);
        assert_eq!(site.spent(), once);
        assert_eq!(site.keeper.report().unwrap().spent.get(), once);
    }

    #[test]
    fn a_checkpoint_that_the_disk_refuses_is_written_before_the_round_is_paid_and_makes_no_second_entry() {
        let mut site = Site::new(8.0);
        let far = site.data.path().join(FILES[2]);
        // Nothing takes the place of a folder.
        fs::remove_file(&far).unwrap();
        fs::create_dir_all(far.join("in the way")).unwrap();
        let folder = site.folder(1);
        for at in [2, 3] {
            assert!(site.keeper.charge(RoundNumber(1), &plan(), &folder, UnixMillis(at)).is_err());
        }
        let once = site.spent();
        fs::remove_dir_all(&far).unwrap();
        assert_eq!(
            site.keeper.charge(RoundNumber(1), &plan(), &folder, UnixMillis(4)).unwrap(),
            Charge::Paid
        );
        assert!(far.is_file());
        // Log and checkpoints agree.
        site.restart();
        assert_eq!(site.spent(), once);
        assert_eq!(site.charge(1), Charge::Paid);
        assert_eq!(site.spent(), once);
    }

    #[test]
    fn the_number_of_patients_stays_that_of_the_first_private_round() {
        use medinet_training::published_count;
        let mut site = Site::new(8.0);
        assert_eq!(site.keeper.budget.public_patients(), None);
        site.charge(1);
        assert_eq!(site.keeper.fix_public_patients(published_count(99), UnixMillis(2)).unwrap(), 90);
        // Two patients more in the next round.
        site.restart();
        site.charge(2);
        assert_eq!(site.keeper.fix_public_patients(published_count(101), UnixMillis(3)).unwrap(), 90);
        site.restart();
        assert_eq!(site.keeper.budget.public_patients(), Some(90));
        // What was charged is none the more for it, and each round is paid for as before.
        let spent = site.spent();
        assert_eq!((site.charge(1), site.charge(2), site.spent()), (Charge::Paid, Charge::Paid, spent));
        assert_eq!(site.keeper.report().unwrap().rounds, 2);
    }

    #[test]
    fn a_number_of_patients_that_the_disk_refuses_is_not_taken_for_fixed() {
        let mut site = Site::new(8.0);
        let temporary = site.data.path().join("privacy/pneumonia.new");
        fs::create_dir(&temporary).unwrap();
        assert!(site.keeper.fix_public_patients(90, UnixMillis(2)).is_err());
        fs::remove_dir(temporary).unwrap();
        assert_eq!(site.keeper.fix_public_patients(100, UnixMillis(2)).unwrap(), 100);
    }

    #[test]
    fn a_round_that_is_trained_anew_is_charged_again() {
        let mut site = Site::new(8.0);
        site.charge(1);
        let once = site.spent();
        // Ended, and its result is gone: it may have left.
        site.keeper.ended(&site.folder(1)).unwrap();
        assert_eq!(site.charge(1), Charge::Paid);
        let twice = site.spent();
        assert!(twice > once);
        // Its folder is gone, or another round.
        fs::remove_dir_all(site.folder(1)).unwrap();
        site.charge(1);
        assert!(site.spent() > twice);
        let thrice = site.spent();
        site.charge(2);
        assert!(site.spent() > thrice);
    }

    #[test]
    fn with_noise_inside_the_sum_a_charge_pays_for_one_update() {
        let mut site = Site::new(8.0);
        let cost = RoundCost { product: UNMASKED, ..plan() };
        let charge = |site: &mut Site| {
            let folder = site.folder(1);
            assert_eq!(
                site.keeper.charge(RoundNumber(1), &cost, &folder, UnixMillis(2)).unwrap(),
                Charge::Paid
            );
            site.spent()
        };
        let once = charge(&mut site);
        // The training's result has no noise and is nothing to pay for.
        fs::write(site.folder(1).join(RESULT), b"{}").unwrap();
        fs::write(site.folder(1).join(UNMASKED), b"noisy").unwrap();
        site.keeper.ended(&site.folder(1)).unwrap();
        site.restart();
        assert_eq!(charge(&mut site), once);
        // The update may have been in a session: another one would have other noise.
        fs::remove_file(site.folder(1).join(UNMASKED)).unwrap();
        assert!(charge(&mut site) > once);
    }

    #[test]
    fn a_kill_between_note_and_log_leaves_the_round_unpaid() {
        let mut site = Site::new(8.0);
        let kept = FILES.map(|name| fs::read(site.data.path().join(name)).unwrap());
        site.charge(1);
        let once = site.spent();
        for (name, before) in FILES.iter().zip(kept) {
            fs::write(site.data.path().join(name), before).unwrap();
        }
        site.restart();
        assert_eq!(site.spent(), 0.0);
        assert!(!site.keeper.is_paid(&plan(), &site.folder(1)).unwrap());
        assert!(site.keeper.ended(&site.folder(1)).is_err());
        site.charge(1);
        assert_eq!(site.spent(), once);
    }

    #[test]
    fn a_charge_that_the_disk_refuses_does_not_look_paid() {
        let mut site = Site::new(8.0);
        let folder = site.folder(1);
        // A folder in the way of the log's temporary file.
        let temporary = site.data.path().join("privacy/pneumonia.new");
        fs::create_dir(&temporary).unwrap();
        for _ in 0..2 {
            assert!(site.keeper.charge(RoundNumber(1), &plan(), &folder, UnixMillis(2)).is_err());
        }
        assert_eq!(site.spent(), 0.0);
        fs::remove_dir(temporary).unwrap();
        site.restart();
        assert_eq!((site.charge(1), site.spent() > 0.9), (Charge::Paid, true));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason_and_costs_nothing() {
        let mut site = Site::new(1.2);
        assert_eq!(site.keeper.refusal(&plan(), &site.folder(1)).unwrap(), None);
        assert_eq!(site.charge(1), Charge::Paid);
        let spent = site.spent();
        let reason = site.keeper.refusal(&plan(), &site.folder(2)).unwrap().unwrap();
        assert!(reason.contains("1.2") && reason.contains("spent"), "{reason}");
        assert!(matches!(site.charge(2), Charge::Refused(_)));
        assert_eq!(site.spent(), spent);
        assert!(!site.folder(2).join(NOTE).exists());
        // The one that is paid goes on all the same.
        assert_eq!(site.keeper.refusal(&plan(), &site.folder(1)).unwrap(), None);
        // The site raises its limit.
        site.keeper = open(site.data.path(), limit(8.0)).unwrap();
        assert_eq!(site.charge(2), Charge::Paid);
        assert!(
            open(site.data.path(), PrivacyLimit { delta: Delta::new(1e-6).unwrap(), ..limit(8.0) }).is_err()
        );
    }

    #[test]
    fn delta_may_change_until_something_is_spent() {
        let mut site = Site::new(8.0);
        let other = PrivacyLimit { delta: Delta::new(1e-6).unwrap(), ..limit(8.0) };
        site.keeper = open(site.data.path(), other).unwrap();
        site.restart();
        assert_eq!(site.keeper.budget.limit(), other);
    }

    #[test]
    fn whoever_moves_the_checkpoints_away_begins_a_new_budget() {
        let mut site = Site::new(8.0);
        site.charge(1);
        for name in FILES {
            fs::remove_file(site.data.path().join(name)).unwrap();
        }
        site.restart();
        assert_eq!((site.spent(), site.keeper.report()), (0.0, None));
    }

    #[test]
    fn training_without_noise_is_remembered_whenever_it_came() {
        let mut site = Site::new(8.0);
        site.keeper.note_unprotected(RoundNumber(1), UnixMillis(2)).unwrap();
        // A task without private rounds has nothing to report, and may still get another delta.
        assert_eq!((site.keeper.report(), site.keeper.is_charged()), (None, false));
        let other = PrivacyLimit { delta: Delta::new(1e-6).unwrap(), ..limit(8.0) };
        site.keeper = open(site.data.path(), other).unwrap();
        site.restart();
        site.charge(2);
        assert!(site.keeper.report().unwrap().unbounded);

        let mut site = Site::new(8.0);
        site.charge(1);
        assert!(!site.keeper.report().unwrap().unbounded);
        for round in [2, 3] {
            site.keeper.note_unprotected(RoundNumber(round), UnixMillis(2)).unwrap();
            site.restart();
        }
        let report = site.keeper.report().unwrap();
        assert!(report.unbounded && report.spent.get() == site.spent());
        let expected = plan().event.with_count(1);
        assert_eq!(site.keeper.newest_mechanism(), Some(expected));
    }

    #[test]
    fn a_budget_that_is_lost_old_or_damaged_stops_the_site() {
        let mut site = Site::new(8.0);
        let path = site.data.path().join("privacy/pneumonia.budget");
        site.charge(1);
        let old = fs::read(&path).unwrap();
        site.charge(2);
        let now = fs::read(&path).unwrap();
        let error = |site: &Site| format!("{:#}", open(site.data.path(), limit(8.0)).unwrap_err());
        fs::write(&path, &old).unwrap();
        assert!(error(&site).contains("old copy"));
        fs::write(&path, &now[..now.len() - 1]).unwrap();
        assert!(error(&site).contains("privacy budget"));
        fs::remove_file(&path).unwrap();
        assert!(error(&site).contains("restore it from a backup"));
        fs::write(&path, &now).unwrap();
        site.restart();
        // The whole folder lost, or put back from an old copy: the second checkpoint knows better.
        let near = site.data.path().join(FILES[1]);
        let newest = fs::read(&near).unwrap();
        fs::remove_dir_all(site.data.path().join("privacy")).unwrap();
        let reason = error(&site);
        assert!(reason.contains("restore it from a backup") && reason.contains(FILES[2]), "{reason}");
        fs::write(&path, &old).unwrap();
        assert!(error(&site).contains("old copy"));
        fs::write(&near, newest).unwrap();
        assert!(error(&site).contains("old copy"));
        fs::write(&path, &now).unwrap();
        site.restart();
        // A log that got further than the checkpoint is the newer one.
        let (site_name, task) = (SiteId::new("south").unwrap(), TaskId::new("pneumonia").unwrap());
        assert!(BudgetKeeper::open(site.data.path(), &site_name, &task, limit(8.0), UnixMillis(1)).is_err());
    }
}
