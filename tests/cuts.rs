//! The link goes away for ten seconds, in every phase of a move by every strategy, and the move goes on from what has arrived.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test's panic is its report, its numbers are for readers"
)]

mod harness;

use harness::{Checkpoints, Cut, World, name, scenario};
use std::time::Duration;
use vmotion_api::Operation;
use vmotion_model::{ByteSize, MachineName, MachineState, MoveOutcome, MovePhase, MoveRequest, MoveSummary, Strategy};

/// The issue's: a link that is gone for so long.
const OUTAGE: Duration = Duration::from_secs(10);
/// Silence that both ends bear. After an outage QUIC tries again at growing intervals: up to another outage later.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);
/// Slow enough that there is a middle to cut.
const BANDWIDTH: u64 = 24 << 20;

/// Where a move is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// As a process enters this state, which is told at its checkpoint.
    Enters(&'static str),
    /// In the middle of this phase.
    Amid(MovePhase),
}

/// Two hosts, and a machine that writes little, so that a cut does not itself make more to send.
struct Run {
    world: World,
    checkpoints: Checkpoints,
    machine: MachineName,
    strategy: Strategy,
}

impl Run {
    async fn start(strategy: Strategy) -> Self {
        let socket = tempfile::Builder::new().prefix("vmotion-checkpoints-").tempdir().unwrap().keep().join("sock");
        let checkpoints = Checkpoints::serve(&socket);
        let world = World::start(PEER_TIMEOUT, Some(socket)).await;
        let machine: MachineName = name("vm1");
        world.create(world.spec("vm1", ByteSize::mib(256), "ws=96M rate=1M content=random hb=10"), "h1").await;
        world.wait_for_console(&machine, "READY").await;
        Self { world, checkpoints, machine, strategy }
    }

    async fn move_to(&self, to: &str) -> Operation {
        let strategy = self.strategy;
        let request = MoveRequest { strategy, bandwidth_max: Some(BANDWIDTH), ..MoveRequest::default() };
        // What one round leaves is to follow the guest, though it would be little enough to be sent in a longer pause.
        let request = match strategy {
            Strategy::Hybrid => MoveRequest { downtime_ms_max: 60, rounds_max: 1, ..request },
            _ => request,
        };
        self.world.start_move(&self.machine, to, request).await
    }

    async fn moved(&self, operation: &Operation, cut: Option<Where>) -> MoveSummary {
        let operation = self.world.wait_for_outcome(operation, PATIENCE).await;
        let strategy = self.strategy;
        assert_eq!(operation.outcome, Some(MoveOutcome::Moved), "{strategy}, cut {cut:?}: {operation:?}");
        let summary = operation.summary.expect("a move whose source lived has a summary");
        println!(
            "{strategy}, cut {cut:?}: total {:.0} ms, downtime {:.1} ms, {} bytes, {}, followed {:?}",
            summary.total_ms, summary.downtime.source_ms, summary.udp_bytes, summary.epoch, summary.follow
        );
        summary
    }

