use crate::world::{World, assert_answered, command, create_request, until};
use futures::StreamExt as _;
use vmotion_api::Operation;
use vmotion_controller::store::{Change, Entry, Store as _, Transaction, redb::RedbStore};
use vmotion_model::{ApiError, Epoch, ErrorCode, MachineState, MoveOutcome, MovePhase, Placement, Verdict};

#[tokio::test(flavor = "multi_thread")]
async fn moved_machine_is_shown_at_its_target_with_the_summary() {
    let world = World::start().await;
    let (name, id) = world.start_moving().await;
    let running = world.operator.machine(&name).await.unwrap();
    assert_eq!((running.move_id.as_ref(), &running.host), (Some(&id), &world.h1.name()));

    world.switch_over(&id).await;
    world.h1.report_outcome(&id, MoveOutcome::Moved);

    let operation = world.finished(&id).await;
    assert_eq!(operation.outcome, Some(MoveOutcome::Moved));
    assert_eq!(operation.summary.unwrap().rounds, 3);
    assert_eq!(operation.progress.unwrap().phase, MovePhase::Finished);
    let moved = world.operator.machine(&name).await.unwrap();
    assert_eq!((moved.host, moved.epoch, moved.state), (world.h2.name(), Epoch(2), MachineState::Running));
    assert_eq!(moved.move_id, None);
    assert_eq!(world.operator.moves().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_when_is_shown_to_whoever_asks_about_one_move() {
    let mut world = World::start().await;
    let (_, id) = world.start_moving().await;
    world.switch_over(&id).await;
    world.h1.report_outcome(&id, MoveOutcome::Moved);
    world.finished(&id).await;
    let events = |operation: Operation| operation.summary.unwrap().timeline.events.len();
    assert_eq!(world.operator.moves().await.unwrap().into_iter().map(events).collect::<Vec<_>>(), [0]);
    assert_eq!(events(world.operation(&id).await), 1);
    world.stop_controller().await;
    world.start_controller().await;
    assert_eq!(events(world.operation(&id).await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_moves_there_and_back_again() {
    let world = World::start().await;
    let (_, id) = world.start_moving().await;
    world.switch_over(&id).await;
    world.h1.report_outcome(&id, MoveOutcome::Moved);
    world.finished(&id).await;
    let back = world.start_move("vm1", "h1").await;
    assert_eq!((back.id.as_str(), back.source, back.target), ("m-000002", world.h2.name(), world.h1.name()));
}

#[tokio::test(flavor = "multi_thread")]
async fn ticket_reaches_both_ends_and_nobody_else() {
    let world = World::start().await;
    let (_, id) = world.start_moving().await;
    let source: String = world.h1.book(|book| book.outgoing[&id].ticket.clone()).into();
    let target: String = world.h2.book(|book| book.incoming[&id].ticket.clone()).into();
    assert_eq!(source, target);
    let shown = serde_json::to_string(&world.operator.moves().await.unwrap()).unwrap();
    assert!(!shown.contains(&source) && !shown.contains("ticket"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_moves_are_refused_with_what_to_do() {
    let world = World::start().await;
    world.create("vm1", "h1").await;
    let attempt =
        async |name: &str, to: &str| world.operator.start_move(&command(name, to), &format!("{name}{to}")).await;
    assert_answered(attempt("vm9", "h2").await, ErrorCode::NotFound, "no machine vm9");
    assert_answered(attempt("vm1", "mars").await, ErrorCode::NotFound, "h1 (dc1), h2 (dc2)");
    assert_answered(attempt("vm1", "h1").await, ErrorCode::Conflict, "vm1 is on h1 already");
    assert_answered(attempt("vm1", "dc1").await, ErrorCode::Conflict, "vm1 is in dc1 already, on h1");
    world.operator.cordon(&world.h2.name(), true).await.unwrap();
    assert_answered(attempt("vm1", "h2").await, ErrorCode::Refused, "h2 is cordoned");
    world.operator.cordon(&world.h2.name(), false).await.unwrap();
    world.operator.stop(&"vm1".parse().unwrap()).await.unwrap();
    assert_answered(attempt("vm1", "h2").await, ErrorCode::Refused, "only a running machine can be moved");
    assert_eq!(world.operator.moves().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn moving_machine_can_neither_be_moved_again_nor_stopped_nor_removed() {
    let world = World::start().await;
    let (name, _) = world.start_moving().await;
    let again = world.operator.start_move(&command("vm1", "h2"), "again").await;
    assert_answered(again, ErrorCode::Conflict, "being moved by m-000001 already");
    assert_answered(world.operator.stop(&name).await, ErrorCode::Conflict, "vmotion cancel m-000001");
    assert_answered(world.operator.remove(&name).await, ErrorCode::Conflict, "vmotion cancel m-000001");
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_moves_once() {
    let world = World::start().await;
    let (_, id) = world.start_moving().await;
    assert_eq!(world.start_move("vm1", "dc2").await.id, id);
    let other = world.operator.start_move(&command("vm1", "h2"), "move-vm1-dc2").await;
    assert_answered(other, ErrorCode::Conflict, "which made m-000001");
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_judges_every_host_and_begins_nothing() {
    let world = World::start().await;
    world.create("vm1", "h1").await;
    let Placement { chosen, judgements } = world.operator.move_dry_run(&command("vm1", "dc2")).await.unwrap();
    assert_eq!(chosen, Some(world.h2.name()));
    let source = judgements.iter().find(|judgement| judgement.host == world.h1.name()).unwrap();
    assert!(matches!(&source.verdict, Verdict::Rejected { reasons } if reasons.len() == 2), "{source:?}");
    assert_eq!(world.operator.moves().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn target_that_cannot_prepare_rolls_back_in_its_own_words_and_the_source_never_hears() {
    let world = World::start().await;
    world.create("vm1", "h1").await;
    world
        .h2
        .book(|book| book.refuse_incoming = Some(ApiError::new(ErrorCode::Invalid, "disk /d.img cannot be opened")));
    let operation = world.finished(&world.start_move("vm1", "h2").await.id).await;
    assert_eq!(operation.outcome, Some(MoveOutcome::RolledBack { reason: "disk /d.img cannot be opened".into() }));
    assert!(world.h1.book(|book| book.outgoing.is_empty() && book.cancelled.is_empty()));
    world.h2.book(|book| book.refuse_incoming = None);
    world.operator.start_move(&command("vm1", "h2"), "second").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_move_is_cancelled_at_the_source_and_ends_as_the_source_says() {
    let world = World::start().await;
    let (name, id) = world.start_moving().await;
    let (cancelled, ()) = tokio::join!(world.operator.cancel(&id), async {
        until("the source was told", async || world.h1.book(|book| book.cancelled.contains(&id))).await;
        world.h1.report_outcome(&id, MoveOutcome::Cancelled);
    });
    cancelled.unwrap();
    assert_eq!(world.finished(&id).await.outcome, Some(MoveOutcome::Cancelled));
    assert!(world.h2.book(|book| book.cancelled.contains(&id)), "the target must clean up");
    assert_answered(world.operator.cancel(&id).await, ErrorCode::Conflict, "already finished: cancelled");
    assert_eq!(world.operator.machine(&name).await.unwrap().host, world.h1.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_that_comes_too_late_is_refused_in_the_words_of_the_source() {
    let world = World::start().await;
    let (_, id) = world.start_moving().await;
    world.h1.book(|book| book.refuse_cancel = Some(ApiError::new(ErrorCode::Conflict, "it is switching over")));
    assert_answered(world.operator.cancel(&id).await, ErrorCode::Conflict, "it is switching over");
    assert_eq!(world.operation(&id).await.outcome, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_begin_with_the_present_and_end_with_the_outcome() {
    let world = World::start().await;
    let (_, id) = world.start_moving().await;
    let mut stream = world.operator.move_events(&id).await.unwrap();
    let mut text = String::new();
    while !text.contains("\n\n") {
        text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    world.switch_over(&id).await;
    world.h1.report_outcome(&id, MoveOutcome::Moved);
    while let Some(chunk) = stream.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    let events: Vec<Operation> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!(events.first().unwrap().outcome, None);
    assert_eq!(events.last().unwrap().outcome, Some(MoveOutcome::Moved));
    assert_eq!(events.iter().filter(|event| event.outcome.is_some()).count(), 1);

    let mut after = world.operator.move_events(&id).await.unwrap();
    let only = after.next().await.unwrap().unwrap();
    assert!(std::str::from_utf8(&only).unwrap().contains("\"moved\""));
    assert!(after.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_move_keeps_memory_promised_on_both_hosts() {
    let world = World::start().await;
    world.start_moving().await;
    for host in ["h1", "h2"] {
        let mut large = create_request(&format!("large-{host}"), Some(host));
        large.spec.memory = vmotion_model::ByteSize::mib(3100);
        assert_answered(world.operator.create(&large, host).await, ErrorCode::Refused, "3 GiB of 4 GiB free");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_move_after_a_thousand_begins_and_the_oldest_are_forgotten() {
    let mut world = World::start().await;
    let (_, id) = world.start_moving().await;
    world.switch_over(&id).await;
    world.h1.report_outcome(&id, MoveOutcome::Moved);
    world.finished(&id).await;
    world.stop_controller().await;
    // As a thousand such moves would have left it.
    let store = RedbStore::open(&world.path("data").join("controller.redb")).unwrap();
    let (entries, _) = store.list("").await.unwrap();
    for number in 2..=1000 {
        let copied = entries.iter().filter_map(|Entry { key, value, .. }| {
            let next = format!("m-{number:06}");
            let key =
                if key.starts_with("once-move/") { format!("{key}-{number}") } else { key.replace(id.as_str(), &next) };
            let known = entries.iter().any(|entry| entry.key == key);
            let value = String::from_utf8(value.clone()).unwrap().replace(id.as_str(), &next);
            (!known).then(|| Change::Put(key, value.into_bytes()))
        });
        store.commit(Transaction { compares: Vec::new(), changes: copied.collect() }).await.unwrap();
    }
    let counter = Change::Put("counters/moves".to_owned(), b"1000".to_vec());
    store.commit(Transaction { compares: Vec::new(), changes: vec![counter] }).await.unwrap();
    let count = async |prefix: &str, store: &RedbStore| store.list(prefix).await.unwrap().0.len();
    assert_eq!((count("moves/", &store).await, count("once-move/", &store).await), (1000, 1000));
    assert_eq!(count("timelines/", &store).await, 1000);
    drop(store);
    world.start_controller().await;
    world.beat().await;
    let back = world.start_move("vm1", "h1").await;
    assert_eq!(back.id.as_str(), "m-001001");
    let moves = world.operator.moves().await.unwrap();
    assert!(moves.len() < 1000 && moves.iter().all(|operation| operation.id != id), "{}", moves.len());
    world.stop_controller().await;
    let store = RedbStore::open(&world.path("data").join("controller.redb")).unwrap();
    assert!(count("once-move/", &store).await < 1000 && count("timelines/", &store).await < 1000);
}
