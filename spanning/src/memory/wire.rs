//! Messages as bytes.
//!
//! ```text
//!  frame    kind u8 │ lane u8, next u64: acknowledges a lane that runs the other way │ number u64, body     (kind 0: no number, no body)
//!  kinds    0 nothing to say   1 a message about a page   2 part of a shard's entries   3 the store's word about a shard
//!           4 who has a shard that the sender had   5 the sender leaves   6 farewell to who leaves   7 it has left
//!           8 the hash of a copy, for the auditor
//!  content  0 zero   1 4096 bytes      (2 and 3 are kept for a page that is the same, and for differences)
//! ```
//! Numbers are little-endian. What is read comes from a peer, which may be hostile: pages must be in the machine's memory, hosts in
//! its list, counters so low that they can be counted on, and what is left over is an error. Nothing is allocated but pages that are there.

use super::audit::Print;
use super::bytes::{PAGE_BYTES, PageBytes};
use crate::directory::{
    Access, Answer, Class, Content, Copies, Entry, HostId, HostSet, Left, Message, Order, PAGES_PER_SHARD, Reply,
    Request, Route, ShardNumber, Txn, Version,
};
use thiserror::Error;
use vmotion_model::{Epoch, MemoryLayout, PageNumber};

#[cfg(test)]
pub(super) mod tests;

/// Highest version, epoch and number of a transaction or message: nobody gets there by counting, and one can still be added.
const COUNTER_MAX: u64 = 1 << 62;
/// Entries in a part of a shard, at most: with their bytes they fit a message.
pub(super) const PART_ENTRIES_MAX: usize = 15;

/// The ordered streams between two hosts, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Orders and answers.
    Coherence,
    /// Replies, which carry pages.
    Reply,
    /// Requests.
    Request,
    /// Shards that get another home.
    Moving,
}

impl Lane {
    /// All, by their number.
    pub(super) const ALL: [Self; 4] = [Self::Coherence, Self::Reply, Self::Request, Self::Moving];

    /// Its place in [`Self::ALL`].
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

impl From<Class> for Lane {
    fn from(class: Class) -> Self {
        match class {
            Class::Coherence => Self::Coherence,
            Class::Reply => Self::Reply,
            Class::Request => Self::Request,
        }
    }
}

/// Some entries of a shard on its way; they follow each other in their lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) shard: ShardNumber,
    /// The epoch that the new home is to win.
    pub(super) epoch: Epoch,
    /// No more entries follow.
    pub(super) last: bool,
    /// At most [`PART_ENTRIES_MAX`].
    pub(super) entries: Vec<(PageNumber, Entry<PageBytes>)>,
}

/// What travels in lanes, numbered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    Page(PageNumber, Message<PageBytes>),
    Part(Part),
    Word(ShardNumber, Route),
    /// The sender, who leaves, had the shard; this is who has it.
    Gone(ShardNumber, Route),
    /// The sender is about to leave: this is its attempt of that number.
    Leaving(u64),
    /// Whoever leaves is asked for nothing any more. Comes after all requests.
    Farewell(u64),
    /// The sender has nothing of the machine any more.
    Left,
    /// What the sender has put in place, by its bytes.
    Print(PageNumber, Print),
}

impl Packet {
    /// The lane it travels in.
    pub(super) fn lane(&self) -> Lane {
        match self {
            Self::Page(_, message) => message.class().into(),
            Self::Part(_) | Self::Word(..) | Self::Gone(..) | Self::Leaving(_) | Self::Left => Lane::Moving,
            Self::Farewell(_) | Self::Print(..) => Lane::Request,
        }
    }

    /// Does it carry a page's bytes?
    pub(super) const fn has_bytes(&self) -> bool {
        let content = match self {
            Self::Page(_, Message::Request { request: Request::Put(content), .. }) => content.as_ref(),
            Self::Page(_, Message::Answer { answer: Answer::AckData(content), .. }) => Some(content),
            Self::Page(_, Message::Reply(Reply::Grant { content, .. })) => content.as_ref(),
            _ => None,
        };
        matches!(content, Some(Content::Bytes(_)))
    }
}

/// One message of the transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// All of this lane below this number has been accepted.
    pub(super) acknowledges: (Lane, u64),
    /// What is said, and its number in its lane.
    pub(super) packet: Option<(u64, Packet)>,
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// They end too early.
    #[error("Message ends {missing} bytes early in {field}")]
    Short {
        /// What was to be read.
        field: &'static str,
        /// How much of it is not there.
        missing: usize,
    },
    /// They do not end.
    #[error("Message goes on for {0} bytes after its end")]
    Long(usize),
    /// A value that means nothing.
    #[error("Message has {field} {value}, which is not known here")]
    Unknown {
        /// Of what.
        field: &'static str,
        /// The value.
        value: u64,
    },
    /// A page that the machine does not have.
    #[error("Message is about {0}, which is not in the machine's memory")]
    OutsideMemory(PageNumber),
}

