//! Frames to pages: the target's half. The stream is hostile until proven otherwise.
//!
//! Bytes are fed as they arrive, in pieces of any size. Raw pages are copied straight from the packet into guest memory;
//! compressed payloads are gathered (bounded) and decompressed into it, directly when the batch is one run. A page that only
//! changed is made of what is there and its delta, in place: if something else was there, it is the wrong page, and found. Every
//! page's hash is taken from guest memory afterwards and must give the batch's digest.

use super::{
    chooser::Codec,
    delta::{self, DELTA_BYTES_MIN},
    format::{BATCH_BYTES_MAX, Content, HEADER_BYTES, Header, Kind, PAYLOAD_PAGES_MAX, RUN_BYTES, Run},
    hash::{PAGE_BYTES, PageHasher},
};

/// Where decoded pages go: the memory of a machine that does not run yet.
pub trait PageSink {
    /// RAM in pages; a frame that names a page beyond it is refused.
    fn total_pages(&self) -> u64;
    /// Lends the bytes of `pages` consecutive pages from index `first`. The range was checked, except that it may cross
    /// from one region to the next, as indices run on.
    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8]));
    /// Pages from `first` on are about to come, in pieces: a good time to map them all at once. A source that is about to
    /// send all of 2 MiB says so in one call, before any of them.
    fn expect_pages(&self, first: u64, pages: u64) {
        let _ = (first, pages);
    }
    /// Makes pages all zero; cheaper than writing zeros where nothing was written yet.
    fn zero_pages(&self, first: u64, pages: u64);
    /// Pages from `first` on will come only when the guest runs here already; what is there now must not be seen.
    fn missing_pages(&self, first: u64, pages: u64) {
        let _ = (first, pages);
    }
    /// Does somebody see pages as soon as they are placed? Then they are verified before, and come by [`Self::place_verified`].
    fn is_live(&self) -> bool {
        false
    }
    /// `bytes` are what the pages from `first` on hold, verified.
    fn place_verified(&self, first: u64, bytes: &[u8]) {
        let _ = (first, bytes);
    }
}

/// Why a frame was refused. Any of these ends the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Unknown frame kind.
    #[error("Frame kind {0} is unknown")]
    Kind(u8),
    /// Unknown codec.
    #[error("Page codec {0} is unknown")]
    Codec(u8),
    /// Too many runs, or none.
    #[error("Frame has {0} runs, which its kind does not allow")]
    Runs(usize),
    /// Payload longer than any batch.
    #[error("Frame announces {0} payload bytes, more than a batch can have")]
    PayloadLength(usize),
    /// Pages beyond the machine's memory.
    #[error("Frame names {pages} pages from index {first}, but the machine has {total_pages}")]
    OutOfRange {
        /// First page index.
        first: u64,
        /// Pages named.
        pages: u64,
        /// Pages there are.
        total_pages: u64,
    },
    /// Too many pages announced by one run.
    #[error("Frame announces {pages} pages in one run, more than a huge page has")]
    Announced {
        /// Pages announced.
        pages: u32,
    },
    /// The runs name more pages than a batch has, or the payload does not fill them.
    #[error("Frame payload of {payload} bytes does not fit its {pages} pages")]
    Mismatch {
        /// Pages in data runs.
        pages: u64,
        /// Payload bytes announced or decompressed.
        payload: usize,
    },
    /// Deltas that are none, or more or fewer than the runs say.
    #[error("Frame {sequence} has page deltas that do not fit its runs")]
    Delta {
        /// Position in the flow.
        sequence: u64,
    },
    /// Somebody sees pages there as soon as they are placed, and what they are made of may have changed.
    #[error("Frame {sequence} has page deltas for memory that is in use")]
    DeltaOfLive {
        /// Position in the flow.
        sequence: u64,
    },
    /// The compressed payload is damaged.
    #[error("Frame payload does not decompress")]
    Damaged,
    /// What arrived is not what was sent.
    #[error("Pages of frame {sequence} do not have the digest they were sent with")]
    Digest {
        /// Position in the flow.
        sequence: u64,
    },
    /// A frame was lost, repeated or reordered.
    #[error("Frame {found} arrived where {expected} was due")]
    Sequence {
        /// The next in order.
        expected: u64,
        /// What came.
        found: u64,
    },
}

#[derive(Debug)]
enum Stage {
    Header,
    Runs { header: Header },
    Payload { header: Header, received: usize },
}

