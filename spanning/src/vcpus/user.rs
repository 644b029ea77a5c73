//! The mesh's user: puts letters on the wire and hands out what comes. Never waits.

use super::{
    desk::{Accessing, Desk, Heard, To},
    letter::Letter,
    post::{Post, write_acknowledgement, write_letter},
};
use crate::{
    directory::{HostId, HostSet, replay::Numbered},
    host_of, peer_of,
    registry::Placement,
};
use rustix::fd::{AsFd, BorrowedFd};
use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc::Sender},
    time::Instant,
};
use vmotion_machine::{ExitReason, Machine, VcpuSet};
use vmotion_model::Epoch;
use vmotion_transport::{
    mesh::{MeshUser, Outgoing, Peer, StreamNumber},
    session::SessionError,
};

/// The most urgent one.
const LETTERS: StreamNumber = StreamNumber(0);

/// Brings letters between a machine and the mesh.
pub struct VcpuUser {
    desk: Arc<Desk>,
    machine: Arc<Machine>,
    accesses: Sender<Accessing>,
    pieces: Sender<(HostId, Letter)>,
    posts: BTreeMap<Peer, Post>,
    /// In which epoch was said what interrupts find a vCPU by.
    addressed: BTreeMap<u8, Epoch>,
}

impl VcpuUser {
    /// The streams it uses.
    pub const STREAMS: [StreamNumber; 1] = [LETTERS];

    pub(super) const fn new(
        desk: Arc<Desk>,
        machine: Arc<Machine>,
        accesses: Sender<Accessing>,
        pieces: Sender<(HostId, Letter)>,
    ) -> Self {
        Self { desk, machine, accesses, pieces, posts: BTreeMap::new(), addressed: BTreeMap::new() }
    }

    /// The vCPUs on `host`, as far as is known.
    pub fn vcpus_on(&self, host: HostId) -> VcpuSet {
        (0u8..).zip(self.desk.placements()).filter(|(_, at)| at.host == host).map(|(vcpu, _)| vcpu).collect()
    }

    /// A host that letters go to from the beginning, connected or not.
    pub fn add(&mut self, peer: Peer) {
        self.posts.entry(peer).or_default();
    }

    /// A host that comes to the running machine, and is told what is here. Nothing happens when it was there.
    pub fn admit(&mut self, peer: Peer, out: &mut dyn Outgoing) {
        if self.posts.contains_key(&peer) {
            return;
        }
        self.posts.insert(peer, Post::default());
        for letter in self.desk.introduction() {
            self.send(peer, &letter, out);
        }
        if let Ok(host) = host_of(peer) {
            self.desk.take_leave_of(host);
        }
    }

    /// Nothing goes to this host any more.
    pub fn remove(&mut self, peer: Peer) {
        self.posts.remove(&peer);
    }

    /// Sees to it that no vCPU comes here and nothing for any; to be asked again. The hosts that may still send something, and the letters
    /// that were not acknowledged.
    ///
    /// # Errors
    /// The vCPU that is here.
    pub fn leave(&mut self, out: &mut dyn Outgoing) -> Result<(HostSet, usize), u8> {
        let others = self.posts.keys().filter_map(|peer| host_of(*peer).ok()).fold(HostSet::EMPTY, HostSet::with);
        let silent = self.desk.leave(others)?;
        self.deliver(out);
        Ok((silent, self.posts.values().map(Post::unacknowledged).sum()))
    }

    fn send(&mut self, peer: Peer, letter: &Letter, out: &mut dyn Outgoing) {
        let write = &mut |numbered: &Numbered<Vec<u8>>, accepted| {
            out.send(peer, LETTERS, &mut |into| write_letter(numbered, accepted, into));
        };
        // What is for a host that has left comes from one who has not heard of it yet, and is for nobody.
        let Some(post) = self.posts.get_mut(&peer) else { return };
        if let Err(error) = post.push(letter.encode(), write) {
            let text = format!("host {} has not answered for too long: {error}", peer.0);
            self.machine.end(ExitReason::InternalError { text });
        }
    }

