//! Random work by vCPUs on three hosts, while pages are given up, connections are cut and shards move: what each sees must fit together.
//! `VMOTION_MEMORY_SEED` explores.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Cluster, Guest, Options, Random, host, relaxed, skipped, watched};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vmotion_spanning::directory::ShardNumber;

const VCPUS: usize = 6;
/// Of each vCPU; most are answered by the processor.
const OPERATIONS: u64 = 4_000_000;
/// Two pages of each host's shard.
const PAGES: [u64; 6] = [0, 1, 512, 513, 1024, 1025];

/// Words of a page: a counter for all, a lock, what the lock is for, and a word for each vCPU.
const COUNTER: usize = 0;
const LOCK: usize = 8;
const LOCKED: std::ops::Range<usize> = 64..72;
const OWN: usize = 128;

struct Vcpu {
    number: usize,
    random: Random,
    counted: u64,
    /// What was last seen of each vCPU's word of each page.
    seen: [[u64; VCPUS]; PAGES.len()],
}

impl Vcpu {
    fn operate(&mut self, guest: &Guest) {
        let at = usize::try_from(self.random.below(PAGES.len() as u64)).unwrap();
        let page = PAGES[at];
        match self.random.below(10) {
            0..=1 => {
                guest.word(page, COUNTER).fetch_add(1, Ordering::SeqCst);
                self.counted += 1;
            }
            2..=3 => self.with_lock(guest, page),
            4..=5 => {
                let own = guest.word(page, OWN + self.number);
                assert_eq!(relaxed(own), self.seen[at][self.number], "what only vCPU {} writes", self.number);
                self.seen[at][self.number] += 1;
                own.store(self.seen[at][self.number], Ordering::Release);
            }
            _ => {
                let other = usize::try_from(self.random.below(VCPUS as u64)).unwrap();
                let value = relaxed(guest.word(page, OWN + other));
                assert!(value >= self.seen[at][other], "page {page}: {value} after {}", self.seen[at][other]);
                self.seen[at][other] = value;
            }
        }
    }

    /// Tries the lock of a page; whoever has it sees what the last one left, whole, and leaves the next.
    fn with_lock(&self, guest: &Guest, page: u64) {
        let lock = guest.word(page, LOCK);
        if lock.compare_exchange(0, self.number as u64 + 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        let stamp = relaxed(guest.word(page, LOCKED.start));
        for word in LOCKED {
            let locked = guest.word(page, word);
            assert_eq!(relaxed(locked), stamp, "page {page}, word {word}");
            locked.store(stamp + 1, Ordering::Relaxed);
        }
        lock.store(0, Ordering::Release);
    }
}

/// Gives pages up, cuts connections and moves shards, at random.
fn disturb(cluster: &Cluster, mut random: Random, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let (one, other) = cluster.pairs()[usize::try_from(random.below(3)).unwrap()];
        match random.below(8) {
            0 => cluster.fabric.cut(one, other),
            1..=3 => cluster.evict_all(one),
            4 => {
                let shard = ShardNumber(random.below(3));
                for from in 0..3 {
                    // All but its home refuse.
                    let to = usize::try_from(random.below(3)).unwrap();
                    if cluster.controls[from].relocate(shard, host(to)).is_ok() {
                        break;
                    }
                }
            }
            _ => cluster.pairs().into_iter().for_each(|(one, other)| cluster.fabric.connect(one, other)),
        }
        std::thread::sleep(Duration::from_micros(random.below(2_000)));
    }
    cluster.pairs().into_iter().for_each(|(one, other)| cluster.fabric.connect(one, other));
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_random_vcpus_see_fits_together() {
    if skipped("what_random_vcpus_see_fits_together") {
        return;
    }
    let seed = std::env::var("VMOTION_MEMORY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1_u64);
    println!("VMOTION_MEMORY_SEED={seed}");
    watched(move || {
        let cluster = Cluster::new(&Options { audit: true, jumble: Some(seed), ..Options::default() });
        let vcpu = |number: usize| {
            let random = Random(seed.wrapping_mul(1_000_003) + number as u64);
            let run = move |guest: &Guest| {
                let mut vcpu = Vcpu { number, random, counted: 0, seen: [[0; VCPUS]; PAGES.len()] };
                (0..OPERATIONS).for_each(|_| vcpu.operate(guest));
                vcpu.counted
            };
            (number % 3, Box::new(run) as common::Vcpu<'_, u64>)
        };
        let stop = AtomicBool::new(false);
        let counted = std::thread::scope(|scope| {
            scope.spawn(|| disturb(&cluster, Random(seed), &stop));
            // Also when a vCPU panics.
            let _stop = StopOnDrop(&stop);
            cluster.run((0..VCPUS).map(vcpu).collect())
        });
        let total: u64 = counted.iter().sum();
        for guest in &cluster.guests {
            let sum: u64 = PAGES.iter().map(|page| relaxed(guest.word(*page, COUNTER))).sum();
            assert_eq!(sum, total);
        }
        cluster.assert_no_misfits();
        for number in 0..3 {
            let stats = cluster.stats(number);
            let repeated: u64 = stats.peers.iter().map(|peer| peer.traffic.messages_repeated).sum();
            println!("host {number}: {:?}, {repeated} messages again", stats.counts);
        }
        let epochs: Vec<_> = cluster.store.epochs();
        println!("shards are at epochs {epochs:?}");
    });
}
