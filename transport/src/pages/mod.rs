//! The page codec: guest pages to frames and back.
//!
//! Pages are gathered into batches of up to [`BATCH_PAGES_MAX`]. A page is dropped when its content hash says the target
//! has it, noted when it is all zero, and otherwise part of the batch's payload, which travels raw or compressed as a
//! whole; where little of it changed since it was sent last, only by what changed. Decoding writes straight into guest memory.
//!
//! The one invariant: the target's memory starts all zero, and frames of one flow are applied in the order they were
//! made. So "what the target has" is known at the source without asking.

mod chooser;
mod decode;
mod delta;
mod encode;
mod format;
mod hash;
mod pool;
mod versions;

#[cfg(test)]
mod tests;

pub use chooser::{Codec, CodecChooser, WireCost};
pub use decode::{FrameDecoder, FrameError, PageSink};
pub use encode::{BatchEncoder, KnownPages, PageFate};
pub use format::{BATCH_BYTES_MAX, BATCH_PAGES_MAX};
pub use hash::PageHasher;
