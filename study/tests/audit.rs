//! The audit finds leaks that are there, and none where there is none.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use medinet_model::{ClassBalance, ModelParameters, NetworkManifest};
use medinet_study::audit::{
    Answers, Attack, AuditStudy, Effort, Evidence, Likeness, Pool, Recipe, Variant, attack, class_of_one,
    html, invert, text,
};
use medinet_study::setup::{Setup, Source};
use medinet_study::{Dataset, Images};
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn mnist() -> Dataset {
    Source::PneumoniaMnist.read(&repository()).unwrap()
}

fn recipe(images: &Images, rounds: u32, local_epochs: u32) -> Recipe {
    Recipe {
        network: Setup::network(images.shape(), 8),
        sites: 1,
        rounds,
        local_epochs,
        learning_rate: 0.05,
        private_learning_rate: 0.2,
        private_clip_norm: 1.0,
        private_batch: 64.0,
        delta: 1e-5,
    }
}

/// What a model trained by the recipe says of a pool.
fn answers(recipe: &Recipe, pool: &Pool, flags: &[bool], test: &Images) -> Answers {
    let model = recipe.train(Variant::Control, pool.images_of(flags), test, 1, 1).unwrap().model;
    Answers::ask(&recipe.network, &model, &pool.images, 2).unwrap()
}

#[test]
fn both_attacks_catch_a_model_that_knows_its_images_by_heart_and_not_one_that_never_saw_them() {
    let whole = mnist();
    let few = whole.head(160, 0).training;
    let recipe = recipe(&few, 5, 2);
    let pool = Pool::by_coin(few, 6, 1).unwrap();
    let shadows: Vec<Answers> =
        pool.shadows.iter().map(|flags| answers(&recipe, &pool, flags, &whole.test)).collect();
    let overfitted = answers(&recipe, &pool, &pool.member, &whole.test);
    for outcome in attack(&pool, &overfitted, &shadows, 1e-5, 1).unwrap() {
        let auc = outcome.figures.auc;
        assert!(auc.low > 0.55, "{:?}: {auc:?}", outcome.attack);
        if outcome.attack == Attack::Lira {
            assert!(auc.low > 0.6, "{auc:?}");
        }
    }
    // Trained as long on other images of the same kind.
    let elsewhere = whole.validation.select(&(0..80).collect::<Vec<_>>());
    let model = recipe.train(Variant::Control, elsewhere, &whole.test, 1, 1).unwrap().model;
    let stranger = Answers::ask(&recipe.network, &model, &pool.images, 2).unwrap();
    for outcome in attack(&pool, &stranger, &shadows, 1e-5, 1).unwrap() {
        let figures = outcome.figures;
        assert!(figures.auc.low < 0.5 && figures.auc.high > 0.5, "{:?}: {:?}", outcome.attack, figures.auc);
        assert_eq!(figures.epsilon.one_run, Some(0.0));
    }
}

#[test]
fn an_image_comes_back_from_the_raw_update_of_a_step_on_it() {
    let whole = mnist();
    let one = whole.training.select(&[5]);
    let mut recipe = recipe(&one, 1, 1);
    recipe.network = Setup::network(one.shape(), 16);
    let base = ModelParameters::initial(&recipe.network, 1).unwrap();
    let update = recipe.updates(std::slice::from_ref(&one), &base, 1, 1).unwrap().remove(0).delta;
    // The mean image of each class, which costs no attack.
    let typical: Vec<Vec<f32>> = (0..2)
        .map(|class| {
            let mut mean = vec![0.0f32; 784];
            for other in (100..1000).filter(|other| whole.training.classes()[*other] == class) {
                mean.iter_mut().zip(whole.training.image(other)).for_each(|(mean, value)| *mean += value);
            }
            medinet_study::audit::normalised(&mut mean);
            mean
        })
        .collect();
    let evidence = Evidence { network: &recipe.network, base: &base, update: &update, typical: &typical };
    let class = class_of_one(&evidence).unwrap();
    assert_eq!(class, one.classes()[0]);
    let effort = Effort { steps: 1200, ..Effort::FULL };
    let found = invert(&evidence, &[class], &effort, 1).unwrap();
    let shape = one.shape();
    let likeness = Likeness::of(&found.images[0], one.image(0), shape);
    let baseline = Likeness::of(&typical[class], one.image(0), shape);
    assert!(
        likeness.correlation > baseline.correlation + 0.1 && likeness.psnr > baseline.psnr + 1.5,
        "{likeness:?} {baseline:?}"
    );
    // The same search repeats bit by bit.
    let short = Effort { steps: 3, ..effort };
    assert_eq!(
        invert(&evidence, &[class], &short, 1).unwrap(),
        invert(&evidence, &[class], &short, 1).unwrap()
    );
}

