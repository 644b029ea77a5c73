//! Where things are in guest-physical space.
//!
//! ```text
//!   0x0000_0500  GDT                          0x000f_0000  MP table (reserved, scanned by kernels)
//!   0x0000_6000  PVH start info, maps         0x0010_0000  RAM, the kernel
//!   0x0000_7000  zero page (bzImage)          0xd000_0000  hole: virtio-mmio, one page each
//!   0x0000_9000  page tables (bzImage)        0xfec0_0000  IOAPIC, 0xfee0_0000 LAPICs
//!   0x0002_0000  command line                 0xfffb_c000  KVM's TSS and identity map
//!   0x0009_fc00  end of low RAM               0x1_0000_0000  RAM again
//! ```

use super::MmioPlace;
use crate::devices::virtio::MMIO_BYTES;
use vmotion_model::MemoryLayout;

/// Descriptor table for the 64-bit Linux entry.
pub(crate) const GDT: u64 = 0x500;
/// PVH start info, followed by its module list and memory map.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// PVH module list.
pub(crate) const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub(crate) const PVH_MEMORY_MAP: u64 = 0x6100;
/// Linux boot parameters.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Page tables for the 64-bit Linux entry: one PML4, one PDPT, four directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Most bytes of it, with its terminator.
pub(crate) const CMDLINE_BYTES_MAX: usize = 4096;
/// Usable RAM below the legacy hole ends here.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// MP table.
pub(crate) const MP_TABLE: u64 = 0xf_0000;
/// Usable RAM goes on here.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;
/// An initrd ends below this address.
pub(crate) const INITRD_END_MAX: u64 = 0x3800_0000;

/// IOAPIC.
pub(crate) const IOAPIC: u32 = 0xfec0_0000;
/// LAPICs.
pub(crate) const LAPIC: u32 = 0xfee0_0000;
/// First virtio-mmio device; each has a page.
pub(crate) const VIRTIO_MMIO: u64 = MemoryLayout::HOLE_START;

/// First port of the 16550.
pub(crate) const SERIAL_PORT: u64 = 0x3f8;
/// How many ports it has.
pub(crate) const SERIAL_PORTS: u64 = 8;
/// Its interrupt.
pub(crate) const SERIAL_IRQ: u32 = 4;
/// First port of the CMOS clock.
pub(crate) const RTC_PORT: u64 = 0x70;
/// Interrupts of virtio-mmio devices, in order: the ISA lines nothing else uses, so that kernels without IOAPIC see them too.
pub(crate) const VIRTIO_IRQS: [u32; 9] = [5, 6, 7, 9, 10, 11, 12, 14, 15];

/// Places for virtio-mmio devices, in order.
pub(crate) fn virtio_places() -> impl Iterator<Item = MmioPlace> {
    let addresses = (VIRTIO_MMIO..).step_by(usize::try_from(MMIO_BYTES).unwrap_or(usize::MAX));
    VIRTIO_IRQS.into_iter().zip(addresses).map(|(irq, address)| MmioPlace { address, irq })
}
