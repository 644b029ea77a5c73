//! PVH: an ELF kernel with a 32-bit entry in a Xen note, told about its machine by `hvm_start_info`.

use super::{Initrd, KernelEntry, Loaded, MapEntry, map, place};
use crate::MachineError;
use crate::memory::DeviceMemory;
use crate::vcpu::BootEntry;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, elf};
use std::fs::File;
use vm_memory::ByteValued;
use vmotion_model::MachineSpec;

const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
const TYPE_RAM: u32 = 1;
const TYPE_RESERVED: u32 = 2;

/// Loads the segments of an ELF kernel.
pub(super) fn load_kernel(memory: &DeviceMemory, file: &mut File, spec: &MachineSpec) -> Result<Loaded, MachineError> {
    let refused = |reason: String| MachineError::Kernel { path: spec.kernel.clone(), reason };
    let loaded = match Elf::load(memory, None, file, None) {
        Ok(loaded) => loaded,
        Err(linux_loader::loader::Error::Elf(elf::Error::ReadKernelImage)) => {
            return Err(MachineError::DoesNotFit { what: format!("Kernel {:?}", spec.kernel) });
        }
        Err(error) => return Err(refused(format!("its ELF file is not valid: {error}"))),
    };
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Ok(Loaded { end: loaded.kernel_end, entry: KernelEntry::Pvh(entry.0) })
        }
        _ => Err(refused("it is an ELF file without a PVH entry; build Linux with CONFIG_PVH".to_owned())),
    }
}

/// Writes what the kernel is told, after it, the initrd and the command line are in place.
pub(super) fn write_start_info(
    memory: &DeviceMemory,
    entry: u64,
    initrd: Option<Initrd>,
    entries: &[MapEntry],
) -> Result<BootEntry, MachineError> {
    let what = "PVH start info";
    let modules =
        initrd.map(|Initrd { address, bytes }| hvm_modlist_entry { paddr: address, size: bytes, ..Default::default() });
    if let Some(module) = &modules {
        place(memory, module.as_slice(), map::PVH_MODULES, what)?;
    }
    let mut table = Vec::new();
    for MapEntry { start, bytes, ram } in entries {
        let type_ = if *ram { TYPE_RAM } else { TYPE_RESERVED };
        let entry = hvm_memmap_table_entry { addr: *start, size: *bytes, type_, reserved: 0 };
        table.extend_from_slice(entry.as_slice());
    }
    place(memory, &table, map::PVH_MEMORY_MAP, what)?;
    let info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        flags: 0,
        nr_modules: u32::from(modules.is_some()),
        modlist_paddr: if modules.is_some() { map::PVH_MODULES } else { 0 },
        cmdline_paddr: map::CMDLINE,
        rsdp_paddr: 0,
        memmap_paddr: map::PVH_MEMORY_MAP,
        memmap_entries: u32::try_from(entries.len()).unwrap_or(0),
        reserved: 0,
    };
    place(memory, info.as_slice(), map::PVH_START_INFO, what)?;
    Ok(BootEntry::Pvh { entry, start_info: map::PVH_START_INFO })
}
