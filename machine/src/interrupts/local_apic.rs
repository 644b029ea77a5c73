//! The local APIC of one processor: which interrupt it is to take next, what its guest sends to others, and its timer.
//!
//! Pure: it is told what arrives and what time it is, and says what goes out. Registers are kept as the guest reads them, so that this
//! is the same 1 KiB as KVM's `kvm_lapic_state`. Reference: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller".
//! Not offered: x2APIC, TSC-deadline mode (both hidden from the guest), thermal and performance interrupts (nothing raises them).
//!
//! ```text
//! message, timer ─▶ requested (IRR) ── processor takes the highest above its priority ─▶ in service (ISR) ── EOI ─▶ done
//! ```

#![expect(clippy::cast_possible_truncation, reason = "registers are taken apart by truncation")]

use super::message::{Delivery, Destination, EVERYBODY, Message, Trigger};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Registers, by their offset in 16 bytes.
mod register {
    pub(super) const ID: usize = 0x02;
    pub(super) const VERSION: usize = 0x03;
    pub(super) const TASK_PRIORITY: usize = 0x08;
    pub(super) const PROCESSOR_PRIORITY: usize = 0x0a;
    pub(super) const END_OF_INTERRUPT: usize = 0x0b;
    pub(super) const LOGICAL_DESTINATION: usize = 0x0d;
    pub(super) const DESTINATION_FORMAT: usize = 0x0e;
    pub(super) const SPURIOUS: usize = 0x0f;
    pub(super) const IN_SERVICE: usize = 0x10;
    pub(super) const TRIGGER_MODE: usize = 0x18;
    pub(super) const REQUESTED: usize = 0x20;
    pub(super) const ERROR: usize = 0x28;
    pub(super) const COMMAND: usize = 0x30;
    pub(super) const COMMAND_HIGH: usize = 0x31;
    pub(super) const LVT_TIMER: usize = 0x32;
    pub(super) const LVT_THERMAL: usize = 0x33;
    pub(super) const LVT_PERFORMANCE: usize = 0x34;
    pub(super) const LVT_LINT0: usize = 0x35;
    pub(super) const LVT_LINT1: usize = 0x36;
    pub(super) const LVT_ERROR: usize = 0x37;
    pub(super) const TIMER_INITIAL: usize = 0x38;
    pub(super) const TIMER_CURRENT: usize = 0x39;
    pub(super) const TIMER_DIVIDE: usize = 0x3e;
    pub(super) const COUNT: usize = 0x40;
}

/// Six entries in the local vector table, and the version of all since the Pentium 4.
const VERSION: u32 = 0x0005_0014;
/// Bit of [`register::SPURIOUS`]: without it nothing but INIT, NMI and SIPI is taken.
const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Bits of an entry of the local vector table.
const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
const LVT_EXTERNAL: u32 = 7 << 8;
const TIMER_PERIODIC: u32 = 1 << 17;
/// What the guest may write to an entry: of the timer, of a pin, of an error.
const LVT_TIMER_BITS: u32 = 0x0003_00ff;
const LVT_PIN_BITS: u32 = 0x0001_a7ff;
const LVT_ERROR_BITS: u32 = 0x0001_00ff;
/// Bits of the interrupt command register.
const COMMAND_BITS: u32 = 0x000c_cfff;
const COMMAND_LOGICAL: u32 = 1 << 11;
const COMMAND_ASSERT: u32 = 1 << 14;
const COMMAND_LEVEL: u32 = 1 << 15;
/// Bits of the error status register.
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ILLEGAL_REGISTER: u32 = 1 << 7;
/// Vectors below belong to the processor's own exceptions.
const VECTOR_MIN: u8 = 16;
/// All clusters but the flat model's.
const FLAT: u32 = 0xffff_ffff;
/// The timer counts once in so many ns, divided as the guest asks: KVM's does as well.
const TICK_NS: u64 = 1;

/// Bytes of the register page that hold registers.
pub const LOCAL_APIC_BYTES: usize = register::COUNT * 16;

