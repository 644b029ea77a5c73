//! How many faults a second two hosts serve whose pages are on the other one, over QUIC on loopback, with threads that all wait: nothing is
//! asserted.
//!
//! ```text
//! cargo nextest run -p vmotion-spanning --test throughput --run-ignored only --no-capture
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "in a test a panic is the report"
)]

mod common;

use common::{Guest, PAGE, host, relaxed, skipped};
use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmotion_model::{Epoch, MemoryLayout};
use vmotion_pager::GuestRegion;
use vmotion_spanning::directory::{HostSet, PAGES_PER_SHARD, Route, ShardNumber};
use vmotion_spanning::memory::{Costs, MemoryNode, NodeConfig, NodeControl, ShardRegistry};
use vmotion_transport::mesh::{Mesh, MeshFigures, MeshOptions, MeshTicket, MeshTuning, Peer};
use vmotion_transport::pki::Authority;
use vmotion_transport::{ExpectedPeer, Identity, Principal};

const PAGES: u64 = 64 * PAGES_PER_SHARD;

struct Nobody;

impl ShardRegistry for Nobody {
    fn claim(&mut self, _: ShardNumber, _: Route) {}
}

/// Two hosts; all homes are on the second.
struct Pair {
    guests: [Arc<Guest>; 2],
    controls: Vec<NodeControl>,
    meshes: Vec<Mesh>,
}

impl Pair {
    fn new(measures: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let addresses = sockets.each_ref().map(|socket| socket.local_addr().unwrap());
        let principal = |number: usize| Principal::Host(format!("h{number}").parse().unwrap());
        let guests = [0, 1].map(|_| Arc::new(Guest::new(PAGES)));
        let ticket = MeshTicket::random();
        let (mut controls, mut meshes) = (Vec::new(), Vec::new());
        for (me, socket) in sockets.into_iter().enumerate() {
            let path = directory.path().join(format!("h{me}"));
            authority.issue(&principal(me), &path).unwrap();
            let (address, pages) = guests[me].mapped_at();
            let route = Route { home: host(1), epoch: Epoch::FIRST };
            let (node, control) = MemoryNode::new(NodeConfig {
                host: host(me),
                hosts: HostSet::from_bits(0b11),
                layout: MemoryLayout::for_ram(PAGES * PAGE as u64).unwrap(),
                memfd: guests[me].memfd(),
                regions: &[GuestRegion { address, first: 0, pages, file_offset: 0 }],
                routes: &mut (0..PAGES / PAGES_PER_SHARD).map(|shard| (ShardNumber(shard), route)),
                first_stream: 1,
                registry: Box::new(Nobody),
                on_failure: Box::new(|error| panic!("{error}")),
                measures,
                audit: false,
            })
            .unwrap();
            let options = MeshOptions {
                socket,
                identity: Arc::new(Identity::load(&path).unwrap()),
                me: Peer(u8::try_from(me).unwrap()),
                incarnation: 1,
                machine: "big1".parse().unwrap(),
                ticket: ticket.clone(),
                tuning: MeshTuning::default(),
            };
            controls.push(control);
            meshes.push(Mesh::start(options, Box::new(node)).unwrap());
        }
        for (me, other) in [(0, 1), (1, 0)] {
            let peer = Peer(u8::try_from(other).unwrap());
            meshes[me].add_peer(peer, addresses[other], ExpectedPeer::Exactly(principal(other)));
        }
        Self { guests, controls, meshes }
    }

    fn costs(&self) -> [Costs; 2] {
        [0, 1].map(|host: usize| self.controls[host].statistics().unwrap().costs)
    }

    fn figures(&self) -> MeshFigures {
        self.meshes[0].figures()
    }
}

/// Processor time of this process's threads, in seconds: the meshes', and all others'.
fn processor_time() -> [f64; 2] {
    let mut time = [0.0; 2];
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        // In nanoseconds.
        let run: f64 = read("schedstat").split(' ').next().and_then(|run| run.parse().ok()).unwrap_or(0.0);
        time[usize::from(read("comm").trim() != "mesh")] += run / 1e9;
    }
    time
}

