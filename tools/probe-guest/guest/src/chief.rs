//! What only vCPU 0 does: heartbeats, the line of the second, everybody's messages, the console and the disks.
//!
//! A heartbeat is an `H` line, or, when they come faster than a serial line can carry lines, a single byte with the
//! high bit set and the sequence number modulo 128 in the others. Such a byte may stand anywhere, even inside a line:
//! lines are ASCII. Ten `H` lines a second then tell the rest.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use crate::disk::Disks;
use crate::options;
use crate::power;
use crate::programs;
use crate::serial::{Line, Serial};
use crate::shared::{self, COUNTERS, MAILBOXES, Plan, RATE, STOP};
use crate::touches;

/// How often the console is looked at and the mailboxes are emptied, in µs.
const POLL_US: u64 = 10_000;
const SECOND_US: u64 = 1_000_000;
/// Time between `H` lines when heartbeats are bytes, in µs.
const STATUS_US: u64 = 100_000;
/// Bytes sent between two looks at the clock: more would delay heartbeats.
const PUMP_BYTES: usize = 4;

/// vCPU 0's other half.
pub struct Chief {
    plan: Plan,
    serial: Serial,
    disks: Disks,
    /// Sequence number of the next heartbeat.
    sequence: u64,
    /// Lines lost because the console was not read.
    unsent: u64,
    next_status_us: u64,
    next_beat_us: u64,
    last_beat_us: u64,
    next_second_us: u64,
    next_poll_us: u64,
    /// Longest time between two heartbeats, in µs: in the last second, and ever.
    gap_us: u64,
    gap_max_us: u64,
    ready: bool,
}

impl Chief {
    /// Takes over the console and the disks.
    pub fn new(plan: &Plan, serial: Serial, disks: Disks, now_us: u64) -> Self {
        Self {
            plan: *plan,
            serial,
            disks,
            sequence: 0,
            unsent: 0,
            next_status_us: now_us,
            next_beat_us: now_us,
            last_beat_us: now_us,
            next_second_us: now_us + SECOND_US,
            next_poll_us: now_us,
            gap_us: 0,
            gap_max_us: 0,
            ready: false,
        }
    }

    /// Does what is due; returns µs until something is.
    pub fn duties(&mut self, now_us: u64) -> u64 {
        if now_us >= self.next_beat_us {
            self.beat(now_us);
        }
        if now_us >= self.next_second_us {
            self.second(now_us);
        }
        if now_us >= self.next_poll_us {
            self.next_poll_us = now_us + POLL_US;
            self.poll(now_us);
        }
        let disk_us = self.disks.work(now_us, self.plan.seed);
        if self.serial.pump(PUMP_BYTES) {
            return 0;
        }
        let due_us = self.next_beat_us.min(self.next_second_us).min(self.next_poll_us);
        due_us.saturating_sub(now_us).min(disk_us)
    }

    fn errors(&self) -> u64 {
        let cpus = self.plan.cpus;
        shared::total(cpus, |cpu| &cpu.corrupt) + shared::total(cpus, |cpu| &cpu.backwards) + self.disks.errors()
    }

    fn beat(&mut self, now_us: u64) {
        if self.plan.options.beat_bytes() {
            if !self.serial.send(0x80 | (self.sequence & 0x7f) as u8) {
                return;
            }
            if now_us >= self.next_status_us {
                self.next_status_us = now_us + STATUS_US;
                self.status(now_us);
            }
        } else {
            self.status(now_us);
        }
        self.sequence += 1;
        self.gap_us = self.gap_us.max(now_us - self.last_beat_us);
        self.gap_max_us = self.gap_max_us.max(self.gap_us);
        self.last_beat_us = now_us;
        let interval_us = self.plan.options.hb_ms * 1000;
        self.next_beat_us += interval_us;
        if self.next_beat_us <= now_us {
            // Late by a whole interval: the outside sees it from the times, a burst of make-up beats helps nobody.
            self.next_beat_us = now_us + interval_us;
        }
    }

    fn status(&mut self, now_us: u64) {
        let mut line = Line::new();
        let written = shared::total(self.plan.cpus, |cpu| &cpu.written);
        let _ = writeln!(line, "H {} {now_us} {written} {}", self.sequence, self.errors());
        self.print(line.as_bytes());
    }

