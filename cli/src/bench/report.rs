//! What was measured, as a plain table and as JSON.

use super::machine::Machine;
use serde::Serialize;
use std::fmt::Write as _;

/// The middle of several measurements and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// The median.
    pub(crate) median: f64,
    /// The lowest.
    pub(crate) lowest: f64,
    /// The highest.
    pub(crate) highest: f64,
    /// How many there are.
    pub(crate) count: usize,
}

impl Figure {
    /// Of measurements in any order; `None` of none.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, lowest, highest, count: sorted.len() })
    }

    /// Of one measurement.
    pub(crate) fn one(value: f64) -> Self {
        Self { median: value, lowest: value, highest: value, count: 1 }
    }

    /// In another unit.
    pub(crate) fn times(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            lowest: self.lowest * factor,
            highest: self.highest * factor,
            count: self.count,
        }
    }
}

/// In which direction a quantity is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// Times, bytes, errors.
    Lower,
    /// Rates.
    Higher,
}

/// One quantity on either side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Of what: a network, a codec, a cohort.
    pub(crate) subject: String,
    /// What was measured.
    pub(crate) quantity: String,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// In which direction it is good.
    pub(crate) better: Better,
    /// Ours.
    pub(crate) ours: Option<Figure>,
    /// The peer's.
    pub(crate) peer: Option<Figure>,
    /// By how much ours is better, from the medians: 2 is twice as good, 0.5 half as good.
    pub(crate) ratio: Option<f64>,
}

impl Row {
    /// Works out the ratio.
    pub(crate) fn new(
        subject: &str,
        quantity: &str,
        unit: &'static str,
        better: Better,
        ours: Option<Figure>,
        peer: Option<Figure>,
    ) -> Self {
        let ratio = match (ours, peer) {
            (Some(ours), Some(peer)) if ours.median > 0.0 && peer.median > 0.0 => Some(match better {
                Better::Lower => peer.median / ours.median,
                Better::Higher => ours.median / peer.median,
            }),
            _ => None,
        };
        Self { subject: subject.to_owned(), quantity: quantity.to_owned(), unit, better, ours, peer, ratio }
    }
}

/// The result of one bench.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    /// The bench.
    pub(crate) bench: &'static str,
    /// What is measured, and how.
    pub(crate) title: String,
    /// Our side.
    pub(crate) ours: String,
    /// The other side; `None` when it is not here.
    pub(crate) peer: Option<String>,
    /// The quantities.
    pub(crate) rows: Vec<Row>,
    /// What a reader must know beside the figures.
    pub(crate) notes: Vec<String>,
}

/// What `--json` writes.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a> {
    /// The command, as it was given.
    pub(crate) command: String,
    /// On what it ran.
    pub(crate) machine: &'a Machine,
    /// Its results.
    pub(crate) reports: &'a [Report],
}

impl Report {
    /// The table.
    pub(crate) fn text(&self) -> String {
        let alone = if self.peer.is_none() { " (ours alone)" } else { "" };
        let mut text = format!("\n{}{alone}\n\n", self.title);
        let peer = self.peer.as_deref().unwrap_or("-");
        let mut rows = vec![["", "", self.ours.as_str(), peer, "ratio"].map(str::to_owned)];
        let mut subject = "";
        for row in &self.rows {
            // A subject stands where it begins.
            let shown = if row.subject == subject { "" } else { row.subject.as_str() };
            subject = &row.subject;
            let cell = |figure: Option<Figure>| match figure {
                Some(figure) => format!("{} {}", number(figure.median), row.unit).trim_end().to_owned(),
                None => "-".to_owned(),
            };
            rows.push([
                shown.to_owned(),
                row.quantity.clone(),
                cell(row.ours),
                cell(row.peer),
                row.ratio.map_or_else(String::new, number),
            ]);
        }
        text.push_str(&aligned(&rows));
        if self.rows.iter().any(|row| row.ratio.is_some()) {
            text.push_str("ratio: how many times better ours is; below 1 it is worse\n");
        }
        for note in &self.notes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{note}");
        }
        text
    }
}

/// About three significant digits.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if size >= 100.0 {
        thousands(value)
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else if size >= 0.1 {
        format!("{value:.3}")
    } else if size >= 0.001 {
        format!("{value:.5}")
    } else {
        format!("{value:.1e}")
    }
}

