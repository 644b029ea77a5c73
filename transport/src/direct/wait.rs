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
    /// Until when to look rather than to sleep.
    pub(crate) linger: Option<Instant>,
}

impl Wait<'_> {
    /// Waits until there is something to do; not at all if there is already `more`.
    pub(crate) fn wait(self, more: bool) -> io::Result<Ready> {
        let Self { orders, user, socket, blocked, due, linger } = self;
        let room = if blocked { PollFlags::OUT } else { PollFlags::empty() };
        let mut fds = Vec::with_capacity(user.len() + 2);
        fds.push(PollFd::new(orders, PollFlags::IN));
        fds.extend(user.into_iter().map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
        let others = fds.len();
        fds.extend(socket.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN | room)));
        if more {
            poll_for(&mut fds, Some(Duration::ZERO))?;
        } else if !look(&mut fds, linger.map(|linger| due.map_or(linger, |due| due.min(linger))))? {
            poll_for(&mut fds, due.map(|due| due.saturating_duration_since(Instant::now())))?;
        }
        let (others, socket) = fds.split_at(others);
        let (orders, user) = others.split_at(1);
        let any = |fds: &[PollFd<'_>]| fds.iter().any(|fd| !fd.revents().is_empty());
        Ok(Ready { orders: any(orders), socket: any(socket), user: any(user) })
    }
}

/// Whether one of them is ready. `None` waits for ever; so does what is longer than a `Timespec` holds.
fn poll_for(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<bool> {
    let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
    match poll(fds, patience.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => {
            // As if it were over: what they said before is not true any more.
            fds.iter_mut().for_each(PollFd::clear_revents);
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Looks again and again until then, without sleeping, whether one of them is ready: to be woken on an idle processor takes longer. It does
/// not yield: whoever runs instead keeps the processor for milliseconds.
fn look(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<bool> {
    while until.is_some_and(|until| Instant::now() < until) {
        if poll_for(fds, Some(Duration::ZERO))? {
            return Ok(true);
        }
    }
    Ok(false)
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
