//! Schedules drawn at random, several faults at a time, for every strategy in turn.

use super::{
    guest::{GuestFaults, Writing},
    path::Climate,
    schedule::{Harm, Schedule, When},
    store::Answer,
    witness::Side,
    world::run,
};
use proptest::{
    prelude::*,
    strategy::{Strategy, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use vmotion_migrator::target::TargetOutcome;
use vmotion_model::{MoveOutcome, MoveRequest, Strategy as Way};
use vmotion_transport::session::{WIRE_VERSION_COPIES, WIRE_VERSION_MAX};

/// Schedules of a run, unless `VMOTION_SCHEDULES` says otherwise.
const SCHEDULES: u64 = 2000;
/// Schedules at work at a time: most of what they do is waiting for what does not come.
const AT_A_TIME: usize = 24;
/// Outages from this length on, in ms, are borne when nothing else happens: an offer is not heard, and is taken back.
const OUTAGE_WITHIN_PATIENCE: u64 = 900;
const WAYS: [Way; 4] = [Way::Auto, Way::Precopy, Way::Postcopy, Way::Hybrid];

const PLACES: [(Side, &str); 10] = [
    (Side::Source, "negotiated"),
    (Side::Source, "copying"),
    (Side::Source, "paused"),
    (Side::Source, "offered"),
    (Side::Source, "released"),
    (Side::Target, "prepared"),
    (Side::Target, "filling"),
    (Side::Target, "complete"),
    (Side::Target, "armed"),
    (Side::Target, "running"),
];
/// Where memory follows. Several times, for there they matter most.
const FOLLOWING_PLACES: [(Side, &str); 8] = [
    (Side::Source, "serving"),
    (Side::Target, "pulling"),
    (Side::Source, "serving"),
    (Side::Target, "pulling"),
    (Side::Source, "serving"),
    (Side::Target, "pulling"),
    (Side::Source, "stranded"),
    (Side::Target, "stranded"),
];

fn ms(range: std::ops::Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn harms(way: Way) -> impl Strategy<Value = Vec<(When, Harm)>> {
    let harm = || {
        prop_oneof![
            2 => Just(Harm::Kill(Side::Source)),
            2 => Just(Harm::Kill(Side::Target)),
            2 => Just(Harm::Cancel(Side::Source)),
            1 => Just(Harm::Cancel(Side::Target)),
            2 => Just(Harm::Cut),
            3 => ms(20..900).prop_map(Harm::Outage),
            1 => Just(Harm::CutDemand),
        ]
    };
    let following = FOLLOWING_PLACES.iter().filter(|_| way != Way::Precopy);
    let places: Vec<_> = PLACES.iter().chain(following).copied().collect();
    let place = prop::sample::select(places).prop_map(|(side, state)| When::Enters(side, state));
    let when = prop_oneof![2 => place, 1 => ms(0..600).prop_map(When::After)];
    prop_oneof![10 => Just(Vec::new()), 20 => prop::collection::vec((when, harm()), 1..3), 1 => unheard_offers()]
}

/// The path is gone for longer than the pause may take, and comes back before anybody takes the other for lost.
fn unheard_offers() -> impl Strategy<Value = Vec<(When, Harm)>> {
    let place = prop::sample::select(vec!["paused", "offered"]).prop_map(|state| When::Enters(Side::Source, state));
    (place, ms(OUTAGE_WITHIN_PATIENCE..1500)).prop_map(|(when, outage)| vec![(when, Harm::Outage(outage))])
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let answer = prop_oneof![
        3 => Just(Answer::Unreachable),
        3 => Just(Answer::Lost),
        1 => ms(0..900).prop_map(Answer::DecidedAfter),
        1 => ms(0..900).prop_map(Answer::AnsweredAfter),
    ];
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(answer, 1..5)]
}

fn source_faults() -> impl Strategy<Value = GuestFaults> {
    let none = GuestFaults::default;
    prop_oneof![
        30 => Just(none()),
        1 => Just(GuestFaults { save_fails: true, ..none() }),
        1 => Just(GuestFaults { settle_fails: true, ..none() }),
        1 => Just(GuestFaults { pause_fails: true, ..none() }),
        1 => ms(0..900).prop_map(move |save_takes| GuestFaults { save_takes, ..none() }),
        1 => (1u32..5).prop_map(move |number| GuestFaults { fetch_fails_at: Some(number), ..none() }),
        2 => prop::collection::vec(ms(0..200), 1..3)
            .prop_map(move |takes| GuestFaults { pauses_take: takes.into(), ..none() }),
    ]
}

fn target_faults() -> impl Strategy<Value = GuestFaults> {
    let fails = || prop::bool::weighted(0.03);
    (fails(), fails(), 0u64..3).prop_map(|(restore_fails, follow_fails, restore_reads)| GuestFaults {
        restore_fails,
        follow_fails,
        restore_reads,
        ..GuestFaults::default()
    })
}

fn climates() -> impl Strategy<Value = Climate> {
    let sometimes = |per_mille: u32| prop_oneof![3 => Just(0u32), 1 => 1..per_mille];
    let late = prop_oneof![3 => Just(Duration::ZERO), 1 => ms(1..20)];
    // From a round trip of 10 ms on rounds do not wait for each other.
    let delay = prop_oneof![3 => Just(Duration::ZERO), 1 => ms(1..15)];
    (sometimes(30), sometimes(100), delay, late).prop_map(|(loss_per_mille, twice_per_mille, delay, late_max)| {
        Climate { loss_per_mille, twice_per_mille, delay, late_max }
    })
}

fn requests(way: Way) -> impl Strategy<Value = MoveRequest> {
    // A slow path makes what remains worth a hand-over, and keeps a guest waiting for what follows it.
    let bandwidth = prop_oneof![1 => Just(None), 1 => (21u32..25).prop_map(|shift| Some(1 << shift))];
    let rounds = prop_oneof![2 => Just(60u32), 1 => 1u32..4];
    // Some cannot be kept, and some hand the guest over.
    let intents = (prop::option::weighted(0.2, 400u64..4000), prop::bool::weighted(0.03));
    // By default only a few versions of a guest as small as these are kept.
    let delta_memory = prop_oneof![4 => Just(None), 4 => Just(Some(1 << 20)), 1 => Just(Some(0))];
    (20u32..300, bandwidth, rounds, prop::bool::weighted(0.2), intents, delta_memory).prop_map(
        move |(downtime_ms_max, bandwidth_max, rounds_max, verify, (deadline_ms, survey), delta_memory_bytes)| {
            MoveRequest {
                downtime_ms_max,
                bandwidth_max,
                rounds_max,
                verify: verify && matches!(way, Way::Auto | Way::Precopy),
                strategy: way,
                deadline_ms,
                survey,
                delta_memory_bytes,
                ..MoveRequest::default()
            }
        },
    )
}

fn schedules(way: Way) -> impl Strategy<Value = Schedule> {
    // Some are large enough for `auto` to look at a sample of what is written.
    let sizes = prop_oneof![30 => 64u64..320, 1 => 4096u64..5000];
    let writing = (sizes, 0u64..100, 0u64..10).prop_map(|(pages, percent, burst)| {
        let written = pages * percent / 100;
        (pages, Writing { pages: written.max(1), burst, every: Duration::from_millis(2) })
    });
    let features = (prop::bool::weighted(0.95), prop::bool::weighted(0.95), prop::bool::weighted(0.95));
    let guests = (writing, source_faults(), target_faults());
    let versions = prop_oneof![4 => Just(WIRE_VERSION_MAX), 1 => Just(WIRE_VERSION_COPIES - 1)];
    let world = (climates(), answers(), answers(), harms(way), (features, versions), any::<u32>());
    (guests, requests(way), world).prop_map(
        |(
            ((pages, writing), source, target),
            request,
            (climate, source_answers, target_answers, harm, ((follows, at_source, at_target), wire_version), seed),
        )| {
            let mut schedule = Schedule {
                pages,
                writing,
                request,
                follows,
                deltas: [at_source, at_target],
                wire_version,
                climate,
                source,
                target,
                source_answers,
                target_answers,
                harm,
                seed,
                ..Schedule::default()
            };
            // A large guest on a slow path would only take long.
            let least = pages << 11;
            schedule.request.bandwidth_max = schedule.request.bandwidth_max.map(|rate: u64| rate.max(least));
            // Where nothing happens to the path nobody may be taken for lost, however busy this machine is.
            let within_patience = |harm: &Harm| {
                matches!(harm, Harm::Outage(outage) if outage.as_millis() >= u128::from(OUTAGE_WITHIN_PATIENCE))
            };
            let patient = schedule.harm.iter().any(|(_, harm)| within_patience(harm));
            let silence = if schedule.may_strand() && !patient { 300 } else { 10_000 };
            schedule.silence = Duration::from_millis(silence);
            schedule
        },
    )
}

fn setting(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Schedule `number` of the run with `seed`; it is the same one whatever ran before.
fn schedule(seed: u64, number: u64) -> Schedule {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let way = WAYS[(number % WAYS.len() as u64) as usize];
    schedules(way).new_tree(&mut runner).unwrap().current()
}

/// What became of all of them.
#[derive(Default)]
struct Tally {
    ends: BTreeMap<(&'static str, &'static str), u64>,
    checked: u64,
    demanded: u64,
    deltas: u64,
    failure: Option<String>,
}

fn one(seed: u64, number: u64, tally: &Mutex<Tally>) {
    let schedule = schedule(seed, number);
    let checked = std::panic::catch_unwind(|| {
        let outcome = run(&schedule);
        outcome.check(&schedule).map(|()| {
            let end = match (&outcome.summary, &outcome.arrival) {
                (Some(summary), _) => match summary.outcome {
                    MoveOutcome::Moved if outcome.moved_after_renewal() => "moved after a renewal",
                    MoveOutcome::Moved => "moved",
                    MoveOutcome::Cancelled => "cancelled",
                    MoveOutcome::Surveyed => "surveyed",
                    MoveOutcome::RolledBack { .. } => "rolled back",
                    MoveOutcome::Stranded { .. } | MoveOutcome::SourceLost { .. } => "stranded",
                    MoveOutcome::Partly { .. } => "of pieces, which no guest here has",
                },
                (None, Some(TargetOutcome::Running(_))) => "source killed, moved",
                (None, Some(TargetOutcome::Failed { .. })) => "source killed, stranded",
                (None, Some(TargetOutcome::Discarded(_))) => "source killed, lost with it",
                (None, None) => "both killed",
            };
            let deltas = outcome.summary.as_ref().map_or(0, |summary| summary.pages.delta);
            (end, outcome.witness.checked(), outcome.witness.demanded(), deltas)
        })
    });
    let broken = checked.unwrap_or_else(|_| Err("a panic".to_owned()));
    let mut tally = tally.lock().unwrap();
    match broken {
        Ok((end, checked, demanded, deltas)) => {
            let way = match schedule.request.strategy {
                Way::Auto => "auto",
                Way::Precopy => "precopy",
                Way::Postcopy => "postcopy",
                Way::Hybrid => "hybrid",
            };
            *tally.ends.entry((way, end)).or_default() += 1;
            tally.checked += checked;
            tally.demanded += demanded;
            tally.deltas += deltas;
        }
        Err(what) => {
            let repeat = format!("VMOTION_SCHEDULE_SEED={seed} VMOTION_SCHEDULE={number}");
            println!("{what}\n{repeat}: {schedule:#?}");
            tally.failure.get_or_insert_with(|| format!("{what}; repeat it with {repeat}"));
        }
    }
}

#[test]
fn no_schedule_of_faults_leaves_two_runners_or_a_lost_machine_or_a_wrong_page() {
    let seed = setting("VMOTION_SCHEDULE_SEED").unwrap_or(1);
    let numbers = match setting("VMOTION_SCHEDULE") {
        Some(only) => only..only + 1,
        None => 0..setting("VMOTION_SCHEDULES").unwrap_or(SCHEDULES),
    };
    let count = numbers.end - numbers.start;
    println!("VMOTION_SCHEDULE_SEED={seed} VMOTION_SCHEDULES={count}");
    let (next, tally, begun) = (AtomicU64::new(numbers.start), Mutex::new(Tally::default()), Instant::now());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(count as usize) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end || tally.lock().unwrap().failure.is_some() {
                        return;
                    }
                    one(seed, number, &tally);
                }
            });
        }
    });
    let Tally { ends, checked, demanded, deltas, failure } = tally.into_inner().unwrap();
    for ((way, end), times) in &ends {
        println!("{way:>9} {times:5} {end}");
    }
    println!(
        "{count} schedules in {:.1} s: {checked} pages compared, {demanded} demanded, {deltas} sent by what changed",
        begun.elapsed().as_secs_f64()
    );
    assert!(failure.is_none(), "{}", failure.unwrap());
    // What explores nothing proves nothing.
    if count >= 1000 {
        for way in ["auto", "precopy", "postcopy", "hybrid"] {
            for end in ["moved", "rolled back", "moved after a renewal"] {
                assert!(ends.contains_key(&(way, end)), "{way}, {end}: {ends:?}");
            }
        }
        assert!(ends.contains_key(&("postcopy", "stranded")) && demanded > 0, "{ends:?}");
        assert!(deltas > 100, "{deltas} pages were sent by what changed");
    }
}
