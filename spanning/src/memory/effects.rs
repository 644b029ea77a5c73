//! What a holder decides, as system calls and messages.

use super::bytes::{PAGE_BYTES, PageBytes, content_of};
use super::error::{NodeError, Outcome, Trouble, at_page};
use super::node::{Life, MemoryNode};
use super::spot::Waiter;
use super::wire::Packet;
use crate::directory::{
    Access, At, Content, Effect, Event, HostId, Left, Message, Misfit, Moment, ProtocolError, Reply, Request, Rights,
    Route, ShardNumber,
};
use std::cmp::Reverse;
use vmotion_model::PageNumber;
use vmotion_pager::Allow;
use vmotion_transport::mesh::Outgoing;

/// The pager's word for an access.
const fn allow(access: Access) -> Allow {
    match access {
        Access::Read => Allow::Read,
        Access::Write => Allow::Write,
    }
}

impl MemoryNode {
    /// Where a page is in the memfd; an error for pages that nobody should have spoken of.
    pub(super) fn index_of(&self, page: PageNumber) -> Result<u64, NodeError> {
        self.known.layout.index_of(page).ok_or(NodeError::Homeless(page))
    }

    /// Something happens to a page on this host. It is dealt with to its end: what a system call reports is the next event.
    ///
    /// `from` said it; this host, when it is a fault or a report.
    pub(super) fn step(
        &mut self,
        from: HostId,
        page: PageNumber,
        event: Event<PageBytes>,
        out: &mut dyn Outgoing,
    ) -> Outcome {
        let index = self.index_of(page)?;
        let mut blamed = from;
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let epoch = self.table.route(page).ok_or(NodeError::Homeless(page))?.epoch;
            let at = At { now: self.now(), epoch };
            let before = self.spots.get_mut(page).holder;
            let (holder, effects) = before.step(at, event).map_err(|error| self.misfit(blamed, page, error))?;
            self.spots.get_mut(page).holder = holder;
            let effects = match effects {
                // Nothing was ever here, so there is no memory yet: one system call does both.
                [Some(Effect::Fill(content)), Some(Effect::Map(access))] if before.version().is_none() => {
                    next = Some(self.place(page, index, &content, access, out)?);
                    [None, None]
                }
                effects => effects,
            };
            for effect in effects.into_iter().flatten() {
                debug_assert!(next.is_none(), "what reports comes last");
                next = self.perform(blamed, page, index, effect, out)?;
            }
            // What follows is this host's own.
            blamed = self.host;
        }
        Ok(())
    }

    /// Whoever said what fits no rule is to blame for it.
    pub(super) fn misfit(&self, from: HostId, page: PageNumber, error: ProtocolError) -> Trouble {
        let misfit = Misfit { from, page, error };
        if from == self.host { NodeError::Protocol(misfit).into() } else { misfit.into() }
    }

    /// Carries an effect of what `from` said out. What it reports comes when the system call has returned.
    fn perform(
        &mut self,
        from: HostId,
        page: PageNumber,
        index: u64,
        effect: Effect<PageBytes>,
        out: &mut dyn Outgoing,
    ) -> Result<Option<Event<PageBytes>>, NodeError> {
        match effect {
            Effect::Ask { epoch, request } => self.ask(page, Message::Request { epoch, request }, out)?,
            Effect::Answer { to, txn, answer } => self.say(to, page, Message::Answer { txn, answer }, out),
            Effect::Fill(content) => self.fill(page, index, &content)?,
            Effect::Map(access) => {
                let start = self.clock();
                self.memory.map(index, allow(access)).map_err(at_page("map memory", page))?;
                self.counters.costs.installing.since(start);
                return self.installed(page, out).map(Some);
            }
            Effect::Unprotect => {
                self.audit_loss(page)?;
                let start = self.clock();
                self.memory.allow_write(index).map_err(at_page("allow writing", page))?;
                self.counters.costs.installing.since(start);
                return self.installed(page, out).map(Some);
            }
            Effect::Revoke(left) => self.revoke(page, index, left)?,
            Effect::Read => return self.read(page, index).map(Some),
            Effect::Wake => {
                self.counters.counts.touches_late += 1;
                let spot = self.spots.get_mut(page);
                spot.waits = None;
                let allow = if spot.holder.rights() == Rights::Modified { Allow::Write } else { Allow::Read };
                self.memory.wake(index, allow).map_err(at_page("wake who waits", page))?;
            }
            Effect::HoldUntil(until) => {
                self.counters.counts.held += 1;
                self.timers.push(Reverse((until, page, from)));
            }
            Effect::Free => {
                self.putting.remove(&page);
                self.memory.free(index).map_err(at_page("free memory", page))?;
            }
            Effect::Poison => {
                self.counters.counts.lost += 1;
                self.pulls.ended(page, false);
                self.spots.get_mut(page).waits = None;
                tracing::error!(%page, "a page is lost with the host that had it");
                self.memory.poison(index).map_err(at_page("poison memory", page))?;
            }
        }
        Ok(None)
    }

    fn ask(&mut self, page: PageNumber, message: Message<PageBytes>, out: &mut dyn Outgoing) -> Result<(), NodeError> {
        if matches!(message, Message::Request { request: Request::Put(_), .. }) && self.putting.insert(page) {
            self.counters.counts.evicted += 1;
        }
        let home = self.table.route(page).ok_or(NodeError::Homeless(page))?.home;
        self.say(home, page, message, out);
        Ok(())
    }

    /// Sends a message; to this host itself too.
    pub(super) fn say(&mut self, to: HostId, page: PageNumber, message: Message<PageBytes>, out: &mut dyn Outgoing) {
        if to == self.host {
            self.local.push_back((page, message));
        } else if let Some(link) = self.link(to) {
            link.send(Packet::Page(page, message), out);
        }
    }

    fn fill(&mut self, page: PageNumber, index: u64, content: &Content<PageBytes>) -> Result<(), NodeError> {
        let start = self.clock();
        match content {
            Content::Zero => {
                self.counters.counts.zeroed += 1;
                self.memory.clear(index).map_err(at_page("clear memory", page))?;
            }
            Content::Bytes(bytes) => {
                self.counters.counts.filled += 1;
                self.memory.write(index, bytes.as_slice()).map_err(at_page("fill memory", page))?;
            }
        }
        self.counters.costs.filling.since(start);
        Ok(())
    }

    fn place(
        &mut self,
        page: PageNumber,
        index: u64,
        content: &Content<PageBytes>,
        access: Access,
        out: &mut dyn Outgoing,
    ) -> Result<Event<PageBytes>, NodeError> {
        let start = self.clock();
        let bytes = match content {
            Content::Zero => {
                self.counters.counts.zeroed += 1;
                &[0; PAGE_BYTES]
            }
            Content::Bytes(bytes) => {
                self.counters.counts.filled += 1;
                bytes.as_slice()
            }
        };
        self.memory.place(index, bytes, allow(access)).map_err(at_page("place memory", page))?;
        self.counters.costs.placing.since(start);
        self.installed(page, out)
    }

    /// The page is mapped, and whoever waited for it is awake.
    fn installed(&mut self, page: PageNumber, out: &mut dyn Outgoing) -> Result<Event<PageBytes>, NodeError> {
        self.audit_install(page, out)?;
        self.counters.counts.installed += 1;
        self.pulls.ended(page, true);
        let (now, random) = (self.now(), self.next_random());
        let away = self.table.route(page).is_some_and(|route| route.home != self.host);
        let spot = self.spots.get_mut(page);
        let hold_until = spot.window.installed(now, random);
        if let Some(waiter) = spot.waits.take() {
            self.counters.fault(waiter, away);
        }
        Ok(Event::Installed { hold_until })
    }

    fn revoke(&mut self, page: PageNumber, index: u64, left: Left) -> Result<(), NodeError> {
        let start = self.clock();
        match left {
            Left::Invalid => self.memory.unmap(index).map_err(at_page("unmap memory", page))?,
            Left::Shared => self.memory.protect(index).map_err(at_page("protect memory", page))?,
        }
        self.counters.costs.revoking.since(start);
        self.counters.counts.revoked += 1;
        if left == Left::Invalid {
            self.audit_loss(page)?;
        }
        let now = self.now();
        if self.spots.get_mut(page).window.revoked(now) {
            self.counters.counts.bounced += 1;
            self.counters.hot.count(page);
        }
        Ok(())
    }

    /// Comes after the revocation has returned, so these are the last bytes that anybody wrote here.
    fn read(&mut self, page: PageNumber, index: u64) -> Result<Event<PageBytes>, NodeError> {
        let start = self.clock();
        self.memory.read(index, self.buffer.as_mut_slice()).map_err(at_page("read memory", page))?;
        let content = content_of(&self.buffer);
        self.counters.costs.copying.since(start);
        self.audit_read(page);
        self.counters.counts.read += 1;
        self.counters.counts.read_zero += u64::from(content == Content::Zero);
        Ok(Event::Read(content))
    }

    /// A thread of this host waits for a page.
    pub(super) fn touched(&mut self, page: PageNumber, waiter: Waiter, out: &mut dyn Outgoing) -> Outcome {
        if self.life != Life::Serving {
            return Ok(());
        }
        self.counters.counts.touches += 1;
        self.counters.recent.touched(waiter.thread, page);
        self.spots.get_mut(page).waits.get_or_insert(waiter);
        self.step(self.host, page, Event::Fault(waiter.access), out)
    }

    /// Orders whose hold window is over.
    pub(super) fn hold_over(&mut self, now: Moment, out: &mut dyn Outgoing) -> Outcome {
        let mut outcome = Ok(());
        while let Some(Reverse((due, page, giver))) = self.timers.peek().copied() {
            if due > now {
                break;
            }
            self.timers.pop();
            // If the order fits no rule, that is its giver's fault: everybody else's orders are still due.
            let done = self.step(giver, page, Event::HoldOver, out);
            if outcome.is_ok() || matches!(done, Err(Trouble::Node(_))) {
                outcome = done;
            }
        }
        outcome
    }

    /// A reply to what this host has asked. A redirection is shown to the table first.
    pub(super) fn hear_reply(
        &mut self,
        from: HostId,
        page: PageNumber,
        reply: Reply<PageBytes>,
        out: &mut dyn Outgoing,
    ) -> Outcome {
        // Only from where this host asks by now: whoever else sends it away knows no more than the table does.
        if let Reply::Redirect { home, epoch, .. } = &reply
            && self.table.route(page).is_some_and(|route| route.home == from)
        {
            let (shard, route) = (ShardNumber::of(page), Route { home: *home, epoch: *epoch });
            if self.is_there(shard, route)? {
                self.table.learn(shard, route);
            }
        }
        self.step(from, page, Event::Reply { from, reply }, out)
    }
}
