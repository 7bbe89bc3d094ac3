//! Draws epsilon against steps as SVG: `cargo run -p medinet-privacy --example epsilon_curve -- docs/epsilon.svg`.

use medinet_privacy::{Accounting, Composition, Delta, Event, NoiseMultiplier, SamplingRate};
use plotters::prelude::*;
use std::error::Error;

const DELTA: f64 = 1e-5;
const RATE: f64 = 0.01;

fn epsilon(sigma: f64, steps: u64, accounting: Accounting) -> Result<f64, Box<dyn Error>> {
    let event = Event::Gaussian {
        sampling_rate: SamplingRate::new(RATE)?,
        noise_multiplier: NoiseMultiplier::new(sigma)?,
        steps,
    };
    let mut spent = Composition::new();
    spent.add(&event);
    Ok(spent.epsilon(Delta::new(DELTA)?, accounting))
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "epsilon.svg".into());
    let drawing = SVGBackend::new(&path, (760, 480)).into_drawing_area();
    drawing.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&drawing)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d((10f64..20_000.0).log_scale(), (0.03f64..30.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc(format!("steps (sampling rate {RATE}, delta {DELTA:e})"))
        .y_desc("epsilon: line tight, dots by Renyi divergences")
        .draw()?;
    let steps: Vec<u64> = (0..=22).map(|i| (10.0 * 10f64.powf(f64::from(i) * 0.15)) as u64).collect();
    for (number, sigma) in [0.7, 1.0, 1.5, 2.5].into_iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let points = |accounting| -> Result<Vec<(f64, f64)>, Box<dyn Error>> {
            steps.iter().map(|s| Ok((*s as f64, epsilon(sigma, *s, accounting)?))).collect()
        };
        chart
            .draw_series(LineSeries::new(points(Accounting::Tight)?, color.stroke_width(2)))?
            .label(format!("noise multiplier {sigma}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart
            .draw_series(points(Accounting::Renyi)?.into_iter().map(|p| Circle::new(p, 2, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    drawing.present()?;
    Ok(())
}
