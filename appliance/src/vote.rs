//! The site's vote on a candidate: what the hospital's own policy makes of what it measured on its own images.

use crate::files;
use anyhow::{Context as _, Result};
use medinet_types::{ModelDigest, TaskId};
use medinet_wire::message::SiteMetrics;
use medinet_wire::vote::{Ballot, Hindrance, Objection, Quorum};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// When the site accepts a candidate. Measured against the best that it has accepted, and not against the last, so that many
/// small steps down are not allowed one by one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct VotePolicy {
    /// The least AUROC on the site's validation images, 0 to 1.
    pub(crate) min_auroc: f64,
    /// How far below the best AUROC that the site has accepted a candidate's may be, 0 to 1.
    pub(crate) max_auroc_drop: f64,
    /// The same for accuracy.
    pub(crate) max_accuracy_drop: f64,
    /// With fewer validation images the site abstains, at least 1.
    pub(crate) min_validation_images: u64,
}

impl Default for VotePolicy {
    fn default() -> Self {
        Self { min_auroc: 0.5, max_auroc_drop: 0.05, max_accuracy_drop: 0.1, min_validation_images: 20 }
    }
}

/// The votes that a released model needs before the site keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReleasePolicy {
    /// The least number of enrolled sites that accept it, at least 1.
    pub(crate) min_accepting: u32,
    /// Of 1,000 sites whose votes come with the model and that accept or reject, how many must accept, 0 to 1000.
    pub(crate) min_accept_permille: u16,
    /// Whether the site keeps a model that it has voted against itself.
    pub(crate) keep_rejected: bool,
}

impl Default for ReleasePolicy {
    fn default() -> Self {
        Self { min_accepting: 2, min_accept_permille: 500, keep_rejected: false }
    }
}

impl ReleasePolicy {
    pub(crate) fn quorum(self) -> Quorum {
        let Self { min_accepting, min_accept_permille, keep_rejected: _ } = self;
        Quorum { min_accepting, min_accept_permille }
    }
}

/// The best figures of candidates that the site has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Best {
    auroc: f64,
    accuracy: f64,
}

impl VotePolicy {
    /// The ballot on a candidate of which this was measured; `None` where the site has no validation images.
    pub(crate) fn ballot(&self, measured: Option<&SiteMetrics>, best: &Best) -> Ballot {
        let Some(measured) = measured else { return Ballot::Abstain(Hindrance::FewImages) };
        if measured.images < self.min_validation_images {
            return Ballot::Abstain(Hindrance::FewImages);
        }
        let Some(auroc) = measured.auroc else { return Ballot::Abstain(Hindrance::OneClass) };
        // Written so that a figure that is no number rejects.
        let object = |holds: bool, objection| if holds { None } else { Some(Ballot::Reject(objection)) };
        object(auroc >= self.min_auroc, Objection::LowAuroc)
            .or_else(|| object(auroc >= best.auroc - self.max_auroc_drop, Objection::AurocDrop))
            .or_else(|| {
                let least = best.accuracy - self.max_accuracy_drop;
                object(measured.accuracy >= least, Objection::AccuracyDrop)
            })
            .unwrap_or(Ballot::Accept)
    }
}

impl Best {
    /// Reads what [`Self::keep`] wrote; nothing was accepted yet where there is nothing.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    pub(crate) fn load(data_dir: &Path, task: &TaskId) -> Result<Self> {
        let path = path(data_dir, task);
        let Some(bytes) = files::read(&path)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "expected the best accepted figures in {}: move the file away to begin anew",
                path.display()
            )
        })
    }

    /// Remembers, on disk, what the site accepts: before it says so.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep(&self, data_dir: &Path, task: &TaskId, accepted: &SiteMetrics) -> Result<()> {
        let best = Self {
            auroc: accepted.auroc.map_or(self.auroc, |auroc| self.auroc.max(auroc)),
            accuracy: self.accuracy.max(accepted.accuracy),
        };
        if best != *self {
            std::fs::create_dir_all(data_dir.join("models"))?;
            files::replace(&path(data_dir, task), &serde_json::to_vec(&best)?)?;
        }
        Ok(())
    }
}

/// How many rejected models are remembered. A release is of a candidate that was voted on shortly before.
const REMEMBERED: usize = 1000;

/// Remembers, on disk, whether the site is against a model: before it says so. A later vote on the same model replaces an earlier one.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn remember(data_dir: &Path, task: &TaskId, model: ModelDigest, ballot: Ballot) -> Result<()> {
    let mut rejected = rejected(data_dir, task)?;
    let before = rejected.clone();
    rejected.retain(|other| *other != model);
    if matches!(ballot, Ballot::Reject(_)) {
        rejected.push(model);
    }
    rejected.drain(..rejected.len().saturating_sub(REMEMBERED));
    if rejected != before {
        std::fs::create_dir_all(data_dir.join("models"))?;
        files::replace(&rejected_path(data_dir, task), &serde_json::to_vec(&rejected)?)?;
    }
    Ok(())
}

