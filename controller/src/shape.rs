//! Where the pieces of a machine are, as requests: look, ask what a change would do, begin one. What happens between is the reconciler's.

use crate::{
    app::App,
    error::{conflict, invalid, not_found, refused},
    machines::{self, pieces},
    moves,
    once::Once,
    operations::{MoveRecord, Phase, progress_before_copying, shape::plan},
    placement::{Snapshot, chosen},
    reconciler,
    records::{
        Intent, MachineRecord, SpanRecord, Stored, busy_key, load_machine, load_owner, load_span, move_key, put,
    },
    store::{Compare, Outcome, Transaction},
};
use futures::future::join_all;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::timeout;
use vmotion_api::{MemberView, Operation, ShapeChange, ShapePlan, SpanView};
use vmotion_model::{
    ApiError, ByteSize, HostName, MachineName, MachineState, MemoryLayout, MoveId, MoveRequest, OwnerRecord,
    PartFigures, Piece, PieceName, Placement, Step, StepReport, slice_of_shards, spread_over,
};
use vmotion_policy::{Current, Insight, Picture, PlacementRequest, Waits, Wanted, look};
use vmotion_spanning::directory::{ShardNumber, shards};
use vmotion_transport::session::MoveTicket;

/// A part that has not said by then what it did is shown without.
const FIGURES_WITHIN: Duration = Duration::from_secs(2);

/// A machine over several hosts, as it is in the store.
struct Spanning {
    machine: Stored<MachineRecord>,
    owner: Stored<OwnerRecord>,
    span: SpanRecord,
    pieces: Vec<Piece>,
}

impl Spanning {
    async fn load(app: &App, name: &MachineName) -> Result<Self, ApiError> {
        let unknown = || not_found(format!("There is no machine {name}"));
        let machine = load_machine(&*app.store, name).await?.ok_or_else(unknown)?;
        let owner = load_owner(&*app.store, name).await?.ok_or_else(unknown)?;
        let span = load_span(&*app.store, name).await?.ok_or_else(|| {
            conflict(format!("Machine {name} is all on {}, it has no pieces", owner.value.owner)).with_hint(format!(
                "move it as a whole: vmotion move {name} --to HOST; one that is to have pieces is created with --span"
            ))
        })?;
        let pieces = pieces(app, name).await?;
        Ok(Self { machine, owner, span: span.value, pieces })
    }

    fn name(&self) -> &MachineName {
        &self.owner.value.machine
    }

    fn hub(&self) -> &HostName {
        &self.owner.value.owner
    }

    /// How much memory a slice is.
    fn slice(&self) -> ByteSize {
        ByteSize(self.machine.value.spec.memory.bytes() / u64::from(self.span.slices.max(1)))
    }

    /// How much of its memory a host has.
    fn memory_on(&self, host: &HostName) -> ByteSize {
        let slices =
            self.pieces.iter().filter(|piece| matches!(piece.name, PieceName::Memory(_)) && piece.host == *host);
        ByteSize(self.slice().bytes() * slices.count() as u64)
    }

    fn steps(&self, wanted: &[(PieceName, HostName)]) -> Vec<Step> {
        let members: Vec<HostName> = self.span.members.values().cloned().collect();
        plan(&self.pieces, &members, self.hub(), wanted)
    }
}

/// How a machine gets on.
pub(crate) async fn view(app: &App, name: &MachineName) -> Result<SpanView, ApiError> {
    let spanning = Spanning::load(app, name).await?;
    Ok(look_at(app, &spanning).await?.0)
}

/// Which pieces of a machine share what: waits a second that would be saved if they were on one host.
pub(crate) async fn sharing(app: &App, name: &MachineName) -> Result<Vec<(PieceName, PieceName, f64)>, ApiError> {
    let spanning = Spanning::load(app, name).await?;
    let members = members(app, &spanning).await;
    let picture = picture(app, &spanning, &members)?;
    let pairs = look(&picture).sharing.into_iter().map(|pair| (pair.one, pair.other, pair.faults_per_s));
    let mut slices: BTreeMap<(u8, u8), f64> = BTreeMap::new();
    for Waits { vcpu, pages, .. } in &picture.waits {
        for (_, slice, per_s) in pages {
            *slices.entry((*vcpu, *slice)).or_default() += per_s;
        }
    }
    let slices =
        slices.into_iter().map(|((vcpu, slice), per_s)| (PieceName::Vcpu(vcpu), PieceName::Memory(slice), per_s));
    Ok(pairs.chain(slices).collect())
}

async fn look_at(app: &App, spanning: &Spanning) -> Result<(SpanView, Vec<(PieceName, HostName)>), ApiError> {
    let members = members(app, spanning).await;
    let Insight { per_s, hottest, sharing, advice } = look(&picture(app, spanning, &members)?);
    let wanted = advice.iter().map(|advice| (advice.piece, advice.to.clone())).collect();
    let machine = spanning.name().clone();
    Ok((SpanView { machine, members, remote_faults_per_s: per_s, hottest, sharing, advice }, wanted))
}

