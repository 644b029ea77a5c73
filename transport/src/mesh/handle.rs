//! A mesh, as its owner has it.

use super::{
    MeshFigures, MeshTicket, MeshTuning, MeshUser, Peer, config::Configs, engine::Engine, opening::Facts,
    outbox::Outbox, thread::MeshThread,
};
use crate::{ExpectedPeer, Identity, direct, direct::Wire, session::SessionError};
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::OwnedFd,
};
use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};
use vmotion_model::MachineName;

/// What a mesh is made of.
#[derive(Debug)]
pub struct MeshOptions {
    /// Bound where the other hosts call this one, and used for calling them.
    pub socket: UdpSocket,
    /// Of this host.
    pub identity: Arc<Identity>,
    /// This host's place.
    pub me: Peer,
    /// Says which run of this host it is: a host that was started anew has another, and is refused where the one before is known.
    pub incarnation: u64,
    /// The machine whose hosts these are.
    pub machine: MachineName,
    /// Of the machine.
    pub ticket: MeshTicket,
    /// How to use the paths.
    pub tuning: MeshTuning,
}

/// A mesh and its thread. Dropping it ends it.
#[derive(Debug)]
pub struct Mesh {
    shared: Arc<Shared>,
    me: Peer,
    thread: Option<JoinHandle<()>>,
}

pub(super) struct Shared {
    /// Readable when there are orders.
    pub(super) wake: OwnedFd,
    orders: Mutex<Vec<Order>>,
    figures: Arc<Mutex<MeshFigures>>,
}

/// What other threads want of the mesh's.
pub(super) enum Order {
    Add(Peer, SocketAddr, ExpectedPeer),
    Move(Peer, SocketAddr),
    Remove(Peer),
    End,
}

impl Mesh {
    /// Starts the mesh's thread, which has `user` from now on. It knows no other host yet.
    ///
    /// # Errors
    /// [`SessionError`] when socket, identity or thread cannot be had.
    pub fn start(options: MeshOptions, user: Box<dyn MeshUser>) -> Result<Self, SessionError> {
        let MeshOptions { socket, identity, me, incarnation, machine, ticket, tuning } = options;
        let configs = Configs::new(identity, tuning)?;
        let (endpoint, server) = configs.endpoint();
        let wire = Wire::new(socket, endpoint, Some(server))?;
        let figures = Arc::new(Mutex::new(MeshFigures::default()));
        let shared = Arc::new(Shared {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?,
            orders: Mutex::default(),
            figures: Arc::clone(&figures),
        });
        let engine = Engine::new(wire, Facts { ticket, machine, me, incarnation }, configs, figures);
        let (user, outbox) = (Some(user), Outbox::default());
        let mesh = MeshThread {
            engine,
            shared: Arc::clone(&shared),
            user,
            outbox,
            deaf: false,
            until: None,
            patience: tuning.linger,
            lively: false,
        };
        let thread = thread::Builder::new().name("mesh".to_owned()).spawn(move || mesh.run())?;
        Ok(Self { shared, me, thread: Some(thread) })
    }

    /// From now on there is a connection with `peer` at `address` whenever there can be, made by the one with the lower number. A host that
    /// is known is forgotten first, also by which incarnation it is known.
    pub fn add_peer(&self, peer: Peer, address: SocketAddr, expected: ExpectedPeer) {
        debug_assert_ne!(peer, self.me, "a host does not talk with itself");
        self.shared.order(Order::Add(peer, address, expected));
    }

    /// The host is at another address. A connection with it ends, and is made anew.
    pub fn move_peer(&self, peer: Peer, address: SocketAddr) {
        self.shared.order(Order::Move(peer, address));
    }

    /// There is no connection with this host any more. Its user hears that it is lost, if there was one.
    pub fn remove_peer(&self, peer: Peer) {
        self.shared.order(Order::Remove(peer));
    }

    /// What was counted until now.
    #[must_use]
    pub fn figures(&self) -> MeshFigures {
        self.shared.figures().clone()
    }

    /// Ends the mesh, tells the other hosts, and waits until its thread is over. The user is dropped first, and hears nothing more.
    pub fn end(mut self) {
        self.shared.order(Order::End);
        if let Some(thread) = self.thread.take() {
            // Fails when the user has panicked: then it is over as well.
            let _ = thread.join();
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.order(Order::End);
    }
}

impl Shared {
    fn order(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        direct::wake(&self.wake);
    }

    pub(super) fn take_orders(&self) -> Vec<Order> {
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, MeshFigures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("figures", &self.figures()).finish_non_exhaustive()
    }
}
