//! Machines that span several hosts: what is in the store of them, asking all their hosts, and their pieces.
//!
//! The owner record names the host with the devices. Each piece has a record of its own, which only its host-to-be may set, one epoch on:
//! what decides the move of a machine decides that of a piece.

use super::drive::{Asked, conclude, with_intent};
use crate::{
    app::App,
    error::{conflict, forbidden, invalid, not_found, refused, unavailable},
    placement::Snapshot,
    records::{
        Intent, MachineRecord, SpanRecord, Stored, load, load_all, load_machine, load_owner, load_span, owner_key,
        piece_key, pieces_key, put, span_key,
    },
    store::{Change, Compare, Outcome, Transaction},
};
use std::{sync::Arc, time::Instant};
use vmotion_api::{
    AgentClient, ClaimRequest, Claimed, ClientError, CreateRequest, MovePiece, PartAddress, PartOrder, PartReady,
    PartRequest, SpreadRequest,
};
use vmotion_model::{
    ApiError, Epoch, ErrorCode, HostName, HostState, Judgement, MachineName, MemoryLayout, OwnerRecord, OwnerState,
    Piece, PieceMoved, PieceName, Placement, Verdict, first_pieces, slice_of_shards, spread_over,
};
use vmotion_spanning::directory::{ShardNumber, shards};
use vmotion_transport::mesh::MeshTicket;

/// Turns before a record that changes all the time is given up.
const TURNS_MAX: usize = 16;

/// Can this be created over several hosts?
pub(super) fn check(request: &CreateRequest) -> Result<(), ApiError> {
    if let Some(on) = &request.on {
        return Err(invalid(format!("on {on} and span contradict each other: name the hosts in span")));
    }
    if request.from.is_some() {
        return Err(invalid("from and span contradict each other: a snapshot is started on one host"));
    }
    request.spec.validate_span(&request.span).map_err(invalid)
}

/// The operator chose the hosts; are they there?
pub(super) fn place(snapshot: &Snapshot, request: &CreateRequest) -> Result<Placement, ApiError> {
    let share = request.spec.memory.bytes() / request.span.len().max(1) as u64;
    let mut judgements = Vec::with_capacity(request.span.len());
    for name in &request.span {
        let host = snapshot.hosts.iter().find(|host| host.name == *name);
        let host = host.ok_or_else(|| not_found(format!("span names {name}, and there is no such host")))?;
        let free = host.capacity.memory.bytes().saturating_sub(host.capacity.memory_used.bytes());
        let mut reasons = Vec::new();
        if host.state != HostState::Up {
            reasons.push(format!("is {}", if host.state == HostState::Gone { "gone" } else { "not heard of lately" }));
        }
        if host.cordoned {
            reasons.push("is cordoned".to_owned());
        }
        if free < share {
            reasons.push(format!("has {free} bytes of memory free, its share is {share}"));
        }
        let verdict = if reasons.is_empty() {
            Verdict::Fits { score: 100.0, reasons: vec!["was asked for".to_owned()] }
        } else {
            Verdict::Rejected { reasons }
        };
        judgements.push(Judgement { host: name.clone(), verdict });
    }
    let all_fit = judgements.iter().all(|judgement| matches!(judgement.verdict, Verdict::Fits { .. }));
    let chosen = request.span.first().filter(|_| all_fit).cloned();
    Ok(Placement { chosen, judgements })
}

/// What is written together with the machine; nothing for one on one host.
pub(super) fn records(request: &CreateRequest) -> Result<Vec<Change>, ApiError> {
    let (name, hosts) = (&request.spec.name, &request.span);
    let Some(hub) = hosts.first() else { return Ok(Vec::new()) };
    let slices = u8::try_from(hosts.len()).unwrap_or(u8::MAX);
    let span = SpanRecord { hosts: hosts.clone(), slices, ticket: MeshTicket::random() };
    let mut changes = vec![put(span_key(name), &span)?];
    for Piece { name: piece, host, epoch } in first_pieces(request.spec.cpus, hosts) {
        // All vCPUs are built on the hub, which gives them away before the machine runs.
        let host = if matches!(piece, PieceName::Vcpu(_)) { hub.clone() } else { host };
        changes.push(put(piece_key(name, &piece.to_string()), &Claimed { host, epoch })?);
    }
    Ok(changes)
}

