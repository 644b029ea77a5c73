//! The mesh's user: asks every peer for its time now and then, and answers.

use super::{Timekeeper, Untimely, message::Message};
use crate::host_of;
use rustix::fd::BorrowedFd;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use vmotion_sys::tsc::host_tsc;
use vmotion_transport::{
    mesh::{MeshUser, Outgoing, Peer, StreamNumber},
    session::SessionError,
};

/// How long after an answer the next question is asked; and after one of the first.
const EVERY: Duration = Duration::from_millis(50);
const AT_FIRST_EVERY: Duration = Duration::from_millis(2);
/// First are so many exchanges of times, and no more than so many questions: the peer may not know the time itself.
const FIRST_EXCHANGES: u64 = 8;
const FIRST_QUESTIONS: u32 = 64;

/// Exchanges times with the other hosts. What is lost with a connection is not sent again.
#[derive(Debug)]
pub struct ClockUser {
    keeper: Arc<Timekeeper>,
    stream: StreamNumber,
    /// Those that are connected.
    peers: BTreeMap<Peer, Asking>,
}

#[derive(Debug, Default)]
struct Asking {
    /// `None` until the last question is answered.
    next: Option<Instant>,
    questions: u32,
    /// It was said what is wrong with its time.
    blamed: bool,
}

impl ClockUser {
    /// With a stream of its own.
    #[must_use]
    pub const fn new(keeper: Arc<Timekeeper>, stream: StreamNumber) -> Self {
        Self { keeper, stream, peers: BTreeMap::new() }
    }

    /// The host is none of the machine's any more: nothing of its time is remembered.
    pub fn forget(&mut self, peer: Peer) {
        self.peers.remove(&peer);
        if let Ok(host) = host_of(peer) {
            self.keeper.clock().forget(host);
        }
    }

    fn ask(&mut self, peer: Peer, out: &mut dyn Outgoing) {
        let Ok(host) = host_of(peer) else { return };
        let asking = self.peers.entry(peer).or_default();
        asking.next = None;
        asking.questions = asking.questions.saturating_add(1);
        let keeper = &self.keeper;
        out.send(peer, self.stream, &mut |into| {
            into.extend_from_slice(&keeper.clock().ask(host, host_tsc()).encode());
        });
    }

    fn blame(&mut self, peer: Peer, error: &Untimely) {
        let asking = self.peers.entry(peer).or_default();
        if !std::mem::replace(&mut asking.blamed, true) {
            tracing::warn!(%error, "the hosts of a machine do not agree on its time");
        }
    }
}

impl MeshUser for ClockUser {
    fn wakes<'a>(&'a self, _: &mut Vec<BorrowedFd<'a>>) {}

    fn deadline(&self) -> Option<Instant> {
        self.peers.values().filter_map(|asking| asking.next).min()
    }

    fn woken(&mut self, out: &mut dyn Outgoing) {
        let now = Instant::now();
        let is_due = |asking: &Asking| asking.next.is_some_and(|next| next <= now);
        let due: Vec<Peer> = self.peers.iter().filter(|(_, asking)| is_due(asking)).map(|(peer, _)| *peer).collect();
        due.into_iter().for_each(|peer| self.ask(peer, out));
    }

    fn connected(&mut self, peer: Peer, out: &mut dyn Outgoing) {
        let Ok(host) = host_of(peer) else { return };
        self.peers.insert(peer, Asking::default());
        self.keeper.clock().connected(host);
        self.ask(peer, out);
    }

    fn lost(&mut self, peer: Peer, _: &SessionError, _: &mut dyn Outgoing) {
        self.peers.remove(&peer);
    }

    fn received(
        &mut self,
        from: Peer,
        _: StreamNumber,
        frame: &[u8],
        out: &mut dyn Outgoing,
    ) -> Result<(), SessionError> {
        let now = host_tsc();
        let host = host_of(from)?;
        let message =
            Message::decode(frame).map_err(|what| SessionError::Protocol(format!("a message about time: {what}")))?;
        let keeper = Arc::clone(&self.keeper);
        let heard = {
            let mut clock = keeper.clock();
            let heard = match message {
                Message::Ping { khz, time, .. } => clock.asked(host, khz, time, now),
                Message::Pong { asked, khz, times } => {
                    let heard = clock.answered(host, asked, khz, times, now);
                    let asking = self.peers.entry(from).or_default();
                    let is_first = clock.exchanges(host) < FIRST_EXCHANGES && asking.questions < FIRST_QUESTIONS;
                    asking.next = Some(Instant::now() + if is_first { AT_FIRST_EVERY } else { EVERY });
                    heard
                }
            };
            keeper.tell(&mut clock);
            heard
        };
        if let Message::Ping { asked, .. } = message {
            out.send(from, self.stream, &mut |into| {
                into.extend_from_slice(&keeper.clock().answer(host, asked, now, host_tsc()).encode());
            });
        }
        if let Err(error) = heard {
            self.blame(from, &error);
        }
        Ok(())
    }
}
