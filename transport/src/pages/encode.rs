//! Pages to frames: the source's half, and the hot path of a move.
//!
//! One copy per page: out of the live guest into the batch. A retransmission must carry the same bytes as the first
//! transmission, so that copy is what travels; raw batches are handed to the transport without another.

use super::{
    chooser::{Codec, CodecChooser, WireCost},
    format::{
        ANNOUNCED_PAGES_MAX, BATCH_BYTES_MAX, BATCH_PAGES_MAX, Content, HEADER_BYTES, Header, Kind, RUN_BYTES,
        RUNS_MAX, Run,
    },
    hash::{PAGE_BYTES, PageHasher, is_zero},
    pool::BufferPool,
};
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicU64, Ordering};
use vmotion_model::PageCounts;

/// What the target holds, as one content hash a page: 8 bytes for each 4 KiB.
///
/// Shared by the flows of a move; each page belongs to one flow, so relaxed atomics are only there to share the table.
#[derive(Debug)]
pub struct KnownPages {
    hashes: Box<[AtomicU64]>,
}

impl KnownPages {
    /// For `total_pages` pages of a target that is all zero.
    #[must_use]
    pub fn all_zero(total_pages: u64, hasher: &PageHasher) -> Self {
        Self { hashes: (0..total_pages).map(|_| AtomicU64::new(hasher.zero_page())).collect() }
    }

    /// Notes that the target is about to hold content `hash` in page `index`; true when it held that before.
    /// Forgets what the target holds in page `index`: it will be sent whatever it is.
    pub fn forget(&self, index: u64) {
        if let Some(slot) = usize::try_from(index).ok().and_then(|index| self.hashes.get(index)) {
            slot.store(0, Ordering::Relaxed);
        }
    }

    fn replace(&self, index: u64, hash: u64) -> bool {
        let slot = usize::try_from(index).ok().and_then(|index| self.hashes.get(index));
        slot.is_some_and(|slot| {
            let same = slot.load(Ordering::Relaxed) == hash;
            if !same {
                slot.store(hash, Ordering::Relaxed);
            }
            same
        })
    }
}

/// What became of a page given to the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFate {
    /// All zero.
    Zero,
    /// The target has it.
    Unchanged,
    /// Part of the batch.
    Gathered,
}

/// Builds the frames of one flow.
pub struct BatchEncoder {
    hasher: PageHasher,
    chooser: CodecChooser,
    sequence: u64,
    pool: BufferPool,
    /// The batch being gathered, and how much of it is filled.
    pages: Box<[u8]>,
    filled: usize,
    runs: Vec<Run>,
    hashes: Vec<u8>,
    compressed: Vec<u8>,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    counts: PageCounts,
}

impl BatchEncoder {
    /// An encoder for one flow of the move that `hasher` belongs to.
    #[must_use]
    pub fn new(hasher: PageHasher, forced: Option<Codec>) -> Self {
        let pool = BufferPool::default();
        Self {
            hasher,
            chooser: CodecChooser::new(forced),
            sequence: 0,
            pages: pool.take(),
            pool,
            filled: 0,
            runs: Vec::with_capacity(RUNS_MAX),
            hashes: Vec::with_capacity(BATCH_PAGES_MAX * 8),
            compressed: Vec::new(),
            compressor: None,
            counts: PageCounts::default(),
        }
    }

    /// Takes page `index`: `read` copies its 4096 bytes out of the guest.
    ///
    /// The caller empties a full batch ([`Self::is_full`]) with [`Self::finish`] before the next page.
    pub fn push(&mut self, index: u64, known: &KnownPages, read: impl FnOnce(&mut [u8])) -> PageFate {
        debug_assert!(!self.is_full(), "a full batch must be finished first");
        let page = &mut self.pages[self.filled..self.filled + PAGE_BYTES];
        read(page);
        if is_zero(page) {
            self.push_zero(index, known);
            return PageFate::Zero;
        }
        let hash = self.hasher.hash(page);
        if known.replace(index, hash) {
            self.counts.unchanged += 1;
            return PageFate::Unchanged;
        }
        self.filled += PAGE_BYTES;
        self.hashes.extend_from_slice(&hash.to_le_bytes());
        self.extend_runs(index, Content::Payload);
        PageFate::Gathered
    }

    /// Takes a page that is known to be all zero without reading it.
    pub fn push_zero(&mut self, index: u64, known: &KnownPages) {
        self.counts.zero += 1;
        if !known.replace(index, self.hasher.zero_page()) {
            self.extend_runs(index, Content::Zero);
        }
    }

    /// Says that all `pages` pages from `first` on, at most 512, are about to be pushed, so that the target can make room at
    /// once. The batch must not be full.
    pub fn announce(&mut self, first: u64, pages: u64) {
        debug_assert!(!self.is_full(), "a full batch must be finished first");
        if let Some(pages) = u32::try_from(pages).ok().filter(|pages| (1..=ANNOUNCED_PAGES_MAX).contains(pages)) {
            self.runs.push(Run { first, pages, content: Content::Announced });
        }
    }

