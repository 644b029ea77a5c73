//! The I/O APIC: 24 lines of devices, and where each sends its interrupt. Pure, as [`super::LocalApic`] is.
//!
//! A level-triggered line sends once and then nothing until its interrupt has ended, however long it is high. Reference: Intel 82093AA
//! data sheet.

#![expect(clippy::cast_possible_truncation, reason = "registers are taken apart by truncation")]

use super::message::{Delivery, Destination, Message, Trigger};
use serde::{Deserialize, Serialize};

/// Lines.
pub const IO_APIC_PINS: usize = 24;
/// 24 entries, version of the 82093AA: without a register for ends of interrupts, so that guests tell them to the local APIC.
const VERSION: u32 = 0x0017_0011;
/// Offsets of the two registers that are mapped, in bytes.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Registers behind the window.
const ID: u8 = 0x00;
const VERSION_REGISTER: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const TABLE: u8 = 0x10;
/// Bits of an entry.
const DELIVERY_SHIFT: u64 = 8;
const LOGICAL: u64 = 1 << 11;
const SENDING: u64 = 1 << 12;
const REMOTE: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const ENTRY_BITS: u64 = 0xff00_0000_0001_ffff;
/// Not the guest's to write.
const READ_ONLY: u64 = SENDING | REMOTE;

/// An I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    id: u8,
    select: u8,
    entries: [u64; IO_APIC_PINS],
    /// Lines that are high, a bit each.
    high: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; IO_APIC_PINS], high: 0 }
    }
}

