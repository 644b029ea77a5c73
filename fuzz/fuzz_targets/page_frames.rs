//! The bytes of a page flow, in pieces: refused or placed, never beyond the machine's memory, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use vmotion_transport::{
    pages::{BatchEncoder, Codec, FrameDecoder, KnownPages, PageFate, PageHasher, PageSink, WireCost},
    session::MoveTicket,
};

const PAGES: u64 = 128;
const PAGE: usize = 4096;

struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// In use: pages are verified before they are placed.
    live: bool,
}

impl PageSink for Memory {
    fn total_pages(&self) -> u64 {
        PAGES
    }
    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        // Panics when a range was not checked: that is the finding.
        let first = first as usize * PAGE;
        use_bytes(&mut self.bytes.borrow_mut()[first..first + pages as usize * PAGE]);
    }
    fn zero_pages(&self, first: u64, pages: u64) {
        self.with_pages(first, pages, &mut |bytes| bytes.fill(0));
    }
    fn expect_pages(&self, first: u64, pages: u64) {
        assert!(first + pages <= PAGES);
    }
    fn missing_pages(&self, first: u64, pages: u64) {
        assert!(first + pages <= PAGES);
    }
    fn is_live(&self) -> bool {
        self.live
    }
    fn place_verified(&self, first: u64, bytes: &[u8]) {
        assert!(self.live && bytes.len() % PAGE == 0);
        self.with_pages(first, (bytes.len() / PAGE) as u64, &mut |target| target.copy_from_slice(bytes));
    }
}

fuzz_target!(|data: &[u8]| {
    let hasher = PageHasher::new(&MoveTicket::from_bytes([7; 32]));
    let Some((&[kind, piece], data)) = data.split_first_chunk::<2>() else { return };
    let memory = Memory { bytes: RefCell::new(vec![0; PAGES as usize * PAGE]), live: kind & 128 != 0 };
    let mut stream = data.to_vec();
    let mut decoder = FrameDecoder::new(hasher.clone());
    if kind & 1 == 1 {
        // A valid stream with the fuzzer's bytes written over a part of it: this gets past headers and lengths.
        let known = KnownPages::all_zero(PAGES, &hasher);
        let codec = [Codec::Raw, Codec::Lz4, Codec::Zstd][usize::from(kind >> 1) % 3];
        let encoder = BatchEncoder::new(hasher.clone(), Some(codec));
        let valid = if kind & 64 == 0 {
            whole_pages(encoder, &known)
        } else {
            deltas(encoder.with_deltas(1 << 20), &known, |frame| {
                // Memory in use refuses them, and takes what comes before.
                let _ = decoder.feed(frame, &memory, &mut |_| ());
            })
        };
        let at = data.first().map_or(0, |byte| usize::from(*byte) * 3) % valid.len();
        stream = valid;
        let length = data.len().min(stream.len() - at);
        stream[at..at + length].copy_from_slice(&data[..length]);
    }
    feed(decoder, &stream, piece, &memory);
});

fn feed(mut decoder: FrameDecoder, stream: &[u8], piece: u8, memory: &Memory) {
    for piece in stream.chunks(usize::from(piece).max(1) * 16) {
        if decoder.feed(piece, memory, &mut |_| ()).is_err() {
            return;
        }
    }
}

/// A frame of pages.
fn whole_pages(mut encoder: BatchEncoder, known: &KnownPages) -> Vec<u8> {
    encoder.announce(64, 64);
    encoder.push_missing(100, 1);
    for index in 0..8 {
        encoder.push(index * 3, known, |page| {
            for (at, byte) in page.iter_mut().enumerate() {
                *byte = (at as u8) ^ (at >> 5) as u8;
            }
        });
    }
    encoder.finish(&WireCost::default()).into_iter().flatten().flatten().collect()
}

/// A frame of deltas with pages between them, after frames with what they are deltas against, which go to `before`.
fn deltas(mut encoder: BatchEncoder, known: &KnownPages, mut before: impl FnMut(&[u8])) -> Vec<u8> {
    let wire = WireCost::default();
    wire.set_link_rate(Some(1_000_000));
    let mut frame = Vec::new();
    for version in 0..3u8 {
        before(&frame);
        for index in (0..16).filter(|index| version > 0 || index % 3 != 2) {
            let fate = encoder.push(index * 2, known, |page| {
                // Does not compress, or there would be no deltas.
                let mut state = index + 1;
                for byte in page.iter_mut() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (state >> 56) as u8;
                }
                page[usize::from(version) * 100] ^= 255;
            });
            assert_eq!(fate == PageFate::Changed, version == 2 && index % 3 != 2);
        }
        frame = encoder.finish(&wire).into_iter().flatten().flatten().collect();
    }
    frame
}
