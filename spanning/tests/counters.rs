//! Atomic increments from all hosts: none is lost.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "in a test a panic is the report")]

mod common;

use common::{Cluster, Options, Vcpu, host, relaxed, skipped, watched};
use std::sync::atomic::Ordering;

const INCREMENTS: u64 = 20_000_000;

fn increments(word: usize) -> Vcpu<'static, ()> {
    Box::new(move |guest| {
        for _ in 0..INCREMENTS {
            guest.word(1, word).fetch_add(1, Ordering::SeqCst);
        }
    })
}

#[test]
fn increments_of_one_counter_by_three_hosts_are_never_lost() {
    if skipped("increments_of_one_counter_by_three_hosts_are_never_lost") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options::default());
        cluster.run((0..4).map(|vcpu| (vcpu % 3, increments(0))).collect());
        for guest in &cluster.guests {
            assert_eq!(relaxed(guest.word(1, 0)), 4 * INCREMENTS);
        }
        let installed: u64 = (0..3).map(|host| cluster.stats(host).counts.installed).sum();
        println!("{installed} hand-overs, host 1: {:?}", cluster.stats(1));
        assert_eq!(cluster.stats(0).peers[0].host, host(1));
        cluster.assert_no_misfits();
    });
}

#[test]
fn counters_of_different_hosts_on_one_page_are_never_lost() {
    if skipped("counters_of_different_hosts_on_one_page_are_never_lost") {
        return;
    }
    watched(|| {
        let cluster = Cluster::new(&Options { jumble: Some(1), ..Options::default() });
        cluster.run((0..3).map(|vcpu| (vcpu, increments(64 * vcpu))).collect());
        for guest in &cluster.guests {
            assert!((0..3).all(|vcpu| relaxed(guest.word(1, 64 * vcpu)) == INCREMENTS));
        }
        cluster.assert_no_misfits();
    });
}
