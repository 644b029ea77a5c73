//! Schedules drawn at random, several faults at a time, for as long as there is time.

use super::{
    guest::{GuestFaults, Side, Writing},
    store::Answer,
    world::{Harm, Schedule, run},
};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::time::{Duration, Instant, SystemTime};
use vmotion_model::MoveRequest;

const TIME: Duration = Duration::from_secs(8);
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

fn harms() -> impl Strategy<Value = Vec<(Side, &'static str, Harm)>> {
    let harm = prop_oneof![
        Just(Harm::Kill(Side::Source)),
        Just(Harm::Kill(Side::Target)),
        Just(Harm::Cancel(Side::Source)),
        Just(Harm::Cancel(Side::Target)),
        Just(Harm::Cut),
        Just(Harm::Blink),
    ];
    let placed = (prop::sample::select(PLACES.to_vec()), harm).prop_map(|((side, state), harm)| (side, state, harm));
    prop::collection::vec(placed, 0..3)
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let late = || (0u64..900).prop_map(Duration::from_millis);
    let answer = prop_oneof![
        3 => Just(Answer::Unreachable),
        3 => Just(Answer::Lost),
        1 => late().prop_map(Answer::DecidedAfter),
        1 => late().prop_map(Answer::AnsweredAfter),
    ];
    prop::collection::vec(answer, 0..4)
}

fn source_faults() -> impl Strategy<Value = GuestFaults> {
    let none = GuestFaults::default;
    prop_oneof![
        8 => Just(none()),
        1 => Just(GuestFaults { save_fails: true, ..none() }),
        1 => Just(GuestFaults { settle_fails: true, ..none() }),
        1 => Just(GuestFaults { pause_fails: true, ..none() }),
        1 => (1u32..5).prop_map(move |number| GuestFaults { fetch_fails_at: Some(number), ..none() }),
        2 => prop::collection::vec((0u64..200).prop_map(Duration::from_millis), 1..3)
            .prop_map(move |takes| GuestFaults { pauses_take: takes.into(), ..none() }),
    ]
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let writing =
        (1u64..512, 0u64..32).prop_map(|(pages, burst)| Writing { pages, burst, every: Duration::from_millis(2) });
    let request = (50u32..300, any::<bool>()).prop_map(|(downtime_ms_max, verify)| MoveRequest {
        downtime_ms_max,
        verify,
        ..MoveRequest::default()
    });
    let loss = prop_oneof![3 => Just(0u32), 1 => 1u32..30];
    (64u64..1500, writing, request, loss, source_faults(), prop::bool::weighted(0.1), answers(), answers(), harms())
        .prop_map(
            |(pages, writing, request, loss_per_mille, source, restore_fails, source_answers, target_answers, harm)| {
                Schedule {
                    pages,
                    writing: Writing { pages: writing.pages.min(pages), ..writing },
                    request,
                    silence: Duration::from_millis(400),
                    loss_per_mille,
                    source,
                    target: GuestFaults { restore_fails, ..GuestFaults::default() },
                    source_answers,
                    target_answers,
                    warm_up: Duration::ZERO,
                    harm,
                }
            },
        )
}

#[test]
fn no_schedule_of_faults_leaves_two_runners_or_a_lost_machine() {
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed =
        std::env::var("VMOTION_SCHEDULE_SEED").ok().map_or(clock.as_nanos() as u64, |seed| seed.parse().unwrap());
    println!("VMOTION_SCHEDULE_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < TIME {
        let schedule = schedules().new_tree(&mut runner).unwrap().current();
        let description = format!("schedule {count} of VMOTION_SCHEDULE_SEED={seed}: {schedule:#?}");
        let checked = std::panic::catch_unwind(|| run(schedule).check());
        let broken = checked.unwrap_or_else(|_| Err("a panic".to_owned()));
        assert!(broken.is_ok(), "{}\n{description}", broken.unwrap_err());
        count += 1;
    }
    println!("{count} schedules in {:.1} s", begun.elapsed().as_secs_f64());
}
