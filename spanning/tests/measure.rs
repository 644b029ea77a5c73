//! What a fault costs whose page is on another host, without a network: nothing is asserted.
//!
//! ```text
//! cargo test -p vmotion-spanning --test measure -- --ignored --nocapture
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "in a test a panic is the report"
)]

mod common;

use common::{Cluster, Guest, Options, Vcpu, relaxed, skipped};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use vmotion_spanning::memory::Cost;

const PAGES: u64 = 32 * 512;

/// Pages whose home is host 1 of two.
fn away(thread: u64, threads: u64) -> impl Iterator<Item = u64> {
    (0..PAGES).filter(|page| (page / 512) % 2 == 1).filter(move |page| page % threads == thread)
}

fn print(what: &str, times: Vec<Vec<Duration>>, took: Duration) {
    let mut all: Vec<_> = times.into_iter().flatten().collect();
    all.sort_unstable();
    let at = |share: usize| all[all.len() * share / 1000].as_nanos() as f64 / 1000.0;
    let rate = all.len() as f64 / took.as_secs_f64();
    println!("{what:40} {rate:8.0} a second   p50 {:7.1}   p99 {:7.1}   p999 {:7.1} µs", at(500), at(990), at(999));
}

fn touch_all(cluster: &Cluster, what: &str, threads: u64, touch: fn(&Guest, u64)) {
    let vcpu = |thread: u64| {
        let run = move |guest: &Guest| {
            let time = |page| {
                let start = Instant::now();
                touch(guest, page);
                start.elapsed()
            };
            away(thread, threads).map(time).collect::<Vec<_>>()
        };
        (0, Box::new(run) as Vcpu<'_, Vec<Duration>>)
    };
    let start = Instant::now();
    let times = cluster.run((0..threads).map(vcpu).collect());
    print(what, times, start.elapsed());
}

fn costs(cluster: &Cluster) {
    let (messages, sending) = (&cluster.fabric.messages, &cluster.fabric.sending_ns);
    let sending = sending.load(Ordering::Relaxed) as f64 / messages.load(Ordering::Relaxed) as f64 / 1000.0;
    println!("  the test's own mesh takes {sending:.2} µs to pass a message on");
    let stalls = cluster.stats(0).faults;
    println!(
        "  from the event that is read to the page that is mapped: reads p50 {:.1}, writes p50 {:.1} µs; before and after that is the \
         fault's way to the node, and the thread's way back",
        stalls.reads_away.p50.as_nanos() as f64 / 1000.0,
        stalls.writes_away.p50.as_nanos() as f64 / 1000.0,
    );
    for host in 0..2 {
        let stats = cluster.stats(host);
        let costs = stats.costs;
        let us = |cost: Cost| cost.mean().as_nanos() as f64 / 1000.0;
        let calls =
            [costs.reading_faults, costs.placing, costs.filling, costs.installing, costs.revoking, costs.copying];
        let inside: Duration = calls.iter().map(|cost| cost.total).sum();
        let sent: u64 = stats.peers.iter().map(|peer| peer.traffic.messages_sent).sum();
        let rest = costs.passes.total.saturating_sub(inside).as_nanos() as f64 / 1000.0 - sent as f64 * sending;
        println!(
            "  host {host}: read faults {:.2}, place {:.2}, fill {:.2}, install {:.2}, revoke {:.2}, copy {:.2}; pass {:.2}, of which {:.2} are \
             neither calls nor sending µs",
            us(costs.reading_faults),
            us(costs.placing),
            us(costs.filling),
            us(costs.installing),
            us(costs.revoking),
            us(costs.copying),
            us(costs.passes),
            rest / costs.passes.times as f64,
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn remote_faults() {
    if skipped("remote_faults") {
        return;
    }
    for measures in [true, false] {
        for threads in [1, 4] {
            let cluster = Cluster::new(&Options { hosts: 2, pages: PAGES, measures, audit: false, jumble: None });
            touch_all(&cluster, &format!("zero page, read, {threads} threads"), threads, |guest, page| {
                assert_eq!(relaxed(guest.word(page, 0)), 0);
            });
            for page in away(0, 1) {
                cluster.guests[1].word(page, 0).store(page + 1, Ordering::Relaxed);
            }
            touch_all(
                &cluster,
                &format!("the home has written it, read, {threads} threads"),
                threads,
                |guest, page| {
                    assert_eq!(relaxed(guest.word(page, 0)), page + 1);
                },
            );
            touch_all(&cluster, &format!("the home reads it too, write, {threads} threads"), threads, |guest, page| {
                guest.word(page, 0).store(page + 2, Ordering::Relaxed);
            });
            for page in away(0, 1) {
                cluster.guests[1].word(page, 0).store(page + 1, Ordering::Relaxed);
            }
            touch_all(
                &cluster,
                &format!("the home has written it, write, {threads} threads"),
                threads,
                |guest, page| {
                    guest.word(page, 0).store(page + 2, Ordering::Relaxed);
                },
            );
            if measures {
                costs(&cluster);
            }
        }
    }
}
