//! The order of things: links, contents, rounds, contestants; and one move of each, measured alike.

use crate::{
    arguments::Arguments,
    carried,
    console::{self, Beats, Console, Times},
    host::{self, Ticks},
    link::Link,
    ours::Service,
    process::check_interrupted,
    qemu,
    report::{self, Section},
    sample::{Contestant, Sample},
    table::Plan,
    touches,
    usage::{Meter, TICKS_PER_S, Usage, Who},
};
use anyhow::{Context as _, Result};
use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The guest boots and fills its working set in a few seconds.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(90);
/// A move during which others had more than this part of the processors says little. It is measured again.
const DISTURBED_MAX: f64 = 0.35;
/// How long the guest is watched before the move and after it.
const WATCH_BEFORE: Duration = Duration::from_millis(2500);
const WATCH_AFTER: Duration = Duration::from_millis(1500);

/// The guest, the same for all.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) cmdline: String,
    pub(crate) memory_bytes: u64,
    pub(crate) cpus: u8,
    /// How long its move may take.
    pub(crate) limit: Duration,
}

/// Runs everything that was asked for, and writes the report after each section and round.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("vmotion-bench-").tempdir().context("Cannot make a directory")?;
    let result = run_in(directory.path(), arguments);
    if arguments.keep {
        eprintln!("files are in {}", directory.keep().display());
    }
    result
}

fn run_in(directory: &Path, arguments: &Arguments) -> Result<()> {
    let kernel = directory.join("probe.elf");
    fs::write(&kernel, vmotion_probe_guest::ELF).context("Cannot write the guest's kernel")?;
    let plan = Plan::new(arguments)?;
    let contestants = &plan.contestants;
    let mut sections: Vec<Section> = Vec::new();
    for (number, choice) in plan.links.iter().enumerate() {
        let link = Link::start(*choice, arguments)?;
        let mut service =
            Service::start(&directory.join(format!("link{number}")), arguments.vmotion.as_deref(), &link)?;
        for content in plan.contents.iter().copied() {
            let guest = Guest {
                kernel: kernel.clone(),
                cmdline: plan.cmdline(content),
                memory_bytes: plan.memory.bytes(),
                cpus: 2,
                limit: plan.limit,
            };
            sections.push(Section::new(&link, content, &plan));
            for round in 0..plan.runs {
                for index in order(contestants.len(), round) {
                    let contestant = contestants[index];
                    let label = format!("{}, {content:?}, {}, run {}", link.name(), contestant.name(), round + 1);
                    let again = |contestant| measure(contestant, &guest, &link, &mut service, directory);
                    let sample = undisturbed(contestant, &label, arguments, again);
                    let Some(section) = sections.last_mut() else { continue };
                    match sample {
                        Ok(sample) => section.samples[index].push(sample),
                        Err(error) => match error.downcast::<NotMoved>() {
                            Ok(NotMoved { reason, .. }) => section.failures.push((label, reason)),
                            Err(error) => return Err(error.context(label)),
                        },
                    }
                }
                if let Some(out) = &arguments.out {
                    fs::write(out, report::markdown(&sections, arguments, &plan))
                        .with_context(|| format!("Cannot write {}", out.display()))?;
                }
            }
            if let Some(section) = sections.last() {
                println!("{}", report::section(section));
            }
        }
    }
    Ok(())
}

/// Each round begins with another contestant, and every other one goes backwards, so that nobody always follows the same.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order.rotate_left(round % count.max(1));
    order
}

/// What a contestant says of its move.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) total_ms: f64,
    pub(crate) downtime_ms: f64,
    pub(crate) wire_bytes: f64,
    pub(crate) detail: serde_json::Value,
}

/// The guest runs on where it was. A result like any other: it is reported, the bench goes on.
#[derive(Debug)]
pub(crate) struct NotMoved {
    reason: String,
    /// It was ended because it took too long.
    too_late: bool,
}

impl NotMoved {
    pub(crate) const fn refused(reason: String) -> Self {
        Self { reason, too_late: false }
    }

    pub(crate) fn too_late() -> Self {
        Self { reason: "it took too long".to_owned(), too_late: true }
    }
}

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The guest did not move: {}", self.reason)
    }
}

impl std::error::Error for NotMoved {}

/// A guest that runs and can be moved once.
pub(crate) trait Movable {
    /// Console sockets, here and there.
    fn consoles(&self) -> [PathBuf; 2];
    /// Lets the guest run, where it does not yet: its console is watched now.
    fn begin(&mut self) -> Result<()>;
    /// Whose processor time counts.
    fn who(&self) -> Who;
    /// Moves the guest; returns when the source says it is over and the target runs.
    fn relocate(&mut self) -> Result<()>;
    /// Asked afterwards.
    fn told(&mut self) -> Result<Told>;
}

