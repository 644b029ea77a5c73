//! The timeline of a move as a drawing: rates, what remained, and where the pause went.

pub(crate) mod simulation;

use anyhow::{Context as _, Result, bail};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use std::path::Path;
use vmotion_api::Operation;
use vmotion_model::{DowntimeReport, MoveSummary, TimelineSample};

const SIZE: (u32, u32) = (1000, 760);
/// Height of the upper two panels together; the pause is below.
const CURVES: u32 = 560;
/// From this part of the width on, words stand before their place.
const LATE: f64 = 0.85;
const WIRE: RGBColor = RGBColor(31, 119, 180);
const DIRTY: RGBColor = RGBColor(214, 39, 40);
const LEFT: RGBColor = RGBColor(44, 160, 44);
const MIB: f64 = 1_048_576.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the move's timeline into `file`.
pub(crate) fn draw(operation: &Operation, file: &Path) -> Result<()> {
    let Some(summary) = &operation.summary else {
        bail!("{} has no timeline: it is not over, or its source did not live to tell", operation.id);
    };
    let text = svg(operation, summary).map_err(|error| anyhow::anyhow!("The timeline cannot be drawn: {error}"))?;
    std::fs::write(file, text).with_context(|| format!("Cannot write {}", file.display()))
}

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn svg(operation: &Operation, summary: &MoveSummary) -> Drawn<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let title = format!("{}: {} from {} to {}", operation.id, summary.machine, summary.source, summary.target);
        let root = root.titled(&title, ("sans-serif", 20))?;
        let (curves, pause) = root.split_vertically(CURVES);
        let (rates, left) = curves.split_vertically(CURVES / 2);
        let samples = &summary.timeline.samples;
        let rate = |sample: &TimelineSample| sample.rate_bytes_per_s as f64 / MIB;
        let dirty = |sample: &TimelineSample| sample.dirty_pages_per_s as f64 / 256.0;
        let remaining = |sample: &TimelineSample| sample.remaining_pages as f64 / 256.0;
        panel(
            &rates,
            summary,
            "MiB/s",
            &[("on the wire", WIRE, points(samples, rate)), ("dirtied", DIRTY, points(samples, dirty))],
        )?;
        panel(&left, summary, "MiB that differ", &[("remaining", LEFT, points(samples, remaining))])?;
        downtime(&pause, &summary.downtime)?;
        root.present()?;
    }
    Ok(text)
}

/// Name, colour, and (seconds, value).
type Curve<'a> = (&'a str, RGBColor, Vec<(f64, f64)>);

fn points(samples: &[TimelineSample], value: impl Fn(&TimelineSample) -> f64) -> Vec<(f64, f64)> {
    samples.iter().map(|sample| (sample.at_ms / 1000.0, value(sample))).collect()
}

/// Curves over the time of the move; rounds and events are marked.
fn panel(area: &Area<'_>, summary: &MoveSummary, unit: &str, curves: &[Curve<'_>]) -> Drawn<()> {
    let end = (summary.total_ms / 1000.0).max(0.001);
    let most = curves.iter().flat_map(|(.., points)| points).map(|(_, value)| *value).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, 0.0..most)?;
    chart.configure_mesh().x_desc("seconds").y_desc(unit).light_line_style(TRANSPARENT).draw()?;
    for round in &summary.timeline.rounds {
        let at = round.began_ms / 1000.0;
        chart.draw_series([PathElement::new([(at, 0.0), (at, most)], BLACK.mix(0.12))])?;
    }
    for (number, event) in summary.timeline.events.iter().enumerate() {
        let at = event.at_ms / 1000.0;
        chart.draw_series([PathElement::new([(at, 0.0), (at, most)], BLACK.mix(0.35))])?;
        // Below each other, so that states that follow at once can be read.
        let height = most * (0.97 - 0.09 * (number % 9) as f64);
        chart.draw_series([label(event.what.clone(), (at, height), at > end * LATE)])?;
    }
    for (name, colour, points) in curves {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}

/// Words beside a place: before it where there is no room behind.
fn label(words: String, at: (f64, f64), before: bool) -> Text<'static, (f64, f64), String> {
    let side = if before { HPos::Right } else { HPos::Left };
    Text::new(words, at, TextStyle::from(("sans-serif", 11)).pos(Pos::new(side, VPos::Center)))
}

