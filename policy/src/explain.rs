//! Why is it where it is, and why not there? Rule by rule and with the numbers that the plan is made from.
//!
//! The one invariant: what is said is what [`crate::plan`] would decide by; nothing is judged by other numbers here.

use crate::{
    Effort, Goal,
    rules::{Kind, Rules, broken_by},
    search::{Fixed, movable, phrase},
    site::{SLOTS, Site, SiteMachine},
    state::State,
    world::{HostId, SubjectId, World},
};
use vmotion_model::{ByteSize, Explanation, HostName, PlaceNote, RuleNote, Subject};

/// Other places that are told of.
const PLACES_MAX: usize = 5;
/// Places that are looked at for that.
const LOOKED_AT: usize = 64;

/// Why something is where it is: what it gets there, what the best other places would give it, which rules bind it, and what a plan would do.
/// `None` for what is not in the site.
#[must_use]
pub fn why(site: &Site, subject: &Subject) -> Option<Explanation> {
    explain(site, subject, None)
}

/// Why it is not on `host`. `None` where either is not in the site.
#[must_use]
pub fn why_not(site: &Site, subject: &Subject, host: &HostName) -> Option<Explanation> {
    explain(site, subject, Some(host))
}

/// Rules that would be broken with `machine` where it says it is, each in words; the one of its name in the site is meant, or it is a new one.
#[must_use]
pub fn broken_at(site: &Site, machine: &SiteMachine) -> Vec<String> {
    let mut site = site.clone();
    site.machines.retain(|known| known.name != machine.name);
    site.machines.push(machine.clone());
    let world = World::new(&site);
    let asked = Subject { machine: machine.name.clone(), piece: None };
    let Some(subject) = world.subject(&asked) else { return Vec::new() };
    let rules = Rules::new(&world);
    let of = Explainer { state: State::new(&world, &rules), subject };
    let broken = of.rules(of.state.host_of[subject as usize]).into_iter().filter(|note| !note.kept);
    broken.map(|RuleNote { rule, why, .. }| format!("rule {rule} would be broken: {why}")).collect()
}

fn explain(site: &Site, asked: &Subject, other: Option<&HostName>) -> Option<Explanation> {
    let world = World::new(site);
    let subject = world.subject(asked)?;
    let other = match other {
        Some(name) => Some(world.host_id(name.as_str())?),
        None => None,
    };
    let rules = Rules::new(&world);
    let mut of = Explainer { state: State::new(&world, &rules), subject };
    let here = of.state.host_of[subject as usize];
    let places = match other {
        Some(host) => vec![of.place(host)],
        None => of.best_places(),
    };
    let plan = crate::plan(site, Goal::ALL, Effort(200_000));
    let planned = plan.steps.iter().rfind(|step| step.subject == *asked);
    let blocked = plan.blocked.iter().find(|blocked| blocked.subject == *asked);
    let conclusion = match (planned, blocked) {
        (Some(step), _) => format!("a plan would move it to {} now: {}", step.to, step.reason),
        (None, Some(blocked)) => format!("it should be moved and cannot: {}", blocked.why),
        (None, None) => of.stays(&places),
    };
    Some(Explanation {
        subject: asked.clone(),
        host: world.host(here).name.clone(),
        satisfaction: of.satisfaction(here),
        here: of.here(here),
        rules: of.rules(here),
        places,
        conclusion,
    })
}

struct Explainer<'s, 'a> {
    state: State<'s, 'a>,
    subject: SubjectId,
}

impl Explainer<'_, '_> {
    /// Processors that it gets of those it asks for: where more is asked of a host than it has, everybody gets the same part.
    fn satisfaction(&self, host: HostId) -> f64 {
        let facts = self.state.world.facts(host);
        let weights = &self.state.world.objective.weights;
        let each = self.state.load[host as usize].iter().zip(weights).map(|(load, weight)| {
            let asked = load + facts.other;
            weight * if asked > facts.cpus { facts.cpus / asked } else { 1.0 }
        });
        each.sum::<f64>().min(1.0)
    }

