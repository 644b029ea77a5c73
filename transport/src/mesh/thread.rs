//! The mesh's thread: waits for whatever comes first, and deals with all of it in one pass.

use super::{
    MeshUser,
    engine::{Engine, News},
    handle::{Order, Shared},
    outbox::Outbox,
};
use crate::direct::{self, Ready, Wait};
use rustix::fd::AsFd;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a mesh that has ended tells peers so who have not heard.
const FAREWELL: Duration = Duration::from_millis(300);

pub(super) struct MeshThread {
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    /// None once the mesh has ended.
    pub(super) user: Option<Box<dyn MeshUser>>,
    pub(super) outbox: Outbox,
    /// The socket has failed: nothing comes any more. The user goes on, for what he waits for may be here.
    pub(super) deaf: bool,
    /// Once the mesh has ended.
    pub(super) until: Option<Instant>,
    /// How long it looks for what its user awaits.
    pub(super) patience: Duration,
    /// Something has come in the last pass.
    pub(super) lively: bool,
}

impl MeshThread {
    pub(super) fn run(mut self) {
        direct::be_urgent();
        let mut more = false;
        loop {
            more = match self.wait(more) {
                Ok(ready) => self.pass(ready),
                Err(error) => {
                    tracing::error!(%error, "the mesh cannot wait for anything, and ends");
                    return;
                }
            };
            if self.until.is_some_and(|until| self.engine.is_quiet() || until <= Instant::now()) {
                return;
            }
        }
    }

    /// Waits until there is something to do; not at all if there is already.
    fn wait(&mut self, more: bool) -> io::Result<Ready> {
        let deadline = self.user.as_ref().and_then(|user| user.deadline());
        let due = self.engine.due().into_iter().chain(self.until).chain(deadline).min();
        let mut user = Vec::new();
        if let Some(waiting) = &self.user {
            waiting.wakes(&mut user);
        }
        let socket = (!self.deaf).then(|| self.engine.as_fd());
        let looks = self.lively && self.user.as_ref().is_some_and(|user| user.awaits());
        let linger = looks.then(|| Instant::now() + self.patience);
        Wait { orders: &self.shared.wake, user, socket, blocked: self.engine.is_blocked(), due, linger }.wait(more)
    }

    /// Whether there is more to do at once.
    fn pass(&mut self, ready: Ready) -> bool {
        let now = Instant::now();
        self.lively = ready.socket || ready.user;
        if ready.orders {
            self.obey(now);
        }
        let mut more = ready.socket && self.receive(now);
        self.engine.advance(&mut self.outbox, now);
        self.tell();
        if let Some(user) = &mut self.user {
            if ready.user || user.deadline().is_some_and(|deadline| deadline <= now) {
                user.woken(&mut self.outbox);
            }
            more |= self.engine.read(&mut **user, &mut self.outbox, now);
            self.tell();
            more |= self.engine.hand_over(&mut self.outbox, now);
        }
        more | !self.engine.transmit(&mut self.outbox, now)
    }

    /// Whether there is more to receive.
    fn receive(&mut self, now: Instant) -> bool {
        self.engine.receive(now).unwrap_or_else(|error| {
            tracing::error!(%error, "the mesh's socket has failed");
            self.deaf = true;
            self.engine.give_up(&error, now);
            false
        })
    }

    fn obey(&mut self, now: Instant) {
        direct::slept(&self.shared.wake);
        for order in self.shared.take_orders() {
            match order {
                Order::Add(peer, address, expected) => self.engine.add(peer, address, expected, now),
                Order::Move(peer, address) => self.engine.relocate(peer, address, now),
                Order::Remove(peer) => self.engine.remove(peer, "the host is taken away", now),
                Order::End => {
                    self.user = None;
                    self.engine.end("the mesh has ended", now);
                    self.until = Some(now + FAREWELL);
                }
            }
        }
    }

    /// Tells the user what became of hosts.
    fn tell(&mut self) {
        let Some(user) = &mut self.user else { return };
        while let Some(news) = self.engine.news() {
            match news {
                News::Connected(peer) => {
                    self.outbox.open(peer);
                    user.connected(peer, &mut self.outbox);
                }
                News::Lost(peer, why) => {
                    self.outbox.close(peer);
                    user.lost(peer, &why, &mut self.outbox);
                }
            }
        }
    }
}

impl Drop for MeshThread {
    fn drop(&mut self) {
        self.shared.figures().peers.values_mut().for_each(|figures| figures.is_connected = false);
    }
}
