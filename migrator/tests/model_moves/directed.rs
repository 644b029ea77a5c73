//! One case, one outcome.

use super::{
    guest::{GuestFaults, Writing},
    outcome::Outcome,
    path::Climate,
    schedule::{Harm, Schedule, When},
    store::Answer,
    witness::Side,
    world::run,
};
use std::time::Duration;
use vmotion_migrator::target::TargetOutcome;
use vmotion_model::{Epoch, MoveOutcome, MoveRequest, Strategy};
use vmotion_transport::session::{WIRE_VERSION_COPIES, WIRE_VERSION_MAX};

const SOURCE_STATES: [&str; 5] = ["negotiated", "copying", "paused", "offered", "released"];
const TARGET_STATES: [&str; 5] = ["prepared", "filling", "complete", "armed", "running"];

/// Runs and checks what must always hold.
#[expect(clippy::needless_pass_by_value, reason = "schedules are written where they are run")]
pub(super) fn checked(schedule: Schedule) -> Outcome {
    let outcome = run(&schedule);
    if let Err(broken) = outcome.check(&schedule) {
        panic!("{broken}\n{schedule:?}");
    }
    outcome
}

pub(super) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn must_move(schedule: Schedule) -> Outcome {
    let outcome = checked(schedule);
    assert_eq!(*outcome.result(), MoveOutcome::Moved, "{:?}, {:?}", outcome.states, outcome.arrival);
    assert!(matches!(outcome.arrival, Some(TargetOutcome::Running(_))), "{:?}", outcome.arrival);
    outcome
}

/// The guest runs on at the source, and the reason says `words`.
pub(super) fn must_roll_back(schedule: Schedule, words: &str) -> Outcome {
    let outcome = checked(schedule);
    match outcome.result() {
        MoveOutcome::RolledBack { reason } => assert!(reason.contains(words), "{reason:?} should say {words:?}"),
        other => panic!("{other:?} after {:?}", outcome.states),
    }
    outcome
}

fn source(faults: GuestFaults) -> Schedule {
    Schedule { source: faults, ..Schedule::default() }
}

#[test]
fn a_writing_guest_arrives_byte_for_byte() {
    let outcome = must_move(Schedule::default());
    let summary = outcome.summary.as_ref().unwrap();
    assert_eq!(summary.epoch, Epoch(2));
    assert!(summary.rounds >= 1 && summary.pages.total() >= 1024, "{summary:?}");
    assert!(summary.downtime.source_ms > 0.0 && summary.downtime.target_ms > 0.0, "{:?}", summary.downtime);
}

#[test]
fn a_verified_move_over_a_lossy_path_has_equal_digests() {
    let request = MoveRequest { verify: true, ..MoveRequest::default() };
    let climate = Climate { loss_per_mille: 10, twice_per_mille: 10, late_max: ms(5), ..Climate::default() };
    let outcome = must_move(Schedule { request, climate, ..Schedule::default() });
    assert!(outcome.summary.as_ref().unwrap().digests.as_ref().unwrap().equal());
}

/// A guest that writes a few pages again and again, mostly a word at a time, over a path that is slow.
fn rewriting() -> Schedule {
    let request = MoveRequest {
        bandwidth_max: Some(8 << 20),
        verify: true,
        delta_memory_bytes: Some(2 << 20),
        strategy: Strategy::Precopy,
        ..MoveRequest::default()
    };
    Schedule { request, writing: Writing { pages: 64, burst: 4, every: ms(2) }, ..Schedule::default() }
}

#[test]
fn pages_written_in_part_travel_by_what_changed_and_arrive_whole() {
    let outcome = must_move(rewriting());
    let summary = outcome.summary.as_ref().unwrap();
    assert!(summary.pages.delta > 0, "{:?}", summary.pages);
    assert!(summary.digests.as_ref().unwrap().equal());
}

#[test]
fn an_end_that_does_not_know_deltas_or_a_move_that_may_not_keep_pages_has_none() {
    let without_memory = MoveRequest { delta_memory_bytes: Some(0), ..rewriting().request };
    for schedule in [
        Schedule { deltas: [true, false], ..rewriting() },
        Schedule { deltas: [false, true], ..rewriting() },
        Schedule { request: without_memory, ..rewriting() },
    ] {
        let outcome = must_move(schedule);
        let summary = outcome.summary.as_ref().unwrap();
        assert_eq!(summary.pages.delta, 0, "{:?}", summary.pages);
        assert!(summary.digests.as_ref().unwrap().equal());
    }
}

/// Rounds do not wait for each other there, and what is sent last is sent again.
#[test]
fn over_a_long_lossy_path_guests_arrive_byte_for_byte_by_any_strategy() {
    let climate = Climate { loss_per_mille: 5, twice_per_mille: 10, delay: ms(10), late_max: ms(1) };
    let writing = Writing { pages: 512, burst: 2, every: ms(2) };
    for strategy in [Strategy::Precopy, Strategy::Auto, Strategy::Hybrid, Strategy::Postcopy] {
        // The newest target, and one that knows nothing of this.
        for wire_version in [WIRE_VERSION_MAX, WIRE_VERSION_COPIES - 1] {
            let request = MoveRequest { strategy, ..MoveRequest::default() };
            must_move(Schedule { request, climate, writing, wire_version, ..Schedule::default() });
        }
    }
}