    /// The path is gone from `place` on, for a while.
    async fn cut(&mut self, operation: &Operation, place: Where) {
        let gone = match place {
            Where::Enters(_) => {
                let held = self.checkpoints.sprung().await;
                let gone = Cut::new(&self.world, false);
                held.let_go().await;
                gone
            }
            Where::Amid(phase) => {
                loop {
                    let now = self.world.client.operation(&operation.id).await.unwrap();
                    assert_eq!(now.outcome, None, "the move was over before it was in {phase:?}: {now:?}");
                    let progress = now.progress;
                    if progress.is_some_and(|progress| progress.phase == phase && progress.elapsed_ms > 500) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Cut::new(&self.world, false)
            }
        };
        tokio::time::sleep(OUTAGE).await;
        if place == OFFERED {
            // Nobody heard the offer. The guest runs on, with the epoch that was won when it was taken back.
            let owner = self.world.client.owner(&self.machine).await.unwrap();
            let status = self.world.status(owner.owner.as_str(), &self.machine).await.expect("it runs there");
            assert_eq!((status.state, status.epoch), (MachineState::Moving, owner.epoch));
        }
        drop(gone);
    }

    /// Moved without a cut and then with one: the latter costs little more.
    async fn survives(mut self, place: Where) {
        let operation = self.move_to("h2").await;
        let uncut = self.moved(&operation, None).await;
        if let Where::Enters(state) = place {
            self.checkpoints.set(state);
        }
        let operation = self.move_to("h1").await;
        self.cut(&operation, place).await;
        let cut = self.moved(&operation, Some(place)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Self { world, machine, strategy, .. } = self;
        assert_eq!(world.console(&machine).complaints(), Vec::<String>::new(), "{strategy}");
        let record = world.client.owner(&machine).await.unwrap();
        let copies: Vec<_> = world.copies(&machine).await.into_iter().map(|(host, copy)| (host, copy.epoch)).collect();
        assert_eq!(copies, [("h1", record.epoch)], "{strategy}: {record:?}");
        assert_eq!(cut.epoch, record.epoch, "{strategy}");
        assert!(place != OFFERED || cut.epoch.0 > uncut.epoch.0 + 1, "{strategy}: no offer was taken back");
        // What was dirtied meanwhile comes on top: 1 MiB/s for the outage and for as long again until QUIC has noticed that it is over.
        let dirtied = (2 * OUTAGE.as_secs() + 2) << 20;
        let bound = uncut.udp_bytes + uncut.udp_bytes / 20 + dirtied;
        assert!(cut.udp_bytes <= bound, "{strategy}: {} bytes, {} uncut", cut.udp_bytes, uncut.udp_bytes);
        world.client.stop(&machine).await.unwrap();
        world.client.remove(&machine).await.unwrap();
        world.stop().await;
    }
}

const CONNECTING: Where = Where::Enters("target prepared");
const COPYING: Where = Where::Amid(MovePhase::Copying);
const PAUSED: Where = Where::Enters("source paused");
const OFFERED: Where = Where::Enters("source offered");
/// The guest has just begun to run where hardly any of its memory is.
const SERVING: Where = Where::Enters("source serving");
const FOLLOWING: Where = Where::Amid(MovePhase::Following);

/// Each in a world of its own, side by side: most of it is waiting.
fn survive(test: &str, cuts: &[(Strategy, Where)]) {
    scenario(test, async {
        let runs = cuts.iter().map(|(strategy, place)| {
            let (strategy, place) = (*strategy, *place);
            tokio::spawn(async move { Run::start(strategy).await.survives(place).await })
        });
        let runs: Vec<_> = runs.collect();
        for run in runs {
            run.await.unwrap();
        }
    });
}

#[test]
fn a_cut_while_the_session_is_opened() {
    let cuts = [Strategy::Precopy, Strategy::Postcopy, Strategy::Hybrid].map(|strategy| (strategy, CONNECTING));
    survive("a_cut_while_the_session_is_opened", &cuts);
}

#[test]
fn a_cut_while_pages_are_copied() {
    let cuts = [Strategy::Precopy, Strategy::Hybrid].map(|strategy| (strategy, COPYING));
    survive("a_cut_while_pages_are_copied", &cuts);
}

#[test]
fn a_cut_as_the_guest_is_paused() {
    let cuts = [Strategy::Precopy, Strategy::Postcopy, Strategy::Hybrid].map(|strategy| (strategy, PAUSED));
    survive("a_cut_as_the_guest_is_paused", &cuts);
}

#[test]
fn a_cut_as_the_guest_is_offered() {
    let cuts = [Strategy::Precopy, Strategy::Postcopy, Strategy::Hybrid].map(|strategy| (strategy, OFFERED));
    survive("a_cut_as_the_guest_is_offered", &cuts);
}

#[test]
fn a_cut_while_memory_follows_the_guest() {
    let cuts = [(Strategy::Postcopy, FOLLOWING), (Strategy::Hybrid, SERVING)];
    survive("a_cut_while_memory_follows_the_guest", &cuts);
}

#[test]
fn a_move_replaces_the_arrival_that_a_cut_one_left() {
    scenario("a_move_replaces_the_arrival_that_a_cut_one_left", async {
        let mut world = World::start(PEER_TIMEOUT, None).await;
        let machine: MachineName = name("vm1");
        world.create(world.spec("vm1", ByteSize::mib(256), "ws=96M rate=1M content=random hb=10"), "h1").await;
        world.wait_for_console(&machine, "READY").await;
        let request = MoveRequest { bandwidth_max: Some(BANDWIDTH), ..MoveRequest::default() };
        let first = world.start_move(&machine, "h2", request).await;
        while world.status("h2", &machine).await.is_none_or(|status| status.state != MachineState::Incoming) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        // The target hears neither from its source nor through its agent that its move is over, and would wait for a minute.
        let gone = Cut::new(&world, false);
        world.kill_service("h2").await;
        world.client.cancel(&first.id).await.unwrap();
        let first = world.wait_for_outcome(&first, PATIENCE).await;
        assert_eq!(first.outcome, Some(MoveOutcome::Cancelled));
        world.start_service("h2");
        world.wait_until_up().await;
        let left = world.status("h2", &machine).await.expect("the arrival is still there");
        assert_eq!((left.state, left.move_id), (MachineState::Incoming, Some(first.id)));
        drop(gone);
        let second = world.start_move(&machine, "h2", MoveRequest::default()).await;
        let second = world.wait_for_outcome(&second, PATIENCE).await;
        assert_eq!(second.outcome, Some(MoveOutcome::Moved));
        assert_eq!(world.console(&machine).complaints(), Vec::<String>::new());
        world.stop().await;
    });
}
