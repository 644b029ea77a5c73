//! What interrupt controllers in user space cost, against KVM's: the same programs of the probe guest, in alternating order.
//!
//! ```text
//! cargo nextest run -p vmotion-machine --test measure --run-ignored only --no-capture
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "in a test a panic is the report, and here so are figures"
)]

mod common;

use common::{Probe, Watcher, kvm_or_skip};
use std::time::Duration;
use vmotion_machine::ExitReason;
use vmotion_model::DirtySource;
use vmotion_probe_guest::{Beat, CommandLine, Program, Rate};

const SOON: Duration = Duration::from_secs(60);
const RUNS: usize = 5;
const CPUS: u8 = 2;

/// What one run showed.
struct Figures {
    /// What the guest did in a second, when it had everything in place.
    rate: f64,
    /// What it did in a second of processor time of this process, which has the machine: others that are busy on the host are not in it.
    per_cpu: f64,
    /// Processor time, in ms for each second of the guest.
    cpu_ms: f64,
}

fn processor_ms() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let ns = |task: std::io::Result<std::fs::DirEntry>| {
        // A thread may have ended meanwhile.
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(ns).sum::<u64>() as f64 / 1e6
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn run(cmdline: &str, user: bool) -> Figures {
    let probe = Probe::new(CPUS, 256, DirtySource::Log, cmdline);
    let probe = if user { probe.user_interrupts() } else { probe };
    let before = processor_ms();
    let machine = probe.boot();
    let mut watcher = Watcher::default();
    assert_eq!(machine.wait_exit(SOON), Some(ExitReason::PowerOff));
    let cpu_ms = processor_ms() - before;
    watcher.read(&machine);
    watcher.assert_sound();
    let field = |line: &str, name: &str| line.split(name).nth(1)?.split(' ').next()?.parse::<f64>().ok();
    let seconds: Vec<(f64, f64)> = watcher
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("S "))
        .filter_map(|line| Some((line.split(' ').next()?.parse().ok()?, field(line, "written=")?)))
        .collect();
    let rates = seconds.windows(2).skip(1).map(|two| (two[1].1 - two[0].1) / (two[1].0 - two[0].0) * 1e6);
    let (us, work) = *seconds.last().unwrap();
    Figures { rate: median(rates.collect()), per_cpu: work / cpu_ms * 1e3, cpu_ms: cpu_ms * 1e6 / us }
}

#[test]
#[ignore = "measures"]
fn measure_what_interrupt_controllers_in_user_space_cost() {
    if !kvm_or_skip("measure_what_interrupt_controllers_in_user_space_cost") {
        return;
    }
    let line = || CommandLine::new().working_set_bytes(16 << 20).seconds(3).poweroff(0x600, 0x34).heartbeat_ms(100);
    let local = [Program::Sum, Program::Sort, Program::Scan];
    let mut loads: Vec<(String, String)> =
        local.map(|program| (program.to_string(), line().program(program).to_string())).into();
    // Nothing but timers: a thousand times a second each vCPU halts and is woken.
    loads.push((
        "timers".to_owned(),
        line().heartbeat_ms(1).beat(Beat::Line).rate(Rate::BytesPerSecond(4 << 20)).to_string(),
    ));
    for (name, cmdline) in loads {
        let mut figures = [Vec::new(), Vec::new()];
        for number in 0..RUNS * 2 {
            // Kernel, user, user, kernel: whatever drifts is in both.
            let user = number % 4 == 1 || number % 4 == 2;
            figures[usize::from(user)].push(run(&cmdline, user));
        }
        let of = |which: usize, figure: fn(&Figures) -> f64| median(figures[which].iter().map(figure).collect());
        let row = |what: &str, figure: fn(&Figures) -> f64| {
            let (kernel, user) = (of(0, figure), of(1, figure));
            println!("{name:8} {what:34} kernel {kernel:12.0}   user {user:12.0}   {:6.1} %", user / kernel * 100.0);
        };
        row("in a second", |run| run.rate);
        row("in a second of processor time", |run| run.per_cpu);
        row("processor time, ms in a second", |run| run.cpu_ms);
    }
}
