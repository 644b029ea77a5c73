//! From the start of the link to its end.

use crate::{arguments::Arguments, child, output::Output};
use anyhow::{Context as _, Result};
use std::{sync::Arc, time::Duration};
use tokio::{
    process::Child,
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use vmotion_wan::{Timeline, Wan};

/// How soon a device somebody removed is noticed.
const CHECK_EVERY: Duration = Duration::from_millis(200);

/// What makes this process end or go on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let watch = |kind| signal(kind).context("signals cannot be watched");
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hang_up: watch(SignalKind::hangup())?,
            user: watch(SignalKind::user_defined1())?,
        })
    }
}

/// Runs the link; the exit code. Whatever was made is removed when this returns.
pub(crate) async fn run(arguments: &Arguments) -> Result<u8> {
    let timeline = arguments.timeline()?;
    // Before anything is made that a signal would leave behind.
    let mut signals = Signals::new()?;
    let wan = Wan::start(&arguments.options())?;
    let output = Arc::new(Output::new(arguments.json, !arguments.command.is_empty()));
    output.started(&wan);
    let mut child = match &arguments.command[..] {
        [] => None,
        command => Some(child::start(command, arguments.inside(), &wan)?),
    };
    let result = watch(arguments, &wan, &output, timeline, &mut signals, child.as_mut()).await;
    // A command that runs when this ends, for whatever reason, ends with it.
    let ended = match &mut child {
        Some(child) => Some(child::end(child).await?),
        None => None,
    };
    output.counters("ended", &wan);
    result?;
    Ok(ended.map_or(0, child::exit_code))
}

/// Until a signal, an error, or the end of the command.
async fn watch(
    arguments: &Arguments,
    wan: &Wan,
    output: &Arc<Output>,
    timeline: Timeline,
    signals: &mut Signals,
    mut child: Option<&mut Child>,
) -> Result<()> {
    let play = |timeline| {
        let output = Arc::clone(output);
        wan.play(timeline, move |after, step| output.changed(after, step))
    };
    let mut waiting = Some(timeline);
    // Kept for its drop, which ends it.
    let mut _player = None;
    if !arguments.wait_for_usr1 {
        _player = waiting.take().map(play).transpose()?;
    }
    let mut check = interval(CHECK_EVERY);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let period = arguments.stats_every;
    let mut stats = interval(period.unwrap_or(CHECK_EVERY));
    // The first tick is at once.
    stats.tick().await;
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.hang_up.recv() => return Ok(()),
            // Only the first one starts anything.
            _ = signals.user.recv() => if let Some(timeline) = waiting.take() { _player = Some(play(timeline)?) },
            () = ended(child.as_deref_mut()) => return Ok(()),
            _ = check.tick() => wan.check()?,
            _ = stats.tick(), if period.is_some() => output.counters("counters", wan),
        }
    }
}

/// Never without a command.
async fn ended(child: Option<&mut Child>) {
    match child {
        // What it ended with is asked again by whoever ends it.
        Some(child) => _ = child.wait().await,
        None => std::future::pending().await,
    }
}
