//! What a request and its answer cost, measured: 40 bytes one way, a page the other.

use super::*;
use rustix::time::{ClockId, clock_gettime};
use std::sync::mpsc::{Sender, channel};

const REQUEST_BYTES: usize = 40;
const ANSWER_BYTES: usize = 4096;

/// Keeps a number of requests going, and times each.
struct Asker {
    awaits: bool,
    outstanding: u64,
    left: u64,
    begun: Vec<Instant>,
    took: Vec<Duration>,
    done: Sender<Vec<Duration>>,
}

/// Answers each request with a page.
struct Answerer {
    awaits: bool,
}

impl Asker {
    fn ask(&mut self, slot: u64, out: &mut dyn Outgoing) {
        self.begun[usize::try_from(slot).unwrap()] = Instant::now();
        out.send(Peer(1), StreamNumber(2), &mut |into| {
            into.extend_from_slice(&slot.to_le_bytes());
            into.resize(into.len() + REQUEST_BYTES - 8, 7);
        });
    }
}

impl MeshUser for Asker {
    fn wakes<'a>(&'a self, _: &mut Vec<BorrowedFd<'a>>) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn awaits(&self) -> bool {
        self.awaits
    }

    fn woken(&mut self, _: &mut dyn Outgoing) {}

    fn connected(&mut self, _: Peer, out: &mut dyn Outgoing) {
        (0..self.outstanding).for_each(|slot| self.ask(slot, out));
    }

    fn lost(&mut self, _: Peer, _: &SessionError, _: &mut dyn Outgoing) {}

    fn received(
        &mut self,
        _: Peer,
        _: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        let slot = u64::from_le_bytes(*message.first_chunk().unwrap());
        self.took.push(self.begun[usize::try_from(slot).unwrap()].elapsed());
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            let _ = self.done.send(std::mem::take(&mut self.took));
        } else if self.left >= self.outstanding {
            self.ask(slot, out);
        }
        Ok(())
    }
}

impl MeshUser for Answerer {
    fn wakes<'a>(&'a self, _: &mut Vec<BorrowedFd<'a>>) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn awaits(&self) -> bool {
        self.awaits
    }

    fn woken(&mut self, _: &mut dyn Outgoing) {}

    fn connected(&mut self, _: Peer, _: &mut dyn Outgoing) {}

    fn lost(&mut self, _: Peer, _: &SessionError, _: &mut dyn Outgoing) {}

    fn received(
        &mut self,
        from: Peer,
        _: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        static PAGE: [u8; ANSWER_BYTES] = [9; ANSWER_BYTES];
        out.send(from, StreamNumber(3), &mut |into| {
            into.extend_from_slice(&message[..8]);
            into.extend_from_slice(&PAGE[8..]);
        });
        Ok(())
    }
}

fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap()
}

fn measure(world: &World, outstanding: u64, pairs: u64, awaits: [bool; 2]) {
    let (done, heard) = channel();
    let (mut asking, mut answering) = (options(world, 0), options(world, 1));
    if let Ok(address) = std::env::var("MESH_ADDRESS") {
        for options in [&mut asking, &mut answering] {
            options.socket = UdpSocket::bind((address.as_str(), 0)).unwrap();
        }
    }
    let (asks, answers) = (asking.socket.local_addr().unwrap(), answering.socket.local_addr().unwrap());
    let begun = vec![Instant::now(); usize::try_from(outstanding).unwrap()];
    let asker = Asker { awaits: awaits[0], outstanding, left: pairs, begun, took: Vec::new(), done };
    let answerer = Mesh::start(answering, Box::new(Answerer { awaits: awaits[1] })).unwrap();
    answerer.add_peer(Peer(0), asks, expected(0));
    std::thread::sleep(Duration::from_millis(50));
    let (begin, used) = (Instant::now(), processor_time());
    let asker = Mesh::start(asking, Box::new(asker)).unwrap();
    asker.add_peer(Peer(1), answers, expected(1));
    let mut took = heard.recv().unwrap();
    let (elapsed, used) = (begin.elapsed(), processor_time() - used);
    let figures = asker.figures();
    let datagrams = figures.peers[&Peer(1)].sent_datagrams + figures.peers[&Peer(1)].received_datagrams;
    let passes = figures.passes + answerer.figures().passes;
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() - 1) * per_mille / 1000];
    let each = |total: f64| total / pairs as f64;
    println!(
        "{outstanding:2} outstanding, awaited {awaits:?}: p50 {:?} p99 {:?} p999 {:?}; {:.0} pairs/s, {:.1} µs of processor, {:.2} datagrams, {:.2} passes a pair, {} lost",
        at(500),
        at(990),
        at(999),
        pairs as f64 / elapsed.as_secs_f64(),
        each(used.as_secs_f64() * 1e6),
        each(datagrams as f64),
        each(passes as f64),
        figures.peers[&Peer(1)].lost_packets,
    );
    asker.end();
    answerer.end();
}

/// `cargo test -p vmotion-transport -- --ignored --nocapture what_a_round_trip_costs`. With `MESH_ADDRESS`, an address of this host that is
/// not loopback, packets are as long as on a network.
#[test]
#[ignore = "a measurement, run by hand"]
fn what_a_round_trip_costs() {
    let world = world(2);
    for awaits in [[false, false], [true, false], [true, true]] {
        for (outstanding, pairs) in [(1, 50_000), (8, 100_000), (64, 200_000)] {
            measure(&world, outstanding, pairs, awaits);
        }
    }
}
