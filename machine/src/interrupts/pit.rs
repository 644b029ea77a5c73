//! The 8254 of a PC: three counters of 1,193,182 ticks in a second. The first interrupts, the second once refreshed memory, the third makes
//! sounds, which kernels measure other clocks by. Pure: it is told what time it is.
//!
//! Reference: Intel 8254 data sheet; gate and output of the third at port 0x61. As KVM's it counts in binary only. No maintained crate has
//! a model of one.

use serde::{Deserialize, Serialize};

/// Ticks in a second.
const HZ: u128 = 1_193_182;
const NS_PER_S: u128 = 1_000_000_000;
/// What a count of 0 means.
const COUNT_MAX: u32 = 0x1_0000;
/// Interrupts of the first counter are so far apart at least, as KVM's are: a guest must not keep a processor of its host busy by a number.
const PERIOD_NS_MIN: u64 = 200_000;
/// Bits of port 0x61.
const GATE: u8 = 1;
const SPEAKER: u8 = 1 << 1;
const REFRESH: u8 = 1 << 4;
const OUTPUT: u8 = 1 << 5;
/// The port shows that memory is refreshed once in so many ns.
const REFRESH_NS: u64 = 15_085;
/// Counters, and the one with the gate.
const COUNTERS: usize = 3;
const SOUND: usize = 2;
/// Bits of a control word.
const READ_BACK: u8 = 3;
const READ_BACK_NO_COUNT: u8 = 1 << 5;
const READ_BACK_NO_STATUS: u8 = 1 << 4;

fn ticks(ns: u64) -> u64 {
    // Fewer than there are ns.
    u64::try_from(u128::from(ns) * HZ / NS_PER_S).unwrap_or(u64::MAX)
}

/// When so many ticks are over.
fn ns(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * NS_PER_S).div_ceil(HZ)).unwrap_or(u64::MAX)
}

/// Which bytes of a count the guest reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

/// How far a counter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Progress {
    /// No count was loaded, or it waits for its gate.
    Waits,
    /// Since then, in ns.
    Counts(u64),
    /// Its gate is low, after so many ticks.
    Held(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Counter {
    mode: u8,
    access: Access,
    /// Where it counts from: 1 to [`COUNT_MAX`].
    count: u32,
    progress: Progress,
    gate: bool,
    /// The low byte of a count of which the high byte is to come.
    low: Option<u8>,
    /// The next byte that is read is the high one.
    reads_high: bool,
    latched: Option<u16>,
    status: Option<u8>,
    /// A count was asked for since the last was loaded.
    null: bool,
    /// How often the output has risen since the count was loaded, as far as anybody was told.
    risen: u64,
}

impl Counter {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            access: Access::Both,
            count: COUNT_MAX,
            progress: Progress::Waits,
            gate,
            low: None,
            reads_high: false,
            latched: None,
            status: None,
            null: true,
            risen: 0,
        }
    }

    const fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Does a rising gate begin the count anew?
    const fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 2 | 3 | 5)
    }

    fn elapsed(&self, now_ns: u64) -> Option<u64> {
        match self.progress {
            Progress::Waits => None,
            Progress::Counts(since_ns) => Some(ticks(now_ns.saturating_sub(since_ns))),
            Progress::Held(ticks) => Some(ticks),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "counters wrap at 16 bits")]
    fn value(&self, now_ns: u64) -> u16 {
        let count = u64::from(self.count);
        let Some(elapsed) = self.elapsed(now_ns) else { return count as u16 };
        match self.mode {
            2 => (count - elapsed % count) as u16,
            // Counts by two, twice as often.
            3 => (count - elapsed.wrapping_mul(2) % count) as u16 & !1,
            _ => count.wrapping_sub(elapsed) as u16,
        }
    }

    fn output(&self, now_ns: u64) -> bool {
        let count = u64::from(self.count);
        let Some(elapsed) = self.elapsed(now_ns) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => elapsed >= count,
            2 => elapsed % count != count - 1,
            3 => elapsed % count < count.div_ceil(2),
            _ => elapsed != count,
        }
    }

    fn load(&mut self, count: u16, now_ns: u64) {
        self.count = if count == 0 { COUNT_MAX } else { u32::from(count) };
        (self.null, self.risen) = (false, 0);
        self.progress = match self.mode {
            // These wait for their gate to rise.
            1 | 5 => Progress::Waits,
            _ if self.gate => Progress::Counts(now_ns),
            0 | 4 => Progress::Held(0),
            _ => Progress::Waits,
        };
    }

    fn set_gate(&mut self, gate: bool, now_ns: u64) {
        let before = std::mem::replace(&mut self.gate, gate);
        if before == gate || self.null {
            return;
        }
        self.progress = match (gate, self.progress) {
            (true, _) if self.is_triggered() => {
                self.risen = 0;
                Progress::Counts(now_ns)
            }
            (true, Progress::Held(held)) => Progress::Counts(now_ns.saturating_sub(ns(held))),
            (false, Progress::Counts(_)) if self.is_periodic() => Progress::Waits,
            (false, Progress::Counts(since_ns)) if !self.is_triggered() => {
                Progress::Held(ticks(now_ns.saturating_sub(since_ns)))
            }
            (_, other) => other,
        };
    }

    fn write(&mut self, value: u8, now_ns: u64) {
        match (self.access, self.low.take()) {
            (Access::Low, _) => self.load(u16::from(value), now_ns),
            (Access::High, _) => self.load(u16::from(value) << 8, now_ns),
            (Access::Both, Some(low)) => self.load(u16::from_le_bytes([low, value]), now_ns),
            (Access::Both, None) => {
                self.low = Some(value);
                // In this mode the first byte stops it.
                if self.mode == 0 {
                    self.progress = Progress::Waits;
                }
            }
        }
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now_ns)).to_le_bytes();
        let reads_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                self.reads_high = !self.reads_high;
                !self.reads_high
            }
        };
        if reads_high || self.access == Access::Low {
            self.latched = None;
        }
        if reads_high { high } else { low }
    }

    fn latch_count(&mut self, now_ns: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now_ns));
        }
    }

    fn latch_status(&mut self, now_ns: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let status = u8::from(self.output(now_ns)) << 7 | u8::from(self.null) << 6 | access << 4 | self.mode << 1;
        self.status.get_or_insert(status);
    }

    fn control(&mut self, value: u8, now_ns: u64) {
        self.access = match value >> 4 & 3 {
            0 => return self.latch_count(now_ns),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        let mode = value >> 1 & 7;
        // 6 and 7 are 2 and 3 again.
        self.mode = if mode > 5 { mode & 3 } else { mode };
        (self.low, self.reads_high, self.latched, self.status) = (None, false, None, None);
        (self.null, self.progress) = (true, Progress::Waits);
    }

    /// How often the output has risen since the count was loaded.
    fn rises(&self, now_ns: u64) -> u64 {
        let elapsed = self.elapsed(now_ns).unwrap_or(0) / u64::from(self.count);
        if self.is_periodic() { elapsed } else { elapsed.min(1) }
    }

    /// When it rises next.
    fn due_ns(&self) -> Option<u64> {
        let Progress::Counts(since_ns) = self.progress else { return None };
        let is_over = !self.is_periodic() && self.risen > 0;
        let next = self.risen.saturating_add(1).saturating_mul(u64::from(self.count));
        (!is_over).then(|| since_ns.saturating_add(ns(next)))
    }

    /// The same, with times as they are `now_ns` later.
    fn moved(&mut self, shift: impl Fn(u64) -> u64) {
        self.count = self.count.clamp(1, COUNT_MAX);
        self.mode = self.mode.min(5);
        if let Progress::Counts(since_ns) = &mut self.progress {
            *since_ns = shift(*since_ns);
        }
    }
}

