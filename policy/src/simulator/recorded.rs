//! From what was recorded of machines to a fleet: on how many hosts, how large, and who begins where.

use super::{
    HOSTS_MAX,
    fleet::{Fleet, HostSize, Trace, place},
    generate::Chance,
};
use crate::site::MemoryUse;
use thiserror::Error;
use vmotion_model::{ByteSize, PAGE_SIZE};

/// Machines for each host, where nobody says how many hosts there are.
const MACHINES_PER_HOST: usize = 25;
/// What recordings do not say of memory, as generated machines have it on average: pages written each second for each vCPU,
/// part of the memory among which, part that is zero, and bytes of a page on the wire.
const DIRTY_PAGES_PER_S: f64 = 650.0;
const WORKING_SET: f64 = 0.16;
const ZERO_SHARE: f64 = 0.3;
const BYTES_PER_PAGE: f64 = 2200.0;

/// What was recorded of some machines.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Machines.
    pub traces: Vec<Trace>,
    /// Where each of them begins, by number of host; `None` where that was not recorded.
    pub begins_on: Option<Vec<usize>>,
}

/// The hosts that recorded machines are to be on. What is `None` is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct HostsWanted {
    /// How many; chosen: those recorded, or one for 25 machines, 2 at least.
    pub hosts: Option<usize>,
    /// Processors of each; chosen: such that the busiest time takes 86 % of all of them.
    pub cpus: Option<f32>,
    /// Memory of each; chosen: such that machines take 70 % of all of it, and the largest fits.
    pub memory: Option<ByteSize>,
}

/// Why recorded machines cannot be put on hosts.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FleetError {
    /// Nothing was recorded.
    #[error("no machine was recorded: there is nothing to simulate")]
    Nothing,
    /// Too few hosts, or too many.
    #[error("hosts {0} is not valid: nothing can be moved between fewer than 2; use 2 to {HOSTS_MAX}")]
    Count(usize),
    /// More hosts were recorded than there are to be.
    #[error(
        "hosts {wanted} is not valid: machines begin on {recorded} hosts; use {recorded} or more, or leave out the column host"
    )]
    Fewer {
        /// As many are wanted.
        wanted: usize,
        /// As many are named.
        recorded: usize,
    },
    /// A host is too small, or no size.
    #[error("processors {0} of a host is not valid: use 0.01 to 65536")]
    Cpus(f32),
    /// One machine is larger than a host.
    #[error("memory {host} of a host is not valid: the largest machine has {machine}; use that or more")]
    Memory {
        /// Of a host.
        host: ByteSize,
        /// Of the machine.
        machine: ByteSize,
    },
}

/// Puts what was recorded on hosts. Machines of which nobody knows where they begin are placed by their vCPUs and by chance, the same
/// for a `seed`.
///
/// # Errors
/// [`FleetError`], for the first thing that cannot be.
pub fn settle(recording: Recording, wanted: HostsWanted, seed: u64) -> Result<Fleet, FleetError> {
    let Recording { traces, begins_on } = recording;
    let intervals = traces.iter().map(|trace| trace.lives.end).max().ok_or(FleetError::Nothing)?;
    let recorded = begins_on.iter().flatten().max().map_or(0, |host| host + 1);
    let chosen = if begins_on.is_some() { recorded } else { (traces.len() / MACHINES_PER_HOST).max(2) };
    let hosts = wanted.hosts.unwrap_or(chosen);
    if !(2..=HOSTS_MAX).contains(&hosts) {
        return Err(FleetError::Count(hosts));
    }
    if hosts < recorded {
        return Err(FleetError::Fewer { wanted: hosts, recorded });
    }
    let chosen = HostSize::for_all(&traces, intervals, hosts);
    // A fleet that asks for nothing is on hosts as well.
    let cpus = wanted.cpus.unwrap_or_else(|| chosen.cpus.max(1.0));
    if !(0.01..=65_536.0).contains(&cpus) {
        return Err(FleetError::Cpus(cpus));
    }
    let machine = traces.iter().map(|trace| trace.memory).max().unwrap_or_default();
    let memory = wanted.memory.unwrap_or_else(|| chosen.memory.max(machine));
    if memory < machine {
        return Err(FleetError::Memory { host: memory, machine });
    }
    let placed = begins_on.unwrap_or_else(|| place(&mut Chance(seed), &traces, hosts, memory));
    Ok(Fleet { traces, hosts, cpus, memory, placed, intervals })
}

/// What a machine does to its memory, when nobody recorded it.
pub(super) fn usual_memory_use(vcpus: u32, memory: ByteSize) -> MemoryUse {
    MemoryUse {
        dirty_pages_per_s: DIRTY_PAGES_PER_S * f64::from(vcpus),
        working_set_pages: memory.0 as f64 / PAGE_SIZE as f64 * WORKING_SET,
        zero_share: ZERO_SHARE,
        bytes_per_page: BYTES_PER_PAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::planetlab;

    fn recording(machines: usize) -> Recording {
        let trace = planetlab("50\n100\n", 2, ByteSize::gib(2)).unwrap();
        Recording { traces: vec![trace; machines], begins_on: None }
    }

    #[test]
    fn hosts_are_chosen_so_that_they_are_nearly_full() {
        let fleet = settle(recording(100), HostsWanted::default(), 1).unwrap();
        assert_eq!((fleet.hosts, fleet.cpus, fleet.intervals), (4, 59.0, 2));
        assert_eq!(settle(recording(3), HostsWanted::default(), 1).unwrap().hosts, 2);
        assert_eq!(fleet.last_day(), 0..2);
    }

    #[test]
    fn hosts_that_cannot_be_are_refused_with_what_to_do() {
        let refused = |wanted| settle(recording(4), wanted, 1).unwrap_err().to_string();
        let none = HostsWanted::default();
        assert!(refused(HostsWanted { hosts: Some(1), ..none }).contains("use 2 to 10000"));
        assert!(refused(HostsWanted { cpus: Some(f32::NAN), ..none }).contains("NaN"));
        assert!(refused(HostsWanted { memory: Some(ByteSize::gib(1)), ..none }).contains("2 GiB"));
        let on = |hosts, begins_on: &[usize]| {
            let recording = Recording { begins_on: Some(begins_on.to_vec()), ..recording(begins_on.len()) };
            settle(recording, HostsWanted { hosts, ..none }, 1)
        };
        assert_eq!(on(None, &[0, 1, 2]).unwrap().placed, [0, 1, 2]);
        assert_eq!(on(Some(2), &[0, 1, 2]).unwrap_err(), FleetError::Fewer { wanted: 2, recorded: 3 });
        assert_eq!(on(None, &[0, 0]).unwrap_err(), FleetError::Count(1));
        assert_eq!(settle(Recording::default(), none, 1).unwrap_err(), FleetError::Nothing);
    }
}
