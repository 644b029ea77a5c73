//! The command line.

use clap::{Parser, ValueEnum};
use std::{path::PathBuf, time::Duration};
use vmotion_model::ByteSize;
use vmotion_wan::{BitRate, Probability, parse_duration};

/// Moves the same guest through vmotion and through QEMU, and compares.
#[derive(Debug, Parser)]
#[command(name = "bench")]
pub(crate) struct Arguments {
    /// Which table: sets link, content, guest and contestants, unless the options below say otherwise
    #[arg(long, value_enum, default_value_t = Table::Moves)]
    pub(crate) table: Table,
    /// Between the two hosts
    #[arg(long, value_enum)]
    pub(crate) link: Option<LinkChoice>,
    /// What the guest writes
    #[arg(long, value_enum)]
    pub(crate) content: Option<ContentChoice>,
    /// Moves of each contestant for each link and content
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// How often a move is measured at most, until others leave the processors alone meanwhile
    #[arg(long, default_value_t = 3)]
    pub(crate) attempts: u32,
    /// The guest's memory [default: 1G]
    #[arg(long)]
    pub(crate) memory: Option<ByteSize>,
    /// Memory the guest writes over and over [default: 512M]
    #[arg(long)]
    pub(crate) working_set: Option<ByteSize>,
    /// Bytes the guest writes per second [default: 100M]
    #[arg(long)]
    pub(crate) rate: Option<ByteSize>,
    /// Seconds after which a move counts as not finished, and is ended [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) limit: Option<u64>,
    /// Where the report goes as well
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
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
    /// Rate of the WAN
    #[arg(long, default_value = "1Gbit")]
    pub(crate) wan_rate: BitRate,
    /// Round-trip time of the WAN
    #[arg(long, default_value = "100ms", value_parser = parse_duration)]
    pub(crate) wan_rtt: Duration,
    /// Packets the WAN loses, each way, each by itself
    #[arg(long, default_value = "0.1%")]
    pub(crate) wan_loss: Probability,
    /// Keep the working directory, with all logs
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Table {
    /// Ordinary moves on loopback and 1 Gbit/s
    Moves,
    /// A guest that writes twice as fast as the link carries
    NonConvergent,
    /// A long, lossy link
    Wan,
    /// What a page that is not there yet costs the guest
    Stall,
    /// A guest that changes a line of each page it writes
    Lines,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkChoice {
    /// 127.0.0.1
    Loopback,
    /// 1 Gbit/s between two network namespaces, MTU 1500
    #[value(name = "1gbit")]
    Gigabit,
    /// A WAN emulator between two network namespaces, MTU 1500; see --wan-rate, --wan-rtt and --wan-loss
    Wan,
    /// Loopback and 1 Gbit/s
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