#[test]
fn private_training_costs_what_it_says_over_all_rounds() {
    let images = mnist().head(60, 0).training;
    let recipe = recipe(&images, 6, 1);
    let plan = recipe.training(Variant::Private { epsilon: 4.0 }, 700).unwrap().plan_of(1);
    plan.check().unwrap();
    assert_eq!((plan.local_epochs, plan.class_balance), (1, ClassBalance::None));
    let round = plan.privacy.unwrap();
    let mut all = medinet_privacy::Composition::new();
    for _ in 0..6 {
        all.add(&round.event());
    }
    let cost = all.epsilon(round.delta, medinet_privacy::Accounting::Tight);
    assert!((3.8..=4.0).contains(&cost), "{cost}");
    assert!(recipe.training(Variant::Private { epsilon: -1.0 }, 700).is_err());
}

#[test]
fn the_quick_audit_reports_every_part() {
    let study = AuditStudy {
        head: Some(80),
        rounds: 1,
        private: vec![8.0],
        inversion: Some(Effort { steps: 3, ..Effort::QUICK }),
        ..AuditStudy::quick()
    };
    let outcome = study.run(&repository(), 2, &|_| {}).unwrap();
    assert_eq!((outcome.membership.len(), outcome.inversion.len()), (2, 8));
    assert_eq!(outcome.verdicts.len(), 2 * 2 + 8);
    let page = html(&outcome).unwrap();
    for part in
        ["LiRA, private training, epsilon 8", "aggregator's view of", "data:image/png;base64,", "<svg"]
    {
        assert!(page.contains(part), "{part}");
    }
    // A page that needs nothing else: no address but the name of SVG's namespace, and all that is loaded is within.
    let addresses = page.match_indices("http").map(|(at, _)| &page[at..]);
    let elsewhere: Vec<&str> =
        addresses.filter(|text| !text.starts_with("http://www.w3.org/2000/svg")).collect();
    assert!(
        elsewhere.is_empty(),
        "{:?}",
        elsewhere.iter().map(|text| text.chars().take(40).collect()).collect::<Vec<String>>()
    );
    let loaded = page.split("src=\"").skip(1).chain(page.split("href=\"").skip(1));
    assert!(loaded.clone().count() >= 8 && loaded.clone().all(|text| text.starts_with("data:")));
    let shown = text(&outcome);
    assert!(shown.contains("one site's raw update, of a step on 1 image, first round"), "{shown}");
    // Everything but private training repeats.
    let plain = AuditStudy { private: Vec::new(), ..study };
    let (first, again) =
        (plain.run(&repository(), 2, &|_| {}).unwrap(), plain.run(&repository(), 1, &|_| {}).unwrap());
    assert_eq!(first, again);
    assert_eq!(first.membership[0], outcome.membership[0]);
    assert!(AuditStudy { shadows: 1, ..plain }.run(&repository(), 1, &|_| {}).is_err());
}

#[test]
fn a_released_model_of_another_shape_is_named() {
    // The network's input and the images must agree before anything is trained.
    let images = mnist().head(8, 0).training;
    let network: NetworkManifest = Setup::network(images.shape(), 8);
    let smaller = Images::new(
        medinet_model::InputShape { channels: 1, height: 14, width: 14 },
        vec![0.0; 196],
        vec![0],
        vec![0],
    )
    .unwrap();
    assert!(images.followed_by(&smaller).is_err());
    let model = ModelParameters::initial(&network, 1).unwrap();
    assert!(Answers::ask(&network, &model, &images, 0).is_err());
    assert!(Answers::ask(&network, &model, &images, 6).is_err());
}
