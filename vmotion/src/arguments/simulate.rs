//! The options of `vmotion simulate`.

use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vmotion_model::ByteSize;
use vmotion_policy::simulator::{DAYS_MAX, HOSTS_MAX, MACHINES_MAX, Policy};

/// For the help of the command.
pub(super) const EXAMPLES: &str = "\
Examples:
  vmotion simulate                                          generated days: 40 hosts, 1,000 machines
  vmotion simulate --trace june.csv --hosts 12 --host-cpus 64 --policy p.toml --plot june.svg
  vmotion simulate --trace planetlab/20110303 --vcpus 2 --compare naive,ours

A recording is a table with the columns time_s, machine, cpus, vcpus, memory_mib and, if known, host: a row for each machine and sample; \
cpus are processors asked for, host is where a machine begins. Or it is a directory in PlanetLab's format: a file for each machine, a \
percentage on each line, one for every five minutes. The last day is replayed, what is before it is history. Needs no controller.";

#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    /// Replay this recording: a table (CSV), or a directory in PlanetLab's format [default: generated days]
    #[arg(long, value_name = "FILE.csv|DIR")]
    pub(crate) trace: Option<PathBuf>,
    /// Hosts [default: 40; with --trace those that the table names, or one for 25 machines]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=HOSTS_MAX as i64))]
    pub(crate) hosts: Option<u32>,
    /// Machines that are generated [default: 1000]
    #[arg(long, value_name = "N", conflicts_with = "trace", value_parser = clap::value_parser!(u32).range(1..=MACHINES_MAX as i64))]
    pub(crate) machines: Option<u32>,
    /// Days that are generated; the last is replayed, those before are history [default: 3]
    #[arg(long, value_name = "N", conflicts_with = "trace", value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX as i64))]
    pub(crate) days: Option<u32>,
    /// Chance: what is generated, and where machines begin when nobody says. The same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// How our policy is to act: a TOML file with the fields of [policy] in a site file, or a site file [default: the defaults]
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) policy: Option<PathBuf>,
    /// Which policies
    #[arg(long, value_enum, value_delimiter = ',', value_name = "POLICY,POLICY", default_value = "none,naive,ours")]
    pub(crate) compare: Vec<Compare>,
    /// Draw overloaded hosts and moves by time into this file
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// With --trace: processors of each host [default: such that the busiest time takes 86 % of all of them]
    #[arg(long, value_name = "N", requires = "trace")]
    pub(crate) host_cpus: Option<f32>,
    /// With --trace: memory of each host, such as 256G [default: such that machines take 70 % of all of it]
    #[arg(long, value_name = "SIZE", requires = "trace")]
    pub(crate) host_memory: Option<ByteSize>,
    /// With a directory: vCPUs of each machine [default: 1]
    #[arg(long, value_name = "N", requires = "trace", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) vcpus: Option<u32>,
    /// With a directory: memory of each machine [default: 2G]
    #[arg(long, value_name = "SIZE", requires = "trace")]
    pub(crate) memory: Option<ByteSize>,
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compare {
    /// Nobody: machines stay where they begin
    None,
    /// The rule of thumb: from the busiest host to the least busy, while they differ by more than 10 %
    Naive,
    /// What `vmotion rebalance` would do
    Ours,
}

impl From<Compare> for Policy {
    fn from(compare: Compare) -> Self {
        match compare {
            Compare::None => Self::None,
            Compare::Naive => Self::NaiveSpread,
            Compare::Ours => Self::Ours,
        }
    }
}
