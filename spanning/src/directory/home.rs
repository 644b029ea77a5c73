//! What the one host in charge of a page knows about all copies of it, and how it serves them: one transaction at a time.
//!
//! ```text
//!                        Idle                            Collecting{awaited}                 Granting{to}
//!  GetS, Shared          Granting: Grant                 queue                               queue
//!  GetS, Owned           Collecting: Recall(Shared)      queue                               queue
//!  GetM, Shared          Collecting: Inv to the others,  queue                               queue
//!                        Granting if there are none
//!  GetM, Owned           Collecting: Recall(Invalid)     queue                               queue
//!  Put, no bytes         sharer gone, PutAck             sharer gone, PutAck;                sharer gone, PutAck;
//!                                                        of the owner: queue                 of `to`: queue
//!  Put, bytes            Shared, PutAck                  of the owner: the awaited data,     of `to`: queue
//!                                                        PutAck
//!  Ack                   late                            of a sharer: one less awaited       late
//!                                                        of the owner: its Put is coming
//!  AckData               late                            of the owner: Shared                late
//!  all have answered                                     Granting: Grant
//!  Done                  late                            late                                Idle, next of the queue
//! ```
//! **The home has the bytes exactly when nobody may write them** ([`Copies`]), as memory does in the Primer's protocols: so giving up a clean
//! copy costs no bytes, and a host that dies with a clean copy loses nothing. A new page is `Shared` by nobody, and zero: its first touch
//! is answered without bytes.
//!
//! A read of a page that goes from writer to writer is granted like a write ([`habit`](super::habit)).
//!
//! A `Put` waits for one thing only: the `Done` or the `AckData` of its own host, which it overtook.
//! While the shard is *closed*, on its way to another host, transactions under way end and none begins.

use super::habit::Habit;
use super::{
    Access, Answer, Content, HostId, HostSet, Left, Message, Order, Outgoing, ProtocolError, Reply, Request, Txn,
    Version,
};
use std::collections::VecDeque;
use vmotion_model::{Epoch, PageNumber};

#[cfg(test)]
mod tests;

/// Where a page's newest bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Copies<C> {
    /// With its writer, and nowhere else.
    Owned(HostId),
    /// Nobody may write: here, and with each sharer.
    Shared {
        /// Who may read.
        sharers: HostSet,
        /// The bytes.
        content: Content<C>,
    },
    /// Nowhere: the writer died.
    Lost,
}

/// A page at rest, as it is kept and as it moves to another home.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry<C> {
    /// Where its bytes are.
    pub copies: Copies<C>,
    /// Their version. A writer's is counted when it is granted.
    pub version: Version,
    /// Transactions so far.
    pub transactions: u64,
}

impl<C> Default for Entry<C> {
    /// Never touched: zero, and known to be.
    fn default() -> Self {
        let copies = Copies::Shared { sharers: HostSet::EMPTY, content: Content::Zero };
        Self { copies, version: Version(0), transactions: 0 }
    }
}

/// A `Get` and who wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    from: HostId,
    access: Access,
    have: Option<Version>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// `awaited` have not answered yet. It is in vain when the host that wants it is fenced.
    Collecting {
        wanted: Wanted,
        awaited: HostSet,
        in_vain: bool,
    },
    Granting {
        to: HostId,
        access: Access,
    },
}

/// A request that waits, and the epoch it was sent in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Waiting<C> {
    from: HostId,
    epoch: Epoch,
    request: Request<C>,
}

/// What a page's home must know of its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Which page it is.
    pub(super) page: PageNumber,
    /// The shard's epoch.
    pub(super) epoch: Epoch,
    /// Transactions may begin.
    pub(super) open: bool,
}

/// One page at its home.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Home<C> {
    pub(super) entry: Entry<C>,
    phase: Phase,
    /// At most one request a host.
    queue: VecDeque<Waiting<C>>,
    habit: Habit,
}

impl<C> Default for Home<C> {
    fn default() -> Self {
        Entry::default().into()
    }
}

