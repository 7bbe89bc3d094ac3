//! The audit as a page that needs nothing else, neither network nor script, and as text.

use super::membership::Attack;
use super::scenes::{Reconstruction, SceneOutcome};
use super::statistics::{FALSE_ALARMS, FAMILY_WISE_ERROR};
use super::verdict::probability;
use super::{Outcome, VariantOutcome};
use crate::plots::{RocSeries, log_roc};
use anyhow::Result;
use medinet_metrics::Interval;
use std::fmt::Write as _;

/// As the demo's report, so that both read alike.
const STYLE: &str = "
:root { color-scheme: light dark; --page: #fff; --text: #1d2327; --soft: #5d676f; --line: #d5dadd; --card: #f6f7f8; --leak: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16191c; --text: #e4e7e9; --soft: #9aa4ab; --line: #363c41; --card: #1e2226; --leak: #ff8a80; }
}
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, dl { max-width: 60rem; } .soft { color: var(--soft); } .verdict { font-size: 1.1rem; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
td:first-child { white-space: normal; min-width: 11rem; }
dt { font-weight: 600; margin-top: .7rem; } dd { margin: 0; } .leak { color: var(--leak); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: .4rem; } svg { width: 100%; height: auto; }
.strip { display: flex; flex-wrap: wrap; gap: .6rem; } .one { font-size: .8rem; line-height: 1.3; width: 15.6rem; color: var(--soft); }
.one img { width: 5rem; height: 5rem; image-rendering: pixelated; display: inline-block; margin-right: .15rem; }
";

/// Pictures of a scene that the page shows.
const SHOWN: usize = 8;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn span(interval: &Interval) -> String {
    format!("{} ({} to {})", percent(interval.estimate), percent(interval.low), percent(interval.high))
}

fn three(interval: &Interval) -> String {
    format!("{:.3} ({:.3} to {:.3})", interval.estimate, interval.low, interval.high)
}

/// Rows of the table on membership; the first names the columns.
fn membership_rows(outcome: &Outcome) -> Vec<Vec<String>> {
    let mut rows = vec![
        [
            "model",
            "attack",
            "AUC",
            "over all models in turn",
            "found at 0.1% false alarms",
            "found at 1%",
            "by chance, p",
            "epsilon at least",
            "in one run",
            "AUROC on members",
            "on others",
            "on test images",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for model in &outcome.membership {
        for result in &model.attacks {
            let figures = &result.figures;
            let turn = model.in_turn.iter().find(|turn| turn.attack == result.attack);
            let mut row = vec![model.title.clone(), result.attack.title().to_owned(), three(&figures.auc)];
            row.push(
                turn.map_or_else(String::new, |t| format!("{:.3} ({:.3} to {:.3})", t.mean, t.low, t.high)),
            );
            row.extend(figures.found.iter().map(|found| span(&found.share)));
            row.push(probability(figures.p));
            row.push(format!("{:.2}", figures.epsilon.by_rates));
            row.push(figures.epsilon.one_run.map_or_else(String::new, |epsilon| format!("{epsilon:.2}")));
            for figures in [&model.members, &model.others, &model.test] {
                row.push(figures.as_ref().map_or_else(String::new, |f| format!("{:.3}", f.auroc.estimate)));
            }
            rows.push(row);
        }
    }
    rows
}

/// Rows of the table on inversion; the first names the columns.
fn inversion_rows(outcome: &Outcome) -> Vec<Vec<String>> {
    let mut rows = vec![
        [
            "what the attacker sees",
            "images behind it",
            "pictures",
            "correlation",
            "baseline's",
            "PSNR",
            "baseline's",
            "SSIM",
            "baseline's",
            "better than it",
            "point at the image",
            "class inferred",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for scene in &outcome.inversion {
        let mean = |of: &dyn Fn(&Reconstruction) -> f64| scene.mean(of);
        let pictures = scene.pictures.len();
        let known = scene.pictures.iter().any(|picture| picture.rank.is_some());
        rows.push(vec![
            scene.title.clone(),
            scene.behind.to_string(),
            pictures.to_string(),
            format!("{:.2}", mean(&|p| p.likeness.correlation)),
            format!("{:.2}", mean(&|p| p.baseline.correlation)),
            format!("{:.1} dB", mean(&|p| p.likeness.psnr)),
            format!("{:.1} dB", mean(&|p| p.baseline.psnr)),
            format!("{:.2}", mean(&|p| p.likeness.ssim)),
            format!("{:.2}", mean(&|p| p.baseline.ssim)),
            format!("{} of {pictures}", scene.better()),
            if known { format!("{} of {pictures}", scene.recognised()) } else { String::new() },
            scene.classes_right.map_or_else(String::new, |right| format!("{right} of {pictures}")),
        ]);
    }
    rows
}

fn table(rows: &[Vec<String>]) -> String {
    let mut html = String::from("<div class=\"scroll\"><table>\n");
    for (number, row) in rows.iter().enumerate() {
        let tag = if number == 0 { "th" } else { "td" };
        html.push_str("<tr>");
        for cell in row {
            // Writing to a string cannot fail.
            let _ = write!(html, "<{tag}>{}</{tag}>", escaped(cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
    html
}

/// One sentence over all statements.
#[must_use]
pub(crate) fn headline(outcome: &Outcome) -> String {
    let real: Vec<_> = outcome.verdicts.iter().filter(|verdict| !verdict.planted).collect();
    let leaks = real.iter().filter(|verdict| verdict.leak).count();
    let planted: Vec<_> = outcome.verdicts.iter().filter(|verdict| verdict.planted).collect();
    let missed = planted.iter().any(|verdict| !verdict.leak);
    let mut text = match leaks {
        0 => format!("None of {} attacks got anything out that chance would not give.", real.len()),
        leaks => format!("{leaks} of {} attacks got something out.", real.len()),
    };
    let cannot_tell = real.iter().filter(|verdict| verdict.cannot_tell).count();
    if cannot_tell > 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, " {cannot_tell} made too few pictures to tell.");
    }
    text.push_str(match (planted.is_empty(), missed) {
        (true, _) => "",
        (false, false) => " The leak that was planted as a control was found.",
        (false, true) => " A leak that was planted as a control was missed.",
    });
    if outcome.released.is_some() {
        text.push_str(
            " Shadow models were trained by another recipe than the model: a leak may be missed, also where the control's is found. And where \
             the two folders differ in origin, that difference passes for a leak.",
        );
    }
    text.push_str(" An audit shows what these attacks do, not what others could.");
    text
}

fn roc_plots(outcome: &Outcome) -> Result<String> {
    let mut html = String::new();
    for attack in Attack::ALL {
        let of = |model: &VariantOutcome| -> Option<RocSeries> {
            let result = model.attacks.iter().find(|result| result.attack == attack)?;
            let points = result.figures.roc.iter().map(|point| (point.false_alarms, point.found)).collect();
            Some((model.title.clone(), points))
        };
        let series: Vec<RocSeries> = outcome.membership.iter().filter_map(of).collect();
        let others = outcome.membership.first().and_then(|model| model.attacks.first());
        let low = others.map_or(1e-3, |result| 0.5 / result.figures.others.max(1) as f64);
        let svg = log_roc(&series, 10.0f64.powf(low.log10().floor()))?;
        let _ = write!(html, "<figure><figcaption>{}</figcaption>\n{svg}\n</figure>\n", attack.title());
    }
    Ok(html)
}

fn strip(scene: &SceneOutcome) -> String {
    let known = scene.pictures.iter().any(|picture| picture.rank.is_some());
    let order = if known {
        "image, attacker's picture, baseline"
    } else {
        "closest in the round, attacker's picture, closest outside"
    };
    let mut html = format!(
        "<figure><figcaption>{}</figcaption><p class=\"soft\">{order}</p><div class=\"strip\">",
        escaped(&scene.title)
    );
    for picture in scene.pictures.iter().take(SHOWN) {
        let rank = picture.rank.map_or_else(String::new, |rank| format!(", rank {rank}"));
        let _ = write!(
            html,
            "<div class=\"one\"><img alt=\"image\" src=\"{}\"><img alt=\"picture\" src=\"{}\"><img alt=\"baseline\" src=\"{}\"><br>\
             r {:.2} (baseline {:.2}){rank}</div>",
            picture.truth,
            picture.picture,
            picture.other,
            picture.likeness.correlation,
            picture.baseline.correlation,
        );
    }
    html.push_str("</div></figure>\n");
    html
}

fn summary(outcome: &Outcome) -> String {
    let mut text = format!(
        "{}: {} images; a score is of one {}. A network of {} parameters.",
        outcome.source, outcome.images, outcome.unit, outcome.parameters
    );
    if let Some(released) = &outcome.released {
        let _ = write!(text, " Attacked: the released model {released}.");
    }
    if let Some(study) = &outcome.study {
        if outcome.released.is_none() {
            let _ = write!(
                text,
                " Federations of {} sites, {} rounds, updates through the codec for secure aggregation; the last round's model stands for \
                 the promoted one. Each {} is in the training by a fair coin.",
                study.sites, study.rounds, outcome.unit
            );
        } else {
            let _ = write!(
                text,
                " Its recipe is not in the bundle: shadow models were trained in one place on half of the {}s (rounds: {}; passes in \
                 each: {}), in float32, without augmentation or weight decay.",
                outcome.unit, study.rounds, study.local_epochs
            );
        }
        let _ = write!(
            text,
            " {} shadow models, {} queries an image, seed {}.",
            study.shadows, study.queries, study.seed
        );
    }
    text
}

/// The page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(outcome: &Outcome) -> Result<String> {
    let mut body = format!(
        "<h1>MediNet privacy audit</h1>\n<p class=\"soft\">{}</p>\n<p class=\"verdict\">{}</p>\n<dl>\n",
        escaped(&summary(outcome)),
        escaped(&headline(outcome)),
    );
    for verdict in &outcome.verdicts {
        let class = if verdict.leak && !verdict.planted { " class=\"leak\"" } else { "" };
        let _ =
            writeln!(body, "<dt{class}>{}</dt><dd>{}</dd>", escaped(&verdict.about), escaped(&verdict.text));
    }
    body.push_str("</dl>\n");
    if !outcome.membership.is_empty() {
        let _ = write!(
            body,
            "<h2>Membership: was this {} in the training?</h2>\n{}\
             <p class=\"soft\">AUC: how often a member scores above an other, with DeLong's 95% interval; 0.5 is chance. In turn: mean, lowest and \
             highest when each shadow model is attacked as if it were the one. Found: share of members above the threshold that so many others \
             are above, with a 95% interval that knows that the threshold is random too (negative binomial). p: how often chance does as well in the best of \
             an attack's {} tests (negative hypergeometric at each share of false alarms, rank sum for the AUC), times their number; a leak is said to be \
             shown where it is at most {:.0}%. That holds for each attack by itself, not for all of them. \
             Epsilon at least: what the error rates prove at 95%, the threshold chosen on one half and \
             measured on the other (Jagielski et al. 2020, Nasr et al. 2021); in one run: without taking {}s for independent trials (Steinke et al. \
             2023). Loss threshold: Yeom et al. 2018. LiRA: Carlini et al. 2022. AUROC: of the model \
             itself, for what it is made for; the data set's own test images may be harder than others of the pool.</p>\n<div class=\"plots\">\n{}</div>\n",
            outcome.unit,
            table(&membership_rows(outcome)),
            FALSE_ALARMS.len() + 1,
            100.0 * FAMILY_WISE_ERROR,
            outcome.unit,
            roc_plots(outcome)?,
        );
    }
    if !outcome.inversion.is_empty() {
        let strips: Vec<String> = outcome.inversion.iter().map(strip).collect();
        let _ = write!(
            body,
            "<h2>Inversion: pictures from updates</h2>\n{}\
             <p class=\"soft\">Images are looked for whose gradient points the way of what the attacker sees (Geiping et al. 2020). Means over the pictures. \
             Baseline: of the mean image of the class and a random one of it, the one more like the image; where hundreds of images are behind what is \
             seen, each picture is compared with the closest of them, and with the closest of as many that were not in the round. Point at the image: \
             among all images of the pool the true one is the most like the picture.</p>\n<div class=\"plots\">\n{}</div>\n",
            table(&inversion_rows(outcome)),
            strips.concat(),
        );
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>MediNet privacy audit</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    ))
}

/// The statements and tables for a terminal, as Markdown.
#[must_use]
pub fn text(outcome: &Outcome) -> String {
    let mut text = format!("{}\n\n{}\n\n", summary(outcome), headline(outcome));
    for verdict in &outcome.verdicts {
        let _ = writeln!(text, "- {}: {}", verdict.about, verdict.text);
    }
    for rows in [membership_rows(outcome), inversion_rows(outcome)] {
        let Some((first, rest)) = rows.split_first().filter(|(_, rest)| !rest.is_empty()) else { continue };
        let _ = write!(text, "\n| {} |\n|{}\n", first.join(" | "), " --- |".repeat(first.len()));
        for row in rest {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
    }
    text
}
