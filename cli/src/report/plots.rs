//! Plots as SVG text, in colours that read on a light and on a dark page.

use crate::demo::{ModelResult, Outcome};
use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

/// Axes, grid and text: legible on white and on near black.
const INK: RGBColor = RGBColor(128, 128, 128);
/// Colours that differ in lightness too (after Okabe and Ito 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(150, 150, 60),
];
const SIZE: (u32, u32) = (560, 420);
const FONT: &str = "sans-serif";

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

fn text(size: i32) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK)
}

/// Draws on a transparent page.
fn draw(
    size: (u32, u32),
    plot: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<()>,
) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        plot(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// One line of a plot.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
    marks: bool,
}

/// Lines over two axes; `diagonal` adds what chance or perfect calibration would give.
fn curves(
    x: (std::ops::Range<f64>, &str),
    y: (std::ops::Range<f64>, &str),
    curves: &[Curve],
    diagonal: bool,
) -> Result<String> {
    draw(SIZE, |area| {
        let low = x.0.start.max(y.0.start);
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(52)
            .build_cartesian_2d(x.0.clone(), y.0.clone())?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .x_labels(6)
            .y_labels(6)
            .x_desc(x.1)
            .y_desc(y.1)
            .label_style(text(13))
            .axis_desc_style(text(14))
            .draw()?;
        if diagonal {
            chart.draw_series(DashedLineSeries::new([(low, low), (1.0, 1.0)], 4, 4, INK.stroke_width(1)))?;
        }
        for (index, curve) in curves.iter().enumerate() {
            let tint = colour(index);
            // The federation, which comes first, is the one to look at.
            let width = if index == 0 { 3 } else { 2 };
            let series =
                chart.draw_series(LineSeries::new(curve.points.iter().copied(), tint.stroke_width(width)))?;
            series
                .label(curve.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], tint.stroke_width(3)));
            if curve.marks {
                chart.draw_series(curve.points.iter().map(|&point| Circle::new(point, 4, tint.filled())))?;
            }
        }
        if curves.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .label_font(text(13))
                .border_style(INK.mix(0.4))
                .margin(8)
                .draw()?;
        }
        Ok(())
    })
}

/// ROC curves of all models.
pub(super) fn roc(outcome: &Outcome) -> Result<String> {
    let lines: Vec<Curve> = outcome
        .models
        .iter()
        .map(|model| Curve {
            name: model.label.clone(),
            points: model.roc.iter().map(|p| (p.false_positive_rate, p.true_positive_rate)).collect(),
            marks: false,
        })
        .collect();
    curves((0.0..1.0, "1 - specificity"), (0.0..1.0, "sensitivity"), &lines, true)
}

/// Reliability curves of all models; bins without images are left out.
pub(super) fn reliability(outcome: &Outcome) -> Result<String> {
    let of = |model: &ModelResult| Curve {
        name: model.label.clone(),
        points: model
            .reliability
            .iter()
            .filter(|bin| bin.images > 0)
            .map(|bin| (bin.confidence, bin.accuracy))
            .collect(),
        marks: true,
    };
    let lines: Vec<Curve> = outcome.models.iter().map(of).collect();
    // With two classes the most probable one has at least one half.
    curves((0.5..1.0, "confidence"), (0.0..1.0, "fraction that is right"), &lines, true)
}

/// The AUROC that the hospitals reported, by rounds of training.
pub(super) fn auroc_by_round(outcome: &Outcome) -> Result<String> {
    let points: Vec<(f64, f64)> =
        outcome.auroc_by_round.iter().map(|&(round, auroc)| (f64::from(round), auroc)).collect();
    let low = points.iter().map(|point| point.1).fold(0.5, f64::min);
    let low = (low * 10.0).floor() / 10.0;
    let line = [Curve { name: "federation".to_owned(), points, marks: true }];
    let rounds = f64::from(outcome.rounds.max(1));
    curves((0.0..rounds, "rounds of training"), (low..1.0, "median AUROC at the hospitals"), &line, false)
}

/// Rows with a name each, the first on top.
fn rows(
    names: &[String],
    x: (std::ops::Range<f64>, &str),
    draw_row: impl Fn(usize) -> Vec<Mark>,
) -> Result<String> {
    let last = names.len().saturating_sub(1);
    let height = 80 + 34 * u32::try_from(names.len())?;
    draw((SIZE.0, height), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(24)
            .x_label_area_size(42)
            .y_label_area_size(150)
            .build_cartesian_2d(x.0.clone(), (0..last).into_segmented())?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .disable_y_mesh()
            .x_labels(6)
            .y_labels(names.len())
            .x_desc(x.1)
            .y_label_formatter(&|value| match value {
                SegmentValue::CenterOf(row) => {
                    names.get(last.saturating_sub(*row)).cloned().unwrap_or_default()
                }
                _ => String::new(),
            })
            .label_style(text(13))
            .axis_desc_style(text(14))
            .draw()?;
        for index in 0..names.len() {
            let row = last - index;
            let middle = SegmentValue::CenterOf(row);
            for mark in draw_row(index) {
                match mark {
                    Mark::Point { at, tint } => {
                        chart.draw_series([Circle::new((at, middle.clone()), 5, tint.filled())])?;
                    }
                    Mark::Span { from, to, tint } => {
                        let ends = vec![(from, middle.clone()), (to, middle.clone())];
                        chart.draw_series([PathElement::new(ends, tint.stroke_width(3))])?;
                    }
                    Mark::Bar { to, tint } => {
                        let (below, above) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
                        let mut bar = Rectangle::new([(0.0, below), (to, above)], tint.filled());
                        bar.set_margin(6, 6, 0, 0);
                        chart.draw_series([bar])?;
                    }
                }
            }
        }
        Ok(())
    })
}

/// Something in a row of a plot.
enum Mark {
    Point { at: f64, tint: RGBColor },
    Span { from: f64, to: f64, tint: RGBColor },
    Bar { to: f64, tint: RGBColor },
}

/// AUROC of each model with its 95% interval.
pub(super) fn auroc_by_model(outcome: &Outcome) -> Result<String> {
    let names: Vec<String> = outcome.models.iter().map(|model| model.label.clone()).collect();
    let lowest = outcome.models.iter().map(|model| model.auroc.low).fold(1.0, f64::min);
    let low = ((lowest - 0.02) * 20.0).floor().max(0.0) / 20.0;
    rows(&names, (low..1.0, "AUROC on the common test set, 95% interval"), |index| {
        let (auroc, tint) = (&outcome.models[index].auroc, colour(index));
        vec![Mark::Span { from: auroc.low, to: auroc.high, tint }, Mark::Point { at: auroc.estimate, tint }]
    })
}

/// Bytes of each hospital, beside what float32 parameters would take.
pub(super) fn bytes_by_site(outcome: &Outcome) -> Result<String> {
    let mut bars: Vec<(String, f64, RGBColor)> = Vec::new();
    for site in &outcome.traffic {
        bars.push((format!("{} sent", site.site), site.sent as f64 / 1e6, colour(0)));
        bars.push((format!("{} received", site.site), site.received as f64 / 1e6, colour(5)));
    }
    bars.push(("float32, each way".to_owned(), outcome.naive_bytes() as f64 / 1e6, INK));
    let names: Vec<String> = bars.iter().map(|bar| bar.0.clone()).collect();
    let most = bars.iter().map(|bar| bar.1).fold(0.0, f64::max).max(1e-3);
    rows(&names, (0.0..most * 1.05, "MB over the whole demo"), |index| {
        vec![Mark::Bar { to: bars[index].1, tint: bars[index].2 }]
    })
}
