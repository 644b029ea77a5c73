//! In which order, and when: from what is to be moved to steps of which every state in between keeps rules, memory and limits.
//!
//! The one invariant: a step begins only when every rule and all memory would hold whether the steps that are under way, itself included,
//! are over or not; and `after` names enough earlier steps that this is so however long any of them takes. What an affinity holds
//! together begins together, and that one rule is not asked until the last of them is over.

mod watch;

use crate::{
    network::{Flow, Network},
    rules::Rules,
    site::Duty,
    world::{Flight, HostId, SubjectId, World, index},
};
use std::{cmp::Reverse, collections::BTreeMap};
use vmotion_model::Motive;
use watch::Watches;

/// Something to be moved.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) subject: SubjectId,
    pub(crate) from: HostId,
    pub(crate) to: HostId,
    pub(crate) motive: Motive,
    /// By when, in ms.
    pub(crate) deadline_ms: Option<u64>,
    /// Alone on its path, in ms.
    pub(crate) takes_ms: f64,
    /// Begun together with the others of the same number.
    pub(crate) together: Option<u32>,
    /// What has to be over before: the same subject's way to where it waits.
    pub(crate) follows: Option<usize>,
}

/// When it is moved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timed {
    pub(crate) job: usize,
    pub(crate) begins_ms: f64,
    pub(crate) ends_ms: f64,
    /// Jobs that must be over before.
    pub(crate) after: Vec<usize>,
    pub(crate) bytes: f64,
    pub(crate) downtime_ms: f64,
}

/// How many moves at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As many as hosts and links carry without slowing each other down.
    Adaptive,
    /// So many for each host, in the order of names.
    Fixed(u32),
}

/// What was scheduled.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    pub(crate) jobs: Vec<Job>,
    /// In the order in which they begin.
    pub(crate) timed: Vec<Timed>,
    /// What cannot begin, because others that wait for it are where it should go, and there is no place to wait.
    pub(crate) stuck: Vec<usize>,
}

/// One that is under way.
struct Active {
    at: usize,
    flow: Flow,
}

struct Scheduler<'s, 'a> {
    world: &'s World<'a>,
    rules: &'s Rules<'a>,
    jobs: Vec<Job>,
    pace: Pace,
    limit: u32,
    network: Network,
    watches: Watches<'s, 'a>,
    used: Vec<u64>,
    /// By host: places for moves, and whose end made them free.
    slots: Vec<Vec<Option<usize>>>,
    /// By host: jobs that have left it. Of all hosts: one may turn out to be tight later, when something is to wait there.
    left: Vec<Vec<usize>>,
    tight: Vec<bool>,
    flights: Vec<Flight>,
    active: Vec<Active>,
    pending: Vec<usize>,
    timed: Vec<Timed>,
    now: f64,
}

/// Orders `jobs`, which begin where `host_of` says.
pub(crate) fn schedule(
    world: &World<'_>,
    rules: &Rules<'_>,
    host_of: &[HostId],
    jobs: Vec<Job>,
    pace: Pace,
) -> Schedule {
    let mut scheduler = Scheduler::new(world, rules, host_of, jobs, pace);
    scheduler.run();
    Schedule { stuck: std::mem::take(&mut scheduler.pending), jobs: scheduler.jobs, timed: scheduler.timed }
}

impl<'s, 'a> Scheduler<'s, 'a> {
    fn new(world: &'s World<'a>, rules: &'s Rules<'a>, host_of: &[HostId], jobs: Vec<Job>, pace: Pace) -> Self {
        let hosts = world.hosts.len();
        let mut used = vec![0u64; hosts];
        for (subject, host) in world.subjects.iter().zip(host_of) {
            used[*host as usize] += subject.memory;
        }
        for flight in &world.flights {
            used[flight.from as usize] += world.of(flight.subject).memory;
        }
        let mut most = used.clone();
        for job in &jobs {
            most[job.to as usize] += world.of(job.subject).memory;
        }
        let limit = match pace {
            Pace::Adaptive => world.site.policy.moves_per_host_max.max(1),
            Pace::Fixed(limit) => limit.max(1),
        };
        let mut slots = vec![vec![None; limit as usize]; hosts];
        for flight in &world.flights {
            slots[flight.from as usize].pop();
            slots[flight.to as usize].pop();
        }
        let mut flights = world.flights.clone();
        flights.sort_by_key(|flight| (Reverse(flight.ends_ms), flight.subject));
        let mut pending: Vec<usize> = (0..jobs.len()).collect();
        if pace == Pace::Adaptive {
            pending.sort_by(|a, b| {
                let (one, other) = (urgency(&jobs[*a]), urgency(&jobs[*b]));
                (one.0, one.1).cmp(&(other.0, other.1)).then(one.2.total_cmp(&other.2)).then(a.cmp(b))
            });
        }
        Self {
            network: Network::new(world),
            watches: Watches::new(world, rules, host_of, &jobs),
            tight: most.iter().zip(&world.hosts).map(|(most, host)| *most > host.memory).collect(),
            left: vec![Vec::new(); hosts],
            active: Vec::new(),
            timed: Vec::new(),
            now: 0.0,
            world,
            rules,
            jobs,
            pace,
            limit,
            used,
            slots,
            flights,
            pending,
        }
    }

