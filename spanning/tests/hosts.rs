//! Hosts come to a running machine and leave it, while the others' vCPUs work on all of its memory.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Cluster, Guest, Options, Random, host, relaxed, skipped, watched};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmotion_spanning::directory::{PAGES_PER_SHARD, ShardNumber};
use vmotion_spanning::memory::{Mention, Staying};

const SHARDS: usize = 4;
/// Pages used of each shard: few, so that hosts meet.
const WIDTH: u64 = 4;

/// Adds one here and there until `stop`; how often.
fn count(guest: &Guest, seed: u64, stop: &AtomicBool) -> u64 {
    let (mut random, mut counted) = (Random(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        let page = random.below(SHARDS as u64) * PAGES_PER_SHARD + random.below(WIDTH);
        if random.below(3) == 0 {
            relaxed(guest.word(page, 0));
        } else {
            guest.word(page, 0).fetch_add(1, Ordering::SeqCst);
            counted += 1;
        }
    }
    counted
}

#[test]
fn hosts_come_and_go_and_no_increment_is_lost() {
    if skipped("hosts_come_and_go_and_no_increment_is_lost") {
        return;
    }
    watched(|| {
        let mut cluster = Cluster::new(&Options { hosts: 2, audit: true, jumble: Some(3), ..Options::default() });
        let stop = &AtomicBool::new(false);
        let residents = [cluster.guests[0].clone(), cluster.guests[1].clone()];
        let mut counted = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0u64..).zip(&residents).map(|(seed, guest)| scope.spawn(move || count(guest, seed, stop))).collect();
            let mut counted = 0;
            for round in 0..12 {
                cluster.join(2, &[0, 1]);
                let (guest, stop) = (cluster.guests[2].clone(), AtomicBool::new(false));
                counted += std::thread::scope(|scope| {
                    let visitor = scope.spawn(|| count(&guest, 100 + round, &stop));
                    std::thread::sleep(Duration::from_millis(30));
                    // From wherever the last round left them: first some, then all of host 1's.
                    (0..2).for_each(|from| cluster.give(from, (0..SHARDS).filter(|shard| shard % 2 == 1), 2));
                    std::thread::sleep(Duration::from_millis(30));
                    // Of what is here, one goes to each.
                    cluster.give(2, 0..SHARDS / 2, 0);
                    cluster.give(2, 0..SHARDS, 1);
                    stop.store(true, Ordering::Relaxed);
                    visitor.join().unwrap()
                });
                cluster.part_with(2, &[0, 1]);
            }
            stop.store(true, Ordering::Relaxed);
            counted + threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
        });
        for shard in 0..SHARDS as u64 {
            for page in 0..WIDTH {
                counted -= relaxed(cluster.guests[0].word(shard * PAGES_PER_SHARD + page, 0));
            }
        }
        assert_eq!(counted, 0, "increments that were lost");
        for control in &cluster.controls[..2] {
            let stats = control.statistics().unwrap();
            assert!(control.failure().is_none() && stats.counts.misfits == 0, "{stats:?}");
        }
        println!("epochs {:?}", cluster.store.epochs());
    });
}

#[test]
fn what_keeps_a_host_is_named() {
    if skipped("what_keeps_a_host_is_named") {
        return;
    }
    watched(|| {
        let mut cluster = Cluster::new(&Options { hosts: 2, ..Options::default() });
        cluster.join(2, &[0, 1]);
        let staying = cluster.controls[1].leave(true).unwrap();
        assert_eq!(staying, Staying { homes: 2, ..Staying::default() });
        cluster.guests[2].word(7, 0).store(7, Ordering::Relaxed);
        cluster.guests[2].word(600, 0).store(6, Ordering::Relaxed);
        let dismiss = |from: usize| cluster.controls[from].dismiss(host(2), Duration::from_millis(20)).unwrap();
        assert_eq!(dismiss(0), Some(Mention::Page(vmotion_model::PageNumber(7))));
        assert_eq!(dismiss(1), Some(Mention::Page(vmotion_model::PageNumber(600))));
        cluster.give(0, 0..1, 2);
        assert_eq!(dismiss(0), Some(Mention::Home(ShardNumber(0))));
        cluster.give(2, 0..1, 1);
        // It is told of the home that it gave a moment after host 1 has it.
        let staying = loop {
            let staying = cluster.controls[2].leave(false).unwrap();
            if staying.moving == 0 {
                break staying;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert_eq!((staying.homes, staying.pages), (0, 2), "{staying:?}");
        cluster.controls[2].stay().unwrap();
        // It does not leave after all.
        cluster.guests[2].word(8, 0).store(8, Ordering::Relaxed);
        cluster.part_with(2, &[0, 1]);
        assert_eq!([7, 8, 600].map(|page| relaxed(cluster.guests[0].word(page, 0))), [7, 8, 6]);
        cluster.join(2, &[0, 1]);
        assert_eq!([7, 8, 600].map(|page| relaxed(cluster.guests[2].word(page, 0))), [7, 8, 6]);
    });
}
