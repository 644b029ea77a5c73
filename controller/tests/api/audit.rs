//! Who did what is in the log, whole and in order.

use crate::world::{World, assert_answered, command, until};
use vmotion_api::{AuditEntry, AuditEvent, Chain, Seal};
use vmotion_model::ErrorCode;

async fn log(world: &World) -> Vec<AuditEntry> {
    let admin = world.client_of("admin/bob");
    let (mut entries, mut next) = (Vec::new(), 1);
    loop {
        let page = admin.audit(Some(next)).await.unwrap();
        let Some(last) = page.entries.last() else { return entries };
        next = last.number + 1;
        entries.extend(page.entries);
    }
}

fn orders(entries: &[AuditEntry]) -> Vec<(String, String, u16, String)> {
    let answer_of = |number: u64| {
        entries.iter().find_map(|entry| match &entry.event {
            AuditEvent::Answered { to, status, message } if *to == number => {
                Some((*status, message.clone().unwrap_or_default()))
            }
            _ => None,
        })
    };
    let orders = entries.iter().filter_map(|entry| match &entry.event {
        AuditEvent::Asked { method, path, .. } => {
            let (status, message) = answer_of(entry.number).unwrap_or_default();
            Some((entry.caller.rsplit_once('/')?.1.to_owned(), format!("{method} {path}"), status, message))
        }
        _ => None,
    });
    orders.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_is_written_down_with_who_gave_it_and_how_it_was_answered() {
    let mut world = World::start().await;
    let view = world.create("vm1", "h1").await;
    world.operator.hosts().await.unwrap();
    world.operator.start_move(&command("nobody", "h2"), "k1").await.unwrap_err();
    let mut rehearsal = command("vm1", "h2");
    rehearsal.dry_run = true;
    world.operator.move_dry_run(&rehearsal).await.unwrap();
    let viewer = world.client_of("viewer/wall");
    viewer.stop(&view.name).await.unwrap_err();
    for _ in 0..3 {
        world.client_of("host/h1").machines().await.unwrap_err();
        world.operator.audit(None).await.unwrap_err();
    }
    world.operator.console_input(&view.name, "secret".into()).await.unwrap();
    world.operator.console_input(&view.name, "secret".into()).await.unwrap();
    let entries = log(&world).await;
    let expected = [
        ("alice", "POST /v1/machines", 200, ""),
        ("alice", "POST /v1/moves", 404, "There is no machine nobody"),
        (
            "wall",
            "POST /v1/machines/vm1/stop",
            403,
            "Only operators and admins may do this; the caller is spiffe://vmotion/viewer/wall",
        ),
        ("alice", "POST /v1/machines/vm1/console", 0, ""),
    ];
    let expected =
        expected.map(|(who, what, status, message)| (who.to_owned(), what.to_owned(), status, message.to_owned()));
    assert_eq!(orders(&entries), expected);
    let denied: Vec<_> = entries
        .iter()
        .filter(|entry| matches!(entry.event, AuditEvent::Denied { .. }))
        .map(|entry| entry.caller.as_str())
        .collect();
    assert_eq!(denied, ["spiffe://vmotion/host/h1", "spiffe://vmotion/operator/alice"]);
    assert!(!serde_json::to_string(&entries).unwrap().contains("secret"));

    world.stop_controller().await;
    world.start_controller().await;
    world.beat().await;
    let admin = world.client_of("admin/bob");
    until("it says that it leads again", async || {
        log(&world)
            .await
            .iter()
            .filter(|entry| matches!(&entry.event, AuditEvent::Acted { what } if what.contains("leads")))
            .count()
            == 2
    })
    .await;
    let entries = log(&world).await;
    let mut chain = Chain::after(Seal::beginning());
    entries.iter().for_each(|entry| chain.follow(entry).unwrap());
    assert_eq!(*chain.last(), admin.audit(None).await.unwrap().last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_has_the_trace_of_its_order_and_hands_it_to_both_hosts() {
    let world = World::start().await;
    let (_, id) = world.start_moving().await;
    let operation = world.operation(&id).await;
    let trace = operation.trace.expect("every request has one");
    let entries = log(&world).await;
    let asked =
        entries.iter().find(|entry| matches!(&entry.event, AuditEvent::Asked { path, .. } if path == "/v1/moves"));
    assert_eq!(asked.unwrap().trace.as_ref(), Some(&trace));
    assert_eq!(world.h1.book(|book| book.outgoing[&id].trace.clone()), Some(trace.clone()));
    assert_eq!(world.h2.book(|book| book.incoming[&id].trace.clone()), Some(trace));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_admins_read_the_log() {
    let world = World::start().await;
    for uri in ["viewer/wall", "operator/alice", "host/h1"] {
        assert_answered(world.client_of(uri).audit(None).await, ErrorCode::Forbidden, "Only admins may do this");
    }
}
