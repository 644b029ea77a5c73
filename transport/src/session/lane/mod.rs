//! The direct lane: a connection driven by one thread, without a runtime, for what somebody waits for.
//!
//! ```text
//!          ┌─ the lane's socket: datagrams ─▶ Engine (QUIC) ─▶ LaneUser::received ─┐
//!   poll ──┼─ what the user waits for ──────────────────────▶ LaneUser::woken ─────┼─▶ bytes to send ─▶ Engine ─▶ socket
//!          └─ orders of other threads: use, close, end                             ┘
//! ```
//! Whatever wakes the thread is dealt with to its end in one pass, so between a fault and the packet that asks for its page no other
//! thread has to be woken, nor between the packet with the page and the guest that waits for it. A user must not block: nothing else of
//! the lane goes on meanwhile.

mod door;
mod engine;
mod thread;

#[cfg(test)]
mod tests;

pub(super) use door::Door;

use super::{SessionError, path_stats::ConnectionFigures};
use crate::direct::{self, Wire};
use bytes::Bytes;
use engine::Engine;
use quinn_proto::{ClientConfig, EndpointConfig, ServerConfig};
use rustix::{
    event::{EventfdFlags, eventfd},
    fd::{BorrowedFd, OwnedFd},
};
use std::{
    collections::VecDeque,
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Whoever uses a lane, called by its thread.
pub(super) trait LaneUser: Send {
    /// Appends what becomes readable when [`Self::woken`] is to be called.
    fn wakes<'a>(&'a self, into: &mut Vec<BorrowedFd<'a>>);
    /// One of them is readable. What is to be sent goes to `out`.
    fn woken(&mut self, out: &mut VecDeque<Bytes>);
    /// How much of what the peer sent is taken at a time, in bytes: it is answered before more is.
    fn take_max(&self) -> usize;
    /// The next bytes of the peer; an error closes the lane.
    fn received(&mut self, bytes: &[u8], out: &mut VecDeque<Bytes>) -> Result<(), SessionError>;
    /// The lane is over: in good order, or with an error. It is still woken, and what it sends is lost.
    fn over(&mut self, how: Result<(), SessionError>);
}

/// A lane, as its owner has it. Dropping it closes the connection and ends the thread.
#[derive(Debug)]
pub(super) struct Lane(LaneControl);

/// A lane, as others have it.
#[derive(Clone)]
pub(super) struct LaneControl(Arc<Shared>);

struct Shared {
    /// Readable when there are orders.
    wake: OwnedFd,
    orders: Mutex<Orders>,
    figures: Mutex<ConnectionFigures>,
}

/// What other threads want of the lane's.
#[derive(Default)]
struct Orders {
    user: Option<Box<dyn LaneUser>>,
    close: Option<Bytes>,
    end: bool,
}

/// Told once: the lane is open, or will not be.
type Opened = oneshot::Receiver<Result<(), SessionError>>;

impl Lane {
    /// Waits on `socket` for whoever shows what `door` wants to see.
    pub(super) fn listen(
        socket: UdpSocket,
        endpoint: EndpointConfig,
        server: ServerConfig,
        door: Door,
    ) -> Result<(Self, Opened), SessionError> {
        Self::start(Engine::listening(Wire::new(socket, endpoint, Some(server))?, door))
    }

    /// Calls `address`, and opens the lane by `opening`.
    pub(super) fn dial(
        socket: UdpSocket,
        endpoint: EndpointConfig,
        client: ClientConfig,
        address: SocketAddr,
        opening: Vec<u8>,
    ) -> Result<(Self, Opened), SessionError> {
        Self::start(Engine::dialling(Wire::new(socket, endpoint, None)?, client, address, opening)?)
    }

    fn start(engine: Engine) -> Result<(Self, Opened), SessionError> {
        let shared = Arc::new(Shared {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?,
            orders: Mutex::default(),
            figures: Mutex::default(),
        });
        let (tell, opened) = oneshot::channel();
        thread::start(engine, Arc::clone(&shared), tell)?;
        Ok((Self(LaneControl(shared)), opened))
    }

    /// From now on the lane is `user`'s. What has come before waits for it.
    pub(super) fn hand_to(&self, user: Box<dyn LaneUser>) {
        self.0.order(|orders| orders.user = Some(user));
    }

    pub(super) fn control(&self) -> LaneControl {
        self.0.clone()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.0.order(|orders| orders.end = true);
    }
}

impl LaneControl {
    /// Closes the connection; the peer hears `reason`.
    pub(super) fn close(&self, reason: &str) {
        self.0.figures().is_open = false;
        self.order(|orders| orders.close = Some(Bytes::copy_from_slice(reason.as_bytes())));
    }

    pub(super) fn figures(&self) -> ConnectionFigures {
        *self.0.figures()
    }

    fn order(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut self.0.orders());
        direct::wake(&self.0.wake);
    }
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn figures(&self) -> MutexGuard<'_, ConnectionFigures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LaneControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneControl").field("figures", &self.figures()).finish_non_exhaustive()
    }
}
