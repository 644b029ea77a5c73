//! Memory that follows a guest: one case, one outcome.

use super::{
    directed::{checked, ms, must_move, must_roll_back},
    guest::{GuestFaults, Writing},
    outcome::Outcome,
    schedule::{Harm, Schedule, When},
    store::Answer,
    witness::Side,
};
use vmotion_migrator::target::TargetOutcome;
use vmotion_model::{MoveOutcome, MoveRequest, Strategy};

fn by(strategy: Strategy) -> MoveRequest {
    MoveRequest { strategy, ..MoveRequest::default() }
}

/// A path on which what follows takes a second and a half, and a guest that is everywhere at once.
fn slow_postcopy() -> Schedule {
    // A busy machine is not what is tested.
    let request = MoveRequest { bandwidth_max: Some(2 << 20), downtime_ms_max: 3000, ..by(Strategy::Postcopy) };
    let writing = Writing { pages: 512, burst: 4, every: ms(2) };
    Schedule { request, writing, silence: ms(1500), ..Schedule::default() }
}

fn harmed(side: Side, state: &'static str, harm: Harm) -> Schedule {
    Schedule { harm: vec![(When::Enters(side, state), harm)], ..slow_postcopy() }
}

/// The guest is lost, and whoever lives says so.
fn must_strand(schedule: Schedule) -> Outcome {
    let outcome = checked(schedule);
    if let Some(summary) = &outcome.summary {
        assert!(matches!(summary.outcome, MoveOutcome::Stranded { .. }), "{:?}", summary.outcome);
    }
    match &outcome.arrival {
        Some(TargetOutcome::Failed { reason, .. }) => assert!(reason.contains("pages are missing"), "{reason}"),
        Some(other) => panic!("{other:?} after {:?}", outcome.states),
        None => {}
    }
    assert_eq!(outcome.owner(), Side::Target);
    outcome
}

#[test]
fn a_guest_whose_memory_follows_reads_what_it_wrote() {
    let schedule = Schedule { silence: ms(5000), ..slow_postcopy() };
    let outcome = must_move(schedule);
    assert!(outcome.entered(Side::Source, "serving") && outcome.entered(Side::Target, "pulling"));
    let summary = outcome.summary.as_ref().unwrap();
    assert_eq!(summary.rounds, 0);
    assert!(summary.follow.is_some_and(|follow| follow.demanded_pages > 0), "{:?}", summary.follow);
    assert!(outcome.witness.demanded() > 0);
}

#[test]
fn hybrid_and_auto_hand_over_a_guest_that_does_not_converge() {
    let writing = Writing { pages: 512, burst: 512, every: ms(50) };
    for strategy in [Strategy::Hybrid, Strategy::Auto] {
        let request =
            MoveRequest { downtime_ms_max: 1000, bandwidth_max: Some(1 << 20), rounds_max: 2, ..by(strategy) };
        let outcome = must_move(Schedule { pages: 512, request, writing, ..Schedule::default() });
        assert!(outcome.entered(Side::Source, "serving"), "{strategy}: {:?}", outcome.states);
        assert!(outcome.summary.as_ref().unwrap().rounds > 0);
    }
}

#[test]
fn auto_ends_a_round_in_the_middle_when_the_guest_outruns_the_path() {
    let writing = Writing { pages: 4000, burst: 400, every: ms(2) };
    let request = MoveRequest { bandwidth_max: Some(8 << 20), ..by(Strategy::Auto) };
    let outcome = must_move(Schedule { pages: 8192, request, writing, ..Schedule::default() });
    let summary = outcome.summary.as_ref().unwrap();
    assert!(outcome.entered(Side::Source, "serving") && summary.rounds == 1, "{summary:?}");
}

#[test]
fn a_pause_taken_back_forgets_what_was_declared_missing() {
    let source = GuestFaults { pauses_take: [ms(1700)].into(), ..GuestFaults::default() };
    let request = MoveRequest { downtime_ms_max: 1000, ..slow_postcopy().request };
    let outcome = must_move(Schedule { source, request, silence: ms(5000), ..slow_postcopy() });
    assert_eq!(outcome.witness.starts(Side::Source), 2, "{:?}", outcome.states);
}

#[test]
fn a_target_that_cannot_follow_is_refused_or_filled_first() {
    for strategy in [Strategy::Postcopy, Strategy::Hybrid] {
        must_roll_back(Schedule { request: by(strategy), follows: false, ..Schedule::default() }, "userfaultfd");
    }
    must_move(Schedule { request: by(Strategy::Auto), follows: false, ..Schedule::default() });
    let target = GuestFaults { follow_fails: true, ..GuestFaults::default() };
    must_roll_back(Schedule { target, ..slow_postcopy() }, "following fails");
}

