//! All local APICs and the I/O APIC of a machine, and the messages between them.
//!
//! Of a vCPU that is on another host the APIC here is only asked whether an interrupt is for it: what it is found by is told by the host that
//! has it. The interrupt then goes there, by name, and whoever gets one for a vCPU that has gone on sends it after it.
//!
//! No two locks are held at once: a processor that sends lets go of its own APIC first.

use super::{
    Addressing, Delivery, Destination, IO_APIC_PINS, IoApic, LocalApic, Message, PicRegister, Pics, Pin, Sent, Trigger,
    lock,
};
use crate::boot::map;
use crate::part::{Elsewhere, Part, Space};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// Bytes of the I/O APIC's registers.
const IO_APIC_BYTES: u64 = 0x100;

/// The vCPU whose LINT0 the old controllers are connected to, as the MP table says.
const WIRED: usize = 0;
/// Where, beyond all ports of the guest's, other parts acknowledge interrupts of the old controllers: two bytes, the vector and whether there
/// is one.
pub(crate) const ACKNOWLEDGE_PORT: u64 = 0x1_0000;

/// Wakes a vCPU, or makes it leave the guest.
pub(crate) type Kick = Box<dyn Fn(usize) + Send + Sync>;

/// Where a vCPU is, seen from here.
#[derive(Debug)]
pub(crate) enum Presence {
    Here,
    /// On its way: what arrives waits until it is here.
    Coming(Vec<Message>),
    Elsewhere,
}

/// What has arrived at one vCPU.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) apic: LocalApic,
    /// An NMI waits.
    pub(crate) non_maskable: bool,
    /// The old controllers' output may be high.
    external: bool,
    init: bool,
    /// The page to start at.
    start: Option<u8>,
    presence: Presence,
}

/// INIT and SIPI as they are to be carried out, in this order. A SIPI that came before the INIT is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Restart {
    pub(crate) init: bool,
    /// The page to start at, if the vCPU waits for that.
    pub(crate) start: Option<u8>,
}

impl Slot {
    fn new(id: u8, presence: Presence) -> Self {
        let mut apic = LocalApic::new(id);
        if usize::from(id) == WIRED {
            apic.wire_old_controller();
        }
        Self { apic, non_maskable: false, external: false, init: false, start: None, presence }
    }

    /// Is there an interrupt, as far as is known?
    pub(crate) fn has_interrupt(&self) -> bool {
        self.has_external() || self.apic.pending().is_some()
    }

    /// The old controllers may have one that the processor takes.
    const fn has_external(&self) -> bool {
        self.external && self.apic.takes_external()
    }

    /// The same, which is asked of them now.
    pub(crate) const fn take_external(&mut self) -> bool {
        let has = self.has_external();
        if has {
            self.external = false;
        }
        has
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
                (self.non_maskable, self.external, self.init, self.start) = (false, false, true, None);
            }
            Delivery::StartUp => self.start = Some(message.vector),
            Delivery::External => match self.apic.raise(Pin::Zero) {
                Some(Delivery::NonMaskable) => self.non_maskable = true,
                // It stays high until somebody takes it, which may be after the pin was told to.
                _ => self.external = true,
            },
            // There is no system management mode.
            Delivery::SystemManagement => {}
        }
    }
}

/// A machine's interrupt controllers.
pub(crate) struct UserInterrupts {
    slots: Vec<Mutex<Slot>>,
    io_apic: Mutex<IoApic>,
    pics: Mutex<Pics>,
    /// The other parts of the machine, when this is only one; whether the I/O APIC and the old controllers are here.
    elsewhere: Option<Arc<dyn Elsewhere>>,
    has_io_apic: bool,
    /// Whose turn it is among those that are equally busy.
    turn: AtomicUsize,
    kick: OnceLock<Kick>,
}

