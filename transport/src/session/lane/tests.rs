//! The demand lane alone: both ends on loopback, sometimes with a relay between them that loses datagrams.

use super::*;
use crate::{
    ExpectedPeer, Identity, Tuning,
    direct::Relay,
    pages::{BatchEncoder, Codec, FrameDecoder, KnownPages, PageHasher, WireCost},
    session::{
        ALPN, DemandLane, DemandServer, LaneKind, MoveTicket, Opening, control, demand_queue,
        tests::{Memory, World, host, world},
    },
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::Endpoint;
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

const PAGES: u64 = 1024;

fn tuning() -> Tuning {
    Tuning::default().toward([127, 0, 0, 1].into())
}

fn listen(world: &World, ticket: &MoveTicket, tuning: Tuning) -> (DemandLane, Opened, SocketAddr) {
    let mut tls = world.target.server_config().unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(tuning.transport());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let expected = ExpectedPeer::Exactly(host("h1"));
    let door = Door { expected, ticket: ticket.clone(), patience: Duration::from_secs(5) };
    let (lane, opened) = Lane::listen(socket, tuning.endpoint(), config, door).unwrap();
    (DemandLane::new(lane), opened, address)
}

fn client(identity: &Identity, tuning: Tuning) -> ClientConfig {
    let mut tls = identity.client_config(ExpectedPeer::Exactly(host("h2"))).unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(tuning.transport());
    config
}

async fn dial(
    identity: &Identity,
    ticket: &MoveTicket,
    kind: LaneKind,
    address: SocketAddr,
    tuning: Tuning,
) -> Result<DemandServer, SessionError> {
    let config = client(identity, tuning);
    let opening = control::framed(&Opening { ticket: *ticket.as_bytes(), lane: kind }).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (lane, opened) = Lane::dial(socket, tuning.endpoint(), config, address, opening).unwrap();
    opened.await.unwrap()?;
    Ok(DemandServer::new(lane))
}

/// What page `index` holds at the source.
fn content(index: u64, page: &mut [u8]) {
    page.fill(u8::try_from(index % 251).unwrap() + 1);
}

/// Answers demands for pages that there are, each once.
fn answers(ticket: &MoveTicket) -> impl FnMut(u64, &mut VecDeque<Bytes>) + Send + 'static {
    let hasher = PageHasher::new(ticket);
    let known = KnownPages::all_zero(PAGES, &hasher);
    let mut encoder = BatchEncoder::new(hasher, Some(Codec::Raw));
    move |index, out| {
        if index < PAGES {
            encoder.push(index, &known, |page| content(index, page));
            out.extend(encoder.finish(&WireCost::default()).into_iter().flatten());
        }
    }
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory(Mutex::new(vec![0; usize::try_from(PAGES * 4096).unwrap()])))
}

fn is_here(memory: &Memory, index: u64) -> bool {
    let at = usize::try_from(index * 4096).unwrap();
    let mut wanted = [0; 4096];
    content(index, &mut wanted);
    memory.0.lock().unwrap()[at..at + 4096] == wanted
}

fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Every page is asked for and comes, in bursts of `burst`, by a path that loses one datagram in `loss`.
async fn all_pages_come(burst: u64, loss: u64) {
    let (world, ticket) = (world(), MoveTicket::random());
    let (lane, opened, target) = listen(&world, &ticket, tuning());
    let (relay, address) = Relay::open(target);
    relay.loses_one_in.store(loss, Ordering::Relaxed);
    let server = dial(&world.source, &ticket, LaneKind::Demand, address, tuning()).await.unwrap();
    let counted = server.control();
    tokio::spawn(server.serve(answers(&ticket)));
    opened.await.unwrap().unwrap();
    let (sender, queue) = demand_queue().unwrap();
    let memory = memory();
    lane.follow(Box::new(queue), FrameDecoder::new(PageHasher::new(&ticket)), Arc::clone(&memory) as _);
    for first in (0..PAGES).step_by(usize::try_from(burst).unwrap()) {
        let pages = first..(first + burst).min(PAGES);
        pages.clone().for_each(|page| sender.ask(page));
        assert!(eventually(|| pages.clone().all(|page| is_here(&memory, page))), "pages {pages:?} came");
    }
    let figures = counted.figures();
    assert!(figures.is_open, "{figures:?}");
    assert!(figures.sent_bytes > PAGES * 4096, "{figures:?}");
    assert!(loss == 0 || figures.lost_packets > 0, "{figures:?}");
}