/// The 8254 and port 0x61.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pit {
    counters: [Counter; COUNTERS],
    speaker: bool,
}

impl Default for Pit {
    fn default() -> Self {
        Self { counters: [Counter::new(true), Counter::new(true), Counter::new(false)], speaker: false }
    }
}

impl Pit {
    /// The guest reads the port at `offset` from 0x40.
    pub fn read(&mut self, offset: u64, now_ns: u64) -> u8 {
        // The control word cannot be read.
        usize::try_from(offset).ok().and_then(|at| self.counters.get_mut(at)).map_or(0, |counter| counter.read(now_ns))
    }

    /// The guest writes the port at `offset` from 0x40.
    pub fn write(&mut self, offset: u64, value: u8, now_ns: u64) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(counter) = self.counters.get_mut(at) {
            return counter.write(value, now_ns);
        }
        if value >> 6 != READ_BACK {
            return self.counters[usize::from(value >> 6)].control(value, now_ns);
        }
        for (number, counter) in self.counters.iter_mut().enumerate() {
            if value & 2 << number == 0 {
                continue;
            }
            if value & READ_BACK_NO_COUNT == 0 {
                counter.latch_count(now_ns);
            }
            if value & READ_BACK_NO_STATUS == 0 {
                counter.latch_status(now_ns);
            }
        }
    }

    /// The guest reads port 0x61.
    #[must_use]
    pub fn read_gate(&self, now_ns: u64) -> u8 {
        let sound = &self.counters[SOUND];
        let bit = |bit, on| if on { bit } else { 0 };
        bit(GATE, sound.gate)
            | bit(SPEAKER, self.speaker)
            | bit(REFRESH, now_ns / REFRESH_NS % 2 == 1)
            | bit(OUTPUT, sound.output(now_ns))
    }

    /// The guest writes port 0x61.
    pub fn write_gate(&mut self, value: u8, now_ns: u64) {
        self.speaker = value & SPEAKER != 0;
        self.counters[SOUND].set_gate(value & GATE != 0, now_ns);
    }

    /// When [`Self::run`] is due, in ns.
    #[must_use]
    pub fn due_ns(&self) -> Option<u64> {
        self.counters[0].due_ns()
    }

    /// The time is `now_ns`: does the first counter interrupt? What was missed is one interrupt. When to ask again is beside it.
    pub fn run(&mut self, now_ns: u64) -> (bool, Option<u64>) {
        let counter = &mut self.counters[0];
        let rises = counter.rises(now_ns);
        let interrupts = rises > counter.risen;
        counter.risen = rises;
        let earliest = if interrupts { now_ns.saturating_add(PERIOD_NS_MIN) } else { 0 };
        (interrupts, counter.due_ns().map(|due_ns| due_ns.max(earliest)))
    }

    /// As it is to be saved at `now_ns`: with times as they passed, which mean something on another host.
    #[must_use]
    pub fn saved(&self, now_ns: u64) -> Self {
        let mut pit = self.clone();
        pit.counters.iter_mut().for_each(|counter| counter.moved(|since_ns| now_ns.saturating_sub(since_ns)));
        pit
    }

    /// What [`Self::saved`] gave, going on at `now_ns`. What a guest could not have brought about is put right.
    #[must_use]
    pub fn restored(mut self, now_ns: u64) -> Self {
        for counter in &mut self.counters {
            counter.moved(|passed_ns| now_ns.saturating_sub(passed_ns));
            counter.risen = counter.risen.min(counter.rises(now_ns));
        }
        self
    }
}

#[cfg(test)]
mod tests;