impl UserInterrupts {
    /// Those of a machine after power-up, with `cpus` vCPUs; or of a part of it.
    pub(crate) fn new(cpus: u8, part: Option<&Part>) -> Self {
        let presence = |id| match part {
            Some(part) if !part.vcpus.contains(id) => Presence::Elsewhere,
            _ => Presence::Here,
        };
        Self {
            slots: (0..cpus).map(|id| Mutex::new(Slot::new(id, presence(id)))).collect(),
            io_apic: Mutex::default(),
            pics: Mutex::default(),
            elsewhere: part.map(|part| Arc::clone(&part.elsewhere)),
            has_io_apic: part.is_none_or(|part| part.devices),
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
        self.change_pics(|pics| {
            pics.set_line(pin, true);
            pics.set_line(pin, false);
        });
    }

    /// Changes the old controllers, and tells their processor when they have something for it.
    fn change_pics<T>(&self, change: impl FnOnce(&mut Pics) -> T) -> T {
        let mut pics = lock(&self.pics);
        let result = change(&mut pics);
        let is_new = pics.take_news();
        drop(pics);
        if is_new {
            let (destination, trigger) = (Destination::Physical(name(WIRED)), Trigger::Edge);
            let message = Message { destination, delivery: Delivery::External, vector: 0, trigger };
            self.bring(WIRED, self.slot(WIRED), message, None);
        }
        result
    }

    /// The guest reads a register of the old controllers, which are here.
    pub(crate) fn read_pic(&self, register: PicRegister) -> u8 {
        self.change_pics(|pics| pics.read(register))
    }

    /// The guest writes a register of the old controllers, which are here.
    pub(crate) fn write_pic(&self, register: PicRegister, value: u8) {
        self.change_pics(|pics| pics.write(register, value));
    }

    /// `vcpu` takes what the old controllers have. Waits, where they are not here.
    pub(crate) fn acknowledge(&self, vcpu: usize) -> Option<u8> {
        let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| !self.has_io_apic) else {
            return self.change_pics(Pics::acknowledge);
        };
        let mut answer = [0; 2];
        elsewhere.read(name(vcpu), Space::Ports, ACKNOWLEDGE_PORT, &mut answer);
        // All ones when nobody has answered: the machine ends.
        let [vector, there] = answer;
        (there == 1).then_some(vector)
    }

    pub(crate) fn save_pics(&self) -> Pics {
        lock(&self.pics).clone()
    }

    pub(crate) fn restore_pics(&self, pics: Pics) {
        self.change_pics(|current| *current = pics.restored());
    }

    /// The processor of the old controllers has come somewhere: what it was told is not known there.
    fn tell_again(&self, vcpu: usize) {
        if vcpu == WIRED && self.has_io_apic {
            self.change_pics(Pics::forget_told);
        }
    }

    /// The guest reads its local APIC. Registers are 16 bytes apart and 4 long; more at once, or across one's end, is not defined.
    pub(crate) fn read_local(&self, vcpu: usize, offset: u64, now_ns: u64) -> u32 {
        self.slot(vcpu).apic.read(offset, now_ns)
    }

