//! The demo's report: one HTML file that needs nothing else, neither network nor script.

mod plots;

use crate::demo::{
    Outcome, device_notes, device_rows, ledger_line, loss_line, megabytes, model_rows, phase_rows,
    traffic_rows,
};
use anyhow::Result;
use std::fmt::Write as _;

const STYLE: &str = "
:root { color-scheme: light dark; --page: #fff; --text: #1d2327; --soft: #5d676f; --line: #d5dadd; --card: #f6f7f8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16191c; --text: #e4e7e9; --soft: #9aa4ab; --line: #363c41; --card: #1e2226; }
}
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { max-width: 60rem; } .soft { color: var(--soft); } .verdict { font-size: 1.1rem; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: .4rem; } svg { width: 100%; height: auto; }
pre { overflow-x: auto; padding: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
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

fn figure(caption: &str, svg: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>\n{svg}\n</figure>\n", escaped(caption))
}

/// The page.
///
/// # Errors
/// When a plot cannot be drawn.
pub(crate) fn html(outcome: &Outcome) -> Result<String> {
    let plots = [
        figure("ROC curves", &plots::roc(outcome)?),
        figure("AUROC by model", &plots::auroc_by_model(outcome)?),
        figure("Reliability", &plots::reliability(outcome)?),
        figure("AUROC by round, on the hospitals' validation images", &plots::auroc_by_round(outcome)?),
        figure("Bytes by hospital", &plots::bytes_by_site(outcome)?),
    ];
    let summary = format!(
        "{} hospitals, {} rounds, seed {}; a network of {} parameters. Every figure in the first table is of {} images of \
         patients that no hospital trained on, taken on known and unknown scanners. Hospitals alone and the pooled model \
         were trained with as many passes over the data.",
        outcome.traffic.len(),
        outcome.rounds,
        outcome.seed,
        outcome.parameters,
        outcome.images,
    );
    let bytes = format!(
        "Sent and received hold every message of the protocol, and received also the first and the released model, which come whole; \
         those between come as deltas. Sending float32 parameters in each round would take {} in \
         each direction for each hospital.",
        megabytes(outcome.naive_bytes()),
    );
    let notes: String = device_notes(&outcome.compute)
        .iter()
        .map(|note| format!("<p class=\"soft\">{}</p>\n", escaped(note)))
        .collect();
    let lost = loss_line(outcome).map(|line| format!("<p>{}</p>\n", escaped(&line))).unwrap_or_default();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>MediNet demo</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>MediNet demo</h1>\n\
         <p class=\"soft\">{}</p>\n<p class=\"verdict\">{}</p>\n\
         {lost}<h2>Models on the common test set</h2>\n{}\
         <p class=\"soft\">95% intervals: DeLong for AUROC, Wilson for accuracy. p: DeLong's paired test against the \
         federation. Calibration error: expected calibration error with 15 bins.</p>\n\
         <h2>Plots</h2>\n<div class=\"plots\">\n{}</div>\n\
         <h2>Traffic</h2>\n{}<p class=\"soft\">{}</p>\n\
         <h2>Devices</h2>\n{}{notes}\
         <h2>Time</h2>\n{}\
         <h2>Ledger</h2>\n<p>{}</p>\n<pre>{}</pre>\n\
         <p class=\"soft\">Pictures: Kermany et al. 2018, CC BY 4.0. People, numbers and hospitals are made up. A demo \
         on public pictures says nothing on clinical use.</p>\n</body>\n</html>\n",
        escaped(&summary),
        escaped(&outcome.verdict()),
        table(&model_rows(outcome)),
        plots.concat(),
        table(&traffic_rows(outcome)),
        escaped(&bytes),
        table(&device_rows(&outcome.compute)),
        table(&phase_rows(outcome)),
        escaped(&ledger_line(outcome)),
        escaped(&outcome.ledger.text),
    ))
}
