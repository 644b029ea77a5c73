//! Who hears a message: the home of its page, or the holder.

use super::bytes::PageBytes;
use super::error::{NodeError, Outcome, PeerError};
use super::node::{Life, MemoryNode};
use super::wire::Packet;
use crate::directory::{Event, HostId, Message, Misfit, ProtocolError, ShardNumber, Txn};
use vmotion_model::PageNumber;
use vmotion_transport::mesh::{Outgoing, Peer, StreamNumber};

impl MemoryNode {
    /// A message from a peer, as the mesh brings it.
    pub(super) fn hear_peer(
        &mut self,
        from: Peer,
        stream: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Outcome {
        let is_former = HostId::new(from.0).is_some_and(|host| self.former.contains(host));
        if self.life == Life::Fenced || is_former {
            return Ok(());
        }
        let now = self.now();
        let link = self.links.get_mut(usize::from(from.0)).and_then(Option::as_mut);
        let link = link.ok_or(PeerError::Stranger(from.0))?;
        let host = link.host();
        match link.receive(now, stream, message, &self.known, out)? {
            None => Ok(()),
            Some(Packet::Page(page, message)) => self.hear(host, page, message, out),
            Some(Packet::Part(part)) => self.hear_part(host, part),
            Some(Packet::Word(shard, route)) => self.hear_word(host, shard, route, out),
            Some(Packet::Gone(shard, route)) => self.hear_gone(shard, route, out),
            Some(Packet::Leaving(attempt)) => {
                self.hear_leaving(host, attempt, out);
                Ok(())
            }
            Some(Packet::Print(page, print)) => Ok(self.audit_copy(page, print)?),
            Some(Packet::Left) => {
                link.has_left = true;
                Ok(())
            }
            Some(Packet::Farewell(attempt)) => {
                self.hear_farewell(host, attempt);
                Ok(())
            }
        }
    }

    fn hear(&mut self, from: HostId, page: PageNumber, message: Message<PageBytes>, out: &mut dyn Outgoing) -> Outcome {
        if matches!(message, Message::Order { .. } | Message::Reply(_)) && !self.counts(from, page, message.txn())? {
            return Ok(());
        }
        match message {
            Message::Request { .. } | Message::Answer { .. } => self.home_hears(from, page, message, out),
            Message::Order { txn, order } => self.step(from, page, Event::Order { from, txn, order }, out),
            Message::Reply(reply) => self.hear_reply(from, page, reply, out),
        }
    }

    /// Orders and grants come from the home. A later epoch than the one known here may have another home. An earlier one has ended, and so
    /// have its transactions: what comes of it now is a recall that a `Put` has answered.
    fn counts(&self, from: HostId, page: PageNumber, txn: Option<Txn>) -> Result<bool, PeerError> {
        // Not within a transaction: the holder knows whether it has asked.
        let Some(txn) = txn else { return Ok(true) };
        let known = self.table.route(page).ok_or(PeerError::NotHome(page))?;
        if txn.epoch == known.epoch && from != known.home {
            return Err(PeerError::NotHome(page));
        }
        Ok(txn.epoch >= known.epoch)
    }

    pub(super) fn home_hears(
        &mut self,
        from: HostId,
        page: PageNumber,
        message: Message<PageBytes>,
        out: &mut dyn Outgoing,
    ) -> Outcome {
        // Only requests can come before the store's word does.
        let request = matches!(message, Message::Request { .. }).then(|| message.clone());
        let heard = self.homes.receive(from, page, message, &mut self.letters);
        self.audit_home(page);
        self.post(out);
        match (heard, request) {
            (Ok(()), _) => self.hand_over(ShardNumber::of(page), out),
            (Err(Misfit { error: ProtocolError::Superseded(_), .. }), Some(request)) => {
                self.park(from, page, request)?
            }
            (Err(misfit), _) if from == self.host => return Err(NodeError::Protocol(misfit).into()),
            (Err(misfit), _) => return Err(misfit.into()),
        }
        Ok(())
    }

    /// Sends what homes want said.
    pub(super) fn post(&mut self, out: &mut dyn Outgoing) {
        let mut letters = std::mem::take(&mut self.letters);
        for letter in letters.drain(..) {
            for to in letter.to.iter() {
                self.say(to, letter.page, letter.message.clone(), out);
            }
        }
        // Its room is kept.
        self.letters = letters;
    }

    /// What this host says to itself, until it has said everything.
    pub(super) fn listen(&mut self, out: &mut dyn Outgoing) -> Outcome {
        while let Some((page, message)) = self.local.pop_front() {
            self.hear(self.host, page, message, out)?;
        }
        Ok(())
    }
}