impl IoApic {
    /// The guest reads one of the two registers, at `offset` bytes.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => u32::from(self.select),
            WINDOW => self.selected(),
            _ => 0,
        }
    }

    /// The guest writes one of the two registers, at `offset` bytes.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match offset {
            SELECT => self.select = value as u8,
            WINDOW => return self.set_selected(value),
            _ => {}
        }
        None
    }

    /// A line is high now, or low. Lines that do not exist do nothing.
    pub fn set_line(&mut self, pin: usize, high: bool) -> Option<Message> {
        let bit = 1u32 << u32::try_from(pin).ok().filter(|_| pin < IO_APIC_PINS)?;
        let was_high = self.high & bit != 0;
        if !high {
            self.high &= !bit;
            return None;
        }
        self.high |= bit;
        let level = self.entries[pin] & LEVEL != 0;
        if level || !was_high { self.send(pin) } else { None }
    }

    /// The interrupt of `vector` is over. Lines of it that are high still send again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> impl Iterator<Item = Message> + '_ {
        (0..IO_APIC_PINS).filter_map(move |pin| {
            let entry = &mut self.entries[pin];
            if *entry & LEVEL == 0 || *entry as u8 != vector {
                return None;
            }
            *entry &= !REMOTE;
            if self.high & 1 << pin != 0 { self.send(pin) } else { None }
        })
    }

    /// What the line's entry says, unless it is masked, or waits for the end of the interrupt before.
    fn send(&mut self, pin: usize) -> Option<Message> {
        let entry = self.entries[pin];
        if entry & MASKED != 0 || entry & (LEVEL | REMOTE) == LEVEL | REMOTE {
            return None;
        }
        let delivery = Delivery::from_bits((entry >> DELIVERY_SHIFT) as u32)?;
        if entry & LEVEL != 0 {
            self.entries[pin] |= REMOTE;
        }
        let id = (entry >> 56) as u8;
        let destination = if entry & LOGICAL != 0 { Destination::Logical(id) } else { Destination::Physical(id) };
        Some(Message { destination, delivery, vector: entry as u8, trigger: Trigger::from_bit(entry & LEVEL != 0) })
    }

    /// Entry and half that are selected.
    fn place(&self) -> Option<(usize, bool)> {
        let index = usize::from(self.select.checked_sub(TABLE)?);
        (index / 2 < IO_APIC_PINS).then_some((index / 2, index % 2 == 1))
    }

    fn selected(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => u32::from(self.id) << 24,
            VERSION_REGISTER => VERSION,
            _ => self.place().map_or(0, |(pin, upper)| {
                let entry = self.entries[pin];
                if upper { (entry >> 32) as u32 } else { entry as u32 }
            }),
        }
    }

    fn set_selected(&mut self, value: u32) -> Option<Message> {
        if self.select == ID {
            self.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let (pin, upper) = self.place()?;
        let entry = &mut self.entries[pin];
        let written = if upper {
            *entry & 0xffff_ffff | u64::from(value) << 32
        } else {
            *entry & !0xffff_ffff | u64::from(value) & !READ_ONLY | *entry & READ_ONLY
        };
        *entry = written & ENTRY_BITS;
        if *entry & LEVEL == 0 {
            // Guests make an entry edge-triggered for a moment to forget an interrupt that never ended.
            *entry &= !REMOTE;
            return None;
        }
        if self.high & 1 << pin != 0 { self.send(pin) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pin: u8, value: u64) -> [(u64, u32); 4] {
        let select = |half| (SELECT, u32::from(TABLE + pin * 2 + half));
        [select(1), (WINDOW, (value >> 32) as u32), select(0), (WINDOW, value as u32)]
    }

    fn with_entry(pin: u8, value: u64) -> IoApic {
        let mut apic = IoApic::default();
        for (offset, value) in entry(pin, value) {
            assert_eq!(apic.write(offset, value), None);
        }
        apic
    }

    fn message(vector: u8, trigger: Trigger) -> Message {
        Message { destination: Destination::Physical(3), delivery: Delivery::Fixed, vector, trigger }
    }

    #[test]
    fn an_edge_sends_once_each_time_the_line_rises() {
        let mut apic = with_entry(4, 3 << 56 | 0x31);
        let sent = Some(message(0x31, Trigger::Edge));
        assert_eq!(apic.set_line(4, true), sent);
        assert_eq!(apic.set_line(4, true), None);
        assert_eq!(apic.set_line(4, false), None);
        assert_eq!(apic.set_line(4, true), sent);
        assert_eq!(apic.end_of_interrupt(0x31).count(), 0);
    }

    #[test]
    fn a_level_sends_again_after_the_end_while_it_is_high() {
        let mut apic = with_entry(9, 3 << 56 | LEVEL | 0x41);
        let sent = message(0x41, Trigger::Level);
        assert_eq!(apic.set_line(9, true), Some(sent));
        assert_eq!(apic.set_line(9, true), None, "it has not ended");
        assert_eq!(apic.end_of_interrupt(0x40).count(), 0);
        assert_eq!(apic.end_of_interrupt(0x41).collect::<Vec<_>>(), [sent]);
        assert_eq!(apic.set_line(9, false), None);
        assert_eq!(apic.end_of_interrupt(0x41).count(), 0);
        assert_eq!(apic.set_line(9, true), Some(sent));
    }

    #[test]
    fn a_masked_level_is_sent_when_its_mask_goes() {
        let mut apic = with_entry(9, 3 << 56 | LEVEL | MASKED | 0x41);
        assert_eq!(apic.set_line(9, true), None);
        let unmasked = entry(9, 3 << 56 | LEVEL | 0x41).map(|(offset, value)| apic.write(offset, value));
        assert_eq!(unmasked.into_iter().flatten().collect::<Vec<_>>(), [message(0x41, Trigger::Level)]);
    }

    #[test]
    fn a_masked_edge_is_lost() {
        let mut apic = with_entry(4, 3 << 56 | MASKED | 0x31);
        assert_eq!(apic.set_line(4, true), None);
        assert!(entry(4, 3 << 56 | 0x31).into_iter().all(|(offset, value)| apic.write(offset, value).is_none()));
    }

    #[test]
    fn what_never_ended_is_forgotten_by_way_of_an_edge() {
        let mut apic = with_entry(9, 3 << 56 | LEVEL | 0x41);
        assert!(apic.set_line(9, true).is_some());
        let _ = apic.write(SELECT, u32::from(TABLE) + 18);
        assert_eq!(apic.read(WINDOW) & REMOTE as u32, REMOTE as u32);
        assert_eq!(apic.write(WINDOW, 0x41), None);
        assert_eq!(apic.read(WINDOW), 0x41);
    }

    #[test]
    fn a_guest_cannot_write_what_is_not_its_own_nor_reach_beyond_the_table() {
        let mut apic = with_entry(0, !(MASKED | LEVEL));
        assert_eq!(u64::from(apic.read(WINDOW)) & READ_ONLY, 0);
        let _ = apic.write(SELECT, 0xff);
        assert_eq!((apic.write(WINDOW, 1), apic.read(WINDOW)), (None, 0));
        let _ = apic.write(SELECT, u32::from(VERSION_REGISTER));
        assert_eq!((apic.write(WINDOW, 1), apic.read(WINDOW)), (None, VERSION));
        assert_eq!((apic.set_line(24, true), apic.set_line(usize::MAX, true)), (None, None));
    }
}
