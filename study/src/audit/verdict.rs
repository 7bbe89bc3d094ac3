//! What an audit's figures say, in words. An audit can show a leak; it cannot show that there is none.

use super::scenes::{SceneOutcome, View};
use super::statistics::clopper_pearson;
use super::{Variant, VariantOutcome};
use serde::Serialize;

/// A statement on one attack.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What was attacked, and how.
    pub about: String,
    /// Whether the attack got something out; not doing so proves nothing.
    pub leak: bool,
    /// Whether a leak was planted, to see that the attack finds one.
    pub planted: bool,
    /// The statement.
    pub text: String,
}

/// A statement on each attack.
#[must_use]
pub fn verdicts(membership: &[VariantOutcome], inversion: &[SceneOutcome]) -> Vec<Verdict> {
    let of_models = membership.iter().flat_map(of_model);
    of_models.chain(inversion.iter().map(of_scene)).collect()
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent < 10.0 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

fn of_model(model: &VariantOutcome) -> Vec<Verdict> {
    let planted = model.variant == Variant::Control;
    model
        .attacks
        .iter()
        .map(|outcome| {
            let figures = &outcome.figures;
            let above_chance = figures.auc.low > 0.5;
            let sure = figures.found.iter().any(|found| found.share.low > found.allowed);
            let leak = above_chance || sure;
            let mut text = String::new();
            if let Some(found) = figures.found.last() {
                text.push_str(&format!(
                    "An attacker finds {} ({} to {}) of the members at {} false alarms, {} by chance",
                    percent(found.share.estimate),
                    percent(found.share.low),
                    percent(found.share.high),
                    percent(found.allowed),
                    percent(found.allowed),
                ));
            }
            let auc = figures.auc;
            text.push_str(&format!(
                "; a member scores above an other in {} of pairs ({} to {}), 50% by chance. ",
                percent(auc.estimate),
                percent(auc.low),
                percent(auc.high),
            ));
            text.push_str(match (leak, planted) {
                (true, true) => "The planted leak is found: the attack works.",
                (false, true) => "The planted leak is NOT found: nothing that this audit did not find counts.",
                (true, false) => "The audit shows a leak of membership.",
                (false, false) => {
                    "The audit shows no leak of membership; one within these intervals it would not have seen."
                }
            });
            if let Variant::Private { epsilon } = model.variant {
                let bound = figures.epsilon.by_rates.max(figures.epsilon.one_run.unwrap_or(0.0));
                text.push_str(&format!(" Shown: epsilon is at least {bound:.2}; promised: at most {epsilon}."));
                if bound > epsilon {
                    text.push_str(" THE PROMISE IS BROKEN: stop training and find out why.");
                }
            }
            Verdict { about: format!("{}, {}", outcome.attack.title(), model.title), leak, planted, text }
        })
        .collect()
}

fn of_scene(scene: &SceneOutcome) -> Verdict {
    let pictures = scene.pictures.len() as u64;
    let better = scene.better() as u64;
    let recognised = scene.recognised();
    // One picture of ten that points at its image among thousands is no chance.
    let known = scene.pictures.iter().any(|picture| picture.rank.is_some());
    let beyond_chance = clopper_pearson(better, pictures.max(1), 0.95).is_ok_and(|share| share.low > 0.5);
    let leak = if known {
        let by_chance = pictures as f64 / scene.candidates.max(1) as f64;
        (recognised > 0 && by_chance < 0.05) || beyond_chance
    } else {
        beyond_chance
    };
    let likeness = scene.mean(|picture| picture.likeness.correlation);
    let baseline = scene.mean(|picture| picture.baseline.correlation);
    let mut text = if known {
        format!(
            "{recognised} of {pictures} pictures point at the very image among {} (chance: 1 in {}); mean correlation with the image \
             {likeness:.2}, {baseline:.2} for the best picture that costs no attack, which {better} beat. ",
            scene.candidates, scene.candidates,
        )
    } else {
        format!(
            "{better} of {pictures} pictures are closer to an image of the round than to any of as many others (chance: half); \
             mean correlation with the closest {likeness:.2}, with the closest other {baseline:.2}. "
        )
    };
    text.push_str(match (leak, scene.scene.view) {
        (true, View::Update) => "The audit shows that such an update gives images away.",
        (true, View::SumOf(_)) => {
            "The audit shows that the aggregator's view gives something of images away."
        }
        (false, _) => "The audit shows no image; a better attack may.",
    });
    Verdict { about: format!("inversion, {}", scene.title), leak, planted: false, text }
}
