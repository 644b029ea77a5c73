//! All that uses a part's mesh, and what other threads want of it.

use super::{CLOCK_STREAM, MEMORY_STREAMS};
use crate::{
    clock::ClockUser,
    directory::{HostId, HostSet},
    host_of,
    memory::{Loss, MemoryNode},
    peer_of,
    vcpus::VcpuUser,
};
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::{AsFd, BorrowedFd, OwnedFd},
};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};
use vmotion_machine::{ExitReason, Machine};
use vmotion_transport::{
    mesh::{MeshUser, Outgoing, Peer, StreamNumber},
    session::SessionError,
};

/// Hosts that may still send something for a vCPU, and letters that were not acknowledged; or the vCPU that is here.
pub(super) type Unsaid = Result<(HostSet, usize), u8>;

/// What other threads want.
pub(super) enum Order {
    /// It comes under this name.
    Admit(HostId, String, SyncSender<()>),
    Dismiss(HostId, SyncSender<()>),
    Leave(SyncSender<Unsaid>),
    /// This host has left: who is silent is no loss of it.
    Left(SyncSender<()>),
}

/// Where orders wait. They are obeyed by the mesh's thread.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    orders: Sender<Order>,
    bell: Arc<OwnedFd>,
}

impl Orders {
    /// Waits until it is done; `None` when there is nobody to do it.
    pub(super) fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Option<T> {
        let (reply, replied) = sync_channel(1);
        self.orders.send(order(reply)).ok()?;
        // Fails only when the counter is full, which is as good as written.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        replied.recv().ok()
    }
}

/// All users of a part's mesh.
pub(super) struct Users {
    letters: VcpuUser,
    clock: ClockUser,
    node: MemoryNode,
    orders: Receiver<Order>,
    bell: Arc<OwnedFd>,
    /// The other hosts of the machine: nobody else is heard.
    hosts: HostSet,
    /// What operators call them.
    names: BTreeMap<Peer, String>,
    lease: Duration,
    /// Hosts that were here and are not, and since when.
    silent: BTreeMap<Peer, Instant>,
    has_left: bool,
    machine: Weak<Machine>,
}

