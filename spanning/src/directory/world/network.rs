//! What hosts say to each other, and what mutations make of it on the way.

use super::{Flying, Packet, Stamp, World, host};
use crate::directory::{
    Access, Answer, Event, Home, HostId, Message, Order, Outgoing, Reply, Request, Route, ShardNumber, Table,
    mutations::Mutation,
};
use vmotion_model::PageNumber;

impl World {
    /// Can it be processed now? A page's effects are carried out before its next event.
    pub(in crate::directory) fn takes(&self, flying: &Flying) -> bool {
        let at = &self.hosts[flying.to.index()];
        match &flying.packet {
            Packet::Page(page, Message::Request { request: Request::Put(Some(_)), .. })
                if self.mutated(Mutation::PutIsNoAnswer) =>
            {
                at.homes.home(*page).is_none_or(Home::is_idle)
            }
            Packet::Page(page, Message::Order { .. } | Message::Reply(_)) => {
                at.spots[self.index(*page)].todo.is_empty()
            }
            Packet::Page(..) | Packet::Handover(_) | Packet::Word(..) => true,
        }
    }

    pub(in crate::directory) fn deliver(&mut self, Flying { from, to, packet }: Flying) {
        let at = to.index();
        if self.hosts[at].fenced || self.hosts[from.index()].fenced {
            return;
        }
        match packet {
            Packet::Page(page, message @ (Message::Request { .. } | Message::Answer { .. })) => {
                self.home_hears(at, from, page, message);
                self.hand_over(at, ShardNumber::of(page));
            }
            Packet::Page(page, Message::Order { txn, order }) => {
                let waits = matches!(self.hosts[at].spots[self.index(page)].holder.name(), "IS" | "IM" | "SM");
                if self.mutated(Mutation::InvIgnoredWhileWaiting) && order == Order::Inv && waits {
                    let ack = Message::Answer { txn, answer: Answer::Ack };
                    self.sent.push(Flying { from: to, to: from, packet: Packet::Page(page, ack) });
                } else {
                    self.step(at, self.index(page), Event::Order { from, txn, order });
                }
            }
            Packet::Page(page, Message::Reply(reply)) => {
                if let Reply::Redirect { home, epoch, .. } = &reply {
                    self.learn(at, page, Route { home: *home, epoch: *epoch });
                }
                self.step(at, self.index(page), Event::Reply { from, reply });
            }
            Packet::Handover(handover) => {
                let shard = usize::try_from(handover.shard.0).unwrap();
                let route = Route { home: to, epoch: handover.epoch };
                match self.hosts[at].homes.take_over(handover) {
                    Ok(_) => self.word(shard, route, &[from, to]),
                    Err(error) => self.fail(|| error.to_string()),
                }
            }
            Packet::Word(shard, mut route) => {
                if self.mutated(Mutation::OldHomeGoesOn) && route.home != to {
                    route.home = to;
                }
                let mut out = Vec::new();
                if let Err(error) = self.hosts[at].homes.settle(shard, route, &mut out) {
                    self.fail(|| error.to_string());
                }
                self.hosts[at].table.learn(shard, route);
                self.send_all(at, out);
                self.check_homes(shard);
            }
        }
    }

    pub(super) fn learn(&mut self, at: usize, page: PageNumber, route: Route) {
        let before = self.hosts[at].table.route(page).unwrap();
        if self.mutated(Mutation::OldRedirectObeyed) {
            let mut gullible = Table::default();
            gullible.learn(ShardNumber::of(page), route);
            for (shard, known) in (0..).map(ShardNumber).zip(&self.store) {
                if shard != ShardNumber::of(page) {
                    gullible.learn(shard, *known);
                }
            }
            self.hosts[at].table = gullible;
        } else {
            self.hosts[at].table.learn(ShardNumber::of(page), route);
        }
        if self.hosts[at].table.route(page).unwrap().epoch < before.epoch {
            self.fail(|| "a table of shards went back".to_owned());
        }
    }

    pub(super) fn home_hears(&mut self, at: usize, from: HostId, page: PageNumber, message: Message<Stamp>) {
        let is_request = matches!(message, Message::Request { .. });
        let idle = self.hosts[at].homes.home(page).is_none_or(Home::is_idle);
        if self.mutated(Mutation::QueueDropsOne) && is_request && !idle {
            return;
        }
        if let Message::Answer { txn, answer: Answer::Done } = message {
            let index = self.index(page);
            self.granted[index] = self.granted[index].filter(|granted| *granted != (from, txn));
        }
        let mut out = Vec::new();
        if let Err(misfit) = self.hosts[at].homes.receive(from, page, message, &mut out) {
            self.fail(|| format!("{misfit}: {}", misfit.error));
        }
        self.send_all(at, out);
    }

    pub(super) fn send_all(&mut self, from: usize, out: Vec<Outgoing<Stamp>>) {
        for outgoing in out {
            self.send(from, outgoing);
        }
    }

    pub(super) fn send(&mut self, from: usize, Outgoing { mut to, page, mut message }: Outgoing<Stamp>) {
        let index = self.index(page);
        let mut forged = Vec::new();
        match &mut message {
            Message::Order { txn, order } => {
                if self.granted[index].is_some() {
                    self.fail(|| "an order between grant and done".to_owned());
                }
                let ack = |host| (host, Message::Answer { txn: *txn, answer: Answer::Ack });
                if self.mutated(Mutation::OneSharerSkipped) && *order == Order::Inv {
                    let skipped = to.iter().next().unwrap();
                    to = to.without(skipped);
                    forged.push(ack(skipped));
                } else if self.mutated(Mutation::GrantBeforeAcks) && *order == Order::Inv {
                    forged.extend(to.iter().map(ack));
                }
            }
            Message::Reply(Reply::Grant { txn, access, version, content }) => {
                let requester = to.iter().next().unwrap();
                self.granted[index] = Some((requester, *txn));
                if self.mutated(Mutation::VersionNotBumped) && *access == Access::Write {
                    version.0 -= 1;
                    self.hosts[from].homes.home_mut(page).unwrap().entry.version = *version;
                }
                let holder = self.hosts[requester.index()].spots[index].holder;
                if self.mutated(Mutation::UpgradeTrusted) && *access == Access::Write && holder.version().is_some() {
                    *content = None;
                }
                if self.mutated(Mutation::NotBusyUntilDone) {
                    self.granted[index] = None;
                    forged.push((requester, Message::Answer { txn: *txn, answer: Answer::Done }));
                }
            }
            Message::Reply(_) | Message::Request { .. } | Message::Answer { .. } => {}
        }
        let flying = |to| Flying { from: host(from), to, packet: Packet::Page(page, message.clone()) };
        self.sent.extend(to.iter().map(flying));
        for (host, message) in forged {
            self.home_hears(from, host, page, message);
        }
    }
}
