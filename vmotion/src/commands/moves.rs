//! Moving machines, and what became of it.

use super::request_key;
use crate::{
    arguments::{Global, MoveArguments, MovesCommand, What},
    context, output, progress,
};
use anyhow::Result;
use serde::Serialize;
use vmotion_api::{ControllerClient, MoveCommand, Operation, ShapeChange};
use vmotion_model::{ByteSize, HostName, MachineName, MoveId, MoveLimit, MoveOutcome, MoveRequest, Outlook, Placement};

/// Exit code of a move that did not happen while nothing was lost. One more than the API's own codes.
const EXIT_NOT_MOVED: u8 = 8;

pub(super) async fn start(arguments: MoveArguments, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    let MoveArguments { what: What { machine, piece }, to, dry_run, detach, .. } = &arguments;
    let (dry_run, detach, to) = (*dry_run, *detach, to.clone());
    if let Some(piece) = *piece {
        return change(&client, machine, ShapeChange::Piece { piece, to }, dry_run, detach, global).await;
    }
    // As a whole, one that spans several hosts goes piece by piece.
    if !client.machine(machine).await?.pieces.is_empty() {
        return change(&client, machine, ShapeChange::Gather { to }, dry_run, detach, global).await;
    }
    let command = MoveCommand { machine: machine.clone(), to, request: request(&arguments), dry_run };
    if dry_run {
        return foresee(&client, command, global).await;
    }
    let operation = client.start_move(&command, &request_key()).await?;
    to_its_end(&client, operation, detach, global).await
}

/// Waits for the end of a move that has begun, unless it is to go on alone.
async fn to_its_end(client: &ControllerClient, operation: Operation, detach: bool, global: &Global) -> Result<()> {
    if detach {
        return print(&operation, global);
    }
    let operation = follow_or_cancel(client, &operation.id, global.json).await?;
    print(&operation, global)?;
    if operation.outcome != Some(MoveOutcome::Moved) {
        std::process::exit(i32::from(EXIT_NOT_MOVED));
    }
    Ok(())
}

pub(super) async fn spread(
    machine: &MachineName,
    over: Vec<HostName>,
    dry_run: bool,
    detach: bool,
    global: &Global,
) -> Result<()> {
    change(&context::client(global)?, machine, ShapeChange::Spread { over }, dry_run, detach, global).await
}

/// Does what the advice says; nothing is an answer too.
pub(super) async fn follow_advice(client: &ControllerClient, machine: &MachineName, global: &Global) -> Result<()> {
    change(client, machine, ShapeChange::Advised, false, false, global).await
}

async fn change(
    client: &ControllerClient,
    machine: &MachineName,
    change: ShapeChange,
    dry_run: bool,
    detach: bool,
    global: &Global,
) -> Result<()> {
    if dry_run {
        let plan = client.reshape_dry_run(machine, change).await?;
        if global.json {
            return output::json(&plan);
        }
        output::plan(&plan);
        return Ok(());
    }
    let operation = client.reshape(machine, change, &request_key()).await?;
    to_its_end(client, operation, detach, global).await
}

fn request(arguments: &MoveArguments) -> MoveRequest {
    MoveRequest {
        downtime_ms_max: arguments.max_downtime,
        bandwidth_max: arguments.max_bandwidth.map(|bandwidth| bandwidth.0),
        verify: arguments.verify,
        strategy: arguments.strategy,
        deadline_ms: arguments.deadline,
        slowdown_percent_max: arguments.max_slowdown,
        give_up_after_ms: arguments.give_up_after,
        delta_memory_bytes: arguments.delta_memory.map(ByteSize::bytes),
        survey: arguments.dry_run,
        ..MoveRequest::default()
    }
}

/// What `--dry-run` prints: where the machine would go, and what that would cost.
#[derive(Debug, Serialize)]
struct DryRun {
    #[serde(flatten)]
    placement: Placement,
    /// The move that measured; `null` when no host fits.
    survey: Option<MoveId>,
    /// What each strategy would come to; `null` when nothing could be measured.
    outlook: Option<Outlook>,
    /// Why nothing could be measured.
    reason: Option<String>,
}

async fn foresee(client: &ControllerClient, command: MoveCommand, global: &Global) -> Result<()> {
    let placement = client.move_dry_run(&command).await?;
    let mut dry_run = DryRun { placement, survey: None, outlook: None, reason: None };
    if dry_run.placement.chosen.is_some() {
        let command = MoveCommand { dry_run: false, ..command };
        let operation = client.start_move(&command, &request_key()).await?;
        let operation = follow_or_cancel(client, &operation.id, true).await?;
        dry_run.survey = Some(operation.id);
        dry_run.outlook = operation.summary.and_then(|summary| summary.outlook);
        dry_run.reason = match operation.outcome {
            Some(MoveOutcome::RolledBack { reason } | MoveOutcome::SourceLost { reason }) => Some(reason),
            _ => None,
        };
    }
    let possible = dry_run.outlook.as_ref().is_some_and(|outlook| outlook.chosen.is_some());
    if global.json {
        output::json(&dry_run)?;
    } else {
        output::placement(&dry_run.placement);
        if let Some(outlook) = &dry_run.outlook {
            output::outlook(outlook);
        }
        if let Some(reason) = &dry_run.reason {
            println!("It could not be measured: {reason}");
        }
    }
    if !possible {
        std::process::exit(i32::from(EXIT_NOT_MOVED));
    }
    Ok(())
}

pub(super) async fn one(command: MovesCommand, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    match command {
        MovesCommand::Show { id, plot } => {
            let operation = client.operation(&id).await?;
            if let Some(file) = plot {
                crate::plot::draw(&operation, &file)?;
            }
            if global.json {
                return output::json(&operation);
            }
            output::operation(&operation);
            output::details(&operation);
            Ok(())
        }
        MovesCommand::Limit { id, max_bandwidth } => {
            let limit = MoveLimit { bandwidth_max: Some(max_bandwidth.0).filter(|bandwidth| *bandwidth > 0) };
            print(&client.limit(&id, &limit).await?, global)
        }
        MovesCommand::Accuracy => {
            let accuracy = client.accuracy().await?;
            if global.json {
                return output::json(&accuracy);
            }
            output::accuracy(&accuracy);
            Ok(())
        }
    }
}

/// Follows the move; the first Ctrl-C cancels it, and its end is still awaited.
async fn follow_or_cancel(client: &ControllerClient, id: &MoveId, quiet: bool) -> Result<Operation> {
    let mut following = std::pin::pin!(progress::follow(client, id, quiet));
    tokio::select! {
        operation = &mut following => return operation,
        _ = tokio::signal::ctrl_c() => {}
    }
    eprintln!("cancelling {id}");
    if let Err(error) = client.cancel(id).await {
        eprintln!("{error}");
    }
    following.await
}

pub(super) async fn list(id: Option<MoveId>, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    if let Some(id) = id {
        return print(&client.operation(&id).await?, global);
    }
    let moves = client.moves().await?;
    if global.json {
        return output::json(&moves);
    }
    output::moves(&moves);
    Ok(())
}

pub(super) async fn cancel(id: &MoveId, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    client.cancel(id).await?;
    let operation = progress::follow(&client, id, true).await?;
    print(&operation, global)
}

fn print(operation: &Operation, global: &Global) -> Result<()> {
    if global.json {
        return output::json(operation);
    }
    output::operation(operation);
    Ok(())
}