/// Its hosts, and what they say of what they did lately.
async fn members(app: &App, spanning: &Spanning) -> Vec<MemberView> {
    let name = spanning.name();
    let asked = spanning.span.members.values().map(async |host| {
        let said = match app.agent(host) {
            Ok(agent) => timeout(FIGURES_WITHIN, agent.part(name)).await,
            Err(error) => return (host, Err(error.message)),
        };
        let silent = || format!("does not say within {FIGURES_WITHIN:?}");
        (host, said.map_or_else(|_| Err(silent()), |said| said.map_err(|error| error.to_string())))
    });
    let mut members = Vec::new();
    for (host, said) in join_all(asked).await {
        let (figures, reason) = match said {
            Ok(state) => (Some(state.figures), None),
            Err(reason) => (None, Some(reason)),
        };
        let pieces = spanning.pieces.iter().filter(|piece| piece.host == *host).map(|piece| piece.name).collect();
        members.push(MemberView { host: host.clone(), devices: host == spanning.hub(), pieces, figures, reason });
    }
    members
}

fn picture(app: &App, spanning: &Spanning, members: &[MemberView]) -> Result<Picture, ApiError> {
    let memory = spanning.machine.value.spec.memory.bytes();
    let layout = MemoryLayout::for_ram(memory).map_err(|error| invalid(error.to_string()))?;
    let all: Vec<ShardNumber> = shards(&layout).collect();
    let slices = spanning.span.slices;
    let slice_of = |page: u64| {
        let at = all.binary_search(&ShardNumber::of(vmotion_model::PageNumber(page))).ok()?;
        (0..slices).find(|slice| slice_of_shards(all.len(), usize::from(*slice), usize::from(slices)).contains(&at))
    };
    let processors = members
        .iter()
        .filter_map(|member| Some((member.host.clone(), app.inventory.host(&member.host)?.capacity.cpus)));
    let waits = members.iter().filter_map(|member| member.figures.as_ref()).flat_map(|figures| {
        let PartFigures { window_ms, vcpus, .. } = figures;
        vcpus.iter().map(|vcpu| {
            let per_s = |faults: u64| faults as f64 * 1000.0 / window_ms.max(1.0);
            let pages = vcpu.pages.iter().filter_map(|hot| Some((hot.page, slice_of(hot.page)?, per_s(hot.faults))));
            Waits { vcpu: vcpu.vcpu, per_s: per_s(vcpu.faults), pages: pages.collect() }
        })
    });
    let waits = waits.collect();
    Ok(Picture { pieces: spanning.pieces.clone(), processors: processors.collect(), waits })
}

/// Where pieces are to be, and why a host was chosen, if one was.
async fn wanted(
    app: &App,
    spanning: &Spanning,
    change: &ShapeChange,
) -> Result<(Vec<(PieceName, HostName)>, Option<Placement>), ApiError> {
    let spec = &spanning.machine.value.spec;
    let slices = spanning.span.slices;
    match change {
        ShapeChange::Piece { piece, to } => {
            let known = spanning.pieces.iter().find(|known| known.name == *piece);
            let from = known.map(|known| &known.host).ok_or_else(|| {
                let pieces: Vec<_> = spanning.pieces.iter().map(|piece| piece.name.to_string()).collect();
                let name = spanning.name();
                not_found(format!("Machine {name} has no piece {piece}: it has {}", pieces.join(", ")))
            })?;
            let (memory, cpus) = match piece {
                PieceName::Vcpu(_) => (ByteSize(0), 1),
                PieceName::Memory(_) => (spanning.slice(), 0),
            };
            let placement = place(app, spanning, to, (memory, cpus), Some(from)).await?;
            let to = chosen(&placement, spanning.name())?;
            Ok((vec![(*piece, to)], Some(placement)))
        }
        ShapeChange::Gather { to } => {
            let placement = place(app, spanning, to, (spec.memory, u32::from(spec.cpus)), None).await?;
            let to = chosen(&placement, spanning.name())?;
            Ok((spanning.pieces.iter().map(|piece| (piece.name, to.clone())).collect(), Some(placement)))
        }
        ShapeChange::Spread { over } => {
            if over.is_empty() {
                return Err(invalid("over names no host: name at least one"));
            }
            spec.validate_span(over).map_err(invalid)?;
            let share = ByteSize(spec.memory.bytes() / over.len() as u64);
            for host in over {
                let placement = place(app, spanning, host.as_str(), (share, 0), None).await?;
                chosen(&placement, spanning.name())?;
            }
            Ok((spread_over(spec.cpus, slices, over), None))
        }
        ShapeChange::Advised => Ok((look_at(app, spanning).await?.1, None)),
    }
}