    fn here(&self, host: HostId) -> Vec<String> {
        let world = self.state.world;
        let (facts, name) = (world.facts(host), &world.host(host).name);
        let demand = &world.demand[self.subject as usize];
        let most = demand.iter().copied().fold(0.0, f32::max);
        let mean: f32 = demand.iter().sum::<f32>() / SLOTS as f32;
        let busy = 100.0 * self.state.peak(host) / facts.cpus;
        let machine = world.machine(world.of(self.subject).machine);
        let mut said = vec![
            format!("it asks for {mean:.1} processors on average and {most:.1} at most in the day ahead"),
            format!(
                "{name} is {busy:.0} % busy at its busiest, deviations included, and content up to {} %",
                world.site.policy.cpu_percent_content
            ),
            format!("{name} has {} of {} free", ByteSize(self.state.free(host)), ByteSize(facts.memory)),
        ];
        said.extend(machine.stays.as_ref().map(|stay| format!("it is left alone: {}", stay.why)));
        if machine.demand.seen_s < world.site.policy.hold_s {
            said.push(format!(
                "it was watched for {} s only, {} s are needed to conclude anything",
                machine.demand.seen_s, world.site.policy.hold_s
            ));
        }
        said
    }

    fn rules(&self, here: HostId) -> Vec<RuleNote> {
        let (world, rules) = (self.state.world, self.state.rules);
        let of = rules.of_machine(world.of(self.subject).machine);
        of.iter()
            .map(|id| {
                let rule = rules.get(*id);
                let count = self.state.counts.get(*id);
                let kept = match rule.kind.counted_by() {
                    Some(_) => broken_by(&rule.kind, count) == 0,
                    None => rule.kind.admits(world, here),
                };
                RuleNote { rule: rule.rule.name.clone(), kept, why: self.rule_in_words(*id, here) }
            })
            .collect()
    }

    fn rule_in_words(&self, id: u32, host: HostId) -> String {
        let world = self.state.world;
        let rule = self.state.rules.get(id);
        let count = self.state.counts.get(id);
        let in_domain = |kind| (world.domain_name(kind, world.domain(kind, host)), count.of(world.domain(kind, host)));
        match &rule.kind {
            Kind::Affinity(kind) => {
                let (name, there) = in_domain(*kind);
                format!("its {} machines belong on one {kind}: {there} are on {name}", rule.members.len())
            }
            Kind::Apart(kind) => {
                let (name, there) = in_domain(*kind);
                format!("no two of its {} machines may share a {kind}: {there} on {name}", rule.members.len())
            }
            Kind::Spread { over, skew } => {
                let (name, there) = in_domain(*over);
                format!(
                    "the fullest {over} may have {skew} more of its {} machines than the emptiest: {there} on {name}, {} on the fullest, {} on \
                     the emptiest",
                    rule.members.len(),
                    count.fullest(),
                    count.emptiest()
                )
            }
            Kind::Pin(hosts) => format!("{} hosts are allowed", hosts.iter().count()),
            Kind::Residency(centers) => format!("{} datacenters are allowed", centers.iter().count()),
        }
    }

    fn place(&mut self, host: HostId) -> PlaceNote {
        let world = self.state.world;
        let (subject, from) = (self.subject, self.state.host_of[self.subject as usize]);
        let name = &world.host(host).name;
        let cost = if host == from { 0.0 } else { self.state.cost(subject, host).units };
        let gain = if host == from { 0.0 } else { self.state.units(subject, host) - self.state.change(subject, host) };
        let mut why = Vec::new();
        let refused = self.state.fits(subject, host).err();
        if let Some(refusal) = refused {
            let numbers = match refusal {
                crate::state::Refusal::Memory => {
                    let [needs, free] = [world.of(subject).memory, self.state.free(host)].map(ByteSize);
                    format!(": it needs {needs}, {free} are free")
                }
                _ => String::new(),
            };
            why.push(format!("{name} is a host {}{numbers}", phrase(&self.state, refusal)));
        }
        let forbidding = self.forbidding(host);
        let possible = refused.is_none() && forbidding.is_empty();
        why.extend(forbidding);
        if host != from {
            let busy = 100.0 * self.state.busy_with(subject, host);
            why.push(format!("{name} would be {busy:.0} % busy at most"));
            let too_long = self.state.cost(subject, host).too_long;
            why.extend(too_long.then(|| "the pause would be longer than the policy allows for balance".to_owned()));
        }
        let machine = world.machine(world.of(subject).machine);
        if machine.left.contains(name) {
            why.push("it left that host for balance lately and does not go back".to_owned());
        }
        PlaceNote { host: name.clone(), possible, gain, cost, why }
    }

    /// All rules that forbid it, each in words.
    fn forbidding(&self, host: HostId) -> Vec<String> {
        let (world, rules) = (self.state.world, self.state.rules);
        let of = rules.of_machine(world.of(self.subject).machine);
        let refused =
            of.iter().filter(|id| self.state.around().refused_by(**id, &self.state.counts, self.subject, host));
        refused
            .map(|id| format!("rule {} forbids it: {}", rules.get(*id).rule.name, self.rule_in_words(*id, host)))
            .collect()
    }