/// What a machine has: everything else is refused.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) layout: MemoryLayout,
    pub(super) hosts: HostSet,
}

impl Known {
    fn page(&self, page: u64) -> Result<PageNumber, WireError> {
        let page = PageNumber(page);
        if self.layout.contains(page) { Ok(page) } else { Err(WireError::OutsideMemory(page)) }
    }

    fn host(&self, number: u8) -> Result<HostId, WireError> {
        let known = HostId::new(number).filter(|host| self.hosts.contains(*host));
        known.ok_or_else(|| WireError::Unknown { field: "host", value: number.into() })
    }

    /// Is any page of the shard RAM?
    fn shard(&self, shard: u64) -> Result<ShardNumber, WireError> {
        let first = shard.checked_mul(PAGES_PER_SHARD).filter(|first| *first < MemoryLayout::PAGES_MAX);
        let first = first.ok_or(WireError::Unknown { field: "shard", value: shard })?;
        let end = first + PAGES_PER_SHARD;
        let mut regions = self.layout.regions().iter();
        if regions.any(|region| region.start.0 < end && first < region.end().0) {
            Ok(ShardNumber(shard))
        } else {
            Err(WireError::OutsideMemory(PageNumber(first)))
        }
    }
}

// Writing

/// Appends a frame.
pub(super) fn encode(into: &mut Vec<u8>, (lane, next): (Lane, u64), packet: Option<(u64, &Packet)>) {
    let kind = match packet {
        None => 0,
        Some((_, Packet::Page(..))) => 1,
        Some((_, Packet::Part(_))) => 2,
        Some((_, Packet::Word(..))) => 3,
        Some((_, Packet::Gone(..))) => 4,
        Some((_, Packet::Leaving(_))) => 5,
        Some((_, Packet::Farewell(_))) => 6,
        Some((_, Packet::Left)) => 7,
        Some((_, Packet::Print(..))) => 8,
    };
    into.extend([kind, lane as u8]);
    put(into, next);
    let Some((number, packet)) = packet else { return };
    put(into, number);
    match packet {
        Packet::Page(page, message) => {
            put(into, page.0);
            put_message(into, message);
        }
        Packet::Part(Part { shard, epoch, last, entries }) => {
            put(into, shard.0);
            put(into, epoch.0);
            into.push(u8::from(*last));
            into.push(u8::try_from(entries.len()).unwrap_or(u8::MAX));
            for (page, entry) in entries {
                put(into, page.0);
                put_entry(into, entry);
            }
        }
        Packet::Word(shard, Route { home, epoch }) | Packet::Gone(shard, Route { home, epoch }) => {
            put(into, shard.0);
            into.push(home.number());
            put(into, epoch.0);
        }
        Packet::Leaving(attempt) | Packet::Farewell(attempt) => put(into, *attempt),
        Packet::Left => {}
        Packet::Print(page, Print { version, hash }) => {
            [page.0, version.0, *hash].into_iter().for_each(|word| put(into, word))
        }
    }
}

fn put(into: &mut Vec<u8>, value: u64) {
    into.extend(value.to_le_bytes());
}

fn put_txn(into: &mut Vec<u8>, tag: u8, txn: Txn) {
    into.push(tag);
    put(into, txn.epoch.0);
    put(into, txn.number);
}

fn put_content(into: &mut Vec<u8>, content: &Content<PageBytes>) {
    match content {
        Content::Zero => into.push(0),
        Content::Bytes(bytes) => {
            into.push(1);
            into.extend_from_slice(bytes.as_slice());
        }
    }
}

fn put_optional_content(into: &mut Vec<u8>, content: Option<&Content<PageBytes>>) {
    into.push(u8::from(content.is_some()));
    if let Some(content) = content {
        put_content(into, content);
    }
}

const fn number_of(access: Access) -> u8 {
    match access {
        Access::Read => 0,
        Access::Write => 1,
    }
}

