//! The self-checking bare-metal guest, as an ELF image.
//!
//! The guest (in `guest/`, a program of its own) stamps every page it writes, verifies it later, and reports on COM1.
//! This crate carries its image, builds its command line and reads its console, so that tests, benchmarks and the
//! demo need to know neither. It must never interpret more than the guest said: lines it cannot read come out as they
//! were.

#![forbid(unsafe_code)]

mod command_line;
mod console;

#[cfg(test)]
mod content_tests;

pub use command_line::{Beat, CommandLine, Content, Extent, Idle, Pattern, Program, Rate};
pub use console::{
    BeatTracker, ConsoleEvent, ConsoleLine, ConsoleReader, CorruptPage, CpuCounters, DiskCounters, Second, Start,
    Touches,
};

/// The guest: a PVH kernel (ELF64, XEN_ELFNOTE_PHYS32_ENTRY), loaded at 2 MiB.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.elf"));
