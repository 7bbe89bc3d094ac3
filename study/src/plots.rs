//! Plots as SVG text, in colours that read on a light and on a dark page.

use anyhow::Result;
use plotters::prelude::*;

/// Axes, grid and text: legible on white and on near black.
const INK: RGBColor = RGBColor(128, 128, 128);
/// Colours that differ in lightness too (after Okabe and Ito 2008).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
];
const SIZE: (u32, u32) = (720, 440);

/// A codec in the plane of cost and quality.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// How many times smaller than float32 the upload is.
    pub times: f64,
    /// AUROC of float32 less that of this codec.
    pub lost: f64,
    /// None outside secure aggregation; within, whether there is error feedback.
    pub secure: Option<bool>,
}

fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Upload, in times smaller than float32, against AUROC below float32. Filled circles have error feedback, rings have none, crosses are seen by the
/// server. Losses above 0.05 are drawn at 0.05.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn bytes_against_auroc(series: &[(String, Vec<Point>)]) -> Result<String> {
    const LOW: f64 = -0.01;
    const HIGH: f64 = 0.05;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d((0.9f64..40.0).log_scale(), LOW..HIGH)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .y_labels(6)
            .x_desc("upload: times smaller than float32")
            .y_desc("AUROC below float32")
            .y_label_formatter(&|value| format!("{value:.3}"))
            .label_style(text(13))
            .axis_desc_style(text(14))
            .draw()?;
        let target = [(16.0, LOW), (16.0, 0.005), (40.0, 0.005)];
        chart.draw_series(DashedLineSeries::new(target, 4, 4, INK.stroke_width(1)))?;
        for (index, (name, points)) in series.iter().enumerate() {
            let tint = COLOURS[index % COLOURS.len()];
            let at = |point: &Point| (point.times, point.lost.clamp(LOW, HIGH));
            let of = |secure: Option<bool>| points.iter().filter(move |point| point.secure == secure).map(at);
            chart
                .draw_series(of(Some(true)).map(|at| Circle::new(at, 5, tint.filled())))?
                .label(name.as_str())
                .legend(move |(x, y)| Circle::new((x + 9, y), 5, tint.filled()));
            chart.draw_series(of(Some(false)).map(|at| Circle::new(at, 5, tint.stroke_width(2))))?;
            chart.draw_series(of(None).map(|at| Cross::new(at, 4, tint.stroke_width(2))))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(text(13))
            .border_style(INK.mix(0.4))
            .margin(8)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

/// Points of one kind, by rising x.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// As the legend has it.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

/// A title, the AUROC of ten sites without noise, and curves of epsilon and AUROC, side by side; one legend for all, since all have the same curves.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn epsilon_against_auroc(panels: &[(String, Option<f64>, Vec<Curve>)]) -> Result<String> {
    const LOW: f64 = 0.35;
    const HIGH: f64 = 1.0;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (960, 420)).into_drawing_area();
        let parts = area.split_evenly((1, panels.len().max(1)));
        for (index, ((title, without, curves), part)) in panels.iter().zip(&parts).enumerate() {
            let mut chart = ChartBuilder::on(part)
                .margin(10)
                .caption(title.as_str(), text(15))
                .x_label_area_size(42)
                .y_label_area_size(52)
                .build_cartesian_2d((0.8f64..1500.0).log_scale(), LOW..HIGH)?;
            chart
                .configure_mesh()
                .axis_style(INK)
                .bold_line_style(INK.mix(0.25))
                .light_line_style(TRANSPARENT)
                .x_desc("epsilon of all rounds, delta 1e-5")
                .y_desc("AUROC")
                .x_label_formatter(&|value| format!("{value}"))
                .y_label_formatter(&|value| format!("{value:.1}"))
                .label_style(text(13))
                .axis_desc_style(text(14))
                .draw()?;
            if let Some(auroc) = without {
                let line = [(0.8, *auroc), (1500.0, *auroc)];
                chart
                    .draw_series(DashedLineSeries::new(line, 6, 4, INK.stroke_width(2)))?
                    .label("no noise, 10 sites")
                    .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], INK.stroke_width(2)));
            }
            for (tint, curve) in COLOURS.iter().cycle().zip(curves) {
                let points: Vec<(f64, f64)> =
                    curve.points.iter().map(|(x, y)| (x.clamp(0.8, 1500.0), y.clamp(LOW, HIGH))).collect();
                chart.draw_series(LineSeries::new(points.clone(), tint.stroke_width(2)))?;
                chart
                    .draw_series(points.into_iter().map(|at| Circle::new(at, 4, tint.filled())))?
                    .label(curve.name.as_str())
                    .legend(move |(x, y)| Circle::new((x + 9, y), 4, tint.filled()));
            }
            if index == 0 {
                chart
                    .configure_series_labels()
                    .position(SeriesLabelPosition::LowerRight)
                    .label_font(text(13))
                    .border_style(INK.mix(0.4))
                    .margin(8)
                    .draw()?;
            }
        }
        area.present()?;
    }
    Ok(svg)
}