/// The pause's parts, in the order in which they happen.
fn parts(downtime: &DowntimeReport) -> [(&'static str, f64); 8] {
    [
        ("pause", downtime.pause_ms),
        ("save", downtime.save_ms),
        ("last pages", downtime.last_pages_ms),
        ("on the way", downtime.transfer_ms),
        ("digest", downtime.digest_ms),
        ("load", downtime.load_ms),
        ("commit", downtime.commit_ms),
        ("resume", downtime.resume_ms),
    ]
}

fn downtime(area: &Area<'_>, downtime: &DowntimeReport) -> Drawn<()> {
    if downtime.source_ms <= 0.0 {
        return Ok(());
    }
    let caption = format!("pause: {:.2} ms", downtime.source_ms);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .caption(caption, ("sans-serif", 15))
        .x_label_area_size(28)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..downtime.source_ms, 0.0..1.0)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc("ms").draw()?;
    let mut from = 0.0;
    for (index, (name, ms)) in parts(downtime).into_iter().enumerate().filter(|(_, (_, ms))| *ms > 0.0) {
        let colour = Palette99::pick(index);
        chart.draw_series([Rectangle::new([(from, 0.0), (from + ms, 0.3)], colour.filled())])?;
        // One below the other, each above where its part begins.
        let height = 0.97 - 0.085 * index as f64;
        chart.draw_series([PathElement::new([(from, 0.3), (from, height)], BLACK.mix(0.3))])?;
        chart.draw_series([label(format!("{name} {ms:.2}"), (from, height), from > downtime.source_ms * LATE)])?;
        from += ms;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmotion_model::{
        Epoch, MoveId, MoveOutcome, MovePhase, MoveRequest, PageCounts, Prediction, RoundRecord, Timeline,
    };

    fn operation() -> Operation {
        let mut timeline = Timeline::default();
        for at in 0..10 {
            timeline.sample(TimelineSample {
                at_ms: f64::from(at) * 100.0,
                phase: MovePhase::Copying,
                wire_bytes: 0,
                rate_bytes_per_s: 100 << 20,
                dirty_pages_per_s: 2560,
                remaining_pages: 25_600,
            });
        }
        timeline.event(10.0, "copying <&>");
        timeline.rounds.push(RoundRecord {
            round: 1,
            began_ms: 10.0,
            duration_ms: 900.0,
            pages: PageCounts::default(),
            wire_bytes: 1,
            dirtied_pages: 1,
        });
        let summary = MoveSummary {
            machine: "vm1".parse().unwrap(),
            source: "h1".parse().unwrap(),
            target: "h2".parse().unwrap(),
            outcome: MoveOutcome::Moved,
            epoch: Epoch::FIRST,
            total_ms: 1000.0,
            downtime: DowntimeReport { source_ms: 3.0, pause_ms: 1.0, save_ms: 2.0, ..DowntimeReport::default() },
            predicted: Prediction::default(),
            rounds: 1,
            pages: PageCounts::default(),
            wire_bytes: 1,
            udp_bytes: 1,
            source_cpu_s: 0.1,
            target_cpu_s: 0.1,
            digests: None,
            follow: None,
            outlook: None,
            slowdown_percent: 0.0,
            timeline,
        };
        Operation {
            id: MoveId::numbered(1),
            machine: "vm1".parse().unwrap(),
            source: "h1".parse().unwrap(),
            target: "h2".parse().unwrap(),
            request: MoveRequest::default(),
            created_unix_ms: 1,
            progress: None,
            outcome: Some(MoveOutcome::Moved),
            summary: Some(summary),
            placement: None,
            note: None,
            asked_by: None,
            motive: None,
            reason: None,
            trace: None,
            steps: Vec::new(),
        }
    }

    #[test]
    fn every_part_of_a_move_is_drawn() {
        let operation = operation();
        let text = svg(&operation, operation.summary.as_ref().unwrap()).unwrap();
        for part in [
            "m-000001: vm1 from h1 to h2",
            "on the wire",
            "dirtied",
            "remaining",
            "copying &lt;&amp;&gt;",
            "pause: 3.00 ms",
            "save 2.00",
        ] {
            assert!(text.contains(part), "{part:?} is not in the drawing");
        }
    }

    #[test]
    fn the_parts_of_the_pause_are_all_of_it() {
        let report = DowntimeReport {
            source_ms: 36.0,
            target_ms: 0.0,
            pause_ms: 1.0,
            last_pages_ms: 2.0,
            save_ms: 3.0,
            transfer_ms: 4.0,
            digest_ms: 5.0,
            load_ms: 6.0,
            commit_ms: 7.0,
            resume_ms: 8.0,
        };
        assert_eq!(parts(&report).iter().map(|(_, ms)| ms).sum::<f64>(), report.source_ms);
    }
}
