//! The command line.

use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use vmotion_model::ByteSize;

/// Moves the same guest through vmotion and through QEMU, and compares.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Arguments {
    /// Between the two hosts
    #[arg(long, value_enum, default_value_t = LinkChoice::All)]
    pub(crate) link: LinkChoice,
    /// What the guest writes
    #[arg(long, value_enum, default_value_t = ContentChoice::All)]
    pub(crate) content: ContentChoice,
    /// Moves of each contestant for each link and content
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// How often a move is measured at most, until others leave the processors alone meanwhile
    #[arg(long, default_value_t = 3)]
    pub(crate) attempts: u32,
    /// The guest's memory
    #[arg(long, default_value = "1G")]
    pub(crate) memory: ByteSize,
    /// Memory the guest writes over and over
    #[arg(long, default_value = "512M")]
    pub(crate) working_set: ByteSize,
    /// Bytes the guest writes per second
    #[arg(long, default_value = "100M")]
    pub(crate) rate: ByteSize,
    /// Where the report goes
    #[arg(long, default_value = "BENCHMARKS.md")]
    pub(crate) out: PathBuf,
    /// Every sample as one line of JSON, appended
    #[arg(long)]
    pub(crate) raw: Option<PathBuf>,
    /// One run, QEMU's modes cut to the most telling: is everything in place?
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only contestants of this name, as the tables have it; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// The program to measure; by default the `vmotion` beside this one
    #[arg(long, value_name = "FILE")]
    pub(crate) vmotion: Option<PathBuf>,
    /// Queue of the 1 Gbit/s link, as the longest time a packet waits in it, in ms
    #[arg(long, default_value_t = 10)]
    pub(crate) queue_ms: u32,
    /// Keep the working directory, with all logs
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkChoice {
    /// 127.0.0.1
    Loopback,
    /// 1 Gbit/s between two network namespaces, MTU 1500
    #[value(name = "1gbit")]
    Gigabit,
    /// Both
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ContentChoice {
    /// Compresses like ordinary program memory
    Text,
    /// Does not compress
    Random,
    /// Both
    All,
}
