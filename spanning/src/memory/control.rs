//! What other threads can ask of a node. They leave it in a mailbox; the node's own thread does it, so a page's state has one owner.

use super::error::NodeError;
use super::hosts::{Mention, Staying};
use super::pull::Pull;
use super::recent::Recent;
use super::stats::NodeStats;
use crate::directory::{HostId, Route, ShardError, ShardNumber};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use thiserror::Error;
use vmotion_model::PageNumber;

/// The node has ended, and nothing is asked of it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("The memory of the machine is not served here any more")]
pub struct Gone;

/// Why a relocation does not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RelocationError {
    /// The shard cannot move now.
    #[error("Relocation cannot begin")]
    Shard(#[from] ShardError),
    /// Nobody to give it to.
    #[error("Relocation to {0}, which is this host, fenced, or not of the machine")]
    Target(HostId),
    /// The node has ended.
    #[error("Relocation cannot begin")]
    Gone(#[from] Gone),
}

/// The machine's store, which decides who has a shard. It is asked by the node's thread and must not make it wait, as the
/// [`Registry`](crate::registry::Registry) of other pieces may: it passes the question on, and whoever gets the answer says it by
/// [`NodeControl::word`].
pub trait ShardRegistry: Send {
    /// This host asks for `shard`: a compare-and-set from the epoch before `wanted.epoch` to `wanted`.
    fn claim(&mut self, shard: ShardNumber, wanted: Route);
}

/// What is asked of a node.
#[derive(Debug)]
pub(super) enum Command {
    Statistics(SyncSender<NodeStats>),
    TakeRecent(SyncSender<Recent>),
    Evict(Range<PageNumber>),
    Relocate { shard: ShardNumber, to: HostId, reply: SyncSender<Result<(), RelocationError>> },
    TakeBack(ShardNumber),
    Word(ShardNumber, Route),
    Fence(HostId, SyncSender<Vec<PageNumber>>),
    Admit(HostId, SyncSender<()>),
    Leave { commit: bool, reply: SyncSender<Staying> },
    Stay(SyncSender<()>),
    Find { host: HostId, from: ShardNumber, reply: SyncSender<(Option<PageNumber>, Option<ShardNumber>)> },
    Dismiss(HostId, SyncSender<Option<Mention>>),
    Pull(Pull),
    Stop(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Letters {
    commands: Vec<Command>,
    closed: bool,
}

/// Where commands wait for the node.
#[derive(Debug)]
pub(super) struct Mailbox {
    letters: Mutex<Letters>,
    /// So that a pass without commands costs nothing.
    any: AtomicBool,
    bell: OwnedFd,
    failure: OnceLock<Arc<NodeError>>,
}

impl Mailbox {
    pub(super) fn new() -> Result<Self, NodeError> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| NodeError::Mailbox(error.into()))?;
        Ok(Self { letters: Mutex::default(), any: AtomicBool::new(false), bell, failure: OnceLock::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, command: Command) -> Result<(), Gone> {
        let mut letters = self.lock();
        if letters.closed {
            return Err(Gone);
        }
        letters.commands.push(command);
        // It can only fail when the counter is full, and then the bell rings already. Before `any`, so that whoever sees that stops the bell.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        self.any.store(true, Ordering::Release);
        drop(letters);
        Ok(())
    }

    /// What was asked since the last time.
    pub(super) fn collect(&self) -> Vec<Command> {
        if !self.any.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        std::mem::take(&mut self.lock().commands)
    }

    /// Nothing is taken any more; who waits for a reply hears that none comes.
    pub(super) fn close(&self) {
        let mut letters = self.lock();
        letters.closed = true;
        letters.commands.clear();
    }

    pub(super) fn fail(&self, error: NodeError) -> Arc<NodeError> {
        Arc::clone(self.failure.get_or_init(|| Arc::new(error)))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// A node, for other threads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeControl {
    pub(super) mailbox: Arc<Mailbox>,
}

impl NodeControl {
    pub(super) fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, Gone> {
        let (reply, replied): (_, Receiver<T>) = sync_channel(1);
        self.mailbox.post(command(reply))?;
        replied.recv().map_err(|_| Gone)
    }

    /// What happened so far. Waits for the node's thread, as everything here that returns something.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn statistics(&self) -> Result<NodeStats, Gone> {
        self.ask(Command::Statistics)
    }

    /// Who waited for what since this was last asked; for one who asks again and again.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn take_recent(&self) -> Result<Recent, Gone> {
        self.ask(Command::TakeRecent)
    }

    /// This host wants to be rid of these pages. They are given up a few at a time, those that are in use at that moment not at all.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn evict(&self, pages: Range<PageNumber>) -> Result<(), Gone> {
        self.mailbox.post(Command::Evict(pages))
    }

    /// Begins to move a shard's home from this host to `to`, which claims it from the store when it has all entries.
    ///
    /// # Errors
    /// [`RelocationError`]; nothing has changed then.
    pub fn relocate(&self, shard: ShardNumber, to: HostId) -> Result<(), RelocationError> {
        self.ask(|reply| Command::Relocate { shard, to, reply })?
    }

    /// The host that a shard was given to does not claim it: this one asks the store to have it back. Whoever is first there has it.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn take_back(&self, shard: ShardNumber) -> Result<(), Gone> {
        self.mailbox.post(Command::TakeBack(shard))
    }

    /// The store's word: who has a shard, and since when. The winner tells the others.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn word(&self, shard: ShardNumber, route: Route) -> Result<(), Gone> {
        self.mailbox.post(Command::Word(shard, route))
    }

    /// The lease of `host` is over and it runs nothing any more. The pages with their home here that were lost with it. When it is this
    /// host itself, every page is taken away, and nobody who touches one goes on.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn fence(&self, host: HostId) -> Result<Vec<PageNumber>, Gone> {
        self.ask(|reply| Command::Fence(host, reply))
    }

    /// The node does nothing any more: faults wait, peers hear nothing. Stop the vCPUs before it is dropped.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn stop(&self) -> Result<(), Gone> {
        self.ask(Command::Stop)
    }

    /// Why the node has stopped by itself, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<NodeError>> {
        self.mailbox.failure.get().cloned()
    }
}
