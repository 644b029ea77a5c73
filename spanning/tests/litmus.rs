//! Litmus tests through the page protocol, each word on a page of its own with a home of its own: what x86 forbids is never seen. From:
//! Alglave, Maranget and Tautschnig, *Herding cats* (2014). Loads and stores are plain ones of x86, fences are `mfence`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Cluster, Guest, Options, Random, Vcpu, skipped, watched};
use std::sync::Barrier;
use std::sync::atomic::{Ordering, compiler_fence, fence};

const ROUNDS: u64 = 2_000;
/// Pages with their homes on hosts 0 and 1.
const X: u64 = 0;
const Y: u64 = 512;

/// What a thread does in a round, to words that held `round - 1` or less before; what it saw.
type Body = fn(&Guest, u64) -> [u64; 2];

fn load(guest: &Guest, page: u64) -> u64 {
    let value = guest.word(page, 0).load(Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    value
}

fn store(guest: &Guest, page: u64, value: u64) {
    guest.word(page, 0).store(value, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

/// Runs `threads`, each on its host, round after round; `forbidden` of what they saw must never be.
fn litmus(name: &'static str, threads: &'static [(usize, Body)], forbidden: fn(u64, &[[u64; 2]]) -> bool) {
    if skipped(name) {
        return;
    }
    watched(move || {
        let cluster = Cluster::new(&Options { hosts: 4, jumble: Some(7), ..Options::default() });
        let (begin, seen) = (Barrier::new(threads.len()), Barrier::new(threads.len()));
        let vcpu = |number: usize, body: Body| {
            let (begin, seen) = (&begin, &seen);
            move |guest: &Guest| {
                let mut random = Random(number as u64);
                let saw = (1..=ROUNDS).map(|round| {
                    begin.wait();
                    for _ in 0..random.below(300) {
                        std::hint::spin_loop();
                    }
                    let saw = body(guest, round);
                    seen.wait();
                    saw
                });
                saw.collect::<Vec<_>>()
            }
        };
        let vcpus = threads
            .iter()
            .enumerate()
            .map(|(number, (host, body))| (*host, Box::new(vcpu(number, *body)) as Vcpu<'_, Vec<[u64; 2]>>));
        let saw = cluster.run(vcpus.collect());
        let mut kinds = std::collections::BTreeMap::new();
        for round in 1..=ROUNDS {
            let at = usize::try_from(round - 1).unwrap();
            let outcome: Vec<_> = saw.iter().map(|thread| thread[at]).collect();
            assert!(!forbidden(round, &outcome), "{name}: round {round} saw {outcome:?}");
            *kinds.entry(outcome.iter().map(|saw| saw.map(|value| value == round)).collect::<Vec<_>>()).or_insert(0) +=
                1;
        }
        println!("{name}: {kinds:?}");
        cluster.assert_no_misfits();
    });
}

#[test]
fn store_buffering_with_fences() {
    const THREADS: &[(usize, Body)] = &[
        (2, |guest, round| {
            store(guest, X, round);
            fence(Ordering::SeqCst);
            [load(guest, Y), 0]
        }),
        (3, |guest, round| {
            store(guest, Y, round);
            fence(Ordering::SeqCst);
            [load(guest, X), 0]
        }),
    ];
    litmus("store_buffering_with_fences", THREADS, |round, saw| saw[0][0] < round && saw[1][0] < round);
}

#[test]
fn message_passing() {
    const THREADS: &[(usize, Body)] = &[
        (0, |guest, round| {
            store(guest, X, round);
            store(guest, Y, round);
            [0, 0]
        }),
        (2, |guest, _| [load(guest, Y), load(guest, X)]),
    ];
    litmus("message_passing", THREADS, |round, saw| saw[1][0] == round && saw[1][1] < round);
}

#[test]
fn load_buffering() {
    const THREADS: &[(usize, Body)] = &[
        (0, |guest, round| {
            let saw = load(guest, X);
            store(guest, Y, round);
            [saw, 0]
        }),
        (1, |guest, round| {
            let saw = load(guest, Y);
            store(guest, X, round);
            [saw, 0]
        }),
    ];
    litmus("load_buffering", THREADS, |round, saw| saw[0][0] == round && saw[1][0] == round);
}

#[test]
fn independent_reads_of_independent_writes() {
    const THREADS: &[(usize, Body)] = &[
        (0, |guest, round| {
            store(guest, X, round);
            [0, 0]
        }),
        (1, |guest, round| {
            store(guest, Y, round);
            [0, 0]
        }),
        (2, |guest, _| [load(guest, X), load(guest, Y)]),
        (3, |guest, _| [load(guest, Y), load(guest, X)]),
    ];
    litmus("independent_reads_of_independent_writes", THREADS, |round, saw| {
        saw[2] == [round, round - 1] && saw[3] == [round, round - 1]
    });
}

#[test]
fn coherence_of_reads() {
    const THREADS: &[(usize, Body)] = &[
        (1, |guest, round| {
            store(guest, X, round);
            [0, 0]
        }),
        (2, |guest, _| [load(guest, X), load(guest, X)]),
        (3, |guest, _| [load(guest, X), load(guest, X)]),
    ];
    litmus("coherence_of_reads", THREADS, |_, saw| saw.iter().any(|saw| saw[1] < saw[0]));
}
