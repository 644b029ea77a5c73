//! Paths that are slow, lossy or cut.

use super::*;
use crate::direct::Relay;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Two hosts with a relay between them.
fn relayed(world: &World) -> (Node, Node, Arc<Relay>) {
    let (first, second) = (node(options(world, 0)), node(options(world, 1)));
    let (relay, address) = Relay::open(second.address);
    first.knows(1, address);
    second.knows(0, first.address);
    eventually("connected", || first.is_connected(1) && second.is_connected(0));
    (first, second, relay)
}

#[test]
fn messages_come_in_order_although_datagrams_are_lost() {
    const MESSAGES: u16 = 2000;
    let world = world(2);
    let (first, second, relay) = relayed(&world);
    relay.loses_one_in.store(5, Ordering::Relaxed);
    for batch in (0..MESSAGES).collect::<Vec<_>>().chunks(50) {
        let batch = batch.to_vec();
        first.act(move |out| {
            for number in batch {
                out.send(Peer(1), StreamNumber(2), &mut |into| {
                    into.extend_from_slice(&number.to_le_bytes());
                    into.resize(into.len() + 1000, 0);
                });
            }
        });
    }
    second.hears(|heard| heard.len() > usize::from(MESSAGES));
    let numbers: Vec<u16> = second
        .heard()
        .iter()
        .filter_map(|heard| match heard {
            Heard::Message(0, 2, message) => Some(u16::from_le_bytes([message[0], message[1]])),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>());
    assert!(first.mesh.figures().peers[&Peer(1)].lost_packets > 0);
}

#[test]
fn an_urgent_message_overtakes_megabytes_that_wait_on_another_stream() {
    const BULK: usize = 256;
    let world = world(2);
    let mut first_options = options(&world, 0);
    first_options.tuning.silence_max = Duration::from_secs(10);
    let mut second_options = options(&world, 1);
    second_options.tuning.silence_max = Duration::from_secs(10);
    let (first, second) = (node(first_options), node(second_options));
    let (relay, address) = Relay::open(second.address);
    first.knows(1, address);
    second.knows(0, first.address);
    eventually("connected", || first.is_connected(1) && second.is_connected(0));
    relay.cut.store(true, Ordering::Relaxed);
    first.act(|out| {
        for _ in 0..BULK {
            out.send(Peer(1), StreamNumber(9), &mut |into| into.resize(into.len() + MESSAGE_BYTES_MAX, 1));
        }
        assert!(out.waiting(Peer(1), StreamNumber(9)) >= BULK * MESSAGE_BYTES_MAX);
    });
    // In a pass of its own: the bulk has been handed over before.
    let waiting = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&waiting);
    first.act(move |out| {
        seen.store(out.waiting(Peer(1), StreamNumber(9)), Ordering::Relaxed);
        out.send(Peer(1), StreamNumber(0), &mut |into| into.extend_from_slice(b"urgent"));
    });
    eventually("both are sent", || waiting.load(Ordering::Relaxed) > 0);
    relay.cut.store(false, Ordering::Relaxed);
    second.hears(|heard| heard.len() == BULK + 2);
    let place = second.heard().iter().position(|heard| matches!(heard, Heard::Message(0, 0, _))).unwrap();
    assert!(place < BULK / 4, "{place} messages came before it");
    let seen = Arc::clone(&waiting);
    eventually("nothing waits once it is acknowledged", || {
        let seen = Arc::clone(&seen);
        first.act(move |out| seen.store(out.waiting(Peer(1), StreamNumber(9)), Ordering::Relaxed));
        waiting.load(Ordering::Relaxed) == 0
    });
}

#[test]
fn a_path_that_is_cut_is_noticed_at_both_ends_and_used_again_when_it_is_back() {
    let world = world(2);
    let (first, second, relay) = relayed(&world);
    for round in 1..=2 {
        relay.cut.store(true, Ordering::Relaxed);
        eventually("both notice", || !first.is_connected(1) && !second.is_connected(0));
        first.send(1, 0, b"lost");
        relay.cut.store(false, Ordering::Relaxed);
        eventually("connected again", || first.is_connected(1) && second.is_connected(0));
        assert_eq!(first.ways(1).len(), 2 * round + 1);
        first.send(1, 0, &[u8::try_from(round).unwrap()]);
        second.hears_message(0, 0, &[u8::try_from(round).unwrap()]);
    }
    let alternate = |ways: &[bool]| ways.iter().zip(ways.iter().skip(1)).all(|(before, after)| before != after);
    assert!(alternate(&first.ways(1)) && alternate(&second.ways(0)));
    assert!(!second.heard().contains(&Heard::Message(0, 0, b"lost".to_vec())));
    assert_eq!(first.mesh.figures().peers[&Peer(1)].connections, 3);
}

#[test]
fn a_host_that_comes_later_is_called_until_it_is_there() {
    let world = world(2);
    let late = options(&world, 1);
    let first = node(options(&world, 0));
    first.knows(1, late.socket.local_addr().unwrap());
    eventually("it does not answer", || !first.trouble(1).is_empty());
    let second = node(late);
    second.knows(0, first.address);
    eventually("connected", || first.is_connected(1) && second.is_connected(0));
}

#[test]
fn a_host_that_moves_is_found_at_its_new_address() {
    let world = world(2);
    let (first, second) = pair(&world);
    let (relay, address) = Relay::open(second.address);
    first.mesh.move_peer(Peer(1), address);
    eventually("connected again", || first.ways(1) == [true, false, true] && second.ways(0) == [true, false, true]);
    first.send(1, 0, b"echo");
    first.hears_message(1, 0, b"echoed");
    relay.cut.store(true, Ordering::Relaxed);
    eventually("by way of the new address", || !first.is_connected(1));
}
