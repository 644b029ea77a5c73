//! The probe guest: a machine that stamps every page it writes, verifies it later, and says so on COM1. It exists to
//! notice what a migration must not do: lose a page, bring an old one back, stop time, drop a disk write.
//!
//! It runs in ring 3 from the first moment, because on some hosts guest code in ring 0 is emulated, a thousand times
//! slower; see `boot/traps.s` for all that ring 0 does.

#![no_std]
#![no_main]

mod boot;
mod chief;
mod clock;
mod content;
mod disk;
mod memory;
mod memory_functions;
mod options;
mod pattern;
mod ports;
mod power;
mod programs;
mod serial;
mod shared;
mod smp;
mod stamp;
mod touches;
mod worker;

use core::fmt::Write;
use core::sync::atomic::Ordering;

use boot::BootInfo;
use chief::Chief;
use clock::{Clock, TimeBase};
use disk::Disks;
use memory::Layout;
use options::Options;
use programs::Runner;
use serial::{Line, Serial};
use shared::Plan;
use worker::Worker;

/// Where ring 0 sends every vCPU. `start_info` is the loader's for vCPU 0.
#[unsafe(no_mangle)]
extern "C" fn ring3_main(start_info: u64, cpu: u64) -> ! {
    if cpu == 0 { first(start_info) } else { other(cpu as usize) }
}

fn other(cpu: usize) -> ! {
    smp::enable_lapic();
    smp::ONLINE.fetch_add(1, Ordering::AcqRel);
    let plan = shared::wait();
    if cpu >= plan.cpus {
        loop {
            boot::halt(0);
        }
    }
    if let Some(program) = plan.options.program {
        let mut runner = Runner::new(program, &plan, cpu);
        loop {
            runner.work();
        }
    }
    // SAFETY: vCPU numbers are unique, and each passes here once.
    let mut worker = unsafe { Worker::new(&plan, cpu) };
    loop {
        let wait_us = worker.work();
        worker.rest(wait_us, u64::MAX);
    }
}

fn first(start_info: u64) -> ! {
    let mut serial = Serial::new();
    let mut boot_info = BootInfo::new();
    assert!(boot_info.read_from(start_info), "no hvm_start_info with a memory map at {start_info:#x}");
    let command_line = core::str::from_utf8(&boot_info.command_line[..boot_info.command_line_bytes]).unwrap_or("");
    let mut note = Line::new();
    let options = Options::parse(command_line, |word| {
        let _ = write!(note, "{}{word}", if note.as_bytes().is_empty() { "NOTE ignored: " } else { " " });
    });
    if !note.as_bytes().is_empty() {
        note.push(b"\n");
        serial.queue(note.as_bytes());
    }
    let plan = make_plan(&boot_info, &options, &mut serial);
    // SAFETY: called once.
    let disks = unsafe { Disks::find(&options, plan.seed) };
    announce(&plan, &boot_info, &disks, &mut serial);
    shared::publish(plan);
    if let Some(program) = plan.options.program {
        let mut runner = Runner::new(program, &plan, 0);
        let mut clock = Clock::new(&plan.time);
        let mut chief = Chief::new(&plan, serial, disks, clock.now_us());
        loop {
            runner.work();
            chief.duties(clock.now_us());
        }
    }
    // SAFETY: this is vCPU 0, and it passes here once.
    let mut worker = unsafe { Worker::new(&plan, 0) };
    let mut chief = Chief::new(&plan, serial, disks, worker.clock.now_us());
    loop {
        let work_wait_us = worker.work();
        let duty_wait_us = chief.duties(worker.clock.now_us());
        worker.rest(work_wait_us, duty_wait_us);
    }
}

fn make_plan(boot_info: &BootInfo, options: &Options, serial: &mut Serial) -> Plan {
    let time = TimeBase::find(options.tsc_khz);
    let mut clock = Clock::new(&time);
    smp::enable_lapic();
    let timer_ticks_per_ms = smp::timer_ticks_per_ms(&mut clock);
    if timer_ticks_per_ms == 0 && options.idle_halt {
        serial.queue(b"NOTE the LAPIC timer does not count: idling spins\n");
    }
    let processors = smp::Processors::find();
    let present = processors.as_ref().map_or(options.cpus, smp::Processors::count);
    let wanted = present.min(options.cpus);
    let cpus = smp::start_others(&mut clock, processors.as_ref(), wanted);
    let mut line = Line::new();
    if cpus < wanted && processors.is_some() {
        let _ = writeln!(line, "NOTE only {cpus} of {wanted} vCPUs came up");
    }
    let layout = Layout::plan(&boot_info.regions, options.ws_bytes);
    if layout.pages < options.ws_bytes / 4096 {
        let _ = writeln!(line, "NOTE working set cut from {} to {} bytes", options.ws_bytes, layout.pages * 4096);
    }
    serial.queue(line.as_bytes());
    let mut seed = time.start ^ time.wall_ms.rotate_left(20);
    Plan { options: *options, layout, time, cpus, timer_ticks_per_ms, seed: content::next_random(&mut seed) }
}

fn announce(plan: &Plan, boot_info: &BootInfo, disks: &Disks, serial: &mut Serial) {
    let mut line = Line::new();
    let _ =
        write!(line, "PROBE 1 cpus={} ram={} ws={} rate=", plan.cpus, boot_info.ram_bytes, plan.layout.pages * 4096);
    let _ = match plan.options.rate {
        Some(rate) => write!(line, "{rate}"),
        None => write!(line, "max"),
    };
    let time = &plan.time;
    let _ = writeln!(
        line,
        " tsc_khz={} clock={} wall={} wall_ms={} timer_khz={} idle={} hb={} beat={} disks={} seed={:#x}",
        time.tsc_khz,
        time.source,
        time.wall,
        time.wall_ms,
        plan.timer_ticks_per_ms,
        if plan.options.idle_halt && plan.timer_ticks_per_ms > 0 { "hlt" } else { "spin" },
        plan.options.hb_ms,
        if plan.options.beat_bytes() { "byte" } else { "line" },
        disks.count(),
        plan.seed,
    );
    serial.queue(line.as_bytes());
    serial.flush();
}
