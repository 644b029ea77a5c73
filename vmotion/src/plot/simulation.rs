//! A simulation as a drawing: which hosts were overloaded when, and what it took to avoid that.

use super::{Area, Drawn};
use crate::output;
use anyhow::{Context as _, Result};
use plotters::prelude::*;
use std::path::Path;
use vmotion_policy::simulator::{INTERVAL_S, Outcome, Policy, Simulation};

const SIZE: (u32, u32) = (1000, 700);

/// Draws it into `file`.
pub(crate) fn draw(simulation: &Simulation, file: &Path) -> Result<()> {
    let text = svg(simulation).map_err(|error| anyhow::anyhow!("The simulation cannot be drawn: {error}"))?;
    std::fs::write(file, text).with_context(|| format!("Cannot write {}", file.display()))
}

fn svg(simulation: &Simulation) -> Drawn<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled("Simulated policies", ("sans-serif", 20))?;
        let root = root.titled(&output::subject(simulation), ("sans-serif", 12))?;
        let (upper, lower) = root.split_vertically(SIZE.1 / 2 - 20);
        panel(&upper, simulation, "overloaded hosts", |outcome| outcome.by_interval.clone())?;
        panel(&lower, simulation, "moves so far", |outcome| {
            let sums = outcome.moves_by_interval.iter().scan(0, |sum, moves| {
                *sum += moves;
                Some(*sum)
            });
            sums.collect()
        })?;
        root.present()?;
    }
    Ok(text)
}

/// A curve for each policy, by the hours of what is replayed.
fn panel(area: &Area<'_>, simulation: &Simulation, what: &str, values: impl Fn(&Outcome) -> Vec<u32>) -> Drawn<()> {
    let hours = |interval: usize| (interval as u64 * INTERVAL_S) as f64 / 3600.0;
    let curves: Vec<(Policy, Vec<u32>)> =
        simulation.outcomes.iter().map(|compared| (compared.outcome.policy, values(&compared.outcome))).collect();
    let length = curves.iter().map(|(_, values)| values.len()).max().unwrap_or(1);
    let most = f64::from(curves.iter().flat_map(|(_, values)| values).copied().max().unwrap_or(0).max(1)) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..hours(length.max(1)), 0.0..most)?;
    chart.configure_mesh().x_desc("hours of the replay").y_desc(what).light_line_style(TRANSPARENT).draw()?;
    for (policy, values) in &curves {
        let (name, colour) = look(*policy);
        let points = values.iter().enumerate().map(|(interval, value)| (hours(interval), f64::from(*value)));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

const fn look(policy: Policy) -> (&'static str, RGBColor) {
    match policy {
        Policy::None => ("none", RGBColor(127, 127, 127)),
        Policy::NaiveSpread => ("naive", RGBColor(214, 39, 40)),
        Policy::Ours => ("ours", RGBColor(31, 119, 180)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmotion_model::PolicySpec;
    use vmotion_policy::simulator::{Replay, generate, replay};

    #[test]
    fn both_panels_have_a_curve_for_each_policy() {
        let (fleet, spec) = (generate(2, 10, 20, 1), PolicySpec::default());
        let outcomes = [Policy::None, Policy::NaiveSpread]
            .map(|policy| replay(&fleet, &Replay { policy, replayed: fleet.last_day(), spec: spec.clone() }));
        let simulation = Simulation::new(&fleet, None, 1, spec, outcomes.to_vec());
        let text = svg(&simulation).unwrap();
        for part in
            ["Simulated policies", "2 hosts with", "overloaded hosts", "moves so far", "hours of the replay", "naive"]
        {
            assert!(text.contains(part), "{part:?} is not in the drawing");
        }
        assert_eq!(text.matches(">none").count() + text.matches("\nnone").count(), 2, "{text}");
    }
}
