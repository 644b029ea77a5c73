//! The KVM VM: memory slots, interrupt controllers, interrupt lines, and what its host can do.

use crate::error::MachineError;
use crate::host;
use crate::interrupts::Driver;
use crate::memory::GuestRam;
use crate::state::{Controllers, IrqChips, PitState, StateError};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_irqchip, kvm_pit_config,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;
use vmotion_dirty_tracking::{DirtyBackend, PageBitmap, Slot};
use vmotion_model::{DirtySource, PAGE_SIZE};
use vmotion_sys::kvm::{DirtyRing, XsaveArea, clear_dirty_log, get_dirty_log};

/// Three pages KVM needs on Intel, in the hole below 4 GiB where no RAM and no device is.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page KVM needs on Intel, just before it.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Entries of a dirty ring: at 4 KiB a page, 64 MiB written before a vCPU must wait for the reaper.
const RING_ENTRIES: usize = 16 << 10;

/// A VM without vCPUs.
pub(crate) struct Vm {
    fd: VmFd,
    ram: Arc<GuestRam>,
    slots: Vec<Slot>,
    source: DirtySource,
    /// The log begins with every page set; see [`DirtyBackend::initially_all_written`].
    initially_set: bool,
    /// The interrupt controllers, where they are not KVM's.
    interrupts: Option<Arc<Driver>>,
}

