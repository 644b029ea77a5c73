//! What would be better: moves off hosts that have too much to do, swaps, chains over a third host, pieces to those they share with. Where
//! the site is small, the result is shaken and improved again.

use super::{AS_GOOD, Search, is_better};
use crate::{
    site::Duty,
    state::NOTHING,
    world::{HostId, SubjectId, index},
};

/// Hosts with which a swap, or a chain, is tried for each subject.
const PARTNERS: usize = 4;
/// Where a chain may end.
const ENDS: usize = 3;
/// Subjects of a host that are tried in swaps and chains, those whose leaving helps most first.
const SWAPPED: usize = 8;
/// Of small sites, which are shaken, everything is looked at so much more closely.
const CLOSELY: usize = 4;
/// A site with no more hosts is shaken.
const SHAKEN_HOSTS: usize = 64;
/// And no more that may be moved.
const SHAKEN_SUBJECTS: usize = 200;
/// It is shaken until so often in a row nothing came of it, for each subject but no more than so often.
const SHAKES_PER_SUBJECT: u32 = 60;
const SHAKES_MAX: u32 = 1500;

/// Something that would be better.
#[derive(Debug, Clone)]
struct Better {
    change: f64,
    bytes: f64,
    moves: Vec<(SubjectId, HostId)>,
}

impl Better {
    /// Is `other` better, or as good with fewer bytes?
    fn yields_to(&self, other: &Self) -> bool {
        if other.bytes < self.bytes {
            other.change <= self.change * AS_GOOD
        } else {
            other.change * AS_GOOD < self.change
        }
    }
}

impl Search<'_, '_> {
    pub(super) fn improve(&mut self) {
        let policy = &self.state.world.site.policy;
        let allowed = i64::from(policy.moves_per_hour_max) - i64::from(self.state.world.site.moves_last_hour);
        self.soft_left = allowed.max(0);
        self.descend();
        if self.state.world.hosts.len() <= SHAKEN_HOSTS {
            self.shake();
        }
        self.send_home();
    }

    /// Until nothing is better.
    fn descend(&mut self) {
        loop {
            let mark = self.log.len();
            let mut hosts: Vec<HostId> =
                self.state.world.host_ids_iter().filter(|host| self.state.loss[*host as usize] > NOTHING).collect();
            let loss = &self.state.loss;
            hosts.sort_by(|a, b| loss[*b as usize].total_cmp(&loss[*a as usize]).then(a.cmp(b)));
            for host in hosts {
                while !self.is_spent() && self.relieve(host) {}
            }
            if self.goal.gather {
                self.gather();
            }
            if self.log.len() == mark || self.is_spent() {
                return;
            }
        }
    }

    /// One step that makes things better for `host`.
    fn relieve(&mut self, host: HostId) -> bool {
        if self.state.loss[host as usize] <= NOTHING {
            return false;
        }
        let leaving = self.by_relief(host);
        if let Some(better) = self.best_move(&leaving) {
            return self.take(&better);
        }
        let leaving = &leaving[..leaving.len().min(SWAPPED * self.closeness())];
        let found = self.best_swap(host, leaving).or_else(|| self.best_chain(host, leaving));
        found.is_some_and(|better| self.take(&better))
    }

    fn closeness(&self) -> usize {
        if self.soft.len() <= SHAKEN_SUBJECTS { CLOSELY } else { 1 }
    }

    fn take(&mut self, better: &Better) -> bool {
        for (subject, host) in &better.moves {
            self.go(*subject, *host);
        }
        true
    }

    /// Subjects of `host` that may leave, with what their leaving gains, most first.
    fn by_relief(&mut self, host: HostId) -> Vec<(f64, SubjectId)> {
        let on: Vec<SubjectId> = self.state.on_host[host as usize].clone();
        let loss = self.state.loss[host as usize];
        let mut leaving: Vec<(f64, SubjectId)> = Vec::with_capacity(on.len());
        for subject in on {
            let stays = self.soft_left <= 0 && self.motive[subject as usize].is_none() && self.is_home(subject);
            if self.soft[subject as usize] && !stays {
                self.state.judged += 1;
                leaving.push((loss - self.state.loss_with(host, &[], &[subject]), subject));
            }
        }
        leaving.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        leaving
    }

