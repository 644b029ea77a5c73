//! What a pager does with effects, one system call at a time.

use super::{Flying, Packet, Stamp, World, host};
use crate::directory::{
    Access, At, Content, Effect, Event, Left, Message, Moment, Request, Route, mutations::Mutation,
};

impl World {
    /// Is there something for [`perform`](Self::perform) to do?
    pub(in crate::directory) fn is_busy(&self, at: usize, page: usize) -> bool {
        !self.hosts[at].spots[page].todo.is_empty()
    }

    pub(in crate::directory) fn is_slow(&self, at: usize, page: usize) -> bool {
        !self.hosts[at].spots[page].slow.is_empty()
    }

    pub(in crate::directory) fn perform_slow(&mut self, at: usize, page: usize) {
        if let Some(effect) = self.hosts[at].spots[page].slow.pop_front() {
            self.do_effect(at, page, effect, false);
        }
        self.check(page);
    }

    pub(super) fn step(&mut self, at: usize, page: usize, event: Event<Stamp>) {
        let epoch = self.hosts[at].table.route(self.number(page)).unwrap().epoch;
        let now = self.now;
        let spot = &mut self.hosts[at].spots[page];
        let (next, mut effects) = match spot.holder.step(At { now, epoch }, event) {
            Ok(step) => step,
            Err(error) => return self.fail(|| format!("host {at}, page {page}: {error}")),
        };
        spot.holder = next;
        if self.mutation == Some(Mutation::ReadBeforeRevoke)
            && matches!(effects, [Some(Effect::Revoke(_)), Some(Effect::Read)])
        {
            effects.swap(0, 1);
        }
        let spot = &mut self.hosts[at].spots[page];
        let installs = effects.iter().flatten().any(|effect| matches!(effect, Effect::Map(_) | Effect::Unprotect));
        if self.mutation == Some(Mutation::DoneBeforeInstalled) && installs {
            spot.slow.extend(effects.into_iter().flatten());
            return self.step(at, page, Event::Installed { hold_until: now });
        }
        spot.todo.extend(effects.into_iter().flatten());
        self.perform_quick(at, page);
        self.check(page);
    }

    /// Carries out the next effect, and all after it that nobody can tell from one with it.
    pub(in crate::directory) fn perform(&mut self, at: usize, page: usize) {
        if let Some(effect) = self.hosts[at].spots[page].todo.pop_front() {
            self.do_effect(at, page, effect, true);
        }
        self.perform_quick(at, page);
        self.check(page);
    }

    pub(super) fn perform_quick(&mut self, at: usize, page: usize) {
        let quick = |effect: &Effect<Stamp>| !matches!(effect, Effect::Map(_) | Effect::Unprotect | Effect::Revoke(_));
        while self.hosts[at].spots[page].todo.front().is_some_and(quick) {
            let effect = self.hosts[at].spots[page].todo.pop_front().unwrap();
            self.do_effect(at, page, effect, true);
        }
    }

    pub(super) fn do_effect(&mut self, at: usize, page: usize, effect: Effect<Stamp>, reports: bool) {
        let (now, hold) = (self.now, self.hold);
        let number = self.number(page);
        let installs = matches!(effect, Effect::Map(_) | Effect::Unprotect);
        let spot = &mut self.hosts[at].spots[page];
        match effect {
            Effect::Ask { epoch, request } => {
                if self.mutation == Some(Mutation::FrameFreedAtPut) && matches!(request, Request::Put(_)) {
                    spot.frame = 0;
                }
                let Route { home, epoch: known } = self.hosts[at].table.route(number).unwrap();
                let epoch = if self.mutation == Some(Mutation::EpochOfSending) { known } else { epoch };
                let packet = Packet::Page(number, Message::Request { epoch, request });
                self.sent.push(Flying { from: host(at), to: home, packet });
            }
            Effect::Answer { to, txn, answer } => {
                let packet = Packet::Page(number, Message::Answer { txn, answer });
                self.sent.push(Flying { from: host(at), to, packet });
            }
            Effect::Fill(Content::Zero) => spot.frame = 0,
            Effect::Fill(Content::Bytes(stamp)) => spot.frame = stamp,
            Effect::Map(access) => self.map(at, page, access),
            Effect::Unprotect => self.map(at, page, Access::Write),
            Effect::Revoke(left) => spot.mapped = if left == Left::Shared { Some(Access::Read) } else { None },
            Effect::Read => {
                let stamp = spot.frame;
                let content = if stamp == 0 { Content::Zero } else { Content::Bytes(stamp) };
                return self.step(at, page, Event::Read(content));
            }
            Effect::Wake => {}
            Effect::HoldUntil(_) => spot.timer = true,
            Effect::Free => spot.frame = 0,
            Effect::Poison => (spot.poisoned, spot.waits) = (true, None),
        }
        if reports && installs {
            self.step(at, page, Event::Installed { hold_until: Moment(now.0 + hold) });
        }
    }

    /// Maps the page, and the vCPU that waits for it is at it before anybody else moves.
    pub(super) fn map(&mut self, at: usize, page: usize, access: Access) {
        let spot = &mut self.hosts[at].spots[page];
        spot.mapped = Some(access);
        if let Some(wanted) = spot.waits.filter(|wanted| *wanted <= access) {
            spot.waits = None;
            self.touch(at, page, wanted);
        }
    }

    /// The hold window of a page is over.
    pub(in crate::directory) fn hold_over(&mut self, at: usize, page: usize, now: Moment) {
        self.hosts[at].spots[page].timer = false;
        let before = std::mem::replace(&mut self.now, now);
        self.step(at, page, Event::HoldOver);
        self.now = before;
    }
}
