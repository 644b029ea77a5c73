//! What a vCPU does for itself where its interrupt controller is in user space: waits while it is halted or not started, and takes
//! interrupts.
//!
//! ```text
//!   INIT ─▶ waits for SIPI ── SIPI ─▶ runs ── HLT ─▶ halted ── interrupt that it takes, NMI ─▶ runs
//! ```
//!
//! KVM knows of none of that: to it these vCPUs always run.

use super::VcpuShared;
use crate::MachineError;
use crate::boot::map;
use crate::interrupts::{Driver, LocalApic, Slot, now_ns};
use crate::state::StateError;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use std::time::Duration;
use vmotion_sys::kvm::queue_interrupt;

/// Bytes of a local APIC's page.
const PAGE: u64 = 0x1000;
/// Bytes of a register, and from one of a local APIC's to the next.
const REGISTER_BYTES: usize = 4;
const LOCAL_STEP: u64 = 16;
/// After INIT. SDM volume 3, "Processor state after reset".
const DR6_AFTER_INIT: u64 = 0xffff_0ff0;
const DR7_AFTER_INIT: u64 = 0x400;
const CR0_CACHE_BITS: u64 = 0x6000_0000;
const RFLAGS_INTERRUPT: u64 = 1 << 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Runs,
    /// After HLT; whether it takes interrupts, beside NMIs.
    Halted {
        interrupts: bool,
    },
    WaitsForStart,
}

/// What a vCPU is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Enter,
    /// Finish the I/O of the last exit, then [`UserSide::restart`].
    Restart,
    /// It has slept: look at everything again.
    Slept,
}

/// A vCPU's side of its interrupt controller.
pub(crate) struct UserSide {
    driver: Arc<Driver>,
    index: usize,
    activity: Activity,
    /// Registers after power-up.
    initial: (kvm_regs, kvm_sregs),
    /// What KVM was told, or told last, of the guest's CR8.
    cr8: u8,
    /// When the driver has been asked to kick.
    armed_ns: Option<u64>,
}

/// Where in its local APIC's page a processor accesses `address`.
fn local_offset(address: u64) -> Option<u64> {
    address.checked_sub(u64::from(map::LAPIC)).filter(|offset| *offset < PAGE)
}

impl UserSide {
    /// Of a vCPU that was just created.
    pub(crate) fn new(driver: &Arc<Driver>, id: u8, fd: &VcpuFd) -> Result<Self, MachineError> {
        let registers = fd.get_regs().map_err(MachineError::kvm("read registers"))?;
        let system = fd.get_sregs().map_err(MachineError::kvm("read system registers"))?;
        Ok(Self {
            driver: Arc::clone(driver),
            index: usize::from(id),
            activity: if id == 0 { Activity::Runs } else { Activity::WaitsForStart },
            initial: (registers, system),
            cr8: 0,
            armed_ns: None,
        })
    }

    /// The guest may have written CR8 since it was entered: the APIC is told before it is asked anything.
    fn see_cr8(&mut self, cr8: u8) {
        if cr8 != self.cr8 {
            self.cr8 = cr8;
            self.driver.controller().slot(self.index).apic.set_task_class(cr8);
        }
    }

    /// Reads from an interrupt controller; false when there is none at `address`.
    pub(super) fn read(&mut self, cr8: u8, address: u64, data: &mut [u8]) -> bool {
        self.see_cr8(cr8);
        let controller = self.driver.controller();
        let Some(offset) = local_offset(address) else { return controller.read_io_at(address, data) };
        let bytes = controller.read_local(self.index, offset, now_ns()).to_le_bytes();
        let skipped = usize::try_from(offset % LOCAL_STEP).unwrap_or(REGISTER_BYTES).min(REGISTER_BYTES);
        data.fill(0);
        data.iter_mut().zip(&bytes[skipped..]).for_each(|(byte, value)| *byte = *value);
        true
    }

    /// Writes to an interrupt controller; false when there is none at `address`. As in KVM, only whole registers can be written.
    pub(super) fn write(&mut self, cr8: u8, address: u64, data: &[u8]) -> bool {
        self.see_cr8(cr8);
        let controller = self.driver.controller();
        let Some(offset) = local_offset(address) else { return controller.write_io_at(address, data) };
        let whole = <[u8; REGISTER_BYTES]>::try_from(data).ok().filter(|_| offset % LOCAL_STEP == 0);
        if let Some(bytes) = whole {
            controller.write_local(self.index, offset, u32::from_le_bytes(bytes), now_ns());
        }
        true
    }

    /// The guest executed HLT.
    pub(super) fn halt(&mut self, fd: &mut VcpuFd) {
        self.activity = Activity::Halted { interrupts: fd.get_kvm_run().if_flag != 0 };
    }

    /// Is there something that makes the vCPU run?
    fn is_awake(&self, slot: &Slot) -> bool {
        match self.activity {
            Activity::Runs => true,
            Activity::Halted { interrupts } => slot.non_maskable || interrupts && slot.has_interrupt(),
            Activity::WaitsForStart => false,
        }
    }

