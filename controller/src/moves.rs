//! Moves as requests: begin, look, cancel. What happens between is the reconciler's.

use crate::{
    accuracy,
    app::{App, lock},
    error::{conflict, invalid, not_found, refused},
    inventory::unix_ms,
    machines,
    once::{self, Once},
    operations::{MoveRecord, Phase, progress_before_copying},
    placement::{Snapshot, chosen, heed_rules},
    reconciler,
    records::{
        Intent, LAST_MOVE, MOVES, MachineRecord, Stored, busy_key, load, load_all, load_machine, load_move, load_owner,
        load_span, move_key, put, timeline_key,
    },
    store::{CHANGES_MAX, Change, Compare, Outcome, Store, Transaction},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};
use vmotion_api::{ClientError, MoveCommand, Operation};
use vmotion_model::{
    Accuracy, ApiError, HostName, MachineName, MachineState, Motive, MoveId, MoveLimit, MoveOutcome, OwnerRecord,
    Placement, Timeline,
};
use vmotion_policy::{Current, PlacementRequest, Wanted};
use vmotion_transport::session::MoveTicket;

/// Finished moves that are remembered; the oldest are forgotten first.
const REMEMBERED_MAX: usize = 1000;
/// Moves forgotten at once, each with its timeline.
const FORGOTTEN_AT_ONCE: usize = 20;
/// Changes of a move that begins, with what is forgotten for it.
const BEGIN_CHANGES_MAX: usize = 4 + 2 * FORGOTTEN_AT_ONCE + once::FORGOTTEN_AT_ONCE;
const _: () = assert!(BEGIN_CHANGES_MAX <= CHANGES_MAX, "the move after many would be refused, and each after it");
/// A cancelled move is usually over by then; the answer says so when it is.
const CANCEL_WITHIN: Duration = Duration::from_secs(3);

/// Who wants a move, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    /// An operator by name, or `policy`.
    pub(crate) by: Option<String>,
    /// When the policy asked.
    pub(crate) motive: Option<Motive>,
    /// The same in a sentence.
    pub(crate) reason: Option<String>,
}

impl Asked {
    /// Into the operation that is made of it.
    pub(crate) fn write(self, operation: &mut Operation) {
        let Self { by, motive, reason } = self;
        (operation.asked_by, operation.motive, operation.reason) = (by, motive, reason);
        operation.trace = vmotion_api::current_trace();
    }

    /// By an operator of this name, who need not say why.
    pub(crate) fn by_operator(name: String) -> Self {
        Self { by: Some(name), ..Self::default() }
    }
}

/// A machine that could be moved.
struct Movable {
    machine: Stored<MachineRecord>,
    owner: Stored<OwnerRecord>,
}

/// Where a move would go.
pub(crate) async fn place(app: &App, command: &MoveCommand) -> Result<Placement, ApiError> {
    command.request.validate().map_err(invalid)?;
    let movable = load_movable(app, &command.machine).await?;
    place_movable(app, command, &movable).await
}

async fn load_movable(app: &App, name: &MachineName) -> Result<Movable, ApiError> {
    let unknown = || not_found(format!("There is no machine {name}"));
    let machine = load_machine(&*app.store, name).await?.ok_or_else(unknown)?;
    let owner = load_owner(&*app.store, name).await?.ok_or_else(unknown)?;
    if load_span(&*app.store, name).await?.is_some() {
        return Err(refused(format!(
            "Machine {name} spans several hosts: it does not move as a whole, but its pieces do"
        ))
        .with_hint(format!("gather them: POST /v1/machines/{name}/shape, which vmotion move {name} --to HOST does")));
    }
    check_idle(app, name).await?;
    let view = machines::view(app, name).await?;
    let intended = machine.value.intent == Intent::Running;
    if !intended || !matches!(view.state, MachineState::Running | MachineState::Moving) {
        let why = view.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = serde_json::to_value(view.state).ok();
        let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or("not running");
        return Err(refused(format!("Machine {name} is {state}{why}; only a running machine can be moved")));
    }
    Ok(Movable { machine, owner })
}