    fn print(&mut self, line: &[u8]) {
        if !self.serial.queue(line) {
            self.unsent += 1;
        }
    }

    fn second(&mut self, now_us: u64) {
        self.next_second_us = (self.next_second_us + SECOND_US).max(now_us + SECOND_US / 2);
        let cpus = self.plan.cpus;
        let time = &self.plan.time;
        let mut line = Line::new();
        let _ = write!(
            line,
            "S {now_us} wall_ms={} wall={} written={} verified={} corrupt={} tsc_back={} dropped={} gap_us={} \
             gap_max_us={}",
            if time.wall_ms == 0 { 0 } else { time.wall_ms + now_us / 1000 },
            time.wall,
            shared::total(cpus, |cpu| &cpu.written),
            shared::total(cpus, |cpu| &cpu.verified),
            shared::total(cpus, |cpu| &cpu.corrupt),
            shared::total(cpus, |cpu| &cpu.backwards),
            shared::total(cpus, |cpu| &cpu.dropped) + self.unsent,
            self.gap_us,
            self.gap_max_us,
        );
        for (cpu, counters) in COUNTERS[..cpus].iter().enumerate() {
            let written = counters.written.load(Ordering::Relaxed);
            let verified = counters.verified.load(Ordering::Relaxed);
            let _ = write!(line, " cpu{cpu}={written}/{verified}");
        }
        self.disks.summary(&mut line);
        let _ = writeln!(line);
        self.gap_us = 0;
        self.print(line.as_bytes());
        if self.plan.options.touches {
            let touches = touches::line(cpus, now_us);
            self.print(touches.as_bytes());
        }
    }

    fn poll(&mut self, now_us: u64) {
        self.serial.poll_input(|serial, input| {
            if let Some(word) = input.strip_prefix(b"ping ") {
                let mut line = Line::new();
                line.push(b"pong ");
                line.push(&word[..word.len().min(200)]);
                line.push(b"\n");
                serial.queue(line.as_bytes());
            } else if let Some(rate) = input.strip_prefix(b"rate ").and_then(options::size_of) {
                RATE.store(rate, Ordering::Relaxed);
            } else if input == b"fault" {
                power::fault();
            }
        });
        for mailbox in &MAILBOXES[..self.plan.cpus] {
            mailbox.collect(|line| self.unsent += u64::from(!self.serial.queue(line)));
        }
        if let Some(message) = self.disks.message() {
            self.unsent += u64::from(!self.serial.queue(message));
            self.disks.message_printed();
        }
        if !self.ready && shared::all(self.plan.cpus, |cpu| &cpu.filled) {
            self.ready = true;
            let mut line = Line::new();
            let filled = if self.plan.options.fill { self.plan.layout.pages } else { 0 };
            let _ = writeln!(line, "READY filled={filled} at_us={now_us}");
            self.print(line.as_bytes());
        }
        self.check_end(now_us);
    }

    fn check_end(&mut self, now_us: u64) {
        let options = self.plan.options;
        let out_of_time = options.seconds > 0 && now_us >= options.seconds * SECOND_US;
        let counts = options.passes > 0 || options.ops > 0;
        let out_of_passes = counts && self.ready && shared::all(self.plan.cpus, |cpu| &cpu.finished);
        if out_of_time || out_of_passes {
            STOP.store(true, Ordering::Release);
        }
        if STOP.load(Ordering::Relaxed) && shared::all(self.plan.cpus, |cpu| &cpu.stopped) {
            self.second(now_us);
            let mut line = Line::new();
            let written = shared::total(self.plan.cpus, |cpu| &cpu.written);
            let verified = shared::total(self.plan.cpus, |cpu| &cpu.verified);
            let mut errors = self.errors();
            if let Some(program) = options.program {
                let mut conclusion = Line::new();
                errors += programs::conclude(program, self.plan.cpus, &mut conclusion);
                self.print(conclusion.as_bytes());
            }
            let _ = writeln!(line, "END at_us={now_us} written={written} verified={verified} errors={errors}");
            self.print(line.as_bytes());
            self.serial.flush();
            power::off(options.poweroff);
        }
    }
}
