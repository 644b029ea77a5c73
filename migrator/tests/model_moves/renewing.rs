//! Offers that are not heard in time, because the path is gone for a while: they are taken back, and the move goes on.

use super::{
    directed::{checked, ms, must_move, must_roll_back},
    guest::Writing,
    outcome::Outcome,
    schedule::{Harm, Schedule, When},
    store::Answer,
    witness::Side,
};
use vmotion_migrator::target::TargetOutcome;
use vmotion_model::{Epoch, MoveOutcome, MoveRequest, Strategy};

const STRATEGIES: [Strategy; 4] = [Strategy::Precopy, Strategy::Postcopy, Strategy::Hybrid, Strategy::Auto];

/// Longer than the pause may take, shorter than a peer that is taken for lost.
const OUTAGE: Harm = Harm::Outage(ms(1300));

fn unheard(strategy: Strategy, harm: Harm) -> Schedule {
    let request = MoveRequest { strategy, downtime_ms_max: 300, ..MoveRequest::default() };
    let harm = vec![(When::Enters(Side::Source, "offered"), harm)];
    Schedule { request, harm, silence: ms(20_000), ..Schedule::default() }
}

fn must_renew(schedule: Schedule) -> Outcome {
    let outcome = must_move(schedule);
    assert!(outcome.moved_after_renewal(), "{:?}: {:?}", outcome.record.history(), outcome.states);
    assert!(outcome.witness.starts(Side::Source) > 1, "the guest went on meanwhile");
    outcome
}

#[test]
fn an_offer_that_nobody_hears_is_taken_back_and_the_move_goes_on() {
    for strategy in STRATEGIES {
        let outcome = must_renew(unheard(strategy, OUTAGE));
        let summary = outcome.summary.as_ref().unwrap();
        assert!(summary.epoch >= Epoch(3), "{strategy}: {:?}", summary.epoch);
        assert!(summary.downtime.source_ms > 0.0, "{strategy}: {:?}", summary.downtime);
    }
}

#[test]
fn a_guest_that_is_handed_over_after_all_is_served_from_what_it_has_written_meanwhile() {
    // It is everywhere at once, and what follows it takes its time.
    let writing = Writing { pages: 512, burst: 4, every: ms(2) };
    for strategy in [Strategy::Postcopy, Strategy::Hybrid] {
        let schedule = unheard(strategy, OUTAGE);
        let request = MoveRequest { bandwidth_max: Some(2 << 20), rounds_max: 1, ..schedule.request.clone() };
        let outcome = must_renew(Schedule { writing, request, ..schedule });
        assert!(outcome.entered(Side::Source, "serving"), "{strategy}: {:?}", outcome.states);
    }
}

#[test]
fn a_pause_that_the_path_does_not_let_through_is_taken_back_one_way_or_the_other() {
    for strategy in STRATEGIES {
        let harm = vec![(When::Enters(Side::Source, "paused"), OUTAGE)];
        let outcome = must_move(Schedule { harm, ..unheard(strategy, OUTAGE) });
        assert!(outcome.witness.starts(Side::Source) > 1, "{:?}", outcome.states);
    }
}

#[test]
fn offers_that_are_never_heard_are_given_up() {
    let outcome = must_roll_back(unheard(Strategy::Precopy, Harm::Outages(ms(1300))), "longer than allowed");
    assert!(outcome.entered(Side::Source, "reclaimed"), "{:?}", outcome.states);
    assert_eq!(outcome.record.read().epoch, Epoch(5), "three offers were taken back, then the machine");
}

#[test]
fn a_path_that_does_not_come_back_leaves_the_guest_where_it_runs() {
    for strategy in STRATEGIES {
        let outcome = must_roll_back(Schedule { silence: ms(2000), ..unheard(strategy, Harm::Cut) }, "");
        assert_eq!(outcome.record.read().epoch, Epoch(2), "{:?}", outcome.states);
        assert_eq!(outcome.summary.as_ref().unwrap().epoch, Epoch(2));
    }
}

#[test]
fn a_cancellation_while_the_offer_is_not_heard_counts_once_it_is_taken_back() {
    let schedule = unheard(Strategy::Precopy, OUTAGE);
    let cancel = (When::Enters(Side::Source, "offered"), Harm::Cancel(Side::Source));
    let harm = schedule.harm.iter().copied().chain([cancel]).collect();
    let outcome = checked(Schedule { harm, ..schedule });
    assert_eq!(*outcome.result(), MoveOutcome::Cancelled, "{:?}", outcome.states);
    assert_eq!(outcome.record.read().epoch, Epoch(2));
    assert!(matches!(outcome.arrival, Some(TargetOutcome::Discarded(_))), "{:?}", outcome.arrival);
}

#[test]
fn a_target_that_does_not_know_of_renewals_is_left_as_before() {
    let schedule = Schedule { wire_version: 1, silence: ms(3000), ..unheard(Strategy::Precopy, OUTAGE) };
    let outcome = must_roll_back(schedule, "longer than allowed");
    assert!(outcome.entered(Side::Source, "reclaimed"), "{:?}", outcome.states);
    assert_eq!(outcome.record.read().epoch, Epoch(2));
}

#[test]
fn whoever_dies_after_an_offer_was_taken_back_leaves_one_runner() {
    for strategy in STRATEGIES {
        for victim in Side::BOTH {
            for (side, state) in [(Side::Target, "complete"), (Side::Target, "armed"), (Side::Source, "released")] {
                let schedule = Schedule { silence: ms(3000), ..unheard(strategy, OUTAGE) };
                let kill = (When::Enters(side, state), Harm::Kill(victim));
                let harm = schedule.harm.iter().copied().chain([kill]).collect();
                checked(Schedule { harm, ..schedule });
            }
        }
    }
}

#[test]
fn a_store_that_answers_late_or_not_at_all_decides_all_the_same() {
    for answer in [Answer::Lost, Answer::Unreachable, Answer::AnsweredAfter(ms(800)), Answer::DecidedAfter(ms(800))] {
        for strategy in STRATEGIES {
            checked(Schedule {
                source_answers: vec![answer, answer],
                target_answers: vec![answer],
                ..unheard(strategy, OUTAGE)
            });
        }
    }
}
