//! What every vCPU does all day: write pages at its share of the rate, verify pages in the background, and halt when
//! neither is due.

use core::fmt::Write;
use core::sync::atomic::Ordering;

use crate::boot;
use crate::clock::Clock;
use crate::memory::{Corrupt, Part};
use crate::pattern::{Budget, Picker};
use crate::serial::Line;
use crate::shared::{self, COUNTERS, Counters, MAILBOXES, Plan, RATE, RATE_AS_PLANNED, STOP};
use crate::stamp::MEMORY_MAGIC;
use crate::touches;

/// Pages between two looks at the clock and, on vCPU 0, at the heartbeat.
const BATCH_PAGES: usize = 16;
/// Shortest and longest halt, in µs: wake-ups cost the host, and work saved up must not become a burst.
const HALT_US: core::ops::RangeInclusive<u64> = 2_000..=10_000;
/// Below this many µs a halt costs more than it saves.
const HALT_WORTH_US: u64 = 30;

/// Pages of each vCPU for so many bytes of all.
const fn pages_each(bytes: u64, cpus: u64) -> u64 {
    (bytes / 4096).div_ceil(cpus)
}

/// One vCPU at work.
pub struct Worker {
    cpu: usize,
    plan: Plan,
    /// This vCPU's time.
    pub clock: Clock,
    part: Part,
    picker: Picker,
    writes: Budget,
    reads: Budget,
    sweep: u64,
    /// Next page to fill; `part.pages` when done.
    fill: u64,
    backwards_reported: u64,
    /// Of [`RATE`], as it was seen last.
    rate: u64,
}

impl Worker {
    /// The worker of vCPU `cpu`.
    ///
    /// # Safety
    /// One per vCPU: it takes ownership of that vCPU's pages.
    pub unsafe fn new(plan: &Plan, cpu: usize) -> Self {
        let options = &plan.options;
        let cpus = plan.cpus as u64;
        // SAFETY: one worker per vCPU is the caller's promise, and `plan.cpus` is the same for all.
        let mut part =
            unsafe { Part::new(&plan.layout, cpu as u64, cpus, (options.content, options.extent), plan.seed) };
        part.clear_ledger();
        let share = |bytes: Option<u64>| bytes.map(|bytes| pages_each(bytes, cpus));
        let fill = if options.fill { 0 } else { part.pages };
        Self {
            cpu,
            plan: *plan,
            clock: Clock::new(&plan.time),
            picker: Picker::new(options.pattern, part.pages, plan.seed.rotate_left(7) ^ cpu as u64),
            writes: Budget::new(share(options.rate)),
            reads: Budget::new(share(options.verify)),
            sweep: 0,
            fill,
            part,
            backwards_reported: 0,
            rate: RATE_AS_PLANNED,
        }
    }

    /// Writes as fast as the console has asked for.
    fn follow_rate(&mut self) {
        let rate = RATE.load(Ordering::Relaxed);
        if rate != self.rate {
            self.rate = rate;
            self.writes = Budget::new(Some(pages_each(rate, self.plan.cpus as u64)));
        }
    }