fn put_message(into: &mut Vec<u8>, message: &Message<PageBytes>) {
    match message {
        Message::Request { epoch, request: Request::Get { access, have } } => {
            into.extend([0, number_of(*access), u8::from(have.is_some())]);
            put(into, epoch.0);
            put(into, have.unwrap_or_default().0);
        }
        Message::Request { epoch, request: Request::Put(content) } => {
            into.push(1);
            put(into, epoch.0);
            put_optional_content(into, content.as_ref());
        }
        Message::Order { txn, order: Order::Inv } => put_txn(into, 2, *txn),
        Message::Order { txn, order: Order::Recall(Left::Invalid) } => put_txn(into, 3, *txn),
        Message::Order { txn, order: Order::Recall(Left::Shared) } => put_txn(into, 4, *txn),
        Message::Answer { txn, answer: Answer::Ack } => put_txn(into, 5, *txn),
        Message::Answer { txn, answer: Answer::AckData(content) } => {
            put_txn(into, 6, *txn);
            put_content(into, content);
        }
        Message::Answer { txn, answer: Answer::Done } => put_txn(into, 7, *txn),
        Message::Reply(Reply::Grant { txn, access, version, content }) => {
            put_txn(into, 8, *txn);
            into.push(number_of(*access));
            put(into, version.0);
            put_optional_content(into, content.as_ref());
        }
        Message::Reply(Reply::PutAck) => into.push(9),
        Message::Reply(Reply::Redirect { of, home, epoch }) => {
            into.extend([10, home.number()]);
            put(into, of.0);
            put(into, epoch.0);
        }
        Message::Reply(Reply::Lost) => into.push(11),
    }
}

fn put_entry(into: &mut Vec<u8>, entry: &Entry<PageBytes>) {
    let Entry { copies, version, transactions } = entry;
    put(into, version.0);
    put(into, *transactions);
    match copies {
        Copies::Owned(host) => into.extend([0, host.number()]),
        Copies::Shared { sharers, content } => {
            into.push(1);
            put(into, sharers.bits());
            put_content(into, content);
        }
        Copies::Lost => into.push(2),
    }
}

// Reading