    fn is_home(&self, subject: SubjectId) -> bool {
        self.state.host_of[subject as usize] == self.state.world.of(subject).origin
    }

    fn best_move(&mut self, leaving: &[(f64, SubjectId)]) -> Option<Better> {
        let mut best: Option<Better> = None;
        for (relief, subject) in leaving {
            // What it may gain at most; sharing may draw it besides.
            let shares = !self.state.world.shares_of(*subject).is_empty();
            if !shares && best.as_ref().is_some_and(|best| *relief <= -best.change * AS_GOOD) {
                break;
            }
            if !shares && *relief <= NOTHING {
                break;
            }
            let hosts = self.state.candidates(*subject);
            for found in [self.best_for(*subject, &hosts), self.best_together(*subject, &hosts)].into_iter().flatten() {
                if best.as_ref().is_none_or(|best| best.yields_to(&found)) {
                    best = Some(found);
                }
            }
        }
        best
    }

    fn best_for(&mut self, subject: SubjectId, hosts: &[HostId]) -> Option<Better> {
        let ranked = self.ranked(subject, hosts, true);
        for (_, host) in ranked {
            let change = self.state.change(subject, host);
            if is_better(change) && self.state.allowed(subject, host, false).is_ok() {
                let bytes = self.state.cost(subject, host).bytes;
                return Some(Better { change, bytes, moves: vec![(subject, host)] });
            }
        }
        None
    }

    /// With all that an affinity draws along.
    fn best_together(&mut self, subject: SubjectId, hosts: &[HostId]) -> Option<Better> {
        let mut best: Option<Better> = None;
        if !self.has_affinity(subject) {
            return None;
        }
        for host in hosts.iter().take(2 * PARTNERS) {
            let mark = self.mark();
            if self.soft_left < 2 || !self.may_softly(subject, *host) || !self.go_together(subject, *host, true) {
                continue;
            }
            let change = self.value - mark.value;
            let moves: Vec<(SubjectId, HostId)> =
                self.log[mark.log..].iter().map(|(part, _)| (*part, self.state.host_of[*part as usize])).collect();
            self.undo(mark);
            if is_better(change) && best.as_ref().is_none_or(|best| change < best.change) && self.room_for(&moves) {
                let bytes = moves.iter().map(|(part, to)| self.state.cost(*part, *to).bytes).sum();
                best = Some(Better { change, bytes, moves });
            }
        }
        best
    }

    /// May so many be moved for balance?
    fn room_for(&self, moves: &[(SubjectId, HostId)]) -> bool {
        let world = self.state.world;
        let added = moves.iter().filter(|(subject, to)| {
            let (origin, at) = (world.of(*subject).origin, self.state.host_of[*subject as usize]);
            self.motive[*subject as usize].is_none() && at == origin && *to != origin
        });
        i64::from(index(added.count())) <= self.soft_left
    }

    fn has_affinity(&self, subject: SubjectId) -> bool {
        let rules = self.state.rules;
        let of = rules.of_machine(self.state.world.of(subject).machine);
        of.iter().any(|rule| matches!(rules.get(*rule).kind, crate::rules::Kind::Affinity(_)))
    }

    /// Hosts among `hosts` other than `host`, those with the most room first.
    fn partners(&self, host: HostId, subject: SubjectId) -> Vec<HostId> {
        let mut hosts = self.state.candidates(subject);
        hosts.retain(|other| *other != host);
        let peak = |host: &HostId| self.state.peak(*host) - self.state.world.facts(*host).cpus;
        hosts.sort_by(|a, b| peak(a).total_cmp(&peak(b)).then(a.cmp(b)));
        hosts.truncate(PARTNERS * self.closeness());
        hosts
    }

