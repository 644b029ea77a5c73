//! A day of 40 hosts and 1,000 machines under each policy, and drains: counts, not times. `cargo nextest run -p vmotion-policy --test replay
//! --no-capture` prints the numbers; `VMOTION_REPLAY_SEED` is the first day, `VMOTION_REPLAY_SEEDS` how many there are.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic in a test is its report, and it prints what it measures"
)]

use vmotion_model::PolicySpec;
use vmotion_policy::{
    simulator::{DAY, Outcome, Policy, Replay, drain, generate, replay, site},
    site::Duty,
};

fn seeds() -> std::ops::RangeInclusive<u64> {
    let set = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = set("VMOTION_REPLAY_SEED").unwrap_or(1);
    first..=first + set("VMOTION_REPLAY_SEEDS").unwrap_or(3) - 1
}

fn days(history_days: usize, seed: u64) -> [Outcome; 3] {
    let fleet = generate(40, 1000, (history_days + 1) * DAY, seed);
    [Policy::None, Policy::NaiveSpread, Policy::Ours].map(|policy| {
        let outcome = replay(&fleet, &Replay { policy, replayed: fleet.last_day(), spec: PolicySpec::default() });
        let Outcome { overloaded, lacking_cpu_h, moves, bytes, returns, .. } = &outcome;
        let gib = *bytes as f64 / f64::from(1 << 30);
        println!(
            "seed {seed}, {history_days} days known, {policy:?}: {overloaded} overloaded, {lacking_cpu_h:.1} h lacking, {moves} moves, {gib:.0} GiB, \
             {returns} back"
        );
        outcome
    })
}

#[test]
fn a_day_with_two_known_days_before_it() {
    for seed in seeds() {
        let [none, naive, ours] = days(2, seed);
        assert!(f64::from(ours.overloaded) <= 0.2 * f64::from(none.overloaded), "{ours:?}");
        assert!(f64::from(ours.moves) <= 0.15 * f64::from(naive.moves), "{} of {}", ours.moves, naive.moves);
        assert!(ours.bytes < naive.bytes / 5);
        assert_eq!(ours.returns, 0);
    }
}

#[test]
fn a_day_of_which_nothing_is_known_before() {
    for seed in seeds() {
        let [none, naive, ours] = days(0, seed);
        assert!(f64::from(ours.overloaded) <= 0.2 * f64::from(none.overloaded), "{ours:?}");
        assert!(ours.moves < naive.moves / 2, "{} of {}", ours.moves, naive.moves);
        assert_eq!(ours.returns, 0);
    }
}

#[test]
fn a_host_is_empty_sooner_than_with_four_moves_at_a_time() {
    let mut shares = Vec::new();
    for seed in seeds() {
        for network in [1.25e9, 3.125e9, 12.5e9] {
            let fleet = generate(12, 720, DAY, seed);
            let mut site = site(&fleet, DAY);
            site.hosts.iter_mut().for_each(|host| host.network_bytes_per_s = network);
            site.hosts[0].duty = Duty::Draining(Some(600_000));
            let (ours, fixed) = (drain(&site, None), drain(&site, Some(4)));
            assert_eq!((ours.moves, ours.moves > 30), (fixed.moves, true));
            let share = ours.ends_ms / fixed.ends_ms;
            println!(
                "seed {seed}, {:.0} Gbit/s: {} moves; ours {:.1} s, {:.1} GiB, {} at a time; four {:.1} s, {:.1} GiB: {share:.2}",
                network * 8e-9,
                ours.moves,
                ours.ends_ms / 1000.0,
                ours.bytes / f64::from(1 << 30),
                ours.at_a_time,
                fixed.ends_ms / 1000.0,
                fixed.bytes / f64::from(1 << 30),
            );
            shares.push(share);
        }
    }
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!(mean <= 0.8, "on average {mean:.2} of the time, {shares:?}");
}
