//! What hosts and machines use: the newest figures, and enough of the past to say what a machine will ask for.
//!
//! In memory only: a controller that has just begun knows nothing, and the policy concludes nothing from that. The invariant: figures that
//! did not come are missing, never zero.

use crate::app::lock;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use vmotion_api::{HostUse, MachineUse};
use vmotion_model::{HostName, HostTelemetry, MachineName, MachineTelemetry, MemoryTelemetry, PolicySpec};
use vmotion_policy::{History, site::Demand};

/// Figures older than this say nothing about now.
const FRESH: Duration = Duration::from_secs(15);
/// What is known of a machine that nobody has reported for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);

/// Of all hosts and machines.
#[derive(Debug)]
pub(crate) struct Telemetry {
    began: Instant,
    hold_s: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    hosts: BTreeMap<HostName, HostFigures>,
    machines: BTreeMap<MachineName, Watched>,
}

#[derive(Debug)]
struct HostFigures {
    at: Instant,
    telemetry: Option<HostTelemetry>,
    machines: BTreeMap<MachineName, MachineTelemetry>,
}

#[derive(Debug)]
struct Watched {
    at: Instant,
    /// `None` until the first measurement.
    history: Option<History>,
    memory: Option<MemoryTelemetry>,
    /// Of a machine that spans several hosts, by host.
    parts: BTreeMap<HostName, (Instant, f32)>,
}

impl Default for Telemetry {
    fn default() -> Self {
        let hold_s = AtomicU32::new(PolicySpec::default().hold_s);
        Self { began: Instant::now(), hold_s, inner: Mutex::default() }
    }
}

impl Telemetry {
    /// Seconds since this controller began: the clock of histories, which no operator sets.
    fn now_s(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// What is shorter than some times this is smoothed away from now on: the policy's hold, in s.
    pub(crate) fn hold(&self, hold_s: u32) {
        self.hold_s.store(hold_s, Ordering::Relaxed);
    }

    /// What a heartbeat told.
    pub(crate) fn heard(
        &self,
        host: &HostName,
        telemetry: Option<HostTelemetry>,
        machines: BTreeMap<MachineName, MachineTelemetry>,
    ) {
        let hold_s = self.hold_s.load(Ordering::Relaxed);
        let (now, now_s) = (Instant::now(), self.now_s());
        let mut inner = lock(&self.inner);
        // An agent measures less often than it tells.
        let told_before = inner.hosts.get(host).is_some_and(|known| known.machines == machines);
        let figures = HostFigures { at: now, telemetry, machines: machines.clone() };
        inner.hosts.insert(host.clone(), figures);
        if told_before {
            return;
        }
        for (name, MachineTelemetry { cpus_wanted, memory, .. }) in machines {
            let watched = inner.machines.entry(name).or_insert_with(|| Watched {
                at: now,
                history: None,
                memory: None,
                parts: BTreeMap::new(),
            });
            watched.at = now;
            watched.memory = memory.or(watched.memory);
            watched.parts.insert(host.clone(), (now, cpus_wanted));
            watched.parts.retain(|_, (at, _)| at.elapsed() < FRESH);
            let asked: f32 = watched.parts.values().map(|(_, asked)| asked).sum();
            match &mut watched.history {
                Some(history) => history.record(now_s, asked, hold_s),
                none => *none = Some(History::begin(now_s, asked)),
            }
        }
        inner.machines.retain(|_, watched| watched.at.elapsed() < FORGOTTEN_AFTER);
    }

    /// What a machine will ask of processors, and what it does to its memory.
    pub(crate) fn of_machine(&self, name: &MachineName) -> (Demand, Option<MemoryTelemetry>) {
        let now_s = self.now_s();
        let inner = lock(&self.inner);
        match inner.machines.get(name) {
            Some(watched) => {
                let demand = watched.history.as_ref().map(|history| history.demand(now_s));
                (demand.unwrap_or_default(), watched.memory)
            }
            None => (Demand::default(), None),
        }
    }

    /// What a host used, when that is fresh; and what of it the machines on it did, in processors.
    pub(crate) fn of_host(&self, name: &HostName) -> Option<(HostTelemetry, f32)> {
        let inner = lock(&self.inner);
        let figures = inner.hosts.get(name).filter(|figures| figures.at.elapsed() < FRESH)?;
        let machines = figures.machines.values().map(|machine| machine.cpus).sum();
        Some((figures.telemetry?, machines))
    }

    /// Everything that was told last.
    pub(crate) fn all(&self) -> Vec<HostUse> {
        let inner = lock(&self.inner);
        let of_host = |(host, figures): (&HostName, &HostFigures)| HostUse {
            host: host.clone(),
            age_ms: u64::try_from(figures.at.elapsed().as_millis()).unwrap_or(u64::MAX),
            telemetry: figures.telemetry,
            machines: figures
                .machines
                .iter()
                .map(|(machine, telemetry)| MachineUse { machine: machine.clone(), telemetry: telemetry.clone() })
                .collect(),
        };
        inner.hosts.iter().map(of_host).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpus: f32, waited: f32) -> MachineTelemetry {
        MachineTelemetry { cpus, cpus_wanted: cpus + waited, over_ms: 2000, ..MachineTelemetry::default() }
    }

    #[test]
    fn a_machine_asks_for_what_it_used_and_for_what_it_waited() {
        let telemetry = Telemetry::default();
        let (h1, vm): (HostName, MachineName) = ("h1".parse().unwrap(), "vm".parse().unwrap());
        assert_eq!(telemetry.of_machine(&vm).0.seen_s, 0);
        telemetry.heard(&h1, None, [(vm.clone(), used(0.5, 0.25))].into());
        let (demand, _) = telemetry.of_machine(&vm);
        assert!((demand.cpus[0] - 0.75).abs() < 0.01, "{demand:?}");
        assert!(telemetry.of_host(&h1).is_none());
    }

    #[test]
    fn parts_of_a_machine_are_added_up() {
        let telemetry = Telemetry::default();
        let vm: MachineName = "vm".parse().unwrap();
        for host in ["h1", "h2"] {
            telemetry.heard(&host.parse().unwrap(), None, [(vm.clone(), used(0.5, 0.0))].into());
        }
        let inner = lock(&telemetry.inner);
        let parts: f32 = inner.machines[&vm].parts.values().map(|(_, asked)| asked).sum();
        assert!((parts - 1.0).abs() < 0.01);
    }
}