/// What a write of the guest's asks of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// An interrupt for processors.
    Message(Message),
    /// A level-triggered interrupt is over: I/O APICs look whether its line is still high.
    EndOfInterrupt(u8),
}

/// Where an old interrupt controller or a button is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// LINT0.
    Zero,
    /// LINT1.
    One,
}

/// What of a local APIC decides whether an interrupt is for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Addressing {
    /// What [`Destination::Physical`] names.
    pub id: u8,
    /// The logical destination register.
    pub logical: u32,
    /// The destination format register.
    pub format: u32,
    /// It takes interrupts.
    pub is_enabled: bool,
}

/// A local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalApic {
    registers: [u32; register::COUNT],
    /// Errors not shown yet: a write to the error register shows them.
    errors: u32,
    counting: Option<Counting>,
}

/// A timer that counts down: it was at `from` at `since_ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counting {
    since_ns: u64,
    from: u32,
}

impl LocalApic {
    /// As after power-up, with this id.
    #[must_use]
    pub fn new(id: u8) -> Self {
        let mut apic = Self { registers: [0; register::COUNT], errors: 0, counting: None };
        apic.registers[register::ID] = u32::from(id) << 24;
        apic.reset();
        apic
    }

    /// As after INIT: all but the id is as at power-up.
    pub fn reset(&mut self) {
        let id = self.registers[register::ID];
        self.registers = [0; register::COUNT];
        self.registers[register::ID] = id;
        self.registers[register::VERSION] = VERSION;
        self.registers[register::DESTINATION_FORMAT] = FLAT;
        self.registers[register::SPURIOUS] = 0xff;
        self.registers[register::LVT_TIMER..=register::LVT_ERROR].fill(LVT_MASKED);
        (self.errors, self.counting) = (0, None);
    }

    /// The id that [`Destination::Physical`] names.
    #[must_use]
    pub const fn id(&self) -> u8 {
        (self.registers[register::ID] >> 24) as u8
    }

    /// What interrupts find it by.
    #[must_use]
    pub const fn addressing(&self) -> Addressing {
        Addressing {
            id: self.id(),
            logical: self.registers[register::LOGICAL_DESTINATION],
            format: self.registers[register::DESTINATION_FORMAT],
            is_enabled: self.is_enabled(),
        }
    }

    /// Becomes what stands for an APIC that is elsewhere: found by the same.
    pub fn set_addressing(&mut self, addressing: Addressing) {
        let Addressing { id, logical, format, is_enabled } = addressing;
        self.registers[register::ID] = u32::from(id) << 24;
        self.registers[register::LOGICAL_DESTINATION] = logical & 0xff00_0000;
        self.registers[register::DESTINATION_FORMAT] = format | 0x0fff_ffff;
        self.registers[register::SPURIOUS] = 0xff | if is_enabled { SOFTWARE_ENABLE } else { 0 };
    }