    fn run(&mut self) {
        loop {
            while self.begin_any() {}
            self.network.settle(self.world, self.active.iter_mut().map(|active| &mut active.flow));
            let next = self.active.iter().map(|active| active.flow.left_ms()).fold(f64::INFINITY, f64::min);
            #[expect(clippy::cast_precision_loss, reason = "ms")]
            let landing = self.flights.last().map_or(f64::INFINITY, |flight| flight.ends_ms as f64 - self.now).max(0.0);
            let wait = next.min(landing);
            if wait.is_finite() {
                self.pass(wait);
            } else if self.pending.is_empty() || !self.bounce() {
                return;
            }
        }
    }

    /// So many ms later; what is over by then is over.
    fn pass(&mut self, ms: f64) {
        self.now += ms;
        self.active.iter_mut().for_each(|active| active.flow.pass(ms));
        let (over, active): (Vec<Active>, Vec<Active>) =
            std::mem::take(&mut self.active).into_iter().partition(|active| active.flow.left_ms() < 1e-6);
        self.active = active;
        for Active { at, flow } in over {
            self.end(at, &flow);
        }
        #[expect(clippy::cast_precision_loss, reason = "ms")]
        while self.flights.last().is_some_and(|flight| flight.ends_ms as f64 <= self.now) {
            let Some(flight) = self.flights.pop() else { break };
            self.used[flight.from as usize] -= self.world.of(flight.subject).memory;
            self.slots[flight.from as usize].push(None);
            self.slots[flight.to as usize].push(None);
            self.watches.landed(&flight);
        }
    }

    fn end(&mut self, at: usize, flow: &Flow) {
        let job = self.timed[at].job;
        let Job { subject, from, to, .. } = self.jobs[job];
        self.network.leave(flow);
        self.used[from as usize] -= self.world.of(subject).memory;
        self.slots[from as usize].push(Some(job));
        self.slots[to as usize].push(Some(job));
        self.left[from as usize].push(job);
        self.watches.end(job, &self.jobs[job], &self.timed[at].after);
        let timed = &mut self.timed[at];
        (timed.ends_ms, timed.bytes, timed.downtime_ms) = (self.now, flow.bytes, flow.downtime_ms);
    }

    /// Begins what may begin, the most urgent first.
    fn begin_any(&mut self) -> bool {
        let mut begun = Vec::new();
        for at in 0..self.pending.len() {
            let job = self.pending[at];
            if begun.contains(&job) {
                continue;
            }
            let together = self.fellows(job);
            if together.iter().all(|one| self.has_slots(*one)) && self.begin(&together) {
                begun.extend(together);
            }
        }
        self.pending.retain(|job| !begun.contains(job));
        !begun.is_empty()
    }

    /// What begins with it, itself included.
    fn fellows(&self, job: usize) -> Vec<usize> {
        match self.jobs[job].together {
            None => vec![job],
            Some(number) => {
                let mut all: Vec<usize> =
                    self.pending.iter().copied().filter(|other| self.jobs[*other].together == Some(number)).collect();
                all.sort_unstable();
                all
            }
        }
    }

    fn has_slots(&self, job: usize) -> bool {
        let Job { from, to, follows, .. } = self.jobs[job];
        let ready =
            follows.is_none_or(|before| self.timed.iter().any(|timed| timed.job == before && timed.ends_ms > 0.0));
        ready && !self.slots[from as usize].is_empty() && !self.slots[to as usize].is_empty()
    }

    /// Begins these together, or none of them.
    fn begin(&mut self, together: &[usize]) -> bool {
        let mut begun: Vec<usize> = Vec::new();
        let mut claimed: Vec<(HostId, Option<usize>)> = Vec::new();
        for job in together {
            let Job { subject, from, to, .. } = self.jobs[*job];
            let memory = self.world.of(subject).memory;
            let fits = self.used[to as usize] + memory <= self.world.facts(to).memory;
            let slots = [from, to].map(|host| self.slots[host as usize].len()).into_iter().all(|slots| slots > 0);
            let flow = self.network.flow(self.world, subject, from, to);
            // What begins together may crowd a network: it has to.
            let room = self.pace != Pace::Adaptive || together.len() > 1 || self.network.has_room(&flow);
            if !fits || !slots || !room || !self.watches.begin(*job, &self.jobs[*job], together.len() > 1) {
                self.take_back(&begun, claimed);
                return false;
            }
            self.used[to as usize] += memory;
            for host in [from, to] {
                let free = &mut self.slots[host as usize];
                // One that was always free leaves more of the order open.
                let always = free.iter().position(Option::is_none).unwrap_or(0);
                claimed.push((host, free.swap_remove(always)));
            }
            begun.push(*job);
        }
        let mut after: Vec<usize> = claimed.into_iter().filter_map(|(_, freed_by)| freed_by).collect();
        for job in together {
            let Job { subject, from, to, follows, .. } = self.jobs[*job];
            after.extend(follows);
            if self.tight[to as usize] {
                after.extend(&self.left[to as usize]);
            }
            after.extend(self.watches.over(subject));
            let flow = self.network.flow(self.world, subject, from, to);
            self.network.enter(&flow);
            self.active.push(Active { at: self.timed.len(), flow });
            self.timed.push(Timed { job: *job, begins_ms: self.now, ..Timed::default() });
        }
        after.sort_unstable();
        after.dedup();
        let first = self.timed.len() - together.len();
        for timed in &mut self.timed[first..] {
            timed.after.clone_from(&after);
        }
        true
    }

