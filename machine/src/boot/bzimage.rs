//! Linux bzImage by its 64-bit entry: zero page, identity-mapped page tables for 4 GiB, flat segments.

use super::{Initrd, KernelEntry, Loaded, MapEntry, map, place};
use crate::MachineError;
use crate::memory::DeviceMemory;
use crate::vcpu::BootEntry;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{Error, KernelLoader, bzimage};
use std::fs::File;
use vm_memory::{ByteValued, GuestAddress};
use vmotion_model::MachineSpec;

/// The 64-bit entry is this far into the protected-mode kernel.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Loader type of one that has no number assigned.
const LOADER_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Loads the protected-mode part of a bzImage at 1 MiB.
pub(super) fn load_kernel(memory: &DeviceMemory, file: &mut File, spec: &MachineSpec) -> Result<Loaded, MachineError> {
    let refused = |reason: String| MachineError::Kernel { path: spec.kernel.clone(), reason };
    let start = Some(GuestAddress(map::HIGH_RAM_START));
    let loaded = match BzImage::load(memory, start, file, start) {
        Ok(loaded) => loaded,
        Err(Error::Bzimage(bzimage::Error::ReadBzImageCompressedKernel)) => {
            return Err(MachineError::DoesNotFit { what: format!("Kernel {:?}", spec.kernel) });
        }
        Err(error) => return Err(refused(format!("its bzImage is not valid: {error}"))),
    };
    let header = loaded.setup_header.ok_or_else(|| refused("it has no setup header".to_owned()))?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(refused("it has no 64-bit entry".to_owned()));
    }
    // Decompressing needs `init_size` from the load address on; an initrd must stay clear of it.
    let init_end = map::HIGH_RAM_START.max(header.pref_address) + u64::from(header.init_size);
    Ok(Loaded { end: loaded.kernel_end.max(init_end), entry: KernelEntry::Linux(Box::new(header)) })
}

/// Writes what the kernel is told, and the tables it is entered with.
pub(super) fn write_zero_page(
    memory: &DeviceMemory,
    header: setup_header,
    initrd: Option<Initrd>,
    entries: &[MapEntry],
) -> Result<BootEntry, MachineError> {
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = u32::try_from(map::CMDLINE).unwrap_or(0);
    params.hdr.cmdline_size = u32::try_from(map::CMDLINE_BYTES_MAX - 1).unwrap_or(0);
    if let Some(Initrd { address, bytes }) = initrd {
        // Both are below INITRD_END_MAX.
        params.hdr.ramdisk_image = u32::try_from(address).unwrap_or(0);
        params.hdr.ramdisk_size = u32::try_from(bytes).unwrap_or(0);
    }
    for (slot, MapEntry { start, bytes, ram }) in params.e820_table.iter_mut().zip(entries) {
        let r#type = if *ram { E820_RAM } else { E820_RESERVED };
        *slot = boot_e820_entry { addr: *start, size: *bytes, r#type };
        params.e820_entries += 1;
    }
    place(memory, params.as_slice(), map::ZERO_PAGE, "Zero page")?;
    write_page_tables(memory)?;
    write_gdt(memory)?;
    Ok(BootEntry::Linux64 {
        entry: map::HIGH_RAM_START + ENTRY_64,
        zero_page: map::ZERO_PAGE,
        page_tables: map::PAGE_TABLES,
        gdt: map::GDT,
    })
}

/// One PML4 entry, four PDPT entries, 2 MiB pages below.
fn write_page_tables(memory: &DeviceMemory) -> Result<(), MachineError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 4096;
    let pdpt = map::PAGE_TABLES + TABLE;
    let directories = pdpt + TABLE;
    let mut words = vec![0u64; 512 * 6];
    words[0] = pdpt | PRESENT_WRITABLE;
    for (gib, directory) in (0..4).zip((directories..).step_by(4096)) {
        words[512 + gib] = directory | PRESENT_WRITABLE;
    }
    for (entry, address) in words[1024..].iter_mut().zip((0u64..).step_by(2 << 20)) {
        *entry = address | PRESENT_WRITABLE | LARGE;
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    place(memory, &bytes, map::PAGE_TABLES, "Page tables")
}

/// Null, unused, code at 0x10, data at 0x18, TSS at 0x20: the selectors the boot protocol fixes.
fn write_gdt(memory: &DeviceMemory) -> Result<(), MachineError> {
    let table: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];
    let bytes: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
    place(memory, &bytes, map::GDT, "Descriptor table")
}
