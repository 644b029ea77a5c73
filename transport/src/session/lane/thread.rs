//! The lane's thread: waits for whatever comes first, and deals with all of it in one pass.

use super::{
    LaneUser, Orders, Shared,
    engine::{Engine, Left, News},
};
use crate::{
    direct::{self, Ready, Wait},
    session::{SessionError, path_stats::ConnectionFigures},
};
use bytes::Bytes;
use rustix::fd::AsFd;
use std::{
    collections::VecDeque,
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a lane that has ended tells a peer so who has not heard.
const FAREWELL: Duration = Duration::from_millis(300);

pub(super) fn start(
    engine: Engine,
    shared: Arc<Shared>,
    tell: oneshot::Sender<Result<(), SessionError>>,
) -> io::Result<()> {
    let lane = LaneThread {
        engine,
        shared,
        tell: Some(tell),
        user: None,
        is_over: false,
        over: None,
        chunks: Vec::new(),
        out: VecDeque::new(),
        deaf: false,
        until: None,
    };
    thread::Builder::new().name("demand".to_owned()).spawn(move || lane.run()).map(drop)
}

struct LaneThread {
    engine: Engine,
    shared: Arc<Shared>,
    /// Hears that the lane is open, or will not be.
    tell: Option<oneshot::Sender<Result<(), SessionError>>>,
    user: Option<Box<dyn LaneUser>>,
    is_over: bool,
    /// How the lane ended, when there was no user yet to hear it.
    over: Option<Result<(), SessionError>>,
    chunks: Vec<Bytes>,
    /// Not taken by the connection yet.
    out: VecDeque<Bytes>,
    /// The socket has failed: nothing comes any more. The user goes on, for what he waits for may be here.
    deaf: bool,
    /// Once the owner is gone.
    until: Option<Instant>,
}

impl LaneThread {
    fn run(mut self) {
        direct::be_urgent();
        // A connection that is dialled has something to say before anything has come.
        let mut more = true;
        loop {
            more = match self.wait(more) {
                Ok(ready) => self.pass(ready),
                Err(error) => return self.end(Err(SessionError::Socket(error))),
            };
            if self.until.is_some_and(|until| self.engine.is_quiet() || until <= Instant::now()) {
                return;
            }
        }
    }

    /// Waits until there is something to do; not at all if there is already.
    fn wait(&mut self, more: bool) -> io::Result<Ready> {
        let due = self.engine.due().into_iter().chain(self.until).min();
        let mut user = Vec::new();
        if let Some(waiting) = &self.user {
            waiting.wakes(&mut user);
        }
        let socket = (!self.deaf).then(|| self.engine.as_fd());
        Wait { orders: &self.shared.wake, user, socket, blocked: self.engine.is_blocked(), due, linger: None }
            .wait(more)
    }

    /// Whether there is more to do at once.
    fn pass(&mut self, ready: Ready) -> bool {
        let now = Instant::now();
        if ready.orders {
            self.obey(now);
        }
        let mut more = ready.socket && self.receive(now);
        self.engine.advance(now);
        if let Some(user) = self.user.as_mut().filter(|_| ready.user) {
            user.woken(&mut self.out);
        }
        if let Err(error) = self.converse(&mut more) {
            let reason = Bytes::from(error.to_string());
            self.end(Err(error));
            self.engine.close(1, &reason, now);
        }
        more |= !self.engine.transmit(now);
        if let Some((stats, remote)) = self.engine.stats() {
            *self.shared.figures() = ConnectionFigures::of(&stats, remote, self.engine.is_open());
        } else {
            self.shared.figures().is_open = false;
        }
        // Whoever hears that the lane is open finds it so.
        while let Some(news) = self.engine.news() {
            self.hear(news);
        }
        more
    }

    /// Whether there is more to receive.
    fn receive(&mut self, now: Instant) -> bool {
        self.engine.receive(now).unwrap_or_else(|error| {
            let reason = Bytes::from(error.to_string());
            self.deaf = true;
            self.end(Err(SessionError::Socket(error)));
            self.engine.close(1, &reason, now);
            false
        })
    }

    fn obey(&mut self, now: Instant) {
        direct::slept(&self.shared.wake);
        let Orders { user, close, end } = std::mem::take(&mut *self.shared.orders());
        if let Some(mut user) = user {
            if let Some(how) = self.over.take() {
                user.over(how);
            }
            self.user = Some(user);
        }
        if let Some(reason) = close {
            self.engine.close(0, &reason, now);
        }
        if end {
            self.user = None;
            self.engine.close(0, &Bytes::new(), now);
            self.until = Some(now + FAREWELL);
        }
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Opened => {
                if let Some(tell) = self.tell.take() {
                    // Nobody waits any more: then the lane is about to be dropped.
                    let _ = tell.send(Ok(()));
                }
            }
            News::Lost(error) => self.end(Err(error)),
        }
    }

    /// Takes what the peer sent, and gives what is to be sent, until one of them stops. Nothing is taken while what was given is too
    /// much for the path: a peer that asks faster than it listens waits.
    fn converse(&mut self, more: &mut bool) -> Result<(), SessionError> {
        self.engine.give(&mut self.out)?;
        let Some(user) = self.user.as_mut().filter(|_| self.out.is_empty()) else { return Ok(()) };
        self.chunks.clear();
        let taken = self.engine.take(&mut self.chunks, user.take_max());
        for bytes in self.chunks.drain(..) {
            user.received(&bytes, &mut self.out)?;
        }
        self.engine.give(&mut self.out)?;
        match taken? {
            Left::More => *more = true,
            Left::Nothing => {}
            Left::End => self.end(Ok(())),
        }
        Ok(())
    }

    /// Tells whoever wants to know, once.
    fn end(&mut self, how: Result<(), SessionError>) {
        if let Some(tell) = self.tell.take() {
            let _ = tell.send(how);
        } else if std::mem::replace(&mut self.is_over, true) {
            // Closing it is the consequence of what was told.
        } else if let Some(user) = &mut self.user {
            user.over(how);
        } else {
            self.over = Some(how);
        }
    }
}

impl Drop for LaneThread {
    fn drop(&mut self) {
        self.shared.figures().is_open = false;
    }
}
