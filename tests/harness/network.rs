//! A network for each test, and cutting it between the hosts of one world.

use super::World;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::Command;

/// Gives this thread, and the threads and processes it will start, a network in which nobody else is: what a test cuts is felt by no other, and
/// ends with its processes, however they end.
pub fn enter_new() {
    // SAFETY: of what a thread can stop to share, only a table of open files could leave others with numbers that mean nothing.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "the new network's loopback device does not go up");
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