struct Reader<'a> {
    rest: &'a [u8],
    known: &'a Known,
}

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, bytes: usize) -> Result<&'a [u8], WireError> {
        let short = WireError::Short { field, missing: bytes.saturating_sub(self.rest.len()) };
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.take(field, 1)?[0])
    }

    fn word(&mut self, field: &'static str) -> Result<u64, WireError> {
        let (bytes, _) = self.take(field, 8)?.as_chunks::<8>();
        Ok(u64::from_le_bytes(bytes[0]))
    }

    fn counter(&mut self, field: &'static str) -> Result<u64, WireError> {
        let value = self.word(field)?;
        if value <= COUNTER_MAX { Ok(value) } else { Err(WireError::Unknown { field, value }) }
    }

    fn epoch(&mut self) -> Result<Epoch, WireError> {
        self.counter("epoch").map(Epoch)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(WireError::Unknown { field, value: value.into() }),
        }
    }

    fn access(&mut self) -> Result<Access, WireError> {
        Ok(if self.flag("access")? { Access::Write } else { Access::Read })
    }

    fn txn(&mut self) -> Result<Txn, WireError> {
        Ok(Txn { epoch: self.epoch()?, number: self.counter("transaction")? })
    }

    fn page(&mut self) -> Result<PageNumber, WireError> {
        let page = self.word("page")?;
        self.known.page(page)
    }

    fn host(&mut self) -> Result<HostId, WireError> {
        let number = self.byte("host")?;
        self.known.host(number)
    }

    fn shard(&mut self) -> Result<ShardNumber, WireError> {
        let shard = self.word("shard")?;
        self.known.shard(shard)
    }

    /// It may have left since this was said: who obeys it must look.
    fn home(&mut self) -> Result<HostId, WireError> {
        let number = self.byte("home")?;
        HostId::new(number).ok_or_else(|| WireError::Unknown { field: "home", value: number.into() })
    }

    fn content(&mut self) -> Result<Content<PageBytes>, WireError> {
        match self.byte("content")? {
            0 => Ok(Content::Zero),
            1 => {
                let bytes = PageBytes::copy_of(self.take("page bytes", PAGE_BYTES)?);
                bytes.map(Content::Bytes).ok_or(WireError::Short { field: "page bytes", missing: 0 })
            }
            value => Err(WireError::Unknown { field: "content", value: value.into() }),
        }
    }

    fn optional_content(&mut self) -> Result<Option<Content<PageBytes>>, WireError> {
        self.flag("presence of content")?.then(|| self.content()).transpose()
    }

    fn message(&mut self) -> Result<Message<PageBytes>, WireError> {
        Ok(match self.byte("message")? {
            0 => {
                let (access, has) = (self.access()?, self.flag("presence of a version")?);
                let (epoch, version) = (self.epoch()?, Version(self.counter("version")?));
                Message::Request { epoch, request: Request::Get { access, have: has.then_some(version) } }
            }
            1 => Message::Request { epoch: self.epoch()?, request: Request::Put(self.optional_content()?) },
            2 => Message::Order { txn: self.txn()?, order: Order::Inv },
            3 => Message::Order { txn: self.txn()?, order: Order::Recall(Left::Invalid) },
            4 => Message::Order { txn: self.txn()?, order: Order::Recall(Left::Shared) },
            5 => Message::Answer { txn: self.txn()?, answer: Answer::Ack },
            6 => Message::Answer { txn: self.txn()?, answer: Answer::AckData(self.content()?) },
            7 => Message::Answer { txn: self.txn()?, answer: Answer::Done },
            8 => Message::Reply(Reply::Grant {
                txn: self.txn()?,
                access: self.access()?,
                version: Version(self.counter("version")?),
                content: self.optional_content()?,
            }),
            9 => Message::Reply(Reply::PutAck),
            10 => Message::Reply(Reply::Redirect { home: self.home()?, of: self.epoch()?, epoch: self.epoch()? }),
            11 => Message::Reply(Reply::Lost),
            value => return Err(WireError::Unknown { field: "message", value: value.into() }),
        })
    }

    fn entry(&mut self) -> Result<Entry<PageBytes>, WireError> {
        let (version, transactions) = (Version(self.counter("version")?), self.counter("transactions")?);
        let copies = match self.byte("copies")? {
            0 => Copies::Owned(self.host()?),
            1 => {
                let bits = self.word("sharers")?;
                let sharers = HostSet::from_bits(bits);
                if sharers.iter().any(|host| !self.known.hosts.contains(host)) {
                    return Err(WireError::Unknown { field: "sharers", value: bits });
                }
                Copies::Shared { sharers, content: self.content()? }
            }
            2 => Copies::Lost,
            value => return Err(WireError::Unknown { field: "copies", value: value.into() }),
        };
        Ok(Entry { copies, version, transactions })
    }

    fn part(&mut self) -> Result<Part, WireError> {
        let (shard, epoch, last) = (self.shard()?, self.epoch()?, self.flag("end of a shard")?);
        let count = self.byte("number of entries")?;
        if usize::from(count) > PART_ENTRIES_MAX {
            return Err(WireError::Unknown { field: "number of entries", value: count.into() });
        }
        let entries = (0..count).map(|_| Ok((self.page()?, self.entry()?))).collect::<Result<_, _>>()?;
        Ok(Part { shard, epoch, last, entries })
    }
}

/// Reads a frame.
///
/// # Errors
/// [`WireError`] names what is wrong with it.
pub(super) fn decode(bytes: &[u8], known: &Known) -> Result<Frame, WireError> {
    let mut reader = Reader { rest: bytes, known };
    let kind = reader.byte("kind")?;
    let lane = reader.byte("lane")?;
    let lane = Lane::ALL.get(usize::from(lane)).copied();
    let lane = lane.ok_or_else(|| WireError::Unknown { field: "lane", value: bytes[1].into() })?;
    let acknowledges = (lane, reader.counter("acknowledgement")?);
    if kind == 0 {
        return end(&reader, Frame { acknowledges, packet: None });
    }
    let number = reader.counter("number")?;
    let packet = match kind {
        1 => Packet::Page(reader.page()?, reader.message()?),
        2 => Packet::Part(reader.part()?),
        3 => Packet::Word(reader.shard()?, Route { home: reader.host()?, epoch: reader.epoch()? }),
        4 => Packet::Gone(reader.shard()?, Route { home: reader.home()?, epoch: reader.epoch()? }),
        5 => Packet::Leaving(reader.counter("attempt")?),
        6 => Packet::Farewell(reader.counter("attempt")?),
        7 => Packet::Left,
        8 => {
            let page = reader.page()?;
            Packet::Print(page, Print { version: Version(reader.counter("version")?), hash: reader.word("hash")? })
        }
        value => return Err(WireError::Unknown { field: "kind", value: value.into() }),
    };
    end(&reader, Frame { acknowledges, packet: Some((number, packet)) })
}

fn end(reader: &Reader<'_>, frame: Frame) -> Result<Frame, WireError> {
    if reader.rest.is_empty() { Ok(frame) } else { Err(WireError::Long(reader.rest.len())) }
}
