//! A host's clock, and the vCPUs that follow it.

use super::{Clock, PeerClock, Untimely};
use crate::directory::HostId;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use vmotion_machine::Machine;
use vmotion_sys::tsc::host_tsc;

/// How often is looked whether a time is known by now.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The machine's time on this host, for the threads of its part. None of them waits for another here: the lock is held for arithmetic and for
/// kicking vCPUs.
pub struct Timekeeper {
    machine: Arc<Machine>,
    clock: Mutex<Clock>,
}

impl fmt::Debug for Timekeeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timekeeper").field("clocks", &self.clocks()).finish_non_exhaustive()
    }
}

/// What a vCPU takes along of the host that it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Departure {
    /// That host's anchor as it is in the vCPU's TSC, in ticks.
    pub(crate) anchor: u64,
    /// The machine's time there, after the vCPU had stopped.
    pub(crate) time: u64,
}

impl Timekeeper {
    /// Of this host's part of `machine`.
    #[must_use]
    pub fn new(machine: &Arc<Machine>, is_hub: bool) -> Arc<Self> {
        let clock = Mutex::new(Clock::new(machine.host_tsc_khz(), is_hub, host_tsc()));
        Arc::new(Self { machine: Arc::clone(machine), clock })
    }

    pub(super) fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// vCPUs here follow the clock, when it is worth it.
    pub(super) fn tell(&self, clock: &mut Clock) {
        self.machine.advance_tsc(clock.tell(false, host_tsc()));
    }

    /// How the other hosts' times compare with this host's, as far as is known.
    #[must_use]
    pub fn clocks(&self) -> Vec<PeerClock> {
        self.clock().report(host_tsc())
    }

    /// Waits until this host and `host` have one time, until then at most.
    pub(crate) fn wait_for(&self, host: HostId, until: Instant) -> Result<(), Untimely> {
        loop {
            let shared = self.clock().shares_time_with(host);
            match shared {
                Err(Untimely::NotYet | Untimely::Unheard { .. }) if Instant::now() < until => thread::sleep(LOOK_AGAIN),
                shared => return shared,
            }
        }
    }

    /// For a vCPU that has stopped here, with `advanced` ticks in its TSC of what this host was set forward by.
    pub(crate) fn departure(&self, advanced: u64) -> Result<Departure, Untimely> {
        let clock = self.clock();
        let (Some(first), Some(time)) = (clock.first_anchor(), clock.time(host_tsc())) else {
            return Err(Untimely::NotYet);
        };
        Ok(Departure { anchor: first.wrapping_add(advanced), time })
    }

    /// For a vCPU that has come from the host `from`: what [`Machine::adopt_vcpu`] needs to go on with its time. It is not earlier here by
    /// then.
    pub(crate) fn arrival(&self, from: HostId, departure: Departure) -> Result<u64, Untimely> {
        let mut clock = self.clock();
        clock.shares_time_with(from)?;
        let now = host_tsc();
        clock.hear(from, departure.time, now)?;
        let first = clock.first_anchor().ok_or(Untimely::NotYet)?;
        // All of it, and before the lock is gone: the vCPU shows what the machine has been told.
        self.machine.advance_tsc(clock.tell(true, now));
        Ok(first.wrapping_sub(departure.anchor))
    }
}