    fn best_places(&mut self) -> Vec<PlaceNote> {
        let from = self.state.host_of[self.subject as usize];
        let hosts: Vec<HostId> = self.state.candidates(self.subject).into_iter().filter(|host| *host != from).collect();
        let mut places: Vec<PlaceNote> = hosts.into_iter().take(LOOKED_AT).map(|host| self.place(host)).collect();
        let net = |place: &PlaceNote| place.gain - place.cost;
        places.sort_by(|a, b| b.possible.cmp(&a.possible).then(net(b).total_cmp(&net(a))).then(a.host.cmp(&b.host)));
        places.truncate(PLACES_MAX);
        places
    }

    fn stays(&self, places: &[PlaceNote]) -> String {
        match movable(&self.state, self.subject) {
            Err(Fixed::Flies) => return "it is on its way".to_owned(),
            Err(Fixed::Gone) => return "its host is not heard, so it cannot be moved".to_owned(),
            Err(Fixed::Contradiction(_)) => return "its rules contradict each other, so it is left alone".to_owned(),
            Ok(()) => {}
        }
        match places.iter().find(|place| place.possible) {
            Some(best) if best.gain <= best.cost => format!(
                "it stays: the best other place, {}, would gain {:.3} and the move costs {:.3}",
                best.host, best.gain, best.cost
            ),
            Some(best) => {
                format!("it stays for now, though {} would be better by {:.3}", best.host, best.gain - best.cost)
            }
            None => "it stays: there is no other place for it".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{host, machine, rule};
    use vmotion_model::{Demand, Domain};

    fn site() -> Site {
        let mut site = Site {
            hosts: ["h1", "h2", "h3"].map(host).to_vec(),
            machines: vec![machine("a", "h1", 3.0), machine("b", "h2", 3.0), machine("c", "h1", 1.0)],
            ..Site::default()
        };
        site.hosts[2].memory = ByteSize::gib(2);
        site.rules.push(rule("apart", &["a", "b"], Demand::AntiAffinity { across: Domain::Host }));
        site
    }

    fn subject(name: &str) -> Subject {
        Subject { machine: name.parse().unwrap(), piece: None }
    }

    #[test]
    fn why_not_names_each_rule_and_each_number() {
        let said = why_not(&site(), &subject("a"), &"h2".parse().unwrap()).unwrap();
        assert!(!said.places[0].possible);
        assert!(
            said.places[0].why.iter().any(|why| why.contains("rule apart forbids it") && why.contains("1 on h2")),
            "{said:#?}"
        );
        let said = why_not(&site(), &subject("a"), &"h3".parse().unwrap()).unwrap();
        assert!(said.places[0].why[0].contains("needs 4 GiB, 2 GiB are free"), "{said:#?}");
        assert!(why_not(&site(), &subject("x"), &"h3".parse().unwrap()).is_none());
    }

    #[test]
    fn rules_that_a_place_would_break_are_told_for_what_is_there_and_for_what_comes() {
        let broken = |name: &str, host: &str| broken_at(&site(), &machine(name, host, 0.0));
        assert_eq!(broken("a", "h1"), Vec::<String>::new());
        assert!(broken("a", "h2")[0].starts_with("rule apart would be broken: "), "{:?}", broken("a", "h2"));
        assert_eq!((broken("c", "h2").len(), broken("new", "h2").len()), (0, 0), "the rule is not of them");
        let mut site = site();
        site.machines.retain(|known| known.name.as_str() != "b");
        assert_eq!(broken_at(&site, &machine("b", "h1", 0.0)).len(), 1);
    }

    #[test]
    fn who_is_content_stays_and_hears_what_another_place_would_gain() {
        let said = why(&site(), &subject("c")).unwrap();
        assert!((said.satisfaction - 1.0).abs() < 1e-9 && said.conclusion.contains("it stays"), "{said:#?}");
        assert!(said.places[0].possible && said.places[0].cost > said.places[0].gain, "{said:#?}");
        assert!(said.here.iter().any(|line| line.contains("24 GiB of 32 GiB free")), "{said:#?}");
    }

    #[test]
    fn what_a_plan_would_do_is_said() {
        let mut site = site();
        site.machines[0].demand.cpus = [15.0; SLOTS];
        site.machines[2].demand.cpus = [8.0; SLOTS];
        let said = why(&site, &subject("c")).unwrap();
        assert!(said.satisfaction < 0.8 && said.conclusion.contains("move it to h2"), "{said:#?}");
    }
}
