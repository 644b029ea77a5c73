//! All local APICs and the I/O APIC of a machine, and the messages between them.
//!
//! No two locks are held at once: a processor that sends lets go of its own APIC first.

use super::{Delivery, IO_APIC_PINS, IoApic, LocalApic, Message, Sent, lock};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Wakes a vCPU, or makes it leave the guest.
pub(crate) type Kick = Box<dyn Fn(usize) + Send + Sync>;

/// What has arrived at one vCPU.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) apic: LocalApic,
    /// An NMI waits.
    pub(crate) non_maskable: bool,
    init: bool,
    /// The page to start at.
    start: Option<u8>,
}

/// INIT and SIPI as they are to be carried out, in this order. A SIPI that came before the INIT is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Restart {
    pub(crate) init: bool,
    /// The page to start at, if the vCPU waits for that.
    pub(crate) start: Option<u8>,
}

impl Slot {
    fn new(id: u8) -> Self {
        Self { apic: LocalApic::new(id), non_maskable: false, init: false, start: None }
    }

    /// Does an INIT or a SIPI wait?
    pub(crate) const fn has_restart(&self) -> bool {
        self.init || self.start.is_some()
    }

    pub(crate) const fn take_restart(&mut self) -> Restart {
        let restart = Restart { init: self.init, start: self.start };
        (self.init, self.start) = (false, None);
        restart
    }

    fn arrive(&mut self, message: Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.apic.request(message.vector, message.trigger),
            Delivery::NonMaskable => self.non_maskable = true,
            Delivery::Init => {
                // Now, not when the vCPU sees it: what is sent after it must not be forgotten by it.
                self.apic.reset();
                (self.non_maskable, self.init, self.start) = (false, true, None);
            }
            Delivery::StartUp => self.start = Some(message.vector),
            // There is no system management mode and no old controller.
            Delivery::SystemManagement | Delivery::External => {}
        }
    }
}

/// A machine's interrupt controllers.
pub(crate) struct UserInterrupts {
    slots: Vec<Mutex<Slot>>,
    io_apic: Mutex<IoApic>,
    /// Whose turn it is among those that are equally busy.
    turn: AtomicUsize,
    kick: OnceLock<Kick>,
}

impl UserInterrupts {
    /// Those of a machine after power-up, with `cpus` vCPUs.
    pub(crate) fn new(cpus: u8) -> Self {
        Self {
            slots: (0..cpus).map(|id| Mutex::new(Slot::new(id))).collect(),
            io_apic: Mutex::default(),
            turn: AtomicUsize::new(0),
            kick: OnceLock::new(),
        }
    }

    /// Who wakes vCPUs. Set once, before the first runs.
    pub(crate) fn set_kick(&self, kick: Kick) {
        // Called once, while the machine is built.
        let _ = self.kick.set(kick);
    }

    pub(crate) fn kick(&self, vcpu: usize) {
        if let Some(kick) = self.kick.get() {
            kick(vcpu);
        }
    }

    /// What has arrived at `vcpu`, which exists.
    pub(crate) fn slot(&self, vcpu: usize) -> MutexGuard<'_, Slot> {
        lock(&self.slots[vcpu])
    }

    pub(crate) fn io_apic(&self) -> MutexGuard<'_, IoApic> {
        lock(&self.io_apic)
    }

    /// A device's interrupt: its line rises and falls, as KVM's does for an eventfd.
    pub(crate) fn pulse(&self, pin: usize) {
        debug_assert!(pin < IO_APIC_PINS, "lines are those of the machine's map");
        let mut io_apic = self.io_apic();
        let message = io_apic.set_line(pin, true);
        let _ = io_apic.set_line(pin, false);
        drop(io_apic);
        if let Some(message) = message {
            self.deliver(message, None, None);
        }
    }

    /// The guest reads its local APIC. Registers are 16 bytes apart and 4 long; more at once, or across one's end, is not defined.
    pub(crate) fn read_local(&self, vcpu: usize, offset: u64, now_ns: u64) -> u32 {
        self.slot(vcpu).apic.read(offset, now_ns)
    }

    /// The guest writes to its local APIC.
    pub(crate) fn write_local(&self, vcpu: usize, offset: u64, value: u32, now_ns: u64) {
        let mut slot = self.slot(vcpu);
        let sent = slot.apic.write(offset, value, now_ns);
        let id = slot.apic.id();
        drop(slot);
        match sent {
            Some(Sent::Message(message)) => self.deliver(message, Some(id), Some(vcpu)),
            Some(Sent::EndOfInterrupt(vector)) => self.end_of_interrupt(vector),
            None => {}
        }
    }

    /// The guest writes to the I/O APIC.
    pub(crate) fn write_io(&self, offset: u64, value: u32) {
        let message = self.io_apic().write(offset, value);
        if let Some(message) = message {
            self.deliver(message, None, None);
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        let messages: Vec<Message> = self.io_apic().end_of_interrupt(vector).collect();
        messages.into_iter().for_each(|message| self.deliver(message, None, None));
    }

    /// Brings `message` to whom it is for. `sender` is the sending APIC's id; `on` is the vCPU that calls this, which sees what
    /// arrives without being kicked.
    fn deliver(&self, message: Message, sender: Option<u8>, on: Option<usize>) {
        if message.delivery == Delivery::LowestPriority {
            if let Some(vcpu) = self.least_busy(&message, sender) {
                self.slot(vcpu).arrive(message);
                self.kick_unless(vcpu, on);
            }
            return;
        }
        for vcpu in 0..self.slots.len() {
            let mut slot = self.slot(vcpu);
            if slot.apic.is_for(message.destination, sender) {
                slot.arrive(message);
                drop(slot);
                self.kick_unless(vcpu, on);
            }
        }
    }

    fn kick_unless(&self, vcpu: usize, on: Option<usize>) {
        if on != Some(vcpu) {
            self.kick(vcpu);
        }
    }

    /// Of those that take interrupts, the one that does the least important; among equals they take turns.
    fn least_busy(&self, message: &Message, sender: Option<u8>) -> Option<usize> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.slots.len();
        let priority = |vcpu: &usize| {
            let slot = self.slot(*vcpu);
            let apic = &slot.apic;
            (apic.is_enabled() && apic.is_for(message.destination, sender)).then(|| apic.processor_priority())
        };
        let candidates = (0..count).map(|step| first.wrapping_add(step) % count);
        let candidates = candidates.filter_map(|vcpu| priority(&vcpu).map(|priority| (priority, vcpu)));
        candidates.min_by_key(|(priority, _)| *priority).map(|(_, vcpu)| vcpu)
    }
}

#[cfg(test)]
mod tests;
