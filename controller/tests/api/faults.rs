use crate::world::{World, assert_answered, until};
use vmotion_controller::{ControllerError, ControllerOptions, StoreOptions};
use vmotion_model::{ErrorCode, HostState, MachineState, MoveOutcome};

#[tokio::test(flavor = "multi_thread")]
async fn silent_host_is_gone_and_its_machines_unknown_until_it_is_heard_again() {
    let mut world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    world.h1.stop_beating();
    world.state_becomes(&name, MachineState::Unknown).await;
    let view = world.operator.machine(&name).await.unwrap();
    assert!(view.reason.unwrap().starts_with("host h1 is gone, last heard "));
    assert_eq!(view.host, world.h1.name());
    let hosts = world.operator.hosts().await.unwrap();
    assert_eq!(hosts[0].state, HostState::Gone);
    world.beat().await;
    world.state_becomes(&name, MachineState::Running).await;
    assert_eq!(world.h1.book(|book| book.starts), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_controller_knows_hosts_machines_and_cordons_before_anyone_is_heard() {
    let mut world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    world.operator.cordon(&world.h2.name(), true).await.unwrap();
    world.h1.stop_beating();
    world.h2.stop_beating();
    world.stop_controller().await;
    world.start_controller().await;
    let hosts = world.operator.hosts().await.unwrap();
    let shown: Vec<_> = hosts.iter().map(|host| (host.name.as_str(), host.state, host.cordoned)).collect();
    assert_eq!(shown, [("h1", HostState::Gone, false), ("h2", HostState::Gone, true)]);
    assert_eq!(world.operator.machine(&name).await.unwrap().state, MachineState::Unknown);
    world.beat().await;
    world.state_becomes(&name, MachineState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn move_goes_on_over_a_restart_of_the_controller() {
    let mut world = World::start().await;
    let (name, id) = world.start_moving().await;
    world.stop_controller().await;
    world.start_controller().await;
    assert_eq!(world.operation(&id).await.outcome, None);
    world.beat().await;
    world.switch_over(&id).await;
    world.h1.report_outcome(&id, MoveOutcome::Moved);
    assert_eq!(world.finished(&id).await.outcome, Some(MoveOutcome::Moved));
    assert_eq!(world.operator.machine(&name).await.unwrap().host, world.h2.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn move_that_was_decided_while_the_source_agent_is_dead_ends_as_moved_by_the_record() {
    let mut world = World::start().await;
    let (name, id) = world.start_moving().await;
    world.h1.die().await;
    until("it says what it waits for", async || world.operation(&id).await.note.is_some()).await;
    assert_eq!(world.operation(&id).await.outcome, None);
    world.switch_over(&id).await;
    let operation = world.finished(&id).await;
    assert_eq!((operation.outcome, operation.summary, operation.note), (Some(MoveOutcome::Moved), None, None));
    world.state_becomes(&name, MachineState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn undecided_move_waits_for_the_source_agent_to_come_back() {
    let mut world = World::start().await;
    let (_, id) = world.start_moving().await;
    world.h1.die().await;
    until("it says what it waits for", async || world.operation(&id).await.note.is_some()).await;
    world.h1.revive().await;
    world.h1.report_outcome(&id, MoveOutcome::RolledBack { reason: "the link was cut".into() });
    let outcome = world.finished(&id).await.outcome;
    assert_eq!(outcome, Some(MoveOutcome::RolledBack { reason: "the link was cut".into() }));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_source_process_is_a_lost_source_and_the_target_lets_go() {
    let world = World::start().await;
    let (name, id) = world.start_moving().await;
    world.h1.set_state(&name, MachineState::Failed);
    world.h1.book(|book| book.reports.clear());
    let Some(MoveOutcome::SourceLost { reason }) = world.finished(&id).await.outcome else { panic!("not lost") };
    assert_eq!(reason, "Machine vm1 failed on h1 during the move");
    assert!(world.h2.book(|book| book.cancelled.contains(&id)));
    assert_eq!(world.operator.machine(&name).await.unwrap().state, MachineState::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_source_is_not_concluded_while_the_target_may_still_win() {
    let world = World::start().await;
    let (name, id) = world.start_moving().await;
    world
        .h2
        .book(|book| book.refuse_cancel = Some(vmotion_model::ApiError::new(ErrorCode::Conflict, "it is deciding")));
    let request = world.h1.book(|book| {
        book.reports.clear();
        book.machines.get_mut(&name).unwrap().state = MachineState::Failed;
        book.outgoing[&id].clone()
    });
    until("the target was asked", async || world.operation(&id).await.note.is_some()).await;
    assert_eq!(world.operation(&id).await.note.as_deref(), Some("it is deciding"));
    assert_eq!(request.record.owner, world.h1.name());
    world.switch_over(&id).await;
    assert_eq!(world.finished(&id).await.outcome, Some(MoveOutcome::Moved));
}

#[tokio::test(flavor = "multi_thread")]
async fn source_that_lost_its_path_at_the_last_page_does_not_call_a_machine_lost_that_runs() {
    let stranded = || MoveOutcome::Stranded { reason: "the path was cut".into() };
    for (state, outcome) in [(MachineState::Running, MoveOutcome::Moved), (MachineState::Failed, stranded())] {
        let world = World::start().await;
        let (name, id) = world.start_moving().await;
        world.switch_over(&id).await;
        world.h2.set_state(&name, state);
        world.h1.report_outcome(&id, stranded());
        assert_eq!(world.finished(&id).await.outcome, Some(outcome));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_controller_on_the_same_data_is_refused() {
    let world = World::start().await;
    let options = ControllerOptions::new(
        StoreOptions::File(world.path("data")),
        "127.0.0.1:0".parse().unwrap(),
        world.identity("controller/c1"),
    );
    let error = vmotion_controller::run(options, |_| panic!("it started"), std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("is open in another process"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_an_operator_is_refused_before_anything_is_opened() {
    let world = World::start().await;
    let identity = world.identity("operator/alice");
    let options =
        ControllerOptions::new(StoreOptions::File(world.path("other")), "127.0.0.1:0".parse().unwrap(), identity);
    let error = vmotion_controller::run(options, |_| panic!("it started"), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, ControllerError::NotController(_)));
    assert!(!world.path("other").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_is_kept_until_the_host_answers() {
    let mut world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    world.h1.die().await;
    let view = world.operator.stop(&name).await.unwrap();
    assert_ne!(view.state, MachineState::Stopped);
    assert_answered(
        world.operator.start_move(&crate::world::command("vm1", "h2"), "k").await,
        ErrorCode::Refused,
        "only a running machine",
    );
    world.h1.revive().await;
    world.beat().await;
    world.state_becomes(&name, MachineState::Stopped).await;
}
