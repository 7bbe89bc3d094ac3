//! The demo's result as text.

use super::outcome::{Outcome, SiteCompute};
use medinet_metrics::Interval;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// `0.912 (0.884 to 0.940)`.
pub(crate) fn interval(value: &Interval) -> String {
    format!("{:.3} ({:.3} to {:.3})", value.estimate, value.low, value.high)
}

/// Bytes in decimal megabytes.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// `3 min 12 s`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// A p-value as papers print it.
pub(crate) fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// The rows of the table of models, the heading first.
pub(crate) fn models(outcome: &Outcome) -> Vec<Vec<String>> {
    let heading = ["model", "AUROC (95%)", "accuracy (95%)", "calibration error", "federation minus it", "p"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for model in &outcome.models {
        let (difference, p) = match &model.federation_against {
            Some(test) => (format!("{:+.3}", test.difference.estimate), p_value(test.p_value)),
            None => (String::new(), String::new()),
        };
        rows.push(vec![
            model.label.clone(),
            interval(&model.auroc),
            interval(&model.accuracy),
            format!("{:.3}", model.calibration_error),
            difference,
            p,
        ]);
    }
    rows
}

/// The rows of the table of traffic, the heading first.
pub(crate) fn traffic(outcome: &Outcome) -> Vec<Vec<String>> {
    let heading = ["hospital", "instances", "quarantined", "sent", "received", "float32, each way"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for site in &outcome.traffic {
        rows.push(vec![
            site.site.clone(),
            site.instances.to_string(),
            site.quarantined.to_string(),
            megabytes(site.sent),
            megabytes(site.received),
            megabytes(outcome.naive_bytes()),
        ]);
    }
    rows
}

/// The rows of the table of devices, the heading first.
pub(crate) fn devices(compute: &[SiteCompute]) -> Vec<Vec<String>> {
    let mut rows = vec![vec!["hospital".to_owned(), "computed on".to_owned()]];
    rows.extend(compute.iter().map(|site| vec![site.site.clone(), site.device.clone()]));
    rows
}

/// What kept hospitals from a GPU that was asked for: one line for each reason; none where nothing did.
pub(crate) fn device_notes(compute: &[SiteCompute]) -> Vec<String> {
    let mut by_note: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for site in compute {
        if let Some(note) = &site.note {
            by_note.entry(note).or_default().push(&site.site);
        }
    }
    by_note.iter().map(|(note, sites)| format!("{}: {note}", sites.join(", "))).collect()
}

/// The rows of the table of times, the heading first.
pub(crate) fn phases(outcome: &Outcome) -> Vec<Vec<String>> {
    let mut rows = vec![vec!["phase".to_owned(), "time".to_owned()]];
    rows.extend(outcome.phases.iter().map(|(name, time)| vec![(*name).to_owned(), duration(*time)]));
    rows
}

/// One line on the hospital that was lost on purpose; none where none was.
pub(crate) fn loss(outcome: &Outcome) -> Option<String> {
    outcome.lost.as_ref().map(|lost| lost.text(outcome.traffic.len()))
}

/// One line on the ledger.
pub(crate) fn ledger(outcome: &Outcome) -> String {
    let word = if outcome.ledger.verified { "yes" } else { "NO" };
    format!("ledger verified: {word} ({} entries); released model {}", outcome.ledger.entries, outcome.digest)
}

/// Columns side by side, the first flush left, the others flush right, a rule under the heading.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string cannot fail.
            let _ =
                if column == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if number == 0 {
            let total = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
            text.push_str(&"-".repeat(total));
            text.push('\n');
        }
    }
    text
}

/// All of it.
pub(crate) fn text(outcome: &Outcome) -> String {
    let notes: String = device_notes(&outcome.compute).iter().map(|note| format!("{note}\n")).collect();
    let lost = loss(outcome).map(|line| format!("{line}\n")).unwrap_or_default();
    format!(
        "\n{} images of patients that no hospital trained on, seed {}, {} rounds, {} parameters\n\n{}\n{}\n{}{notes}\n{}\n{lost}{}\n\n{}\n",
        outcome.images,
        outcome.seed,
        outcome.rounds,
        outcome.parameters,
        aligned(&models(outcome)),
        aligned(&traffic(outcome)),
        aligned(&devices(&outcome.compute)),
        aligned(&phases(outcome)),
        ledger(outcome),
        outcome.verdict(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "bb"], ["cccc", "d"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows), "a     bb\n--------\ncccc   d\n");
    }

    #[test]
    fn a_gpu_that_is_missing_is_said_once_with_the_hospitals_that_miss_it() {
        let compute = [("a", None), ("b", Some("no GPU")), ("c", Some("no GPU"))].map(|(site, note)| {
            let device = if note.is_some() { "CPU (2 threads)" } else { "a GPU" }.to_owned();
            SiteCompute { site: site.to_owned(), device, note: note.map(str::to_owned) }
        });
        assert_eq!(device_notes(&compute), ["b, c: no GPU"]);
        let table = aligned(&devices(&compute));
        assert!(table.contains("\na                   a GPU\nb         CPU (2 threads)\n"), "{table}");
        assert!(device_notes(&compute[..1]).is_empty());
    }

    #[test]
    fn times_and_p_values_read_well() {
        assert_eq!(duration(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(p_value(0.000_1), "< 0.001");
        assert_eq!(p_value(0.042), "0.042");
        assert_eq!(megabytes(1_234_567), "1.23 MB");
    }
}
