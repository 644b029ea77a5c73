//! Memory whose pages come and go: a page is the guest's to write, the guest's to read, or not the guest's, and that changes at any time.
//!
//! ```text
//!                     unmap                            protect
//!   not mapped ◀──────────────── mapped, read-only ◀──────────────── mapped, writable
//!        │    ◀───────────────────────────────────────── unmap ──────────┘  ▲   ▲
//!        ├── write or clear, map(Read) ──▶ ┘    └── allow_write ────────────┘   │      place: write and map in one
//!        └── write or clear, map(Write) ────────────────────────────────────────┘
//! ```
//! Each is one system call, and its effect is complete when the call returns: after [`CoherentMemory::unmap`] no vCPU reads the page through
//! an old translation, and after [`CoherentMemory::protect`] none writes it. So **revoke first, read second**: what is read before is old, and
//! the writes in between are lost. A page that is unmapped keeps its bytes in the memfd until it is freed.
//!
//! Who decides is elsewhere. Nothing here touches the guest's mapping, so whoever serves faults never waits for himself.

use crate::error::PagerError;
use crate::space::{GuestRegion, Space, bytes_of};
use crate::{NEEDED, open};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use vmotion_model::PAGE_SIZE;
use vmotion_sys::memory::punch_hole;
use vmotion_sys::userfaultfd::{
    CheckedMapping, Features, Obstacle, PageFault, ServiceAlias, Userfault, drop_translations, kernel_page_bytes,
};

/// How often a call is tried while the kernel says that mappings are changing.
const TRIES: u32 = 1000;

/// What the guest may do with a page that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// Read; a write is a fault.
    Read,
    /// Read and write.
    Write,
}

/// A thread (a vCPU, a device, the kernel on behalf of KVM) waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touch {
    /// The page, by index.
    pub index: u64,
    /// The thread wants to write.
    pub write: bool,
    /// The thread, as this process's PID namespace names it.
    pub thread: u32,
}

/// All memory of a guest on one host. Fit for one thread, and for several as long as no two of them deal with the same page.
#[derive(Debug)]
pub struct CoherentMemory {
    space: Space,
    userfault: Userfault,
    alias: ServiceAlias,
    mappings: Vec<CheckedMapping>,
    memfd: File,
}

impl CoherentMemory {
    /// From here on touching any page of `regions`, mappings of `memfd` with 4 KiB pages, waits until it is mapped. What the memfd holds is
    /// kept, and belongs to no one.
    ///
    /// # Errors
    /// [`PagerError`] says what the host or the memory lacks: Linux 6.6 or newer is needed.
    pub fn new(memfd: &File, regions: &[GuestRegion]) -> Result<Self, PagerError> {
        let page_bytes = kernel_page_bytes(memfd).map_err(PagerError::kernel("ask for the memfd's page size"))?;
        if page_bytes as u64 != PAGE_SIZE {
            return Err(PagerError::PageSize { bytes: page_bytes });
        }
        let space = Space::new(regions, page_bytes)?;
        let mappings = CheckedMapping::check(memfd, &space.mappings())
            .map_err(PagerError::kernel("find the guest's memory among this process's mappings"))?;
        // Continuing with protection is as old as Linux 6.4 and has no bit of its own.
        let userfault = open(NEEDED.and(Features::PROTECT_SHMEM).and(Features::POISON))?;
        let alias = ServiceAlias::new(memfd, space.file_base(), bytes_of(space.pages()))
            .map_err(PagerError::kernel("map the memory a second time"))?;
        // Memory for one page would otherwise be memory for 512. A kernel that has no huge pages refuses, and that is as well.
        let _ = alias.decline_huge_pages();
        let memfd = memfd.try_clone().map_err(PagerError::kernel("duplicate the memfd"))?;
        // First registered, then dropped: in the other order a touch between the two would map the page again, unseen.
        for mapping in &mappings {
            let registered = userfault.register_with_protection(mapping.range());
            registered.map_err(PagerError::kernel("register guest memory with userfaultfd"))?;
        }
        let memory = Self { space, userfault, alias, mappings, memfd };
        memory.unmap_all()?;
        Ok(memory)
    }

