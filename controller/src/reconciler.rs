//! Drives each unfinished move: ask, step, persist, tell, again.
//!
//! Every question is idempotent by the move's identifier, so a restarted controller repeats the question of the phase it
//! finds in the store. What the answers mean is decided in [`crate::operations`], without I/O.

mod ask;
mod shape;

use crate::{
    app::{App, lock},
    inventory::unix_ms,
    machines,
    operations::{Event, MoveRecord, Next, Phase},
    placed::{PlacedRecord, placed_key},
    records::{MOVES, Stored, busy_key, load, load_all, load_move, put, timeline_key},
    store::{Change, Outcome, Transaction},
};
use ask::Questioner;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use vmotion_api::{Operation, within};
use vmotion_model::{ApiError, ErrorCode, MoveId, MoveOutcome, MoveSummary};

/// The source is asked how it goes this often.
const POLL_EVERY: Duration = Duration::from_millis(25);
/// Somebody who does not answer is asked this often.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The target is told to clean up within this time, or left to its own deadlines.
const CLEAN_UP_WITHIN: Duration = Duration::from_secs(5);

/// Goes on with every unfinished move and machine of an earlier controller.
pub(crate) async fn resume(app: &Arc<App>) -> Result<(), ApiError> {
    for stored in load_all::<MoveRecord>(&*app.store, MOVES).await? {
        if stored.value.phase != Phase::Finished {
            tracing::info!(id = %stored.value.operation.id, phase = ?stored.value.phase, "move goes on");
            begin(app, stored.value.operation);
        }
    }
    machines::resume(app).await
}

