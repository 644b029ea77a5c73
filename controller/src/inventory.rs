//! Which hosts there are, and what they said last.
//!
//! Held in memory and fed by heartbeats; what must survive a restart (that a host exists, that it is cordoned) is also in
//! the store. The one invariant: silence is shown as silence. A host without heartbeats is gone and its machines are
//! unknown; nothing here ever concludes that they stopped.

use crate::records::HostRecord;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use vmotion_api::{Heartbeat, HostReport};
use vmotion_model::{ByteSize, Host, HostName, HostState, MachineName, MachineStatus};

/// A heartbeat that was under way while an agent answered a request is older than the answer, for this long.
const ANSWER_HOLDS: Duration = Duration::from_millis(500);
/// The time of the last heartbeat is written to the store this often.
const PERSIST_EVERY: Duration = Duration::from_secs(60);

/// Milliseconds since the epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// All hosts.
#[derive(Debug)]
pub(crate) struct Inventory {
    gone_after: Duration,
    hosts: Mutex<BTreeMap<HostName, Known>>,
}

#[derive(Debug)]
struct Known {
    report: HostReport,
    cordoned: bool,
    heard: Option<Instant>,
    /// From the store, for a host that has not been heard since this controller started.
    seen_unix_ms: u64,
    persisted: Option<Instant>,
    machines: BTreeMap<MachineName, Seen>,
    /// Machines an agent said it has not, which an older heartbeat may still list.
    forgotten: BTreeMap<MachineName, Instant>,
}

#[derive(Debug)]
struct Seen {
    status: MachineStatus,
    /// When an agent answered so; `None` when it was in a heartbeat.
    answered: Option<Instant>,
}

impl Known {
    fn is_up(&self, gone_after: Duration) -> bool {
        self.heard.is_some_and(|heard| heard.elapsed() < gone_after)
    }

    fn view(&self, gone_after: Duration) -> Host {
        let silent = match self.heard {
            Some(heard) => u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX),
            None => unix_ms().saturating_sub(self.seen_unix_ms),
        };
        let HostReport { name, datacenter, url, capacity, cpu, version: _ } = self.report.clone();
        let state = if self.is_up(gone_after) { HostState::Up } else { HostState::Gone };
        Host {
            name,
            datacenter,
            url,
            capacity,
            cpu,
            cordoned: self.cordoned,
            draining: false,
            state,
            seen_ms_ago: silent,
        }
    }

    fn record(&self) -> HostRecord {
        HostRecord { report: self.report.clone(), cordoned: self.cordoned, seen_unix_ms: unix_ms() }
    }
}

fn holds(answered: Option<&Instant>) -> bool {
    answered.is_some_and(|at| at.elapsed() < ANSWER_HOLDS)
}

/// The same host, apart from what changes with every machine.
fn same_host(a: &HostReport, b: &HostReport) -> bool {
    let blank = |report: &HostReport| {
        let mut report = report.clone();
        report.capacity.memory_used = ByteSize(0);
        report
    };
    blank(a) == blank(b)
}

impl Inventory {
    /// The hosts of an earlier controller, none heard yet.
    pub(crate) fn new(gone_after: Duration, records: impl IntoIterator<Item = HostRecord>) -> Self {
        let known = |record: HostRecord| {
            let HostRecord { report, cordoned, seen_unix_ms } = record;
            let name = report.name.clone();
            let known = Known {
                report,
                cordoned,
                heard: None,
                seen_unix_ms,
                persisted: None,
                machines: BTreeMap::new(),
                forgotten: BTreeMap::new(),
            };
            (name, known)
        };
        Self { gone_after, hosts: Mutex::new(records.into_iter().map(known).collect()) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, Known>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host's sign of life; what to write to the store about it, when there is something new.
    pub(crate) fn heartbeat(&self, heartbeat: Heartbeat) -> Option<HostRecord> {
        let Heartbeat { host: report, machines, .. } = heartbeat;
        let mut hosts = self.lock();
        let name = report.name.clone();
        let (mut machines_before, mut forgotten, before) = match hosts.remove(&name) {
            Some(mut known) => (std::mem::take(&mut known.machines), std::mem::take(&mut known.forgotten), Some(known)),
            None => (BTreeMap::new(), BTreeMap::new(), None),
        };
        forgotten.retain(|_, at| holds(Some(at)));
        // An agent's answer is newer than a heartbeat that was on its way at the time.
        machines_before.retain(|_, seen| holds(seen.answered.as_ref()));
        let mut seen = machines_before;
        for status in machines {
            if !seen.contains_key(&status.name) && !forgotten.contains_key(&status.name) {
                seen.insert(status.name.clone(), Seen { status, answered: None });
            }
        }
        let recent = |known: &&Known| known.persisted.is_some_and(|at| at.elapsed() < PERSIST_EVERY);
        let kept = before.as_ref().filter(recent).filter(|known| same_host(&known.report, &report));
        let persisted = kept.map_or_else(|| Some(Instant::now()), |known| known.persisted);
        let is_new = kept.is_none();
        let known = Known {
            report,
            cordoned: before.is_some_and(|known| known.cordoned),
            heard: Some(Instant::now()),
            seen_unix_ms: unix_ms(),
            persisted,
            machines: seen,
            forgotten,
        };
        let record = is_new.then(|| known.record());
        hosts.insert(name, known);
        record
    }

    /// What an agent answered about a machine just now.
    pub(crate) fn answered(&self, host: &HostName, status: MachineStatus) {
        if let Some(known) = self.lock().get_mut(host) {
            known.forgotten.remove(&status.name);
            known.machines.insert(status.name.clone(), Seen { status, answered: Some(Instant::now()) });
        }
    }

    /// An agent said that it has no such machine.
    pub(crate) fn forget(&self, host: &HostName, machine: &MachineName) {
        if let Some(known) = self.lock().get_mut(host) {
            known.machines.remove(machine);
            known.forgotten.insert(machine.clone(), Instant::now());
        }
    }

    /// All hosts, by name.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        self.lock().values().map(|known| known.view(self.gone_after)).collect()
    }

    /// One host.
    pub(crate) fn host(&self, name: &HostName) -> Option<Host> {
        self.lock().get(name).map(|known| known.view(self.gone_after))
    }

    /// What a host said last about a machine.
    pub(crate) fn status(&self, host: &HostName, machine: &MachineName) -> Option<MachineStatus> {
        self.lock().get(host)?.machines.get(machine).map(|seen| seen.status.clone())
    }

    /// What to write to the store so that a host is cordoned, or not; `None` for an unknown host.
    pub(crate) fn record(&self, name: &HostName, cordoned: bool) -> Option<HostRecord> {
        self.lock().get(name).map(|known| HostRecord { cordoned, ..known.record() })
    }

    /// Lets no new machine onto a host, or lets them again; to be called once that is in the store.
    pub(crate) fn set_cordoned(&self, name: &HostName, cordoned: bool) -> Option<Host> {
        let mut hosts = self.lock();
        let known = hosts.get_mut(name)?;
        known.cordoned = cordoned;
        Some(known.view(self.gone_after))
    }
}
