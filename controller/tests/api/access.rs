use crate::world::{World, assert_answered, command};
use std::time::Duration;
use vmotion_api::{ApplyRequest, CasRequest};
use vmotion_model::{Epoch, ErrorCode, SiteSpec};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn host_may_not_give_orders() {
    let world = World::start().await;
    let host = world.client_of("host/h1");
    let told = "the caller is spiffe://vmotion/host/h1";
    assert_answered(host.machines().await, ErrorCode::Forbidden, told);
    assert_answered(host.hosts().await, ErrorCode::Forbidden, told);
    assert_answered(host.cordon(&world.h2.name(), true).await, ErrorCode::Forbidden, told);
    assert_answered(host.start_move(&command("vm1", "h2"), "k").await, ErrorCode::Forbidden, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_so_much_and_no_more() {
    let world = World::start().await;
    let [viewer, operator, admin] = ["viewer/wall", "operator/alice", "admin/bob"].map(|uri| world.client_of(uri));
    let site = ApplyRequest { site: SiteSpec::default(), prune: false, dry_run: false };
    for client in [&viewer, &operator, &admin] {
        client.hosts().await.unwrap();
        client.policy().await.unwrap();
    }
    let told = "Only operators and admins may do this; the caller is spiffe://vmotion/viewer/wall";
    assert_answered(viewer.cordon(&world.h2.name(), true).await, ErrorCode::Forbidden, told);
    let view = world.create("vm1", "h1").await;
    assert_answered(viewer.console_input(&view.name, "x".into()).await, ErrorCode::Forbidden, told);
    operator.cordon(&world.h2.name(), true).await.unwrap();
    for client in [&viewer, &operator] {
        assert_answered(client.apply(&site).await, ErrorCode::Forbidden, "Only admins may do this");
    }
    admin.apply(&site).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn host_may_speak_only_for_itself() {
    let world = World::start().await;
    let as_h2 = world.h2.heartbeat();
    let answer = world.client_of("host/h1").heartbeat(&as_h2).await;
    assert_answered(answer, ErrorCode::Forbidden, "Host h1 may speak only for itself, not for h2");
    let by_operator = world.operator.heartbeat(&as_h2).await;
    assert_answered(by_operator, ErrorCode::Forbidden, "spiffe://vmotion/operator/alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_host_may_take_ownership_and_only_for_itself_one_epoch_on() {
    let world = World::start().await;
    let (name, id) = world.start_moving().await;
    let (h1, h2) = (world.client_of("host/h1"), world.client_of("host/h2"));
    let expected = h2.owner(&name).await.unwrap();
    let wanted = expected.handed_to(&world.h2.name());
    let request = CasRequest { expected: expected.clone(), wanted: wanted.clone() };

    let by_operator = world.operator.compare_and_set(&request, PATIENCE).await;
    assert_answered(by_operator, ErrorCode::Forbidden, "Only hosts may do this");
    assert_answered(h1.compare_and_set(&request, PATIENCE).await, ErrorCode::Forbidden, "not h2");
    let mut leap = request.clone();
    leap.wanted.epoch = Epoch(9);
    assert_answered(h2.compare_and_set(&leap, PATIENCE).await, ErrorCode::Invalid, "must be of epoch 2");
    let bystander = world.client_of("host/h3");
    let theft = CasRequest { expected: expected.clone(), wanted: expected.handed_to(&"h3".parse().unwrap()) };
    assert_answered(bystander.compare_and_set(&theft, PATIENCE).await, ErrorCode::Forbidden, "neither owns vm1");
    assert_eq!(h2.owner(&name).await.unwrap(), expected);

    world.switch_over(&id).await;
    assert_eq!(h2.compare_and_set(&request, PATIENCE).await.unwrap(), wanted, "the same again is won again");
    let reclaim = CasRequest { wanted: expected.handed_to(&world.h1.name()), expected };
    assert_eq!(h1.compare_and_set(&reclaim, PATIENCE).await.unwrap(), wanted, "the loser sees who won");
}

#[tokio::test(flavor = "multi_thread")]
async fn source_and_target_racing_for_the_record_have_one_winner() {
    let world = World::start().await;
    let (name, _) = world.start_moving().await;
    let (h1, h2) = (world.client_of("host/h1"), world.client_of("host/h2"));
    let expected = h1.owner(&name).await.unwrap();
    let request = |host| CasRequest { expected: expected.clone(), wanted: expected.handed_to(host) };
    let (one, two) = (request(&world.h1.name()), request(&world.h2.name()));
    let (first, second) = tokio::join!(h1.compare_and_set(&one, PATIENCE), h2.compare_and_set(&two, PATIENCE));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second);
    assert!(first == one.wanted || first == two.wanted);
}

/// Prints what a switch-over pays for the record; asserts nothing about time.
#[tokio::test(flavor = "multi_thread")]
async fn compare_and_set_works_many_times_over_one_connection() {
    let world = World::start().await;
    let name = world.create("vm1", "h1").await.name;
    let h1 = world.client_of("host/h1");
    let mut record = h1.owner(&name).await.unwrap();
    let mut micros = Vec::new();
    for _ in 0..500 {
        let wanted = record.handed_to(&world.h1.name());
        let request = CasRequest { expected: record, wanted: wanted.clone() };
        let begun = std::time::Instant::now();
        record = h1.compare_and_set(&request, PATIENCE).await.unwrap();
        micros.push(begun.elapsed().as_micros());
        assert_eq!(record, wanted);
    }
    micros.sort_unstable();
    println!("compare-and-set over TLS: p50 {} µs, p99 {} µs", micros[250], micros[495]);
}
