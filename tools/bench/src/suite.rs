//! The order of things: links, contents, rounds, contestants; and one move of each, measured alike.

use crate::{
    arguments::{Arguments, ContentChoice, LinkChoice},
    console::{self, Beats, Console},
    host::{self, Ticks},
    link::Link,
    ours::Service,
    process::check_interrupted,
    qemu,
    report::{self, Section},
    sample::{Contestant, QemuMode, Sample},
    usage::{Meter, TICKS_PER_S, Usage, Who},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use vmotion_probe_guest::{CommandLine, Content, Rate};

/// The guest boots and fills its working set in a few seconds.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(90);
/// A move that takes this long does not converge.
pub(crate) const MOVE_PATIENCE: Duration = Duration::from_secs(60);
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
    let contestants = contestants(arguments)?;
    let runs = if arguments.quick { 1 } else { arguments.runs.max(1) };
    let mut sections: Vec<Section> = Vec::new();
    for (number, choice) in links(arguments.link).into_iter().enumerate() {
        let link = if choice == LinkChoice::Loopback { Link::Loopback } else { Link::gigabit(arguments.queue_ms)? };
        let mut service =
            Service::start(&directory.join(format!("link{number}")), arguments.vmotion.as_deref(), &link)?;
        for content in contents(arguments.content) {
            let guest = guest(&kernel, arguments, content);
            sections.push(Section::new(&link, content, guest.memory_bytes, &contestants));
            for round in 0..runs {
                for index in order(contestants.len(), round) {
                    let contestant = contestants[index];
                    let label = format!("{}, {content:?}, {}, run {}", link.name(), contestant.name(), round + 1);
                    let again = |contestant| measure(contestant, &guest, &link, &mut service, directory);
                    let sample = undisturbed(contestant, &label, arguments, again);
                    let Some(section) = sections.last_mut() else { continue };
                    match sample {
                        Ok(sample) => section.samples[index].push(sample),
                        Err(error) => match error.downcast::<NotMoved>() {
                            Ok(NotMoved(reason)) => section.failures.push((label, reason)),
                            Err(error) => return Err(error.context(label)),
                        },
                    }
                }
                let text = report::markdown(&sections, arguments);
                fs::write(&arguments.out, &text)
                    .with_context(|| format!("Cannot write {}", arguments.out.display()))?;
            }
            if let Some(section) = sections.last() {
                println!("{}", report::section(section));
            }
        }
    }
    Ok(())
}

fn contestants(arguments: &Arguments) -> Result<Vec<Contestant>> {
    let modes: &[QemuMode] = if arguments.quick { &QemuMode::QUICK } else { &QemuMode::ALL };
    let all = std::iter::once(Contestant::Ours).chain(modes.iter().copied().map(Contestant::Qemu));
    let wanted = |contestant: &Contestant| {
        arguments.only.is_empty() || arguments.only.iter().any(|name| contestant.name() == name)
    };
    let chosen: Vec<_> = all.filter(wanted).collect();
    if chosen.is_empty() {
        bail!("no contestant is called {:?}", arguments.only);
    }
    Ok(chosen)
}

fn links(choice: LinkChoice) -> Vec<LinkChoice> {
    if choice == LinkChoice::All { vec![LinkChoice::Loopback, LinkChoice::Gigabit] } else { vec![choice] }
}

fn contents(choice: ContentChoice) -> Vec<Content> {
    match choice {
        ContentChoice::Text => vec![Content::Text],
        ContentChoice::Random => vec![Content::Random],
        ContentChoice::All => vec![Content::Text, Content::Random],
    }
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

fn guest(kernel: &Path, arguments: &Arguments, content: Content) -> Guest {
    let cmdline = CommandLine::new()
        .working_set_bytes(arguments.working_set.bytes())
        .rate(Rate::BytesPerSecond(arguments.rate.bytes()))
        .content(content)
        .heartbeat_ms(1);
    Guest { kernel: kernel.to_owned(), cmdline: cmdline.to_string(), memory_bytes: arguments.memory.bytes(), cpus: 2 }
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
pub(crate) struct NotMoved(pub(crate) String);

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The guest did not move: {}", self.0)
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
        if let Some(NotMoved(reason)) = measured.as_ref().err().and_then(|error| error.downcast_ref()) {
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
        Contestant::Ours => measure_move(&mut service.machine(guest, link)?, link, guest.memory_bytes, busy_before),
        Contestant::Qemu(mode) => {
            let workplace = tempfile::Builder::new().prefix("qemu-").tempdir_in(directory)?;
            let mut pair = qemu::Pair::start(workplace.path(), mode, guest, link, service.tls_directory())?;
            measure_move(&mut pair, link, guest.memory_bytes, busy_before)
        }
    }
}

fn measure_move(movable: &mut impl Movable, link: &Link, memory_bytes: u64, busy_before: f64) -> Result<Sample> {
    let [here, there] = movable.consoles();
    let source = Console::watch(&here)?;
    source.wait_until_attached(START_PATIENCE)?;
    movable.begin()?;
    source.wait_until_ready(START_PATIENCE)?;
    let target = Console::watch(&there)?;
    let watched = Instant::now();
    sleep(WATCH_BEFORE)?;
    host::back_memory(memory_bytes + memory_bytes / 2)?;
    let counters = link.counters()?;
    let host_before = Ticks::now();
    let meter = Meter::start(movable.who())?;
    let asked = Instant::now();
    let moved = movable.relocate();
    let total = asked.elapsed();
    let usage = meter.finish();
    let passed = Ticks::now().since(&host_before);
    let counters = counters.zip(link.counters()?);
    if moved.is_err() {
        source.check()?;
    }
    moved?;
    target.wait_for_beat(START_PATIENCE)?;
    sleep(WATCH_AFTER)?;
    let beats = console::compare(&source, &target, watched, asked)?;
    let told = movable.told()?;
    let Usage { all_s, own_s } = usage;
    let Beats { gap_ms, before_p99_ms, before_max_ms, copying_max_ms, missing } = beats;
    let others = (passed.busy as f64 - all_s * TICKS_PER_S).max(0.0) + passed.stolen as f64;
    Ok(Sample {
        total_ms: total.as_secs_f64() * 1000.0,
        own_total_ms: told.total_ms,
        gap_ms,
        own_downtime_ms: told.downtime_ms,
        before_p99_ms,
        before_max_ms,
        copying_max_ms,
        beats_missing: missing,
        wire_bytes: told.wire_bytes,
        link_bytes: counters.map(|(before, after)| after.bytes.saturating_sub(before.bytes)),
        link_drops: counters.map(|(before, after)| after.drops.saturating_sub(before.drops)),
        cpu_s: all_s,
        cpu_own_s: own_s,
        disturbed: passed.part(others),
        busy_before,
        attempts: 1,
        detail: told.detail,
    })
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