    fn best_swap(&mut self, host: HostId, leaving: &[(f64, SubjectId)]) -> Option<Better> {
        let mut best: Option<Better> = None;
        for (_, subject) in leaving {
            for partner in self.partners(host, *subject) {
                let on = self.state.on_host[partner as usize].clone();
                for other in on {
                    if !self.soft[other as usize] || self.is_spent() {
                        continue;
                    }
                    let moves = vec![(*subject, partner), (other, host)];
                    if let Some(found) = self.judge_pair(&moves, [host, partner])
                        && best.as_ref().is_none_or(|best| best.yields_to(&found))
                    {
                        best = Some(found);
                    }
                }
            }
        }
        best
    }

    /// Two that change places, if that is better.
    fn judge_pair(&mut self, moves: &[(SubjectId, HostId)], [one, other]: [HostId; 2]) -> Option<Better> {
        let [(leaves, _), (enters, _)] = [moves[0], moves[1]];
        let state = &mut self.state;
        state.judged += 1;
        let memory = |subject: SubjectId| state.world.of(subject).memory;
        if memory(leaves) > state.free(other) + memory(enters) || memory(enters) > state.free(one) + memory(leaves) {
            return None;
        }
        let mut change = state.loss_with(one, &[enters], &[leaves]) - state.loss[one as usize];
        change += state.loss_with(other, &[leaves], &[enters]) - state.loss[other as usize];
        for (subject, to) in moves {
            change += state.units(*subject, *to) - state.units(*subject, state.host_of[*subject as usize]);
        }
        // Sharing is reckoned when it is carried out: pieces seldom change places.
        self.confirm(moves, change)
    }

    /// Carries it out, looks whether everything may be so, and takes it back.
    fn confirm(&mut self, moves: &[(SubjectId, HostId)], change: f64) -> Option<Better> {
        if !is_better(change) || !self.room_for(moves) {
            return None;
        }
        for (subject, to) in moves {
            let from = self.state.host_of[*subject as usize];
            let world = self.state.world;
            let origin = world.of(*subject).origin;
            let open = |host: HostId| world.facts(host).duty == Duty::Open || host == origin;
            if from == *to || !open(*to) || !world.is_compatible(origin, *to) || !self.may_softly(*subject, *to) {
                return None;
            }
        }
        let mark = self.mark();
        let mut fine = true;
        for (subject, to) in moves {
            self.go(*subject, *to);
        }
        let change = self.value - mark.value;
        // Each is judged with all others where they are to be.
        for (subject, to) in moves {
            let before = self.log[mark.log..].iter().find(|(moved, _)| moved == subject).map(|(_, from)| *from);
            let Some(from) = before else { continue };
            self.state.put(*subject, from);
            fine &= self.state.may(*subject, *to).is_ok();
            self.state.put(*subject, *to);
        }
        self.undo(mark);
        (fine && is_better(change)).then(|| {
            let bytes = moves.iter().map(|(subject, to)| self.state.cost(*subject, *to).bytes).sum();
            Better { change, bytes, moves: moves.to_vec() }
        })
    }

    fn best_chain(&mut self, host: HostId, leaving: &[(f64, SubjectId)]) -> Option<Better> {
        let mut best: Option<Better> = None;
        for (relief, subject) in leaving {
            for partner in self.partners(host, *subject) {
                let on = self.state.on_host[partner as usize].clone();
                for other in on {
                    if !self.soft[other as usize] || self.is_spent() {
                        continue;
                    }
                    self.state.judged += 1;
                    let between =
                        self.state.loss_with(partner, &[*subject], &[other]) - self.state.loss[partner as usize];
                    let wanted = best.as_ref().map_or(0.0, |best| best.change);
                    if between - relief >= wanted {
                        continue;
                    }
                    if let Some(found) = self.end_of_chain(host, (*subject, partner), other, between - relief)
                        && best.as_ref().is_none_or(|best| best.yields_to(&found))
                    {
                        best = Some(found);
                    }
                }
            }
        }
        best
    }