impl<C> From<Entry<C>> for Home<C> {
    fn from(entry: Entry<C>) -> Self {
        Self { entry, phase: Phase::Idle, queue: VecDeque::new(), habit: Habit::default() }
    }
}

impl<C: Clone + Eq> Home<C> {
    /// The page as it would move.
    #[must_use]
    pub const fn entry(&self) -> &Entry<C> {
        &self.entry
    }

    /// The newest bytes that nobody may write, if there are such, and their version.
    #[must_use]
    pub const fn bytes(&self) -> Option<(Version, &Content<C>)> {
        let Copies::Shared { content, .. } = &self.entry.copies else { return None };
        // A writer's version is counted when it is granted, and its predecessor's bytes are here until it has it.
        let written = matches!(self.phase, Phase::Granting { access: Access::Write, .. });
        Some((Version(self.entry.version.0 - written as u64), content))
    }

    /// No transaction is under way.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// Requests that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Does `host` have the page, want it, or have to say something about it?
    pub(super) fn concerns(&self, host: HostId) -> bool {
        let has = match &self.entry.copies {
            Copies::Owned(owner) => *owner == host,
            Copies::Shared { sharers, .. } => sharers.contains(host),
            Copies::Lost => false,
        };
        let under_way = match self.phase {
            Phase::Idle => false,
            Phase::Collecting { wanted, awaited, .. } => wanted.from == host || awaited.contains(host),
            Phase::Granting { to, .. } => to == host,
        };
        has || under_way || self.queue.iter().any(|waiting| waiting.from == host)
    }

    /// A request arrives. What is to be sent is added to `out`.
    ///
    /// # Errors
    /// It fits no rule, and nothing has changed.
    pub(super) fn request(
        &mut self,
        place: Place,
        from: HostId,
        epoch: Epoch,
        request: Request<C>,
        out: &mut Vec<Outgoing<C>>,
    ) -> Result<(), ProtocolError> {
        if self.queue.iter().any(|waiting| waiting.from == from) || self.collects_for(from) {
            return Err(ProtocolError::SecondRequest);
        }
        let waits = match &request {
            // The entry may be out of date: another home may have it.
            _ if !place.open && self.is_idle() => true,
            // It overtook the AckData that took the writer's rights, or a Done.
            Request::Get { .. } | Request::Put(None) if self.is_recalling(from) => true,
            Request::Put(content) if self.is_granting(from) && content.is_some() == self.writes(from) => true,
            Request::Get { .. } if self.writes(from) => return Err(ProtocolError::WriterAsks),
            Request::Get { .. } => !self.is_idle(),
            Request::Put(content) if content.is_some() != self.writes(from) => return Err(ProtocolError::PutOfOther),
            Request::Put(_) => false,
        };
        if waits {
            self.queue.push_back(Waiting { from, epoch, request });
        } else {
            self.serve(place, from, request, out);
            self.go_on(place, out);
        }
        Ok(())
    }

