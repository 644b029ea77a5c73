//! The bytes of a frame.
//!
//! ```text
//! 0       1       2       4           8           16          24
//! | kind  | codec | runs  | payload   | sequence  | digest    | runs × 12 bytes | payload |
//! ```
//! Little-endian throughout. `kind` is data or mark; a mark has no runs and no payload, and carries a value for the
//! layer above in `digest`. A run is the index of its first page and a count; the index's four top bits say that its pages are all
//! zero, only announced, missing, or changed.
//!
//! The payload is that of the runs in their order, encoded as a whole: of each page its bytes, or, where it is changed, a delta
//! ([`super::delta`]) against what was sent of it before. Deltas go only to a target that has said that it takes them, and never
//! to memory that is in use.

use super::{chooser::Codec, decode::FrameError, hash::PAGE_BYTES};

/// Most pages whose bytes one frame carries: a batch of 256 KiB.
pub const BATCH_PAGES_MAX: usize = 64;
/// Most pages that a frame says something of in its payload, by their bytes or by what changed.
pub(super) const PAYLOAD_PAGES_MAX: usize = 4 * BATCH_PAGES_MAX;
/// Most payload bytes before compression.
pub const BATCH_BYTES_MAX: usize = BATCH_PAGES_MAX * PAGE_BYTES;
/// Most runs in a frame. A batch of scattered pages, and as many zero runs between them.
pub(super) const RUNS_MAX: usize = 2 * BATCH_PAGES_MAX;
/// Most pages announced by one run: what a huge page holds. Preparing for them is work that one frame must not multiply.
pub(super) const ANNOUNCED_PAGES_MAX: u32 = 512;
pub(super) const HEADER_BYTES: usize = 24;
pub(super) const RUN_BYTES: usize = 12;
/// Compression may expand hopeless input a little; the encoder falls back to raw, so a peer never needs more.
pub(super) const PAYLOAD_BYTES_MAX: usize = BATCH_BYTES_MAX;

const ZERO_BIT: u64 = 1 << 63;
const ANNOUNCED_BIT: u64 = 1 << 62;
const MISSING_BIT: u64 = 1 << 61;
const CHANGED_BIT: u64 = 1 << 60;
const KIND_DATA: u8 = 1;
const KIND_MARK: u8 = 2;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Pages.
    Data,
    /// A point in the stream that means something to the layer above.
    Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) codec: Codec,
    pub(super) runs: u16,
    pub(super) payload_bytes: u32,
    /// Position of the frame in its flow, from 0: a lost or repeated frame is noticed.
    pub(super) sequence: u64,
    /// Data: hash of the page hashes. Mark: the mark's value.
    pub(super) digest: u64,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = match self.kind {
            Kind::Data => KIND_DATA,
            Kind::Mark => KIND_MARK,
        };
        bytes[1] = self.codec.to_wire();
        bytes[2..4].copy_from_slice(&self.runs.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.digest.to_le_bytes());
        bytes
    }

    /// Parses and checks everything that needs no other bytes.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [kind, codec, r0, r1, p0, p1, p2, p3, rest @ ..] = *bytes;
        let (sequence, digest) = rest.split_at(8);
        let kind = match kind {
            KIND_DATA => Kind::Data,
            KIND_MARK => Kind::Mark,
            other => return Err(FrameError::Kind(other)),
        };
        let header = Self {
            kind,
            codec: Codec::from_wire(codec).ok_or(FrameError::Codec(codec))?,
            runs: u16::from_le_bytes([r0, r1]),
            payload_bytes: u32::from_le_bytes([p0, p1, p2, p3]),
            sequence: u64_of(sequence),
            digest: u64_of(digest),
        };
        let runs = usize::from(header.runs);
        let payload = header.payload_bytes as usize;
        match header.kind {
            Kind::Data if runs == 0 || runs > RUNS_MAX => Err(FrameError::Runs(runs)),
            Kind::Data if payload > PAYLOAD_BYTES_MAX => Err(FrameError::PayloadLength(payload)),
            Kind::Mark if runs != 0 || payload != 0 => Err(FrameError::Runs(runs)),
            Kind::Data | Kind::Mark => Ok(header),
        }
    }
}

/// What a run says of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// They are in the payload.
    Payload,
    /// What changed in them since they were sent last is in the payload.
    Changed,
    /// They are all zero.
    Zero,
    /// They will all come soon, in this flow.
    Announced,
    /// They will come when the guest runs at the target already; what is there now is not what they hold.
    Missing,
}

/// Consecutive pages, by index in the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) pages: u32,
    pub(super) content: Content,
}

impl Run {
    pub(super) fn to_bytes(self) -> [u8; RUN_BYTES] {
        let mut bytes = [0; RUN_BYTES];
        let first = match self.content {
            Content::Payload => self.first,
            Content::Zero => self.first | ZERO_BIT,
            Content::Announced => self.first | ANNOUNCED_BIT,
            Content::Missing => self.first | MISSING_BIT,
            Content::Changed => self.first | CHANGED_BIT,
        };
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&self.pages.to_le_bytes());
        bytes
    }

    /// Parses one run and checks it against the machine's size.
    pub(super) fn parse(bytes: &[u8; RUN_BYTES], total_pages: u64) -> Result<Self, FrameError> {
        let (first, pages) = bytes.split_at(8);
        let first = u64_of(first);
        let pages = u32::from_le_bytes([pages[0], pages[1], pages[2], pages[3]]);
        // With more than one bit set, the others stay: an index that no machine has.
        let (first, content) = if first & ZERO_BIT != 0 {
            (first & !ZERO_BIT, Content::Zero)
        } else if first & ANNOUNCED_BIT != 0 {
            (first & !ANNOUNCED_BIT, Content::Announced)
        } else if first & MISSING_BIT != 0 {
            (first & !MISSING_BIT, Content::Missing)
        } else if first & CHANGED_BIT != 0 {
            (first & !CHANGED_BIT, Content::Changed)
        } else {
            (first, Content::Payload)
        };
        let inside = first.checked_add(u64::from(pages)).is_some_and(|end| end <= total_pages);
        if pages == 0 || !inside {
            return Err(FrameError::OutOfRange { first, pages: u64::from(pages), total_pages });
        }
        if content == Content::Announced && pages > ANNOUNCED_PAGES_MAX {
            return Err(FrameError::Announced { pages });
        }
        Ok(Self { first, pages, content })
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    u64::from_le_bytes(word)
}
