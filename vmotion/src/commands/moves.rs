//! Moving machines, and what became of it.

use super::request_key;
use crate::{
    arguments::{Global, MoveArguments},
    context, output, progress,
};
use anyhow::Result;
use vmotion_api::{ControllerClient, MoveCommand, Operation};
use vmotion_model::{MoveId, MoveOutcome, MoveRequest};

/// Exit code of a move that did not happen while nothing was lost. One more than the API's own codes.
const EXIT_NOT_MOVED: u8 = 8;

pub(super) async fn start(arguments: MoveArguments, global: &Global) -> Result<()> {
    let client = context::client(global)?;
    let MoveArguments { machine, to, max_downtime, max_bandwidth, strategy, verify, dry_run, detach } = arguments;
    let request = MoveRequest {
        downtime_ms_max: max_downtime,
        bandwidth_max: max_bandwidth.map(vmotion_model::ByteSize::bytes),
        verify,
        strategy,
        ..MoveRequest::default()
    };
    let command = MoveCommand { machine, to, request, dry_run };
    if dry_run {
        let placement = client.move_dry_run(&command).await?;
        if global.json {
            return output::json(&placement);
        }
        output::placement(&placement);
        return Ok(());
    }
    let operation = client.start_move(&command, &request_key()).await?;
    if detach {
        return print(&operation, global);
    }
    let operation = follow_or_cancel(&client, &operation.id, global.json).await?;
    print(&operation, global)?;
    if operation.outcome != Some(MoveOutcome::Moved) {
        std::process::exit(i32::from(EXIT_NOT_MOVED));
    }
    Ok(())
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
