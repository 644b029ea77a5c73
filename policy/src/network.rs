//! Moves share what carries them: hosts' networks, each direction by itself, and the ways between datacenters. A move gets an equal part of
//! the narrowest; how far it has come follows from what its migrator would need at that pace.
//!
//! The one invariant: on nothing do the moves together get more than it carries.

use crate::{
    cost::{AROUND_MS, Cost, PAGES_PER_S_MAX, cost},
    world::{HostId, SubjectId, World},
};
use std::collections::HashMap;
use vmotion_model::PAGE_SIZE;

/// A move that has its end at the network's full use has to be begun before another ends, or what is before the first page and after the
/// last is lost: so much of what a move would use is planned with.
const OVERLAP: f64 = 0.55;
/// A guest is given so many times what it writes, so that rounds shrink.
const CONVERGES: f64 = 2.0;

/// Something that carries.
type Resource = u32;

/// What everything carries, and how much is on it.
#[derive(Debug)]
pub(crate) struct Network {
    carries: Vec<f64>,
    moves: Vec<u32>,
    /// What its moves were counted on to use.
    wanted: Vec<f64>,
    links: HashMap<(u16, u16), Resource>,
    touched: Vec<bool>,
}

/// A move on its way.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) subject: SubjectId,
    from: HostId,
    to: HostId,
    resources: Vec<Resource>,
    wants: f64,
    is_machine: bool,
    /// Before its first page, for so many ms more.
    before_ms: f64,
    /// From 0 to 1.
    done: f64,
    /// At its present pace.
    pace: Option<Cost>,
    pub(crate) bytes: f64,
    pub(crate) downtime_ms: f64,
}

impl Network {
    pub(crate) fn new(world: &World<'_>) -> Self {
        let share = f64::from(world.site.policy.link_percent_max) / 100.0;
        let mut carries: Vec<f64> =
            world.hosts.iter().flat_map(|host| [host.network * share, host.network * share]).collect();
        let mut links = HashMap::new();
        let datacenters = (0u16..).zip(&world.datacenters).map(|(id, _)| id);
        for (from, to) in datacenters.clone().flat_map(|from| datacenters.clone().map(move |to| (from, to))) {
            if let Some(link) = world.link(from, to) {
                links.insert((from, to), crate::world::index(carries.len()));
                carries.push(link.bytes_per_s * share);
            }
        }
        let count = carries.len();
        Self { carries, moves: vec![0; count], wanted: vec![0.0; count], links, touched: vec![false; count] }
    }

    /// A move that could begin.
    pub(crate) fn flow(&self, world: &World<'_>, subject: SubjectId, from: HostId, to: HostId) -> Flow {
        let mut resources = vec![2 * from, 2 * to + 1];
        let datacenter = |host: HostId| world.facts(host).datacenter;
        resources.extend(self.links.get(&(datacenter(from), datacenter(to))));
        let facts = world.of(subject);
        let usage = &world.machine(facts.machine).memory_use;
        let page = if usage.bytes_per_page > 0.0 { usage.bytes_per_page } else { PAGE_SIZE as f64 };
        let carries = self.least(&resources, |carries, _| carries);
        let alone = carries.min(PAGES_PER_S_MAX * page);
        let (_, path) = world.path(from, to);
        let known = cost(world, subject, &path, alone);
        let is_machine = facts.piece.is_none();
        let before_ms = if is_machine { AROUND_MS } else { 0.0 };
        let busy = ((known.takes_ms - before_ms) / known.takes_ms.max(1.0)).clamp(0.0, 1.0);
        let writes = if is_machine { usage.dirty_pages_per_s * page * CONVERGES } else { 0.0 };
        let wants = (alone * busy * OVERLAP).max(writes).min(carries);
        let (done, bytes, downtime_ms) = (0.0, 0.0, 0.0);
        Flow { subject, from, to, resources, wants, is_machine, before_ms, done, pace: None, bytes, downtime_ms }
    }

    fn least(&self, resources: &[Resource], of: impl Fn(f64, u32) -> f64) -> f64 {
        let each = resources.iter().map(|at| of(self.carries[*at as usize], self.moves[*at as usize]));
        each.fold(f64::INFINITY, f64::min)
    }

    /// Is there room for it, so that it and the others keep what they need?
    pub(crate) fn has_room(&self, flow: &Flow) -> bool {
        flow.resources.iter().all(|at| {
            let at = *at as usize;
            self.moves[at] == 0 || self.wanted[at] + flow.wants <= self.carries[at]
        })
    }

    pub(crate) fn enter(&mut self, flow: &Flow) {
        for at in &flow.resources {
            self.moves[*at as usize] += 1;
            self.wanted[*at as usize] += flow.wants;
            self.touched[*at as usize] = true;
        }
    }

    pub(crate) fn leave(&mut self, flow: &Flow) {
        for at in &flow.resources {
            self.moves[*at as usize] -= 1;
            self.wanted[*at as usize] =
                if self.moves[*at as usize] == 0 { 0.0 } else { self.wanted[*at as usize] - flow.wants };
            self.touched[*at as usize] = true;
        }
    }

    /// Reckons the pace of those whose company has changed.
    pub(crate) fn settle<'f>(&mut self, world: &World<'_>, flows: impl Iterator<Item = &'f mut Flow>) {
        for flow in flows {
            if flow.pace.is_some() && !flow.resources.iter().any(|at| self.touched[*at as usize]) {
                continue;
            }
            let gets = self.least(&flow.resources, |carries, moves| carries / f64::from(moves.max(1)));
            let (_, path) = world.path(flow.from, flow.to);
            flow.pace = Some(cost(world, flow.subject, &path, gets));
        }
        self.touched.fill(false);
    }
}

impl Flow {
    /// When it will be over if nothing changes, in ms from now.
    pub(crate) fn left_ms(&self) -> f64 {
        let needs = self.pace.map_or(0.0, |pace| self.needs_ms(&pace));
        self.before_ms + (1.0 - self.done).max(0.0) * needs
    }

    /// After what is before the first page, which `takes_ms` includes for machines.
    fn needs_ms(&self, pace: &Cost) -> f64 {
        let before = if self.is_machine { AROUND_MS } else { 0.0 };
        (pace.takes_ms - before).max(1.0)
    }

    /// So many ms later.
    pub(crate) fn pass(&mut self, ms: f64) {
        let before = self.before_ms.min(ms);
        self.before_ms -= before;
        let Some(pace) = self.pace else { return };
        let part = ((ms - before) / self.needs_ms(&pace)).min(1.0 - self.done).max(0.0);
        self.done += part;
        self.bytes += part * pace.bytes;
        self.downtime_ms += part * pace.downtime_ms;
    }
}