    fn deliver(&mut self, out: &mut dyn Outgoing) {
        for (to, letter) in self.desk.outgoing() {
            match to {
                To::Host(host) if host == self.desk.me => self.take(host, letter),
                To::Host(host) => self.send(peer_of(host), &letter, out),
                To::Others => {
                    let peers: Vec<Peer> = self.posts.keys().copied().collect();
                    peers.into_iter().for_each(|peer| self.send(peer, &letter, out));
                }
            }
        }
    }

    /// One that came, or that this host sends to itself.
    fn take(&mut self, from: HostId, letter: Letter) {
        match letter {
            Letter::Interrupt { vcpu, message } => self.machine.interrupt(vcpu, message),
            Letter::Addressing { vcpu, epoch, addressing } => {
                // Of the host that has it now, whichever is heard first.
                let newest = self.addressed.entry(vcpu).or_insert(epoch);
                if epoch >= *newest {
                    *newest = epoch;
                    self.machine.set_addressing(vcpu, addressing);
                }
            }
            Letter::EndOfInterrupt { vector } => self.machine.end_of_interrupt(vector),
            Letter::Access { number, vcpu, space, address, access } => {
                // Fails only when the machine is being torn down.
                let _ = self.accesses.send(Accessing { from, number, vcpu, space, address, access });
            }
            Letter::Accessed { number, data } => self.desk.accessed(number, data),
            Letter::Placed { vcpu, epoch } => self.desk.learn(vcpu, Placement { host: from, epoch }),
            Letter::Ready { vcpu, epoch } => self.desk.heard(vcpu, Heard::Ready(epoch)),
            Letter::Taken { vcpu, epoch, taken } => self.desk.heard(vcpu, Heard::Taken(epoch, taken)),
            Letter::Leaving { attempt, placements } => {
                for (vcpu, at, epoch) in placements {
                    // Where a host that has left was is old news.
                    if let Some(host) = HostId::new(at).filter(|host| self.posts.contains_key(&peer_of(*host))) {
                        self.desk.learn(vcpu, Placement { host, epoch });
                    }
                }
                self.desk.send(To::Host(from), Letter::Farewell { attempt });
            }
            Letter::Farewell { attempt } => self.desk.farewell(from, attempt),
            Letter::Ended(reason) => self.machine.end(reason),
            Letter::Expect { .. } | Letter::State { .. } | Letter::Forget { .. } => {
                let _ = self.pieces.send((from, letter));
            }
        }
    }
}

impl MeshUser for VcpuUser {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        into.push(self.desk.wake.as_fd());
    }

    fn deadline(&self) -> Option<Instant> {
        self.posts.values().filter_map(Post::due).min()
    }

    fn woken(&mut self, out: &mut dyn Outgoing) {
        self.deliver(out);
        let now = Instant::now();
        for (peer, post) in &mut self.posts {
            if let Some(accepted) = post.pay(now) {
                out.send(*peer, LETTERS, &mut |into| write_acknowledgement(accepted, into));
            }
        }
    }

    fn connected(&mut self, peer: Peer, out: &mut dyn Outgoing) {
        let Some(post) = self.posts.get_mut(&peer) else { return };
        post.connected(&mut |numbered, accepted| {
            out.send(peer, LETTERS, &mut |into| write_letter(numbered, accepted, into));
        });
    }

    fn lost(&mut self, peer: Peer, _: &SessionError, _: &mut dyn Outgoing) {
        if let Some(post) = self.posts.get_mut(&peer) {
            post.lost();
        }
    }

    fn received(
        &mut self,
        from: Peer,
        _: StreamNumber,
        frame: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        let broken = |what: String| SessionError::Protocol(format!("a letter about vCPUs: {what}"));
        let host = host_of(from)?;
        let now = Instant::now();
        let post = self.posts.get_mut(&from).ok_or_else(|| broken(format!("{host} has no part in the machine")))?;
        if let Some(letter) = post.accept(frame, now).map_err(broken)? {
            let letter = Letter::decode(&letter).map_err(broken)?;
            self.take(host, letter);
            // What it has led to goes out in the same pass.
            self.deliver(out);
        }
        if let Some(accepted) = self.posts.get_mut(&from).and_then(|post| post.pay(now)) {
            out.send(from, LETTERS, &mut |into| write_acknowledgement(accepted, into));
        }
        Ok(())
    }
}