    fn counters(&self) -> &'static Counters {
        &COUNTERS[self.cpu]
    }

    /// Works a little; returns for how many µs there is nothing to do.
    pub fn work(&mut self) -> u64 {
        let now_us = self.clock.now_us();
        self.report_backwards();
        if STOP.load(Ordering::Acquire) {
            return self.stop();
        }
        if self.part.pages == 0 {
            self.counters().filled.store(true, Ordering::Release);
            self.counters().finished.store(true, Ordering::Release);
            return u64::MAX;
        }
        if self.fill < self.part.pages {
            return self.fill();
        }
        self.counters().filled.store(true, Ordering::Release);
        self.follow_rate();
        let wrote = (0..BATCH_PAGES).take_while(|_| self.write_one(now_us)).count();
        let read = (0..BATCH_PAGES).take_while(|_| self.verify_one(now_us)).count();
        if wrote + read > 0 {
            return 0;
        }
        let writes_wait_us = if self.passes_done() { u64::MAX } else { self.writes.wait_us() };
        writes_wait_us.min(self.reads.wait_us())
    }

    fn fill(&mut self) -> u64 {
        for _ in 0..BATCH_PAGES.min((self.part.pages - self.fill) as usize) {
            let written = self.part.write(self.fill, &mut self.clock);
            self.account_write(written);
            self.fill += 1;
        }
        0
    }

    fn passes_done(&self) -> bool {
        let limit = self.plan.options.passes.saturating_mul(self.part.pages);
        limit > 0 && self.counters().written.load(Ordering::Relaxed) >= limit
    }

    fn write_one(&mut self, now_us: u64) -> bool {
        if self.passes_done() {
            self.counters().finished.store(true, Ordering::Release);
            return false;
        }
        if !self.writes.take(now_us) {
            return false;
        }
        let page = self.picker.next_write();
        let written = self.timed(|worker| worker.part.write(page, &mut worker.clock));
        self.account_write(written);
        for _ in 0..self.picker.reads_per_write() {
            let page = self.picker.next_read();
            self.verify_page(page);
        }
        true
    }

    fn verify_one(&mut self, now_us: u64) -> bool {
        if !self.reads.take(now_us) {
            return false;
        }
        // In turn a page of the sweep, which reaches every page, and a random one, which may find a loss sooner.
        let page = if self.counters().verified.load(Ordering::Relaxed) & 1 == 0 {
            self.picker.next_read()
        } else {
            self.sweep = (self.sweep + 1) % self.part.pages;
            self.sweep
        };
        if !self.verify_page(page) {
            self.sweep = (self.sweep + 1) % self.part.pages;
        }
        true
    }

    /// Counts how long `touch` took, where that was asked for.
    fn timed<T>(&mut self, touch: impl FnOnce(&mut Self) -> T) -> T {
        if !self.plan.options.touches {
            return touch(self);
        }
        let start_us = self.clock.now_us();
        let result = touch(self);
        touches::count(self.cpu, self.clock.now_us() - start_us);
        result
    }

    fn verify_page(&mut self, page: u64) -> bool {
        match self.timed(|worker| worker.part.verify(page, &mut worker.clock)) {
            Ok(false) => false,
            Ok(true) => {
                shared::count(&self.counters().verified);
                true
            }
            Err(corrupt) => {
                self.report(&corrupt);
                true
            }
        }
    }

    fn account_write(&mut self, result: Result<(), Corrupt>) {
        shared::count(&self.counters().written);
        if let Err(corrupt) = result {
            self.report(&corrupt);
        }
    }

    /// Verifies everything once, then stays idle.
    fn stop(&mut self) -> u64 {
        if !self.counters().stopped.load(Ordering::Relaxed) {
            for page in 0..self.part.pages {
                self.verify_page(page);
            }
            self.counters().stopped.store(true, Ordering::Release);
        }
        u64::MAX
    }

    fn report(&mut self, corrupt: &Corrupt) {
        shared::count(&self.counters().corrupt);
        let Corrupt { page, address, expected_generation, mismatch } = corrupt;
        let found = &mismatch.found;
        let mut line = Line::new();
        let _ = writeln!(
            line,
            "CORRUPT page={page} cpu={} address={address:#x} expected_gen={expected_generation} found_gen={} \
             found_page={} magic={} sum={} zero={} written_us={} at_us={}",
            self.cpu,
            found.generation,
            found.index,
            if found.magic == MEMORY_MAGIC { "ok" } else { "bad" },
            if mismatch.checksum_fits { "ok" } else { "bad" },
            u8::from(mismatch.all_zero),
            found.written_us,
            self.clock.now_us(),
        );
        self.post(&line);
    }

    fn report_backwards(&mut self) {
        if self.clock.backwards > self.backwards_reported {
            self.backwards_reported = self.clock.backwards;
            self.counters().backwards.store(self.clock.backwards, Ordering::Relaxed);
            let mut line = Line::new();
            let _ = writeln!(
                line,
                "TSC-BACKWARDS cpu={} count={} worst_ticks={}",
                self.cpu, self.clock.backwards, self.clock.worst_jump
            );
            self.post(&line);
        }
    }

    fn post(&self, line: &Line) {
        if !MAILBOXES[self.cpu].post(line.as_bytes()) {
            shared::count(&self.counters().dropped);
        }
    }

    /// Gives the processor away until `work_wait_us` or `duty_wait_us` has passed, whichever is less.
    pub fn rest(&mut self, work_wait_us: u64, duty_wait_us: u64) {
        if work_wait_us == 0 || duty_wait_us < HALT_WORTH_US {
            return;
        }
        let rest_us = work_wait_us.clamp(*HALT_US.start(), *HALT_US.end()).min(duty_wait_us);
        if self.plan.options.idle_halt && self.plan.timer_ticks_per_ms > 0 {
            let ticks = rest_us * u64::from(self.plan.timer_ticks_per_ms) / 1000;
            boot::halt(ticks.clamp(1, u64::from(u32::MAX)) as u32);
        } else {
            self.clock.spin_us(rest_us.min(HALT_WORTH_US));
        }
    }
}
