//! The command line.

use crate::impairment_flags::ImpairmentFlags;
use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use std::{ffi::OsString, net::IpAddr, path::PathBuf, time::Duration};
use vmotion_wan::{End, Timeline, WanOptions, parse_duration};

/// A long, slow or lossy link between two network namespaces, in user space. Runs until Ctrl-C, or as long as COMMAND.
#[derive(Debug, Parser)]
#[command(name = "vmotion-wan", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) impairments: ImpairmentFlags,

    /// A file of `at TIME …` and `every TIME [from TIME] …`, one a line
    #[arg(long, value_name = "FILE", help_heading = "Changes")]
    script: Option<PathBuf>,
    /// One change, such as "12s cut", "22s restore", "30s b-to-a rate=100Mbit loss=1%"; repeatable
    #[arg(long, value_name = "STATEMENT", help_heading = "Changes")]
    at: Vec<String>,
    /// A change again and again, such as "60s from 40s cut for 2s"; repeatable
    #[arg(long, value_name = "STATEMENT", help_heading = "Changes")]
    every: Vec<String>,
    /// Times of changes count from when this process receives SIGUSR1, not from the start
    #[arg(long, help_heading = "Changes")]
    pub(crate) wait_for_usr1: bool,

    /// A namespace that exists, for end a [default: makes one]
    #[arg(long, value_name = "NAME", help_heading = "Ends")]
    netns_a: Option<String>,
    /// A namespace that exists, for end b [default: makes one]
    #[arg(long, value_name = "NAME", help_heading = "Ends")]
    netns_b: Option<String>,
    /// Address of end a
    #[arg(long, value_name = "IP", default_value = "10.98.0.1", help_heading = "Ends")]
    address_a: IpAddr,
    /// Address of end b
    #[arg(long, value_name = "IP", default_value = "10.98.0.2", help_heading = "Ends")]
    address_b: IpAddr,
    /// Name of the TUN device at both ends
    #[arg(long, value_name = "NAME", default_value = "wan0", help_heading = "Ends")]
    device: String,
    /// Longest packet in bytes, IP header included
    #[arg(long, value_name = "BYTES", default_value_t = 1500, help_heading = "Ends")]
    mtu: u16,
    /// Have hosts hand down packets one by one, and receive them so: slower, but a packet capture shows each
    #[arg(long, help_heading = "Ends")]
    no_offloads: bool,

    /// The same seed loses the same packets again [default: a new one, printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Print counters this often, such as 1s
    #[arg(long, value_name = "TIME", value_parser = stats_period)]
    pub(crate) stats_every: Option<Duration>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// Run COMMAND at this end, instead of where this runs
    #[arg(long, value_name = "END", requires = "command")]
    inside: Option<Inside>,
    /// Runs, with WAN_NETNS_A, WAN_NETNS_B, WAN_ADDRESS_A and WAN_ADDRESS_B in its environment; its exit code is ours
    #[arg(last = true)]
    pub(crate) command: Vec<OsString>,
}

/// Printing more often would be what is measured.
const STATS_PERIOD_MIN: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Inside {
    A,
    B,
}

const EXAMPLES: &str = "\
Examples:
  vmotion-wan --rate 1Gbit --delay 50ms --loss 0.1%
  vmotion-wan --rate 1Gbit --delay 5ms --b-rate 100Mbit --at '12s cut' --at '22s restore' --stats-every 1s
  vmotion-wan --delay 10ms --inside a -- ping -c 3 10.98.0.2

Without a command of its own failing, it ends with 0 after a signal and with 125 after an error.";

impl Arguments {
    pub(crate) fn options(&self) -> WanOptions {
        let options = WanOptions {
            a_to_b: self.impairments.a_to_b,
            b_to_a: self.impairments.b_to_a,
            namespaces: [self.netns_a.clone(), self.netns_b.clone()],
            addresses: [self.address_a, self.address_b],
            device: self.device.clone(),
            mtu: self.mtu,
            offloads: !self.no_offloads,
            ..WanOptions::default()
        };
        WanOptions { seed: self.seed.unwrap_or(options.seed), ..options }
    }

    pub(crate) fn inside(&self) -> Option<End> {
        self.inside.map(|inside| match inside {
            Inside::A => End::A,
            Inside::B => End::B,
        })
    }

    /// The script's changes, then those of the command line.
    pub(crate) fn timeline(&self) -> Result<Timeline> {
        let mut timeline = Timeline::default();
        if let Some(path) = &self.script {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            timeline = text.parse().with_context(|| path.display().to_string())?;
        }
        for (flag, statements) in [("at", &self.at), ("every", &self.every)] {
            for statement in statements {
                let whole = format!("{flag} {statement}");
                timeline.add_statement(&whole).with_context(|| format!("--{flag} {statement:?}"))?;
            }
        }
        Ok(timeline)
    }
}

fn stats_period(text: &str) -> Result<Duration, String> {
    let period = parse_duration(text).map_err(|error| error.to_string())?;
    if period < STATS_PERIOD_MIN { Err(format!("write at least {STATS_PERIOD_MIN:?}")) } else { Ok(period) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmotion_wan::{BitRate, Probability};

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("vmotion-wan").chain(line.split_whitespace()))
    }

    #[test]
    fn flags_for_one_direction_win_wherever_they_stand() {
        let options = parse("--b-rate 10Mbit --rate 1Gbit --delay 5ms --a-loss 1%").unwrap().options();
        assert_eq!(options.a_to_b.rate, Some(BitRate::mbit(1000)));
        assert_eq!(options.b_to_a.rate, Some(BitRate::mbit(10)));
        assert_eq!(options.a_to_b.loss, Probability::percent(1.0));
        assert_eq!(options.b_to_a.loss, Probability::NEVER);
        assert_eq!([options.a_to_b.delay, options.b_to_a.delay], [Duration::from_millis(5); 2]);
    }

    #[test]
    fn errors_name_flag_value_and_what_is_allowed() {
        for (line, words) in [
            ("--rate 100", ["--rate", "100", "800Mbit"]),
            ("--b-loss 1", ["--b-loss", "1", "percent"]),
            ("--mtu 70000", ["--mtu", "70000", "0..=65535"]),
            ("--stats-every 1", ["--stats-every", "1", "unit"]),
            ("--stats-every 1ms", ["--stats-every", "1ms", "10ms"]),
            ("--inside a", ["--inside", "COMMAND", "required"]),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{line}: {error}");
        }
        let mut arguments = parse("").unwrap();
        arguments.at.push("12 cut".to_owned());
        let error = format!("{:#}", arguments.timeline().unwrap_err());
        assert!(error.contains("--at \"12 cut\"") && error.contains("unit"), "{error}");
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let arguments = parse("--delay 1ms -- ping --rate 3").unwrap();
        assert_eq!(arguments.command, ["ping", "--rate", "3"]);
    }
}