    /// The best place for what leaves the middle of a chain.
    fn end_of_chain(
        &mut self,
        host: HostId,
        middle: (SubjectId, HostId),
        other: SubjectId,
        so_far: f64,
    ) -> Option<Better> {
        let mut ends = self.partners(middle.1, other);
        ends.retain(|end| *end != host);
        ends.truncate(ENDS * self.closeness());
        let mut best: Option<Better> = None;
        for end in ends {
            if self.state.world.of(other).memory > self.state.free(end) {
                continue;
            }
            self.state.judged += 1;
            let change = so_far + self.state.loss_with(end, &[other], &[]) - self.state.loss[end as usize];
            if best.as_ref().is_some_and(|best| change >= best.change) {
                continue;
            }
            if let Some(found) = self.confirm(&[middle, (other, end)], change)
                && best.as_ref().is_none_or(|best| found.change < best.change)
            {
                best = Some(found);
            }
        }
        best
    }

    /// Pieces that share with what is elsewhere.
    fn gather(&mut self) {
        for subject in self.state.world.sharing() {
            if !self.soft[subject as usize] || self.is_spent() {
                continue;
            }
            let partners = self.state.world.shares_of(subject);
            let mut hosts: Vec<HostId> =
                partners.iter().map(|(other, _)| self.state.host_of[*other as usize]).collect();
            hosts.sort_unstable();
            hosts.dedup();
            if let Some(better) = self.best_for(subject, &hosts) {
                self.take(&better);
            }
        }
    }

    /// What was moved and need not have been goes back to where it was.
    fn send_home(&mut self) {
        for subject in 0..index(self.state.host_of.len()) {
            let origin = self.state.world.of(subject).origin;
            let displaced = self.state.host_of[subject as usize] != origin;
            if !displaced || !self.soft[subject as usize] || self.motive[subject as usize].is_some() {
                continue;
            }
            if self.state.may(subject, origin).is_ok() && self.state.change(subject, origin) <= NOTHING {
                self.go(subject, origin);
            }
        }
    }

    /// Kicks a few things about and descends again; what comes of it is kept if it is better.
    fn shake(&mut self) {
        let movable: Vec<SubjectId> =
            (0..index(self.soft.len())).filter(|subject| self.soft[*subject as usize]).collect();
        let mut left = (SHAKES_PER_SUBJECT * index(movable.len())).min(SHAKES_MAX);
        let losing = self.state.loss.iter().any(|loss| *loss > NOTHING);
        let displaced = movable.iter().any(|one| self.state.host_of[*one as usize] != self.state.world.of(*one).origin);
        if movable.is_empty() || movable.len() > SHAKEN_SUBJECTS || self.cut_short || !losing && !displaced {
            return;
        }
        while left > 0 && self.state.judged < self.effort {
            left -= 1;
            let mark = self.mark();
            for _ in 0..1 + self.dice(5) {
                let subject = movable[self.dice(movable.len())];
                let hosts = self.state.candidates(subject);
                let Some(to) = hosts.get(self.dice(hosts.len())).copied() else { continue };
                if self.may_softly(subject, to) && self.state.may(subject, to).is_ok() {
                    self.go(subject, to);
                }
            }
            if self.log.len() > mark.log {
                self.descend();
                self.send_home();
            }
            if self.value < mark.value - NOTHING {
                left = (SHAKES_PER_SUBJECT * index(movable.len())).min(SHAKES_MAX);
            } else {
                self.undo(mark);
            }
        }
        // What is only shaken for is not missed.
        self.cut_short = false;
    }

    /// A number below `sides`; the same ones in each search.
    fn dice(&mut self, sides: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap_or(0) % sides.max(1)
    }
}
