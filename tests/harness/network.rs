//! Cutting the network between the hosts of one world.

use super::World;
use std::process::Command;

/// Drops packets of one world's moves while it lives.
pub struct Cut {
    table: String,
}

impl Cut {
    pub fn new(world: &World, controller_too: bool) -> Self {
        let table = format!("vmotion_test_{}_{}", std::process::id(), world.move_ports.0);
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
