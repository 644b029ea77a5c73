//! Streams that survive their connection: what was not acknowledged is sent again, and what comes twice is dropped.
//!
//! Messages with a transaction are idempotent by it; a request has none. A `GetM` that comes again after its grant was installed, and
//! after the page went on to another host, looks just like a new one: obeying it would send the page to a host that does not want it, and
//! nothing a home could remember in a few bytes a page would tell. So each stream numbers its messages, and the far end remembers one number.
//! The invariant: of what one side pushes, the other accepts each exactly once, in order.

use std::collections::VecDeque;
use thiserror::Error;

/// A message and its place in its stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Numbered<M> {
    /// From 0.
    pub number: u64,
    /// The message.
    pub message: M,
}

/// Too much waits for an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{limit} messages wait for their acknowledgement, no more fit")]
pub struct Full {
    /// The limit.
    pub limit: usize,
}

/// A message is missing: the stream is not ordered, or the far end forgot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Message {got} came where {expected} was expected")]
pub struct Gap {
    /// The next one.
    pub expected: u64,
    /// What came.
    pub got: u64,
}

/// The sending end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Outbox<M> {
    /// The number of the first message that is not acknowledged.
    first: u64,
    unacknowledged: VecDeque<M>,
    limit: usize,
}

impl<M: Clone> Outbox<M> {
    /// A new stream, of which at most `limit` messages wait for their acknowledgement.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { first: 0, unacknowledged: VecDeque::new(), limit }
    }

    /// Messages that wait for their acknowledgement.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Nothing waits for its acknowledgement.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// Would [`Self::push`] refuse?
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.unacknowledged.len() >= self.limit
    }

    /// Numbers a message, which is to be sent now.
    ///
    /// # Errors
    /// The stream must first be acknowledged further.
    pub fn push(&mut self, message: M) -> Result<Numbered<M>, Full> {
        if self.is_full() {
            return Err(Full { limit: self.limit });
        }
        let number = self.first + self.unacknowledged.len() as u64;
        self.unacknowledged.push_back(message.clone());
        Ok(Numbered { number, message })
    }

    /// The far end has accepted all messages below `next`.
    ///
    /// # Errors
    /// It cannot have: they were not sent.
    pub fn acknowledged(&mut self, next: u64) -> Result<(), Gap> {
        let sent = self.first + self.unacknowledged.len() as u64;
        if next > sent {
            return Err(Gap { expected: sent, got: next });
        }
        while self.first < next {
            self.unacknowledged.pop_front();
            self.first += 1;
        }
        Ok(())
    }

    /// After a new connection: all that must be sent again, before anything new.
    pub fn replay(&self) -> impl Iterator<Item = Numbered<M>> {
        (self.first..).zip(&self.unacknowledged).map(|(number, message)| Numbered { number, message: message.clone() })
    }
}

/// The receiving end of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Inbox {
    next: u64,
}

impl Inbox {
    /// The message, unless it was accepted before.
    ///
    /// # Errors
    /// Messages before it are missing.
    pub fn accept<M>(&mut self, numbered: Numbered<M>) -> Result<Option<M>, Gap> {
        if numbered.number > self.next {
            return Err(Gap { expected: self.next, got: numbered.number });
        }
        if numbered.number < self.next {
            return Ok(None);
        }
        self.next += 1;
        Ok(Some(numbered.message))
    }

    /// What to acknowledge: all messages below this were accepted.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests;