/// Decodes the frames of one flow.
pub struct FrameDecoder {
    hasher: PageHasher,
    stage: Stage,
    /// Header or run bytes, until they are complete.
    partial: Vec<u8>,
    runs: Vec<Run>,
    compressed: Vec<u8>,
    scratch: Vec<u8>,
    hashes: Vec<u8>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    sequence: u64,
    pages: u64,
    /// The frame at hand is for memory that is in use.
    live: bool,
    /// The frame at hand has deltas.
    deltas: bool,
    /// Its payload, decompressed: all the room that any needs, once there were deltas.
    mixed: Vec<u8>,
}

impl FrameDecoder {
    /// A decoder for one flow of the move that `hasher` belongs to.
    #[must_use]
    pub const fn new(hasher: PageHasher) -> Self {
        Self {
            hasher,
            stage: Stage::Header,
            partial: Vec::new(),
            runs: Vec::new(),
            compressed: Vec::new(),
            scratch: Vec::new(),
            hashes: Vec::new(),
            decompressor: None,
            sequence: 0,
            pages: 0,
            live: false,
            deltas: false,
            mixed: Vec::new(),
        }
    }

    /// Pages placed so far, zero pages included.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Is the stream between two frames? Anything else at its end is a truncation.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.stage, Stage::Header) && self.partial.is_empty()
    }

    /// Takes the next bytes of the flow; `on_mark` hears the value of every mark, after all pages before it were placed.
    ///
    /// # Errors
    /// [`FrameError`]; the decoder must not be fed again after one.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        sink: &dyn PageSink,
        on_mark: &mut dyn FnMut(u64),
    ) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            match self.stage {
                Stage::Header => {
                    let Some(header) = self.gather::<HEADER_BYTES>(&mut bytes, HEADER_BYTES) else { return Ok(()) };
                    self.start_frame(Header::parse(&header)?, on_mark)?;
                }
                Stage::Runs { header } => {
                    let Some(run) = self.gather::<RUN_BYTES>(&mut bytes, RUN_BYTES) else { return Ok(()) };
                    self.runs.push(Run::parse(&run, sink.total_pages())?);
                    if self.runs.len() == usize::from(header.runs) {
                        self.start_payload(header, sink)?;
                    }
                }
                Stage::Payload { header, received } => {
                    let missing = header.payload_bytes as usize - received;
                    let (now, rest) = bytes.split_at(missing.min(bytes.len()));
                    bytes = rest;
                    self.take_payload(header, received, now, sink)?;
                }
            }
        }
        Ok(())
    }

    /// Collects `N` bytes over as many calls as it takes.
    fn gather<const N: usize>(&mut self, bytes: &mut &[u8], wanted: usize) -> Option<[u8; N]> {
        let (now, rest) = bytes.split_at((wanted - self.partial.len()).min(bytes.len()));
        self.partial.extend_from_slice(now);
        *bytes = rest;
        let complete = <[u8; N]>::try_from(self.partial.as_slice()).ok()?;
        self.partial.clear();
        Some(complete)
    }

    fn start_frame(&mut self, header: Header, on_mark: &mut dyn FnMut(u64)) -> Result<(), FrameError> {
        if header.sequence != self.sequence {
            return Err(FrameError::Sequence { expected: self.sequence, found: header.sequence });
        }
        self.sequence += 1;
        match header.kind {
            Kind::Mark => on_mark(header.digest),
            Kind::Data => {
                self.runs.clear();
                self.stage = Stage::Runs { header };
            }
        }
        Ok(())
    }

    /// All runs are known: zero pages are done at once, the payload's length is checked before a byte of it is taken.
    fn start_payload(&mut self, header: Header, sink: &dyn PageSink) -> Result<(), FrameError> {
        let (mut data_pages, mut changed_pages): (u64, u64) = (0, 0);
        for run in &self.runs {
            let pages = u64::from(run.pages);
            match run.content {
                Content::Announced => {
                    sink.expect_pages(run.first, pages);
                    continue;
                }
                Content::Missing => {
                    sink.missing_pages(run.first, pages);
                    continue;
                }
                Content::Zero => sink.zero_pages(run.first, pages),
                Content::Payload => data_pages += pages,
                Content::Changed => changed_pages += pages,
            }
            self.pages += pages;
        }
        self.live = sink.is_live();
        self.deltas = changed_pages > 0;
        let payload = header.payload_bytes as usize;
        if !fits(header.codec, payload, data_pages, changed_pages) {
            return Err(FrameError::Mismatch { pages: data_pages + changed_pages, payload });
        }
        if self.deltas && self.live {
            return Err(FrameError::DeltaOfLive { sequence: header.sequence });
        }
        for run in self.runs.iter().filter(in_payload).filter(|_| !self.live) {
            sink.expect_pages(run.first, u64::from(run.pages));
        }
        self.compressed.clear();
        if payload == 0 {
            self.stage = Stage::Header;
            return self.check_digest(header, sink);
        }
        self.stage = Stage::Payload { header, received: 0 };
        Ok(())
    }

    fn take_payload(
        &mut self,
        header: Header,
        received: usize,
        now: &[u8],
        sink: &dyn PageSink,
    ) -> Result<(), FrameError> {
        if header.codec == Codec::Raw && !self.live && !self.deltas {
            place_bytes(&self.runs, received, now, sink);
        } else {
            self.compressed.extend_from_slice(now);
        }
        let received = received + now.len();
        if received < header.payload_bytes as usize {
            self.stage = Stage::Payload { header, received };
            return Ok(());
        }
        self.stage = Stage::Header;
        if self.live {
            return self.place_live(header, sink);
        }
        if self.deltas {
            self.place_mixed(header, sink)?;
        } else if header.codec != Codec::Raw {
            self.decompress(header.codec, sink)?;
        }
        self.check_digest(header, sink)
    }

    /// Verifies the payload, then places it.
    fn place_live(&mut self, header: Header, sink: &dyn PageSink) -> Result<(), FrameError> {
        let pages: usize = self.runs.iter().filter(in_payload).map(|run| run.pages as usize).sum();
        if header.codec == Codec::Raw {
            std::mem::swap(&mut self.compressed, &mut self.scratch);
        } else {
            self.scratch.resize(pages * PAGE_BYTES, 0);
            decompress_all(header.codec, &self.compressed, &mut self.decompressor, &mut self.scratch)?;
        }
        self.hashes.clear();
        for page in self.scratch.chunks(PAGE_BYTES) {
            self.hashes.extend_from_slice(&self.hasher.hash(page).to_le_bytes());
        }
        if self.hasher.hash(&self.hashes) != header.digest {
            return Err(FrameError::Digest { sequence: header.sequence });
        }
        let mut rest = self.scratch.as_slice();
        for run in self.runs.iter().filter(in_payload) {
            let (now, more) = rest.split_at(run.pages as usize * PAGE_BYTES);
            sink.place_verified(run.first, now);
            rest = more;
        }
        Ok(())
    }

    /// Places pages, and makes others of their deltas.
    fn place_mixed(&mut self, header: Header, sink: &dyn PageSink) -> Result<(), FrameError> {
        let payload = if header.codec == Codec::Raw {
            self.compressed.as_slice()
        } else {
            self.mixed.resize(BATCH_BYTES_MAX, 0);
            let length = decompress_into(header.codec, &self.compressed, &mut self.decompressor, &mut self.mixed)?;
            self.mixed.get(..length).ok_or(FrameError::Damaged)?
        };
        let mut rest = Some(payload);
        for run in self.runs.iter().filter(in_payload) {
            sink.with_pages(run.first, u64::from(run.pages), &mut |pages| {
                for page in pages.chunks_mut(PAGE_BYTES) {
                    rest = rest.and_then(|payload| match run.content {
                        Content::Changed => delta::apply(payload, page),
                        _ => payload.split_at_checked(PAGE_BYTES).map(|(bytes, rest)| {
                            page.copy_from_slice(bytes);
                            rest
                        }),
                    });
                }
            });
        }
        if rest.is_some_and(<[u8]>::is_empty) { Ok(()) } else { Err(FrameError::Delta { sequence: header.sequence }) }
    }

    fn decompress(&mut self, codec: Codec, sink: &dyn PageSink) -> Result<(), FrameError> {
        let Self { runs, compressed, scratch, decompressor, .. } = self;
        let mut into = |target: &mut [u8]| decompress_all(codec, compressed, decompressor, target);
        let mut data_runs = runs.iter().filter(in_payload);
        if let (Some(only), None) = (data_runs.next(), data_runs.next()) {
            let mut result = Ok(());
            sink.with_pages(only.first, u64::from(only.pages), &mut |target| result = into(target));
            return result;
        }
        let pages: usize = runs.iter().filter(in_payload).map(|run| run.pages as usize).sum();
        scratch.resize(pages * PAGE_BYTES, 0);
        into(scratch)?;
        place_bytes(runs, 0, scratch, sink);
        Ok(())
    }

    fn check_digest(&mut self, header: Header, sink: &dyn PageSink) -> Result<(), FrameError> {
        self.hashes.clear();
        for run in self.runs.iter().filter(in_payload) {
            let (hasher, hashes) = (&self.hasher, &mut self.hashes);
            sink.with_pages(run.first, u64::from(run.pages), &mut |bytes| {
                for page in bytes.chunks(PAGE_BYTES) {
                    hashes.extend_from_slice(&hasher.hash(page).to_le_bytes());
                }
            });
        }
        if self.hasher.hash(&self.hashes) != header.digest {
            return Err(FrameError::Digest { sequence: header.sequence });
        }
        Ok(())
    }
}

