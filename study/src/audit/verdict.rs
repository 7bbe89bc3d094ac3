//! What an audit's figures say, in words. An audit can show a leak; it cannot show that there is none.

use super::membership::Attack;
use super::scenes::{SceneOutcome, View};
use super::statistics::clopper_pearson;
use super::{Variant, VariantOutcome};
use serde::Serialize;

/// Fewer pictures than these cannot tell by a count of those that are closer. Of 6 all must be: where 9 of 10 are, that is seen in
/// one audit of two; of 5 or fewer not even all would be enough.
const FEW_PICTURES: usize = 10;

/// What is said beside the shadow models' attack on a model that was given.
const MISMATCH: &str = " Shadow models were trained by another recipe than the model (in one place, in float32, \
                        without augmentation or weight decay): a leak may be missed.";
/// What is said beside the control of such an attack.
const MATCH: &str = " The control's shadow models share its recipe and the released model's do not: \
                     this says nothing of what is missed there.";

/// What the test takes for granted of two folders.
const ORIGIN: &str = " That holds where both folders are drawn alike, by chance from the same patients: a difference of hospital, scanner or year \
                      between them looks like a leak.";

/// A statement on one attack.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// What was attacked, and how.
    pub about: String,
    /// Whether the attack got something out; not doing so proves nothing.
    pub leak: bool,
    /// Whether there were too few pictures for the attack to get anything out that chance does not explain.
    pub cannot_tell: bool,
    /// Whether a leak was planted, to see that the attack finds one.
    pub planted: bool,
    /// The statement.
    pub text: String,
}

