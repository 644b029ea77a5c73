//! The link goes away for ten seconds in the middle of a move, and the move goes on from what has arrived.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's panic is its report, its numbers are for readers"
)]

mod harness;

use harness::{Cut, World, name, skipped};
use std::time::Duration;
use vmotion_model::{ByteSize, MachineName, MachineState, MoveOutcome, MovePhase, MoveRequest, MoveSummary, Strategy};

/// The issue's: a link that is gone for so long.
const OUTAGE: Duration = Duration::from_secs(10);
/// Silence that both ends bear. After an outage QUIC tries again at growing intervals: up to another outage later.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);
/// Slow enough that there is a middle to cut.
const BANDWIDTH: u64 = 24 << 20;

/// One move, cut when it is in `phase`; what it came to.
async fn moved(
    world: &World,
    machine: &MachineName,
    to: &str,
    strategy: Strategy,
    cut: Option<MovePhase>,
) -> MoveSummary {
    let request = MoveRequest { strategy, bandwidth_max: Some(BANDWIDTH), ..MoveRequest::default() };
    let operation = world.start_move(machine, to, request).await;
    if let Some(phase) = cut {
        loop {
            let now = world.client.operation(&operation.id).await.unwrap();
            assert_eq!(now.outcome, None, "the move was over before it was in {phase:?}: {now:?}");
            let progress = now.progress;
            if progress.is_some_and(|progress| progress.phase == phase && progress.elapsed_ms > 500) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let gone = Cut::new(world, false);
        tokio::time::sleep(OUTAGE).await;
        drop(gone);
    }
    let operation = world.wait_for_outcome(&operation, PATIENCE).await;
    assert_eq!(operation.outcome, Some(MoveOutcome::Moved), "{strategy}, cut in {cut:?}: {operation:?}");
    let summary = operation.summary.expect("a move whose source lived has a summary");
    println!(
        "{strategy}, cut in {cut:?}: total {:.0} ms, downtime {:.1} ms, {} bytes, followed {:?}",
        summary.total_ms, summary.downtime.source_ms, summary.udp_bytes, summary.follow
    );
    summary
}

async fn survives(test: &str, strategy: Strategy, phase: MovePhase) {
    if skipped(test) {
        return;
    }
    let world = World::start(PEER_TIMEOUT, None).await;
    let machine: MachineName = name("vm1");
    // Writes little, so that a cut does not itself make more to send.
    world.create(world.spec("vm1", ByteSize::mib(256), "ws=96M rate=1M content=random hb=10"), "h1").await;
    world.wait_for_console(&machine, "READY").await;
    let uncut = moved(&world, &machine, "h2", strategy, None).await;
    let cut = moved(&world, &machine, "h1", strategy, Some(phase)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.console(&machine).complaints(), Vec::<String>::new());
    assert_eq!(world.copies(&machine).await.len(), 1);
    // What was dirtied meanwhile comes on top: 1 MiB/s for the outage and for as long again until QUIC has noticed that it is over.
    let dirtied = (2 * OUTAGE.as_secs() + 2) << 20;
    let bound = uncut.udp_bytes + uncut.udp_bytes / 20 + dirtied;
    assert!(cut.udp_bytes <= bound, "{} bytes, {} uncut", cut.udp_bytes, uncut.udp_bytes);
    world.client.stop(&machine).await.unwrap();
    world.client.remove(&machine).await.unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_while_pages_are_copied() {
    survives("a_cut_while_pages_are_copied", Strategy::Precopy, MovePhase::Copying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_while_memory_follows_the_guest() {
    survives("a_cut_while_memory_follows_the_guest", Strategy::Postcopy, MovePhase::Following).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_replaces_the_arrival_that_a_cut_one_left() {
    if skipped("a_move_replaces_the_arrival_that_a_cut_one_left") {
        return;
    }
    let world = World::start(PEER_TIMEOUT, None).await;
    let machine: MachineName = name("vm1");
    world.create(world.spec("vm1", ByteSize::mib(256), "ws=96M rate=1M content=random hb=10"), "h1").await;
    world.wait_for_console(&machine, "READY").await;
    let request = MoveRequest { bandwidth_max: Some(BANDWIDTH), ..MoveRequest::default() };
    let first = world.start_move(&machine, "h2", request).await;
    while world.status("h2", &machine).await.is_none_or(|status| status.state != MachineState::Incoming) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The target does not hear that its move is over, and would wait for its source for a minute.
    let gone = Cut::new(&world, false);
    world.client.cancel(&first.id).await.unwrap();
    let first = world.wait_for_outcome(&first, PATIENCE).await;
    assert_eq!(first.outcome, Some(MoveOutcome::Cancelled));
    drop(gone);
    let left = world.status("h2", &machine).await.expect("the arrival is still there");
    assert_eq!((left.state, left.move_id), (MachineState::Incoming, Some(first.id)));
    let second = world.start_move(&machine, "h2", MoveRequest::default()).await;
    let second = world.wait_for_outcome(&second, PATIENCE).await;
    assert_eq!(second.outcome, Some(MoveOutcome::Moved));
    assert_eq!(world.console(&machine).complaints(), Vec::<String>::new());
    world.stop().await;
}
