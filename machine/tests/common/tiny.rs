//! A guest of twenty instructions that writes exactly the pages it is told to, and nothing else.
//!
//! For every byte `k` typed on its console it increments the first word of 64 pages, `k` pages apart, from
//! [`FIRST_PAGE`] on, and prints a line.

use std::path::{Path, PathBuf};

/// First page written.
pub(crate) const FIRST_PAGE: u64 = 0x400;
/// Pages written for each byte typed.
pub(crate) const PAGES: u64 = 64;

const LOAD_ADDRESS: u64 = 0x20_0000;

#[rustfmt::skip]
const CODE: &[u8] = &[
    // wait: dx = line status; al = in(dx); while nothing was received
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7,
    // al = in(0x3f8); eax = k pages in bytes
    0x66, 0xba, 0xf8, 0x03, 0xec, 0x0f, 0xb6, 0xc0, 0xc1, 0xe0, 0x0c,
    // edi = first page; ecx = how many
    0xbf, 0x00, 0x00, 0x40, 0x00, 0xb9, 0x40, 0x00, 0x00, 0x00,
    // loop: inc [edi]; edi += eax; until ecx is 0
    0xff, 0x07, 0x01, 0xc7, 0x49, 0x75, 0xf9,
    // out "D\n"
    0xb0, 0x44, 0xee, 0xb0, 0x0a, 0xee,
    // again
    0xeb, 0xd3,
];

/// Writes the guest's ELF file into `directory`.
pub(crate) fn write_elf(directory: &Path) -> PathBuf {
    const HEADERS: u64 = 64 + 2 * 56;
    let note: Vec<u8> = [4u32, 4, 18]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(*b"Xen\0")
        .chain(u32::try_from(LOAD_ADDRESS).unwrap().to_le_bytes())
        .collect();
    let program_header = |kind: u32, offset: u64, address: u64, bytes: u64| {
        let mut header = Vec::new();
        header.extend_from_slice(&kind.to_le_bytes());
        header.extend_from_slice(&7u32.to_le_bytes());
        for word in [offset, address, address, bytes, bytes, 4] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header
    };
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&2u16.to_le_bytes());
    elf.extend_from_slice(&62u16.to_le_bytes());
    elf.extend_from_slice(&1u32.to_le_bytes());
    for word in [LOAD_ADDRESS, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let note_offset = HEADERS;
    let code_offset = HEADERS + note.len() as u64;
    elf.extend(program_header(4, note_offset, 0, note.len() as u64));
    elf.extend(program_header(1, code_offset, LOAD_ADDRESS, CODE.len() as u64));
    elf.extend(note);
    elf.extend_from_slice(CODE);
    let path = directory.join("tiny.elf");
    std::fs::write(&path, elf).unwrap();
    path
}
