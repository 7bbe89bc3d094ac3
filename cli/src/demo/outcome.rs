//! What a demo gave, measured on images that no hospital trained on.

use super::loss::LostSite;
use anyhow::{Context as _, Result};
use medinet_metrics::{
    CALIBRATION_BINS, DelongTest, Interval, Predictions, ReliabilityBin, RocPoint, auroc_interval,
    delong_test, roc_curve, wilson_interval,
};
use medinet_types::ModelDigest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The name under which the released model is scored.
pub(crate) const FEDERATION: &str = "federation";
/// The name under which the model of all hospitals' data in one place is scored.
pub(crate) const POOLED: &str = "pooled";

/// The name under which the model of one hospital's data alone is scored.
pub(crate) fn alone(index: usize) -> String {
    format!("alone-{}", index + 1)
}

/// Everything that table and report show.
pub(crate) struct Outcome {
    /// Training rounds.
    pub(crate) rounds: u32,
    /// The seed of studies and training.
    pub(crate) seed: u64,
    /// The released model.
    pub(crate) digest: ModelDigest,
    /// Images in the common test set.
    pub(crate) images: usize,
    /// The federation first, then each hospital alone, then pooled.
    pub(crate) models: Vec<ModelResult>,
    /// What each hospital sent and received.
    pub(crate) traffic: Vec<Traffic>,
    /// What each hospital computed on.
    pub(crate) compute: Vec<SiteCompute>,
    /// Coordinates of the network.
    pub(crate) parameters: usize,
    /// Median AUROC that the hospitals reported, by the number of rounds the model was trained.
    pub(crate) auroc_by_round: Vec<(u32, f64)>,
    /// The hospital that was lost on purpose, if one was.
    pub(crate) lost: Option<LostSite>,
    /// How long each phase took, in order.
    pub(crate) phases: Vec<(&'static str, Duration)>,
    /// What verification of the ledger found.
    pub(crate) ledger: LedgerCheck,
}

/// One model on the common test set.
pub(crate) struct ModelResult {
    /// For people.
    pub(crate) label: String,
    /// Whether it is one hospital's own.
    pub(crate) alone: bool,
    /// AUROC with DeLong's interval.
    pub(crate) auroc: Interval,
    /// Accuracy with Wilson's interval.
    pub(crate) accuracy: Interval,
    /// Expected calibration error, 0 to 1.
    pub(crate) calibration_error: f64,
    /// The ROC curve.
    pub(crate) roc: Vec<RocPoint>,
    /// The reliability curve.
    pub(crate) reliability: Vec<ReliabilityBin>,
    /// The federation's AUROC minus this model's; `None` for the federation itself.
    pub(crate) federation_against: Option<DelongTest>,
}

/// What one hospital's appliance sent and received, all messages of the protocol included.
pub(crate) struct Traffic {
    /// The hospital.
    pub(crate) site: String,
    /// Bytes sent.
    pub(crate) sent: u64,
    /// Bytes received.
    pub(crate) received: u64,
    /// Instances taken from the PACS.
    pub(crate) instances: u64,
    /// Objects in quarantine.
    pub(crate) quarantined: u64,
}

/// What one hospital's appliance computed on.
pub(crate) struct SiteCompute {
    /// The hospital.
    pub(crate) site: String,
    /// The device as it names itself.
    pub(crate) device: String,
    /// Why it is the CPU although a GPU was wanted, and what to do about it.
    pub(crate) note: Option<String>,
}

/// What verification of the ledger found.
pub(crate) struct LedgerCheck {
    /// Whether all holds.
    pub(crate) verified: bool,
    /// Entries on the ledger.
    pub(crate) entries: u64,
    /// The whole finding, for people.
    pub(crate) text: String,
}

/// What `medinet-appliance lab score` writes.
#[derive(Deserialize)]
struct Scores {
    classes: Vec<String>,
    labels: Vec<usize>,
    models: BTreeMap<String, Vec<Vec<f32>>>,
}

/// Measures every model of a score file; gives them with the number of images.
pub(crate) fn measure(scores: &Path, sites: &[String]) -> Result<(Vec<ModelResult>, usize)> {
    let bytes = std::fs::read(scores).with_context(|| format!("cannot read {}", scores.display()))?;
    let scores: Scores =
        serde_json::from_slice(&bytes).with_context(|| format!("in {}", scores.display()))?;
    let federation = scores_of(&scores, FEDERATION)?;
    let mut models = vec![measured(&scores, FEDERATION, "federation", false, None)?];
    for (index, site) in sites.iter().enumerate() {
        models.push(measured(&scores, &alone(index), &format!("{site} alone"), true, Some(&federation))?);
    }
    models.push(measured(&scores, POOLED, "all data pooled", false, Some(&federation))?);
    Ok((models, scores.labels.len()))
}

fn predictions(scores: &Scores, name: &str) -> Result<Predictions> {
    let rows = scores.models.get(name).with_context(|| format!("no scores of the model {name}"))?;
    // float32 sums may lie a rounding above 1.
    let flat = rows.iter().flatten().map(|&p| f64::from(p).clamp(0.0, 1.0)).collect();
    Predictions::from_probabilities(scores.classes.len(), flat, scores.labels.clone())
        .with_context(|| format!("the scores of the model {name}"))
}

/// The probability of the second class, which is the finding.
fn scores_of(scores: &Scores, name: &str) -> Result<Vec<f64>> {
    Ok(predictions(scores, name)?.scores_of(1)?)
}

fn measured(
    scores: &Scores,
    name: &str,
    label: &str,
    alone: bool,
    federation: Option<&[f64]>,
) -> Result<ModelResult> {
    let predictions = predictions(scores, name)?;
    let own = predictions.scores_of(1)?;
    let positive = predictions.is_class(1);
    Ok(ModelResult {
        label: label.to_owned(),
        alone,
        auroc: auroc_interval(&own, &positive)?,
        accuracy: wilson_interval(predictions.correct_count(), predictions.images() as u64)?,
        calibration_error: predictions.expected_calibration_error(CALIBRATION_BINS),
        roc: roc_curve(&own, &positive)?,
        reliability: predictions.reliability(CALIBRATION_BINS),
        federation_against: federation.map(|first| delong_test(first, &own, &positive)).transpose()?,
    })
}

impl Outcome {
    /// Bytes that a scheme which sends float32 parameters would carry in each direction for one hospital.
    pub(crate) fn naive_bytes(&self) -> u64 {
        4 * self.parameters as u64 * u64::from(self.rounds)
    }

