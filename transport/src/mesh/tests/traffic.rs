//! What is sent arrives: whole, in order, once, the urgent first.

use super::*;
use std::collections::BTreeMap;

/// A source of numbers that is the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn byte(&mut self, limit: u8) -> u8 {
        u8::try_from(self.below(limit.into())).unwrap()
    }

    /// Mostly short, now and then as long as may be.
    fn message(&mut self) -> Vec<u8> {
        let longest = [40, 40, 4096, 4096, MESSAGE_BYTES_MAX as u64 + 1][usize::try_from(self.below(5)).unwrap()];
        let length = usize::try_from(self.below(longest)).unwrap();
        let fill = self.byte(255);
        vec![fill; length]
    }
}

type ByStream = BTreeMap<(u8, u8), Vec<Vec<u8>>>;

fn by_stream(heard: &[Heard]) -> ByStream {
    let mut messages = ByStream::new();
    for heard in heard {
        if let Heard::Message(from, stream, message) = heard {
            messages.entry((*from, *stream)).or_default().push(message.clone());
        }
    }
    messages
}

#[test]
fn three_hosts_send_each_other_messages_of_all_lengths_on_all_streams() {
    let world = world(3);
    let nodes: Vec<Node> = (0..3).map(|number| node(options(&world, number))).collect();
    for (number, node) in (0..).zip(&nodes) {
        for (other, peer) in (0..).zip(&nodes).filter(|(other, _)| *other != number) {
            node.knows(other, peer.address);
        }
    }
    let others = |number: u8| (0..3).filter(move |other| *other != number);
    eventually("all are connected", || {
        (0..).zip(&nodes).all(|(number, node)| others(number).all(|other| node.is_connected(other)))
    });
    let mut sent: Vec<ByStream> = vec![ByStream::new(); 3];
    let mut numbers = Numbers(7);
    for _ in 0..40 {
        for (from, node) in (0..).zip(&nodes) {
            let batch: Vec<(u8, u8, Vec<u8>)> = (0..numbers.below(20))
                .map(|_| {
                    let to = (from + 1 + numbers.byte(2)) % 3;
                    (to, numbers.byte(STREAMS_MAX), numbers.message())
                })
                .collect();
            for (to, stream, message) in &batch {
                sent[usize::from(*to)].entry((from, *stream)).or_default().push(message.clone());
            }
            node.act(move |out| {
                for (to, stream, message) in batch {
                    out.send(Peer(to), StreamNumber(stream), &mut |into| into.extend_from_slice(&message));
                }
            });
        }
    }
    for (node, sent) in nodes.iter().zip(&sent) {
        let count: usize = sent.values().map(Vec::len).sum();
        node.hears(|heard| heard.iter().filter(|heard| matches!(heard, Heard::Message(..))).count() >= count);
        assert!(by_stream(&node.heard()) == *sent, "each stream has what was sent on it");
    }
    let received = by_stream(&nodes[0].heard());
    let count: usize = received.iter().filter(|((from, _), _)| *from == 1).map(|(_, all)| all.len()).sum();
    eventually("it is counted", || {
        let peer = nodes[0].mesh.figures().peers.remove(&Peer(1)).unwrap();
        assert!(peer.is_connected && peer.connections == 1, "{peer:?}");
        peer.received_messages == count as u64
    });
}

#[test]
fn a_message_is_answered_by_whoever_receives_it() {
    let (first, second) = pair(&world(2));
    first.send(1, 3, b"echo");
    first.hears_message(1, 3, b"echoed");
    second.send(0, 0, b"echo");
    second.hears_message(0, 0, b"echoed");
}

#[test]
fn what_is_sent_to_nobody_is_lost_and_waits_nowhere() {
    let (first, _second) = pair(&world(2));
    first.act(|out| {
        out.send(Peer(9), StreamNumber(0), &mut |_| panic!("nothing is written for a host that is not there"));
        assert_eq!(out.waiting(Peer(9), StreamNumber(0)), 0);
    });
    first.send(1, 0, b"echo");
    first.hears_message(1, 0, b"echoed");
}

#[test]
fn a_user_that_refuses_a_message_ends_the_connection_and_the_sender_hears_why() {
    let (first, second) = pair(&world(2));
    first.send(1, 5, b"nonsense");
    let why = "this is nonsense";
    first.hears(|heard| heard.iter().any(|heard| matches!(heard, Heard::Lost(1, reason) if reason.contains(why))));
    second.hears(|heard| heard.iter().any(|heard| matches!(heard, Heard::Lost(0, reason) if reason.contains(why))));
    eventually("connected again", || first.ways(1) == [true, false, true] && second.ways(0) == [true, false, true]);
    first.send(1, 5, b"echo");
    first.hears_message(1, 5, b"echoed");
}

#[test]
fn a_mesh_can_end_while_messages_flow() {
    let (first, second) = pair(&world(2));
    for _ in 0..20 {
        first.act(|out| {
            for _ in 0..50 {
                out.send(Peer(1), StreamNumber(9), &mut |into| into.resize(into.len() + MESSAGE_BYTES_MAX, 1));
                out.send(Peer(1), StreamNumber(1), &mut |into| into.extend_from_slice(b"echo"));
            }
        });
    }
    first.hears_message(1, 1, b"echoed");
    let state = Arc::downgrade(&first.state);
    first.mesh.end();
    drop(first.state);
    assert!(state.upgrade().is_none(), "the user is gone when the mesh has ended");
    eventually("the other host hears it", || second.ways(0) == [true, false]);
    second.hears(|heard| heard.iter().any(|heard| matches!(heard, Heard::Lost(_, why) if why.contains("has ended"))));
    second.mesh.end();
}

#[test]
fn a_mesh_that_nobody_uses_hardly_wakes_up() {
    let (first, second) = pair(&world(2));
    let passes = || first.mesh.figures().passes + second.mesh.figures().passes;
    std::thread::sleep(Duration::from_millis(300));
    let before = passes();
    std::thread::sleep(Duration::from_secs(1));
    let woken = passes() - before;
    // Ten times a second they ask whether the other is there; each time there are an answer and a few timers at both ends.
    assert!(woken < 300, "{woken} times in a second");
}
