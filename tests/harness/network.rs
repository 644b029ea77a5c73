//! A network for each test, and cutting it between the hosts of one world.

use super::World;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::net::Ipv4Addr;
use std::process::Command;

/// Gives this thread, and the threads and processes it will start, a network in which nobody else is: what a test cuts is felt by no other, and
/// ends with its processes, however they end.
pub fn enter_new() {
    // SAFETY: of what a thread can stop to share, only a table of open files could leave others with numbers that mean nothing.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "the new network's loopback device does not go up");
}

/// Hosts with networks of their own, on one bridge in the network of the test. They end with their processes.
pub struct Apart;

impl Apart {
    /// Where the test itself, and its controller, are reached from the hosts.
    pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// For a test that has entered a network of its own.
    pub fn new() -> Self {
        ip(&["link", "add", "hosts", "type", "bridge"]);
        ip(&["address", "add", "10.77.0.1/24", "dev", "hosts"]);
        ip(&["link", "set", "hosts", "up"]);
        Self
    }

    /// Where the host of this place is.
    pub fn address(at: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 11 + u8::try_from(at).unwrap())
    }

    /// The program in a new network, once that has an address; its arguments are added by the caller.
    pub fn command() -> tokio::process::Command {
        let wait = "ip link set lo up; until ip -4 address show dev eth0 2>/dev/null | grep -q inet; do sleep 0.02; done; exec \"$0\" \"$@\"";
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--net", "sh", "-c", wait, super::PROGRAM]);
        command
    }

    /// Connects the network of such a process.
    pub fn attach(&self, at: usize, pid: u32) {
        let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        while network(&pid.to_string()) == network("thread-self") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let (here, pid, address) = (format!("host{at}"), pid.to_string(), format!("{}/24", Self::address(at)));
        ip(&["link", "add", &here, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        ip(&["link", "set", &here, "master", "hosts", "up"]);
        for inside in [["address", "add", &address, "dev", "eth0"].as_slice(), &["link", "set", "eth0", "up"]] {
            let status = Command::new("nsenter").args(["-t", &pid, "-n", "ip"]).args(inside).status();
            assert!(status.is_ok_and(|status| status.success()), "ip {inside:?} in the network of {pid}");
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "ip {arguments:?}");
}

/// Drops packets of one world's moves while it lives.
pub struct Cut {
    table: String,
}

impl Cut {
    pub fn new(world: &World, controller_too: bool) -> Self {
        let table = format!("vmotion_test_{}", world.move_ports.0);
        let (first, last) = world.move_ports;
        let mut rules = format!("udp dport {first}-{last} drop; udp sport {first}-{last} drop;");
        if controller_too {
            let port = world.controller_port();
            rules.push_str(&format!(" tcp dport {port} drop; tcp sport {port} drop;"));
        }
        let script = format!("table inet {table} {{\nchain in {{\ntype filter hook input priority 0;\n{rules}\n}}\n}}");
        assert!(nft(&script), "nft refused: {script}");
        Self { table }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        nft(&format!("delete table inet {}", self.table));
    }
}

fn nft(script: &str) -> bool {
    Command::new("nft").arg(script).status().is_ok_and(|status| status.success())
}