async fn place_movable(app: &App, command: &MoveCommand, movable: &Movable) -> Result<Placement, ApiError> {
    let snapshot = Snapshot::take(app).await?;
    let wanted = snapshot.wanted(&command.to)?;
    let source = &movable.owner.value.owner;
    let name = &command.machine;
    match &wanted {
        Wanted::Host(host) if host == source => {
            return Err(conflict(format!("Machine {name} is on {host} already"))
                .with_hint("name another host, or a datacenter"));
        }
        Wanted::Datacenter(datacenter) if snapshot.datacenter_of(source) == Some(datacenter) => {
            return Err(conflict(format!("Machine {name} is in {datacenter} already, on {source}"))
                .with_hint("name a host to move it within its datacenter"));
        }
        Wanted::Host(_) | Wanted::Datacenter(_) | Wanted::Anywhere => {}
    }
    let cpu = app.inventory.host(source).map(|host| host.cpu).unwrap_or_default();
    let spec = &movable.machine.value.spec;
    let named = matches!(wanted, Wanted::Host(_));
    let placement = snapshot.place(PlacementRequest {
        memory: spec.memory,
        cpus: u32::from(spec.cpus),
        wanted,
        current: Some(Current { host: source.clone(), cpu }),
        ..PlacementRequest::default()
    });
    heed_rules(app, placement, spec, named).await
}

/// Begins a move: it is in the store before any host hears of it.
pub(crate) async fn start(
    app: &Arc<App>,
    command: MoveCommand,
    asked: Asked,
    once: Once,
) -> Result<Operation, ApiError> {
    let _admission = app.admission.lock().await;
    if let Some(operation) = made_before(app, &once).await? {
        return Ok(operation);
    }
    command.request.validate().map_err(invalid)?;
    let movable = load_movable(app, &command.machine).await?;
    let placement = place_movable(app, &command, &movable).await?;
    let target = chosen(&placement, &command.machine)?;
    let (id, counter) = next_id(&*app.store).await?;
    let mut record = record(command, movable.machine.value.clone(), movable.owner.value.clone(), target, id, placement);
    asked.write(&mut record.operation);
    let operation = record.operation.clone();
    let Operation { id, machine, source, target, .. } = &operation;
    let mut transaction = Transaction::default()
        .when(movable.machine.unchanged())
        .when(movable.owner.unchanged())
        .when(Compare::Absent(busy_key(machine)))
        .when(Compare::Absent(move_key(id)))
        .then(put(move_key(id), &record)?)
        .then(put(busy_key(machine), id)?)
        .then(counter);
    transaction.compares.extend(once.compare());
    transaction.changes.extend(once.remember(&*app.store, id.as_str()).await?);
    transaction.changes.extend(forgettable(&*app.store).await?);
    if app.store.commit(transaction).await? == Outcome::Refused {
        return Err(conflict(format!("Machine {machine} was changed by another request at the same time"))
            .with_hint("try again"));
    }
    tracing::info!(%id, %machine, %source, %target, "move begins");
    reconciler::begin(app, operation.clone());
    Ok(operation)
}

/// The move that the first request with this key began.
pub(crate) async fn made_before(app: &App, once: &Once) -> Result<Option<Operation>, ApiError> {
    let Some(made) = once.made_before(&*app.store).await? else { return Ok(None) };
    let forgotten = || conflict(format!("Idempotency-Key was used to begin {made}, which is not remembered"));
    let id: MoveId = made.parse().map_err(|_| forgotten())?;
    find(app, &id).await.map(Some).map_err(|_| forgotten())
}