/// What is declared missing is forgotten when a round arrives: none may be on its way then, although rounds do not wait.
#[test]
fn a_hand_over_taken_back_on_a_long_path_is_done_again_after_all_rounds_have_arrived() {
    let climate = Climate { delay: ms(10), loss_per_mille: 5, ..Climate::default() };
    let request = MoveRequest { strategy: Strategy::Hybrid, downtime_ms_max: 100, ..MoveRequest::default() };
    let writing = Writing { pages: 1024, burst: 64, every: ms(2) };
    let harm = vec![(When::Enters(Side::Source, "paused"), Harm::Outage(ms(900)))];
    let outcome = must_move(Schedule { request, writing, climate, harm, ..Schedule::default() });
    assert!(outcome.entered(Side::Source, "serving"), "{:?}", outcome.states);
}

#[test]
fn cancelled_at_any_state_before_the_offer_the_guest_runs_on() {
    for state in ["negotiated", "copying", "paused"] {
        let outcome = checked(Schedule {
            harm: vec![(When::Enters(Side::Source, state), Harm::Cancel(Side::Source))],
            ..Schedule::default()
        });
        assert_eq!(*outcome.result(), MoveOutcome::Cancelled, "cancelled at {state}: {:?}", outcome.states);
        assert!(!outcome.entered(Side::Source, "offered"), "{:?}", outcome.states);
        let Some(TargetOutcome::Discarded(reason)) = &outcome.arrival else { panic!("{:?}", outcome.arrival) };
        assert!(reason.contains("cancelled"), "the target hears why: {reason}");
    }
}

#[test]
fn cancelled_after_the_offer_the_move_goes_on() {
    must_move(Schedule {
        harm: vec![(When::Enters(Side::Source, "offered"), Harm::Cancel(Side::Source))],
        ..Schedule::default()
    });
}

#[test]
fn the_target_can_cancel_until_everything_has_arrived() {
    for state in ["prepared", "filling"] {
        let harm = vec![(When::Enters(Side::Target, state), Harm::Cancel(Side::Target))];
        let outcome = must_roll_back(Schedule { silence: ms(400), harm, ..Schedule::default() }, "");
        assert_eq!(outcome.arrival, Some(TargetOutcome::Discarded("the move was cancelled".to_owned())));
    }
    for state in ["complete", "armed"] {
        must_move(Schedule {
            harm: vec![(When::Enters(Side::Target, state), Harm::Cancel(Side::Target))],
            ..Schedule::default()
        });
    }
}

#[test]
fn a_target_that_cannot_load_the_state_gives_the_guest_back() {
    let target = GuestFaults { restore_fails: true, ..GuestFaults::default() };
    let outcome = must_roll_back(Schedule { target, ..Schedule::default() }, "restore fails");
    assert!(outcome.entered(Side::Source, "reclaimed"), "{:?}", outcome.states);
    assert_eq!(outcome.record.read().epoch, Epoch(2), "a reclaim has an epoch of its own");
}

#[test]
fn what_fails_at_the_source_leaves_the_guest_running_and_no_tracking() {
    let faults = GuestFaults::default();
    let cases = [
        (GuestFaults { no_tracker: true, ..faults.clone() }, "tracker fails"),
        (GuestFaults { tracker_does_not_start: true, ..faults.clone() }, "start, as scheduled"),
        (GuestFaults { fetch_fails_at: Some(1), ..faults.clone() }, "fetch, as scheduled"),
        (GuestFaults { pause_fails: true, ..faults.clone() }, "pause fails"),
        (GuestFaults { save_fails: true, ..faults.clone() }, "save fails"),
        (GuestFaults { settle_fails: true, ..faults }, "settle fails"),
    ];
    for (faults, words) in cases {
        let outcome = must_roll_back(source(faults), words);
        assert_eq!(outcome.record.read().epoch, Epoch::FIRST, "nobody asked the record");
    }
}

#[test]
fn dirty_pages_that_cannot_be_fetched_inside_the_pause_end_it() {
    // An idle guest is paused after one round: the second fetch is the one of the pause.
    let writing = Writing { pages: 1, burst: 0, every: ms(5) };
    let faults = GuestFaults { fetch_fails_at: Some(2), ..GuestFaults::default() };
    let outcome = must_roll_back(Schedule { writing, source: faults, ..Schedule::default() }, "fetch, as scheduled");
    assert_eq!(outcome.witness.starts(Side::Source), 2, "paused once, and resumed");
}

#[test]
fn a_pause_that_takes_too_long_is_taken_back_and_tried_again() {
    let request = MoveRequest { downtime_ms_max: 100, ..MoveRequest::default() };
    let faults = GuestFaults { pauses_take: [ms(150)].into(), ..GuestFaults::default() };
    let outcome = must_move(Schedule { request, ..source(faults) });
    assert_eq!(outcome.witness.starts(Side::Source), 2, "the first pause was taken back");
}