/// Values of 0 to 1 in a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Stands above it.
    pub title: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Name and values of each row, a value a column; none where there is nothing to show.
    pub rows: Vec<(String, Vec<Option<f64>>)>,
}

/// A heat map with its values in percent: the darker, the more.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn heat_map(map: &HeatMap) -> Result<String> {
    const CELL: (i32, i32) = (44, 22);
    const LEFT: i32 = 190;
    const TOP: i32 = 190;
    let (columns, rows) = (i32::try_from(map.columns.len())?, i32::try_from(map.rows.len())?);
    let size = (LEFT + CELL.0 * columns + 20, TOP + CELL.1 * rows + 16);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (size.0.unsigned_abs(), size.1.unsigned_abs()))
            .into_drawing_area();
        area.draw(&Text::new(map.title.clone(), (10, 10), text(14)))?;
        for (name, x) in map.columns.iter().zip(0..) {
            let style = text(13).transform(FontTransform::Rotate270);
            area.draw(&Text::new(name.clone(), (LEFT + CELL.0 * x + CELL.0 / 2 - 7, TOP - 8), style))?;
        }
        for ((name, values), y) in map.rows.iter().zip(0..) {
            let top = TOP + CELL.1 * y;
            area.draw(&Text::new(name.clone(), (10, top + 4), text(13)))?;
            for (value, x) in values.iter().zip(0..) {
                let Some(value) = value else { continue };
                let corner = (LEFT + CELL.0 * x, top);
                let colour = COLOURS[4].mix(0.05 + 0.9 * value.clamp(0.0, 1.0));
                let end = (corner.0 + CELL.0 - 2, corner.1 + CELL.1 - 2);
                area.draw(&Rectangle::new([corner, end], colour.filled()))?;
                let shown = format!("{:.0}", 100.0 * value);
                let ink = if *value > 0.4 { WHITE } else { INK };
                area.draw(&Text::new(shown, (corner.0 + 12, corner.1 + 4), text(12).color(&ink)))?;
            }
        }
        area.present()?;
    }
    Ok(svg)
}

/// A named curve of (share of false alarms, share found).
pub type RocSeries = (String, Vec<(f64, f64)>);

/// ROC curves on logarithmic axes from `low` to 1, where attackers who must be sure are seen (Carlini et al. 2022, figure 1); chance is dashed.
///
/// # Errors
/// When the plot cannot be drawn.
pub fn log_roc(series: &[RocSeries], low: f64) -> Result<String> {
    const SIDE: (u32, u32) = (560, 460);
    let low = low.clamp(1e-6, 0.1);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIDE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .margin_right(18)
            .x_label_area_size(42)
            .y_label_area_size(62)
            .build_cartesian_2d((low..1.0f64).log_scale(), (low..1.0f64).log_scale())?;
        let share = |value: &f64| format!("{}%", 100.0 * value);
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .x_labels(6)
            .y_labels(6)
            .x_desc("false alarms")
            .y_desc("members found")
            .x_label_formatter(&share)
            .y_label_formatter(&share)
            .label_style(text(13))
            .axis_desc_style(text(14))
            .draw()?;
        let chance = (0..=60).map(|step| low.powf(1.0 - f64::from(step) / 60.0)).map(|at| (at, at));
        chart.draw_series(DashedLineSeries::new(chance, 4, 4, INK.stroke_width(1)))?;
        for (index, (name, points)) in series.iter().enumerate() {
            let tint = COLOURS[index % COLOURS.len()];
            // What lies below the axes is drawn on their edge.
            let points = points.iter().map(|(x, y)| (x.max(low), y.max(low)));
            chart
                .draw_series(LineSeries::new(points, tint.stroke_width(2)))?
                .label(name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], tint.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(text(13))
            .border_style(INK.mix(0.4))
            .margin(8)
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}
