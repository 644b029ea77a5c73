//! What the policy is asked: the inventory as it will be once everything that was promised has happened.

use crate::{
    app::{App, lock},
    declared,
    error::{not_found, refused},
    records::{Intent, MACHINES, MachineRecord, OWNERS, PIECES, Stored, load_all},
    site,
};
use std::collections::{BTreeMap, BTreeSet};
use vmotion_api::Claimed;
use vmotion_model::{
    ApiError, ByteSize, DatacenterName, Host, HostName, Judgement, MachineName, MachineSpec, MachineState, OwnerRecord,
    PieceName, Placement, Verdict,
};
use vmotion_policy::{HostLoad, PlacementRequest, Wanted};

/// Hosts with the memory that is promised on them, and what else they carry.
pub(crate) struct Snapshot {
    pub(crate) hosts: Vec<Host>,
    pub(crate) load: BTreeMap<HostName, HostLoad>,
}

impl Snapshot {
    /// Takes it. Whoever acts on it must hold the admission lock.
    pub(crate) async fn take(app: &App) -> Result<Self, ApiError> {
        let machines = load_all::<MachineRecord>(&*app.store, MACHINES).await?;
        let owners = load_all::<OwnerRecord>(&*app.store, OWNERS).await?;
        let owner_of: BTreeMap<MachineName, HostName> =
            owners.into_iter().map(|stored| (stored.value.machine, stored.value.owner)).collect();
        let target_of: BTreeMap<MachineName, HostName> = {
            let live = lock(&app.live);
            live.values()
                .map(|sender| {
                    let operation = sender.borrow();
                    (operation.machine.clone(), operation.target.clone())
                })
                .collect()
        };
        let mut spread: BTreeMap<MachineName, Vec<(PieceName, HostName)>> = BTreeMap::new();
        for Stored { key, value: Claimed { host, .. }, .. } in load_all::<Claimed>(&*app.store, PIECES).await? {
            let named = key.strip_prefix(PIECES).and_then(|named| named.split_once('/'));
            let parsed = named.and_then(|(machine, piece)| Some((machine.parse().ok()?, piece.parse().ok()?)));
            if let Some((machine, piece)) = parsed {
                spread.entry(machine).or_default().push((piece, host));
            }
        }
        let mut load: BTreeMap<HostName, HostLoad> = BTreeMap::new();
        let mut promised: BTreeMap<HostName, u64> = BTreeMap::new();
        for MachineRecord { spec, intent, .. } in machines.into_iter().map(|stored| stored.value) {
            let Some(owner) = owner_of.get(&spec.name) else { continue };
            if has_ended(app, owner, &spec.name, &intent) {
                continue;
            }
            if let Some(pieces) = spread.get(&spec.name) {
                carry_pieces(pieces, spec.memory, &mut load, &mut promised);
                continue;
            }
            let target = target_of.get(&spec.name).filter(|target| *target != owner);
            for host in [Some(owner), target].into_iter().flatten() {
                let carried = load.entry(host.clone()).or_default();
                carried.machines = carried.machines.saturating_add(1);
                carried.vcpus = carried.vcpus.saturating_add(u32::from(spec.cpus));
                let memory = promised.entry(host.clone()).or_default();
                *memory = memory.saturating_add(spec.memory.0);
            }
        }
        let mut hosts = app.inventory.hosts();
        for host in &mut hosts {
            let promised = ByteSize(promised.get(&host.name).copied().unwrap_or_default());
            host.capacity.memory_used = host.capacity.memory_used.max(promised);
        }
        Ok(Self { hosts, load })
    }

    /// Finds the host or datacenter an operator named.
    pub(crate) fn wanted(&self, name: &str) -> Result<Wanted, ApiError> {
        if let Some(host) = self.hosts.iter().find(|host| host.name.as_str() == name) {
            return Ok(Wanted::Host(host.name.clone()));
        }
        if let Some(host) = self.hosts.iter().find(|host| host.datacenter.as_str() == name) {
            return Ok(Wanted::Datacenter(host.datacenter.clone()));
        }
        let unknown = not_found(format!("No host or datacenter is named {name:?}"));
        if self.hosts.is_empty() {
            return Err(unknown.with_hint("there are no hosts yet: start an agent"));
        }
        let place = |host: &Host| format!("{} ({})", host.name, host.datacenter);
        Err(unknown.with_hint(format!("there are {}", self.hosts.iter().map(place).collect::<Vec<_>>().join(", "))))
    }

