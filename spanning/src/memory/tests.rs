//! A node and a peer that says anything at all: no panic, no failure of the node, and no byte of memory that was granted to nobody.

use super::wire::tests::packet;
use super::wire::{Lane, encode};
use super::*;
use crate::directory::{
    Access, Answer, Content, HostId, HostSet, Message, Order, PAGES_PER_SHARD, Reply, Request, Route, ShardNumber, Txn,
    Version,
};
use proptest::prelude::*;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmotion_model::{Epoch, MemoryLayout, PageNumber};
use vmotion_pager::{GuestRegion, PagerError};
use vmotion_sys::memory::{AlignedMapping, data_ranges};
use vmotion_transport::mesh::{MeshUser, Outgoing, Peer, StreamNumber};

const PAGES: u64 = 64 << 8;

/// Nobody is at the other end.
#[derive(Default)]
struct Sink {
    sent: Vec<(u8, Vec<u8>)>,
}

impl Outgoing for Sink {
    fn send(&mut self, _: Peer, stream: StreamNumber, write: &mut dyn FnMut(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.sent.push((stream.0, bytes));
    }

    fn waiting(&self, _: Peer, _: StreamNumber) -> usize {
        0
    }
}

struct Nobody;

impl ShardRegistry for Nobody {
    fn claim(&mut self, _: ShardNumber, _: Route) {}
}

struct Rig {
    node: MemoryNode,
    control: NodeControl,
    memfd: File,
    sent: Sink,
    /// How many messages were said in each lane.
    numbers: [u64; 4],
    /// The node said that it cannot go on.
    failures: Arc<AtomicBool>,
    _mapping: AlignedMapping,
}

fn host(number: u8) -> HostId {
    HostId::new(number).unwrap()
}

fn rig(test: &str) -> Option<Rig> {
    rig_with(test, false)
}

fn rig_with(test: &str, audit: bool) -> Option<Rig> {
    let memfd = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    rustix::fs::ftruncate(&memfd, PAGES * 4096).unwrap();
    let mapping = AlignedMapping::new(&memfd, 0, usize::try_from(PAGES).unwrap() * 4096).unwrap();
    let address = mapping.address().expose_provenance();
    let route =
        |shard: u64| (ShardNumber(shard), Route { home: host(u8::try_from(shard % 3).unwrap()), epoch: Epoch::FIRST });
    let failures = Arc::new(AtomicBool::new(false));
    let failed = Arc::clone(&failures);
    let config = NodeConfig {
        host: host(0),
        hosts: HostSet::from_bits(0b111),
        layout: MemoryLayout::for_ram(PAGES * 4096).unwrap(),
        memfd: &memfd,
        regions: &[GuestRegion { address, first: 0, pages: PAGES, file_offset: 0 }],
        routes: &mut (0..PAGES / PAGES_PER_SHARD).map(route),
        first_stream: 1,
        registry: Box::new(Nobody),
        on_failure: Box::new(move |_| failed.store(true, Ordering::Relaxed)),
        measures: false,
        audit,
    };
    match MemoryNode::new(config) {
        Ok((mut node, control)) => {
            let mut sent = Sink::default();
            node.connected(Peer(1), &mut sent);
            Some(Rig { node, control, memfd, sent, numbers: [0; 4], failures, _mapping: mapping })
        }
        Err(NodeError::Memory(error @ (PagerError::NotPermitted(_) | PagerError::Lacks { .. }))) => {
            println!("SKIPPED {test}: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

impl Rig {
    /// Host 1 says it, properly numbered. Was it taken?
    fn hear(&mut self, packet: &super::wire::Packet) -> bool {
        let lane = packet.lane();
        let number = self.numbers[lane.index()];
        self.numbers[lane.index()] += 1;
        let mut bytes = Vec::new();
        encode(&mut bytes, (Lane::Reply, 0), Some((number, packet)));
        self.hear_bytes(1 + lane as u8, &bytes)
    }

    fn hear_bytes(&mut self, stream: u8, bytes: &[u8]) -> bool {
        self.node.received(Peer(1), StreamNumber(stream), bytes, &mut self.sent).is_ok()
    }

    fn assert_untouched(&self) {
        assert!(self.control.failure().is_none());
        assert_eq!(data_ranges(&self.memfd, 0..PAGES * 4096).unwrap(), []);
    }
}

fn bytes(value: u8) -> Content<PageBytes> {
    Content::Bytes(PageBytes::copy_of(&[value; 4096]).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_a_peer_says_touches_no_memory(packets in proptest::collection::vec(packet(), 1..200)) {
        if let Some(mut rig) = rig("whatever_a_peer_says_touches_no_memory") {
            for packet in packets {
                rig.hear(&packet);
                rig.node.woken(&mut rig.sent);
            }
            rig.assert_untouched();
        }
    }
}

#[test]
fn garbage_touches_no_memory() {
    let Some(mut rig) = rig("garbage_touches_no_memory") else { return };
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20_000 {
        let length = next() % 80;
        let mut message: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[0]).collect();
        // Half of it begins like something.
        if next() % 2 == 0 && message.len() > 2 {
            message[0] %= 5;
            message[1] %= 5;
        }
        let stream = next().to_le_bytes()[0] % 16;
        rig.hear_bytes(stream, &message);
    }
    rig.assert_untouched();
}

#[test]
fn what_was_not_asked_is_refused() {
    let Some(mut rig) = rig("what_was_not_asked_is_refused") else { return };
    let page = |message| super::wire::Packet::Page(PageNumber(512), message);
    let txn = Txn { epoch: Epoch::FIRST, number: 1 };
    let grant = Reply::Grant { txn, access: Access::Write, version: Version(1), content: Some(bytes(7)) };
    assert!(!rig.hear(&page(Message::Reply(grant))), "a grant that answers nothing");
    assert!(!rig.hear(&page(Message::Reply(Reply::PutAck))));
    assert!(!rig.hear(&page(Message::Reply(Reply::Lost))));
    assert!(rig.hear(&page(Message::Answer { txn, answer: Answer::AckData(bytes(7)) })), "late: the home has gone");
    let here = super::wire::Packet::Page(PageNumber(0), Message::Answer { txn, answer: Answer::AckData(bytes(7)) });
    assert!(!rig.hear(&here), "a transaction that was not begun");
    let word = Route { home: host(2), epoch: Epoch(2) };
    assert!(!rig.hear(&super::wire::Packet::Word(ShardNumber(0), word)), "the word of somebody else");
    assert!(rig.hear(&page(Message::Order { txn, order: Order::Inv })), "late, and answered");
    rig.assert_untouched();
    // A message that came, comes again, and one that is missing.
    let mut again = Vec::new();
    encode(&mut again, (Lane::Reply, 0), Some((0, &page(Message::Order { txn, order: Order::Inv }))));
    let before = rig.sent.sent.len();
    assert!(rig.hear_bytes(1, &again));
    assert_eq!(rig.sent.sent.len(), before, "it is not answered twice");
    let mut gap = Vec::new();
    encode(&mut gap, (Lane::Reply, 0), Some((9, &page(Message::Order { txn, order: Order::Inv }))));
    assert!(!rig.hear_bytes(1, &gap));
    assert!(rig.node.received(Peer(0), StreamNumber(1), &again, &mut rig.sent).is_err(), "this host itself");
    assert!(rig.node.received(Peer(200), StreamNumber(1), &again, &mut rig.sent).is_err(), "nobody");
}

fn waiter() -> spot::Waiter {
    spot::Waiter { thread: 1, access: Access::Write, since: std::time::Instant::now() }
}

#[test]
fn nobody_but_its_home_orders_a_page_away() {
    let Some(mut rig) = rig("nobody_but_its_home_orders_a_page_away") else { return };
    // Its home is here, so it is granted in one pass.
    let touched = rig.node.touched(PageNumber(0), waiter(), &mut rig.sent);
    assert!(touched.is_ok());
    rig.node.woken(&mut rig.sent);
    assert_eq!(rig.node.spots.get_mut(PageNumber(0)).holder.rights(), crate::directory::Rights::Modified);
    let order = |epoch, order| {
        let txn = Txn { epoch: Epoch(epoch), number: 9 };
        super::wire::Packet::Page(PageNumber(0), Message::Order { txn, order })
    };
    assert!(rig.hear(&order(0, Order::Inv)), "late, and ignored");
    assert!(!rig.hear(&order(1, Order::Inv)));
    assert!(!rig.hear(&order(1, Order::Recall(crate::directory::Left::Invalid))));
    // It may be the home of an epoch that is not known here; but a writer is not told to drop its copy.
    rig.hear(&order(2, Order::Inv));
    while let Some(due) = rig.node.deadline() {
        std::thread::sleep(due.saturating_duration_since(std::time::Instant::now()));
        rig.node.woken(&mut rig.sent);
    }
    assert_eq!(rig.node.spots.get_mut(PageNumber(0)).holder.rights(), crate::directory::Rights::Modified);
    assert!(rig.control.failure().is_none());
}

#[test]
fn a_home_on_a_host_that_has_left_is_old_news_or_no_news() {
    let Some(mut rig) = rig("a_home_on_a_host_that_has_left_is_old_news_or_no_news") else { return };
    let shard = ShardNumber(2);
    let gone = |home, epoch| super::wire::Packet::Gone(shard, Route { home: host(home), epoch: Epoch(epoch) });
    assert!(rig.hear(&gone(1, 3)), "host 2 had it, and host 1 has it by now");
    assert_eq!(rig.node.dismiss(host(2)), Some(Mention::Home(ShardNumber(5))), "other shards are still there");
    for shard in (0..PAGES / PAGES_PER_SHARD).filter(|shard| shard % 3 == 2) {
        assert!(rig.hear(&super::wire::Packet::Gone(ShardNumber(shard), Route { home: host(1), epoch: Epoch(3) })));
    }
    assert_eq!(rig.node.dismiss(host(2)), None);
    assert!(rig.node.received(Peer(2), StreamNumber(1), &[9], &mut rig.sent).is_ok(), "what it says is nothing");
    assert!(rig.hear(&gone(2, 2)), "it was there before");
    assert!(!rig.hear(&gone(2, 4)), "nobody is there");
    assert!(rig.hear(&gone(0, 5)), "this host knows best what it has");
    assert!(rig.hear(&super::wire::Packet::Leaving(7)));
    // Its number is another host's now, and everything with it begins anew.
    rig.node.admit(host(2), &mut rig.sent);
    assert!(rig.node.received(Peer(2), StreamNumber(1), &[9], &mut rig.sent).is_err());
    assert!(rig.hear(&gone(2, 6)));
    rig.assert_untouched();
}

#[test]
fn a_copy_that_is_not_what_its_home_has_stops_the_node() {
    let Some(mut rig) = rig_with("a_copy_that_is_not_what_its_home_has_stops_the_node", true) else { return };
    let page = PageNumber(0);
    let get = Message::Request { epoch: Epoch(0), request: Request::Get { access: Access::Read, have: None } };
    assert!(rig.hear(&super::wire::Packet::Page(page, get)));
    let zero = xxhash_rust::xxh3::xxh3_64(&[0; 4096]);
    let print =
        |version, hash| super::wire::Packet::Print(page, super::audit::Print { version: Version(version), hash });
    assert!(rig.hear(&print(0, zero)));
    assert!(rig.hear(&print(1, 7)), "of a version that is not here");
    assert!(rig.control.failure().is_none());
    rig.hear(&print(0, 7));
    let failure = rig.control.failure().unwrap().to_string();
    let expected = format!(
        "Bytes of page 0x0 changed that nobody may write: of version 0, their hash was {zero:016x} and is {:016x}",
        7
    );
    assert_eq!(failure, expected);
    assert!(rig.failures.load(Ordering::Relaxed));
}

#[test]
fn a_system_call_that_fails_stops_the_node_and_says_why() {
    let Some(mut rig) = rig("a_system_call_that_fails_stops_the_node_and_says_why") else { return };
    let touch = |rig: &mut Rig| {
        let outcome = rig.node.touched(PageNumber(0), waiter(), &mut rig.sent);
        let _ = rig.node.judge(None, outcome);
        rig.node.woken(&mut rig.sent);
    };
    touch(&mut rig);
    assert!(rig.control.failure().is_none());
    // Somebody else takes the memory away.
    vmotion_sys::memory::punch_hole(&rig.memfd, 0..4096).unwrap();
    touch(&mut rig);
    let failure = rig.control.failure().unwrap();
    assert_eq!(
        vmotion_model::error_chain(&*failure),
        "Could not wake who waits at page 0x0: The bytes of page 0 are gone from the memfd"
    );
    assert!(rig.failures.load(Ordering::Relaxed));
    assert!(rig.hear_bytes(1, &[9]), "nobody listens any more");
    assert_eq!(rig.node.deadline(), None);
}

#[test]
fn a_page_costs_few_bytes_of_knowledge() {
    let (holder, spot) = (size_of::<crate::directory::Holder>(), size_of::<spot::Spot>());
    println!("a holder has {holder} bytes, with its hold window and who waits {spot}");
    assert!(spot <= 256);
}
