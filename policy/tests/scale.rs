//! How long a plan takes and how much memory, by the size of the site: `cargo test -p vmotion-policy --test scale -- --ignored
//! --nocapture`. One processor.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic in a test is its report, and it prints what it measures"
)]

use std::time::Instant;
use vmotion_model::{Demand, Domain, Rule};
use vmotion_policy::{
    Effort, Goal, plan,
    simulator::{DAY, generate, site},
    site::{Duty, Site},
};

/// A bit of everything: one host in a hundred is drained, every third machine is under a rule.
fn sized(hosts: usize, machines: usize) -> Site {
    let fleet = generate(hosts, machines, DAY / 4, 1);
    let mut site = site(&fleet, DAY / 4);
    site.policy.moves_per_hour_max = u32::try_from(hosts / 2).unwrap();
    for host in (0..hosts).step_by(100) {
        site.hosts[host].duty = Duty::Draining(None);
    }
    for group in 0..machines / 30 {
        let first = group * 30;
        let names = [0, 7, 13].map(|more| format!("vm{:06}", first + more).parse().unwrap()).to_vec();
        let demand = Demand::AntiAffinity { across: Domain::Host };
        site.rules.push(Rule { name: format!("apart-{group}"), machines: names, demand });
    }
    for group in 0..10 {
        let machines = vec![format!("vm{group:02}*").parse().unwrap()];
        let demand = Demand::Residency { datacenters: vec!["dc1".parse().unwrap()] };
        site.rules.push(Rule { name: format!("here-{group}"), machines, demand });
    }
    site
}

/// This thread's time on a processor, in s: other work on the machine does not count.
fn processor_s() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    told.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "a measurement"]
fn how_long_a_plan_takes() {
    println!("| hosts | machines | plan | on a processor | steps | overloaded hosts | loss | site alone | peak |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (hosts, machines) in
        [(40, 1_000), (126, 3_162), (400, 10_000), (1_265, 31_623), (4_000, 100_000), (10_000, 250_000)]
    {
        let site = sized(hosts, machines);
        let alone = peak_mib();
        let (begun, before) = (Instant::now(), processor_s());
        let plan = plan(&site, Goal::ALL, Effort::for_machines(machines));
        let (took, on_processor) = (begun.elapsed(), processor_s() - before);
        println!(
            "| {hosts} | {machines} | {:.2} s{} | {on_processor:.2} s | {} | {} to {} | {:.1} to {:.1} | {alone} MiB | {} MiB |",
            took.as_secs_f64(),
            if plan.cut_short { " (cut short)" } else { "" },
            plan.steps.len(),
            plan.before.hosts_overloaded,
            plan.after.hosts_overloaded,
            plan.before.loss,
            plan.after.loss,
            peak_mib(),
        );
        assert!(!plan.steps.is_empty() && plan.after.loss < plan.before.loss);
    }
}