/// Can a payload of so many bytes be that of so many whole and changed pages?
fn fits(codec: Codec, payload: usize, whole_pages: u64, changed_pages: u64) -> bool {
    let pages = whole_pages.saturating_add(changed_pages);
    let bytes = |pages: u64, each: usize| usize::try_from(pages).unwrap_or(usize::MAX).saturating_mul(each);
    let whole_bytes = bytes(whole_pages, PAGE_BYTES);
    if pages > PAYLOAD_PAGES_MAX as u64 || whole_bytes > BATCH_BYTES_MAX {
        return false;
    }
    // Only a page's bytes have a known length; deltas are read as long as there are some.
    let least = whole_bytes + bytes(changed_pages, DELTA_BYTES_MIN);
    let most = if changed_pages > 0 { BATCH_BYTES_MAX } else { whole_bytes };
    match codec {
        Codec::Raw => (least..=most).contains(&payload),
        Codec::Lz4 | Codec::Zstd => (1..most).contains(&payload),
    }
}

/// Decompresses all of `compressed` into all of `target`.
fn decompress_all(
    codec: Codec,
    compressed: &[u8],
    decompressor: &mut Option<zstd::bulk::Decompressor<'static>>,
    target: &mut [u8],
) -> Result<(), FrameError> {
    let written = decompress_into(codec, compressed, decompressor, target)?;
    if written == target.len() { Ok(()) } else { Err(FrameError::Damaged) }
}

