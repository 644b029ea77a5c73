//! What lies between the two hosts: loopback, or 1 Gbit/s between two network namespaces.
//!
//! The namespaces are joined by a veth pair with MTU 1500, shaped by a token bucket at both ends. Offloads stay on, as on
//! a real card: TCP hands 64 KiB packets down, QUIC trains of datagrams. The bucket's burst is larger than either, so that
//! neither is cut up or dropped for its size; the counters say how many packets were dropped.

use crate::process::output;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

/// One end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Source, Self::Target];
}

/// Larger than any packet train the kernel builds (64 KiB and headers).
const BURST: &str = "128kb";
const DEVICE: &str = "move0";

/// A link that exists until this is dropped.
#[derive(Debug)]
pub(crate) enum Link {
    Loopback,
    Gigabit(Namespaces),
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
    /// Makes two namespaces and joins them.
    pub(crate) fn gigabit(queue_ms: u32) -> Result<Self> {
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

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Gigabit(_) => "1 Gbit/s",
        }
    }

    pub(crate) fn address(&self, side: Side) -> IpAddr {
        match (self, side) {
            (Self::Loopback, _) => Ipv4Addr::LOCALHOST.into(),
            (Self::Gigabit(_), Side::Source) => Ipv4Addr::new(10, 99, 0, 1).into(),
            (Self::Gigabit(_), Side::Target) => Ipv4Addr::new(10, 99, 0, 2).into(),
        }
    }

    /// A command that runs `program` at one end, in a session of its own. `setsid` and `ip netns exec` become the
    /// program: its process id stays.
    pub(crate) fn command(&self, side: Side, program: &str) -> Command {
        let mut command = Command::new("setsid");
        let Self::Gigabit(Namespaces { names: [source, target] }) = self else {
            command.arg(program);
            return command;
        };
        let name = if side == Side::Source { source } else { target };
        command.args(["ip", "netns", "exec", name, program]);
        command
    }

    /// What passed the shapers so far; nothing for loopback.
    pub(crate) fn counters(&self) -> Result<Option<LinkCounters>> {
        if matches!(self, Self::Loopback) {
            return Ok(None);
        }
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
        Ok(Some(sum))
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