/// Where the pieces of a machine are; none for one on one host.
pub(super) async fn pieces(app: &App, name: &MachineName) -> Result<Vec<Piece>, ApiError> {
    let prefix = pieces_key(name);
    let stored = load_all::<Claimed>(&*app.store, &prefix).await?;
    let mut pieces: Vec<Piece> = stored
        .into_iter()
        .filter_map(|Stored { key, value: Claimed { host, epoch }, .. }| {
            // Shards are too many to be named one by one: their slice is.
            let name = key.strip_prefix(&prefix)?.parse().ok()?;
            Some(Piece { name, host, epoch })
        })
        .collect();
    pieces.sort_unstable_by_key(|piece| piece.name);
    Ok(pieces)
}

/// A host claims a piece, one epoch on; who has it.
pub(crate) async fn claim(
    app: &App,
    host: &HostName,
    name: &MachineName,
    request: &ClaimRequest,
) -> Result<Claimed, ApiError> {
    let span = load_span(&*app.store, name).await?;
    let span = span.ok_or_else(|| not_found(format!("There is no machine {name} that spans several hosts")))?;
    if !span.hosts.contains(host) {
        return Err(forbidden(format!("Host {host} has no part of {name}")));
    }
    let ClaimRequest { piece, epoch } = request;
    for _ in 0..TURNS_MAX {
        let key = piece_key(name, piece);
        let stored: Option<Stored<Claimed>> = load(&*app.store, &key).await?;
        let current = match &stored {
            Some(stored) => stored.value.clone(),
            None => first_home(app, &span, name, piece).await?,
        };
        if *epoch <= current.epoch {
            return Ok(current);
        }
        if *epoch != current.epoch.next() {
            return Err(invalid(format!("epoch {} of {piece} is not the next: it has {}", epoch.0, current.epoch)));
        }
        let wanted = Claimed { host: host.clone(), epoch: *epoch };
        let unchanged = stored.map_or_else(|| Compare::Absent(key.clone()), |stored| stored.unchanged());
        let transaction = Transaction::default().when(unchanged).then(put(key, &wanted)?);
        if let Outcome::Committed(_) = app.store.commit(transaction).await? {
            return Ok(wanted);
        }
    }
    Err(unavailable(format!("{piece} of {name} changes hosts faster than it can be compared")))
}

/// Who has a shard that was never claimed: the first host of its slice.
async fn first_home(app: &App, span: &SpanRecord, name: &MachineName, piece: &str) -> Result<Claimed, ApiError> {
    let unknown = || not_found(format!("Machine {name} has no piece {piece}"));
    let number: u64 = piece.strip_prefix("shard").and_then(|digits| digits.parse().ok()).ok_or_else(unknown)?;
    let machine = load_machine(&*app.store, name).await?.ok_or_else(unknown)?;
    let layout =
        MemoryLayout::for_ram(machine.value.spec.memory.bytes()).map_err(|error| invalid(error.to_string()))?;
    let all: Vec<ShardNumber> = shards(&layout).collect();
    let at = all.binary_search(&ShardNumber(number)).map_err(|_| unknown())?;
    let slices = usize::from(span.slices);
    let slice = (0..slices).find(|slice| slice_of_shards(all.len(), *slice, slices).contains(&at));
    let host = slice.and_then(|slice| span.hosts.get(slice)).ok_or_else(unknown)?;
    Ok(Claimed { host: host.clone(), epoch: Epoch::FIRST })
}