/// Drives a move that is in the store.
pub(crate) fn begin(app: &Arc<App>, operation: Operation) {
    let (id, trace) = (operation.id.clone(), operation.trace.clone());
    lock(&app.live).insert(id.clone(), watch::Sender::new(operation));
    let driven = Arc::clone(app);
    app.spawn(within(trace, async move {
        let mut questioner = Questioner::default();
        let mut silence = shape::Silence::default();
        loop {
            match turn(&driven, &id, &mut questioner, &mut silence).await {
                Ok(Some(pause)) => tokio::time::sleep(pause).await,
                Ok(None) => break,
                Err(error) => {
                    // The store does not answer; nothing is concluded without it.
                    tracing::error!(%id, %error, "move cannot go on for now");
                    show(&driven, &id, |operation| operation.note = Some(error.message.clone()));
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
            }
        }
        lock(&driven.live).remove(&id);
    }));
}

/// Changes what readers and events show of a live move.
pub(crate) fn show(app: &App, id: &MoveId, change: impl FnOnce(&mut Operation)) {
    if let Some(sender) = lock(&app.live).get(id) {
        sender.send_modify(change);
    }
}

/// One question and what follows; the pause until the next, `None` when the move is over.
async fn turn(
    app: &App,
    id: &MoveId,
    questioner: &mut Questioner,
    silence: &mut shape::Silence,
) -> Result<Option<Duration>, ApiError> {
    let Some(stored) = load_move(&*app.store, id).await? else { return Ok(None) };
    if stored.value.phase == Phase::Finished {
        show(app, id, |operation| *operation = stored.value.operation.clone());
        return Ok(None);
    }
    if let Phase::Reshaping { ending } = &stored.value.phase {
        return shape::turn(app, &stored, ending.as_ref(), silence).await;
    }
    let event = questioner.ask(app, &stored.value).await?;
    match stored.value.phase.clone().step(event.clone()) {
        Next::Go(phase) => {
            tracing::info!(%id, ?phase, "move goes on");
            let record = MoveRecord { phase, ..stored.value.clone() };
            save(app, &stored, &record).await?;
            questioner.phase_changed();
            Ok(Some(Duration::ZERO))
        }
        Next::Again(note) => {
            let pause = if note.is_some() { ASK_AGAIN_AFTER } else { POLL_EVERY };
            show(app, id, |operation| operation.note = note);
            Ok(Some(pause))
        }
        Next::Finish(outcome, summary) => {
            if !matches!(event, Event::TargetLetGo) && outcome != MoveOutcome::Moved {
                clean_up_target(app, &stored.value).await;
            }
            finish(app, &stored, outcome, summary.map(|summary| *summary)).await
        }
    }
}

/// Writes the new phase; refused when the operator asked to cancel meanwhile, which the next turn reads.
async fn save(app: &App, stored: &Stored<MoveRecord>, record: &MoveRecord) -> Result<bool, ApiError> {
    let transaction = Transaction::default().when(stored.unchanged()).then(put(stored.key.as_str(), record)?);
    Ok(app.store.commit(transaction).await? != Outcome::Refused)
}

/// Tells the target that nothing will come; it would find out by itself, later.
async fn clean_up_target(app: &App, record: &MoveRecord) {
    let Operation { id, machine, target, .. } = &record.operation;
    let Ok(agent) = app.agent(target) else { return };
    if let Ok(Err(error)) = tokio::time::timeout(CLEAN_UP_WITHIN, agent.cancel(machine, id)).await
        && error.code() != Some(ErrorCode::NotFound)
    {
        tracing::warn!(%id, %target, %error, "target was not told that the move is over");
    }
}

async fn finish(
    app: &App,
    stored: &Stored<MoveRecord>,
    outcome: MoveOutcome,
    summary: Option<MoveSummary>,
) -> Result<Option<Duration>, ApiError> {
    let Operation { id, machine, source, target, .. } = &stored.value.operation;
    // What the hosts say now is newer than their heartbeats; whoever sees the outcome shall see the machine there.
    for host in [source, target] {
        refresh(app, host, machine).await;
    }
    let live = lock(&app.live).get(id).map(|sender| sender.borrow().clone());
    let current =
        MoveRecord { operation: live.unwrap_or_else(|| stored.value.operation.clone()), ..stored.value.clone() };
    let record = current.finished(outcome, summary);
    let mut small = record.clone();
    let timeline = small.operation.summary.as_mut().map(|summary| std::mem::take(&mut summary.timeline));
    let mut transaction = Transaction::default()
        .when(stored.unchanged())
        .then(put(stored.key.as_str(), &small)?)
        .then(Change::Delete(busy_key(machine)));
    if record.operation.outcome == Some(MoveOutcome::Moved) {
        let key = placed_key(machine);
        let before = load::<PlacedRecord>(&*app.store, &key).await?.map(|stored| stored.value);
        transaction = transaction.then(put(key, &PlacedRecord::after(before, &record.operation, unix_ms()))?);
    }
    if let Some(timeline) = timeline {
        transaction = transaction.then(put(timeline_key(id), &timeline)?);
    }
    if app.store.commit(transaction).await? == Outcome::Refused {
        return Ok(Some(Duration::ZERO));
    }
    if let Some(outlook) = record.operation.summary.as_ref().and_then(|summary| summary.outlook.as_ref()) {
        lock(&app.surveys).insert(machine.clone(), outlook.survey.clone());
    }
    app.look.notify_one();
    app.metrics.move_ended(&record.operation);
    tracing::info!(%id, outcome = ?record.operation.outcome, "move is over");
    show(app, id, |operation| *operation = record.operation);
    Ok(None)
}

async fn refresh(app: &App, host: &vmotion_model::HostName, machine: &vmotion_model::MachineName) {
    let Ok(agent) = app.agent(host) else { return };
    match tokio::time::timeout(CLEAN_UP_WITHIN, agent.machine(machine)).await {
        Ok(Ok(status)) => app.inventory.answered(host, status),
        Ok(Err(error)) if error.code() == Some(ErrorCode::NotFound) => app.inventory.forget(host, machine),
        Ok(Err(_)) | Err(_) => {}
    }
}
