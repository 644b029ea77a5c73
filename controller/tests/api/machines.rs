use crate::world::{World, assert_answered, command, create_request, until};
use futures::StreamExt as _;
use vmotion_api::{ApplyRequest, ConsoleQuery, CreateRequest, SnapshotRequest};
use vmotion_model::{ApiError, ByteSize, Demand, Epoch, ErrorCode, MachineState, Rule, SiteSpec, Verdict};

#[tokio::test(flavor = "multi_thread")]
async fn created_machine_runs_where_it_was_wanted_and_is_listed() {
    let world = World::start().await;
    let created = world.create("vm1", "dc2").await;
    assert_eq!((created.host, created.state, created.epoch), (world.h2.name(), MachineState::Running, Epoch::FIRST));
    let listed = world.operator.machines().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].pid, listed[0].console_bytes), (Some(42), 7));
    let owner = world.operator.owner(&created.name).await.unwrap();
    assert_eq!((owner.owner, owner.epoch), (world.h2.name(), Epoch::FIRST));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_what_is_wrong_and_nothing_remains() {
    let world = World::start().await;
    let mut bad = create_request("vm1", None);
    bad.spec.memory = ByteSize::mib(1);
    assert_answered(world.operator.create(&bad, "a").await, ErrorCode::Invalid, "memory 1 MiB is out of range");
    let nowhere = create_request("vm1", Some("dc9"));
    assert_answered(world.operator.create(&nowhere, "b").await, ErrorCode::NotFound, "there are h1 (dc1), h2 (dc2)");
    let mut large = create_request("vm1", Some("h1"));
    large.spec.memory = ByteSize::gib(8);
    assert_answered(
        world.operator.create(&large, "c").await,
        ErrorCode::Refused,
        "h1 needs 8 GiB, 4 GiB of 4 GiB free",
    );
    assert_eq!(world.operator.machines().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_never_promised_twice() {
    let world = World::start().await;
    let attempts = (0..6).map(|n| {
        let (operator, mut request) = (world.operator.clone(), create_request(&format!("vm{n}"), Some("h1")));
        request.spec.memory = ByteSize::gib(1);
        tokio::spawn(async move { operator.create(&request, &format!("key-{n}")).await })
    });
    let mut created = 0;
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            Ok(_) => created += 1,
            refused => assert_answered(refused, ErrorCode::Refused, "0 B of 4 GiB free"),
        }
    }
    assert_eq!(created, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_by_the_agent_is_passed_on_and_nothing_remains() {
    let world = World::start().await;
    let refusal = ApiError::new(ErrorCode::Invalid, "kernel /boot/probe is not there");
    world.h1.book(|book| book.refuse_start = Some(refusal));
    let request = create_request("vm1", Some("h1"));
    assert_answered(world.operator.create(&request, "k").await, ErrorCode::Invalid, "kernel /boot/probe is not there");
    assert_answered(world.operator.machine(&request.spec.name).await, ErrorCode::NotFound, "no machine vm1");
    assert_answered(world.operator.owner(&request.spec.name).await, ErrorCode::NotFound, "no machine vm1");
    world.h1.book(|book| book.refuse_start = None);
    assert!(world.operator.create(&request, "k").await.is_ok(), "the key must have been forgotten too");
}

#[tokio::test(flavor = "multi_thread")]
async fn same_key_creates_once_and_another_request_with_it_is_a_conflict() {
    let world = World::start().await;
    let request = create_request("vm1", Some("h1"));
    let first = world.operator.create(&request, "key").await.unwrap();
    let second = world.operator.create(&request, "key").await.unwrap();
    assert_eq!((first.name, first.host), (second.name, second.host));
    assert_eq!(world.h1.book(|book| book.starts), 1);
    assert_answered(
        world.operator.create(&create_request("vm2", None), "key").await,
        ErrorCode::Conflict,
        "Idempotency-Key",
    );
    assert_answered(world.operator.create(&request, "other").await, ErrorCode::Conflict, "vm1 exists already, on h1");
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_explains_and_creates_nothing() {
    let world = World::start().await;
    world.operator.cordon(&world.h1.name(), true).await.unwrap();
    let placement = world.operator.create_dry_run(&create_request("vm1", None)).await.unwrap();
    assert_eq!(placement.chosen, Some(world.h2.name()));
    assert!(serde_json::to_string(&placement).unwrap().contains("is cordoned"));
    assert_eq!(world.operator.machines().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_does_not_answer_is_asked_until_it_does() {
    let mut world = World::start().await;
    world.h1.die().await;
    let created = world.create("vm1", "h1").await;
    assert_eq!(created.state, MachineState::Starting);
    assert!(created.reason.unwrap().contains("does not answer"));
    world.h1.revive().await;
    world.beat().await;
    world.state_becomes(&created.name, MachineState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_that_never_started_can_be_removed_and_is_gone_once_its_host_answers() {
    let mut world = World::start().await;
    world.h1.die().await;
    let created = world.create("vm1", "h1").await;
    assert_answered(world.operator.stop(&created.name).await, ErrorCode::Conflict, "vmotion rm vm1");
    assert_answered(world.operator.remove(&created.name).await, ErrorCode::Unavailable, "removed as soon as it does");
    world.h1.revive().await;
    until("it is gone", async || world.operator.machine(&created.name).await.is_err()).await;
    assert!(world.h1.book(|book| book.machines.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn running_machine_is_removed_only_after_it_was_stopped() {
    let world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    assert_answered(world.operator.remove(&name).await, ErrorCode::Conflict, "vmotion stop vm1");
    assert_eq!(world.operator.stop(&name).await.unwrap().state, MachineState::Stopped);
    assert_eq!(world.operator.stop(&name).await.unwrap().state, MachineState::Stopped);
    world.operator.remove(&name).await.unwrap();
    assert_answered(world.operator.machine(&name).await, ErrorCode::NotFound, "vm1");
    assert!(world.h1.book(|book| book.machines.is_empty()));
    let again = world.operator.create(&create_request("vm1", Some("h2")), "a-new-key").await.unwrap();
    assert_eq!(again.host, world.h2.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_started_on_the_named_host_with_what_it_says() {
    let world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    world.operator.snapshot(&name, &SnapshotRequest { directory: "/snap".into() }).await.unwrap();
    let from = CreateRequest { from: Some("/snap".into()), ..create_request("vm2", None) };
    assert_answered(world.operator.create(&from, "a").await, ErrorCode::Invalid, "--on HOST");
    let on_h1 = CreateRequest { on: Some("h1".into()), ..from };
    let created = world.operator.create(&on_h1, "b").await.unwrap();
    assert_eq!((created.name.as_str(), created.spec.memory), ("vm2", ByteSize::mib(64)));
}

#[tokio::test(flavor = "multi_thread")]
async fn console_is_passed_through_with_its_offset() {
    let world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    let query = ConsoleQuery { offset: Some(4), follow: false };
    let (offset, stream) = world.operator.console(&name, query).await.unwrap();
    let bytes: Vec<u8> = stream.map(|chunk| chunk.unwrap().to_vec()).concat().await;
    assert_eq!((offset, bytes.as_slice()), (4, b"456789".as_slice()));
    world.operator.console_input(&name, "hello".into()).await.unwrap();
    assert_eq!(world.h1.book(|book| book.typed.clone()), b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_names_a_host_one_is_chosen_that_keeps_the_rules() {
    let world = World::start().await;
    let only_h2 = Rule {
        name: "web in two".to_owned(),
        machines: vec!["web-*".parse().unwrap()],
        demand: Demand::Pin { hosts: vec![world.h2.name()] },
    };
    let site = SiteSpec { rules: vec![only_h2], ..SiteSpec::default() };
    world.client_of("admin/bob").apply(&ApplyRequest { site, prune: false, dry_run: false }).await.unwrap();
    let create = async |name: &str| world.operator.create(&create_request(name, None), name).await.unwrap().host;
    assert_eq!(create("web-1").await, world.h2.name(), "of equals the first by name would be taken");
    assert_eq!(create("db-1").await, world.h1.name(), "the rule is not of it");

    let refused = world.operator.start_move(&command("web-1", "dc1"), "to-dc1").await.unwrap_err().to_string();
    assert!(refused.contains("h1 rule web in two would be broken"), "{refused}");
    let foreseen = world.operator.move_dry_run(&command("web-1", "h1")).await.unwrap();
    assert_eq!(foreseen.chosen, Some(world.h1.name()));
    let Verdict::Fits { reasons, .. } = &foreseen.judgements[0].verdict else { panic!("{foreseen:?}") };
    assert!(reasons.iter().any(|reason| reason.contains("web in two")), "{reasons:?}");
    assert_eq!(world.start_move("web-1", "h1").await.target, world.h1.name(), "who names a host has it");
}