/// Asks all hosts of a machine for what is intended, once.
pub(super) async fn ask(
    app: &App,
    span: &SpanRecord,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
    is_first: bool,
) -> Result<Asked, ApiError> {
    let name = &machine.value.spec.name;
    let asked = match machine.value.intent {
        Intent::Starting => start(app, span, machine, owner).await,
        Intent::Stopping => stop(app, span, name).await,
        Intent::Removing => remove(app, span, name).await,
        Intent::Running | Intent::Stopped | Intent::Failed { .. } => return Ok(Asked::Settled),
    };
    match (&machine.value.intent, asked) {
        (_, Err(error @ ClientError::NoAnswer { .. })) => Ok(Asked::Silent(error.to_string())),
        (Intent::Starting, Ok(())) => {
            conclude(app, machine, vec![with_intent(machine, Intent::Running)?], Asked::Settled).await
        }
        (Intent::Stopping, Ok(())) => {
            conclude(app, machine, vec![with_intent(machine, Intent::Stopped)?], Asked::Settled).await
        }
        (Intent::Removing, Ok(())) => {
            let gone = everything(app, machine, owner).await?;
            conclude(app, machine, gone, Asked::Settled).await
        }
        (Intent::Starting, Err(error)) => {
            // What was begun must not stay; a host that does not answer now is stopped with the machine's removal.
            let _ = remove(app, span, name).await;
            let error = error.into_api_error();
            let changes = if is_first {
                let mut changes = everything(app, machine, owner).await?;
                changes.extend(machine.value.once.clone().map(Change::Delete));
                changes
            } else {
                vec![with_intent(machine, Intent::Failed { reason: error.message.clone() })?]
            };
            conclude(app, machine, changes, Asked::Refused(error)).await
        }
        (Intent::Stopping, Err(error)) => {
            let runs_on = OwnerRecord { state: OwnerState::Running, ..owner.value.clone() };
            let changes = vec![with_intent(machine, Intent::Running)?, put(owner_key(name), &runs_on)?];
            conclude(app, machine, changes, Asked::Refused(error.into_api_error())).await
        }
        (_, Ok(())) => Ok(Asked::Settled),
        (_, Err(error)) => {
            let error = error.into_api_error();
            let failed = Intent::Failed { reason: format!("it could not be removed: {}", error.message) };
            conclude(app, machine, vec![with_intent(machine, failed)?], Asked::Refused(error)).await
        }
    }
}

/// All that is in the store of a machine.
async fn everything(
    app: &App,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
) -> Result<Vec<Change>, ApiError> {
    let name = &machine.value.spec.name;
    let (entries, _) = app.store.list(&pieces_key(name)).await?;
    let pieces = entries.into_iter().map(|entry| Change::Delete(entry.key));
    Ok([machine.deleted(), owner.deleted(), Change::Delete(span_key(name))].into_iter().chain(pieces).collect())
}

fn agent(app: &App, host: &HostName) -> Result<AgentClient, ClientError> {
    app.agent(host).map_err(ClientError::Answered)
}

/// Prepares all parts, joins them, gives pieces to their hosts, and lets the machine run.
async fn start(
    app: &App,
    span: &SpanRecord,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
) -> Result<(), ClientError> {
    let MachineRecord { spec, .. } = &machine.value;
    let SpanRecord { hosts, slices, ticket } = span;
    let mut addresses = Vec::with_capacity(hosts.len());
    for host in hosts {
        let request = PartRequest {
            spec: spec.clone(),
            epoch: owner.value.epoch,
            hosts: hosts.clone(),
            slices: *slices,
            ticket: ticket.clone(),
        };
        let PartReady { address } = agent(app, host)?.prepare_part(&request).await?;
        addresses.push(PartAddress { host: host.clone(), address });
    }
    let others = |host: &HostName| addresses.iter().filter(|other| other.host != *host).cloned().collect();
    // The hub last: it loads the kernel into memory that has its homes on all of them.
    for host in hosts.iter().rev() {
        agent(app, host)?.order_part(&spec.name, &PartOrder::Join(others(host))).await?;
    }
    let at = pieces(app, &spec.name).await.map_err(ClientError::Answered)?;
    for Piece { name: piece, host: to, .. } in first_pieces(spec.cpus, hosts) {
        let now = at.iter().find(|known| known.name == piece).map(|known| &known.host);
        // One that went when this was asked before stays there.
        if let Some(now) = now.filter(|now| **now != to) {
            agent(app, now)?.order_part(&spec.name, &PartOrder::Give { piece, to }).await?;
        }
    }
    for host in hosts.iter().rev() {
        agent(app, host)?.order_part(&spec.name, &PartOrder::Run).await?;
    }
    if let Some(hub) = hosts.first() {
        app.inventory.answered(hub, agent(app, hub)?.machine(&spec.name).await?);
    }
    tracing::info!(machine = %spec.name, hosts = hosts.len(), "spans its hosts");
    Ok(())
}

/// The part is not there any more, which is as good as stopped and removed.
fn unless_gone<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn stop(app: &App, span: &SpanRecord, name: &MachineName) -> Result<(), ClientError> {
    for host in &span.hosts {
        match unless_gone(agent(app, host)?.stop(name).await)? {
            Some(status) => app.inventory.answered(host, status),
            None => app.inventory.forget(host, name),
        }
    }
    Ok(())
}