#[test]
fn a_guest_that_never_pauses_in_time_is_given_up() {
    let request = MoveRequest { downtime_ms_max: 100, ..MoveRequest::default() };
    let faults = GuestFaults { pauses_take: vec![ms(150); 10].into(), ..GuestFaults::default() };
    let outcome = must_roll_back(Schedule { request, ..source(faults) }, "where 100 ms are allowed");
    assert_eq!(outcome.witness.starts(Side::Source), 5, "four pauses, all taken back");
}

#[test]
fn a_state_that_is_saved_too_slowly_ends_the_pause() {
    let request = MoveRequest { downtime_ms_max: 50, ..MoveRequest::default() };
    let faults = GuestFaults { save_takes: ms(700), ..GuestFaults::default() };
    must_roll_back(Schedule { request, ..source(faults) }, "longer than the pause allows");
}

#[test]
fn a_guest_that_writes_faster_than_the_path_carries_is_given_up_with_numbers() {
    let strategy = Strategy::Precopy;
    let request = MoveRequest { downtime_ms_max: 20, bandwidth_max: Some(8 << 20), strategy, ..MoveRequest::default() };
    let writing = Writing { pages: 512, burst: 512, every: ms(5) };
    let outcome = must_roll_back(Schedule { pages: 512, request, writing, ..Schedule::default() }, "does not converge");
    let MoveOutcome::RolledBack { reason } = outcome.result() else { unreachable!() };
    assert!(reason.contains("MiB/s") && reason.contains("20 ms are allowed"), "{reason}");
    assert_eq!(outcome.witness.starts(Side::Source), 1, "it never noticed");
}

#[test]
fn a_store_that_is_away_at_the_commit_is_asked_until_it_answers() {
    must_move(Schedule { target_answers: vec![Answer::Unreachable; 4], ..Schedule::default() });
}

#[test]
fn a_decision_whose_answer_was_lost_still_counts() {
    must_move(Schedule { target_answers: vec![Answer::Lost; 3], ..Schedule::default() });
    // The same when the source asks back.
    let target = GuestFaults { restore_fails: true, ..GuestFaults::default() };
    must_roll_back(Schedule { target, source_answers: vec![Answer::Lost; 3], ..Schedule::default() }, "restore fails");
}

#[test]
fn a_target_that_decides_too_late_loses_the_record_to_the_source() {
    let request = MoveRequest { downtime_ms_max: 50, ..MoveRequest::default() };
    let target_answers = vec![Answer::DecidedAfter(ms(1500))];
    let outcome = must_roll_back(Schedule { request, target_answers, ..Schedule::default() }, "longer than allowed");
    let Some(TargetOutcome::Discarded(reason)) = &outcome.arrival else { panic!("{:?}", outcome.arrival) };
    assert!(reason.contains("owner record"), "{reason}");
    assert_eq!(outcome.witness.starts(Side::Target), 0);
}

#[test]
fn a_source_that_asks_back_too_late_hears_that_the_machine_moved() {
    let request = MoveRequest { downtime_ms_max: 50, ..MoveRequest::default() };
    let target_answers = vec![Answer::AnsweredAfter(ms(1000))];
    let outcome = must_move(Schedule { request, target_answers, ..Schedule::default() });
    assert_eq!(outcome.witness.starts(Side::Source), 1, "it never ran again");
}

#[test]
fn both_race_for_the_record_and_one_wins() {
    let request = MoveRequest { downtime_ms_max: 50, ..MoveRequest::default() };
    // The source asks back 550 ms after the pause; the target's question arrives at about that time.
    for late in [535, 545, 550, 555] {
        checked(Schedule {
            request: request.clone(),
            target_answers: vec![Answer::DecidedAfter(ms(late))],
            ..Schedule::default()
        });
    }
}

#[test]
fn a_store_that_does_not_warm_up_does_not_hold_up_a_cancellation() {
    let writing = Writing { pages: 1, burst: 0, every: ms(5) };
    let schedule = Schedule { writing, warm_up: ms(3000), ..Schedule::default() };
    let begun = std::time::Instant::now();
    let harm = vec![(When::Enters(Side::Source, "copying"), Harm::CancelSoon(Side::Source))];
    assert_eq!(*checked(Schedule { harm, ..schedule }).result(), MoveOutcome::Cancelled);
    assert!(begun.elapsed() < ms(2500), "{:?}", begun.elapsed());
}

#[test]
fn either_process_killed_at_any_state_leaves_one_runner_or_none_if_it_was_the_owner() {
    for side in Side::BOTH {
        for state in SOURCE_STATES {
            checked(Schedule::harmed(Side::Source, state, Harm::Kill(side)));
        }
        for state in TARGET_STATES {
            checked(Schedule::harmed(Side::Target, state, Harm::Kill(side)));
        }
    }
}

#[test]
fn the_network_cut_at_any_state_leaves_one_runner() {
    for harm in [Harm::Cut, Harm::Outage(ms(100))] {
        for state in SOURCE_STATES {
            checked(Schedule::harmed(Side::Source, state, harm));
        }
        for state in TARGET_STATES {
            checked(Schedule::harmed(Side::Target, state, harm));
        }
    }
}