    /// Does it take interrupts? INIT, NMI and SIPI are taken anyway.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.registers[register::SPURIOUS] & SOFTWARE_ENABLE != 0
    }

    /// A message that `sender` sent: is it for this processor too?
    #[must_use]
    pub fn is_for(&self, destination: Destination, sender: Option<u8>) -> bool {
        match destination {
            Destination::Physical(id) => id == EVERYBODY || id == self.id(),
            Destination::Logical(mask) => self.matches(mask),
            Destination::Sender => sender == Some(self.id()),
            Destination::All => true,
            Destination::Others => sender != Some(self.id()),
        }
    }

    /// In the flat model a bit for each processor; else four bits of cluster and one for each of its processors.
    const fn matches(&self, mask: u8) -> bool {
        let own = (self.registers[register::LOGICAL_DESTINATION] >> 24) as u8;
        if self.registers[register::DESTINATION_FORMAT] >> 28 == 0xf {
            return own & mask != 0;
        }
        let same_cluster = mask >> 4 == 0xf || own >> 4 == mask >> 4;
        same_cluster && own & mask & 0xf != 0
    }

    /// An interrupt arrives. One that is requested already is not requested twice.
    pub fn request(&mut self, vector: u8, trigger: Trigger) {
        if vector < VECTOR_MIN {
            return self.fail(RECEIVE_ILLEGAL_VECTOR);
        }
        if !self.is_enabled() {
            return;
        }
        self.set(register::REQUESTED, vector, true);
        self.set(register::TRIGGER_MODE, vector, trigger == Trigger::Level);
    }

    /// As firmware leaves the first processor's: interrupts of the old controller reach it through LINT0. MP specification 1.4, "Virtual Wire
    /// Mode".
    pub const fn wire_old_controller(&mut self) {
        self.registers[register::LVT_LINT0] = LVT_EXTERNAL;
    }

    /// Do interrupts of the old controller reach it?
    #[must_use]
    pub const fn takes_external(&self) -> bool {
        self.registers[register::LVT_LINT0] & (LVT_MASKED | LVT_EXTERNAL) == LVT_EXTERNAL
    }

    /// What a pin that becomes active does; `None`: nothing, or it was a vector, which is requested now.
    pub fn raise(&mut self, pin: Pin) -> Option<Delivery> {
        let entry = self.registers[match pin {
            Pin::Zero => register::LVT_LINT0,
            Pin::One => register::LVT_LINT1,
        }];
        if entry & LVT_MASKED != 0 {
            return None;
        }
        let delivery = Delivery::from_bits(entry >> 8)?;
        if delivery == Delivery::Fixed {
            self.request(entry as u8, Trigger::from_bit(entry & LVT_LEVEL != 0));
            return None;
        }
        Some(delivery)
    }

    /// The interrupt to be taken next, when the processor takes any.
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.highest(register::REQUESTED)?;
        (self.is_enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The processor takes the pending interrupt.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.set(register::REQUESTED, vector, false);
        self.set(register::IN_SERVICE, vector, true);
        Some(vector)
    }

    /// Interrupts of this class and below must wait: that of the task, or of what is in service.
    #[must_use]
    pub fn processor_priority(&self) -> u8 {
        let task = self.registers[register::TASK_PRIORITY] as u8;
        let serving = self.highest(register::IN_SERVICE).unwrap_or(0);
        if task >> 4 >= serving >> 4 { task } else { serving & 0xf0 }
    }

    /// The guest's CR8: the class of its task.
    #[must_use]
    pub const fn task_class(&self) -> u8 {
        (self.registers[register::TASK_PRIORITY] >> 4) as u8 & 0xf
    }

    /// The guest wrote CR8.
    pub fn set_task_class(&mut self, class: u8) {
        self.registers[register::TASK_PRIORITY] = u32::from(class & 0xf) << 4;
    }

    /// When [`Self::run_timer`] is due, in ns.
    #[must_use]
    pub fn timer_due_ns(&self) -> Option<u64> {
        let Counting { since_ns, from } = self.counting?;
        Some(since_ns.saturating_add(u64::from(from) * self.count_ns()))
    }

    /// The time is `now_ns`. Periods that were missed are one interrupt.
    pub fn run_timer(&mut self, now_ns: u64) {
        let Some(due) = self.timer_due_ns().filter(|due| *due <= now_ns) else { return };
        let entry = self.registers[register::LVT_TIMER];
        let from = self.registers[register::TIMER_INITIAL];
        let period = u64::from(from) * self.count_ns();
        // Never 0 while it counts, but for what the type says.
        let missed = (now_ns - due).checked_div(period).filter(|_| entry & TIMER_PERIODIC != 0);
        self.counting = missed.map(|missed| Counting { since_ns: due + missed * period, from });
        if entry & LVT_MASKED == 0 {
            self.request(entry as u8, Trigger::Edge);
        }
    }

    /// The guest reads the register at `offset` bytes.
    pub fn read(&mut self, offset: u64, now_ns: u64) -> u32 {
        match usize::try_from(offset >> 4) {
            Ok(register::PROCESSOR_PRIORITY) => u32::from(self.processor_priority()),
            Ok(register::TIMER_CURRENT) => self.timer_current(now_ns),
            Ok(register::END_OF_INTERRUPT) => 0,
            Ok(index) if index < register::COUNT => self.registers[index],
            _ => {
                self.fail(ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// The guest writes the register at `offset` bytes.
    pub fn write(&mut self, offset: u64, value: u32, now_ns: u64) -> Option<Sent> {
        let index = usize::try_from(offset >> 4).unwrap_or(register::COUNT);
        match index {
            register::ID | register::LOGICAL_DESTINATION | register::COMMAND_HIGH => {
                self.registers[index] = value & 0xff00_0000;
            }
            register::TASK_PRIORITY => self.registers[index] = value & 0xff,
            register::END_OF_INTERRUPT => return self.end_of_interrupt(),
            register::DESTINATION_FORMAT => self.registers[index] = value | 0x0fff_ffff,
            register::SPURIOUS => self.set_spurious(value),
            register::ERROR => self.registers[index] = std::mem::take(&mut self.errors),
            register::COMMAND => return self.command(value),
            register::LVT_TIMER => self.set_entry(index, value & LVT_TIMER_BITS),
            register::LVT_LINT0 | register::LVT_LINT1 => self.set_entry(index, value & LVT_PIN_BITS),
            register::LVT_THERMAL | register::LVT_PERFORMANCE | register::LVT_ERROR => {
                self.set_entry(index, value & LVT_ERROR_BITS);
            }
            register::TIMER_INITIAL => {
                self.registers[index] = value;
                self.counting = (value != 0).then_some(Counting { since_ns: now_ns, from: value });
            }
            register::TIMER_DIVIDE => self.set_divide(value, now_ns),
            // Read-only.
            register::VERSION
            | register::PROCESSOR_PRIORITY
            | register::IN_SERVICE..register::ERROR
            | register::TIMER_CURRENT => {}
            _ => self.fail(ILLEGAL_REGISTER),
        }
        None
    }

    /// The registers as `kvm_lapic_state` has them, at `now_ns`.
    #[must_use]
    pub fn save(&mut self, now_ns: u64) -> [u8; LOCAL_APIC_BYTES] {
        // One that has run out is seen as an interrupt or not at all.
        self.run_timer(now_ns);
        let mut page = [0; LOCAL_APIC_BYTES];
        for (index, (place, register)) in page.chunks_exact_mut(16).zip(self.registers).enumerate() {
            let value = match index {
                register::PROCESSOR_PRIORITY => u32::from(self.processor_priority()),
                register::TIMER_CURRENT => self.timer_current(now_ns),
                _ => register,
            };
            place[..4].copy_from_slice(&value.to_le_bytes());
        }
        page
    }

    /// An APIC that goes on as the saved one was. What a guest could not have written is put right.
    #[must_use]
    pub fn restore(page: &[u8; LOCAL_APIC_BYTES], now_ns: u64) -> Self {
        let mut apic = Self { registers: [0; register::COUNT], errors: 0, counting: None };
        for (register, place) in apic.registers.iter_mut().zip(page.chunks_exact(16)) {
            *register = place.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        }
        apic.registers[register::VERSION] = VERSION;
        // No vector below the least was ever requested.
        for set in [register::REQUESTED, register::IN_SERVICE] {
            apic.registers[set] &= 0xffff_0000;
        }
        let current = apic.registers[register::TIMER_CURRENT];
        if current != 0 {
            let initial = &mut apic.registers[register::TIMER_INITIAL];
            *initial = (*initial).max(current);
            apic.counting = Some(Counting { since_ns: now_ns, from: current });
        }
        apic
    }

    fn end_of_interrupt(&mut self) -> Option<Sent> {
        let vector = self.highest(register::IN_SERVICE)?;
        self.set(register::IN_SERVICE, vector, false);
        self.is_set(register::TRIGGER_MODE, vector).then_some(Sent::EndOfInterrupt(vector))
    }

    /// A guest that disables its APIC masks all of its local interrupts with that.
    fn set_spurious(&mut self, value: u32) {
        self.registers[register::SPURIOUS] = value & 0x1ff;
        if !self.is_enabled() {
            self.registers[register::LVT_TIMER..=register::LVT_ERROR].iter_mut().for_each(|entry| *entry |= LVT_MASKED);
        }
    }

    fn set_entry(&mut self, index: usize, value: u32) {
        self.registers[index] = if self.is_enabled() { value } else { value | LVT_MASKED };
    }

    fn set_divide(&mut self, value: u32, now_ns: u64) {
        // It goes on from where it is, at its new pace.
        let from = self.timer_current(now_ns);
        self.counting = self.counting.map(|_| Counting { since_ns: now_ns, from });
        self.registers[register::TIMER_DIVIDE] = value & 0b1011;
    }

    fn command(&mut self, value: u32) -> Option<Sent> {
        let value = value & COMMAND_BITS;
        // Delivery status, a bit that is never set: messages are sent at once.
        self.registers[register::COMMAND] = value;
        let delivery = Delivery::from_bits(value >> 8)?;
        let vector = value as u8;
        // Synchronises arbitration ids on processors of long ago; no others do anything with it.
        if delivery == Delivery::Init && value & (COMMAND_ASSERT | COMMAND_LEVEL) == COMMAND_LEVEL {
            return None;
        }
        if matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) && vector < VECTOR_MIN {
            self.fail(SEND_ILLEGAL_VECTOR);
            return None;
        }
        let id = (self.registers[register::COMMAND_HIGH] >> 24) as u8;
        let destination = match value >> 18 & 3 {
            1 => Destination::Sender,
            2 => Destination::All,
            3 => Destination::Others,
            _ if value & COMMAND_LOGICAL != 0 => Destination::Logical(id),
            _ => Destination::Physical(id),
        };
        // Between processors every interrupt is an edge, whatever the bit says.
        Some(Sent::Message(Message { destination, delivery, vector, trigger: Trigger::Edge }))
    }

    /// An error is shown when the guest asks, and told by an interrupt if it wants one.
    fn fail(&mut self, error: u32) {
        let entry = self.registers[register::LVT_ERROR];
        let news = self.errors & error == 0;
        self.errors |= error;
        // A vector that is no good must not raise the next error.
        if news && entry & LVT_MASKED == 0 && entry as u8 >= VECTOR_MIN {
            self.request(entry as u8, Trigger::Edge);
        }
    }

    /// Time of one count, in ns.
    const fn count_ns(&self) -> u64 {
        let bits = self.registers[register::TIMER_DIVIDE];
        // 0 to 6 are 2 to 128, 7 is 1.
        let shift = ((bits & 3 | bits >> 1 & 4) + 1) & 7;
        TICK_NS << shift
    }

    fn timer_current(&self, now_ns: u64) -> u32 {
        let Some(Counting { since_ns, from }) = self.counting else { return 0 };
        let counted = now_ns.saturating_sub(since_ns) / self.count_ns();
        match u64::from(from).checked_sub(counted) {
            Some(left) if left > 0 => left as u32,
            // Over, though nobody has run it yet.
            _ if self.registers[register::LVT_TIMER] & TIMER_PERIODIC == 0 => 0,
            _ => {
                let initial = self.registers[register::TIMER_INITIAL];
                initial - ((counted - u64::from(from)) % u64::from(initial.max(1))) as u32
            }
        }
    }

    const fn set(&mut self, set: usize, vector: u8, on: bool) {
        let (index, bit) = (set + (vector >> 5) as usize, 1 << (vector & 31));
        if on {
            self.registers[index] |= bit;
        } else {
            self.registers[index] &= !bit;
        }
    }

    const fn is_set(&self, set: usize, vector: u8) -> bool {
        self.registers[set + (vector >> 5) as usize] & 1 << (vector & 31) != 0
    }

    fn highest(&self, set: usize) -> Option<u8> {
        let words: Range<usize> = set..set + 8;
        let (word, bits) = self.registers[words].iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        u8::try_from(word * 32).ok().map(|first| first + bits.ilog2() as u8)
    }
}

#[cfg(test)]
mod tests;
