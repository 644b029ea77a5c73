//! What the policy looks at, put together from what is known: the inventory, the store, what is declared and what was measured.

use crate::{
    app::{App, lock},
    declared,
    error::invalid,
    inventory::unix_ms,
    machines,
    placed::{PlacedRecord, placed_key},
    placement::has_ended,
    records::{DRAINS, DrainRecord, MACHINES, MOVES, MachineRecord, OWNERS, PLACED, Stored, load_all},
    shape,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use vmotion_api::Operation;
use vmotion_model::{
    ApiError, Contradiction, CpuModel, Host, HostName, HostSpec, HostState, LinkSpec, MachineName, MachineSpec,
    MemoryTelemetry, Motive, OwnerRecord, PieceName, SiteSpec, Survey,
};
use vmotion_policy::site::{Demand, Duty, Link, Links, MemoryUse, Site, SiteHost, SiteMachine, SitePiece, UnderWay};

/// Moves for balance are counted over so long.
const HOUR_MS: u64 = 3600 * 1000;
/// A move whose end nobody foresees is taken to last so long, in ms.
const UNFORESEEN_MS: u64 = 60_000;
/// What a page takes on the wire where no move of the machine has shown it yet.
const BYTES_PER_PAGE: f64 = 4096.0;

/// Everything, as it is now.
pub(crate) async fn now(app: &App) -> Result<Site, ApiError> {
    let declared = declared::current(app).await?;
    with(app, &declared).await
}

/// Rules of `declared` that contradict each other, here.
pub(crate) async fn contradictions(app: &App, declared: &SiteSpec) -> Result<Vec<Contradiction>, ApiError> {
    if declared.rules.is_empty() {
        return Ok(Vec::new());
    }
    let mut site = with(app, declared).await?;
    let there: BTreeSet<MachineName> = site.machines.iter().map(|machine| machine.name.clone()).collect();
    // Those that are to come are meant as well; where they begin does not matter here.
    if let Some(anywhere) = site.hosts.first().map(|host| host.name.clone()) {
        let coming = declared.specs().map_err(invalid)?.into_iter().map(|(spec, _)| spec);
        let coming = coming.filter(|spec| !there.contains(&spec.name));
        site.machines.extend(coming.map(|spec| machine(&spec, anywhere.clone())));
    }
    Ok(vmotion_policy::contradictions(&site))
}

/// A machine of which nothing is known but what it is.
pub(crate) fn machine(spec: &MachineSpec, host: HostName) -> SiteMachine {
    SiteMachine {
        name: spec.name.clone(),
        host,
        pieces: Vec::new(),
        memory: spec.memory,
        vcpus: u32::from(spec.cpus),
        demand: Demand::default(),
        memory_use: MemoryUse { bytes_per_page: BYTES_PER_PAGE, ..MemoryUse::default() },
        stays: None,
        left: Vec::new(),
    }
}

async fn with(app: &App, declared: &SiteSpec) -> Result<Site, ApiError> {
    let policy = declared.policy.clone().unwrap_or_default();
    let now_ms = unix_ms();
    let machines = machines_now(app, &policy, now_ms).await?;
    let drains = load_all::<DrainRecord>(&*app.store, DRAINS).await?;
    let drains: BTreeMap<HostName, DrainRecord> =
        drains.into_iter().map(|stored| (stored.value.host.clone(), stored.value)).collect();
    let mut models: Vec<Arc<CpuModel>> = Vec::new();
    let hosts = app.inventory.hosts().into_iter().map(|host| {
        let said = declared.hosts.iter().find(|said| said.name == host.name);
        host_now(app, host, said, &drains, &machines, &mut models)
    });
    let hosts = hosts.collect();
    let moves = load_all::<crate::operations::MoveRecord>(&*app.store, MOVES).await?;
    let balanced = |stored: &&Stored<crate::operations::MoveRecord>| {
        let Operation { motive, created_unix_ms, .. } = &stored.value.operation;
        matches!(motive, Some(Motive::Balance | Motive::Gather)) && now_ms.saturating_sub(*created_unix_ms) < HOUR_MS
    };
    let moves_last_hour = u32::try_from(moves.iter().filter(balanced).count()).unwrap_or(u32::MAX);
    Ok(Site {
        hosts,
        machines,
        links: links(&declared.links),
        rules: declared.rules.clone(),
        under_way: under_way(app),
        policy,
        moves_last_hour,
        accuracy: crate::accuracy::of_moves(&*app.store).await?,
    })
}

fn links(declared: &[LinkSpec]) -> Links {
    let link = |said: &LinkSpec| {
        let [one, other] = said.between.clone();
        let pair = if one <= other { (one, other) } else { (other, one) };
        let LinkSpec { bandwidth, rtt_ms, price_per_gib, .. } = *said;
        (pair, Link { bytes_per_s: bandwidth.0 as f64, rtt_ms, price_per_gib })
    };
    Links { between: declared.iter().map(link).collect() }
}

fn host_now(
    app: &App,
    host: Host,
    said: Option<&HostSpec>,
    drains: &BTreeMap<HostName, DrainRecord>,
    machines: &[SiteMachine],
    models: &mut Vec<Arc<CpuModel>>,
) -> SiteHost {
    let Host { name, datacenter, capacity, cpu, cordoned, state, .. } = host;
    let measured = app.telemetry.of_host(&name);
    let threads = capacity.cpus as f32;
    let cpus = measured.map_or(threads, |(telemetry, _)| telemetry.cpus.min(threads));
    // A host that says more of itself than it has is believed no further than the operator does.
    let cpus = said.and_then(|said| said.cpus).map_or(cpus, |most| cpus.min(most));
    let memory = said.and_then(|said| said.memory).map_or(capacity.memory, |most| capacity.memory.min(most));
    let known: u64 = machines.iter().map(|machine| machine.memory_on(&name).bytes()).sum();
    let cpus_other = measured.map_or(0.0, |(telemetry, machines)| (telemetry.cpus_busy - machines).max(0.0));
    let cpu = match models.iter().find(|known| ***known == cpu) {
        Some(known) => Arc::clone(known),
        None => {
            models.push(Arc::new(cpu));
            models.last().map(Arc::clone).unwrap_or_default()
        }
    };
    let duty = match (state, drains.get(&name)) {
        (HostState::Gone, _) => Duty::Gone,
        (HostState::Up, Some(drain)) => Duty::Draining(drain.by_unix_ms.map(|by| by.saturating_sub(unix_ms()))),
        (HostState::Up, None) if cordoned => Duty::Cordoned,
        (HostState::Up, None) => Duty::Open,
    };
    SiteHost {
        rack: said.and_then(|said| said.rack.clone()),
        name,
        datacenter,
        cpus,
        memory,
        memory_other: vmotion_model::ByteSize(capacity.memory_used.bytes().saturating_sub(known)),
        cpus_other,
        network_bytes_per_s: measured.and_then(|(telemetry, _)| telemetry.network_bytes_per_s).unwrap_or(0.0),
        cpu,
        duty,
    }
}

async fn machines_now(
    app: &App,
    policy: &vmotion_model::PolicySpec,
    now_ms: u64,
) -> Result<Vec<SiteMachine>, ApiError> {
    let records = load_all::<MachineRecord>(&*app.store, MACHINES).await?;
    let owners = load_all::<OwnerRecord>(&*app.store, OWNERS).await?;
    let owners: BTreeMap<MachineName, HostName> =
        owners.into_iter().map(|stored| (stored.value.machine, stored.value.owner)).collect();
    let mut placed: BTreeMap<String, PlacedRecord> =
        load_all(&*app.store, PLACED).await?.into_iter().map(|stored| (stored.key, stored.value)).collect();
    let mut all = Vec::new();
    for MachineRecord { spec, intent, .. } in records.into_iter().map(|stored| stored.value) {
        let Some(owner) = owners.get(&spec.name) else { continue };
        if has_ended(app, owner, &spec.name, &intent) {
            continue;
        }
        let (demand, memory) = app.telemetry.of_machine(&spec.name);
        let placed = placed.remove(&placed_key(&spec.name)).unwrap_or_default();
        let memory_use = memory_use(memory, lock(&app.surveys).get(&spec.name));
        all.push(SiteMachine {
            demand,
            memory_use,
            stays: placed.stays(policy, now_ms),
            left: placed.left(now_ms),
            pieces: pieces(app, &spec.name).await?,
            ..machine(&spec, owner.clone())
        });
    }
    Ok(all)
}

/// By the samples its host takes all the time, and by what the last move of it measured.
fn memory_use(sampled: Option<MemoryTelemetry>, survey: Option<&Survey>) -> MemoryUse {
    let bytes_per_page = survey.map_or(BYTES_PER_PAGE, |survey| survey.bytes_per_page);
    match (sampled, survey) {
        (Some(MemoryTelemetry { dirty_pages_per_s, working_set_pages, zero_share }), _) => {
            MemoryUse { dirty_pages_per_s, working_set_pages, zero_share, bytes_per_page }
        }
        (None, Some(survey)) => MemoryUse {
            dirty_pages_per_s: survey.dirty_pages_per_s,
            working_set_pages: survey.working_set_pages,
            zero_share: survey.zero_share,
            bytes_per_page,
        },
        (None, None) => MemoryUse { bytes_per_page, ..MemoryUse::default() },
    }
}

/// Pieces of a machine that spans several hosts, and what they share; none of one that does not.
async fn pieces(app: &App, name: &MachineName) -> Result<Vec<SitePiece>, ApiError> {
    let pieces = machines::pieces(app, name).await?;
    if pieces.is_empty() {
        return Ok(Vec::new());
    }
    let sharing = shape::sharing(app, name).await.unwrap_or_default();
    let shares = |piece: PieceName| {
        let with = |(one, other, per_s): &(PieceName, PieceName, f64)| match piece {
            _ if *one == piece => Some((*other, *per_s)),
            _ if *other == piece => Some((*one, *per_s)),
            _ => None,
        };
        sharing.iter().filter_map(with).collect()
    };
    Ok(pieces
        .into_iter()
        .map(|piece| SitePiece { shares: shares(piece.name), name: piece.name, host: piece.host })
        .collect())
}

fn under_way(app: &App) -> Vec<UnderWay> {
    let live = lock(&app.live);
    let operations = live.values().map(|sender| sender.borrow());
    operations
        .filter(|operation| operation.steps.is_empty() && operation.source != operation.target)
        .map(|operation| UnderWay {
            machine: operation.machine.clone(),
            piece: None,
            from: operation.source.clone(),
            to: operation.target.clone(),
            ends_ms: operation.progress.as_ref().and_then(|progress| progress.eta_ms).unwrap_or(UNFORESEEN_MS),
        })
        .collect()
}
