//! Time. The TSC is the only clock after the start: its frequency is read once and never again, so that a move to
//! another host cannot quietly rescale it, and each vCPU complains when a later reading is lower than an earlier one.

use core::arch::x86_64::{__cpuid, _rdtsc};
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::boot;
use crate::ports;

const KVM_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const MSR_KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const PLAUSIBLE_KHZ: core::ops::RangeInclusive<u64> = 200_000..=20_000_000;

/// Where the TSC frequency came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Option,
    KvmClock,
    KvmLeaf,
    CpuidCrystal,
    Pit,
    CpuidBase,
    Assumed,
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Option => "option",
            Self::KvmClock => "kvmclock",
            Self::KvmLeaf => "kvm-leaf",
            Self::CpuidCrystal => "cpuid15",
            Self::Pit => "pit",
            Self::CpuidBase => "cpuid16",
            Self::Assumed => "assumed",
        })
    }
}

/// What KVM writes at MSR_KVM_SYSTEM_TIME_NEW (pvclock_vcpu_time_info) and MSR_KVM_WALL_CLOCK_NEW. Atomic because the
/// host writes them behind the compiler's back; never disabled again, as no ordinary guest does either.
#[repr(C, align(64))]
struct PvClock {
    words: [AtomicU64; 4],
    wall: [AtomicU64; 2],
}

static PV_CLOCK: PvClock = PvClock { words: [const { AtomicU64::new(0) }; 4], wall: [const { AtomicU64::new(0) }; 2] };

/// Frequency and wall clock, found once at the start.
#[derive(Clone, Copy)]
pub struct TimeBase {
    pub tsc_khz: u64,
    pub source: Source,
    /// TSC when this program started.
    pub start: u64,
    /// Unix time at `start`, in ms; zero if no wall clock was found.
    pub wall_ms: u64,
    /// Which wall clock: `kvmclock`, `rtc` or `none`.
    pub wall: &'static str,
}

fn kvm_base() -> Option<u32> {
    (0x4000_0000_u32..0x4001_0000).step_by(0x100).take(8).find(|&base| {
        let leaf = __cpuid(base);
        [leaf.ebx, leaf.ecx, leaf.edx] == KVM_SIGNATURE
    })
}

/// (TSC kHz, Unix time now in ms) from kvmclock.
fn kvm_clock(base: u32) -> Option<(u64, u64)> {
    if __cpuid(base + 1).eax & KVM_FEATURE_CLOCKSOURCE2 == 0 {
        return None;
    }
    let wall_address = (&raw const PV_CLOCK.wall).addr() as u64;
    let time_address = (&raw const PV_CLOCK.words).addr() as u64;
    // SAFETY: makes KVM write 12 bytes to a static meant for it, made of atomics.
    let wall_set = unsafe { boot::write_msr(MSR_KVM_WALL_CLOCK_NEW, wall_address) };
    // SAFETY: makes KVM write 32 bytes to a static meant for it, made of atomics. Bit 0 enables.
    let time_set = unsafe { boot::write_msr(MSR_KVM_SYSTEM_TIME_NEW, time_address | 1) };
    if !(wall_set && time_set) {
        return None;
    }
    let scale = PV_CLOCK.words[3].load(Ordering::Acquire);
    let multiplier = scale & 0xffff_ffff;
    let shift = (scale >> 32) as u8 as i8;
    if multiplier == 0 {
        return None;
    }
    // ns = (tsc << shift) * multiplier >> 32, so kHz = 10^6 << 32 / multiplier >> shift.
    let unshifted = (1_000_000_u64 << 32) / multiplier;
    let khz = if shift >= 0 { unshifted >> shift } else { unshifted << -shift };
    // Just refreshed by KVM, so the TSC need not be consulted: in ring 3 some hosts show theirs instead of ours.
    let since_boot_ms = PV_CLOCK.words[2].load(Ordering::Acquire) / 1_000_000;
    let wall_low = PV_CLOCK.wall[0].load(Ordering::Acquire);
    let wall_nanoseconds = PV_CLOCK.wall[1].load(Ordering::Acquire) & 0xffff_ffff;
    let boot_ms = (wall_low >> 32) * 1000 + wall_nanoseconds / 1_000_000;
    PLAUSIBLE_KHZ.contains(&khz).then_some((khz, boot_ms + since_boot_ms))
}