/// Decompresses all of `compressed` into the beginning of `target`; how many bytes that are.
fn decompress_into(
    codec: Codec,
    compressed: &[u8],
    decompressor: &mut Option<zstd::bulk::Decompressor<'static>>,
    target: &mut [u8],
) -> Result<usize, FrameError> {
    match codec {
        // Nothing to do for whoever has the bytes.
        Codec::Raw => Err(FrameError::Damaged),
        Codec::Lz4 => lz4_flex::block::decompress_into(compressed, target).map_err(|_| FrameError::Damaged),
        Codec::Zstd => {
            if decompressor.is_none() {
                *decompressor = zstd::bulk::Decompressor::new().ok();
            }
            let decompressor = decompressor.as_mut().ok_or(FrameError::Damaged)?;
            decompressor.decompress_to_buffer(compressed, target).map_err(|_| FrameError::Damaged)
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that `filter` asks for")]
fn in_payload(run: &&Run) -> bool {
    matches!(run.content, Content::Payload | Content::Changed)
}

/// Copies `bytes`, which begin `offset` bytes into the concatenated data runs, to where those runs live.
fn place_bytes(runs: &[Run], mut offset: usize, mut bytes: &[u8], sink: &dyn PageSink) {
    for run in runs.iter().filter(in_payload) {
        let run_bytes = run.pages as usize * PAGE_BYTES;
        if offset >= run_bytes {
            offset -= run_bytes;
            continue;
        }
        let (now, rest) = bytes.split_at((run_bytes - offset).min(bytes.len()));
        if now.is_empty() {
            return;
        }
        // Only the pages that these bytes touch.
        let first_page = offset / PAGE_BYTES;
        let pages = (offset + now.len()).div_ceil(PAGE_BYTES) - first_page;
        let skip = offset - first_page * PAGE_BYTES;
        sink.with_pages(run.first + first_page as u64, pages as u64, &mut |target| {
            target[skip..skip + now.len()].copy_from_slice(now);
        });
        bytes = rest;
        offset = 0;
    }
}