/// Who could take so much memory and so many vCPUs of the machine. What its hosts have of it already is not counted twice.
async fn place(
    app: &App,
    spanning: &Spanning,
    to: &str,
    (memory, cpus): (ByteSize, u32),
    from: Option<&HostName>,
) -> Result<Placement, ApiError> {
    let snapshot = Snapshot::take(app).await?;
    let hub = spanning.hub();
    let wanted = match snapshot.wanted(to)? {
        // All pieces come to where the devices are, if that is where they may.
        Wanted::Datacenter(here) if from.is_none() && snapshot.datacenter_of(hub) == Some(&here) => {
            Wanted::Host(hub.clone())
        }
        wanted => wanted,
    };
    if let (Some(from), Wanted::Host(host)) = (from, &wanted)
        && from == host
    {
        return Err(conflict(format!("This piece of {} is on {host} already", spanning.name())));
    }
    let cpu = app.inventory.host(hub).map(|host| host.cpu).unwrap_or_default();
    // One piece comes to what is there; of several, what is there is among them.
    let there = match &wanted {
        Wanted::Host(host) if from.is_none() => spanning.memory_on(host),
        Wanted::Host(_) | Wanted::Datacenter(_) | Wanted::Anywhere => ByteSize(0),
    };
    let memory = ByteSize(memory.bytes().saturating_sub(there.bytes()));
    // Whoever it is must have the processors that the guest was started on.
    let to_hub = matches!(&wanted, Wanted::Host(host) if host == hub);
    let current = from.or_else(|| (!to_hub).then_some(hub)).map(|host| Current { host: host.clone(), cpu });
    Ok(snapshot.place(PlacementRequest { memory, cpus, wanted, current, ..PlacementRequest::default() }))
}

/// What a change would do.
pub(crate) async fn foresee(app: &App, name: &MachineName, change: &ShapeChange) -> Result<ShapePlan, ApiError> {
    let spanning = Spanning::load(app, name).await?;
    let (wanted, _) = wanted(app, &spanning, change).await?;
    Ok(ShapePlan { machine: name.clone(), steps: spanning.steps(&wanted) })
}

/// Begins a change: it is in the store before any host hears of it.
pub(crate) async fn start(
    app: &Arc<App>,
    name: &MachineName,
    change: ShapeChange,
    asked: moves::Asked,
    once: Once,
) -> Result<Operation, ApiError> {
    let _admission = app.admission.lock().await;
    if let Some(operation) = moves::made_before(app, &once).await? {
        return Ok(operation);
    }
    let spanning = Spanning::load(app, name).await?;
    moves::check_idle(app, name).await?;
    let view = machines::view(app, name).await?;
    if spanning.machine.value.intent != Intent::Running || view.state != MachineState::Running {
        let why = view.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = machines::in_words(view.state);
        return Err(refused(format!("Machine {name} is {state}{why}; only pieces of a running machine can be moved")));
    }
    let (wanted, placement) = wanted(app, &spanning, &change).await?;
    let steps = spanning.steps(&wanted);
    if steps.is_empty() {
        return Err(match change {
            ShapeChange::Advised => conflict(format!("Every piece of {name} is where it should be")),
            _ => conflict(format!("The pieces of {name} are there already")),
        });
    }
    let (id, counter) = moves::next_id(&*app.store).await?;
    let mut record = record(&spanning, id, steps, placement);
    asked.write(&mut record.operation);
    let operation = record.operation.clone();
    let mut transaction = Transaction::default()
        .when(spanning.machine.unchanged())
        .when(spanning.owner.unchanged())
        .when(Compare::Absent(busy_key(name)))
        .when(Compare::Absent(move_key(&operation.id)))
        .then(put(move_key(&operation.id), &record)?)
        .then(put(busy_key(name), &operation.id)?)
        .then(counter);
    transaction.compares.extend(once.compare());
    transaction.changes.extend(once.remember(&*app.store, operation.id.as_str()).await?);
    transaction.changes.extend(moves::forgettable(&*app.store).await?);
    if app.store.commit(transaction).await? == Outcome::Refused {
        return Err(
            conflict(format!("Machine {name} was changed by another request at the same time")).with_hint("try again")
        );
    }
    tracing::info!(id = %operation.id, machine = %name, steps = operation.steps.len(), "its pieces begin to move");
    reconciler::begin(app, operation.clone());
    Ok(operation)
}

fn record(spanning: &Spanning, id: MoveId, steps: Vec<Step>, placement: Option<Placement>) -> MoveRecord {
    // Of one piece they are its own; of several they say where the first goes.
    let first = steps.iter().find_map(|step| match step {
        Step::Move { from, to, .. } => Some((from.clone(), to.clone())),
        Step::Join { .. } | Step::Leave { .. } => None,
    });
    let (source, target) = first.unwrap_or_else(|| (spanning.hub().clone(), spanning.hub().clone()));
    let operation = Operation {
        id,
        machine: spanning.name().clone(),
        source,
        target,
        request: MoveRequest::default(),
        created_unix_ms: crate::inventory::unix_ms(),
        progress: Some(progress_before_copying(0)),
        outcome: None,
        summary: None,
        placement,
        note: None,
        asked_by: None,
        motive: None,
        reason: None,
        trace: None,
        steps: steps.into_iter().map(StepReport::new).collect(),
    };
    MoveRecord {
        operation,
        phase: Phase::Reshaping { ending: None },
        spec: spanning.machine.value.spec.clone(),
        record: spanning.owner.value.clone(),
        // Its hosts have the secret of their mesh; nobody is asked for this one.
        ticket: MoveTicket::random(),
        cancel: false,
    }
}
