//! One pass: whatever woke the node is dealt with to its end.

use super::control::Command;
use super::error::{NodeError, Outcome};
use super::node::{Life, MemoryNode};
use super::spot::Waiter;
use super::stats::{NodeStats, PeerStats};
use crate::directory::{Access, Event, HostId};
use std::ops::Range;
use std::time::Instant;
use vmotion_model::PageNumber;
use vmotion_transport::mesh::Outgoing;

/// Reads of the userfaultfd in a pass, so that faults do not keep messages waiting.
const READS_MAX: usize = 4;
/// Events that one read brings.
const TOUCHES_A_READ: usize = 64;
/// Pages that are being given up at a time.
const PUTTING_MAX: usize = 64;

impl MemoryNode {
    /// Something is readable, or a time has come.
    pub(super) fn wake_up(&mut self, out: &mut dyn Outgoing) -> Outcome {
        for command in self.mailbox.collect() {
            self.obey(command, out)?;
        }
        if matches!(self.life, Life::Fenced | Life::Stopped) {
            return Ok(());
        }
        if self.life == Life::Serving {
            self.read_faults(out)?;
        }
        let now = self.now();
        for link in self.links.iter_mut().flatten() {
            link.tick(now, out);
        }
        self.hold_over(now, out)
    }

    /// What this host does by itself, beside what anybody waits for.
    pub(super) fn go_on(&mut self, out: &mut dyn Outgoing) -> Outcome {
        self.give_up(out)?;
        self.pull(out)
    }

    fn read_faults(&mut self, out: &mut dyn Outgoing) -> Outcome {
        for _ in 0..READS_MAX {
            let start = self.clock();
            let mut touches = [None; TOUCHES_A_READ];
            let mut next = touches.iter_mut();
            let read = self.memory.read_touches(|touch| {
                if let Some(slot) = next.next() {
                    *slot = Some(touch);
                }
            });
            let read = read.map_err(NodeError::Faults)?;
            if read == 0 {
                break;
            }
            self.counters.costs.reading_faults.since(start);
            let read_at = Instant::now();
            for touch in touches.into_iter().flatten() {
                // The pager speaks of its own memory only, which is as long as the layout.
                let Some(page) = self.known.layout.page_at(touch.index) else { continue };
                let access = if touch.write { Access::Write } else { Access::Read };
                self.touched(page, Waiter { thread: touch.thread, access, since: read_at }, out)?;
            }
            if read < TOUCHES_A_READ {
                break;
            }
        }
        Ok(())
    }

    /// Gives pages up, a few at a time.
    pub(super) fn give_up(&mut self, out: &mut dyn Outgoing) -> Outcome {
        while self.putting.len() < PUTTING_MAX {
            let Some(page) = self.evictions.pop_front() else { break };
            self.step(self.host, page, Event::Evict, out)?;
            // Its home may be here, and then it is given up by now.
            self.listen(out)?;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command, out: &mut dyn Outgoing) -> Outcome {
        match command {
            // Who asked may have gone; so may the reply.
            Command::Statistics(reply) => _ = reply.try_send(self.statistics()),
            Command::TakeRecent(reply) => _ = reply.try_send(self.counters.recent.take()),
            Command::Evict(pages) => self.plan_evictions(&pages),
            Command::Relocate { shard, to, reply } => _ = reply.try_send(self.relocate(shard, to, out)),
            Command::TakeBack(shard) => self.take_back(shard),
            Command::Word(shard, route) => self.hear_store(shard, route, out)?,
            Command::Fence(host, reply) => {
                let lost = self.fence(host, out)?;
                let _ = reply.try_send(lost);
            }
            Command::Admit(host, reply) => {
                self.admit(host, out);
                let _ = reply.try_send(());
            }
            Command::Leave { commit, reply } => {
                let staying = self.leave(commit, out)?;
                let _ = reply.try_send(staying);
            }
            Command::Stay(reply) => {
                self.leaving = None;
                let _ = reply.try_send(());
            }
            Command::Find { host, from, reply } => _ = reply.try_send(self.find(host, from)),
            Command::Dismiss(host, reply) => _ = reply.try_send(self.dismiss(host)),
            Command::Pull(pull) => self.obey_pull(pull),
            Command::Stop(reply) => {
                self.life = Life::Stopped;
                let _ = reply.try_send(());
            }
        }
        Ok(())
    }

    fn plan_evictions(&mut self, pages: &Range<PageNumber>) {
        let mut planned: Vec<_> = self.spots.pages();
        planned.retain(|page| pages.contains(page));
        planned.sort_unstable();
        self.evictions.extend(planned);
    }

    fn statistics(&self) -> NodeStats {
        let peers = self.links.iter().flatten().map(|link| PeerStats {
            host: link.host(),
            connected: link.is_connected(),
            unacknowledged: link.unacknowledged(),
            traffic: link.traffic,
        });
        NodeStats {
            faults: self.counters.faults(),
            counts: self.counters.counts,
            costs: self.counters.costs,
            peers: peers.collect(),
            hot: self.counters.hot.hottest_first(),
            pages_known: self.spots.len(),
        }
    }

    /// A host's lease is over. The pages with their home here that are lost with it.
    fn fence(&mut self, host: HostId, out: &mut dyn Outgoing) -> Result<Vec<PageNumber>, super::error::Trouble> {
        if host == self.host {
            self.life = Life::Fenced;
            self.local.clear();
            self.timers.clear();
            self.evictions.clear();
            self.links.fill_with(|| None);
            for page in self.spots.pages() {
                self.step(host, page, Event::Fenced, out)?;
            }
            self.memory.unmap_all().map_err(NodeError::Memory)?;
            return Ok(Vec::new());
        }
        if let Some(link) = self.links.get_mut(host.index()) {
            *link = None;
        }
        self.moving.forget(host);
        let lost = self.homes.fence(host, &mut self.letters);
        self.post(out);
        self.hand_over_all(out);
        Ok(lost)
    }
}
