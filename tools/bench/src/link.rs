//! What lies between the two hosts: loopback, 1 Gbit/s between two network namespaces, or an emulated WAN between two.
//!
//! The 1 Gbit/s link is a veth pair with MTU 1500, shaped by a token bucket at both ends. Offloads stay on, as on
//! a real card: TCP hands 64 KiB packets down, QUIC trains of datagrams. The bucket's burst is larger than either, so that
//! neither is cut up or dropped for its size; the counters say how many packets were dropped.

use crate::{
    arguments::{Arguments, LinkChoice},
    process::output,
};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    process::Command,
};
use vmotion_wan::{Direction, End, Impairments, Wan, WanOptions};

/// One end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Source, Self::Target];

    const fn end(self) -> End {
        match self {
            Self::Source => End::A,
            Self::Target => End::B,
        }
    }
}

/// Larger than any packet train the kernel builds (64 KiB and headers).
const BURST: &str = "128kb";
const DEVICE: &str = "move0";
/// What an operator with such a link grants TCP, in bytes: several times what is in flight. The kernel's default of 4 MiB for what
/// was sent would hold a connection below a third of 1 Gbit/s at 100 ms.
const TCP_BUFFERS: &str = "4096 131072 67108864";

/// A link that exists until this is dropped.
#[derive(Debug)]
pub(crate) enum Link {
    Loopback,
    Gigabit(Namespaces),
    Wan(Box<Wan>),
}

/// Two namespaces with names nobody else uses.
#[derive(Debug)]
pub(crate) struct Namespaces {
    names: [String; 2],
}

/// What both ends of a link sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkCounters {
    pub(crate) bytes: u64,
    pub(crate) drops: u64,
}

impl Link {
    pub(crate) fn start(choice: LinkChoice, arguments: &Arguments) -> Result<Self> {
        match choice {
            LinkChoice::Loopback => Ok(Self::Loopback),
            LinkChoice::Wan => Self::wan(arguments),
            LinkChoice::Gigabit | LinkChoice::All => Self::gigabit(arguments.queue_ms),
        }
    }

    /// Makes two namespaces and joins them.
    fn gigabit(queue_ms: u32) -> Result<Self> {
        let pid = std::process::id();
        let namespaces = Namespaces { names: ["s", "t"].map(|side| format!("vmbench-{pid}-{side}")) };
        for name in &namespaces.names {
            ip(&["netns", "add", name])?;
        }
        let [source, target] = &namespaces.names;
        ip(&["link", "add", DEVICE, "netns", source, "type", "veth", "peer", "name", DEVICE, "netns", target])?;
        let link = Self::Gigabit(namespaces);
        for side in Side::BOTH {
            let address = format!("{}/24", link.address(side));
            let run = |words: &[&str]| {
                let mut command = link.command(side, words[0]);
                command.args(&words[1..]);
                output(command)
            };
            run(&["ip", "link", "set", "lo", "up"])?;
            run(&["ip", "address", "add", &address, "dev", DEVICE])?;
            run(&["ip", "link", "set", DEVICE, "mtu", "1500", "up"])?;
            let latency = format!("{queue_ms}ms");
            let shape = ["rate", "1gbit", "burst", BURST, "latency", &latency];
            run(&[&["tc", "qdisc", "add", "dev", DEVICE, "root", "tbf"], shape.as_slice()].concat())
                .context("Cannot shape the link (is the kernel's sch_tbf there?)")?;
        }
        Ok(link)
    }