fn cpuid_crystal() -> Option<u64> {
    if __cpuid(0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid(0x15);
    (leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0)
        .then(|| u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000)
}

fn cpuid_base() -> Option<u64> {
    (__cpuid(0).eax >= 0x16).then(|| u64::from(__cpuid(0x16).eax & 0xffff) * 1000)
}

/// Counts TSC ticks while PIT channel 2 counts 50 ms.
fn pit() -> Option<u64> {
    const PIT_HZ: u64 = 1_193_182;
    const COUNT: u64 = PIT_HZ / 20;
    ports::write(0x61, (ports::read(0x61) & !2) | 1);
    ports::write(0x43, 0xb0);
    ports::write(0x42, (COUNT & 0xff) as u8);
    ports::write(0x42, (COUNT >> 8) as u8);
    let start = tsc();
    let mut polls = 0;
    while ports::read(0x61) & 0x20 == 0 {
        polls += 1;
        if polls > 1_000_000 {
            return None;
        }
    }
    (polls > 2).then(|| (tsc() - start) * PIT_HZ / COUNT / 1000)
}

/// Unix seconds from the CMOS clock.
fn rtc() -> Option<u64> {
    let cmos = |register| {
        ports::write(0x70, register);
        ports::read(0x71)
    };
    let read = || [0, 2, 4, 7, 8, 9].map(cmos);
    if cmos(0xd) == 0xff {
        return None;
    }
    // Two equal readings: no update was in progress.
    let raw = (0..16).map(|_| (read(), read())).find(|(first, second)| first == second)?.0;
    let binary = cmos(0xb) & 4 != 0;
    let [second, minute, hour, day, month, year] =
        raw.map(|value| u64::from(if binary { value } else { (value >> 4) * 10 + (value & 15) }));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (2000 + year, month - 3) } else { (1999 + year, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// The time stamp counter.
fn tsc() -> u64 {
    // SAFETY: every 64-bit processor has a TSC, and CR4.TSD is never set here.
    unsafe { _rdtsc() }
}

impl TimeBase {
    /// Finds the frequency (what the hypervisor says first, measured next) and the wall clock.
    pub fn find(option_khz: Option<u64>) -> Self {
        let start = tsc();
        let base = kvm_base();
        let kvm_clock = base.and_then(kvm_clock);
        let kvm_leaf = || base.filter(|&base| __cpuid(base).eax >= base + 0x10).map(|base| __cpuid(base + 0x10).eax);
        let plausible = |khz: &u64| PLAUSIBLE_KHZ.contains(khz);
        let (tsc_khz, source) = option_khz
            .map(|khz| (khz, Source::Option))
            .or_else(|| kvm_clock.map(|(khz, _)| (khz, Source::KvmClock)))
            .or_else(|| kvm_leaf().map(u64::from).filter(plausible).map(|khz| (khz, Source::KvmLeaf)))
            .or_else(|| cpuid_crystal().filter(plausible).map(|khz| (khz, Source::CpuidCrystal)))
            .or_else(|| pit().filter(plausible).map(|khz| (khz, Source::Pit)))
            .or_else(|| cpuid_base().filter(plausible).map(|khz| (khz, Source::CpuidBase)))
            .unwrap_or((2_000_000, Source::Assumed));
        let (wall_ms, wall) = kvm_clock
            .map(|(_, wall_ms)| (wall_ms, "kvmclock"))
            .or_else(|| rtc().map(|seconds| (seconds * 1000, "rtc")))
            .unwrap_or((0, "none"));
        Self { tsc_khz, source, start, wall_ms, wall }
    }
}

/// One vCPU's view of time: µs since the start, never going back whatever the TSC does.
pub struct Clock {
    /// µs per tick, 32-bit fixed point.
    scale: u64,
    start: u64,
    /// Ticks added to make up for backward jumps.
    adjust: u64,
    last: u64,
    /// Times the TSC went backwards.
    pub backwards: u64,
    /// Ticks of the largest such jump.
    pub worst_jump: u64,
}

impl Clock {
    /// The clock of the calling vCPU.
    pub fn new(base: &TimeBase) -> Self {
        Self {
            scale: (1000_u64 << 32) / base.tsc_khz,
            start: base.start,
            adjust: 0,
            last: base.start,
            backwards: 0,
            worst_jump: 0,
        }
    }

    /// µs since the start.
    pub fn now_us(&mut self) -> u64 {
        let now = tsc();
        if now < self.last {
            let jump = self.last - now;
            self.backwards += 1;
            self.worst_jump = self.worst_jump.max(jump);
            self.adjust = self.adjust.wrapping_add(jump);
        }
        self.last = now;
        let ticks = now.wrapping_add(self.adjust).wrapping_sub(self.start);
        ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }

    /// Waits without halting.
    pub fn spin_us(&mut self, duration_us: u64) {
        let end_us = self.now_us() + duration_us;
        while self.now_us() < end_us {
            core::hint::spin_loop();
        }
    }
}
