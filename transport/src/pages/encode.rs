//! Pages to frames: the source's half, and the hot path of a move.
//!
//! One copy per page: out of the live guest into the batch. A retransmission must carry the same bytes as the first
//! transmission, so that copy is what travels; raw batches are handed to the transport without another. A page that is sent again
//! may be kept for the next time, which is one copy more; it is made only where the link is slow enough for that not to matter.

use super::{
    chooser::{Codec, CodecChooser, WireCost},
    delta::{DELTA_BYTES_MIN, DeltaBuffer},
    format::{
        ANNOUNCED_PAGES_MAX, BATCH_BYTES_MAX, Content, HEADER_BYTES, Header, Kind, PAYLOAD_PAGES_MAX, RUN_BYTES,
        RUNS_MAX, Run,
    },
    hash::{PAGE_BYTES, PageHasher, is_zero},
    pool::BufferPool,
    versions::{Sent, SentVersions},
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

    /// Forgets what the target holds in page `index`: it will be sent whatever it is.
    pub fn forget(&self, index: u64) {
        if let Some(slot) = usize::try_from(index).ok().and_then(|index| self.hashes.get(index)) {
            slot.store(FORGOTTEN, Ordering::Relaxed);
        }
    }

    /// Notes that the target is about to hold content `hash` in page `index`; what it holds until then, [`FORGOTTEN`] when that is
    /// not known.
    fn replace(&self, index: u64, hash: u64) -> u64 {
        let slot = usize::try_from(index).ok().and_then(|index| self.hashes.get(index));
        slot.map_or(FORGOTTEN, |slot| {
            let before = slot.load(Ordering::Relaxed);
            if before != hash {
                slot.store(hash, Ordering::Relaxed);
            }
            before
        })
    }
}

/// In place of a hash: it is not known what the target holds.
const FORGOTTEN: u64 = 0;

/// What became of a page given to the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFate {
    /// All zero.
    Zero,
    /// The target has it.
    Unchanged,
    /// Part of the batch.
    Gathered,
    /// What changed since it was sent last is part of the batch.
    Changed,
}

/// In nanoseconds for each byte of a page. Where the link takes less for what the codec leaves of it, nothing is kept and nothing
/// compared. Comparing and keeping takes 0.3, the first time 0.9 (test `what_a_page_costs_with_deltas_and_without`), of a processor
/// that may have other things to do.
const LINK_NS_PER_BYTE_MIN: f64 = 2.0;
/// A delta is worth it when it takes at most this part of what the codec would leave of the page.
const DELTA_SHARE: f64 = 0.5;

