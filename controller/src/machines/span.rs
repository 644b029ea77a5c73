//! Machines that span several hosts: what is in the store of them, asking all their hosts, and their pieces.
//!
//! The owner record names the host with the devices. Each piece has a record of its own, which only its host-to-be may set, one epoch on:
//! what decides the move of a machine decides that of a piece.

use super::drive::{Asked, conclude, with_intent};
use crate::{
    app::App,
    error::{conflict, forbidden, invalid, not_found, refused, unavailable},
    placed::placed_key,
    placement::Snapshot,
    records::{
        Intent, MachineRecord, SpanRecord, Stored, load, load_all, load_machine, load_owner, load_span, owner_key,
        piece_key, pieces_key, put, shard_key, shards_key, span_key,
    },
    store::{CHANGES_MAX, Change, Compare, Outcome, Store, Transaction},
};
use std::time::{Duration, Instant};
use vmotion_api::{
    AgentClient, ClaimRequest, Claimed, ClientError, CreateRequest, PartAddress, PartAnswer, PartMember, PartOrder,
    PartReady, PartRequest, PartState,
};
use vmotion_model::{
    ApiError, Epoch, ErrorCode, HostName, HostState, Judgement, MachineName, MachineSpec, MemoryLayout, OwnerRecord,
    OwnerState, Piece, PieceName, Placement, SPAN_HOSTS_MAX, StepDone, Verdict, first_pieces, slice_of_shards,
};
use vmotion_spanning::directory::{ShardNumber, shards};
use vmotion_transport::mesh::MeshTicket;

/// A vCPU that is on its way is where it goes by then.
const CLAIMED_WITHIN: Duration = Duration::from_secs(10);
const CLAIM_POLL: Duration = Duration::from_millis(50);
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
    let members = (0..).zip(hosts.iter().cloned()).collect();
    let span =
        SpanRecord { members, began_on: hosts.clone(), slices, ticket: MeshTicket::random(), audit: request.audit };
    let mut changes = vec![put(span_key(name), &span)?];
    for Piece { name: piece, host, epoch } in first_pieces(request.spec.cpus, hosts) {
        // All vCPUs are built on the hub, which gives them away before the machine runs.
        let host = if matches!(piece, PieceName::Vcpu(_)) { hub.clone() } else { host };
        changes.push(put(piece_key(name, &piece.to_string()), &Claimed { host, epoch })?);
    }
    Ok(changes)
}