/// `threads` of the first host touch all pages, each its own.
fn touch_all(pair: &Pair, what: &str, threads: u64, touch: fn(&Guest, u64)) {
    let (costs, figures, processor) = (pair.costs(), pair.figures(), processor_time());
    let start = Instant::now();
    let (mut times, threads_time) = std::thread::scope(|scope| {
        let of = |thread: u64| {
            let guest = &*pair.guests[0];
            move || {
                let time = |page| {
                    let start = Instant::now();
                    touch(guest, page);
                    start.elapsed()
                };
                let times = (thread..PAGES).step_by(usize::try_from(threads).unwrap()).map(time).collect::<Vec<_>>();
                let own = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
                (times, own.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9)
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(of(thread))).collect();
        let ended = running.into_iter().map(|thread| thread.join().unwrap());
        ended.fold((Vec::new(), 0.0), |(mut times, sum), (more, time)| {
            times.extend(more);
            (times, sum + time)
        })
    });
    let took = start.elapsed();
    let processor = processor_time()[0] - processor[0];
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 1000].as_nanos() as f64 / 1000.0;
    let faults = times.len() as f64;
    let us = |time: f64| time * 1e6 / faults;
    println!(
        "{what:38} {threads:2} threads {:7.0} a second   p50 {:6.1}   p99 {:7.1} µs   processor {:.2} s: {:.1} µs a fault in meshes, {:.1} in the \
         threads",
        faults / took.as_secs_f64(),
        at(500),
        at(990),
        processor + threads_time,
        us(processor),
        us(threads_time),
    );
    let after = pair.figures();
    let sent = |figures: &MeshFigures| {
        figures
            .peers
            .values()
            .map(|peer| (peer.sent_messages, peer.sent_datagrams, peer.received_datagrams))
            .next()
            .unwrap()
    };
    let (before, now) = (sent(&figures), sent(&after));
    let per = |count: u64| count as f64 / faults;
    let mut inside = 0.0;
    for (number, (before, now)) in costs.iter().zip(pair.costs()).enumerate() {
        let of = |cost: fn(&Costs) -> Duration| us((cost(&now) - cost(before)).as_secs_f64());
        let passes = of(|costs| costs.passes.total);
        inside += passes;
        let read = of(|costs| costs.reading_faults.total);
        let put = of(|costs| costs.placing.total + costs.filling.total + costs.installing.total);
        let (revoke, copy) = (of(|costs| costs.revoking.total), of(|costs| costs.copying.total));
        println!(
            "    host {number}: read faults {read:.2}, revoke {revoke:.2}, read bytes {copy:.2}, place and map {put:.2}, the rest of its passes {:.2} µs a fault",
            passes - read - put - revoke - copy
        );
    }
    println!(
        "    beside the passes, in meshes: {:.1} µs a fault; of host 0 a fault: {:.2} messages and {:.2} datagrams out, {:.2} in, {:.2} passes",
        us(processor) - inside,
        per(now.0 - before.0),
        per(now.1 - before.1),
        per(now.2 - before.2),
        per(after.passes - figures.passes),
    );
}

#[test]
#[ignore = "a measurement"]
fn remote_faults_a_second() {
    if skipped("remote_faults_a_second") {
        return;
    }
    let measures = std::env::var_os("VMOTION_MEASURE_STEPS").is_some();
    let counts = std::env::var("VMOTION_MEASURE_THREADS").unwrap_or_else(|_| "1,2,4,8,16".to_owned());
    for threads in counts.split(',').map(|count| count.parse().unwrap()) {
        let pair = Pair::new(measures);
        let write = |value: u64| {
            (0..PAGES).for_each(|page| pair.guests[1].word(page, 0).store(page + value, Ordering::Relaxed))
        };
        write(1);
        touch_all(&pair, "the home has written it, read", threads, |guest, page| {
            assert_eq!(relaxed(guest.word(page, 0)), page + 1);
        });
        touch_all(&pair, "the home reads it too, write", threads, |guest, page| {
            guest.word(page, 0).store(page + 2, Ordering::Relaxed);
        });
        write(3);
        touch_all(&pair, "the home has written it, write", threads, |guest, page| {
            guest.word(page, 0).fetch_add(1, Ordering::Relaxed);
        });
        assert!((0..PAGES).all(|page| relaxed(pair.guests[1].word(page, 0)) == page + 4));
        pair.meshes.into_iter().for_each(Mesh::end);
    }
}