impl Vm {
    /// Creates the VM around `ram`, with `interrupts` or else KVM's controllers. `source` is decided here: KVM wants dirty rings
    /// before the first vCPU.
    pub(crate) fn new(
        kvm: &Kvm,
        ram: Arc<GuestRam>,
        source: DirtySource,
        interrupts: Option<Arc<Driver>>,
    ) -> Result<Self, MachineError> {
        let fd = kvm.create_vm().map_err(MachineError::kvm("create a VM"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(MachineError::kvm("set the TSS address"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(MachineError::kvm("set the identity map"))?;
        if interrupts.is_none() {
            fd.create_irq_chip().map_err(MachineError::kvm("create the interrupt controllers"))?;
            // The dummy speaker port keeps guests that calibrate with it out of user space.
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            fd.create_pit2(pit).map_err(MachineError::kvm("create the PIT"))?;
        }
        let source = match source {
            DirtySource::Auto | DirtySource::Log => DirtySource::Log,
            DirtySource::Ring => DirtySource::Ring,
        };
        let slots = ram.mappings().zip(0u32..);
        let slots = slots.map(|((_, range, _), id)| Slot { id, first: range.start, pages: range.end - range.start });
        let log_features = fd.check_extension_raw(c_ulong::from(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2));
        let initially_set = source == DirtySource::Log
            && u32::try_from(log_features).is_ok_and(|features| features & KVM_DIRTY_LOG_INITIALLY_SET != 0);
        let vm = Self { slots: slots.collect(), fd, ram, source, initially_set, interrupts };
        vm.enable_tracking()?;
        vm.set_slots(0).map_err(MachineError::sys("map guest memory"))?;
        Ok(vm)
    }

    fn enable_tracking(&self) -> Result<(), MachineError> {
        let (cap, argument) = match self.source {
            DirtySource::Ring => (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, RING_ENTRIES * DirtyRing::ENTRY_BYTES),
            _ => {
                let initially_set = if self.initially_set { KVM_DIRTY_LOG_INITIALLY_SET } else { 0 };
                (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | initially_set) as usize)
            }
        };
        let mut enable = kvm_enable_cap { cap, ..Default::default() };
        enable.args[0] = argument as u64;
        self.fd.enable_cap(&enable).map_err(MachineError::kvm("enable dirty tracking"))
    }

    fn set_slots(&self, flags: u32) -> io::Result<()> {
        for ((address, range, start), slot) in self.ram.mappings().zip(&self.slots) {
            let region = kvm_userspace_memory_region {
                slot: slot.id,
                flags,
                guest_phys_addr: start,
                memory_size: (range.end - range.start) * PAGE_SIZE,
                userspace_addr: address as u64,
            };
            // SAFETY: the mapping belongs to `self.ram`, which lives as long as the VM fd, and regions do not overlap.
            let set = unsafe { self.fd.set_user_memory_region(region) };
            set.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
        Ok(())
    }

    pub(crate) const fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// What dirty tracking this VM was created for: log or ring.
    pub(crate) const fn source(&self) -> DirtySource {
        self.source
    }

    pub(crate) fn duplicate_fd(&self) -> Result<OwnedFd, MachineError> {
        // SAFETY: the fd belongs to `self.fd`, which is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        borrowed.try_clone_to_owned().map_err(MachineError::sys("duplicate the VM"))
    }

    /// Maps the ring of `vcpu`, where this VM has rings.
    pub(crate) fn ring_of(&self, vcpu: &impl AsRawFd) -> Result<Option<DirtyRing>, MachineError> {
        if self.source != DirtySource::Ring {
            return Ok(None);
        }
        DirtyRing::map(vcpu, RING_ENTRIES).map(Some).map_err(MachineError::sys("map a dirty ring"))
    }

    pub(crate) fn xsave_area(&self) -> XsaveArea {
        XsaveArea::for_machine(&self.fd)
    }

    /// An eventfd whose writes raise interrupt `gsi`.
    pub(crate) fn interrupt(&self, gsi: u32) -> Result<EventFd, MachineError> {
        if let Some(interrupts) = &self.interrupts {
            return interrupts.line(gsi);
        }
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let event = event.map_err(MachineError::sys("create an eventfd"))?;
        self.fd.register_irqfd(&event, gsi).map_err(MachineError::kvm("connect an interrupt"))?;
        Ok(event)
    }

    /// Brings what devices have said to the vCPUs it is for, before these are saved. KVM does that by itself.
    pub(crate) fn settle_interrupts(&self) {
        self.interrupts.iter().for_each(|interrupts| interrupts.raise_lines());
    }

    /// The interrupt controllers but for the local ones, which vCPUs save.
    pub(crate) fn save_controllers(&self) -> Result<Controllers, MachineError> {
        let Some(interrupts) = &self.interrupts else {
            return Ok(Controllers::Kernel { chips: Box::new(self.save_irqchips()?), pit: self.save_pit()? });
        };
        let controller = interrupts.controller();
        let io_apic = Box::new(controller.io_apic().clone());
        Ok(Controllers::User { io_apic, pics: controller.save_pics(), pit: Box::new(interrupts.save_pit()) })
    }

    /// Are the controllers of a saved state such as this machine has?
    pub(crate) fn check_controllers(&self, saved: &Controllers) -> Result<(), StateError> {
        let (theirs, ours) = match (saved, &self.interrupts) {
            (Controllers::Kernel { .. }, Some(_)) => ("KVM's", "its own"),
            (Controllers::User { .. }, None) => ("its own", "KVM's"),
            _ => return Ok(()),
        };
        Err(StateError::Mismatch(format!("it has interrupt controllers of {theirs}, this machine {ours}")))
    }

    /// Sets what [`Self::check_controllers`] has found to be right.
    pub(crate) fn restore_controllers(&self, saved: Controllers) -> Result<(), MachineError> {
        match saved {
            Controllers::Kernel { chips, pit } => {
                self.restore_irqchips(&chips)?;
                self.restore_pit(&pit)
            }
            Controllers::User { io_apic, pics, pit } => {
                if let Some(interrupts) = &self.interrupts {
                    *interrupts.controller().io_apic() = *io_apic;
                    interrupts.controller().restore_pics(pics);
                    interrupts.restore_pit(*pit);
                }
                Ok(())
            }
        }
    }

    fn save_irqchips(&self) -> Result<IrqChips, MachineError> {
        let get = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(MachineError::kvm("read an interrupt controller"))?;
            Ok::<_, MachineError>(chip)
        };
        Ok(IrqChips { chips: [get(KVM_IRQCHIP_PIC_MASTER)?, get(KVM_IRQCHIP_PIC_SLAVE)?, get(KVM_IRQCHIP_IOAPIC)?] })
    }

    fn restore_irqchips(&self, state: &IrqChips) -> Result<(), MachineError> {
        let IrqChips { chips } = state;
        for (chip, chip_id) in chips.iter().zip([KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]) {
            let chip = kvm_irqchip { chip_id, ..*chip };
            self.fd.set_irqchip(&chip).map_err(MachineError::kvm("set an interrupt controller"))?;
        }
        Ok(())
    }

    fn save_pit(&self) -> Result<PitState, MachineError> {
        Ok(PitState { pit: self.fd.get_pit2().map_err(MachineError::kvm("read the PIT"))? })
    }

    fn restore_pit(&self, state: &PitState) -> Result<(), MachineError> {
        let PitState { pit } = state;
        self.fd.set_pit2(pit).map_err(MachineError::kvm("set the PIT"))
    }
}

impl DirtyBackend for Vm {
    fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn initially_all_written(&self) -> bool {
        self.initially_set
    }

    fn touched(&self, among: &PageBitmap) -> io::Result<PageBitmap> {
        self.ram.touched_among(among)
    }

    fn set_logging(&self, on: bool) -> io::Result<()> {
        self.set_slots(if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    fn read_log(&self, slot: &Slot, words: &mut [u64]) -> io::Result<()> {
        get_dirty_log(&self.fd, slot.id, slot.pages, words)
    }

    fn clear_log(&self, slot: &Slot, first: u64, pages: u32, mask: &[u64]) -> io::Result<()> {
        clear_dirty_log(&self.fd, slot.id, first, pages, mask)
    }

    fn take_device_writes(&self, into: &mut PageBitmap) {
        self.ram.take_device_writes(into);
    }
}

/// Opens KVM, or says what is missing.
pub(crate) fn open_kvm(source: DirtySource) -> Result<Kvm, MachineError> {
    let kvm = host::open_kvm()?;
    host::check_capabilities(&kvm, source)?;
    Ok(kvm)
}