/// A statement on each attack.
#[must_use]
pub fn verdicts(membership: &[VariantOutcome], inversion: &[SceneOutcome]) -> Vec<Verdict> {
    let released = membership.iter().any(|model| model.variant == Variant::Released);
    let of_models = membership.iter().flat_map(|model| of_model(model, released));
    of_models.chain(inversion.iter().map(of_scene)).collect()
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent < 10.0 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

/// What `p` is, for people.
pub(super) fn probability(p: f64) -> String {
    if p < 0.001 { "below 0.001".to_owned() } else { format!("{p:.3}") }
}

fn of_model(model: &VariantOutcome, released: bool) -> Vec<Verdict> {
    let planted = model.variant == Variant::Control;
    model
        .attacks
        .iter()
        .map(|outcome| {
            let figures = &outcome.figures;
            let leak = figures.shows_leak();
            let mut text = String::new();
            if let Some(found) = figures.found.last() {
                text.push_str(&format!(
                    "An attacker finds {} ({} to {}) of the members at {} false alarms, {} by chance",
                    percent(found.share.estimate),
                    percent(found.share.low),
                    percent(found.share.high),
                    percent(found.allowed),
                    percent(found.chance),
                ));
            }
            let auc = figures.auc;
            text.push_str(&format!(
                "; a member scores above an other in {} of pairs ({} to {}), 50% by chance. Chance alone would do as well with probability {}, \
                 corrected for {} tests. ",
                percent(auc.estimate),
                percent(auc.low),
                percent(auc.high),
                probability(figures.p),
                figures.found.len() + 1,
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
            if released && !planted {
                text.push_str(ORIGIN);
            }
            if released && outcome.attack == Attack::Lira {
                text.push_str(if planted { MATCH } else { MISMATCH });
            }
            let about = format!("{}, {}", outcome.attack.title(), model.title);
            Verdict { about, leak, cannot_tell: false, planted, text }
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
    // One picture that points at its image among thousands is enough: few pictures do for that test, not for the count.
    let cannot_tell = !known && !leak && scene.pictures.len() < FEW_PICTURES;
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
        (false, _) if cannot_tell => "So few pictures cannot tell whether the attack gets anything out.",
        (false, _) => "The audit shows no image; a better attack may.",
    });
    if matches!(scene.scene.view, View::SumOf(_)) && !leak && !cannot_tell {
        text.push_str(" The search takes the sum for a raw update: that is weak evidence.");
    }
    Verdict { about: format!("inversion, {}", scene.title), leak, cannot_tell, planted: false, text }
}

#[cfg(test)]
mod tests {
    use super::super::AttackOutcome;
    use super::super::pictures::Likeness;
    use super::super::scenes::{Base, Reconstruction, Scene};
    use super::super::statistics::{Assignment, AttackFigures};
    use super::*;

    /// An attack that scores the first `known` of 100 members above 100 others, and the rest in turn with them.
    fn model(variant: Variant, known: u32) -> VariantOutcome {
        let member: Vec<bool> = (0..200).map(|index| index % 2 == 0).collect();
        let score = |index: u32| {
            if index < 2 * known && index.is_multiple_of(2) { 1000 - index } else { 200 - index }
        };
        let scores: Vec<f64> = (0..200).map(|index| f64::from(score(index))).collect();
        let attacks = Attack::ALL.map(|attack| AttackOutcome {
            attack,
            figures: AttackFigures::of(&scores, &member, Assignment::Given, 1e-5, 1).unwrap(),
        });
        VariantOutcome {
            variant,
            title: variant.title(),
            test: None,
            members: None,
            others: None,
            attacks: attacks.into(),
            in_turn: Vec::new(),
        }
    }

    fn scene(better: usize, pictures: usize, rank: Option<usize>) -> SceneOutcome {
        let likeness = |correlation| Likeness { correlation, psnr: 0.0, ssim: 0.0 };
        let picture = |place: usize| Reconstruction {
            likeness: likeness(if place < better { 0.9 } else { 0.1 }),
            baseline: likeness(0.5),
            rank,
            picture: String::new(),
            truth: String::new(),
            other: String::new(),
        };
        let scene = Scene { view: View::SumOf(3), images: None, base: Base::Initial, times: 1 };
        SceneOutcome {
            scene,
            title: scene.title(),
            behind: 100,
            candidates: 1000,
            distance: 0.0,
            classes_right: None,
            pictures: (0..pictures).map(picture).collect(),
        }
    }

    #[test]
    fn an_attack_shows_a_leak_where_chance_does_not_explain_it() {
        let said = verdicts(&[model(Variant::Plain, 30), model(Variant::Plain, 0)], &[]);
        let leaks: Vec<bool> = said.iter().map(|verdict| verdict.leak).collect();
        assert_eq!(leaks, [true, true, false, false]);
        assert!(
            said[0].text.contains("with probability below 0.001, corrected for 3 tests"),
            "{}",
            said[0].text
        );
        assert!(said.iter().all(|verdict| !verdict.cannot_tell && !verdict.text.contains("another recipe")));
    }

    #[test]
    fn a_released_model_is_said_to_be_attacked_with_shadows_of_another_recipe() {
        let said = verdicts(&[model(Variant::Released, 0), model(Variant::Control, 30)], &[]);
        assert!(!said[0].text.contains("another recipe"), "the loss threshold has no shadows");
        assert!(said[..2].iter().all(|verdict| verdict.text.contains("drawn alike")));
        assert!(!said[3].text.contains("drawn alike"), "the control's members are chosen by coins");
        assert!(
            said[1].text.contains("another recipe than the model") && said[1].text.contains("may be missed")
        );
        assert!(said[3].planted && said[3].leak && said[3].text.contains("share its recipe"));
    }

    #[test]
    fn few_pictures_cannot_tell() {
        for (better, pictures, rank, leak, cannot_tell) in [
            (4, 6, None, false, true),
            (5, 6, None, false, true),
            (6, 6, None, true, false),
            (6, 12, None, false, false),
            (0, 6, Some(50), false, false),
            (0, 6, Some(1), true, false),
        ] {
            let said = verdicts(&[], &[scene(better, pictures, rank)]);
            assert_eq!((said[0].leak, said[0].cannot_tell), (leak, cannot_tell), "{}", said[0].text);
            assert_eq!(said[0].text.contains("cannot tell"), cannot_tell);
        }
    }
}
