//! Getting a kernel into memory: PVH ELF or Linux bzImage, with initrd, command line and MP table.

mod bzimage;
pub(crate) mod map;
mod mptable;
mod pvh;

use crate::MachineError;
use crate::memory::{DeviceMemory, GuestRam};
use crate::vcpu::BootEntry;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};
use vmotion_model::{MachineSpec, MemoryLayout};

/// Linux's word for the frequency of its TSC.
const TSC_KHZ: &str = "tsc_early_khz=";

/// Where a virtio-mmio device is, for the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MmioPlace {
    pub(crate) address: u64,
    pub(crate) irq: u32,
}

/// An initrd in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initrd {
    address: u64,
    bytes: u64,
}

/// A stretch of guest-physical space, as boot protocols describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    start: u64,
    bytes: u64,
    ram: bool,
}

/// Loads everything `spec` names; where the first vCPU begins. A frequency of its TSCs, in kHz, is told to the guest.
pub(crate) fn load(
    ram: &GuestRam,
    spec: &MachineSpec,
    devices: &[MmioPlace],
    tsc_khz: Option<u32>,
) -> Result<BootEntry, MachineError> {
    let memory = ram.devices();
    let mut kernel = open("Kernel", &spec.kernel)?;
    let refused = |reason: &str| MachineError::Kernel { path: spec.kernel.clone(), reason: reason.to_owned() };
    let mut head = [0; 0x206];
    let got = read_up_to(&mut kernel, &mut head).map_err(|source| MachineError::File {
        role: "Kernel",
        path: spec.kernel.clone(),
        source,
    })?;
    let elf = head.starts_with(b"\x7fELF");
    let linux = got == head.len() && head[0x202..0x206] == *b"HdrS";
    let kernel_end = match (elf, linux) {
        (true, _) => pvh::load_kernel(memory, &mut kernel, spec)?,
        (_, true) => bzimage::load_kernel(memory, &mut kernel, spec)?,
        _ => return Err(refused("it is neither an ELF file nor a Linux bzImage")),
    };
    let initrd = load_initrd(memory, ram.layout(), spec, kernel_end.end)?;
    place_cmdline(memory, cmdline(&spec.cmdline, devices, tsc_khz))?;
    mptable::write(memory, spec.cpus)?;
    let entries = memory_map(ram.layout());
    match kernel_end.entry {
        KernelEntry::Pvh(entry) => pvh::write_start_info(memory, entry, initrd, &entries),
        KernelEntry::Linux(header) => bzimage::write_zero_page(memory, *header, initrd, &entries),
    }
}

/// A loaded kernel.
struct Loaded {
    /// First address after it.
    end: u64,
    entry: KernelEntry,
}

enum KernelEntry {
    Pvh(u64),
    Linux(Box<linux_loader::loader::bootparam::setup_header>),
}

fn open(role: &'static str, path: &Path) -> Result<File, MachineError> {
    let failed = |source| MachineError::File { role, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    Ok(file)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..])? {
            0 => break,
            bytes => got += bytes,
        }
    }
    file.rewind()?;
    Ok(got)
}

/// Puts the initrd as high as it fits below the hole, page-aligned, as boot loaders do.
fn load_initrd(
    memory: &DeviceMemory,
    layout: &MemoryLayout,
    spec: &MachineSpec,
    kernel_end: u64,
) -> Result<Option<Initrd>, MachineError> {
    let Some(path) = &spec.initrd else { return Ok(None) };
    let mut file = open("Initrd", path)?;
    let failed = |source| MachineError::File { role: "Initrd", path: path.clone(), source };
    let bytes = file.metadata().map_err(failed)?.len();
    let low = layout.regions().first().map_or(0, |region| region.bytes());
    // 32-bit fields of both boot protocols, and Linux's own default limit for an initrd.
    let top = low.min(map::INITRD_END_MAX);
    let does_not_fit = || MachineError::DoesNotFit { what: format!("Initrd {path:?} of {bytes} bytes") };
    let address = top.checked_sub(bytes).ok_or_else(does_not_fit)? & !0xfff;
    if address < kernel_end {
        return Err(does_not_fit());
    }
    let length = usize::try_from(bytes).map_err(|_| does_not_fit())?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, length)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    Ok(Some(Initrd { address, bytes }))
}

/// The operator's words, and what Linux does not find out by itself: devices; and the frequency of its TSC, which it would measure by the
/// PIT, unless the operator has named one.
fn cmdline(asked: &str, devices: &[MmioPlace], tsc_khz: Option<u32>) -> String {
    let mut words = Vec::new();
    words.extend(Some(asked.to_owned()).filter(|asked| !asked.is_empty()));
    let is_named = asked.split(' ').any(|word| word.starts_with(TSC_KHZ));
    words.extend(tsc_khz.filter(|_| !is_named).map(|khz| format!("{TSC_KHZ}{khz}")));
    words.extend(devices.iter().map(|MmioPlace { address, irq }| format!("virtio_mmio.device=4K@{address:#x}:{irq}")));
    words.join(" ")
}

fn place_cmdline(memory: &DeviceMemory, mut text: String) -> Result<(), MachineError> {
    if text.len() >= map::CMDLINE_BYTES_MAX {
        return Err(MachineError::DoesNotFit { what: format!("Command line of {} bytes", text.len()) });
    }
    text.push('\0');
    place(memory, text.as_bytes(), map::CMDLINE, "Command line")
}

/// Writes `bytes` at `address`.
fn place(memory: &DeviceMemory, bytes: &[u8], address: u64, what: &str) -> Result<(), MachineError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| MachineError::DoesNotFit { what: what.to_owned() })
}

/// RAM with the legacy hole below 1 MiB taken out.
fn memory_map(layout: &MemoryLayout) -> Vec<MapEntry> {
    let mut entries = vec![
        MapEntry { start: 0, bytes: map::LOW_RAM_END, ram: true },
        MapEntry { start: map::LOW_RAM_END, bytes: map::HIGH_RAM_START - map::LOW_RAM_END, ram: false },
    ];
    for region in layout.regions() {
        let start = region.start.address().0.max(map::HIGH_RAM_START);
        let end = region.end().address().0;
        if end > start {
            entries.push(MapEntry { start, bytes: end - start, ram: true });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_what_it_does_not_find_out_unless_its_operator_knows_better() {
        let places = [MmioPlace { address: 0xd000_0000, irq: 5 }];
        assert_eq!(cmdline("", &places, None), "virtio_mmio.device=4K@0xd0000000:5");
        assert_eq!(cmdline("quiet", &[], Some(2_000_000)), "quiet tsc_early_khz=2000000");
        assert_eq!(cmdline("tsc_early_khz=1 quiet", &[], Some(2)), "tsc_early_khz=1 quiet");
    }
}
