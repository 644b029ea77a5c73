//! Carries out the steps of a change of shape, one after the other. Each may be done again: whoever restarts begins with the first that is
//! not recorded as done.

use super::{ASK_AGAIN_AFTER, finish, save, show};
use crate::{
    app::App,
    machines::{give, join, leave, pieces},
    operations::{MoveRecord, Phase, shape::plan},
    records::{Stored, load_move, load_span},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use vmotion_api::{ClientError, Operation};
use vmotion_model::{ApiError, ErrorCode, HostName, MoveOutcome, Step, StepDone, StepReport};

/// A host that is silent for so long is given up: the machine does not outlive its lease, which is shorter in most places.
const HOST_PATIENCE: Duration = Duration::from_secs(30);

/// Since when a host that the step needs is silent.
pub(super) type Silence = Option<Instant>;

/// One step, or the end.
pub(super) async fn turn(
    app: &App,
    stored: &Stored<MoveRecord>,
    ending: Option<&MoveOutcome>,
    silence: &mut Silence,
) -> Result<Option<Duration>, ApiError> {
    let record = &stored.value;
    if record.cancel && ending.is_none() {
        return end_early(app, stored, MoveOutcome::Cancelled).await;
    }
    let Some(step) = record.operation.steps.iter().find(|step| step.is_open()).map(|step| step.step.clone()) else {
        let outcome = ending.cloned().unwrap_or(MoveOutcome::Moved);
        return finish(app, stored, outcome, None).await;
    };
    let since_start = elapsed_ms(&record.operation);
    show(app, &record.operation.id, |operation| {
        if let Some(shown) = operation.steps.iter_mut().find(|shown| shown.step == step && shown.done.is_none()) {
            shown.began_ms.get_or_insert(since_start);
        }
    });
    let begun = Instant::now();
    match carry_out(app, &record.operation, &step).await {
        Ok(done) => {
            *silence = None;
            let done = StepDone { total_ms: begun.elapsed().as_secs_f64() * 1000.0, ..done };
            tracing::info!(id = %record.operation.id, %step, total_ms = done.total_ms, pause_ms = done.pause_ms, "done");
            let report = StepReport { began_ms: Some(since_start), done: Some(done), ..StepReport::new(step) };
            report_step(app, stored, report).await?;
            Ok(Some(Duration::ZERO))
        }
        Err(error) => {
            let since = *silence.get_or_insert_with(Instant::now);
            // A process that died while it was asked is gone when it is asked again, and that is an answer.
            let silent = matches!(error, ClientError::NoAnswer { .. }) || error.code() == Some(ErrorCode::Unavailable);
            if silent && since.elapsed() < HOST_PATIENCE && !record.cancel {
                show(app, &record.operation.id, |operation| operation.note = Some(error.to_string()));
                return Ok(Some(ASK_AGAIN_AFTER));
            }
            *silence = None;
            let reason = format!("{step}: {}", error.into_api_error().message);
            tracing::warn!(id = %record.operation.id, reason, "a step failed");
            let report =
                StepReport { began_ms: Some(since_start), failed: Some(reason.clone()), ..StepReport::new(step) };
            let stored = report_step(app, stored, report).await?;
            match (stored, ending) {
                (Some(stored), None) => end_early(app, &stored, failed(&stored.value.operation, reason)).await,
                // One that ends already does what it can.
                _ => Ok(Some(Duration::ZERO)),
            }
        }
    }
}

/// A step failed: what is that, all in all?
fn failed(operation: &Operation, reason: String) -> MoveOutcome {
    let moved = |step: &StepReport| matches!(step.step, Step::Move { .. }) && step.done.is_some();
    if operation.steps.iter().any(moved) { MoveOutcome::Partly { reason } } else { MoveOutcome::RolledBack { reason } }
}

fn elapsed_ms(operation: &Operation) -> f64 {
    crate::inventory::unix_ms().saturating_sub(operation.created_unix_ms) as f64
}

/// Writes what came of a step; the record as it is then. A request to cancel that came meanwhile stays in it.
async fn report_step(
    app: &App,
    stored: &Stored<MoveRecord>,
    report: StepReport,
) -> Result<Option<Stored<MoveRecord>>, ApiError> {
    let id = &stored.value.operation.id;
    loop {
        let Some(current) = load_move(&*app.store, id).await? else { return Ok(None) };
        let mut record = current.value.clone();
        if let Some(step) = record.operation.steps.iter_mut().find(|step| step.step == report.step && step.is_open()) {
            *step = report.clone();
        }
        if save(app, &current, &record).await? {
            show(app, id, |operation| {
                operation.steps.clone_from(&record.operation.steps);
                operation.note = None;
            });
            return load_move(&*app.store, id).await;
        }
    }
}

/// Nothing more moves; hosts that are left without pieces leave, and then it is over.
async fn end_early(app: &App, stored: &Stored<MoveRecord>, ending: MoveOutcome) -> Result<Option<Duration>, ApiError> {
    let Operation { id, machine, .. } = &stored.value.operation;
    let mut record = stored.value.clone();
    let steps = &mut record.operation.steps;
    steps.retain(|step| !step.is_open());
    let tried: BTreeSet<HostName> = steps
        .iter()
        .filter(|step| step.failed.is_some())
        .filter_map(|step| if let Step::Leave { host } = &step.step { Some(host.clone()) } else { None })
        .collect();
    if let Some(span) = load_span(&*app.store, machine).await? {
        let members: Vec<HostName> = span.value.members.values().cloned().collect();
        let leaves = plan(&pieces(app, machine).await?, &members, &record.record.owner, &[]);
        let leaves = leaves.into_iter().filter(|step| !matches!(step, Step::Leave { host } if tried.contains(host)));
        steps.extend(leaves.map(StepReport::new));
    }
    record.phase = Phase::Reshaping { ending: Some(ending) };
    if save(app, stored, &record).await? {
        show(app, id, |operation| operation.steps = record.operation.steps);
    }
    Ok(Some(Duration::ZERO))
}

async fn carry_out(app: &App, operation: &Operation, step: &Step) -> Result<StepDone, ClientError> {
    let machine = &operation.machine;
    match step {
        Step::Join { host } => join(app, machine, host).await,
        Step::Move { piece, from, to } => give(app, machine, *piece, from, to).await,
        Step::Leave { host } => leave(app, machine, host).await,
    }
}
