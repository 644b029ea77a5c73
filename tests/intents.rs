//! What the operator asks of a move is done, or refused while the machine runs on.

#![allow(clippy::unwrap_used, reason = "a test's panic is its report")]

mod harness;

use harness::{Cut, World, name, scenario};
use std::time::Duration;
use vmotion_api::{Operation, SnapshotRequest};
use vmotion_model::{
    ByteSize, DirtySource, MachineName, MachineSpec, MachineState, MoveLimit, MoveOutcome, MovePhase, MoveRequest,
    Strategy,
};

const PEER_TIMEOUT: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(120);
/// Slow enough that there is a middle to do something in.
const SLOW: Option<u64> = Some(4 << 20);

async fn world_with(cmdline: &str) -> (World, MachineName) {
    let world = World::start(PEER_TIMEOUT, None).await;
    // Rings know who writes.
    let spec = MachineSpec { dirty_source: DirtySource::Ring, ..world.spec("vm1", ByteSize::mib(256), cmdline) };
    world.create(spec, "h1").await;
    let machine = name("vm1");
    world.wait_for_console(&machine, "READY").await;
    (world, machine)
}

/// Waits until the move is in `phase` and has put something on the wire.
async fn wait_for_phase(world: &World, operation: &Operation, phase: MovePhase) {
    loop {
        let now = world.client.operation(&operation.id).await.unwrap();
        assert_eq!(now.outcome, None, "the move was over before it was in {phase:?}: {now:?}");
        if now.progress.is_some_and(|progress| progress.phase == phase && progress.elapsed_ms > 300) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn runs_on(world: &World, machine: &MachineName, host: &str) {
    let copies = world.copies(machine).await;
    assert!(matches!(copies.as_slice(), [(at, _)] if *at == host), "{copies:?}");
    assert_eq!(world.console(machine).complaints(), Vec::<String>::new());
}

#[test]
fn a_survey_measures_and_leaves_everything_as_it_was() {
    scenario("a_survey_measures_and_leaves_everything_as_it_was", async {
        let (world, machine) = world_with("ws=128M rate=20M content=text hb=20").await;
        let before = world.client.owner(&machine).await.unwrap();
        for strategy in Strategy::ALL {
            let request = MoveRequest { survey: true, strategy, ..MoveRequest::default() };
            let operation = world.start_move(&machine, "h2", request).await;
            let operation = world.wait_for_outcome(&operation, PATIENCE).await;
            assert_eq!(operation.outcome, Some(MoveOutcome::Surveyed), "{strategy}");
            let summary = operation.summary.unwrap();
            let outlook = summary.outlook.expect("a survey has an outlook");
            assert!(outlook.survey.pages_per_s > 0.0 && outlook.survey.dirty_pages_per_s > 0.0, "{outlook:?}");
            let expected = outlook.expected().expect("nothing was asked that cannot be had");
            assert!(
                expected.total_ms.low <= expected.total_ms.likely && expected.total_ms.likely <= expected.total_ms.high
            );
            assert!(summary.timeline.events.iter().any(|event| event.what == "surveyed"), "{:?}", summary.timeline);
            assert!(!summary.timeline.events.iter().any(|event| event.what == "paused"), "{:?}", summary.timeline);
            assert_eq!(world.client.owner(&machine).await.unwrap(), before);
            runs_on(&world, &machine, "h1").await;
        }
        let listed = world.client.moves().await.unwrap();
        assert!(listed.iter().all(|operation| operation.summary.as_ref().unwrap().timeline.events.is_empty()));
        world.stop().await;
    });
}

#[test]
fn a_deadline_that_cannot_be_kept_is_refused_with_numbers() {
    scenario("a_deadline_that_cannot_be_kept_is_refused_with_numbers", async {
        let (world, machine) = world_with("ws=128M rate=5M content=random hb=20").await;
        let request =
            MoveRequest { deadline_ms: Some(5000), bandwidth_max: SLOW, verify: false, ..MoveRequest::default() };
        let operation = world.start_move(&machine, "h2", request).await;
        let operation = world.wait_for_outcome(&operation, PATIENCE).await;
        let Some(MoveOutcome::RolledBack { reason }) = operation.outcome else { panic!("{operation:?}") };
        for part in ["impossible: ", "precopy: ", "postcopy: ", "the deadline is 5.0 s", "MiB/s on the wire"] {
            assert!(reason.contains(part), "{part:?} is not in {reason:?}");
        }
        let summary = operation.summary.unwrap();
        assert!(!summary.timeline.events.iter().any(|event| event.what == "paused"), "{:?}", summary.timeline);
        runs_on(&world, &machine, "h1").await;
        world.stop().await;
    });
}

#[test]
fn a_limit_is_lifted_while_the_move_goes_on() {
    scenario("a_limit_is_lifted_while_the_move_goes_on", async {
        let (world, machine) = world_with("ws=200M rate=1M content=random hb=20").await;
        let request =
            MoveRequest { bandwidth_max: Some(256 << 10), strategy: Strategy::Precopy, ..MoveRequest::default() };
        // At this pace it would take a quarter of an hour.
        let operation = world.start_move(&machine, "h2", request).await;
        wait_for_phase(&world, &operation, MovePhase::Copying).await;
        let wrong = world.client.limit(&operation.id, &MoveLimit { bandwidth_max: Some(1) }).await.unwrap_err();
        assert!(wrong.to_string().contains("bandwidth_max 1 bytes/s is not valid"), "{wrong}");
        let changed = world.client.limit(&operation.id, &MoveLimit { bandwidth_max: None }).await.unwrap();
        assert_eq!(changed.request.bandwidth_max, None);
        let operation = world.wait_for_outcome(&operation, PATIENCE).await;
        assert_eq!(operation.outcome, Some(MoveOutcome::Moved), "{operation:?}");
        assert_eq!(operation.request.bandwidth_max, None);
        let late = world.client.limit(&operation.id, &MoveLimit { bandwidth_max: None }).await.unwrap_err();
        assert!(late.to_string().contains("already finished"), "{late}");
        runs_on(&world, &machine, "h2").await;
        world.stop().await;
    });
}

#[test]
fn a_silent_path_is_given_up_after_the_time_asked_for() {
    scenario("a_silent_path_is_given_up_after_the_time_asked_for", async {
        let (world, machine) = world_with("ws=128M rate=1M content=random hb=20").await;
        // The hosts would wait for a minute.
        let request = MoveRequest {
            give_up_after_ms: Some(700),
            bandwidth_max: SLOW,
            strategy: Strategy::Precopy,
            ..MoveRequest::default()
        };
        let operation = world.start_move(&machine, "h2", request).await;
        wait_for_phase(&world, &operation, MovePhase::Copying).await;
        let gone = Cut::new(&world, false);
        let operation = world.wait_for_outcome(&operation, PEER_TIMEOUT / 3).await;
        drop(gone);
        assert!(matches!(operation.outcome, Some(MoveOutcome::RolledBack { .. })), "{operation:?}");
        runs_on(&world, &machine, "h1").await;
        // The other end gives up by the same time, and is in nobody's way.
        let again = world.start_move(&machine, "h2", MoveRequest::default()).await;
        assert_eq!(world.wait_for_outcome(&again, PATIENCE).await.outcome, Some(MoveOutcome::Moved));
        world.stop().await;
    });
}

#[test]
fn a_guest_that_outruns_the_path_converges_when_it_may_be_slowed_down() {
    scenario("a_guest_that_outruns_the_path_converges_when_it_may_be_slowed_down", async {
        let (world, machine) = world_with("ws=160M rate=120M content=random hb=20").await;
        let request = |slowdown_percent_max| MoveRequest {
            bandwidth_max: Some(40 << 20),
            strategy: Strategy::Precopy,
            slowdown_percent_max,
            ..MoveRequest::default()
        };
        let refused = world.start_move(&machine, "h2", request(Some(0))).await;
        let refused = world.wait_for_outcome(&refused, PATIENCE).await;
        let Some(MoveOutcome::RolledBack { reason }) = refused.outcome else { panic!("{refused:?}") };
        assert!(reason.contains("impossible: precopy: "), "{reason}");
        let slowed = world.start_move(&machine, "h2", request(Some(95))).await;
        let slowed = world.wait_for_outcome(&slowed, PATIENCE).await;
        assert_eq!(slowed.outcome, Some(MoveOutcome::Moved), "{slowed:?}");
        let summary = slowed.summary.unwrap();
        assert!(summary.slowdown_percent > 0.0 && summary.slowdown_percent <= 95.0, "{}", summary.slowdown_percent);
        assert!(summary.timeline.events.iter().any(|event| event.what.starts_with("slowed down by ")));
        runs_on(&world, &machine, "h2").await;
        world.stop().await;
    });
}

#[test]
fn a_machine_whose_memory_follows_is_neither_saved_nor_moved_on() {
    scenario("a_machine_whose_memory_follows_is_neither_saved_nor_moved_on", async {
        let (world, machine) = world_with("ws=128M rate=1M content=random hb=20").await;
        let request = MoveRequest { strategy: Strategy::Postcopy, bandwidth_max: SLOW, ..MoveRequest::default() };
        let operation = world.start_move(&machine, "h2", request).await;
        wait_for_phase(&world, &operation, MovePhase::Following).await;
        let save = SnapshotRequest { directory: world.path("snapshot") };
        let refused = world.agent("h2").snapshot(&machine, &save).await.unwrap_err();
        assert!(refused.to_string().contains("its memory still follows"), "{refused}");
        assert!(!world.path("snapshot").exists());
        world.client.limit(&operation.id, &MoveLimit { bandwidth_max: None }).await.unwrap();
        let operation = world.wait_for_outcome(&operation, PATIENCE).await;
        assert_eq!(operation.outcome, Some(MoveOutcome::Moved), "{operation:?}");
        world.client.snapshot(&machine, &save).await.unwrap();
        assert!(world.status("h2", &machine).await.is_some_and(|status| status.state == MachineState::Running));
        world.stop().await;
    });
}