/// A lane, open at both ends.
async fn open(ticket: &MoveTicket) -> (DemandLane, DemandServer) {
    let world = world();
    let (lane, opened, address) = listen(&world, ticket, tuning());
    let server = dial(&world.source, ticket, LaneKind::Demand, address, tuning()).await.unwrap();
    opened.await.unwrap().unwrap();
    (lane, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_come_one_by_one() {
    all_pages_come(1, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_come_many_at_a_time() {
    all_pages_come(512, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_come_although_datagrams_are_lost() {
    all_pages_come(64, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_this_moves_source_is_turned_away_and_the_source_gets_in() {
    let (world, ticket) = (world(), MoveTicket::random());
    let (_lane, mut opened, address) = listen(&world, &ticket, tuning());
    let wrong = MoveTicket::random();
    for (identity, ticket, kind, why) in [
        (&world.stranger, &ticket, LaneKind::Demand, "the certificate is not that of this move's source"),
        (&world.source, &wrong, LaneKind::Demand, "the ticket is not that of this move"),
        (&world.source, &ticket, LaneKind::Control, "the opening does not fit its stream"),
    ] {
        // A client is connected before the other end has looked at its certificate.
        let refused = match dial(identity, ticket, kind, address, tuning()).await {
            Ok(server) => server.serve(|_, _| ()).await,
            Err(error) => Err(error),
        };
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
        assert!(opened.try_recv().is_err(), "the lane is not open");
    }
    let _server = dial(&world.source, &ticket, LaneKind::Demand, address, tuning()).await.unwrap();
    opened.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_only_knock_do_not_keep_the_source_out() {
    let (world, ticket) = (world(), MoveTicket::random());
    let (_lane, opened, address) = listen(&world, &ticket, tuning());
    for _ in 0..40 {
        let mut caller = Endpoint::new(Arc::new(tuning().endpoint()), None, true, None);
        let (_, mut connection) =
            caller.connect(Instant::now(), client(&world.source, tuning()), address, "x").unwrap();
        let mut packet = Vec::new();
        let transmit = connection.poll_transmit(Instant::now(), 1, &mut packet).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&packet[..transmit.size], address).unwrap();
    }
    let _server = dial(&world.source, &ticket, LaneKind::Demand, address, tuning()).await.unwrap();
    opened.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_source_does_not_get_the_lane() {
    let (world, ticket) = (world(), MoveTicket::random());
    let (_lane, opened, address) = listen(&world, &ticket, tuning());
    let first = dial(&world.source, &ticket, LaneKind::Demand, address, tuning()).await.unwrap();
    opened.await.unwrap().unwrap();
    assert!(dial(&world.source, &ticket, LaneKind::Demand, address, tuning()).await.is_err());
    assert!(first.control().figures().is_open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_an_error_once_the_silence_is_too_long() {
    let (world, ticket) = (world(), MoveTicket::random());
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tuning = Tuning { silence_max: Duration::from_millis(300), ..tuning() };
    let failed = dial(&world.source, &ticket, LaneKind::Demand, silent.local_addr().unwrap(), tuning).await;
    assert!(matches!(failed, Err(SessionError::Connect { .. })), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_vanishes_is_noticed_and_one_that_is_only_quiet_is_not() {
    let (world, ticket) = (world(), MoveTicket::random());
    let tuning = Tuning { silence_max: Duration::from_secs(1), ..tuning() };
    let (lane, opened, target) = listen(&world, &ticket, tuning);
    let (relay, address) = Relay::open(target);
    let server = dial(&world.source, &ticket, LaneKind::Demand, address, tuning).await.unwrap();
    opened.await.unwrap().unwrap();
    let (source, target) = (server.control(), lane.control());
    tokio::time::sleep(tuning.silence_max * 2).await;
    assert!(source.figures().is_open && target.figures().is_open, "both keep it alive");
    relay.cut.store(true, Ordering::Relaxed);
    let lost = server.serve(|_, _| ()).await;
    assert!(matches!(lost, Err(SessionError::Lost(_))), "{lost:?}");
    assert!(!source.figures().is_open);
    assert!(eventually(|| !target.figures().is_open));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_dropped_ends_at_both_ends() {
    let ticket = MoveTicket::random();
    let (lane, server) = open(&ticket).await;
    let (sender, queue) = demand_queue().unwrap();
    let memory = memory();
    lane.follow(Box::new(queue), FrameDecoder::new(PageHasher::new(&ticket)), Arc::clone(&memory) as _);
    sender.ask(1);
    let served = tokio::spawn(server.serve(answers(&ticket)));
    assert!(eventually(|| is_here(&memory, 1)));
    let thread = Arc::downgrade(&lane.control().0);
    drop(lane);
    assert!(served.await.unwrap().is_err());
    assert!(eventually(|| thread.strong_count() == 0), "the lane's thread has ended");
    assert_eq!(Arc::strong_count(&memory), 1, "and what it used is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_asked_for_before_anybody_answers_is_answered() {
    let ticket = MoveTicket::random();
    let (lane, server) = open(&ticket).await;
    let (sender, queue) = demand_queue().unwrap();
    sender.ask(7);
    let memory = memory();
    lane.follow(Box::new(queue), FrameDecoder::new(PageHasher::new(&ticket)), Arc::clone(&memory) as _);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!is_here(&memory, 7));
    tokio::spawn(server.serve(answers(&ticket)));
    assert!(eventually(|| is_here(&memory, 7)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_asks_for_what_there_is_not_gets_nothing_and_the_next_answer() {
    let ticket = MoveTicket::random();
    let (lane, server) = open(&ticket).await;
    let (sender, queue) = demand_queue().unwrap();
    let memory = memory();
    lane.follow(Box::new(queue), FrameDecoder::new(PageHasher::new(&ticket)), Arc::clone(&memory) as _);
    tokio::spawn(server.serve(answers(&ticket)));
    [u64::MAX, PAGES, 1 << 63].iter().for_each(|page| sender.ask(*page));
    (0..100_000).for_each(|page| sender.ask(PAGES + page));
    sender.ask(3);
    assert!(eventually(|| is_here(&memory, 3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_sends_no_frames_loses_the_lane() {
    let ticket = MoveTicket::random();
    let (lane, server) = open(&ticket).await;
    let (sender, queue) = demand_queue().unwrap();
    lane.follow(Box::new(queue), FrameDecoder::new(PageHasher::new(&ticket)), memory() as _);
    sender.ask(3);
    let lost = server.serve(|_, out| out.push_back(Bytes::from_static(&[0xff; 4096]))).await;
    assert!(lost.unwrap_err().to_string().contains("Page stream is refused"));
}
