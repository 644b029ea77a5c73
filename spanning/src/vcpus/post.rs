//! Letters that survive a lost connection: numbered, acknowledged with whatever goes the other way, and sent again.
//!
//! A frame is what the sender has accepted so far, the letter's number, and the letter; without a letter it only acknowledges.

use crate::directory::replay::{Full, Inbox, Numbered, Outbox};
use std::time::{Duration, Instant};

/// Letters that wait for their acknowledgement, at most: so many that only a peer that is gone leaves them.
const WAITING_MAX: usize = 64 << 10;
/// After so many letters without one, an acknowledgement goes out by itself; or after so long.
const LETTERS_OWED: u32 = 32;
const OWED_FOR: Duration = Duration::from_millis(20);
/// The number of no letter.
const NONE: u64 = u64::MAX;
const NUMBER_BYTES: usize = 8;

/// One peer's letters, both ways.
#[derive(Debug)]
pub(super) struct Post {
    outbox: Outbox<Vec<u8>>,
    inbox: Inbox,
    owed: u32,
    owed_since: Option<Instant>,
    connected: bool,
}

impl Default for Post {
    fn default() -> Self {
        let (outbox, inbox) = (Outbox::new(WAITING_MAX), Inbox::default());
        Self { outbox, inbox, owed: 0, owed_since: None, connected: false }
    }
}

impl Post {
    /// Takes a letter to be sent; `write` gets the frame, if there is a connection.
    pub(super) fn push(&mut self, letter: Vec<u8>, write: &mut dyn FnMut(&Numbered<Vec<u8>>, u64)) -> Result<(), Full> {
        let numbered = self.outbox.push(letter)?;
        if self.connected {
            self.paid();
            write(&numbered, self.inbox.next());
        }
        Ok(())
    }

    /// A new connection: everything that was not acknowledged goes again, before anything new.
    pub(super) fn connected(&mut self, write: &mut dyn FnMut(&Numbered<Vec<u8>>, u64)) {
        self.connected = true;
        self.paid();
        self.outbox.replay().for_each(|numbered| write(&numbered, self.inbox.next()));
    }

    /// Letters that were not acknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.outbox.len()
    }

    pub(super) const fn lost(&mut self) {
        self.connected = false;
    }

    /// The letter in `frame`, unless it came before; the error says what is wrong with it.
    pub(super) fn accept(&mut self, frame: &[u8], now: Instant) -> Result<Option<Vec<u8>>, String> {
        let (accepted, rest) = number(frame)?;
        let (number, letter) = number(rest)?;
        self.outbox.acknowledged(accepted).map_err(|error| error.to_string())?;
        if number == NONE {
            return Ok(None);
        }
        // Said again even for one that came twice: its acknowledgement may be what was lost.
        self.owed += 1;
        self.owed_since.get_or_insert(now);
        self.inbox.accept(Numbered { number, message: letter.to_vec() }).map_err(|error| error.to_string())
    }

    /// When an acknowledgement must go out, if nothing else does.
    pub(super) fn due(&self) -> Option<Instant> {
        self.owed_since.filter(|_| self.connected).map(|since| since + OWED_FOR)
    }

    /// What to acknowledge now by itself.
    pub(super) fn pay(&mut self, now: Instant) -> Option<u64> {
        let due = self.owed >= LETTERS_OWED || self.due().is_some_and(|due| due <= now);
        if !due || !self.connected {
            return None;
        }
        self.paid();
        Some(self.inbox.next())
    }

    const fn paid(&mut self) {
        (self.owed, self.owed_since) = (0, None);
    }
}

/// Appends a frame with a letter.
pub(super) fn write_letter(numbered: &Numbered<Vec<u8>>, accepted: u64, into: &mut Vec<u8>) {
    into.extend_from_slice(&accepted.to_le_bytes());
    into.extend_from_slice(&numbered.number.to_le_bytes());
    into.extend_from_slice(&numbered.message);
}

/// Appends a frame that only acknowledges.
pub(super) fn write_acknowledgement(accepted: u64, into: &mut Vec<u8>) {
    into.extend_from_slice(&accepted.to_le_bytes());
    into.extend_from_slice(&NONE.to_le_bytes());
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), String> {
    let (number, rest) = bytes.split_first_chunk::<NUMBER_BYTES>().ok_or("a frame ends within its head")?;
    Ok((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic in a test is its report")]

    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// Two ends, and what is on its way from each.
    #[derive(Default)]
    struct Pair {
        posts: [Post; 2],
        wires: [VecDeque<Vec<u8>>; 2],
        got: [Vec<Vec<u8>>; 2],
    }

    impl Pair {
        fn push(&mut self, from: usize, letter: Vec<u8>) {
            let wire = &mut self.wires[from];
            let write = &mut |numbered: &Numbered<Vec<u8>>, accepted| {
                let mut frame = Vec::new();
                write_letter(numbered, accepted, &mut frame);
                wire.push_back(frame);
            };
            self.posts[from].push(letter, write).unwrap();
        }

        fn bring(&mut self, from: usize) -> bool {
            let Some(frame) = self.wires[from].pop_front() else { return false };
            let accepted = self.posts[1 - from].accept(&frame, Instant::now()).unwrap();
            self.got[1 - from].extend(accepted);
            true
        }

        fn reconnect(&mut self) {
            for (post, wire) in self.posts.iter_mut().zip(&mut self.wires) {
                post.lost();
                wire.clear();
                post.connected(&mut |numbered, accepted| {
                    let mut frame = Vec::new();
                    write_letter(numbered, accepted, &mut frame);
                    wire.push_back(frame);
                });
            }
        }
    }

    proptest! {
        #[test]
        fn each_letter_comes_once_and_in_order_however_often_the_connection_is_lost(
            steps in prop::collection::vec((0usize..2, 0u8..5), 0..200),
        ) {
            let mut pair = Pair::default();
            let mut sent = [Vec::new(), Vec::new()];
            for (side, what) in steps {
                match what {
                    0 | 1 => {
                        let letter = vec![u8::try_from(sent[side].len()).unwrap()];
                        sent[side].push(letter.clone());
                        pair.push(side, letter);
                    }
                    2 | 3 => _ = pair.bring(side),
                    _ => pair.reconnect(),
                }
            }
            pair.reconnect();
            while pair.bring(0) || pair.bring(1) {}
            prop_assert_eq!(&pair.got[1], &sent[0]);
            prop_assert_eq!(&pair.got[0], &sent[1]);
        }
    }

    #[test]
    fn an_acknowledgement_goes_out_by_itself_after_a_while_and_frees_what_waits() {
        let mut pair = Pair::default();
        pair.reconnect();
        pair.push(0, vec![1]);
        pair.bring(0);
        let now = Instant::now();
        assert_eq!(pair.posts[1].pay(now), None);
        assert_eq!(pair.posts[1].pay(now + OWED_FOR), Some(1));
        assert_eq!(pair.posts[1].due(), None);
        let mut frame = Vec::new();
        write_acknowledgement(1, &mut frame);
        assert_eq!(pair.posts[0].accept(&frame, now), Ok(None));
        assert_eq!(pair.posts[0].outbox.replay().count(), 0);
    }

    #[test]
    fn frames_that_cannot_be_are_refused() {
        let mut post = Post::default();
        assert!(post.accept(&[0; 15], Instant::now()).is_err());
        assert!(post.accept(&[1; 16], Instant::now()).is_err(), "nothing was sent that could be acknowledged");
    }
}
