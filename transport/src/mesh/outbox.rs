//! What is to be sent: messages of one pass are gathered for each stream, and handed to its connection as one piece.

use super::{
    MESSAGE_BYTES_MAX, Outgoing, Peer, STREAMS_MAX, StreamNumber,
    framing::{LENGTH_BYTES, append},
};
use crate::session::SessionError;
use bytes::Bytes;
use quinn_proto::{Connection, Dir, StreamId, WriteError};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A piece is not made longer: what was acknowledged of it is only free when all of it was.
const PIECE_BYTES_MAX: usize = LENGTH_BYTES + MESSAGE_BYTES_MAX;
/// Waits on one stream at most, in bytes: a user sends less long before. Whoever acknowledges so little is as good as lost.
const WAITING_BYTES_MAX: usize = 512 << 20;

/// Queues to the peers that are connected.
#[derive(Default)]
pub(super) struct Outbox {
    /// By their numbers.
    links: Vec<Option<Box<OutLink>>>,
}

/// Queues to one peer.
#[derive(Default)]
pub(super) struct OutLink {
    streams: [OutStream; STREAMS_MAX as usize],
    /// Streams that have something for their connection: a bit for each.
    ready: u16,
    messages: u64,
}

#[derive(Default)]
struct OutStream {
    id: Option<StreamId>,
    /// Of this pass.
    fresh: Vec<u8>,
    /// Of that pass which had something: about as much comes again.
    usual_bytes: usize,
    /// Not taken by the connection, for want of credit.
    backlog: VecDeque<Bytes>,
    /// The connection says when it takes more.
    is_blocked: bool,
    /// Bytes in the backlog and in the connection, which keeps them until they are acknowledged.
    held: Arc<AtomicUsize>,
}

/// A piece of a stream; counts as long as anybody has it.
struct Piece {
    bytes: Vec<u8>,
    held: Arc<AtomicUsize>,
}

impl Outbox {
    /// A connection with `peer` begins. Nothing that was for the one before is left.
    pub(super) fn open(&mut self, peer: Peer) {
        let index = usize::from(peer.0);
        if self.links.len() <= index {
            self.links.resize_with(index + 1, || None);
        }
        self.links[index] = Some(Box::default());
    }

    /// There is none any more.
    pub(super) fn close(&mut self, peer: Peer) {
        if let Some(link) = self.links.get_mut(usize::from(peer.0)) {
            *link = None;
        }
    }

    pub(super) fn link(&mut self, peer: Peer) -> Option<&mut OutLink> {
        self.links.get_mut(usize::from(peer.0))?.as_deref_mut()
    }

    /// The peers that something is to be handed over for.
    pub(super) fn ready(&mut self) -> impl Iterator<Item = (Peer, &mut OutLink)> {
        let links = (0..=u8::MAX).zip(&mut self.links);
        links.filter_map(|(number, link)| Some((Peer(number), link.as_deref_mut().filter(|link| link.ready != 0)?)))
    }
}

impl Outgoing for Outbox {
    fn send(&mut self, to: Peer, stream: StreamNumber, write: &mut dyn FnMut(&mut Vec<u8>)) {
        if let Some(link) = self.link(to) {
            link.messages += 1;
            link.ready |= 1 << stream.0;
            link.streams[usize::from(stream.0)].append(stream, write);
        }
    }

    fn waiting(&self, to: Peer, stream: StreamNumber) -> usize {
        let link = self.links.get(usize::from(to.0)).and_then(Option::as_deref);
        link.map_or(0, |link| link.streams[usize::from(stream.0)].waiting())
    }
}

impl OutLink {
    /// Messages that were sent.
    pub(super) const fn messages(&self) -> u64 {
        self.messages
    }

    /// The connection takes more of the stream.
    pub(super) fn unblock(&mut self, id: StreamId) {
        for (bit, stream) in self.streams.iter_mut().enumerate() {
            if stream.id == Some(id) && std::mem::take(&mut stream.is_blocked) {
                self.ready |= 1 << bit;
            }
        }
    }

    /// Hands what there is to the connection, as far as that takes it.
    ///
    /// # Errors
    /// The peer takes too little, or no streams.
    pub(super) fn hand_over(&mut self, connection: &mut Connection) -> Result<(), SessionError> {
        let ready = std::mem::take(&mut self.ready);
        for (number, stream) in (0..STREAMS_MAX).zip(&mut self.streams) {
            if ready & (1 << number) != 0 {
                stream.seal();
                stream.hand_over(StreamNumber(number), connection)?;
            }
        }
        Ok(())
    }
}

impl OutStream {
    fn append(&mut self, number: StreamNumber, write: &mut dyn FnMut(&mut Vec<u8>)) {
        if self.fresh.capacity() == 0 {
            self.fresh.reserve(self.usual_bytes);
        }
        if self.id.is_none() && self.backlog.is_empty() && self.fresh.is_empty() {
            self.fresh.push(number.0);
        }
        append(&mut self.fresh, write);
        if self.fresh.len() >= PIECE_BYTES_MAX / 2 {
            self.seal();
        }
    }

    fn waiting(&self) -> usize {
        self.held.load(Ordering::Relaxed) + self.fresh.len()
    }

    /// What was gathered is a piece now.
    fn seal(&mut self) {
        if !self.fresh.is_empty() {
            let bytes = std::mem::take(&mut self.fresh);
            self.usual_bytes = bytes.len();
            self.held.fetch_add(bytes.len(), Ordering::Relaxed);
            self.backlog.push_back(Bytes::from_owner(Piece { bytes, held: Arc::clone(&self.held) }));
        }
    }

    fn hand_over(&mut self, number: StreamNumber, connection: &mut Connection) -> Result<(), SessionError> {
        if self.waiting() > WAITING_BYTES_MAX {
            let waiting = self.waiting();
            return Err(SessionError::Lost(format!(
                "{waiting} bytes wait on stream {}: it takes too little",
                number.0
            )));
        }
        if self.is_blocked {
            return Ok(());
        }
        let id = match self.id {
            Some(id) => id,
            None => *self.id.insert(open(number, connection)?),
        };
        while !self.backlog.is_empty() {
            match connection.send_stream(id).write_chunks(self.backlog.make_contiguous()) {
                Ok(written) => drop(self.backlog.drain(..written.chunks)),
                Err(WriteError::Blocked) => {
                    self.is_blocked = true;
                    break;
                }
                Err(error) => return Err(SessionError::Protocol(format!("stream {}: {error}", number.0))),
            }
        }
        Ok(())
    }
}

/// A stream that goes before those with a higher number.
fn open(number: StreamNumber, connection: &mut Connection) -> Result<StreamId, SessionError> {
    let none = || SessionError::Protocol("the peer allows too few streams".to_owned());
    let id = connection.streams().open(Dir::Uni).ok_or_else(none)?;
    // Fails only for a stream that is closed already.
    let _ = connection.send_stream(id).set_priority(-i32::from(number.0));
    Ok(id)
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}