    fn take_back(&mut self, begun: &[usize], claimed: Vec<(HostId, Option<usize>)>) {
        for job in begun {
            let Job { subject, to, .. } = self.jobs[*job];
            self.used[to as usize] -= self.world.of(subject).memory;
            self.watches.take_back(*job, &self.jobs[*job]);
        }
        for (host, slot) in claimed {
            self.slots[host as usize].push(slot);
        }
    }

    /// Everything waits for something else: one of them waits elsewhere.
    fn bounce(&mut self) -> bool {
        let wanted: Vec<HostId> = self.pending.iter().map(|job| self.jobs[*job].to).collect();
        let mut waiting = self.pending.clone();
        waiting.sort_by_key(|job| {
            (!wanted.contains(&self.jobs[*job].from), self.world.of(self.jobs[*job].subject).memory)
        });
        for job in waiting {
            let whole = self.jobs[job].clone();
            if whole.follows.is_some() || whole.together.is_some() || !wanted.contains(&whole.from) {
                continue;
            }
            let mut places: Vec<HostId> =
                self.world.host_ids_iter().filter(|host| self.may_wait(&whole, *host)).collect();
            places.sort_by_key(|host| {
                (Reverse(self.world.facts(*host).memory.saturating_sub(self.used[*host as usize])), *host)
            });
            for place in places {
                let away = Job { to: place, motive: Motive::Bounce, ..whole.clone() };
                let number = self.jobs.len();
                self.jobs.push(away);
                self.tight[place as usize] = true;
                if self.has_slots(number) && self.begin(&[number]) {
                    (self.jobs[job].from, self.jobs[job].follows) = (place, Some(number));
                    return true;
                }
                self.jobs.pop();
            }
        }
        false
    }

    fn may_wait(&self, job: &Job, place: HostId) -> bool {
        let world = self.world;
        let machine = world.of(job.subject).machine;
        place != job.from
            && place != job.to
            && world.facts(place).duty == Duty::Open
            && world.is_compatible(job.from, place)
            && world.is_compatible(place, job.to)
            && self.rules.forbids(world, machine, place).is_none()
            && self.used[place as usize] + world.of(job.subject).memory <= world.facts(place).memory
            && self.limit > 0
    }
}

/// Sorts what is urgent to the front: what has to be before what would be better, early deadlines, long moves.
fn urgency(job: &Job) -> (u8, u64, f64) {
    let class = match job.motive {
        Motive::Evacuate | Motive::MakeRoom | Motive::Bounce => 0,
        Motive::Repair | Motive::Undo => 1,
        Motive::Balance | Motive::Gather => 2,
    };
    (class, job.deadline_ms.unwrap_or(u64::MAX), -job.takes_ms)
}

/// Jobs that an affinity holds together: by job, a number that the others share.
pub(crate) fn held_together(world: &World<'_>, rules: &Rules<'_>, host_of: &[HostId], jobs: &mut [Job]) {
    let by_subject: BTreeMap<SubjectId, usize> = jobs.iter().enumerate().map(|(at, job)| (job.subject, at)).collect();
    let mut number: Vec<u32> = (0..index(jobs.len())).collect();
    let mut held = vec![false; jobs.len()];
    for rule in &rules.all {
        let crate::rules::Kind::Affinity(within) = rule.kind else { continue };
        let parts: Vec<SubjectId> =
            rule.members.iter().flat_map(|machine| world.parts[*machine as usize].clone()).collect();
        let mut homes = parts.iter().map(|part| world.domain(within, host_of[*part as usize]));
        let Some(home) = homes.next().filter(|home| homes.all(|other| other == *home)) else { continue };
        let crossing: Vec<usize> = parts
            .iter()
            .filter_map(|part| by_subject.get(part).copied())
            .filter(|at| world.domain(within, jobs[*at].to) != home)
            .collect();
        let Some(first) = crossing.first().map(|at| number[*at]).filter(|_| crossing.len() > 1) else { continue };
        let merged: Vec<u32> = crossing.iter().map(|at| number[*at]).collect();
        crossing.iter().for_each(|at| held[*at] = true);
        number.iter_mut().filter(|number| merged.contains(number)).for_each(|number| *number = first);
    }
    for (at, job) in jobs.iter_mut().enumerate() {
        job.together = held[at].then(|| number[at]);
    }
}
