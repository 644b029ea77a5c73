//! What homes and holders say to each other: four kinds, in three classes that never wait for each other.
//!
//! Orders, answers and grants carry the transaction they belong to, which makes them idempotent: who has seen a transaction ignores it the
//! second time. A request has no transaction yet, and nothing a page's home remembers tells a late copy of it from a new one; its number in
//! the stream does ([`replay`](super::replay)), and that of the replies that end it without a transaction.

use super::{HostId, HostSet};
use std::fmt;
use vmotion_model::{Epoch, PageNumber};

/// The version of a page's bytes: the number of times that some host became its writer. Version 0 was never written, it is all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Version(pub u64);

impl Version {
    /// What the next writer makes of it. Saturates: 2^64 writers will not come.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A transaction of one page. Later ones are greater, also across homes, for `number` moves with the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Txn {
    /// The epoch of the shard whose home began it.
    pub epoch: Epoch,
    /// Counts the transactions of the page.
    pub number: u64,
}

impl Txn {
    /// Before any transaction.
    pub const NONE: Self = Self { epoch: Epoch(0), number: 0 };
}

impl fmt::Display for Txn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transaction {}.{}", self.epoch.0, self.number)
    }
}

/// What a guest wants to do with a page, and what it is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// With others.
    Read,
    /// Alone.
    Write,
}

/// What a recall leaves to the host that had the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Left {
    /// Nothing.
    Invalid,
    /// It may go on reading.
    Shared,
}

/// What is in a page. `C` stands for 4 KiB, in whatever form the driver moves them; the directory never looks inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content<C> {
    /// All zero. No bytes travel.
    Zero,
    /// These bytes.
    Bytes(C),
}

/// From holder to home: the beginning of a transaction. Only requests ever wait, and only at homes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Request<C> {
    /// May I read or write it? (`GetS`, `GetM`)
    Get {
        /// Read is `GetS`, write is `GetM`.
        access: Access,
        /// The version of the bytes that the host still has, whether it may use them or not.
        have: Option<Version>,
    },
    /// I have given it up. The bytes come along if I was its writer, else the home has them.
    Put(Option<Content<C>>),
}

/// From home to holder: give the page up. Answered at once, whatever else goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// To a reader: drop your copy.
    Inv,
    /// To the writer: hand over your bytes.
    Recall(Left),
}

/// From holder to home, within a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Answer<C> {
    /// The copy is gone. To a recall: and its bytes are on their way in a `Put`.
    Ack,
    /// The rights are gone, and these are the bytes.
    AckData(Content<C>),
    /// What was granted is installed.
    Done,
}

/// From home to holder: what became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reply<C> {
    /// You may.
    Grant {
        /// The home waits for the `Done` of this.
        txn: Txn,
        /// What was asked for, or more.
        access: Access,
        /// The version that the page has from now on at this host.
        version: Version,
        /// `None`: the bytes you said you have are still good.
        content: Option<Content<C>>,
    },
    /// The home has taken over what was put. The frame may be freed.
    PutAck,
    /// The home of this page is elsewhere: ask there.
    Redirect {
        /// The epoch in which the request was sent. One that was sent again since is not meant.
        of: Epoch,
        /// Where the home is.
        home: HostId,
        /// Since when.
        epoch: Epoch,
    },
    /// The only copy died with its host. Nothing else will ever be granted.
    Lost,
}

/// A message about one page.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message<C> {
    /// To the home.
    Request {
        /// The shard's epoch as the holder's host knows it.
        epoch: Epoch,
        /// What it wants.
        request: Request<C>,
    },
    /// To a holder.
    Order {
        /// Why.
        txn: Txn,
        /// What to do.
        order: Order,
    },
    /// To the home.
    Answer {
        /// Which order or grant it answers.
        txn: Txn,
        /// What was done.
        answer: Answer<C>,
    },
    /// To a holder.
    Reply(Reply<C>),
}

/// Messages of different classes never wait for each other, so they are not ordered either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Requests: they may wait long.
    Request,
    /// Orders and answers: whoever waits, waits for these.
    Coherence,
    /// Replies: they carry pages.
    Reply,
}

impl<C> Message<C> {
    /// The transaction it belongs to. Without one, only its number in the stream tells a repetition from news.
    #[must_use]
    pub const fn txn(&self) -> Option<Txn> {
        match self {
            Self::Order { txn, .. } | Self::Answer { txn, .. } | Self::Reply(Reply::Grant { txn, .. }) => Some(*txn),
            Self::Request { .. } | Self::Reply(Reply::PutAck | Reply::Redirect { .. } | Reply::Lost) => None,
        }
    }

    /// The stream class it travels in.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Request { .. } => Class::Request,
            Self::Order { .. } | Self::Answer { .. } => Class::Coherence,
            Self::Reply(_) => Class::Reply,
        }
    }
}

/// A message that a home wants sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outgoing<C> {
    /// To each of these; more than one only for `Inv`.
    pub to: HostSet,
    /// About this page.
    pub page: PageNumber,
    /// What is said.
    pub message: Message<C>,
}
