use super::*;
use proptest::prelude::*;
use vmotion_model::Motive;

fn step(number: u32, from: &str, to: &str, after: &[u32], begins_ms: u64, takes_ms: u64) -> PlannedStep {
    PlannedStep {
        number,
        subject: Subject { machine: format!("vm{number}").parse().unwrap(), piece: None },
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        motive: Motive::Balance,
        reason: String::new(),
        gain: 1.0,
        cost: 0.1,
        after: after.to_vec(),
        together: None,
        begins_ms,
        takes_ms,
        bytes: 0,
        downtime_ms: 1.0,
        rejected: Vec::new(),
    }
}

fn moving() -> StepState {
    StepState::Moving { id: MoveId::numbered(1) }
}

fn done() -> StepState {
    StepState::Done { id: MoveId::numbered(1) }
}

#[test]
fn a_step_waits_for_those_before_it_and_never_comes_when_they_did_not() {
    let steps = [step(1, "h1", "h2", &[], 0, 10), step(2, "h3", "h4", &[1], 10, 10)];
    let policy = PolicySpec::default();
    let failed = StepState::Failed { why: "x".to_owned() };
    for (first, wanted) in [
        (StepState::Waiting, Turn::NotYet),
        (moving(), Turn::NotYet),
        (done(), Turn::Now),
        (failed, Turn::Never("step 1, which it depends on, did not happen".to_owned())),
    ] {
        assert_eq!(turn(&steps, &[first, StepState::Waiting], 1, &policy), wanted);
    }
}

#[test]
fn steps_that_were_foreseen_one_after_the_other_on_a_host_are() {
    let steps = [step(1, "h1", "h2", &[], 0, 10), step(2, "h1", "h3", &[], 10, 10), step(3, "h4", "h5", &[], 10, 10)];
    let progress = [moving(), StepState::Waiting, StepState::Waiting];
    let policy = PolicySpec::default();
    assert_eq!(turn(&steps, &progress, 1, &policy), Turn::NotYet);
    assert_eq!(turn(&steps, &progress, 2, &policy), Turn::Now);
}

#[test]
fn a_host_takes_part_in_so_many_moves_and_no_more() {
    let steps = [step(1, "h1", "h2", &[], 0, 10), step(2, "h1", "h3", &[], 0, 10)];
    let policy = PolicySpec { moves_per_host_max: 1, ..PolicySpec::default() };
    assert_eq!(turn(&steps, &[moving(), StepState::Waiting], 1, &policy), Turn::NotYet);
    assert_eq!(turn(&steps, &[StepState::Waiting, StepState::Waiting], 1, &policy), Turn::Now);
}

#[test]
fn a_plan_is_done_when_all_of_it_is() {
    let failed = StepState::Failed { why: String::new() };
    assert_eq!(state_of(&[done(), done()]), PlanState::Done);
    assert_eq!(state_of(&[done(), failed.clone()]), PlanState::Superseded);
    assert_eq!(state_of(&[failed, moving()]), PlanState::Running);
    assert_eq!(state_of(&[]), PlanState::Done);
}

proptest! {
    /// Whatever order moves end in, and whichever fail, every plan comes to an end, and limits hold all the time.
    #[test]
    fn every_plan_ends(
        hosts in prop::collection::vec((0u8..4, 0u8..4, 0u64..50, 1u64..50), 1..12),
        choices in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 64),
    ) {
        let steps: Vec<PlannedStep> = hosts
            .iter()
            .zip(1..)
            .map(|((from, to, begins, takes), number): (_, u32)| {
                // What a step depends on is foreseen to be over before it.
                let over = |other: &usize| hosts[*other].2 + hosts[*other].3 <= *begins;
                let after = (0..hosts.len()).find(over).filter(|_| begins % 3 == 0);
                let after: Vec<u32> = after.map(|at| u32::try_from(at + 1).unwrap()).into_iter().collect();
                step(number, &format!("h{from}"), &format!("h{to}"), &after, *begins, *takes)
            })
            .collect();
        let policy = PolicySpec { moves_per_host_max: 2, ..PolicySpec::default() };
        let mut progress = vec![StepState::Waiting; steps.len()];
        for (which, succeeds) in choices {
            let before = progress.clone();
            for at in 0..steps.len() {
                match turn(&steps, &progress, at, &policy) {
                    Turn::Now => progress[at] = moving(),
                    Turn::Never(why) => progress[at] = StepState::Dropped { why },
                    Turn::NotYet => {}
                }
            }
            let under_way: Vec<usize> = (0..steps.len()).filter(|at| progress[*at] == moving()).collect();
            for host in (0..4).map(|host| format!("h{host}")) {
                let of_host = |at: &&usize| steps[**at].from.as_str() == host || steps[**at].to.as_str() == host;
                // A move within a host counts twice there, and never is more than one too many.
                prop_assert!(under_way.iter().filter(of_host).count() <= 2);
            }
            // What was dropped may have been what another waited for: that is seen at the next look.
            if under_way.is_empty() && progress == before {
                break;
            }
            if under_way.is_empty() {
                continue;
            }
            let ends = under_way[which.index(under_way.len())];
            progress[ends] = if succeeds { done() } else { StepState::Failed { why: String::new() } };
        }
        prop_assert!(state_of(&progress) != PlanState::Running, "{progress:?}");
    }
}
