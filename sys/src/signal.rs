//! The signal that makes a thread leave a blocking system call such as `KVM_RUN`.

use std::ffi::c_int;
use std::io;

/// A thread of this process that can be made to leave a blocking system call.
#[derive(Debug, Clone, Copy)]
pub struct KickTarget {
    thread: rustix::thread::Pid,
}

extern "C" fn nothing(_signal: c_int) {}

/// The real-time signal used: not one the C library or common runtimes take.
fn kick_signal() -> c_int {
    libc::SIGRTMIN() + 4
}

/// Installs the handler, once per process before the first [`KickTarget::kick`]. Without `SA_RESTART`: the point is that the system
/// call returns `EINTR`.
///
/// # Errors
/// What `sigaction` says.
pub fn install_kick_handler() -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: the handler does nothing, which is async-signal-safe; the old action is not asked for.
    let result = unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl KickTarget {
    /// The calling thread.
    #[must_use]
    pub fn current() -> Self {
        Self { thread: rustix::thread::gettid() }
    }

    /// Its number, as this process's PID namespace names it.
    #[must_use]
    pub fn thread(self) -> u32 {
        self.thread.as_raw_nonzero().get().unsigned_abs()
    }

    /// Interrupts the thread's system call, if it is in one. A thread that has ended is not an error.
    pub fn kick(self) {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        let thread = self.thread.as_raw_nonzero().get();
        // SAFETY: the signal has a handler that does nothing, so whatever thread receives it is not harmed; `tgkill`
        // with our own process id cannot reach another process.
        let _ = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, kick_signal()) };
    }
}
