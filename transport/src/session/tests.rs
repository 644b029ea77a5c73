use super::*;
use crate::{
    ExpectedPeer, Identity, Principal,
    pages::{BatchEncoder, FrameDecoder, KnownPages, PageHasher, PageSink, WireCost},
    pki::Authority,
    tuning::Tuning,
};
use bytes::Bytes;
use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    sync::Mutex,
};
use vmotion_model::{CpuModel, Epoch, MemoryLayout, MoveId};

pub(super) struct World {
    _directory: tempfile::TempDir,
    pub(super) source: Identity,
    pub(super) target: Identity,
    pub(super) stranger: Identity,
}

pub(super) fn host(name: &str) -> Principal {
    Principal::Host(name.parse().unwrap())
}

pub(super) fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    let identity = |name: &str| {
        let path = directory.path().join(name);
        authority.issue(&host(name), &path).unwrap();
        Identity::load(&path).unwrap()
    };
    let (source, target, stranger) = (identity("h1"), identity("h2"), identity("h3"));
    World { _directory: directory, source, target, stranger }
}

fn hello() -> Hello {
    Hello {
        version_min: WIRE_VERSION_MIN,
        version_max: WIRE_VERSION_MAX,
        features: BTreeSet::new(),
        page_size: 4096,
        layout: MemoryLayout::for_ram(4 << 20).unwrap(),
        cpu: CpuModel::default(),
        cpus: 1,
        state_version: 1,
        machine: "vm1".parse().unwrap(),
        move_id: MoveId::numbered(1),
        epoch: Epoch::FIRST,
        flows: 2,
    }
}

fn facts() -> TargetFacts {
    let Hello { layout, cpu, cpus, machine, move_id, .. } = hello();
    TargetFacts { features: BTreeSet::new(), layout, cpu, cpus, state_version_max: 1, machine, move_id, flows_max: 8 }
}

fn listen(world: &World, ticket: &MoveTicket) -> (TargetListener, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let expected = ExpectedPeer::Exactly(host("h1"));
    let listener = TargetListener::new(socket, &world.target, expected, ticket.clone(), Tuning::default()).unwrap();
    let address = listener.local_address().unwrap();
    (listener, address)
}

fn options<'a>(identity: &'a Identity, ticket: &'a MoveTicket, address: SocketAddr) -> ConnectOptions<'a> {
    ConnectOptions {
        address,
        local: None,
        identity,
        expected: ExpectedPeer::Exactly(host("h2")),
        ticket,
        tuning: Tuning { flows: 2, ..Tuning::default() },
    }
}

pub(super) struct Memory(pub(super) Mutex<Vec<u8>>);