/// A whole number in groups of three digits.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

/// Columns side by side, the first two flush left, the others flush right, a rule under the heading.
fn aligned(rows: &[[String; 5]]) -> String {
    let mut widths = [0; 5];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing to a string cannot fail.
            let _ = if column < 2 {
                write!(line, "{gap}{cell:<width$}")
            } else {
                write!(line, "{gap}{cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if number == 0 {
            text.push_str(&"-".repeat(widths.iter().sum::<usize>() + 8));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let figure = Figure::of(&[5.0, 1.0, 3.0]).expect("three");
        assert_eq!((figure.median, figure.lowest, figure.highest, figure.count), (3.0, 1.0, 5.0, 3));
        assert_eq!(Figure::of(&[4.0, 1.0, 2.0, 3.0]).expect("four").median, 2.5);
        assert_eq!(Figure::of(&[]), None);
        assert_eq!(Figure::one(2.0).times(1e3).median, 2000.0);
    }

    #[test]
    fn a_ratio_above_one_is_good_in_both_directions() {
        let row = |better, ours, peer| {
            Row::new("", "", "", better, Some(Figure::one(ours)), Some(Figure::one(peer))).ratio
        };
        assert_eq!(row(Better::Lower, 2.0, 4.0), Some(2.0));
        assert_eq!(row(Better::Higher, 2.0, 4.0), Some(0.5));
        assert_eq!(row(Better::Lower, 0.0, 4.0), None);
        assert_eq!(Row::new("", "", "", Better::Lower, Some(Figure::one(1.0)), None).ratio, None);
    }

    #[test]
    fn numbers_read_well() {
        for (value, text) in [
            (0.0, "0"),
            (1_234_567.0, "1,234,567"),
            (999.6, "1,000"),
            (-1234.0, "-1,234"),
            (56.78, "56.8"),
            (5.678, "5.68"),
            (0.5678, "0.568"),
            (0.012_345, "0.01235"),
            (0.000_012_3, "1.2e-5"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    fn report(peer: Option<&str>) -> Report {
        let figure = |value: f64| Some(Figure::one(value));
        let theirs = |value: f64| peer.and(figure(value));
        Report {
            bench: "test",
            title: "one thread".to_owned(),
            ours: "tract".to_owned(),
            peer: peer.map(str::to_owned),
            rows: vec![
                Row::new("small", "latency", "ms", Better::Lower, figure(2.0), theirs(1.0)),
                Row::new("small", "memory", "MB", Better::Lower, figure(30.0), theirs(120.0)),
                Row::new("large", "latency", "ms", Better::Lower, figure(2000.0), theirs(1500.0)),
            ],
            notes: vec!["a note".to_owned()],
        }
    }

    #[test]
    fn a_table_lines_up() {
        assert_eq!(
            report(Some("other 1.0")).text(),
            "\none thread\n\n\
             \x20                  tract  other 1.0  ratio\n\
             ------------------------------------------\n\
             small  latency   2.00 ms    1.00 ms  0.500\n\
             \x20      memory    30.0 MB     120 MB   4.00\n\
             large  latency  2,000 ms   1,500 ms  0.750\n\
             ratio: how many times better ours is; below 1 it is worse\na note\n"
        );
    }

    #[test]
    fn ours_alone_is_marked() {
        let text = report(None).text();
        assert!(text.starts_with("\none thread (ours alone)\n"), "{text}");
        assert!(text.contains("2,000 ms  -") && !text.contains("how many times"), "{text}");
    }

    #[test]
    fn json_holds_both_sides() {
        let machine = Machine::here();
        let reports = [report(Some("other 1.0")), report(None)];
        let document =
            Document { command: "medinet bench test".to_owned(), machine: &machine, reports: &reports };
        let json = serde_json::to_value(&document).expect("numbers and strings");
        assert_eq!(json["reports"][0]["rows"][1]["ratio"], 4.0);
        assert_eq!(json["reports"][0]["rows"][1]["peer"]["median"], 120.0);
        assert!(json["reports"][1]["rows"][1]["peer"].is_null());
        assert_eq!(json["machine"]["cores"], machine.cores);
    }
}
