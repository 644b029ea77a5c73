//! What this host and its machines use, measured every two seconds and told with each heartbeat.
//!
//! All of it is read from the kernel's own accounts: `/proc`, control groups, pressure stall information. What cannot be read is left
//! out, never told as nothing: to a policy a machine without figures is unknown, one with zeros is idle.

mod host;
mod threads;

use crate::{process::ControlClient, service::Shared};
use host::HostMeter;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use threads::{ThreadTimes, Used, vcpu_of};
use tokio::time::MissedTickBehavior;
use vmotion_model::{HostTelemetry, MachineName, MachineStatus, MachineTelemetry, MemoryTelemetry, VcpuTelemetry};

const EVERY: Duration = Duration::from_secs(2);
/// A host with no more than the rest of its processors idle is busy all the time.
const SATURATED: f32 = 0.9;
/// What is held back is taken to want so many times what it got.
const HELD_BACK: f32 = 1.5;

/// What was measured last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) host: Option<HostTelemetry>,
    pub(crate) machines: BTreeMap<MachineName, MachineTelemetry>,
}

/// Where the newest figures are left for heartbeats.
#[derive(Debug, Default)]
pub(crate) struct Latest(Mutex<Measured>);

impl Latest {
    /// A copy of them.
    pub(crate) fn get(&self) -> Measured {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, measured: Measured) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = measured;
    }
}

/// Measures for ever.
pub(crate) async fn measure(shared: std::sync::Arc<Shared>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut host = HostMeter::default();
    let mut machines: BTreeMap<MachineName, MachineMeter> = BTreeMap::new();
    loop {
        ticks.tick().await;
        let present = shared.supervisor.machines().await;
        let mut measured = Measured { host: host.measure(), machines: BTreeMap::new() };
        machines.retain(|name, _| present.iter().any(|machine| machine.name == *name));
        for MachineStatus { name, pid, .. } in present {
            let Some(pid) = pid else { continue };
            let control = ControlClient::new(&shared.supervisor.directory(&name));
            let memory = control.memory_use().await.ok().flatten();
            let meter = machines.entry(name.clone()).or_default();
            if let Some(telemetry) = meter.measure(pid, memory) {
                measured.machines.insert(name, telemetry);
            }
        }
        if let Some(host) = &measured.host {
            held_back(host, &mut measured.machines);
        }
        shared.latest.set(measured);
    }
}

/// On a host that is busy all the time nobody gets more than there is. A machine that got no more than an even share, and slept, has all it
/// asked for; of one that got more it is only known that it would have taken more still: half as much again is assumed, and when it has been
/// given that, more will show.
fn held_back(host: &HostTelemetry, machines: &mut BTreeMap<MachineName, MachineTelemetry>) {
    if host.cpus_busy < host.cpus * SATURATED {
        return;
    }
    let even = host.cpus / machines.len().max(1) as f32;
    for used in machines.values_mut().filter(|used| used.cpus > even) {
        let assumed = (used.cpus * HELD_BACK).min(used.cpus + used.cpus_waited);
        used.cpus_wanted = used.cpus_wanted.max(assumed);
    }
}

/// What one machine's process used since it was looked at last.
#[derive(Debug, Default)]
struct MachineMeter {
    before: Option<(u32, Instant, ThreadTimes)>,
}

impl MachineMeter {
    /// Nothing at the first look, and when the process is gone.
    fn measure(&mut self, pid: u32, memory: Option<MemoryTelemetry>) -> Option<MachineTelemetry> {
        let (now, times) = (Instant::now(), ThreadTimes::read(pid).ok()?);
        let (pid_before, then, before) = self.before.replace((pid, now, times))?;
        if pid_before != pid {
            return None;
        }
        let over = now.duration_since(then);
        let (_, _, times) = self.before.as_ref()?;
        let used = times.since(&before);
        let per_s = |time: Duration| time.as_secs_f32() / over.as_secs_f32().max(0.001);
        let total = used.iter().fold(Used::default(), |sum, (_, used)| sum + *used);
        let wanted = used.iter().map(|(_, used)| used.wanted(over)).sum();
        let vcpus = used
            .iter()
            .filter_map(|(name, used)| Some(VcpuTelemetry { vcpu: vcpu_of(name)?, cpus: per_s(used.ran).min(1.0) }));
        Some(MachineTelemetry {
            cpus: per_s(total.ran),
            cpus_waited: per_s(total.waited),
            cpus_wanted: per_s(wanted),
            vcpus: vcpus.collect(),
            memory,
            over_ms: u32::try_from(over.as_millis()).unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_host_that_is_full_those_with_more_than_their_share_are_taken_to_want_more() {
        let used = |cpus, cpus_waited| MachineTelemetry {
            cpus,
            cpus_waited,
            cpus_wanted: cpus,
            ..MachineTelemetry::default()
        };
        let wanted = |cpus_busy| {
            let host = HostTelemetry { cpus: 1.0, cpus_busy, ..HostTelemetry::default() };
            let mut machines: BTreeMap<MachineName, MachineTelemetry> =
                [("a", used(0.6, 1.0)), ("b", used(0.1, 1.0)), ("c", used(0.5, 0.1))]
                    .map(|(name, used)| (name.parse().unwrap(), used))
                    .into();
            held_back(&host, &mut machines);
            machines.into_values().map(|used| (used.cpus_wanted * 100.0).round()).collect::<Vec<_>>()
        };
        assert_eq!(wanted(0.95), [90.0, 10.0, 60.0]);
        assert_eq!(wanted(0.5), [60.0, 10.0, 50.0]);
    }
}