/// One move of a machine at a time.
pub(crate) async fn check_idle(app: &App, name: &MachineName) -> Result<(), ApiError> {
    if let Some(id) = load::<MoveId>(&*app.store, &busy_key(name)).await? {
        return Err(conflict(format!("Machine {name} is being moved by {} already", id.value))
            .with_hint(format!("wait for it, or cancel it: vmotion cancel {}", id.value)));
    }
    Ok(())
}

fn record(
    command: MoveCommand,
    machine: MachineRecord,
    owner: OwnerRecord,
    target: HostName,
    id: MoveId,
    placement: Placement,
) -> MoveRecord {
    let operation = Operation {
        id,
        machine: command.machine,
        source: owner.owner.clone(),
        target,
        request: command.request,
        created_unix_ms: unix_ms(),
        progress: Some(progress_before_copying(0)),
        outcome: None,
        summary: None,
        placement: Some(placement),
        note: None,
        asked_by: None,
        motive: None,
        reason: None,
        trace: None,
        steps: Vec::new(),
    };
    MoveRecord {
        operation,
        phase: Phase::Preparing,
        spec: machine.spec,
        record: owner,
        ticket: MoveTicket::random(),
        cancel: false,
    }
}

pub(crate) async fn next_id(store: &dyn Store) -> Result<(MoveId, Change), ApiError> {
    let number = load::<u64>(store, LAST_MOVE).await?.map_or(0, |stored| stored.value).saturating_add(1);
    Ok((MoveId::numbered(number), put(LAST_MOVE, &number)?))
}

/// The oldest finished moves, when there are too many.
pub(crate) async fn forgettable(store: &dyn Store) -> Result<Vec<Change>, ApiError> {
    let (entries, _) = store.list(MOVES).await?;
    if entries.len() < REMEMBERED_MAX {
        return Ok(Vec::new());
    }
    let all = load_all::<MoveRecord>(store, MOVES).await?;
    let finished = all.iter().filter(|stored| stored.value.phase == Phase::Finished);
    let timeline = |stored: &Stored<MoveRecord>| Change::Delete(timeline_key(&stored.value.operation.id));
    Ok(finished.take(FORGOTTEN_AT_ONCE).flat_map(|stored| [stored.deleted(), timeline(stored)]).collect())
}

/// A receiver of an unfinished move's events; the current one is in it.
pub(crate) fn follow(app: &App, id: &MoveId) -> Option<watch::Receiver<Operation>> {
    lock(&app.live).get(id).map(watch::Sender::subscribe)
}

/// One move.
pub(crate) async fn find(app: &App, id: &MoveId) -> Result<Operation, ApiError> {
    if let Some(live) = follow(app, id) {
        return Ok(live.borrow().clone());
    }
    let stored = load_move(&*app.store, id).await?.ok_or_else(|| not_found(format!("There is no move {id}")))?;
    let mut operation = stored.value.operation;
    if let Some(summary) = &mut operation.summary
        && let Some(timeline) = load::<Timeline>(&*app.store, &timeline_key(id)).await?
    {
        summary.timeline = timeline.value;
    }
    Ok(operation)
}

/// All moves, oldest first.
pub(crate) async fn list(app: &App) -> Result<Vec<Operation>, ApiError> {
    let stored = load_all::<MoveRecord>(&*app.store, MOVES).await?;
    let live = lock(&app.live);
    let current = |stored: Stored<MoveRecord>| match live.get(&stored.value.operation.id) {
        Some(sender) if stored.value.phase != Phase::Finished => sender.borrow().clone(),
        _ => stored.value.operation,
    };
    // One that has just ended still has it.
    let without_timeline = |mut operation: Operation| {
        if let Some(summary) = &mut operation.summary {
            summary.timeline = Timeline::default();
        }
        operation
    };
    Ok(stored.into_iter().map(current).map(without_timeline).collect())
}

