//! Reading fault events.

use super::Userfault;
use linux_raw_sys::general as raw;
use rustix::io::Errno;
use std::io;

/// Most events one read takes.
pub const EVENTS_MAX: usize = 64;

/// `struct uffd_msg` of `linux/userfaultfd.h`, which the kernel writes one after the other.
const MESSAGE_BYTES: usize = 32;
const _: () = assert!(size_of::<raw::uffd_msg>() == MESSAGE_BYTES);

/// A thread waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFault {
    /// Address of the first byte of the page (of the huge page where the memory is made of those).
    pub address: usize,
    /// The thread wants to write.
    pub write: bool,
    /// The file has the page; it is only not mapped.
    pub minor: bool,
    /// The page is mapped, and protected against writing ([`Userfault::set_protection`]).
    pub protected: bool,
    /// The thread, as this process's PID namespace names it.
    pub thread: u32,
}

fn parse(message: &[u8; MESSAGE_BYTES]) -> Option<PageFault> {
    let word = |at: usize| message[at..at + 8].try_into().ok().map(u64::from_ne_bytes);
    if u32::from(message[0]) != raw::UFFD_EVENT_PAGEFAULT {
        return None;
    }
    let (flags, address) = (word(8)?, word(16)?);
    let thread = u32::from_ne_bytes(message[24..28].try_into().ok()?);
    Some(PageFault {
        address: usize::try_from(address).ok()?,
        write: flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
        minor: flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_MINOR) != 0,
        protected: flags & u64::from(raw::UFFD_PAGEFAULT_FLAG_WP) != 0,
        thread,
    })
}

impl Userfault {
    /// Hands the events that wait to be read to `each`, at most [`EVENTS_MAX`], and says how many; 0 when there is none. Each fault
    /// is reported once; a thread that is interrupted and faults again is a new event. No other kind of event is ever asked for.
    ///
    /// # Errors
    /// What `read` says.
    pub fn read_faults(&self, each: impl FnMut(PageFault)) -> io::Result<usize> {
        let mut messages = [0; MESSAGE_BYTES * EVENTS_MAX];
        let bytes = match rustix::io::read(self, &mut messages) {
            Ok(bytes) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let (messages, _) = messages[..bytes].as_chunks::<MESSAGE_BYTES>();
        messages.iter().filter_map(parse).for_each(each);
        Ok(messages.len())
    }
}
