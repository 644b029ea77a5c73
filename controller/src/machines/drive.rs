//! Asking a machine's host for what is intended, once and then again until it answers.

use super::span;
use crate::{
    app::{App, lock},
    placed::placed_key,
    records::{
        Intent, MACHINES, MachineRecord, Stored, load_all, load_machine, load_owner, load_span, machine_key, owner_key,
        put,
    },
    store::{Change, Transaction},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;
use vmotion_api::{AgentClient, ClientError, StartRequest};
use vmotion_model::{ApiError, ErrorCode, MachineName, MachineSpec, MachineStatus, OwnerRecord, OwnerState};

/// A host that does not answer is asked this often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How one question ended.
pub(super) enum Asked {
    /// Nothing more to ask, or nothing was.
    Settled,
    /// The host answered with an error, which is what the operator must hear.
    Refused(ApiError),
    /// The host did not answer.
    Silent(String),
    /// The intent changed while the host was being asked.
    Changed,
}

/// Asks in the background until the intent is settled; the receiver has the first answer. `fresh` says that an operator
/// waits for it: then a refused start leaves nothing behind.
pub(crate) fn drive(app: &Arc<App>, name: &MachineName, fresh: bool) -> oneshot::Receiver<Result<(), ApiError>> {
    let (first, receiver) = oneshot::channel();
    let (driven, name) = (Arc::clone(app), name.clone());
    app.spawn(async move { drive_until_settled(&driven, &name, fresh, first).await });
    receiver
}

/// Goes on where an earlier controller stopped.
pub(crate) async fn resume(app: &Arc<App>) -> Result<(), ApiError> {
    for stored in load_all::<MachineRecord>(&*app.store, MACHINES).await? {
        if !stored.value.intent.is_settled() {
            drop(drive(app, &stored.value.spec.name, false));
        }
    }
    Ok(())
}

async fn drive_until_settled(
    app: &Arc<App>,
    name: &MachineName,
    fresh: bool,
    first: oneshot::Sender<Result<(), ApiError>>,
) {
    let mut first = Some(first);
    let mut tell = |answer: Result<(), ApiError>| {
        if let Some(first) = first.take() {
            // The operator may have gone.
            let _ = first.send(answer);
        }
    };
    let mut is_first = fresh;
    let mut is_asking = false;
    loop {
        let asked = {
            let one_at_a_time = app.machine_lock(name);
            let _lock = one_at_a_time.lock().await;
            ask(app, name, is_first).await
        };
        match asked {
            Ok(Asked::Changed) => continue,
            Ok(Asked::Settled) => {
                tell(Ok(()));
                break;
            }
            Ok(Asked::Refused(error)) => {
                tracing::warn!(machine = %name, %error, "its host refused");
                tell(Err(error));
                break;
            }
            Ok(Asked::Silent(reason)) => {
                lock(&app.waits).insert(name.clone(), reason);
                tell(Ok(()));
            }
            Err(error) => {
                tracing::error!(machine = %name, %error, "cannot go on for now");
                tell(Err(error));
            }
        }
        is_first = false;
        // One task is enough to go on asking.
        if !is_asking && !lock(&app.asking).insert(name.clone()) {
            return;
        }
        is_asking = true;
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
    lock(&app.waits).remove(name);
    if is_asking {
        lock(&app.asking).remove(name);
    }
}

async fn ask(app: &App, name: &MachineName, is_first: bool) -> Result<Asked, ApiError> {
    let Some(machine) = load_machine(&*app.store, name).await? else { return Ok(Asked::Settled) };
    let Some(owner) = load_owner(&*app.store, name).await? else { return Ok(Asked::Settled) };
    let agent = match app.agent(&owner.value.owner) {
        Ok(agent) => agent,
        Err(error) => return Ok(Asked::Silent(error.message)),
    };
    if let Some(span) = load_span(&*app.store, name).await? {
        return span::ask(app, &span.value, &machine, &owner, is_first).await;
    }
    match machine.value.intent {
        Intent::Starting => ask_start(app, &agent, &machine, &owner, is_first).await,
        Intent::Stopping => ask_stop(app, &agent, &machine, &owner).await,
        Intent::Removing => ask_remove(app, &agent, &machine, &owner).await,
        Intent::Running | Intent::Stopped | Intent::Failed { .. } => Ok(Asked::Settled),
    }
}

/// Commits `changes` if the machine is still what was asked about.
pub(super) async fn conclude(
    app: &App,
    machine: &Stored<MachineRecord>,
    changes: Vec<Change>,
    asked: Asked,
) -> Result<Asked, ApiError> {
    let transaction = Transaction { compares: vec![machine.unchanged()], changes };
    Ok(match app.store.commit(transaction).await? {
        crate::store::Outcome::Committed(_) => asked,
        crate::store::Outcome::Refused => Asked::Changed,
    })
}

pub(super) fn with_intent(machine: &Stored<MachineRecord>, intent: Intent) -> Result<Change, ApiError> {
    let record = MachineRecord { intent, ..machine.value.clone() };
    put(machine_key(&record.spec.name), &record)
}

async fn ask_start(
    app: &App,
    agent: &AgentClient,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
    is_first: bool,
) -> Result<Asked, ApiError> {
    let MachineRecord { spec, from, once, .. } = &machine.value;
    let request = StartRequest { spec: spec.clone(), epoch: owner.value.epoch, from: from.clone() };
    match agent.start(&request).await {
        Ok(status) => {
            let spec = started_spec(machine, &status);
            app.inventory.answered(&owner.value.owner, status);
            let record = MachineRecord { spec, intent: Intent::Running, from: from.clone(), once: once.clone() };
            let change = put(machine.key.clone(), &record)?;
            conclude(app, machine, vec![change], Asked::Settled).await
        }
        Err(ClientError::Answered(error)) if is_first => {
            let mut changes = vec![machine.deleted(), owner.deleted()];
            changes.extend(once.clone().map(Change::Delete));
            conclude(app, machine, changes, Asked::Refused(error)).await
        }
        Err(ClientError::Answered(error)) => {
            let failed = with_intent(machine, Intent::Failed { reason: error.message.clone() })?;
            conclude(app, machine, vec![failed], Asked::Refused(error)).await
        }
        Err(error) => Ok(Asked::Silent(error.to_string())),
    }
}

/// What was started from a snapshot is what the snapshot says, under the name it was given.
fn started_spec(machine: &Stored<MachineRecord>, status: &MachineStatus) -> MachineSpec {
    let MachineRecord { spec, from, .. } = &machine.value;
    if from.is_none() {
        return spec.clone();
    }
    MachineSpec { name: spec.name.clone(), ..status.spec.clone() }
}

async fn ask_stop(
    app: &App,
    agent: &AgentClient,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
) -> Result<Asked, ApiError> {
    let (host, name) = (&owner.value.owner, &owner.value.machine);
    match agent.stop(name).await {
        Ok(status) => {
            app.inventory.answered(host, status);
            conclude(app, machine, vec![with_intent(machine, Intent::Stopped)?], Asked::Settled).await
        }
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {
            app.inventory.forget(host, name);
            conclude(app, machine, vec![with_intent(machine, Intent::Stopped)?], Asked::Settled).await
        }
        Err(ClientError::Answered(error)) => {
            let runs_on = OwnerRecord { state: OwnerState::Running, ..owner.value.clone() };
            let changes = vec![with_intent(machine, Intent::Running)?, put(owner_key(name), &runs_on)?];
            conclude(app, machine, changes, Asked::Refused(error)).await
        }
        Err(error) => Ok(Asked::Silent(error.to_string())),
    }
}

async fn ask_remove(
    app: &App,
    agent: &AgentClient,
    machine: &Stored<MachineRecord>,
    owner: &Stored<OwnerRecord>,
) -> Result<Asked, ApiError> {
    let (host, name) = (&owner.value.owner, &owner.value.machine);
    // A start that was never answered may have happened; what stands already is not stopped by this.
    if let Err(error @ ClientError::NoAnswer { .. }) = agent.stop(name).await {
        return Ok(Asked::Silent(error.to_string()));
    }
    match agent.remove(name).await {
        Ok(()) => {}
        Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
        Err(ClientError::Answered(error)) => {
            let failed = Intent::Failed { reason: format!("it could not be removed: {}", error.message) };
            return conclude(app, machine, vec![with_intent(machine, failed)?], Asked::Refused(error)).await;
        }
        Err(error) => return Ok(Asked::Silent(error.to_string())),
    }
    app.inventory.forget(host, name);
    tracing::info!(machine = %name, %host, "removed");
    let changes = vec![machine.deleted(), owner.deleted(), Change::Delete(placed_key(name))];
    conclude(app, machine, changes, Asked::Settled).await
}