/// Changes the limits of a move that goes on: in the store first, for a source that has not been asked to move yet.
pub(crate) async fn limit(app: &Arc<App>, id: &MoveId, limit: MoveLimit) -> Result<Operation, ApiError> {
    limit.validate().map_err(invalid)?;
    let record = loop {
        let stored = load_move(&*app.store, id).await?.ok_or_else(|| not_found(format!("There is no move {id}")))?;
        let mut record = stored.value.clone();
        if let Some(outcome) = &record.operation.outcome {
            return Err(conflict(format!("Move {id} is already finished: {}", outcome_in_words(outcome))));
        }
        if matches!(record.phase, Phase::Reshaping { .. }) {
            return Err(invalid(format!("Move {id} is of the pieces of a machine: it has no bandwidth limit")));
        }
        record.operation.request.bandwidth_max = limit.bandwidth_max;
        let transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), &record)?);
        // Refused when the reconciler has just gone on; the phase is read again.
        if matches!(app.store.commit(transaction).await?, Outcome::Committed(_)) {
            break record;
        }
    };
    reconciler::show(app, id, |operation| operation.request.bandwidth_max = limit.bandwidth_max);
    if matches!(record.phase, Phase::Launching { .. } | Phase::Copying) {
        let Operation { machine, source, .. } = &record.operation;
        match app.agent(source)?.limit(machine, id, &limit).await {
            // The source has not been asked to move yet, or is done already: the store has what it needs.
            Err(ClientError::Answered(error)) if error.code == vmotion_model::ErrorCode::NotFound => {}
            Err(ClientError::Answered(error)) => return Err(error),
            Err(error) => return Err(ApiError::new(vmotion_model::ErrorCode::Unavailable, error.to_string())),
            Ok(()) => {}
        }
    }
    find(app, id).await
}

/// How far forecasts were off.
pub(crate) async fn accuracy(app: &App) -> Result<Accuracy, ApiError> {
    accuracy::of_moves(&*app.store).await
}

pub(crate) fn outcome_in_words(outcome: &MoveOutcome) -> String {
    match outcome {
        MoveOutcome::Moved => "moved".to_owned(),
        MoveOutcome::Cancelled => "cancelled".to_owned(),
        MoveOutcome::Surveyed => "surveyed".to_owned(),
        MoveOutcome::RolledBack { reason } => format!("rolled back: {reason}"),
        MoveOutcome::Partly { reason } => format!("partly moved: {reason}"),
        MoveOutcome::SourceLost { reason } => format!("source lost: {reason}"),
        MoveOutcome::Stranded { reason } => format!("stranded: {reason}"),
    }
}

/// Cancels a move. The wish is in the store first, and the reconciler repeats it; the source's "too late" is passed on.
pub(crate) async fn cancel(app: &Arc<App>, id: &MoveId) -> Result<Operation, ApiError> {
    let record = loop {
        let stored = load_move(&*app.store, id).await?.ok_or_else(|| not_found(format!("There is no move {id}")))?;
        if let Some(outcome) = &stored.value.operation.outcome {
            return Err(conflict(format!("Move {id} is already finished: {}", outcome_in_words(outcome))));
        }
        let record = MoveRecord { cancel: true, ..stored.value.clone() };
        let transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), &record)?);
        // Refused when the reconciler has just gone on; the phase is read again.
        if matches!(app.store.commit(transaction).await?, Outcome::Committed(_)) {
            break record;
        }
    };
    if matches!(record.phase, Phase::Launching { .. } | Phase::Copying) {
        let Operation { machine, source, .. } = &record.operation;
        if let Err(ClientError::Answered(error)) = app.agent(source)?.cancel(machine, id).await
            && error.code == vmotion_model::ErrorCode::Conflict
        {
            return Err(error);
        }
    }
    if let Some(mut live) = follow(app, id) {
        let over = live.wait_for(|operation| operation.outcome.is_some());
        // Not over yet: the answer shows how far it is.
        let _ = timeout(CANCEL_WITHIN, over).await;
    }
    find(app, id).await
}