    /// The datacenter of a host.
    pub(crate) fn datacenter_of(&self, host: &HostName) -> Option<&DatacenterName> {
        self.hosts.iter().find(|known| known.name == *host).map(|known| &known.datacenter)
    }

    /// Asks the policy.
    pub(crate) fn place(self, request: PlacementRequest) -> Placement {
        vmotion_policy::place(&PlacementRequest { load: self.load, ..request }, &self.hosts)
    }
}

/// What is declared of where `machine` may be. Where a host is chosen for it, one is chosen that keeps its rules; who names a host has it, and
/// hears which rules that breaks.
pub(crate) async fn heed_rules(
    app: &App,
    mut placement: Placement,
    machine: &MachineSpec,
    named: bool,
) -> Result<Placement, ApiError> {
    if placement.chosen.is_none() || declared::current(app).await?.rules.is_empty() {
        return Ok(placement);
    }
    let site = site::now(app).await?;
    while let Some(host) = placement.chosen.clone() {
        let broken = vmotion_policy::broken_at(&site, &site::machine(machine, host.clone()));
        let Some(judgement) = placement.judgements.iter_mut().find(|judged| judged.host == host) else { break };
        match &mut judgement.verdict {
            Verdict::Fits { reasons, .. } if named => reasons.extend(broken),
            verdict if !broken.is_empty() => {
                *verdict = Verdict::Rejected { reasons: broken };
                let fits = |judged: &&Judgement| matches!(judged.verdict, Verdict::Fits { .. });
                placement.chosen = placement.judgements.iter().find(fits).map(|judged| judged.host.clone());
                continue;
            }
            _ => {}
        }
        break;
    }
    placement.judgements.sort_by_key(|judged| matches!(judged.verdict, Verdict::Rejected { .. }));
    Ok(placement)
}

/// What each host carries of a machine that spans several.
fn carry_pieces(
    pieces: &[(PieceName, HostName)],
    memory: ByteSize,
    load: &mut BTreeMap<HostName, HostLoad>,
    promised: &mut BTreeMap<HostName, u64>,
) {
    let slices = pieces.iter().filter(|(piece, _)| matches!(piece, PieceName::Memory(_))).count().max(1) as u64;
    let hosts: BTreeSet<&HostName> = pieces.iter().map(|(_, host)| host).collect();
    for host in hosts {
        let carried = load.entry(host.clone()).or_default();
        carried.machines = carried.machines.saturating_add(1);
        for (piece, _) in pieces.iter().filter(|(_, at)| at == host) {
            match piece {
                PieceName::Vcpu(_) => carried.vcpus = carried.vcpus.saturating_add(1),
                PieceName::Memory(_) => *promised.entry(host.clone()).or_default() += memory.0 / slices,
            }
        }
    }
}

/// Does the machine need no memory any more?
pub(crate) fn has_ended(app: &App, owner: &HostName, name: &MachineName, intent: &Intent) -> bool {
    let reported = app.inventory.status(owner, name).map(|status| status.state);
    match intent {
        Intent::Stopped | Intent::Failed { .. } => true,
        Intent::Starting => false,
        Intent::Running | Intent::Stopping | Intent::Removing => {
            matches!(reported, Some(MachineState::Stopped | MachineState::Failed))
        }
    }
}

/// The chosen host, or why there is none.
pub(crate) fn chosen(placement: &Placement, machine: &MachineName) -> Result<HostName, ApiError> {
    placement.chosen.clone().ok_or_else(|| match vmotion_policy::explain(placement).as_str() {
        "" => refused(format!("No host can take {machine}: there are none")).with_hint("start an agent"),
        why => refused(format!("No host can take {machine}: {why}")),
    })
}
