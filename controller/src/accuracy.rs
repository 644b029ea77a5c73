//! How far forecasts were off: the moves that are remembered, foreseen against actual.

use crate::{
    operations::MoveRecord,
    records::{MOVES, Stored, load_all},
    store::Store,
};
use vmotion_model::{Accuracy, ApiError, Deviation, HostName, MoveOutcome, MoveSummary, Prediction};

/// Fewer moves say little; until then what is assumed of any host counts.
const MOVES_MIN: usize = 5;
/// The newest moves count; hosts and links change.
const MOVES_MAX: usize = 100;
/// Fewer for what a pause takes: how busy hosts and guests are changes faster.
const PAUSES_MAX: usize = 9;

/// Of the moves in `store`.
pub(crate) async fn of_moves(store: &dyn Store) -> Result<Accuracy, ApiError> {
    let moves = load_all::<MoveRecord>(store, MOVES).await?;
    Ok(of(summaries(&moves)))
}

/// Of the moves in `store`; what differs from host to host, of those between the two `hosts` where there are enough of them.
pub(crate) async fn between(store: &dyn Store, hosts: [&HostName; 2]) -> Result<Accuracy, ApiError> {
    let moves = load_all::<MoveRecord>(store, MOVES).await?;
    let between = summaries(&moves)
        .filter(|summary| hosts == [&summary.source, &summary.target] || hosts == [&summary.target, &summary.source]);
    let all = of(summaries(&moves));
    Ok(Accuracy { pause_fixed_ms: of(between).pause_fixed_ms.or(all.pause_fixed_ms), ..all })
}

/// The newest first.
fn summaries(moves: &[Stored<MoveRecord>]) -> impl Iterator<Item = &MoveSummary> {
    moves.iter().rev().filter_map(|stored| stored.value.operation.summary.as_ref())
}

/// Of `summaries`, the newest first.
fn of<'a>(summaries: impl Iterator<Item = &'a MoveSummary>) -> Accuracy {
    let carried_through: Vec<_> =
        summaries.filter(|summary| summary.outcome == MoveOutcome::Moved).take(MOVES_MAX).collect();
    let foreseen: Vec<[f64; 3]> = carried_through.iter().copied().filter_map(errors).collect();
    let pauses: Vec<f64> = carried_through.iter().copied().filter_map(pause_fixed_ms).take(PAUSES_MAX).collect();
    let deviation = |column: usize| {
        let errors: Vec<f64> = foreseen.iter().map(|errors| errors[column]).collect();
        Some(errors).filter(|errors| errors.len() >= MOVES_MIN).and_then(Deviation::of).unwrap_or_default()
    };
    Accuracy {
        moves: foreseen.len() as u64,
        total: deviation(0),
        downtime: deviation(1),
        wire_bytes: deviation(2),
        pause_fixed_ms: Some(pauses)
            .filter(|pauses| pauses.len() >= MOVES_MIN)
            .and_then(Deviation::of)
            .map(|pauses| pauses.median),
    }
}

/// What the pause took besides what was foreseen of pages and round trips, in ms.
fn pause_fixed_ms(summary: &MoveSummary) -> Option<f64> {
    let Prediction { downtime_ms, pause_fixed_ms, .. } = summary.predicted;
    // Records of earlier versions do not say what was taken for granted.
    (pause_fixed_ms > 0.0 && downtime_ms > 0.0).then_some(summary.downtime.source_ms - (downtime_ms - pause_fixed_ms))
}

/// Relative errors of total time, downtime and bytes.
fn errors(summary: &MoveSummary) -> Option<[f64; 3]> {
    let expected = summary.outlook.as_ref()?.expected()?;
    let off = |actual: f64, foreseen: f64| (actual > 0.0).then(|| (actual - foreseen).abs() / actual);
    #[expect(clippy::cast_precision_loss, reason = "bytes of a move")]
    let wire_bytes = summary.wire_bytes as f64;
    Some([
        off(summary.total_ms, expected.total_ms.likely)?,
        off(summary.downtime.source_ms, expected.downtime_ms.likely)?,
        off(wire_bytes, expected.wire_bytes.likely).unwrap_or(0.0),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmotion_model::{DowntimeReport, Epoch, Expected, Forecast, Outlook, PageCounts, Strategy, Timeline};

    fn summary(total_ms: f64, foreseen_ms: f64, outcome: MoveOutcome) -> MoveSummary {
        let forecast = Forecast {
            strategy: Strategy::Precopy,
            total_ms: Expected::within(foreseen_ms, 0.1),
            downtime_ms: Expected::within(5.0, 0.1),
            wire_bytes: Expected::within(100.0, 0.1),
            slowdown_percent: Expected::default(),
            throttle_percent: 0,
            refused: None,
        };
        MoveSummary {
            machine: "vm1".parse().unwrap(),
            source: "h1".parse().unwrap(),
            target: "h2".parse().unwrap(),
            outcome,
            epoch: Epoch::FIRST,
            total_ms,
            downtime: DowntimeReport { source_ms: 4.0, ..DowntimeReport::default() },
            predicted: Prediction::default(),
            rounds: 1,
            pages: PageCounts::default(),
            wire_bytes: 100,
            udp_bytes: 1,
            source_cpu_s: 0.1,
            target_cpu_s: 0.1,
            digests: None,
            follow: None,
            outlook: Some(Outlook { chosen: Some(Strategy::Precopy), forecasts: vec![forecast], ..Outlook::default() }),
            slowdown_percent: 0.0,
            timeline: Timeline::default(),
        }
    }

    #[test]
    fn only_moves_that_were_carried_through_count() {
        let moved: Vec<MoveSummary> = [80.0, 90.0, 100.0, 110.0, 120.0]
            .map(|foreseen| summary(100.0, foreseen, MoveOutcome::Moved))
            .into_iter()
            .chain([summary(100.0, 1e6, MoveOutcome::Cancelled)])
            .collect();
        let accuracy = of(moved.iter());
        assert_eq!(accuracy.moves, 5);
        assert!((accuracy.total.median - 0.1).abs() < 1e-9, "{accuracy:?}");
        assert!((accuracy.downtime.p80 - 0.25).abs() < 1e-9);
    }

    #[test]
    fn a_pause_is_taken_to_cost_what_it_cost_before() {
        let paused = |source_ms| MoveSummary {
            downtime: DowntimeReport { source_ms, ..DowntimeReport::default() },
            predicted: Prediction { downtime_ms: 6.0, pause_fixed_ms: 4.0, ..Prediction::default() },
            ..summary(100.0, 100.0, MoveOutcome::Moved)
        };
        // 2 ms were for pages; one pause in five met something else.
        let moved = [3.0, 3.5, 80.0, 4.0, 3.5].map(paused);
        assert_eq!(of(moved.iter()).pause_fixed_ms, Some(1.5));
        assert_eq!(of(moved[1..].iter()).pause_fixed_ms, None);
        // What nobody foresaw says nothing.
        let unforeseen = [(); 9].map(|()| summary(100.0, 100.0, MoveOutcome::Moved));
        assert_eq!(of(unforeseen.iter()).pause_fixed_ms, None);
    }

    #[test]
    fn a_few_moves_leave_what_is_assumed() {
        let moved = [summary(100.0, 100.0, MoveOutcome::Moved)];
        assert_eq!(of(moved.iter()).total, Deviation::default());
    }
}