    /// Before the guest is entered: gives KVM what has arrived, or sleeps. `shared` was looked at before, so that who comes from now on
    /// is noticed.
    pub(super) fn prepare(&mut self, fd: &mut VcpuFd, shared: &VcpuShared) -> Result<Turn, MachineError> {
        self.see_cr8(shared.cr8());
        let driver = Arc::clone(&self.driver);
        let mut slot = driver.controller().slot(self.index);
        if slot.has_restart() {
            return Ok(Turn::Restart);
        }
        slot.apic.run_timer(now_ns());
        if !self.is_awake(&slot) {
            let due_ns = slot.apic.timer_due_ns().filter(|_| self.activity != Activity::WaitsForStart);
            drop(slot);
            self.arm(None);
            shared.sleep(due_ns.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns()))));
            return Ok(Turn::Slept);
        }
        let non_maskable = std::mem::take(&mut slot.non_maskable);
        let run = fd.get_kvm_run();
        // A processor that halted with interrupts on has nothing that could come before.
        let is_ready = run.ready_for_interrupt_injection != 0 || self.activity == Activity::Halted { interrupts: true };
        let takes = is_ready && !non_maskable;
        // Before the APIC's, as KVM does it: it is no matter of priority.
        let external = takes && slot.take_external();
        let mut vector = if takes && !external { slot.apic.take() } else { None };
        let (more, cr8, due_ns) = (slot.has_interrupt(), slot.apic.task_class(), slot.apic.timer_due_ns());
        drop(slot);
        if external {
            vector = driver.controller().acknowledge(self.index);
            if vector.is_none() {
                // It has gone: as if it had never been there.
                return Ok(Turn::Slept);
            }
        }
        self.activity = Activity::Runs;
        self.cr8 = cr8;
        run.cr8 = u64::from(cr8);
        run.request_interrupt_window = u8::from(more);
        if vector.is_some() || non_maskable {
            // True again when KVM says so.
            run.ready_for_interrupt_injection = 0;
        }
        if non_maskable {
            fd.nmi().map_err(MachineError::kvm("take an NMI"))?;
        }
        if let Some(vector) = vector {
            queue_interrupt(fd, vector).map_err(MachineError::sys("take an interrupt"))?;
        }
        self.arm(due_ns);
        Ok(Turn::Enter)
    }

    /// Asks to be kicked when the timer is due, or not any more.
    fn arm(&mut self, due_ns: Option<u64>) {
        if due_ns != self.armed_ns {
            self.armed_ns = due_ns;
            self.driver.arm(self.index, due_ns);
        }
    }

    /// Carries out INIT and SIPI. The I/O of the last exit is finished.
    pub(super) fn restart(&mut self, fd: &mut VcpuFd) -> Result<(), MachineError> {
        let restart = self.driver.controller().slot(self.index).take_restart();
        if restart.init {
            self.reset(fd)?;
        }
        let Some(page) = restart.start.filter(|_| self.activity == Activity::WaitsForStart) else { return Ok(()) };
        let mut system = fd.get_sregs().map_err(MachineError::kvm("read system registers"))?;
        (system.cs.selector, system.cs.base) = (u16::from(page) << 8, u64::from(page) << 12);
        fd.set_sregs(&system).map_err(MachineError::kvm("set system registers"))?;
        let mut registers = fd.get_regs().map_err(MachineError::kvm("read registers"))?;
        registers.rip = 0;
        fd.set_regs(&registers).map_err(MachineError::kvm("set registers"))?;
        self.activity = Activity::Runs;
        Ok(())
    }

    /// As INIT leaves a processor: vector state and MSRs stay, and so does how it caches.
    fn reset(&mut self, fd: &mut VcpuFd) -> Result<(), MachineError> {
        let (registers, mut system) = self.initial;
        let current = fd.get_sregs().map_err(MachineError::kvm("read system registers"))?;
        system.apic_base = current.apic_base;
        system.cr0 = system.cr0 & !CR0_CACHE_BITS | current.cr0 & CR0_CACHE_BITS;
        system.interrupt_bitmap = [0; 4];
        fd.set_sregs(&system).map_err(MachineError::kvm("set system registers"))?;
        fd.set_regs(&registers).map_err(MachineError::kvm("set registers"))?;
        let debug = kvm_debugregs { dr6: DR6_AFTER_INIT, dr7: DR7_AFTER_INIT, ..Default::default() };
        fd.set_debug_regs(&debug).map_err(MachineError::kvm("set debug registers"))?;
        let nothing = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
        fd.set_vcpu_events(&nothing).map_err(MachineError::kvm("set pending events"))?;
        let run = fd.get_kvm_run();
        (run.cr8, run.ready_for_interrupt_injection, run.request_interrupt_window) = (0, 0, 0);
        self.cr8 = 0;
        // The first processor would begin at the firmware, which there is none of: what it does there ends the machine.
        self.activity = if self.index == 0 { Activity::Runs } else { Activity::WaitsForStart };
        Ok(())
    }

    /// Before anything of the vCPU is saved: what has arrived becomes part of its registers.
    pub(super) fn settle(&mut self, fd: &mut VcpuFd, shared: &VcpuShared) -> Result<(), MachineError> {
        self.see_cr8(shared.cr8());
        if self.driver.controller().slot(self.index).has_restart() {
            self.restart(fd)?;
        }
        if self.activity != Activity::WaitsForStart {
            let non_maskable = std::mem::take(&mut self.driver.controller().slot(self.index).non_maskable);
            if non_maskable {
                fd.nmi().map_err(MachineError::kvm("take an NMI"))?;
                self.activity = Activity::Runs;
            }
        }
        Ok(())
    }

    /// What KVM would save of a vCPU whose interrupt controller it has.
    pub(super) fn save(&self) -> (kvm_lapic_state, kvm_mp_state) {
        let page = self.driver.controller().slot(self.index).apic.save(now_ns());
        let mut lapic = kvm_lapic_state::default();
        lapic.regs.iter_mut().zip(page).for_each(|(register, byte)| *register = byte.cast_signed());
        let mp_state = match self.activity {
            Activity::Runs => KVM_MP_STATE_RUNNABLE,
            Activity::Halted { .. } => KVM_MP_STATE_HALTED,
            Activity::WaitsForStart => KVM_MP_STATE_INIT_RECEIVED,
        };
        (lapic, kvm_mp_state { mp_state })
    }

    /// Takes over what [`Self::save`] gave, for a vCPU with `registers`.
    pub(super) fn restore(
        &mut self,
        fd: &mut VcpuFd,
        lapic: &kvm_lapic_state,
        mp_state: kvm_mp_state,
        registers: &kvm_regs,
    ) -> Result<(), MachineError> {
        self.activity = match mp_state.mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Runs,
            KVM_MP_STATE_HALTED => Activity::Halted { interrupts: registers.rflags & RFLAGS_INTERRUPT != 0 },
            KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_UNINITIALIZED => Activity::WaitsForStart,
            other => return Err(StateError::Mismatch(format!("a vCPU is in state {other}, which is none")).into()),
        };
        let mut page = [0; crate::interrupts::LOCAL_APIC_BYTES];
        page.iter_mut().zip(lapic.regs).for_each(|(byte, register)| *byte = register.cast_unsigned());
        let apic = LocalApic::restore(&page, now_ns());
        self.cr8 = apic.task_class();
        let run = fd.get_kvm_run();
        // What KVM said last was of an earlier stay here. Believed, it would give an interrupt to a guest that has them off, between its last
        // look and its HLT, say, or in place of one that is on its way into it.
        (run.ready_for_interrupt_injection, run.request_interrupt_window) = (0, 0);
        run.cr8 = u64::from(self.cr8);
        self.driver.controller().slot(self.index).apic = apic;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic in a test is its report")]

    use super::*;
    use crate::interrupts::Trigger;
    use kvm_ioctls::Kvm;

    const VECTOR: u8 = 0x51;

    #[test]
    fn a_vcpu_that_comes_back_takes_interrupts_when_kvm_says_so_again() {
        let Ok(kvm) = Kvm::new() else {
            println!("SKIPPED a_vcpu_that_comes_back_takes_interrupts_when_kvm_says_so_again: no /dev/kvm");
            return;
        };
        let mut fd = kvm.create_vm().unwrap().create_vcpu(0).unwrap();
        let mut user = UserSide::new(&Driver::new(1, None).unwrap(), 0, &fd).unwrap();
        let mut apic = LocalApic::new(0);
        apic.write(0xf0, 0x1ff, 0);
        apic.request(VECTOR, Trigger::Edge);
        let mut lapic = kvm_lapic_state::default();
        lapic.regs.iter_mut().zip(apic.save(0)).for_each(|(register, byte)| *register = byte.cast_signed());
        // It was here before, and took interrupts then.
        fd.get_kvm_run().ready_for_interrupt_injection = 1;
        let interrupts_off = kvm_regs { rflags: 2, ..Default::default() };
        user.restore(&mut fd, &lapic, kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }, &interrupts_off).unwrap();
        let shared = VcpuShared::new(&fd, true, true).unwrap();
        assert_eq!(user.prepare(&mut fd, &shared).unwrap(), Turn::Enter);
        assert_eq!(user.driver.controller().slot(0).apic.pending(), Some(VECTOR));
        assert_eq!(fd.get_vcpu_events().unwrap().interrupt.injected, 0);
        assert_eq!(fd.get_kvm_run().request_interrupt_window, 1);
        // As KVM says when the guest takes interrupts.
        fd.get_kvm_run().ready_for_interrupt_injection = 1;
        assert_eq!(user.prepare(&mut fd, &shared).unwrap(), Turn::Enter);
        assert_eq!(user.driver.controller().slot(0).apic.pending(), None);
        let events = fd.get_vcpu_events().unwrap();
        assert_eq!((events.interrupt.injected, events.interrupt.nr), (1, VECTOR));
    }
}
