//! virtio devices on the MMIO transport, modern (version 2) only. No maintained crate has the transport, so it is here.
//!
//! ```text
//!   guest ── MMIO registers ──► Transport (status, features, queue set-up)
//!   guest ── notify ─ ioeventfd ─► worker thread ─ one request at a time ─► Backend ── used ring, irqfd ──► guest
//! ```
//!
//! A worker holds the queue's lock for one request only, so quiescing waits for at most one; what the guest has queued
//! beyond it stays in the queue, in guest memory, and travels with the machine.

mod block;
mod entropy;
mod transport;
mod worker;

pub(crate) use block::Block;
pub(crate) use entropy::Entropy;
pub(crate) use transport::Transport;

use crate::MachineError;
use crate::memory::DeviceMemory;
use virtio_queue::DescriptorChain;

/// Size of each device's queue.
const QUEUE_SIZE: u16 = 256;
/// Bytes of registers of one device.
pub(crate) const MMIO_BYTES: u64 = 0x1000;
/// The notify register, which the guest writes to start the worker.
pub(crate) const NOTIFY_OFFSET: u64 = 0x50;

/// A request the guest put together wrongly: the device stops and asks to be reset.
#[derive(Debug, thiserror::Error)]
#[error("Malformed request: {0}")]
pub(crate) struct BadRequest(pub(crate) String);

/// What a device does behind the transport. All have exactly one queue.
pub(crate) trait Backend: Send + Sync {
    /// Unique within the machine.
    fn name(&self) -> String;

    /// The virtio device id.
    fn device_id(&self) -> u32;

    /// Device-specific feature bits; the transport adds its own.
    fn features(&self) -> u64;

    /// The configuration space, read only.
    fn config(&self) -> &[u8];

    /// Performs one request; how many bytes were written to the guest.
    fn perform(&self, memory: &DeviceMemory, chain: DescriptorChain<&DeviceMemory>) -> Result<u32, BadRequest>;

    /// Makes what the guest was told is done visible outside this host.
    fn settle(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Forgets what this host may have cached of the outside before the machine came here.
    fn forget_cache(&self) {}
}
