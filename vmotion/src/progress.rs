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
use vmotion_model::{ByteSize, MoveId, MovePhase, MoveProgress};

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
    Lines { last: Option<(MovePhase, u32, Instant)> },
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
        let Some(progress) = &operation.progress else { return };
        let text = line(operation, progress);
        match self {
            Self::Quiet => {}
            Self::Bar(bar) => bar.set_message(text),
            Self::Lines { last } => {
                let due = last.is_none_or(|(phase, round, at)| {
                    phase != progress.phase || round != progress.round || at.elapsed() > LINE_EVERY
                });
                if due {
                    eprintln!("{text}");
                    *last = Some((progress.phase, progress.round, Instant::now()));
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

fn line(operation: &Operation, progress: &MoveProgress) -> String {
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
        MovePhase::Finished => "finished",
    };
    let eta = eta_ms.map_or_else(|| "?".to_owned(), |ms| format!("{:.1} s", Duration::from_millis(ms).as_secs_f64()));
    format!(
        "{} → {}  {phase}, round {round}, sent {}, {}/s, left {}, dirtied {}/s, eta {eta}, {:.1} s",
        operation.machine,
        operation.target,
        ByteSize(*wire_bytes),
        ByteSize(*rate_bytes_per_s),
        ByteSize(remaining_pages * 4096),
        ByteSize(dirty_pages_per_s * 4096),
        Duration::from_millis(*elapsed_ms).as_secs_f64(),
    )
}