/// Where the pieces of a machine are; none for one on one host.
pub(crate) async fn pieces(app: &App, name: &MachineName) -> Result<Vec<Piece>, ApiError> {
    let prefix = pieces_key(name);
    let stored = load_all::<Claimed>(&*app.store, &prefix).await?;
    let mut pieces: Vec<Piece> = stored
        .into_iter()
        .filter_map(|Stored { key, value: Claimed { host, epoch }, .. }| {
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
    let span = span.ok_or_else(|| not_found(format!("There is no machine {name} that spans several hosts")))?.value;
    if !span.has(host) {
        return Err(forbidden(format!("Host {host} has no part of {name}")));
    }
    let ClaimRequest { piece, epoch } = request;
    for _ in 0..TURNS_MAX {
        let key = if piece.starts_with("shard") { shard_key(name, piece) } else { piece_key(name, piece) };
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
    let host = slice.and_then(|slice| span.began_on.get(slice)).ok_or_else(unknown)?;
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
            forget_shards(&*app.store, name).await?;
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

/// Where the homes of a machine's shards went, which may be more than one transaction takes. Nobody asks any more: its parts are gone, and
/// what is left after a crash is forgotten when it is removed again.
async fn forget_shards(store: &dyn Store, name: &MachineName) -> Result<(), ApiError> {
    let (entries, _) = store.list(&shards_key(name)).await?;
    for some in entries.chunks(CHANGES_MAX) {
        let changes = some.iter().map(|entry| Change::Delete(entry.key.clone())).collect();
        store.commit(Transaction { compares: Vec::new(), changes }).await?;
    }
    Ok(())
}

/// All that is in the store of a machine.
async fn everything(
    app: &App,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
) -> Result<Vec<Change>, ApiError> {
    let name = &machine.value.spec.name;
    let mut changes =
        vec![machine.deleted(), owner.deleted(), Change::Delete(span_key(name)), Change::Delete(placed_key(name))];
    for prefix in [pieces_key(name), shards_key(name)] {
        let (entries, _) = app.store.list(&prefix).await?;
        changes.extend(entries.into_iter().map(|entry| Change::Delete(entry.key)));
    }
    Ok(changes)
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
    let mut addresses = Vec::with_capacity(span.members.len());
    for (number, host) in &span.members {
        let request = part_request(spec, owner.value.epoch, span, None);
        let PartReady { address } = agent(app, host)?.prepare_part(&request).await?;
        addresses.push(PartAddress { number: *number, host: host.clone(), address });
    }
    let hosts = &span.began_on;
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

fn part_request(spec: &MachineSpec, epoch: Epoch, span: &SpanRecord, vcpus: Option<Vec<Claimed>>) -> PartRequest {
    let SpanRecord { members, slices, ticket, audit, .. } = span;
    let members = members.iter().map(|(number, host)| PartMember { number: *number, host: host.clone() });
    PartRequest {
        spec: spec.clone(),
        epoch,
        members: members.collect(),
        slices: *slices,
        ticket: ticket.clone(),
        audit: *audit,
        vcpus,
    }
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
    for host in span.members.values() {
        match unless_gone(agent(app, host)?.stop(name).await)? {
            Some(status) => app.inventory.answered(host, status),
            None => app.inventory.forget(host, name),
        }
    }
    Ok(())
}

async fn remove(app: &App, span: &SpanRecord, name: &MachineName) -> Result<(), ClientError> {
    for host in span.members.values() {
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

/// A host gets an empty part of a machine that runs, and everybody knows everybody.
pub(crate) async fn join(app: &App, name: &MachineName, host: &HostName) -> Result<StepDone, ClientError> {
    let gone = || ClientError::Answered(not_found(format!("There is no machine {name} that spans several hosts")));
    let stored = |error| ClientError::Answered(error);
    let machine = load_machine(&*app.store, name).await.map_err(stored)?.ok_or_else(gone)?;
    let owner = load_owner(&*app.store, name).await.map_err(stored)?.ok_or_else(gone)?;
    let (span, number) = join_record(app, name, host).await.map_err(stored)?;
    let pieces = pieces(app, name).await.map_err(stored)?;
    let vcpus = pieces.iter().filter(|piece| matches!(piece.name, PieceName::Vcpu(_)));
    let vcpus = vcpus.map(|Piece { host, epoch, .. }| Claimed { host: host.clone(), epoch: *epoch }).collect();
    let mut others = Vec::new();
    for (number, other) in span.members.iter().filter(|(_, member)| *member != host) {
        let PartState { address, .. } = agent(app, other)?.part(name).await?;
        others.push(PartAddress { number: *number, host: other.clone(), address });
    }
    let request = part_request(&machine.value.spec, owner.value.epoch, &span, Some(vcpus));
    let PartReady { address } = agent(app, host)?.prepare_part(&request).await?;
    // They first: whom it asks must know it.
    let newcomer = PartAddress { number, host: host.clone(), address };
    for other in &others {
        agent(app, &other.host)?.order_part(name, &PartOrder::Join(vec![newcomer.clone()])).await?;
    }
    let joining = agent(app, host)?;
    joining.order_part(name, &PartOrder::Join(others)).await?;
    joining.order_part(name, &PartOrder::Run).await?;
    tracing::info!(machine = %name, %host, number, "joins a machine");
    Ok(StepDone::default())
}

/// Writes that a host is of the machine, under a number that nobody has; what is written then, and the number.
async fn join_record(app: &App, name: &MachineName, host: &HostName) -> Result<(SpanRecord, u8), ApiError> {
    for _ in 0..TURNS_MAX {
        let stored = load_span(&*app.store, name).await?;
        let stored = stored.ok_or_else(|| not_found(format!("There is no machine {name} that spans several hosts")))?;
        if let Some((number, _)) = stored.value.members.iter().find(|(_, member)| *member == host) {
            return Ok((stored.value.clone(), *number));
        }
        let most = u8::try_from(SPAN_HOSTS_MAX).unwrap_or(u8::MAX);
        let free = (0..most).find(|number| !stored.value.members.contains_key(number));
        let number = free.ok_or_else(|| {
            refused(format!("Machine {name} is on {SPAN_HOSTS_MAX} hosts, which is the most: {host} cannot join"))
        })?;
        let mut span = stored.value.clone();
        span.members.insert(number, host.clone());
        if write_span(app, &stored, &span).await? {
            return Ok((span, number));
        }
    }
    Err(unavailable(format!("The hosts of {name} change faster than they can be written")))
}

async fn write_span(app: &App, stored: &Stored<SpanRecord>, span: &SpanRecord) -> Result<bool, ApiError> {
    let transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), span)?);
    Ok(app.store.commit(transaction).await? != Outcome::Refused)
}

/// Gives an order that may take long, until it is carried out.
async fn to_the_end(
    app: &App,
    host: &HostName,
    name: &MachineName,
    order: &PartOrder,
) -> Result<StepDone, ClientError> {
    let mut done = StepDone::default();
    loop {
        let PartAnswer { pause_ms, pause, pages, more, .. } = agent(app, host)?.order_part(name, order).await?;
        done.pause_ms += pause_ms;
        // A vCPU goes at once: there is one at most.
        done.pause = done.pause.or(pause);
        done.pages += pages;
        if !more {
            return Ok(done);
        }
    }
}

/// A piece goes from host to host; memory takes its pages along.
pub(crate) async fn give(
    app: &App,
    name: &MachineName,
    piece: PieceName,
    from: &HostName,
    to: &HostName,
) -> Result<StepDone, ClientError> {
    let key = piece_key(name, &piece.to_string());
    let stored: Option<Stored<Claimed>> = load(&*app.store, &key).await.map_err(ClientError::Answered)?;
    let unknown = || ClientError::Answered(not_found(format!("Machine {name} has no piece {piece}")));
    let stored = stored.ok_or_else(unknown)?;
    let mut done = StepDone::default();
    if stored.value.host == *from {
        done = match to_the_end(app, from, name, &PartOrder::Give { piece, to: to.clone() }).await {
            // An order of before, perhaps another controller's, is being carried out.
            Err(error) if error.code() == Some(ErrorCode::Conflict) => until_claimed(app, &key, to, error).await?,
            answer => answer?,
        };
    }
    let PieceName::Memory(slice) = piece else { return Ok(done) };
    done.pages = to_the_end(app, to, name, &PartOrder::Pull { slice, from: from.clone() }).await?.pages;
    if stored.value.host != *to {
        // Its shards were claimed one by one; this is what they are called together.
        let record = Claimed { host: to.clone(), epoch: stored.value.epoch.next() };
        let record = put(key, &record).map_err(ClientError::Answered)?;
        let transaction = Transaction::default().when(stored.unchanged()).then(record);
        if app.store.commit(transaction).await.map_err(|error| ClientError::Answered(error.into()))? == Outcome::Refused
        {
            let message = format!("{name}/{piece} was moved by somebody else at the same time");
            return Err(ClientError::Answered(conflict(message)));
        }
    }
    Ok(done)
}

/// Waits for a piece that is on its way to be claimed by the host that it goes to; `error` when it is not.
async fn until_claimed(app: &App, key: &str, to: &HostName, error: ClientError) -> Result<StepDone, ClientError> {
    let until = Instant::now() + CLAIMED_WITHIN;
    while Instant::now() < until {
        let now: Option<Stored<Claimed>> = load(&*app.store, key).await.map_err(ClientError::Answered)?;
        if now.is_some_and(|stored| stored.value.host == *to) {
            return Ok(StepDone::default());
        }
        tokio::time::sleep(CLAIM_POLL).await;
    }
    Err(error)
}

/// A host without pieces leaves a machine. Who has no part any more has left.
pub(crate) async fn leave(app: &App, name: &MachineName, host: &HostName) -> Result<StepDone, ClientError> {
    let stored = load_span(&*app.store, name).await.map_err(ClientError::Answered)?;
    let Some(stored) = stored.filter(|stored| stored.value.has(host)) else { return Ok(StepDone::default()) };
    let leaving = agent(app, host)?;
    let left = unless_gone(to_the_end(app, host, name, &PartOrder::Leave).await)?.unwrap_or_default();
    for other in stored.value.others(host) {
        agent(app, other)?.order_part(name, &PartOrder::Dismiss { host: host.clone() }).await?;
    }
    unless_gone(leaving.stop(name).await)?;
    unless_gone(leaving.remove(name).await)?;
    app.inventory.forget(host, name);
    let mut span = stored.value.clone();
    span.members.retain(|_, member| member != host);
    // The one move that a machine has at a time is what changes this.
    if !write_span(app, &stored, &span).await.map_err(ClientError::Answered)? {
        return Err(ClientError::Answered(conflict(format!("The hosts of {name} were changed at the same time"))));
    }
    tracing::info!(machine = %name, %host, "has left a machine");
    Ok(left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn all_shards_of_a_machine_are_forgotten_and_nothing_else() {
        let store = MemoryStore::default();
        let name = |name: &str| -> MachineName { name.parse().unwrap() };
        for (machine, shards) in [("big1", 300), ("big10", 1)] {
            for shard in 0..shards {
                let key = shard_key(&name(machine), &format!("shard{shard}"));
                store.commit(Transaction::default().then(Change::Put(key, vec![1]))).await.unwrap();
            }
        }
        forget_shards(&store, &name("big1")).await.unwrap();
        let left: Vec<String> = store.list("").await.unwrap().0.into_iter().map(|entry| entry.key).collect();
        assert_eq!(left, ["shards/big10/shard0"]);
    }
}