    /// All pages; indices are below.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.space.pages()
    }

    /// Hands the threads that wait and were not reported yet to `each`, at most 64, and says how many. Never blocks. A thread is reported
    /// again when it was woken and still cannot do what it wants.
    ///
    /// # Errors
    /// [`PagerError::Kernel`] for what `read` says.
    pub fn read_touches(&self, mut each: impl FnMut(Touch)) -> Result<usize, PagerError> {
        let of = |fault: &PageFault| {
            // Events tell addresses of registered memory only, which is memory of the space.
            let write = fault.write || fault.protected;
            self.space.index_at(fault.address).map(|index| Touch { index, write, thread: fault.thread })
        };
        let read = self.userfault.read_faults(|fault| {
            if let Some(touch) = of(&fault) {
                each(touch);
            }
        });
        read.map_err(PagerError::kernel("read page faults"))
    }

    /// Puts `bytes`, a whole page, in the place of a page that is not mapped.
    ///
    /// # Errors
    /// [`PagerError::Outside`], [`PagerError::NotPages`]; [`PagerError::Kernel`] when no memory is left.
    pub fn write(&self, index: u64, bytes: &[u8]) -> Result<(), PagerError> {
        self.check(index)?;
        if bytes.len() as u64 != PAGE_SIZE {
            return Err(PagerError::NotPages { first: index, bytes: bytes.len() });
        }
        let written = self.alias.write(bytes_of(index), bytes);
        written.map_err(PagerError::kernel("write a page through the alias"))
    }

    /// Makes a page that is not mapped zero.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn clear(&self, index: u64) -> Result<(), PagerError> {
        self.check(index)?;
        let cleared = self.alias.clear(bytes_of(index)..bytes_of(index + 1));
        cleared.map_err(PagerError::kernel("clear a page through the alias"))
    }

    /// Copies a page, which nobody may write, into `into`, which has its length.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn read(&self, index: u64, into: &mut [u8]) -> Result<(), PagerError> {
        self.check(index)?;
        if into.len() as u64 != PAGE_SIZE {
            return Err(PagerError::NotPages { first: index, bytes: into.len() });
        }
        self.alias.read(bytes_of(index), into).map_err(PagerError::kernel("read a page through the alias"))
    }

    /// [`Self::write`] and [`Self::map`]: as one call where the memfd has no memory for the page yet, which saves a fifth of the time.
    ///
    /// # Errors
    /// As for both.
    pub fn place(&self, index: u64, bytes: &[u8], allow: Allow) -> Result<(), PagerError> {
        let page = self.page(index)?;
        for _ in 0..TRIES {
            let progress = match allow {
                Allow::Read => self.userfault.copy_protected(&page, bytes),
                Allow::Write => self.userfault.copy(&page, bytes),
            };
            match progress.obstacle {
                None => return Ok(()),
                // There is memory already.
                Some(Obstacle::Mapped) => {
                    self.write(index, bytes)?;
                    return self.map(index, allow);
                }
                Some(Obstacle::Changing) => {}
                Some(Obstacle::Other(error)) => return Err(PagerError::kernel("place a page")(error)),
                Some(Obstacle::Hole | Obstacle::NotRegistered) => {
                    return Err(PagerError::kernel("place a page")(std::io::ErrorKind::NotFound.into()));
                }
            }
        }
        Err(PagerError::KeepsChanging { index, tries: TRIES })
    }

    /// Maps a page that is not mapped and whose bytes are in place, and wakes its waiters.
    ///
    /// # Errors
    /// [`PagerError::Vanished`] when they are not; [`PagerError::Kernel`].
    pub fn map(&self, index: u64, allow: Allow) -> Result<(), PagerError> {
        self.map_as(index, allow, |page| {
            // Mapped by somebody else, and who knows how.
            page.drop_translations().map_err(PagerError::kernel("drop the translation of a page"))?;
            Ok(false)
        })
    }

    /// Waiters of a page that allows what they want try again. Usually it is mapped; the kernel may have forgotten where it is (it writes
    /// pages to swap), and then it is mapped again, or they would wait for ever.
    ///
    /// # Errors
    /// As for [`Self::map`].
    pub fn wake(&self, index: u64, allow: Allow) -> Result<(), PagerError> {
        self.map_as(index, allow, |page| {
            match allow {
                Allow::Read => self.userfault.wake(page.range()),
                Allow::Write => self.userfault.set_protection(page.range(), false),
            }
            .map_err(PagerError::kernel("wake who waits for a page"))?;
            Ok(true)
        })
    }

    fn map_as(
        &self,
        index: u64,
        allow: Allow,
        is_mapped: impl Fn(&CheckedMapping) -> Result<bool, PagerError>,
    ) -> Result<(), PagerError> {
        let page = self.page(index)?;
        for _ in 0..TRIES {
            let progress = match allow {
                Allow::Read => self.userfault.map_existing_protected(page.range()),
                Allow::Write => self.userfault.map_existing(page.range()),
            };
            match progress.obstacle {
                None => return Ok(()),
                Some(Obstacle::Mapped) if is_mapped(&page)? => return Ok(()),
                Some(Obstacle::Mapped | Obstacle::Changing) => {}
                Some(Obstacle::Hole) => return Err(PagerError::Vanished { index }),
                Some(Obstacle::NotRegistered) => {
                    return Err(PagerError::kernel("map a page")(std::io::ErrorKind::NotFound.into()));
                }
                Some(Obstacle::Other(error)) => return Err(PagerError::kernel("map a page")(error)),
            }
        }
        Err(PagerError::KeepsChanging { index, tries: TRIES })
    }

    /// The guest may write a page that it could only read; wakes its waiters.
    ///
    /// # Errors
    /// [`PagerError::Kernel`].
    pub fn allow_write(&self, index: u64) -> Result<(), PagerError> {
        self.set_protection(index, false)
    }

    /// The guest can only read a page that it could write: when this has returned, nobody writes it any more.
    ///
    /// # Errors
    /// [`PagerError::Kernel`].
    pub fn protect(&self, index: u64) -> Result<(), PagerError> {
        self.set_protection(index, true)
    }

    fn set_protection(&self, index: u64, protect: bool) -> Result<(), PagerError> {
        let page = self.page(index)?;
        for _ in 0..TRIES {
            match self.userfault.set_protection(page.range(), protect) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                done => return done.map_err(PagerError::kernel("change the protection of a page")),
            }
        }
        Err(PagerError::KeepsChanging { index, tries: TRIES })
    }

    /// The guest cannot touch the page any more: when this has returned, nobody reads or writes it. Its bytes stay in the memfd.
    ///
    /// # Errors
    /// [`PagerError::Kernel`].
    pub fn unmap(&self, index: u64) -> Result<(), PagerError> {
        self.page(index)?.drop_translations().map_err(PagerError::kernel("drop the translation of a page"))
    }

    /// [`Self::unmap`] for every page.
    ///
    /// # Errors
    /// [`PagerError::Kernel`].
    pub fn unmap_all(&self) -> Result<(), PagerError> {
        drop_translations(&self.mappings).map_err(PagerError::kernel("drop the translations of all pages"))
    }

    /// The bytes of a page that is not mapped are of no use any more: its memory is given back.
    ///
    /// # Errors
    /// [`PagerError::Kernel`].
    pub fn free(&self, index: u64) -> Result<(), PagerError> {
        self.check(index)?;
        let start = self.space.file_base() + index * PAGE_SIZE;
        punch_hole(&self.memfd, start..start + PAGE_SIZE).map_err(PagerError::kernel("free a page"))
    }

    /// The page is lost: whoever touches it, and whoever waits for it, gets a memory error (`SIGBUS`, or `EFAULT` inside system calls).
    ///
    /// # Errors
    /// [`PagerError::Kernel`].
    pub fn poison(&self, index: u64) -> Result<(), PagerError> {
        let page = self.page(index)?;
        for _ in 0..TRIES {
            match self.userfault.poison(page.range()).obstacle {
                // Again, or by the thread that waits for it and was not woken yet.
                None => return self.wake_all(&page),
                Some(Obstacle::Mapped) => {
                    // Protection outlives the translation, and is in poison's way.
                    self.unmap(index)?;
                    self.allow_write(index)?;
                }
                Some(Obstacle::Changing) => {}
                Some(Obstacle::Other(error)) => return Err(PagerError::kernel("poison a page")(error)),
                Some(Obstacle::Hole | Obstacle::NotRegistered) => {
                    return Err(PagerError::kernel("poison a page")(std::io::ErrorKind::NotFound.into()));
                }
            }
        }
        Err(PagerError::KeepsChanging { index, tries: TRIES })
    }

    fn wake_all(&self, page: &CheckedMapping) -> Result<(), PagerError> {
        self.userfault.wake(page.range()).map_err(PagerError::kernel("wake who waits for a page"))
    }

    const fn check(&self, index: u64) -> Result<(), PagerError> {
        let pages = self.space.pages();
        if index < pages {
            Ok(())
        } else {
            Err(PagerError::Outside { first: index, end: index.saturating_add(1), pages })
        }
    }

    fn page(&self, index: u64) -> Result<CheckedMapping, PagerError> {
        self.check(index)?;
        let (region, bytes): (usize, Range<usize>) = self.space.within_region(&(index..index + 1));
        Ok(self.mappings[region].part(bytes))
    }
}

impl AsFd for CoherentMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.userfault.as_fd()
    }
}
