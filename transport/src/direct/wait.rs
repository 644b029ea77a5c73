//! Waiting for whatever comes first.

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
};
use std::{
    io,
    time::{Duration, Instant},
};

/// Of a thread that somebody waits for. Without the privilege it is as urgent as the rest.
const NICE: i32 = -10;

/// What is to be looked at.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ready {
    pub(crate) orders: bool,
    pub(crate) socket: bool,
    pub(crate) user: bool,
}

/// What a thread waits for.
pub(crate) struct Wait<'a> {
    /// Readable when other threads want something.
    pub(crate) orders: &'a OwnedFd,
    /// What the user waits for.
    pub(crate) user: Vec<BorrowedFd<'a>>,
    /// None once nothing comes any more.
    pub(crate) socket: Option<BorrowedFd<'a>>,
    /// The socket is waited for to take more, too.
    pub(crate) blocked: bool,
    /// When there is something to do even if nothing comes.
    pub(crate) due: Option<Instant>,
}

impl Wait<'_> {
    /// Waits until there is something to do; not at all if there is already `more`.
    pub(crate) fn wait(self, more: bool) -> io::Result<Ready> {
        let patience =
            if more { Some(Duration::ZERO) } else { self.due.map(|due| due.saturating_duration_since(Instant::now())) };
        // Longer than a Timespec holds is for ever.
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let room = if self.blocked { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = Vec::with_capacity(self.user.len() + 2);
        fds.push(PollFd::new(self.orders, PollFlags::IN));
        fds.extend(self.user.into_iter().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
        let others = fds.len();
        fds.extend(self.socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN | room)));
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let (others, socket) = fds.split_at(others);
        let (orders, user) = others.split_at(1);
        let any = |fds: &[PollFd<'_>]| fds.iter().any(|fd| !fd.revents().is_empty());
        Ok(Ready { orders: any(orders), socket: any(socket), user: any(user) })
    }
}

/// Makes the calling thread as urgent as it may be.
pub(crate) fn be_urgent() {
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Wakes whoever waits for `orders`.
pub(crate) fn wake(orders: &impl AsFd) {
    // Fails only when the counter is full, which is as good as written.
    let _ = rustix::io::write(orders, &1u64.to_ne_bytes());
}

/// Before orders are looked at, so that the next one wakes; what it holds does not matter.
pub(crate) fn slept(orders: &impl AsFd) {
    let _ = rustix::io::read(orders, &mut [0; 8]);
}