/// Builds the frames of one flow.
pub struct BatchEncoder {
    hasher: PageHasher,
    chooser: CodecChooser,
    sequence: u64,
    pool: BufferPool,
    /// The batch being gathered, and how much of it is filled.
    pages: Box<[u8]>,
    filled: usize,
    whole_pages: u64,
    changed_pages: u64,
    /// How much of what is filled are deltas.
    delta_bytes: usize,
    versions: SentVersions,
    /// Most bytes of a delta that is worth it, by what the last batch showed; 0 where none is.
    delta_bytes_max: usize,
    delta: DeltaBuffer,
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
            whole_pages: 0,
            changed_pages: 0,
            delta_bytes: 0,
            versions: SentVersions::default(),
            delta_bytes_max: 0,
            delta: [0; size_of::<DeltaBuffer>()],
            runs: Vec::with_capacity(RUNS_MAX),
            hashes: Vec::with_capacity(PAYLOAD_PAGES_MAX * 8),
            compressed: Vec::new(),
            compressor: None,
            counts: PageCounts::default(),
        }
    }

    /// Sends deltas of pages that are sent again, where that pays, and keeps earlier versions for that in `budget_bytes` of memory at
    /// most. The target must have said that it takes them.
    #[must_use]
    pub fn with_deltas(self, budget_bytes: u64) -> Self {
        Self { versions: SentVersions::within(budget_bytes), ..self }
    }

    /// No more deltas: gives their memory back.
    pub fn forget_versions(&mut self) {
        self.versions = SentVersions::default();
    }

    /// Takes page `index`: `read` copies its 4096 bytes out of the guest.
    ///
    /// The caller empties a full batch ([`Self::is_full`]) with [`Self::finish`] before the next page.
    pub fn push(&mut self, index: u64, known: &KnownPages, read: impl FnOnce(&mut [u8])) -> PageFate {
        debug_assert!(!self.is_full(), "a full batch must be finished first");
        let (page, _) = self.pages[self.filled..].split_first_chunk_mut().expect("a batch that is not full has room");
        read(page);
        if is_zero(page) {
            self.push_zero(index, known);
            return PageFate::Zero;
        }
        let hash = self.hasher.hash(page);
        let before = known.replace(index, hash);
        if before == hash {
            self.counts.unchanged += 1;
            return PageFate::Unchanged;
        }
        self.hashes.extend_from_slice(&hash.to_le_bytes());
        // Pages that the target has in some version: they are written again and again, and have a base.
        let is_sent_again = before != FORGOTTEN && before != self.hasher.zero_page();
        if is_sent_again && self.delta_bytes_max > 0 {
            let sent = Sent { index, bytes: page, hash, before };
            if let Some(length) = self.versions.replace(sent, self.delta_bytes_max, &mut self.delta) {
                page[..length].copy_from_slice(&self.delta[..length]);
                self.filled += length;
                self.delta_bytes += length;
                self.changed_pages += 1;
                self.extend_runs(index, Content::Changed);
                return PageFate::Changed;
            }
        }
        self.filled += PAGE_BYTES;
        self.whole_pages += 1;
        self.extend_runs(index, Content::Payload);
        PageFate::Gathered
    }

    /// Takes a page that is known to be all zero without reading it.
    pub fn push_zero(&mut self, index: u64, known: &KnownPages) {
        self.counts.zero += 1;
        if known.replace(index, self.hasher.zero_page()) != self.hasher.zero_page() {
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
        self.filled + PAGE_BYTES > BATCH_BYTES_MAX
            || self.hashes.len() >= PAYLOAD_PAGES_MAX * 8
            || self.runs.len() >= RUNS_MAX
    }

    /// The batch as a frame, in pieces to be written in order; nothing when it holds no page.
    pub fn finish(&mut self, wire: &WireCost) -> Option<[Bytes; 2]> {
        if self.runs.is_empty() {
            return None;
        }
        let (codec, payload) = self.encode(wire);
        let pages = std::mem::take(&mut self.whole_pages);
        match codec {
            Codec::Raw => self.counts.raw += pages,
            Codec::Lz4 => self.counts.lz4 += pages,
            Codec::Zstd => self.counts.zstd += pages,
        }
        self.counts.delta += std::mem::take(&mut self.changed_pages);
        self.delta_bytes_max = self.worthwhile_delta_bytes(wire.ns_per_byte());
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

    /// A mark frame that carries `value` to the layer above: a round is over. Any batch must have been finished.
    pub fn mark(&mut self, value: u64) -> Bytes {
        debug_assert!(self.runs.is_empty(), "a mark must not overtake pages");
        self.versions.round_over();
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

    /// Most bytes that a delta may take to be worth it, when a byte costs `wire_ns` nanoseconds on the wire; 0 when none is.
    fn worthwhile_delta_bytes(&self, wire_ns: f64) -> usize {
        let (_, left) = self.chooser.usual(wire_ns);
        if left * wire_ns < LINK_NS_PER_BYTE_MIN {
            return 0;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a page")]
        let bytes = (left.clamp(0.0, 1.0) * DELTA_SHARE * PAGE_BYTES as f64) as usize;
        if bytes < DELTA_BYTES_MIN { 0 } else { bytes }
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
        let (raw_bytes, delta_bytes) = (std::mem::take(&mut self.filled), std::mem::take(&mut self.delta_bytes));
        // What deltas compress to says nothing of pages.
        let mostly_deltas = delta_bytes > raw_bytes / 2;
        let wire_ns = wire.ns_per_byte();
        let codec = if mostly_deltas { self.chooser.usual(wire_ns).0 } else { self.chooser.next(wire_ns) };
        let pages = &self.pages[..raw_bytes];
        // Asking for the time is a system call: not where nothing takes any.
        let timed = |compress: &mut dyn FnMut() -> Option<usize>| {
            let start = processor_time();
            (compress(), processor_time().saturating_sub(start))
        };
        let (compressed_bytes, nanoseconds) = match codec {
            Codec::Raw => (None, 0),
            Codec::Lz4 => timed(&mut || compress_lz4(pages, &mut self.compressed)),
            Codec::Zstd => timed(&mut || compress_zstd(&mut self.compressor, pages, &mut self.compressed)),
        };
        if !mostly_deltas {
            self.chooser.record_batch(codec, raw_bytes, compressed_bytes.unwrap_or(raw_bytes), nanoseconds);
        }
        match compressed_bytes {
            Some(bytes) if bytes < raw_bytes => (codec, Bytes::copy_from_slice(&self.compressed[..bytes])),
            // A few bytes must not keep a whole buffer until they are acknowledged.
            _ if (delta_bytes > 0 && raw_bytes < BATCH_BYTES_MAX / 2) || raw_bytes == PAGE_BYTES => {
                (Codec::Raw, Bytes::copy_from_slice(&self.pages[..raw_bytes]))
            }
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