    /// The guest writes to its local APIC.
    pub(crate) fn write_local(&self, vcpu: usize, offset: u64, value: u32, now_ns: u64) {
        let mut slot = self.slot(vcpu);
        let before = slot.apic.addressing();
        let sent = slot.apic.write(offset, value, now_ns);
        let (id, after) = (slot.apic.id(), slot.apic.addressing());
        drop(slot);
        self.tell_addressing(vcpu, before, after);
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

    /// Where in the I/O APIC `address` is; `None`: not there, or it is not here.
    fn io_offset(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(u64::from(map::IOAPIC)).filter(|offset| *offset < IO_APIC_BYTES);
        offset.filter(|_| self.has_io_apic)
    }

    /// A processor reads the I/O APIC; false when it is not at `address`, or not here.
    pub(crate) fn read_io_at(&self, address: u64, data: &mut [u8]) -> bool {
        let Some(offset) = self.io_offset(address) else { return false };
        let bytes = self.io_apic().read(offset).to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(bytes).for_each(|(byte, value)| *byte = value);
        true
    }

    /// A processor writes the I/O APIC; false when it is not at `address`, or not here. As in KVM, only whole registers can be written.
    pub(crate) fn write_io_at(&self, address: u64, data: &[u8]) -> bool {
        let Some(offset) = self.io_offset(address) else { return false };
        if let Ok(bytes) = data.try_into() {
            self.write_io(offset, u32::from_le_bytes(bytes));
        }
        true
    }

    /// A level-triggered interrupt is over, here or elsewhere.
    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        if let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| !self.has_io_apic) {
            return elsewhere.end_of_interrupt(vector);
        }
        let messages: Vec<Message> = self.io_apic().end_of_interrupt(vector).collect();
        messages.into_iter().for_each(|message| self.deliver(message, None, None));
    }

    /// Brings `message` to whom it is for. `sender` is the sending APIC's id; `on` is the vCPU that calls this, which sees what
    /// arrives without being kicked.
    fn deliver(&self, message: Message, sender: Option<u8>, on: Option<usize>) {
        if message.delivery == Delivery::LowestPriority {
            if let Some(vcpu) = self.least_busy(&message, sender) {
                self.bring(vcpu, self.slot(vcpu), message, on);
            }
            return;
        }
        for vcpu in 0..self.slots.len() {
            let slot = self.slot(vcpu);
            if slot.apic.is_for(message.destination, sender) {
                self.bring(vcpu, slot, message, on);
            }
        }
    }

    /// An interrupt for `vcpu`, which exists, comes from another host.
    pub(crate) fn arrive(&self, vcpu: usize, message: Message) {
        self.bring(vcpu, self.slot(vcpu), message, None);
    }

    fn bring(&self, vcpu: usize, mut slot: MutexGuard<'_, Slot>, message: Message, on: Option<usize>) {
        match &mut slot.presence {
            Presence::Here => {
                let before = slot.apic.addressing();
                slot.arrive(message);
                let after = slot.apic.addressing();
                drop(slot);
                self.tell_addressing(vcpu, before, after);
                self.kick_unless(vcpu, on);
            }
            Presence::Coming(waiting) => waiting.push(message),
            Presence::Elsewhere => {
                drop(slot);
                if let Some(elsewhere) = &self.elsewhere {
                    elsewhere.interrupt(name(vcpu), message);
                }
            }
        }
    }

    fn tell_addressing(&self, vcpu: usize, before: Addressing, after: Addressing) {
        if let Some(elsewhere) = self.elsewhere.as_ref().filter(|_| before != after) {
            elsewhere.addressing(name(vcpu), after);
        }
    }

    /// Another host says what interrupts find `vcpu` by.
    pub(crate) fn set_addressing(&self, vcpu: usize, addressing: Addressing) {
        let mut slot = self.slot(vcpu);
        // What it says of a vCPU that has come here since is old.
        if !matches!(slot.presence, Presence::Here) {
            slot.apic.set_addressing(addressing);
        }
        drop(slot);
        self.tell_again(vcpu);
    }

    /// From now on `vcpu` is not here: what arrives for it goes elsewhere, and so does what waits for it. What it has been given is saved
    /// with it.
    pub(crate) fn leave(&self, vcpu: usize) {
        let before = std::mem::replace(&mut self.slot(vcpu).presence, Presence::Elsewhere);
        if let (Presence::Coming(waiting), Some(elsewhere)) = (before, &self.elsewhere) {
            waiting.into_iter().for_each(|message| elsewhere.interrupt(name(vcpu), message));
        }
    }

    /// `vcpu` does not come after all.
    pub(crate) fn forget(&self, vcpu: usize) {
        if matches!(self.slot(vcpu).presence, Presence::Coming(_)) {
            self.leave(vcpu);
        }
    }

    /// From now on what arrives for `vcpu` waits for it.
    pub(crate) fn expect(&self, vcpu: usize) {
        let mut slot = self.slot(vcpu);
        if matches!(slot.presence, Presence::Elsewhere) {
            (slot.non_maskable, slot.external, slot.init, slot.start) = (false, false, false, None);
            slot.presence = Presence::Coming(Vec::new());
        }
    }

    /// `vcpu` has come, with what had arrived before; the rest follows.
    pub(crate) fn come(&self, vcpu: usize) {
        let mut slot = self.slot(vcpu);
        if let Presence::Coming(waiting) = std::mem::replace(&mut slot.presence, Presence::Here) {
            waiting.into_iter().for_each(|message| slot.arrive(message));
        }
        let addressing = slot.apic.addressing();
        drop(slot);
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.addressing(name(vcpu), addressing);
        }
        self.tell_again(vcpu);
    }

    fn kick_unless(&self, vcpu: usize, on: Option<usize>) {
        if on != Some(vcpu) {
            self.kick(vcpu);
        }
    }

    /// Of those that take interrupts, the one that does the least important; among equals they take turns. One that is here before all
    /// others: of these it is not known what they do, and they are far.
    fn least_busy(&self, message: &Message, sender: Option<u8>) -> Option<usize> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.slots.len();
        let priority = |vcpu: &usize| {
            let slot = self.slot(*vcpu);
            let apic = &slot.apic;
            let is_far = !matches!(slot.presence, Presence::Here);
            (apic.is_enabled() && apic.is_for(message.destination, sender)).then(|| (is_far, apic.processor_priority()))
        };
        let candidates = (0..count).map(|step| first.wrapping_add(step) % count);
        let candidates = candidates.filter_map(|vcpu| priority(&vcpu).map(|priority| (priority, vcpu)));
        candidates.min_by_key(|(priority, _)| *priority).map(|(_, vcpu)| vcpu)
    }
}

/// vCPUs are numbered in 8 bits: there are no more.
fn name(vcpu: usize) -> u8 {
    u8::try_from(vcpu).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests;