/// Measures until others kept quiet meanwhile; the quietest of all when they never do.
fn undisturbed(
    contestant: Contestant,
    label: &str,
    arguments: &Arguments,
    mut measure: impl FnMut(Contestant) -> Result<Sample>,
) -> Result<Sample> {
    let mut best: Option<Sample> = None;
    for attempt in 1..=arguments.attempts.max(1) {
        let measured = measure(contestant);
        if let Some(NotMoved { reason, .. }) = measured.as_ref().err().and_then(|error| error.downcast_ref()) {
            eprintln!("{label}: did not move: {reason}");
        }
        let mut sample = measured?;
        sample.attempts = attempt;
        eprintln!("{label}: {}", report::brief(&sample));
        append(arguments.raw.as_deref(), label, &sample)?;
        let disturbed = sample.disturbed;
        if best.as_ref().is_none_or(|best| disturbed < best.disturbed) {
            best = Some(sample);
        }
        if disturbed <= DISTURBED_MAX {
            break;
        }
    }
    best.context("Nothing was measured")
}

fn measure(
    contestant: Contestant,
    guest: &Guest,
    link: &Link,
    service: &mut Service,
    directory: &Path,
) -> Result<Sample> {
    let busy_before = host::wait_until_quiet()?;
    match contestant {
        Contestant::Ours(mode) => measure_move(&mut service.machine(mode, guest, link)?, link, guest, busy_before),
        Contestant::Qemu(mode) => {
            let workplace = tempfile::Builder::new().prefix("qemu-").tempdir_in(directory)?;
            let mut pair = qemu::Pair::start(workplace.path(), mode, guest, link, service.tls_directory())?;
            measure_move(&mut pair, link, guest, busy_before)
        }
    }
}

fn measure_move(movable: &mut impl Movable, link: &Link, guest: &Guest, busy_before: f64) -> Result<Sample> {
    let [here, there] = movable.consoles();
    let source = Console::watch(&here)?;
    source.wait_until_attached(START_PATIENCE)?;
    movable.begin()?;
    source.wait_until_ready(START_PATIENCE)?;
    let target = Console::watch(&there)?;
    let watched = Instant::now();
    sleep(WATCH_BEFORE)?;
    host::back_memory(guest.memory_bytes + guest.memory_bytes / 2)?;
    let counters = link.counters()?;
    let host_before = Ticks::now();
    let meter = Meter::start(movable.who())?;
    let asked = Instant::now();
    let (moved, carried) = carried::watch(link, || movable.relocate());
    let over = Instant::now();
    let touches_before = source.touches();
    let usage = meter.finish();
    let passed = Ticks::now().since(&host_before);
    let counters = counters.zip(link.counters()?);
    if moved.is_err() {
        source.check()?;
    }
    let unfinished = unfinished(moved, guest.limit)?;
    let beats = if unfinished.is_none() {
        target.wait_for_beat(START_PATIENCE)?;
        sleep(WATCH_AFTER)?;
        console::compare(&source, &target, Times { watched, asked, over })?
    } else {
        Beats::UNKNOWN
    };
    let waits = touches_before.zip(target.touches()).map(|(before, after)| touches::between(&before, &after));
    let told = movable.told()?;
    let Usage { all_s, own_s } = usage;
    let Beats { gap_ms, before_p99_ms, before_max_ms, copying_max_ms, missing, .. } = beats;
    let others = (passed.busy as f64 - all_s * TICKS_PER_S).max(0.0) + passed.stolen as f64;
    Ok(Sample {
        unfinished,
        total_ms: (over - asked).as_secs_f64() * 1000.0,
        own_total_ms: told.total_ms,
        gap_ms,
        own_downtime_ms: told.downtime_ms,
        before_p99_ms,
        before_max_ms,
        copying_max_ms,
        handover_ms: beats.handover_ms,
        after_p99_ms: beats.after_p99_ms,
        after_max_ms: beats.after_max_ms,
        beats_missing: missing,
        wire_bytes: told.wire_bytes,
        link_bytes: counters.map(|(before, after)| after.bytes.saturating_sub(before.bytes)),
        link_drops: counters.map(|(before, after)| after.drops.saturating_sub(before.drops)),
        carried,
        waits,
        cpu_s: all_s,
        cpu_own_s: own_s,
        disturbed: passed.part(others),
        busy_before,
        attempts: 1,
        detail: told.detail,
    })
}

/// Why the move is not over, when it took too long; what else kept it from its end is an error.
fn unfinished(moved: Result<()>, limit: Duration) -> Result<Option<String>> {
    let Err(error) = moved else { return Ok(None) };
    match error.downcast_ref() {
        Some(NotMoved { too_late: true, .. }) => Ok(Some(format!("did not finish in {} s", limit.as_secs()))),
        _ => Err(error),
    }
}

fn sleep(duration: Duration) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < duration {
        check_interrupted()?;
        thread::sleep(Duration::from_millis(50).min(duration));
    }
    Ok(())
}

fn append(raw: Option<&Path>, label: &str, sample: &Sample) -> Result<()> {
    let Some(path) = raw else { return Ok(()) };
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("Cannot write {}", path.display()))?;
    writeln!(file, "{}", serde_json::json!({ "label": label, "sample": sample }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_everybody_once_and_begins_with_another() {
        let mut firsts = Vec::new();
        for round in 0..4 {
            let mut order = order(5, round);
            firsts.push(order[0]);
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
        firsts.dedup();
        assert!(firsts.len() > 2, "{firsts:?}");
    }
}
