//! What can go wrong.

use std::io;

/// Why faults cannot be served, or a page not be installed.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// Neither the system call nor the device is open to this process.
    #[error(
        "userfaultfd is not permitted to this process: let it open /dev/userfaultfd, set the sysctl \
         vm.unprivileged_userfaultfd to 1, or give it CAP_SYS_PTRACE"
    )]
    NotPermitted(#[source] io::Error),
    /// The kernel is too old, or was built without something.
    #[error("This kernel's userfaultfd lacks {features}: Linux 5.14 or newer on x86-64 is needed")]
    Lacks {
        /// The kernel's names for it.
        features: String,
    },
    /// The memory is not laid out as this crate can serve it.
    #[error("Memory region at page {first} {problem}")]
    Region {
        /// Index of its first page.
        first: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Neither 4 KiB nor 2 MiB pages.
    #[error("Memory of {bytes}-byte pages cannot be served, only of 4 KiB and of 2 MiB pages")]
    PageSize {
        /// Bytes in a page of the memfd.
        bytes: usize,
    },
    /// Missing pages of another machine.
    #[error("A set of {given} pages does not fit memory of {pages} pages")]
    WrongSize {
        /// Pages of the set.
        given: u64,
        /// Pages of the memory.
        pages: u64,
    },
    /// Pages beyond the memory.
    #[error("Pages {first}..{end} are outside a memory of {pages} pages")]
    Outside {
        /// First page named.
        first: u64,
        /// One past the last.
        end: u64,
        /// Pages of the memory.
        pages: u64,
    },
    /// Bytes that end within a page.
    #[error("{bytes} bytes for page {first} are not whole pages")]
    NotPages {
        /// First page they are for.
        first: u64,
        /// How many there are.
        bytes: usize,
    },
    /// A page that the guest may touch has no memory any more: somebody else punched a hole into the memfd.
    #[error("The bytes of page {index} are gone from the memfd")]
    Vanished {
        /// Which page.
        index: u64,
    },
    /// The kernel asks to try again without end.
    #[error("Page {index} could not be mapped in {tries} tries: the process's mappings keep changing")]
    KeepsChanging {
        /// Which page.
        index: u64,
        /// How often it was tried.
        tries: u32,
    },
    /// [`crate::Pager::abandon`] was called.
    #[error("The missing pages were given up")]
    Abandoned,
    /// The kernel refused.
    #[error("Could not {action}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl PagerError {
    pub(crate) fn kernel(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { action, source }
    }
}

/// Keeps the first error of several things that must all be tried.
pub(crate) fn keep_first(kept: &mut Result<(), PagerError>, next: Result<(), PagerError>) {
    if kept.is_ok() {
        *kept = next;
    }
}