impl Users {
    /// Of a part of `machine` that has `hosts` beside this one.
    pub(super) fn new(
        (letters, clock, node): (VcpuUser, ClockUser, MemoryNode),
        hosts: HostSet,
        lease: Duration,
        machine: &Arc<Machine>,
    ) -> io::Result<(Self, Orders)> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (orders, to_obey) = channel();
        let (machine, silent) = (Arc::downgrade(machine), BTreeMap::new());
        let mut users = Self {
            letters,
            clock,
            node,
            orders: to_obey,
            bell: Arc::clone(&bell),
            hosts,
            names: BTreeMap::new(),
            lease,
            silent,
            has_left: false,
            machine,
        };
        hosts.iter().for_each(|host| users.letters.add(peer_of(host)));
        Ok((users, Orders { orders, bell }))
    }

    fn obey(&mut self, out: &mut dyn Outgoing) {
        // Before the look: what comes after it rings again.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        while let Ok(order) = self.orders.try_recv() {
            // Who asked may have gone; so may the reply.
            match order {
                Order::Admit(host, name, reply) => {
                    self.hosts = self.hosts.with(host);
                    self.names.insert(peer_of(host), name);
                    self.letters.admit(peer_of(host), out);
                    let _ = reply.try_send(());
                }
                Order::Dismiss(host, reply) => {
                    self.hosts = self.hosts.without(host);
                    self.names.remove(&peer_of(host));
                    self.letters.remove(peer_of(host));
                    self.clock.forget(peer_of(host));
                    self.silent.remove(&peer_of(host));
                    let _ = reply.try_send(());
                }
                Order::Leave(reply) => _ = reply.try_send(self.letters.leave(out)),
                Order::Left(reply) => {
                    self.has_left = true;
                    self.silent.clear();
                    let _ = reply.try_send(());
                }
            }
        }
    }

    fn is_known(&self, peer: Peer) -> bool {
        host_of(peer).is_ok_and(|host| self.hosts.contains(host))
    }

    /// When the first lease of a silent host is over.
    fn lease_ends(&self) -> Option<Instant> {
        self.silent.values().min().map(|since| *since + self.lease)
    }

    /// A machine does not outlive its hosts: what the lost one had is nowhere else.
    fn end_leases(&mut self) {
        let now = Instant::now();
        let lost = self.silent.iter().find(|(_, since)| **since + self.lease <= now).map(|(peer, _)| *peer);
        let Some(peer) = lost else { return };
        self.silent.clear();
        if let Some(machine) = self.machine.upgrade() {
            let text = self.obituary(peer);
            tracing::error!("{text}");
            machine.end(ExitReason::InternalError { text });
        }
    }

    /// What is lost with a host, as far as this one knows.
    fn obituary(&self, peer: Peer) -> String {
        let name = self.names.get(&peer).cloned().unwrap_or_else(|| format!("number {}", peer.0));
        let mut lost = Vec::new();
        if let Ok(host) = host_of(peer) {
            let vcpus: Vec<_> = self.letters.vcpus_on(host).iter().map(|vcpu| format!("vcpu{vcpu}")).collect();
            let Loss { homes, pages } = self.node.loss_with(host);
            lost.extend((!vcpus.is_empty()).then(|| vcpus.join(", ")));
            lost.extend((homes > 0).then(|| format!("the homes of {homes} times 2 MiB")));
            lost.extend((pages > 0).then(|| format!("{pages} pages with their home here that only it had")));
        }
        let lost = if lost.is_empty() { "nothing that this host knows of".to_owned() } else { lost.join("; ") };
        format!("the machine lost its host {name}, which was silent for {:?}, and with it {lost}", self.lease)
    }

    fn user_of(&mut self, stream: StreamNumber) -> &mut dyn MeshUser {
        match stream.0 {
            ..CLOCK_STREAM => &mut self.letters,
            CLOCK_STREAM => &mut self.clock,
            MEMORY_STREAMS.. => &mut self.node,
        }
    }
}

impl MeshUser for Users {
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>) {
        into.push(self.bell.as_fd());
        self.letters.wakes(into);
        self.node.wakes(into);
    }

    fn deadline(&self) -> Option<Instant> {
        let users = [self.letters.deadline(), self.clock.deadline(), self.node.deadline(), self.lease_ends()];
        users.into_iter().flatten().min()
    }

    fn awaits(&self) -> bool {
        self.letters.awaits() || self.node.awaits()
    }

    fn woken(&mut self, out: &mut dyn Outgoing) {
        self.obey(out);
        self.letters.woken(out);
        self.clock.woken(out);
        self.node.woken(out);
        self.end_leases();
    }

    fn connected(&mut self, peer: Peer, out: &mut dyn Outgoing) {
        if !self.is_known(peer) {
            return;
        }
        self.silent.remove(&peer);
        // First, for nothing else is sent yet that a question would wait for.
        self.clock.connected(peer, out);
        self.letters.connected(peer, out);
        self.node.connected(peer, out);
    }

    fn lost(&mut self, peer: Peer, why: &SessionError, out: &mut dyn Outgoing) {
        if self.is_known(peer) && !self.has_left {
            self.silent.insert(peer, Instant::now());
        }
        self.letters.lost(peer, why, out);
        self.clock.lost(peer, why, out);
        self.node.lost(peer, why, out);
    }

    fn received(
        &mut self,
        from: Peer,
        stream: StreamNumber,
        message: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        // Who was dismissed a moment ago says nothing that counts.
        if self.is_known(from) { self.user_of(stream).received(from, stream, message, out) } else { Ok(()) }
    }
}
