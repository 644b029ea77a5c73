//! The auditor: are the bytes of a copy those of its version? No message of the protocol would show it if they were not.
//!
//! A copy that may only be read is hashed when it is put in place and again when it is taken away, after the revocation has returned: nobody has
//! written it in between. And every copy has the hash that the home has of the version: who puts one in place tells the home. What differs
//! ends the machine: a wrong page would be believed.

use super::bytes::{PAGE_BYTES, PageBytes};
use super::error::{NodeError, at_page};
use super::node::MemoryNode;
use super::wire::Packet;
use crate::directory::{Access, Content, Rights, Version};
use std::collections::HashMap;
use vmotion_model::PageNumber;
use vmotion_transport::mesh::Outgoing;
use xxhash_rust::xxh3::xxh3_64;

/// What a page is by its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Print {
    pub(super) version: Version,
    pub(super) hash: u64,
}

/// What is remembered.
#[derive(Debug, Default)]
pub(super) struct Auditor {
    /// Copies here that may only be read, as they were put in place.
    copies: HashMap<PageNumber, Print>,
    /// Bytes that homes here have, as they came.
    versions: HashMap<PageNumber, Print>,
}

fn hash_of(content: &Content<PageBytes>) -> u64 {
    match content {
        Content::Zero => xxh3_64(&[0; PAGE_BYTES]),
        Content::Bytes(bytes) => xxh3_64(bytes.as_slice()),
    }
}

impl MemoryNode {
    /// The hash of what the memfd holds, which nobody may write.
    fn hash_in_place(&mut self, page: PageNumber) -> Result<u64, NodeError> {
        let index = self.index_of(page)?;
        self.memory.read(index, self.buffer.as_mut_slice()).map_err(at_page("read memory", page))?;
        Ok(xxh3_64(self.buffer.as_slice()))
    }

    /// What is being installed is in place, and mapped.
    pub(super) fn audit_install(&mut self, page: PageNumber, out: &mut dyn Outgoing) -> Result<(), NodeError> {
        if self.auditor.is_none() {
            return Ok(());
        }
        let Some((Access::Read, version)) = self.spots.get_mut(page).holder.installing() else { return Ok(()) };
        let print = Print { version, hash: self.hash_in_place(page)? };
        if let Some(auditor) = &mut self.auditor {
            auditor.copies.insert(page, print);
        }
        let Some(home) = self.table.route(page).map(|route| route.home) else { return Ok(()) };
        if home == self.host {
            return self.audit_copy(page, print);
        }
        if let Some(link) = self.link(home) {
            link.send(Packet::Print(page, print), out);
        }
        Ok(())
    }

    /// The page was written here, may only be read from now on, and is in the buffer.
    pub(super) fn audit_read(&mut self, page: PageNumber) {
        let holder = self.spots.get_mut(page).holder;
        if let (Some(auditor), Rights::Shared, Some(version)) = (&mut self.auditor, holder.rights(), holder.version()) {
            auditor.copies.insert(page, Print { version, hash: xxh3_64(self.buffer.as_slice()) });
        }
    }

    /// A copy is gone, or is about to be written; in any case nobody may have written it.
    pub(super) fn audit_loss(&mut self, page: PageNumber) -> Result<(), NodeError> {
        let Some(Print { version, hash: before }) =
            self.auditor.as_mut().and_then(|auditor| auditor.copies.remove(&page))
        else {
            return Ok(());
        };
        let now = self.hash_in_place(page)?;
        self.judge_print(page, version, before, now)
    }

    /// The page's home is here, and something was said about it: are there bytes that have just come?
    pub(super) fn audit_home(&mut self, page: PageNumber) {
        let (Some(auditor), Some(home)) = (&mut self.auditor, self.homes.home(page)) else { return };
        let Some((version, content)) = home.bytes() else { return };
        if auditor.versions.get(&page).is_none_or(|known| known.version != version) {
            auditor.versions.insert(page, Print { version, hash: hash_of(content) });
        }
    }

    /// A holder says what it has put in place. The page's home may have moved, or have newer bytes by now.
    pub(super) fn audit_copy(&mut self, page: PageNumber, print: Print) -> Result<(), NodeError> {
        let known = self.auditor.as_ref().and_then(|auditor| auditor.versions.get(&page).copied());
        match known.filter(|known| known.version == print.version) {
            Some(known) => self.judge_print(page, print.version, known.hash, print.hash),
            None => Ok(()),
        }
    }

    fn judge_print(&mut self, page: PageNumber, version: Version, was: u64, is: u64) -> Result<(), NodeError> {
        self.counters.counts.audited += 1;
        if was == is {
            return Ok(());
        }
        self.counters.counts.mismatched += 1;
        Err(NodeError::Audit { page, version, was, is })
    }
}
