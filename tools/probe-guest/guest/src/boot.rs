//! The way from the loader to ring 3, and what the loader told us. The assembly is in `boot/*.s`: tables, entry and
//! the handful of ring-0 services; all else in this program runs in ring 3, at full speed on every host.

use core::arch::{asm, global_asm};
use core::ptr;

global_asm!(include_str!("boot/tables.s"), include_str!("boot/entry.s"), include_str!("boot/traps.s"));

/// vCPUs the tables have room for; must be `MAX_CPUS` in `tables.s`.
pub const MAX_CPUS: usize = 32;
/// Bytes of ring-3 stack per vCPU; must be `USER_STACK_BYTES` in `tables.s`.
const USER_STACK_BYTES: usize = 32768;
/// Where the real-mode start-up code goes; must be `TRAMPOLINE` in `tables.s`.
pub const TRAMPOLINE: usize = 0x8000;

const START_INFO_MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static user_stacks: u8;
    static image_end: u8;
}

/// Asks ring 0 for a service; see `traps.s` for the numbers.
///
/// # Safety
/// The caller must know that the service with these arguments returns to it and leaves its memory alone.
unsafe fn service(number: u32, argument_low: u32, argument_high: u32, extra: u32) -> u32 {
    let result;
    // SAFETY: `service_call` clobbers exactly the registers named here; the rest is the caller's promise.
    unsafe {
        asm!("call service_call", inout("eax") number => result, inout("ecx") argument_low => _,
             inout("edx") argument_high => _, in("r8d") extra);
    }
    result
}

/// Halts until the local APIC timer, armed with `timer_count`, or another interrupt fires. Zero halts for good.
pub fn halt(timer_count: u32) {
    // SAFETY: service 0 halts and returns; it touches only the LAPIC timer.
    unsafe { service(0, timer_count, 0, 0) };
}

/// Writes a model-specific register; false if the processor refused.
///
/// # Safety
/// The register must not change how this program's memory is mapped or executed.
pub unsafe fn write_msr(register: u32, value: u64) -> bool {
    // SAFETY: service 1 returns, refused or not; what the register does is the caller's promise.
    unsafe { service(1, register, (value >> 32) as u32, value as u32) == 0 }
}

/// Ends the machine by a triple fault.
pub fn triple_fault() -> ! {
    // SAFETY: service 2 never returns, so nothing can go wrong after it.
    unsafe { service(2, 0, 0, 0) };
    loop {
        halt(0);
    }
}

/// Which vCPU this is, from the stack it runs on; 0 for an address outside all of them.
pub fn cpu_of_stack(address: usize) -> usize {
    let base = (&raw const user_stacks).addr();
    let cpu = address.wrapping_sub(base) / USER_STACK_BYTES;
    if cpu < MAX_CPUS { cpu } else { 0 }
}

/// The vCPU that calls.
pub fn this_cpu() -> usize {
    let here = 0_u8;
    cpu_of_stack((&raw const here).addr())
}

/// Copies the start-up code for application processors below 1 MiB. The loader's data there must have been read before.
pub fn install_trampoline() {
    let from = &raw const ap_trampoline;
    let bytes = (&raw const ap_trampoline_end).addr() - from.addr();
    // SAFETY: the page at TRAMPOLINE is low RAM which this program never uses otherwise; the source is `bytes` long.
    unsafe { ptr::copy_nonoverlapping(from, ptr::with_exposed_provenance_mut(TRAMPOLINE), bytes) };
}

/// A range of RAM, in bytes.
#[derive(Clone, Copy, Default)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// What the loader said, copied out of its memory.
pub struct BootInfo {
    /// The kernel command line.
    pub command_line: [u8; 4096],
    /// Bytes used of it.
    pub command_line_bytes: usize,
    /// RAM above 1 MiB, minus this image; in ascending order.
    pub regions: [Region; 8],
    /// All RAM the memory map names, in bytes.
    pub ram_bytes: u64,
}

fn read<T: Copy>(address: u64) -> T {
    let pointer: *const T = ptr::with_exposed_provenance(address as usize);
    // SAFETY: everything below 512 GiB is mapped and the loader's structures are plain integers; unmapped guest
    // memory reads as ones, it does not fault.
    unsafe { pointer.read_unaligned() }
}

impl BootInfo {
    /// An empty one, to be filled by [`BootInfo::read_from`].
    pub const fn new() -> Self {
        Self { command_line: [0; 4096], command_line_bytes: 0, regions: [Region { start: 0, end: 0 }; 8], ram_bytes: 0 }
    }

    /// Reads hvm_start_info; false if it is not there or has no memory map.
    pub fn read_from(&mut self, start_info: u64) -> bool {
        if start_info == 0 || read::<u32>(start_info) != START_INFO_MAGIC {
            return false;
        }
        let command_line = read::<u64>(start_info + 24);
        if command_line != 0 {
            for slot in &mut self.command_line {
                *slot = read(command_line + self.command_line_bytes as u64);
                if *slot == 0 {
                    break;
                }
                self.command_line_bytes += 1;
            }
        }
        if read::<u32>(start_info + 4) < 1 {
            return false;
        }
        let entries = u64::from(read::<u32>(start_info + 48).min(128));
        let memory_map = read::<u64>(start_info + 40);
        let mut used = 0;
        for entry in (0..entries).map(|index| memory_map + 24 * index) {
            if read::<u32>(entry + 16) == RAM {
                let start = read::<u64>(entry);
                let bytes = read::<u64>(entry + 8);
                self.ram_bytes += bytes;
                self.add_region(start, start.saturating_add(bytes), &mut used);
            }
        }
        used > 0
    }

    fn add_region(&mut self, start: u64, end: u64, used: &mut usize) {
        // Below the image live the loader's tables and the trampoline; above 512 GiB nothing is mapped.
        let start = start.max((&raw const image_end).addr() as u64).next_multiple_of(4096);
        let end = end.min(512 << 30) & !4095;
        if start < end && *used < self.regions.len() {
            self.regions[*used] = Region { start, end };
            *used += 1;
        }
    }
}