#[test]
fn cancelled_before_the_offer_the_guest_runs_on_and_later_it_arrives() {
    for state in ["negotiated", "copying", "paused"] {
        let outcome = checked(harmed(Side::Source, state, Harm::Cancel(Side::Source)));
        assert_eq!(*outcome.result(), MoveOutcome::Cancelled, "at {state}: {:?}", outcome.states);
    }
    for state in ["offered", "serving"] {
        must_move(harmed(Side::Source, state, Harm::Cancel(Side::Source)));
    }
    must_move(harmed(Side::Target, "pulling", Harm::Cancel(Side::Target)));
}

#[test]
fn whoever_dies_while_memory_follows_takes_the_guest_with_it() {
    for (side, state) in [(Side::Source, "serving"), (Side::Target, "pulling")] {
        for victim in Side::BOTH {
            must_strand(harmed(side, state, Harm::Kill(victim)));
        }
        must_strand(harmed(side, state, Harm::Cut));
        // What was on its way on the demand lane comes by no other; if nothing was, all comes.
        checked(harmed(side, state, Harm::CutDemand));
    }
}

#[test]
fn an_outage_that_no_peer_takes_for_the_end_loses_nothing() {
    for (side, state) in [(Side::Source, "serving"), (Side::Target, "pulling")] {
        must_move(Schedule { silence: ms(3000), ..harmed(side, state, Harm::Outage(ms(300))) });
    }
}

#[test]
fn either_process_killed_or_the_network_cut_at_any_state_is_survived_or_said() {
    let source = ["negotiated", "copying", "paused", "offered", "released", "stranded"];
    let target = ["prepared", "filling", "complete", "armed", "running", "stranded"];
    let places = source.map(|state| (Side::Source, state)).into_iter().chain(target.map(|state| (Side::Target, state)));
    for (side, state) in places {
        for harm in [Harm::Kill(Side::Source), Harm::Kill(Side::Target), Harm::Cut] {
            checked(harmed(side, state, harm));
        }
    }
}

#[test]
fn a_store_that_answers_late_loses_no_guest() {
    // The source asks back, hears that the machine is the target's, and goes on to serve it.
    for answer in [Answer::AnsweredAfter(ms(1500)), Answer::Lost] {
        let request = MoveRequest { downtime_ms_max: 300, ..by(Strategy::Postcopy) };
        let target_answers = vec![answer, Answer::AnsweredAfter(ms(1500))];
        let outcome = must_move(Schedule { request, target_answers, ..slow_postcopy() });
        assert_eq!(outcome.witness.starts(Side::Source), 1, "it never ran again");
    }
}

#[test]
fn a_path_that_is_lost_while_the_state_is_loaded_gives_the_guest_back() {
    // Loading waits for a page that does not come: the path is cut as the offer goes out.
    let target = GuestFaults { restore_reads: 64, ..GuestFaults::default() };
    let outcome = checked(Schedule { target, ..harmed(Side::Target, "complete", Harm::Cut) });
    assert!(matches!(outcome.result(), MoveOutcome::RolledBack { .. }), "{:?}", outcome.result());
    assert!(matches!(outcome.arrival, Some(TargetOutcome::Discarded(_))), "{:?}", outcome.arrival);
}

#[test]
fn a_guest_that_is_loaded_while_its_offer_is_taken_back_never_runs() {
    // Loading waits for a page by a lane that is cut; the source takes the offer back and goes on copying, so the page comes at last,
    // as it is by then.
    let request = MoveRequest { downtime_ms_max: 134, ..by(Strategy::Hybrid) };
    let writing = Writing { pages: 128, burst: 128, every: ms(2) };
    let target = GuestFaults { restore_reads: 1, ..GuestFaults::default() };
    let harm = vec![(When::Enters(Side::Source, "paused"), Harm::CutDemand)];
    let silence = ms(300);
    let outcome = checked(Schedule { pages: 128, writing, request, silence, target, harm, ..Schedule::default() });
    assert!(matches!(outcome.result(), MoveOutcome::RolledBack { .. }), "{:?}", outcome.result());
    assert_eq!(outcome.witness.starts(Side::Target), 0);
}

#[test]
fn loading_does_not_wait_for_a_page_of_an_offer_that_is_off() {
    // A path that comes back too late: whoever is asked owes nothing any more.
    let request = MoveRequest { downtime_ms_max: 134, ..by(Strategy::Postcopy) };
    let target = GuestFaults { restore_reads: 1, ..GuestFaults::default() };
    let harm = vec![(When::Enters(Side::Target, "complete"), Harm::Outage(ms(1500)))];
    must_roll_back(Schedule { request, target, harm, ..Schedule::default() }, "took its offer back");
}

#[test]
fn a_guest_is_not_handed_over_when_its_demand_lane_is_lost() {
    // The only round takes longer than the silence, in which the lane's connection is found to be lost.
    let writing = Writing { pages: 512, burst: 64, every: ms(2) };
    let request = MoveRequest { bandwidth_max: Some(1 << 19), ..by(Strategy::Hybrid) };
    let harm = vec![(When::Enters(Side::Target, "filling"), Harm::CutDemand)];
    let schedule = Schedule { pages: 512, writing, request, silence: ms(1000), harm, ..Schedule::default() };
    must_roll_back(schedule, "depend on is lost");
}