    /// The queue is the emulator's default, what the rate carries in a round trip; the seed is always the same.
    fn wan(arguments: &Arguments) -> Result<Self> {
        let impairments = Impairments {
            rate: Some(arguments.wan_rate),
            delay: arguments.wan_rtt / 2,
            loss: arguments.wan_loss,
            ..Impairments::default()
        };
        let wan = Wan::start(&WanOptions { seed: 1, ..WanOptions::symmetric(impairments) })?;
        for end in End::BOTH {
            let set = || -> io::Result<()> {
                fs::write("/proc/sys/net/ipv4/tcp_wmem", TCP_BUFFERS)?;
                fs::write("/proc/sys/net/ipv4/tcp_rmem", TCP_BUFFERS)
            };
            wan.namespace(end).run(set)?.context("Cannot give TCP its buffers")?;
        }
        Ok(Self::Wan(Box::new(wan)))
    }

    pub(crate) fn name(&self) -> String {
        match self {
            Self::Loopback => "loopback".to_owned(),
            Self::Gigabit(_) => "1 Gbit/s".to_owned(),
            Self::Wan(wan) => {
                let Impairments { rate, delay, loss, .. } = wan.impairments(Direction::AToB);
                let rate = rate.map(|rate| format!("{rate}/s, ")).unwrap_or_default();
                format!("WAN: {rate}RTT {:?}, {loss} loss", delay * 2)
            }
        }
    }

    /// What it carries, headers included.
    pub(crate) fn bits_per_s(&self) -> Option<f64> {
        match self {
            Self::Loopback => None,
            Self::Gigabit(_) => Some(1e9),
            Self::Wan(wan) => wan.impairments(Direction::AToB).rate.map(|rate| rate.bits_per_s() as f64),
        }
    }

    pub(crate) fn address(&self, side: Side) -> IpAddr {
        match (self, side) {
            (Self::Loopback, _) => Ipv4Addr::LOCALHOST.into(),
            (Self::Gigabit(_), Side::Source) => Ipv4Addr::new(10, 99, 0, 1).into(),
            (Self::Gigabit(_), Side::Target) => Ipv4Addr::new(10, 99, 0, 2).into(),
            (Self::Wan(wan), side) => wan.address(side.end()),
        }
    }

    /// A command that runs `program` at one end, in a session of its own. `setsid` and `ip netns exec` become the
    /// program: its process id stays.
    pub(crate) fn command(&self, side: Side, program: &str) -> Command {
        let mut command = Command::new("setsid");
        let name = match (self, side) {
            (Self::Loopback, _) => {
                command.arg(program);
                return command;
            }
            (Self::Gigabit(Namespaces { names: [source, _] }), Side::Source) => source,
            (Self::Gigabit(Namespaces { names: [_, target] }), Side::Target) => target,
            (Self::Wan(wan), side) => wan.namespace(side.end()).name(),
        };
        command.args(["ip", "netns", "exec", name, program]);
        command
    }

    /// What passed so far; nothing for loopback.
    pub(crate) fn counters(&self) -> Result<Option<LinkCounters>> {
        match self {
            Self::Loopback => Ok(None),
            Self::Gigabit(_) => self.shaper_counters().map(Some),
            Self::Wan(wan) => {
                wan.check()?;
                let mut sum = LinkCounters::default();
                for link in Direction::BOTH.map(|direction| wan.counters(direction).link) {
                    sum.bytes += link.offered.bytes;
                    sum.drops += link.dropped.all().packets;
                }
                Ok(Some(sum))
            }
        }
    }

    fn shaper_counters(&self) -> Result<LinkCounters> {
        let mut sum = LinkCounters::default();
        for side in Side::BOTH {
            let mut command = self.command(side, "tc");
            command.args(["-s", "-j", "qdisc", "show", "dev", DEVICE, "root"]);
            let answer: Value = serde_json::from_slice(&output(command)?).context("tc printed no JSON")?;
            let number =
                |key: &str| answer.get(0).and_then(|qdisc| qdisc.get(key)).and_then(Value::as_u64).unwrap_or(0);
            sum.bytes += number("bytes");
            sum.drops += number("drops");
        }
        Ok(sum)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // A namespace that was never made cannot be removed.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(words: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("ip");
    command.args(words);
    output(command)
}
