//! What does the kernel offer? Thin typed ioctls that crates lack; the unsafe lives here.
//!
//! Every function is one system call with types around it: no policy, no retries, no state beyond what the kernel keeps.
//! Ioctl numbers are built from their parts and pinned by const assertions against the values the kernel headers give.

pub mod kvm;
pub mod memory;
pub mod signal;
pub mod tsc;
pub mod userfaultfd;