    /// A holder answers an order or a grant. What is to be sent is added to `out`.
    ///
    /// # Errors
    /// It fits no rule, and nothing has changed.
    pub(super) fn answer(
        &mut self,
        place: Place,
        from: HostId,
        txn: Txn,
        answer: Answer<C>,
        out: &mut Vec<Outgoing<C>>,
    ) -> Result<(), ProtocolError> {
        let current = self.txn(place);
        if txn > current {
            return Err(ProtocolError::AnswerFromFuture(txn));
        }
        match (&mut self.phase, answer) {
            // Its transaction ended without it: a Put was the answer.
            _ if txn < current => {}
            (Phase::Collecting { awaited, .. }, Answer::Ack) if awaited.contains(from) => {
                // An owner that has no bytes to answer with has them on their way.
                if let Copies::Shared { sharers, .. } = &mut self.entry.copies {
                    *awaited = awaited.without(from);
                    *sharers = sharers.without(from);
                }
            }
            (Phase::Collecting { awaited, wanted, .. }, Answer::AckData(content)) if awaited.contains(from) => {
                if self.entry.copies != Copies::Owned(from) {
                    return Err(ProtocolError::BytesFromNonWriter(txn));
                }
                // As the recall said.
                let sharers = if wanted.access == Access::Read { HostSet::only(from) } else { HostSet::EMPTY };
                *awaited = awaited.without(from);
                self.entry.copies = Copies::Shared { sharers, content };
            }
            (Phase::Granting { to, access }, Answer::Done) if *to == from => {
                match (&mut self.entry.copies, *access) {
                    (copies, Access::Write) => *copies = Copies::Owned(from),
                    (Copies::Shared { sharers, .. }, Access::Read) => *sharers = sharers.with(from),
                    // Only shared pages are granted.
                    (Copies::Owned(_) | Copies::Lost, Access::Read) => {}
                }
                self.phase = Phase::Idle;
            }
            // Late, or again.
            (Phase::Idle | Phase::Collecting { .. } | Phase::Granting { .. }, _) => {}
        }
        self.go_on(place, out);
        Ok(())
    }

    /// The lease of `host` is over: it has nothing any more. Was this page lost with it?
    pub(super) fn fence(&mut self, place: Place, host: HostId, out: &mut Vec<Outgoing<C>>) -> bool {
        self.queue.retain(|waiting| waiting.from != host);
        // Whoever becomes the writer may have written already, and then something else that others have seen: the bytes here are old.
        let lost = self.writes(host);
        match &mut self.entry.copies {
            copies if lost => *copies = Copies::Lost,
            Copies::Shared { sharers, .. } => *sharers = sharers.without(host),
            Copies::Owned(_) | Copies::Lost => {}
        }
        match &mut self.phase {
            Phase::Collecting { wanted, awaited, in_vain } => {
                *awaited = awaited.without(host);
                *in_vain |= wanted.from == host;
            }
            Phase::Granting { to, .. } if *to == host => self.phase = Phase::Idle,
            Phase::Idle | Phase::Granting { .. } => {}
        }
        self.go_on(place, out);
        lost
    }

    /// The shard is open: what waited may begin.
    pub(super) fn open(&mut self, place: Place, out: &mut Vec<Outgoing<C>>) {
        self.go_on(place, out);
    }

    /// The shard has its home elsewhere: who waited asks there.
    pub(super) fn redirect(self, page: PageNumber, home: HostId, epoch: Epoch, out: &mut Vec<Outgoing<C>>) {
        for Waiting { from, epoch: of, .. } in self.queue {
            out.push(reply(from, page, Reply::Redirect { of, home, epoch }));
        }
    }

    const fn txn(&self, place: Place) -> Txn {
        Txn { epoch: place.epoch, number: self.entry.transactions }
    }

    fn is_granting(&self, host: HostId) -> bool {
        matches!(self.phase, Phase::Granting { to, .. } if to == host)
    }

    fn is_recalling(&self, host: HostId) -> bool {
        let awaits = matches!(self.phase, Phase::Collecting { awaited, .. } if awaited.contains(host));
        awaits && self.entry.copies == Copies::Owned(host)
    }

    /// It is the writer, or is becoming it. Only then has it bytes that are not here.
    pub(super) fn writes(&self, host: HostId) -> bool {
        match self.phase {
            Phase::Granting { to, access } if to == host => access == Access::Write,
            _ => self.entry.copies == Copies::Owned(host),
        }
    }

    fn collects_for(&self, host: HostId) -> bool {
        matches!(self.phase, Phase::Collecting { wanted, .. } if wanted.from == host)
    }