impl PageSink for Memory {
    fn total_pages(&self) -> u64 {
        (self.0.lock().unwrap().len() / 4096) as u64
    }
    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        let first = usize::try_from(first).unwrap() * 4096;
        let len = usize::try_from(pages).unwrap() * 4096;
        use_bytes(&mut self.0.lock().unwrap()[first..first + len]);
    }
    fn zero_pages(&self, first: u64, pages: u64) {
        self.with_pages(first, pages, &mut |bytes| bytes.fill(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_messages_and_state_cross_a_session() {
    assert_eq!(cross_a_session(hello(), false).await, 0);
}

/// A frame that came twice would be refused, a byte that came in the wrong place as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_sent_again_at_once_arrive_once() {
    assert!(cross_a_session(hello(), true).await > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_does_not_know_copies_is_sent_none() {
    let old = Hello { version_max: WIRE_VERSION_COPIES - 1, ..hello() };
    assert_eq!(cross_a_session(old, true).await, 0);
}

/// Pages on two flows, a state, and a message each way; the bytes that were sent again.
async fn cross_a_session(hello: Hello, again: bool) -> u64 {
    let world = world();
    let ticket = MoveTicket::random();
    let (listener, address) = listen(&world, &ticket);
    let target_ticket = ticket.clone();
    let target = tokio::spawn(async move {
        let mut session = listener.accept(&facts(), Duration::from_secs(10)).await.unwrap();
        let memory = std::sync::Arc::new(Memory(Mutex::new(vec![0; 4 << 20])));
        let hasher = PageHasher::new(&target_ticket);
        let flows: Vec<_> = session
            .flows
            .drain(..)
            .map(|flow| {
                let (memory, hasher) = (std::sync::Arc::clone(&memory), hasher.clone());
                tokio::spawn(async move { flow.run(FrameDecoder::new(hasher), &*memory, |_| ()).await.unwrap() })
            })
            .collect();
        let mut pages = 0;
        for flow in flows {
            pages += flow.await.unwrap();
        }
        let mut receiver = session.take_receiver().unwrap();
        let state = receiver.state_receiver().receive().await.unwrap();
        let question: Option<String> = receiver.receive().await.unwrap();
        session.sender.send(&question.unwrap().len()).await.unwrap();
        session.sender.finish(Duration::from_secs(1)).await;
        let bytes = memory.0.lock().unwrap().clone();
        (pages, state.len(), bytes)
    });
    let mut session = SourceSession::connect(options(&world.source, &ticket, address), &hello).await.unwrap();
    assert_eq!(session.flows.len(), 2);
    session.copies.want(again);
    let hasher = PageHasher::new(&ticket);
    let known = std::sync::Arc::new(KnownPages::all_zero(1024, &hasher));
    for (number, flow) in (0u64..).zip(session.flows.drain(..)) {
        let (hasher, known) = (hasher.clone(), std::sync::Arc::clone(&known));
        tokio::task::spawn_blocking(move || {
            let mut encoder = BatchEncoder::new(hasher, None);
            for index in (0..1024u64).filter(|index| index % 2 == number) {
                encoder.push(index, &known, |page| page.fill(u8::try_from(index % 251).unwrap()));
                if encoder.is_full() {
                    let [head, payload] = encoder.finish(&WireCost::default()).unwrap();
                    flow.send_blocking([head, payload, Bytes::new()]).unwrap();
                }
            }
            if let Some([head, payload]) = encoder.finish(&WireCost::default()) {
                flow.send_blocking([head, payload, Bytes::new()]).unwrap();
            }
            flow
        })
        .await
        .unwrap()
        .finish()
        .await
        .unwrap();
    }
    session.sender.send_state(vec![1; 100_000]).await.unwrap();
    session.sender.send(&"four").await.unwrap();
    assert_eq!(session.receiver.receive::<usize>().await.unwrap(), Some(4));
    let (pages, state, bytes) = target.await.unwrap();
    assert_eq!((pages, state), (1024 - 5, 100_000), "pages 0, 251, 502, 753 and 1004 are zero and need no frame");
    for (index, page) in bytes.chunks(4096).enumerate() {
        assert!(page.iter().all(|byte| usize::from(*byte) == index % 251), "page {index}");
    }
    session.copies.bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_or_a_wrong_ticket_is_turned_away_and_the_source_still_gets_in() {
    let world = world();
    let ticket = MoveTicket::random();
    let (listener, address) = listen(&world, &ticket);
    let target = tokio::spawn(async move { listener.accept(&facts(), Duration::from_secs(20)).await.map(|s| s.hello) });
    let wrong = MoveTicket::random();
    assert!(SourceSession::connect(options(&world.source, &wrong, address), &hello()).await.is_err());
    assert!(SourceSession::connect(options(&world.stranger, &ticket, address), &hello()).await.is_err());
    let session = SourceSession::connect(options(&world.source, &ticket, address), &hello()).await;
    assert!(session.is_ok(), "{session:?}");
    assert_eq!(target.await.unwrap().unwrap(), hello());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_does_not_talk_to_a_host_it_did_not_ask_for() {
    let world = world();
    let ticket = MoveTicket::random();
    let (listener, address) = listen(&world, &ticket);
    tokio::spawn(async move { listener.accept(&facts(), Duration::from_secs(5)).await.map(|s| s.hello) });
    let mut options = options(&world.source, &ticket, address);
    options.expected = ExpectedPeer::Exactly(host("h9"));
    let error = SourceSession::connect(options, &hello()).await.unwrap_err();
    assert!(matches!(error, SessionError::Connect { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incompatible_source_hears_which_field_differs() {
    let world = world();
    let ticket = MoveTicket::random();
    let (listener, address) = listen(&world, &ticket);
    tokio::spawn(async move { listener.accept(&facts(), Duration::from_secs(5)).await.map(|s| s.hello) });
    let mut hello = hello();
    hello.cpus = 3;
    let error = SourceSession::connect(options(&world.source, &ticket, address), &hello).await.unwrap_err();
    let SessionError::Refused(refusal) = error else { panic!("{error:?}") };
    assert_eq!(refusal.detail, "cpus: source has 3, target 1");
}