    /// Whether the federation's AUROC is above that of every hospital alone.
    pub(crate) fn federation_beats_all(&self) -> bool {
        self.against_alone().all(|(_, test)| test.difference.estimate > 0.0)
    }

    fn against_alone(&self) -> impl Iterator<Item = (&ModelResult, &DelongTest)> {
        self.models
            .iter()
            .filter(|model| model.alone)
            .filter_map(|model| Some((model, model.federation_against.as_ref()?)))
    }

    /// The verdict in one or two sentences.
    pub(crate) fn verdict(&self) -> String {
        let all = self.against_alone().count();
        let clear = self
            .against_alone()
            .filter(|(_, test)| test.difference.estimate > 0.0 && test.p_value < 0.05)
            .count();
        if self.federation_beats_all() {
            return format!(
                "The federation beats every hospital alone on the common test set (AUROC); against {clear} of {all} \
                 the difference is significant (DeLong's paired test, p < 0.05)."
            );
        }
        let not: Vec<&str> = self
            .against_alone()
            .filter(|(_, test)| test.difference.estimate <= 0.0)
            .map(|(model, _)| model.label.as_str())
            .collect();
        format!(
            "The federation does NOT beat every hospital alone on the common test set (AUROC): not {}. Against {clear} \
             of {all} it is significantly better (DeLong's paired test, p < 0.05).",
            not.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(federation: &[f32], alone_1: &[f32]) -> Result<Outcome> {
        let rows = |scores: &[f32]| -> Vec<Vec<f32>> { scores.iter().map(|&p| vec![1.0 - p, p]).collect() };
        let scores = serde_json::json!({
            "classes": ["normal", "pneumonia"],
            "labels": [0, 0, 0, 1, 1, 1],
            "models": { "federation": rows(federation), "alone-1": rows(alone_1), "pooled": rows(federation) },
        });
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("scores.json");
        std::fs::write(&path, scores.to_string())?;
        let (models, images) = measure(&path, &["hospital-1".to_owned()])?;
        Ok(Outcome {
            rounds: 6,
            seed: 7,
            digest: ModelDigest(medinet_types::Digest::of(b"model")),
            images,
            models,
            traffic: Vec::new(),
            compute: Vec::new(),
            parameters: 1000,
            auroc_by_round: Vec::new(),
            lost: None,
            phases: Vec::new(),
            ledger: LedgerCheck { verified: true, entries: 1, text: String::new() },
        })
    }

    const GOOD: [f32; 6] = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9];
    const POOR: [f32; 6] = [0.1, 0.8, 0.6, 0.7, 0.3, 0.9];

    #[test]
    fn a_better_federation_is_said_to_win_and_a_worse_one_is_not() {
        let wins = outcome(&GOOD, &POOR).unwrap();
        assert_eq!(wins.images, 6);
        assert!((wins.models[0].auroc.estimate - 1.0).abs() < 1e-12);
        assert!((wins.models[1].auroc.estimate - 6.0 / 9.0).abs() < 1e-12);
        assert!(wins.federation_beats_all());
        assert!(wins.verdict().contains("beats every hospital"));
        let loses = outcome(&POOR, &GOOD).unwrap();
        assert!(!loses.federation_beats_all());
        assert!(loses.verdict().contains("does NOT beat") && loses.verdict().contains("hospital-1 alone"));
    }

    #[test]
    fn a_tie_is_no_win() {
        assert!(!outcome(&GOOD, &GOOD).unwrap().federation_beats_all());
    }

    #[test]
    fn float32_parameters_are_four_bytes_each() {
        assert_eq!(outcome(&GOOD, &POOR).unwrap().naive_bytes(), 24_000);
    }

    #[test]
    fn a_missing_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.json");
        std::fs::write(&path, r#"{"classes":["a","b"],"labels":[0,1],"models":{}}"#).unwrap();
        let error = measure(&path, &[]).err().unwrap();
        assert!(error.to_string().contains("federation"), "{error}");
    }
}