    /// Says that the `pages` pages from `first` on will come only after the guest was handed over. Like a pushed page this may fill
    /// the batch.
    pub fn push_missing(&mut self, first: u64, pages: u32) {
        debug_assert!(!self.is_full(), "a full batch must be finished first");
        self.runs.push(Run { first, pages, content: Content::Missing });
    }

    fn extend_runs(&mut self, index: u64, content: Content) {
        match self.runs.last_mut() {
            Some(run)
                if run.content == content && run.first + u64::from(run.pages) == index && run.pages < u32::MAX =>
            {
                run.pages += 1;
            }
            _ => self.runs.push(Run { first: index, pages: 1, content }),
        }
    }

    /// Must the batch be finished before another page is pushed?
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.filled >= BATCH_BYTES_MAX || self.runs.len() >= RUNS_MAX
    }

    /// The batch as a frame, in pieces to be written in order; nothing when it holds no page.
    pub fn finish(&mut self, wire: &WireCost) -> Option<[Bytes; 2]> {
        if self.runs.is_empty() {
            return None;
        }
        let raw_bytes = self.filled;
        let (codec, payload) = self.encode(wire);
        let pages = (raw_bytes / PAGE_BYTES) as u64;
        match codec {
            Codec::Raw => self.counts.raw += pages,
            Codec::Lz4 => self.counts.lz4 += pages,
            Codec::Zstd => self.counts.zstd += pages,
        }
        let header = Header {
            kind: Kind::Data,
            codec,
            runs: u16::try_from(self.runs.len()).unwrap_or(u16::MAX),
            payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            sequence: self.next_sequence(),
            digest: self.hasher.hash(&self.hashes),
        };
        let mut head = BytesMut::with_capacity(HEADER_BYTES + self.runs.len() * RUN_BYTES);
        head.extend_from_slice(&header.to_bytes());
        for run in self.runs.drain(..) {
            head.extend_from_slice(&run.to_bytes());
        }
        self.hashes.clear();
        Some([head.freeze(), payload])
    }

    /// A mark frame that carries `value` to the layer above. Any batch must have been finished.
    pub fn mark(&mut self, value: u64) -> Bytes {
        debug_assert!(self.runs.is_empty(), "a mark must not overtake pages");
        let header = Header {
            kind: Kind::Mark,
            codec: Codec::Raw,
            runs: 0,
            payload_bytes: 0,
            sequence: self.next_sequence(),
            digest: value,
        };
        Bytes::copy_from_slice(&header.to_bytes())
    }

    /// Pages by kind since the last call.
    pub fn take_counts(&mut self) -> PageCounts {
        std::mem::take(&mut self.counts)
    }

    const fn next_sequence(&mut self) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        sequence
    }

    fn encode(&mut self, wire: &WireCost) -> (Codec, Bytes) {
        if self.filled == 0 {
            return (Codec::Raw, Bytes::new());
        }
        let codec = self.chooser.next(wire.ns_per_byte());
        let raw_bytes = std::mem::take(&mut self.filled);
        let pages = &self.pages[..raw_bytes];
        let start = processor_time();
        let compressed_bytes = match codec {
            Codec::Raw => None,
            Codec::Lz4 => compress_lz4(pages, &mut self.compressed),
            Codec::Zstd => compress_zstd(&mut self.compressor, pages, &mut self.compressed),
        };
        let nanoseconds = processor_time().saturating_sub(start);
        self.chooser.record_batch(codec, raw_bytes, compressed_bytes.unwrap_or(raw_bytes), nanoseconds);
        match compressed_bytes {
            Some(bytes) if bytes < raw_bytes => (codec, Bytes::copy_from_slice(&self.compressed[..bytes])),
            _ => {
                let batch = std::mem::replace(&mut self.pages, self.pool.take());
                (Codec::Raw, self.pool.freeze(batch, raw_bytes))
            }
        }
    }
}

/// Of this thread, in nanoseconds.
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn compress_lz4(pages: &[u8], compressed: &mut Vec<u8>) -> Option<usize> {
    compressed.resize(lz4_flex::block::get_maximum_output_size(BATCH_BYTES_MAX), 0);
    lz4_flex::block::compress_into(pages, compressed).ok()
}

fn compress_zstd(
    compressor: &mut Option<zstd::bulk::Compressor<'static>>,
    pages: &[u8],
    compressed: &mut Vec<u8>,
) -> Option<usize> {
    compressed.resize(zstd::zstd_safe::compress_bound(BATCH_BYTES_MAX), 0);
    if compressor.is_none() {
        *compressor = zstd::bulk::Compressor::new(1).ok();
    }
    // A slice: a vector would be cut to what was written, and filled up again each time.
    compressor.as_mut()?.compress_to_buffer(pages, &mut compressed[..]).ok()
}
