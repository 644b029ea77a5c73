//! The MultiProcessor table (Intel MP specification 1.4): how a kernel without ACPI finds processors and interrupts.
//! No maintained crate writes one.
//!
//! Interrupts are wired one to one: ISA line n is IOAPIC pin n, as KVM's default routing has it.

use super::{map, place};
use crate::MachineError;
use crate::memory::DeviceMemory;

const SPEC_VERSION: u8 = 4;
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const ISA_LINES: u8 = 16;
/// Destination "all LAPICs".
const EVERY_LAPIC: u8 = 0xff;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;

/// Makes the bytes sum to zero.
fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

fn processor(id: u8) -> [u8; 20] {
    const ENABLED: u8 = 1;
    const BOOT: u8 = 2;
    let mut entry = [0; 20];
    entry[0] = ENTRY_PROCESSOR;
    entry[1] = id;
    entry[2] = LAPIC_VERSION;
    entry[3] = ENABLED | if id == 0 { BOOT } else { 0 };
    // Family 6; FPU, CX8, APIC.
    entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
    entry[8..12].copy_from_slice(&0x301u32.to_le_bytes());
    entry
}

fn interrupt(kind: u8, entry_type: u8, line: u8, target: u8, pin: u8) -> [u8; 8] {
    // Flags 0: polarity and trigger as the bus has them, that is edge, active high. Source bus 0.
    [entry_type, kind, 0, 0, 0, line, target, pin]
}

/// The floating pointer and the table behind it, for `address`.
fn table(cpus: u8, address: u32) -> Vec<u8> {
    let ioapic_id = cpus;
    let mut entries = Vec::new();
    let mut count: u16 = 0;
    let mut add = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    (0..cpus).for_each(|id| add(&processor(id)));
    add(&[&[ENTRY_BUS, 0][..], b"ISA   "].concat());
    add(&[&[ENTRY_IOAPIC, ioapic_id, IOAPIC_VERSION, 1][..], &map::IOAPIC.to_le_bytes()].concat());
    (0..ISA_LINES).for_each(|line| add(&interrupt(INTERRUPT_VECTORED, ENTRY_INTERRUPT, line, ioapic_id, line)));
    add(&interrupt(INTERRUPT_EXTINT, ENTRY_LOCAL_INTERRUPT, 0, 0, 0));
    add(&interrupt(INTERRUPT_NMI, ENTRY_LOCAL_INTERRUPT, 0, EVERY_LAPIC, 1));

    let mut header = [0; 44];
    let length = u16::try_from(header.len() + entries.len()).unwrap_or(u16::MAX);
    header[0..4].copy_from_slice(b"PCMP");
    header[4..6].copy_from_slice(&length.to_le_bytes());
    header[6] = SPEC_VERSION;
    header[8..16].copy_from_slice(b"VMOTION ");
    header[16..28].copy_from_slice(b"MACHINE     ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&map::LAPIC.to_le_bytes());
    let mut body = [&header[..], &entries].concat();
    body[7] = checksum(&body);

    let mut pointer = [0; 16];
    pointer[0..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(address + 16).to_le_bytes());
    pointer[8] = 1;
    pointer[9] = SPEC_VERSION;
    pointer[10] = checksum(&pointer);
    [&pointer[..], &body].concat()
}

/// Writes the table for `cpus` processors where kernels look for it.
pub(super) fn write(memory: &DeviceMemory, cpus: u8) -> Result<(), MachineError> {
    let address = u32::try_from(map::MP_TABLE).unwrap_or(0);
    place(memory, &table(cpus, address), map::MP_TABLE, "MP table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_lengths_are_right() {
        for cpus in [1, 2, 64] {
            let bytes = table(cpus, 0xf_0000);
            let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum(&bytes[..16]), 0);
            assert_eq!(sum(&bytes[16..]), 0);
            assert_eq!(usize::from(u16::from_le_bytes([bytes[20], bytes[21]])), bytes.len() - 16);
            assert_eq!(u16::from_le_bytes([bytes[50], bytes[51]]), u16::from(cpus) + 20);
        }
    }
}