    /// Ends what can end, then begins what waits, until something is awaited again.
    fn go_on(&mut self, place: Place, out: &mut Vec<Outgoing<C>>) {
        if let Phase::Collecting { wanted, awaited: HostSet::EMPTY, in_vain } = self.phase {
            self.phase = Phase::Idle;
            if !in_vain {
                self.grant(place, wanted, out);
            }
        }
        while place.open && self.is_idle() {
            // Puts first: an owner whose Put waits here has nothing else to answer a recall with.
            let put = self.queue.iter().position(|waiting| matches!(waiting.request, Request::Put(_)));
            let Some(Waiting { from, request, .. }) = self.queue.remove(put.unwrap_or(0)) else { break };
            self.serve(place, from, request, out);
        }
    }

    fn serve(&mut self, place: Place, from: HostId, request: Request<C>, out: &mut Vec<Outgoing<C>>) {
        match request {
            Request::Get { access, have } => self.begin(place, Wanted { from, access, have }, out),
            Request::Put(content) => self.take(place, from, content, out),
        }
    }

    /// Rule 2, and the same for readers.
    fn begin(&mut self, place: Place, wanted: Wanted, out: &mut Vec<Outgoing<C>>) {
        let reads = |waiting: &Waiting<C>| matches!(waiting.request, Request::Get { access: Access::Read, .. });
        let crowded = self.queue.iter().any(reads);
        let access = self.habit.judge(&self.entry.copies, wanted.from, wanted.access, crowded);
        let wanted = Wanted { access, ..wanted };
        let (awaited, order) = match (&self.entry.copies, wanted.access) {
            (Copies::Lost, _) => return out.push(reply(wanted.from, place.page, Reply::Lost)),
            (Copies::Owned(owner), Access::Read) => (HostSet::only(*owner), Order::Recall(Left::Shared)),
            (Copies::Owned(owner), Access::Write) => (HostSet::only(*owner), Order::Recall(Left::Invalid)),
            (Copies::Shared { .. }, Access::Read) => (HostSet::EMPTY, Order::Inv),
            (Copies::Shared { sharers, .. }, Access::Write) => (sharers.without(wanted.from), Order::Inv),
        };
        self.entry.transactions += 1;
        if awaited.is_empty() {
            return self.grant(place, wanted, out);
        }
        self.phase = Phase::Collecting { wanted, awaited, in_vain: false };
        let message = Message::Order { txn: self.txn(place), order };
        out.push(Outgoing { to: awaited, page: place.page, message });
    }

    /// All have answered: the bytes are here and nobody may write them.
    fn grant(&mut self, place: Place, Wanted { from, access, have }: Wanted, out: &mut Vec<Outgoing<C>>) {
        let Copies::Shared { content, .. } = &self.entry.copies else {
            return out.push(reply(from, place.page, Reply::Lost));
        };
        // That it was a reader a moment ago says nothing: versions are compared.
        let content = if have == Some(self.entry.version) { None } else { Some(content.clone()) };
        if access == Access::Write {
            self.entry.version = self.entry.version.next();
        }
        self.phase = Phase::Granting { to: from, access };
        let grant = Reply::Grant { txn: self.txn(place), access, version: self.entry.version, content };
        out.push(reply(from, place.page, grant));
    }

    /// What is put is taken over; from an owner that was recalled it is the answer.
    fn take(&mut self, place: Place, from: HostId, bytes: Option<Content<C>>, out: &mut Vec<Outgoing<C>>) {
        match (&mut self.entry.copies, bytes) {
            (copies, Some(content)) if *copies == Copies::Owned(from) => {
                *copies = Copies::Shared { sharers: HostSet::EMPTY, content };
                if let Phase::Collecting { awaited, .. } = &mut self.phase {
                    *awaited = awaited.without(from);
                }
            }
            // A reader that was invalidated meanwhile puts what it has no more.
            (Copies::Shared { sharers, .. }, _) => *sharers = sharers.without(from),
            (Copies::Owned(_) | Copies::Lost, _) => {}
        }
        out.push(reply(from, place.page, Reply::PutAck));
    }
}

fn reply<C>(to: HostId, page: PageNumber, reply: Reply<C>) -> Outgoing<C> {
    Outgoing { to: HostSet::only(to), page, message: Message::Reply(reply) }
}
