use super::*;
use crate::directory::{Access, Answer, Message, Request, Txn};
use vmotion_model::{Epoch, MemoryLayout, PageNumber};
use vmotion_transport::mesh::Peer;

/// Two ends, and what is on its way between them.
struct Pair {
    ends: [Link; 2],
    wires: [Wire; 2],
    known: Known,
    heard: [Vec<Packet>; 2],
}

#[derive(Default)]
struct Wire {
    messages: VecDeque<(u8, Vec<u8>)>,
}

impl Outgoing for Wire {
    fn send(&mut self, _: Peer, stream: StreamNumber, write: &mut dyn FnMut(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.messages.push_back((stream.0, bytes));
    }

    fn waiting(&self, _: Peer, _: StreamNumber) -> usize {
        0
    }
}

impl Pair {
    fn new() -> Self {
        let link = |number| Link::new(HostId::new(number).unwrap(), 1);
        let known = Known {
            layout: MemoryLayout::for_ram(64 << 20).unwrap(),
            hosts: crate::directory::HostSet::from_bits(0b11),
        };
        let mut pair = Self { ends: [link(1), link(0)], wires: Default::default(), known, heard: Default::default() };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        for end in 0..2 {
            self.ends[end].connect(&mut self.wires[end]);
        }
    }

    fn cut(&mut self) {
        self.ends.iter_mut().for_each(Link::disconnect);
        self.wires.iter_mut().for_each(|wire| wire.messages.clear());
    }

    fn send(&mut self, end: usize, packet: Packet) {
        self.ends[end].send(packet, &mut self.wires[end]);
    }

    /// What `end` has sent arrives, at most `most` messages.
    fn deliver(&mut self, end: usize, most: usize) {
        for _ in 0..most {
            let Some((stream, bytes)) = self.wires[end].messages.pop_front() else { break };
            let other = 1 - end;
            let heard =
                self.ends[other].receive(Moment(0), StreamNumber(stream), &bytes, &self.known, &mut self.wires[other]);
            self.heard[other].extend(heard.unwrap());
        }
    }
}

fn request(page: u64) -> Packet {
    let request = Request::Get { access: Access::Read, have: None };
    Packet::Page(PageNumber(page), Message::Request { epoch: Epoch(1), request })
}

fn answer(page: u64) -> Packet {
    Packet::Page(PageNumber(page), Message::Answer { txn: Txn::NONE, answer: Answer::Ack })
}

#[test]
fn a_lane_that_is_full_stops_no_other_and_goes_on_when_it_can() {
    let mut pair = Pair::new();
    let all = UNACKNOWLEDGED_MAX as u64 + 10;
    (0..all).for_each(|page| pair.send(0, request(page)));
    assert_eq!(pair.wires[0].messages.len(), UNACKNOWLEDGED_MAX);
    assert_eq!(pair.ends[0].unacknowledged() as u64, all);
    pair.send(0, answer(7));
    assert_eq!(pair.wires[0].messages.len(), UNACKNOWLEDGED_MAX + 1, "answers go on");
    pair.deliver(0, usize::MAX);
    pair.deliver(1, usize::MAX);
    pair.deliver(0, usize::MAX);
    let requests: Vec<_> = pair.heard[1].iter().filter(|packet| packet.lane() == Lane::Request).cloned().collect();
    assert_eq!(requests, (0..all).map(request).collect::<Vec<_>>());
}

#[test]
fn what_is_lost_comes_again_and_what_is_not_comes_once() {
    let mut pair = Pair::new();
    (0..100).for_each(|page| pair.send(0, request(page)));
    pair.deliver(0, 40);
    pair.cut();
    (100..120).for_each(|page| pair.send(0, request(page)));
    assert!(pair.wires[0].messages.is_empty());
    pair.connect();
    (120..130).for_each(|page| pair.send(0, request(page)));
    pair.deliver(0, usize::MAX);
    assert_eq!(pair.heard[1], (0..130).map(request).collect::<Vec<_>>());
    assert!(pair.ends[1].traffic.messages_known >= 8, "{:?}", pair.ends[1].traffic);
}

#[test]
fn what_nothing_rides_on_is_acknowledged_after_a_while() {
    let mut pair = Pair::new();
    pair.send(0, request(1));
    pair.send(0, answer(1));
    pair.deliver(0, usize::MAX);
    assert_eq!(pair.ends[1].deadline(), Some(Moment(OWED_US_MAX)));
    pair.ends[1].tick(Moment(OWED_US_MAX - 1), &mut pair.wires[1]);
    assert!(pair.wires[1].messages.is_empty());
    pair.ends[1].tick(Moment(OWED_US_MAX), &mut pair.wires[1]);
    assert_eq!(pair.ends[1].deadline(), None);
    pair.deliver(1, usize::MAX);
    assert_eq!(pair.ends[0].unacknowledged(), 0);
    assert_eq!(pair.ends[0].deadline(), None, "acknowledgements are not acknowledged");
}