async fn remove(app: &App, span: &SpanRecord, name: &MachineName) -> Result<(), ClientError> {
    for host in &span.hosts {
        let agent = agent(app, host)?;
        // A start that was never answered may have happened; what stands already is not stopped by this.
        if let Err(error @ ClientError::NoAnswer { .. }) = agent.stop(name).await {
            return Err(error);
        }
        unless_gone(agent.remove(name).await)?;
        app.inventory.forget(host, name);
    }
    Ok(())
}

/// Moves a piece to another of its machine's hosts.
pub(crate) async fn move_piece(app: &Arc<App>, name: &MachineName, request: MovePiece) -> Result<PieceMoved, ApiError> {
    let MovePiece { piece, to } = request;
    let begun = Instant::now();
    let one_at_a_time = app.machine_lock(name);
    let _lock = one_at_a_time.lock().await;
    let unknown = || not_found(format!("There is no machine {name}"));
    let owner = load_owner(&*app.store, name).await?.ok_or_else(unknown)?;
    let span = load_span(&*app.store, name).await?.ok_or_else(|| {
        conflict(format!("Machine {name} is all on {}, it has no pieces", owner.value.owner))
            .with_hint(format!("move it as a whole: vmotion move {name} --to {to}; or create it with --span"))
    })?;
    let hosts = || span.hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", ");
    if !span.hosts.contains(&to) {
        return Err(refused(format!("Host {to} is none of the hosts of {name}: these are {}", hosts())));
    }
    let key = piece_key(name, &piece.to_string());
    let stored: Option<Stored<Claimed>> = load(&*app.store, &key).await?;
    let stored = stored.ok_or_else(|| not_found(format!("Machine {name} has no piece {piece}")))?;
    let from = stored.value.host.clone();
    if from == to {
        return Err(conflict(format!("{name}/{piece} is on {to} already")));
    }
    let agent = app.agent(&from)?;
    let order = PartOrder::Give { piece, to: to.clone() };
    let answer = agent.order_part(name, &order).await.map_err(ClientError::into_api_error)?;
    let epoch = stored.value.epoch.next();
    if matches!(piece, PieceName::Memory(_)) {
        // Its shards were claimed one by one; this is what they are called together.
        let record = put(key, &Claimed { host: to.clone(), epoch })?;
        let transaction = Transaction::default().when(stored.unchanged()).then(record);
        if app.store.commit(transaction).await? == Outcome::Refused {
            return Err(conflict(format!("{name}/{piece} was moved by somebody else at the same time")));
        }
    }
    tracing::info!(machine = %name, %piece, %from, %to, pause_ms = answer.pause_ms, "piece moved");
    let total_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let piece = Piece { name: piece, host: to, epoch };
    Ok(PieceMoved { machine: name.clone(), piece, from, total_ms, pause_ms: answer.pause_ms })
}

/// Spreads a machine over some of its hosts. What has moved when something fails stays where it is.
pub(crate) async fn spread(
    app: &Arc<App>,
    name: &MachineName,
    request: SpreadRequest,
) -> Result<Vec<PieceMoved>, ApiError> {
    let unknown = || not_found(format!("There is no machine {name}"));
    let machine = load_machine(&*app.store, name).await?.ok_or_else(unknown)?;
    if request.over.is_empty() {
        return Err(invalid("over names no host: name at least one of the machine's"));
    }
    machine.value.spec.validate_span(&request.over).map_err(invalid)?;
    let now = pieces(app, name).await?;
    let slices = now.iter().filter(|piece| matches!(piece.name, PieceName::Memory(_))).count();
    let slices = u8::try_from(slices).unwrap_or(u8::MAX);
    let mut moved: Vec<PieceMoved> = Vec::new();
    for (piece, to) in spread_over(machine.value.spec.cpus, slices, &request.over) {
        if now.iter().any(|known| known.name == piece && known.host == to) {
            continue;
        }
        match move_piece(app, name, MovePiece { piece, to: to.clone() }).await {
            Ok(done) => moved.push(done),
            Err(error) if moved.is_empty() => return Err(error),
            Err(error) => {
                let message =
                    format!("{piece} did not go to {to}, after {} pieces had moved: {}", moved.len(), error.message);
                return Err(ApiError { message, ..error });
            }
        }
    }
    Ok(moved)
}
