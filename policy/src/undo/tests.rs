use super::*;
use crate::{
    Effort, Goal,
    fixtures::{Judge, cases, host, machine, random_site, rule},
    plan,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use vmotion_model::{ByteSize, Demand, Domain};

fn site(hosts: &[&str], machines: &[(&str, &str)]) -> Site {
    Site {
        hosts: hosts.iter().map(|name| host(name)).collect(),
        machines: machines.iter().map(|(name, host)| machine(name, host, 1.0)).collect(),
        ..Site::default()
    }
}

fn back(machine: &str, from: &str, to: &str) -> Return {
    let subject = Subject { machine: machine.parse().unwrap(), piece: None };
    Return { subject, from: from.parse().unwrap(), to: to.parse().unwrap() }
}

fn judged(site: &Site, wanted: &[Return]) -> Plan {
    let plan = undo(site, wanted);
    for seed in 0..20 {
        Judge::new(site, &plan).run(seed).unwrap_or_else(|error| panic!("{error}: {plan:#?}"));
    }
    plan
}

fn moved(plan: &Plan) -> Vec<String> {
    let step = |step: &vmotion_model::PlannedStep| format!("{} {} {}", step.subject, step.from, step.to);
    plan.steps.iter().map(step).collect()
}

fn why(plan: &Plan) -> &str {
    assert_eq!((plan.steps.len(), plan.blocked.len()), (0, 1), "{plan:#?}");
    &plan.blocked[0].why
}

#[test]
fn what_is_where_it_was_brought_goes_back_and_what_is_back_is_no_step() {
    let site = site(&["h1", "h2"], &[("a", "h2"), ("b", "h1")]);
    let plan = judged(&site, &[back("a", "h2", "h1"), back("b", "h2", "h1")]);
    assert_eq!(moved(&plan), ["a h2 h1"]);
    assert_eq!(plan.steps[0].motive, Motive::Undo);
    assert!(plan.steps[0].reason.contains("it was on h1 before"), "{plan:#?}");
    assert!(plan.blocked.is_empty());
}

#[test]
fn what_somebody_has_moved_since_stays_and_what_is_gone_is_named() {
    let mut site = site(&["h1", "h2", "h3"], &[("a", "h3")]);
    assert!(why(&judged(&site, &[back("a", "h2", "h1")])).contains("it is on h3 now"));
    assert!(why(&judged(&site, &[back("b", "h2", "h1")])).contains("there is no b any more"));
    assert!(why(&judged(&site, &[back("a", "h3", "h9")])).contains("there is no host h9"));
    site.hosts[0].duty = Duty::Cordoned;
    assert!(why(&judged(&site, &[back("a", "h3", "h1")])).contains("vmotion host uncordon h1"));
    site.hosts[0].duty = Duty::Open;
    site.rules.push(rule("here", &["a"], Demand::Pin { hosts: vec!["h3".parse().unwrap()] }));
    assert!(why(&judged(&site, &[back("a", "h3", "h1")])).contains("forbidden by rule here"));
}

#[test]
fn a_mended_rule_is_not_broken_again_and_a_full_host_is_said_to_be() {
    let mut apart = site(&["h1", "h2"], &[("a", "h1"), ("b", "h2")]);
    apart.rules.push(rule("apart", &["a", "b"], Demand::AntiAffinity { across: Domain::Host }));
    assert!(why(&judged(&apart, &[back("b", "h2", "h1")])).contains("rule apart forbids it"));
    let mut full = site(&["h1", "h2"], &[("a", "h1"), ("b", "h2")]);
    full.hosts[0].memory = ByteSize::gib(5);
    assert!(why(&judged(&full, &[back("b", "h2", "h1")])).contains("it needs 4 GiB on h1"));
}

#[test]
fn what_an_affinity_holds_together_goes_back_together_or_not_at_all() {
    let mut site = site(&["h1", "h2"], &[("a", "h2"), ("b", "h2"), ("c", "h2")]);
    site.rules.push(rule("three", &["a", "b", "c"], Demand::Affinity { within: Domain::Host }));
    let two = [back("a", "h2", "h1"), back("b", "h2", "h1")];
    let plan = judged(&site, &two);
    assert_eq!((plan.steps.len(), plan.blocked.len()), (0, 2), "{plan:#?}");
    assert!(plan.blocked.iter().all(|one| one.why.contains("rule three holds it together")), "{plan:#?}");
    site.rules[0].machines.pop();
    let plan = judged(&site, &two);
    assert_eq!((plan.steps.len(), plan.blocked.len()), (2, 0), "{plan:#?}");
    assert_eq!((plan.steps[0].together, plan.steps[1].together), (Some(1), Some(1)));
    site.machines[1].host = "h1".parse().unwrap();
    assert!(why(&judged(&site, &two)).contains("is broken already"));
}

#[test]
fn two_that_changed_places_change_back_through_a_third() {
    let mut site = site(&["h1", "h2", "h3"], &[("a", "h2"), ("b", "h1")]);
    site.hosts[..2].iter_mut().for_each(|host| host.memory = ByteSize::gib(5));
    let plan = judged(&site, &[back("a", "h2", "h1"), back("b", "h1", "h2")]);
    assert_eq!(plan.steps.len(), 3, "{plan:#?}");
    assert!(plan.steps.iter().any(|step| step.motive == Motive::Bounce), "{plan:#?}");
}

/// Where everything is after a plan, and how it would be brought back.
fn carried_out(site: &Site, plan: &Plan) -> (Site, Vec<Return>) {
    let mut after = site.clone();
    let mut returns: BTreeMap<Subject, Return> = BTreeMap::new();
    for step in &plan.steps {
        let machine = after.machines.iter_mut().find(|machine| machine.name == step.subject.machine).unwrap();
        match step.subject.piece {
            None => machine.host = step.to.clone(),
            Some(name) => {
                machine
                    .pieces
                    .iter_mut()
                    .filter(|piece| piece.name == name)
                    .for_each(|piece| piece.host = step.to.clone());
            }
        }
        let first = Return { subject: step.subject.clone(), from: step.to.clone(), to: step.from.clone() };
        returns.entry(step.subject.clone()).or_insert(first).from = step.to.clone();
    }
    (after, returns.into_values().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn every_state_of_an_undo_keeps_rules_memory_and_limits_and_all_is_back_or_named(seed: u64) {
        let site = random_site(seed);
        let (after, returns) = carried_out(&site, &plan(&site, Goal::ALL, Effort(20_000)));
        let undone = undo(&after, &returns);
        for order in 0..8 {
            Judge::new(&after, &undone).run(order).map_err(|error| TestCaseError::fail(format!("{error}\n{undone:#?}")))?;
        }
        let (ends, _) = carried_out(&after, &undone);
        let world = World::new(&ends);
        for Return { subject, from, to } in &returns {
            let host = &world.host(world.of(world.subject(subject).unwrap()).origin).name;
            let is_blocked = undone.blocked.iter().any(|blocked| blocked.subject == *subject);
            prop_assert!(host == to || is_blocked || from == to, "{subject} is on {host}, not on {to}: {undone:#?}");
        }
    }
}