/// Whether the site has voted against a model.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub(crate) fn has_rejected(data_dir: &Path, task: &TaskId, model: ModelDigest) -> Result<bool> {
    Ok(rejected(data_dir, task)?.contains(&model))
}

fn rejected(data_dir: &Path, task: &TaskId) -> Result<Vec<ModelDigest>> {
    let path = rejected_path(data_dir, task);
    let Some(bytes) = files::read(&path)? else { return Ok(Vec::new()) };
    serde_json::from_slice(&bytes).with_context(|| {
        format!("expected the rejected models in {}: move the file away to begin anew", path.display())
    })
}

fn path(data_dir: &Path, task: &TaskId) -> PathBuf {
    data_dir.join("models").join(format!("{task}.accepted.json"))
}

fn rejected_path(data_dir: &Path, task: &TaskId) -> PathBuf {
    data_dir.join("models").join(format!("{task}.rejected.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(images: u64, auroc: Option<f64>, accuracy: f64) -> SiteMetrics {
        SiteMetrics { images, auroc, accuracy, loss: 0.3, calibration_error: 0.1 }
    }

    #[test]
    fn each_clause_of_the_policy_says_why() {
        let policy = VotePolicy::default();
        let best = Best { auroc: 0.9, accuracy: 0.85 };
        let ballot = |measured: SiteMetrics| policy.ballot(Some(&measured), &best);
        assert_eq!(ballot(metrics(20, Some(0.86), 0.76)), Ballot::Accept);
        assert_eq!(ballot(metrics(20, Some(0.84), 0.85)), Ballot::Reject(Objection::AurocDrop));
        assert_eq!(ballot(metrics(20, Some(0.9), 0.74)), Ballot::Reject(Objection::AccuracyDrop));
        assert_eq!(ballot(metrics(20, Some(0.4), 0.9)), Ballot::Reject(Objection::LowAuroc));
        assert_eq!(ballot(metrics(20, Some(f64::NAN), 0.9)), Ballot::Reject(Objection::LowAuroc));
        assert_eq!(ballot(metrics(20, Some(0.9), f64::NAN)), Ballot::Reject(Objection::AccuracyDrop));
        assert_eq!(ballot(metrics(19, Some(0.9), 0.9)), Ballot::Abstain(Hindrance::FewImages));
        assert_eq!(ballot(metrics(20, None, 0.9)), Ballot::Abstain(Hindrance::OneClass));
        assert_eq!(policy.ballot(None, &best), Ballot::Abstain(Hindrance::FewImages));
        // The first candidate has nothing to be worse than.
        assert_eq!(policy.ballot(Some(&metrics(20, Some(0.6), 0.2)), &Best::default()), Ballot::Accept);
    }

    #[test]
    fn many_small_steps_down_are_not_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskId::new("pneumonia").unwrap();
        let policy = VotePolicy::default();
        let vote = |auroc| {
            let best = Best::load(folder.path(), &task).unwrap();
            let measured = metrics(50, Some(auroc), 0.8);
            let ballot = policy.ballot(Some(&measured), &best);
            if ballot == Ballot::Accept {
                best.keep(folder.path(), &task, &measured).unwrap();
            }
            ballot
        };
        assert_eq!([vote(0.9), vote(0.87), vote(0.9)], [Ballot::Accept; 3]);
        assert_eq!(vote(0.84), Ballot::Reject(Objection::AurocDrop));
        // Voting again, after a restart, gives the same.
        assert_eq!([vote(0.84), vote(0.87)], [Ballot::Reject(Objection::AurocDrop), Ballot::Accept]);
        std::fs::write(path(folder.path(), &task), b"{").unwrap();
        assert!(Best::load(folder.path(), &task).is_err());
    }

    #[test]
    fn what_was_rejected_is_remembered_until_it_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let task = TaskId::new("pneumonia").unwrap();
        let model = |n: usize| ModelDigest(medinet_types::Digest::of(&n.to_le_bytes()));
        let has = |n| has_rejected(folder.path(), &task, model(n)).unwrap();
        let vote = |n, ballot| remember(folder.path(), &task, model(n), ballot).unwrap();
        let against = Ballot::Reject(Objection::LowAuroc);
        assert!(!has(0));
        vote(0, against);
        vote(1, against);
        vote(2, Ballot::Abstain(Hindrance::FewImages));
        assert!(has(0) && has(1) && !has(2));
        vote(0, Ballot::Accept);
        assert!(!has(0) && has(1));
        for n in 3..=REMEMBERED + 3 {
            vote(n, against);
        }
        assert!(!has(1) && has(4) && has(REMEMBERED + 3), "the oldest is forgotten");
        std::fs::write(rejected_path(folder.path(), &task), b"{").unwrap();
        assert!(has_rejected(folder.path(), &task, model(0)).is_err());
    }
}
