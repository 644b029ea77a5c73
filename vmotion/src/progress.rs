//! A move's progress: one live line on a terminal, log lines elsewhere.

use anyhow::{Context as _, Result};
use eventsource_stream::Eventsource as _;
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};
use vmotion_api::{ControllerClient, Operation};
use vmotion_model::{ByteSize, MoveId, MovePhase, MoveProgress, StepReport};

/// Log lines without a terminal, at most one in this time while nothing changes but numbers.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// Waiting before asking a controller again that went away.
const RETRY: Duration = Duration::from_millis(500);

/// Follows a move to its end. A controller that restarts meanwhile is asked again; the move goes on without it.
pub(crate) async fn follow(client: &ControllerClient, id: &MoveId, quiet: bool) -> Result<Operation> {
    let mut view = View::new(quiet);
    loop {
        match client.move_events(id).await {
            Ok(stream) => {
                let mut events = stream.map(|chunk| chunk.map_err(std::io::Error::other)).eventsource();
                while let Some(Ok(event)) = events.next().await {
                    let operation: Operation =
                        serde_json::from_str(&event.data).context("The controller sent an event that is not one")?;
                    view.show(&operation);
                    if operation.outcome.is_some() {
                        view.end();
                        return Ok(operation);
                    }
                }
            }
            Err(error) if error.code().is_some() => return Err(error.into()),
            Err(error) => tracing::debug!(%error, "asking again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

enum View {
    Quiet,
    Bar(ProgressBar),
    Lines { last: Option<Line> },
}

/// The line printed last: what it was about, and when.
struct Line {
    phase: Option<MovePhase>,
    round: Option<u32>,
    note: Option<String>,
    at: Instant,
}

impl View {
    fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { last: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // The template is a constant; the default style is fine should it ever be refused.
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self::Bar(bar)
    }

    fn show(&mut self, operation: &Operation) {
        let Operation { progress, note, .. } = operation;
        if progress.is_none() && note.is_none() {
            return;
        }
        let text = line(operation);
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => bar.set_message(text),
            Self::Lines { last } => {
                let phase = progress.as_ref().map(|progress| progress.phase);
                let steps_done = operation.steps.iter().filter(|step| step.done.is_some()).count();
                let round = match operation.steps.as_slice() {
                    [] => progress.as_ref().map(|progress| progress.round),
                    _ => u32::try_from(steps_done).ok(),
                };
                let due = last.as_ref().is_none_or(|last| {
                    last.phase != phase || last.round != round || last.note != *note || last.at.elapsed() > LINE_EVERY
                });
                if due {
                    eprintln!("{text}");
                    *last = Some(Line { phase, round, note: note.clone(), at: Instant::now() });
                }
            }
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Which move, how it goes, and what it waits for.
fn line(operation: &Operation) -> String {
    let Operation { machine, target, progress, note, steps, .. } = operation;
    let waiting = note.as_ref().map(|note| format!("; waiting: {note}")).unwrap_or_default();
    if let Some(at) = steps.iter().position(StepReport::is_open) {
        return format!("{machine}  step {} of {}: {}{waiting}", at + 1, steps.len(), steps[at].step);
    }
    if !steps.is_empty() {
        return format!("{machine}  {} steps are done{waiting}", steps.len());
    }
    let doing = progress.as_ref().map_or_else(|| "preparing".to_owned(), numbers);
    format!("{machine} → {target}  {doing}{waiting}")
}

/// How a move goes, on one line.
pub(crate) fn numbers(progress: &MoveProgress) -> String {
    let MoveProgress {
        phase,
        round,
        wire_bytes,
        remaining_pages,
        rate_bytes_per_s,
        dirty_pages_per_s,
        eta_ms,
        elapsed_ms,
        ..
    } = progress;
    let phase = match phase {
        MovePhase::Preparing => "preparing",
        MovePhase::Copying => "copying",
        MovePhase::SwitchingOver => "switching over",
        MovePhase::Following => "runs there, memory follows",
        MovePhase::Finished => "finished",
    };
    let eta = eta_ms.map_or_else(|| "?".to_owned(), |ms| format!("{:.1} s", Duration::from_millis(ms).as_secs_f64()));
    format!(
        "{phase}, round {round}, sent {}, {}/s, left {}, dirtied {}/s, eta {eta}, {:.1} s",
        ByteSize(*wire_bytes),
        ByteSize(*rate_bytes_per_s),
        ByteSize(remaining_pages * 4096),
        ByteSize(dirty_pages_per_s * 4096),
        Duration::from_millis(*elapsed_ms).as_secs_f64(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(progress: Option<MoveProgress>, note: Option<&str>) -> Operation {
        Operation {
            id: MoveId::numbered(1),
            machine: "vm1".parse().unwrap(),
            source: "h1".parse().unwrap(),
            target: "h2".parse().unwrap(),
            request: vmotion_model::MoveRequest::default(),
            created_unix_ms: 0,
            progress,
            outcome: None,
            summary: None,
            placement: None,
            note: note.map(str::to_owned),
            asked_by: None,
            motive: None,
            reason: None,
            trace: None,
            steps: Vec::new(),
        }
    }

    #[test]
    fn a_move_that_waits_says_for_what_even_before_its_first_numbers() {
        let waiting = operation(None, Some("Agent at https://127.0.0.1:1 does not answer"));
        assert_eq!(line(&waiting), "vm1 → h2  preparing; waiting: Agent at https://127.0.0.1:1 does not answer");
    }

    #[test]
    fn a_move_that_goes_on_shows_its_numbers() {
        let progress = MoveProgress {
            phase: MovePhase::Copying,
            round: 2,
            pages: vmotion_model::PageCounts::default(),
            wire_bytes: 3 << 20,
            remaining_pages: 256,
            rate_bytes_per_s: 1 << 20,
            dirty_pages_per_s: 512,
            eta_ms: Some(1500),
            elapsed_ms: 2500,
        };
        assert_eq!(
            line(&operation(Some(progress), None)),
            "vm1 → h2  copying, round 2, sent 3 MiB, 1 MiB/s, left 1 MiB, dirtied 2 MiB/s, eta 1.5 s, 2.5 s"
        );
    }
}
