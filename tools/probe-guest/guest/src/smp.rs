//! Other vCPUs: their local APICs, finding them in the MP table, waking them with INIT and start-up IPIs. All of it
//! from ring 3: the LAPIC page is open to it.

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::boot::{self, MAX_CPUS, TRAMPOLINE};
use crate::clock::Clock;

const LAPIC: usize = 0xfee0_0000;
const EOI: usize = 0xb0;
const TASK_PRIORITY: usize = 0x80;
const SPURIOUS: usize = 0xf0;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;
const MASKED: u32 = 1 << 16;
const ENABLE_WITH_SPURIOUS_VECTOR_47: u32 = 0x100 | 47;
const TIMER_VECTOR: u32 = 32;
const DIVIDE_BY_ONE: u32 = 0xb;

/// vCPUs that reached ring 3, this program's first included.
pub static ONLINE: AtomicU32 = AtomicU32::new(1);

fn lapic_read(register: usize) -> u32 {
    let pointer: *const u32 = ptr::with_exposed_provenance(LAPIC + register);
    // SAFETY: the LAPIC page is mapped and open to ring 3; reading the registers used here has no side effect.
    unsafe { pointer.read_volatile() }
}

fn lapic_write(register: usize, value: u32) {
    let pointer: *mut u32 = ptr::with_exposed_provenance_mut(LAPIC + register);
    // SAFETY: as above; the registers written affect interrupts only, never memory.
    unsafe { pointer.write_volatile(value) };
}

/// Switches the calling vCPU's LAPIC on, everything masked but the one-shot timer.
pub fn enable_lapic() {
    lapic_write(SPURIOUS, ENABLE_WITH_SPURIOUS_VECTOR_47);
    lapic_write(TASK_PRIORITY, 0);
    lapic_write(LVT_LINT0, MASKED);
    lapic_write(LVT_LINT1, MASKED);
    lapic_write(TIMER_DIVIDE, DIVIDE_BY_ONE);
    lapic_write(LVT_TIMER, TIMER_VECTOR);
    lapic_write(EOI, 0);
}

/// LAPIC timer ticks per millisecond, measured against the clock; zero if the timer does not count.
pub fn timer_ticks_per_ms(clock: &mut Clock) -> u32 {
    lapic_write(LVT_TIMER, MASKED | TIMER_VECTOR);
    lapic_write(TIMER_INITIAL, u32::MAX);
    let start_us = clock.now_us();
    clock.spin_us(10_000);
    let left = lapic_read(TIMER_CURRENT);
    let passed_us = clock.now_us() - start_us;
    lapic_write(TIMER_INITIAL, 0);
    lapic_write(LVT_TIMER, TIMER_VECTOR);
    let ticks = u64::from(u32::MAX - left) * 1000 / passed_us.max(1);
    if left == 0 { 0 } else { u32::try_from(ticks).unwrap_or(u32::MAX) }
}

/// The enabled processors of the MP table, by APIC id.
pub struct Processors {
    ids: [u8; MAX_CPUS],
    count: usize,
}

/// Bytes at `address`, which must be below 1 MiB.
fn low_memory<const N: usize>(address: usize) -> [u8; N] {
    let pointer: *const [u8; N] = ptr::with_exposed_provenance(address);
    // SAFETY: the first MiB is mapped; bytes have no invalid value, and firmware tables are not written any more.
    unsafe { pointer.read_unaligned() }
}

fn find_mp_table() -> Option<usize> {
    let ebda = usize::from(u16::from_le_bytes(low_memory(0x40e))) << 4;
    let ebda = if (0x8_0000..0xa_0000).contains(&ebda) { ebda } else { 0x9_fc00 };
    [(ebda, ebda + 1024), (0x9_f800, 0xa_0000), (0xe_0000, 0x10_0000)].into_iter().find_map(|(start, end)| {
        (start..end).step_by(16).find(|&at| low_memory::<4>(at) == *b"_MP_").and_then(|at| {
            let table = u32::from_le_bytes(low_memory(at + 4)) as usize;
            (table != 0 && table < 0x10_0000 && low_memory::<4>(table) == *b"PCMP").then_some(table)
        })
    })
}

impl Processors {
    /// Reads the MP table, if there is one.
    pub fn find() -> Option<Self> {
        let table = find_mp_table()?;
        let mut found = Self { ids: [0; MAX_CPUS], count: 0 };
        let mut at = table + 44;
        for _ in 0..u16::from_le_bytes(low_memory(table + 34)) {
            let [kind, id, _, flags] = low_memory::<4>(at);
            if kind == 0 && flags & 1 != 0 && found.count < MAX_CPUS {
                found.ids[found.count] = id;
                found.count += 1;
            }
            at += if kind == 0 { 20 } else { 8 };
        }
        (found.count > 0).then_some(found)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

fn send_ipi(target_apic_id: u8, command: u32) {
    lapic_write(ICR_HIGH, u32::from(target_apic_id) << 24);
    lapic_write(ICR_LOW, command);
}

fn wait_online(clock: &mut Clock, count: u32, limit_us: u64) -> bool {
    let deadline_us = clock.now_us() + limit_us;
    while ONLINE.load(Ordering::Acquire) < count {
        if clock.now_us() > deadline_us {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Wakes other vCPUs until `limit` are online; returns how many are. With an MP table one by one, without by a
/// broadcast, and then whoever comes within half a second counts.
pub fn start_others(clock: &mut Clock, processors: Option<&Processors>, limit: usize) -> usize {
    const INIT: u32 = 0x4500;
    const STARTUP: u32 = 0x4600 | (TRAMPOLINE >> 12) as u32;
    const ALL_BUT_SELF: u32 = 0xc_0000;
    boot::install_trampoline();
    let self_id = (lapic_read(0x20) >> 24) as u8;
    let mut online = 1;
    if let Some(processors) = processors {
        for &id in processors.ids[..processors.count].iter().filter(|&&id| id != self_id) {
            if online as usize >= limit {
                break;
            }
            send_ipi(id, INIT);
            clock.spin_us(10_000);
            send_ipi(id, STARTUP);
            let mut up = wait_online(clock, online + 1, 200_000);
            if !up {
                send_ipi(id, STARTUP);
                up = wait_online(clock, online + 1, 2_000_000);
            }
            online += u32::from(up);
        }
    } else if limit > 1 {
        send_ipi(0, INIT | ALL_BUT_SELF);
        clock.spin_us(10_000);
        send_ipi(0, STARTUP | ALL_BUT_SELF);
        clock.spin_us(1_000);
        send_ipi(0, STARTUP | ALL_BUT_SELF);
        wait_online(clock, limit as u32, 500_000);
    }
    (ONLINE.load(Ordering::Acquire) as usize).min(limit)
}
