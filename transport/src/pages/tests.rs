mod deltas;

use super::*;
use crate::session::MoveTicket;
use proptest::prelude::*;
use std::cell::RefCell;

const PAGE: usize = 4096;

struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn new(pages: usize) -> Self {
        Self(RefCell::new(vec![0; pages * PAGE]))
    }
}

impl PageSink for Memory {
    fn total_pages(&self) -> u64 {
        (self.0.borrow().len() / PAGE) as u64
    }
    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        let first = usize::try_from(first).unwrap() * PAGE;
        let len = usize::try_from(pages).unwrap() * PAGE;
        use_bytes(&mut self.0.borrow_mut()[first..first + len]);
    }
    fn zero_pages(&self, first: u64, pages: u64) {
        self.with_pages(first, pages, &mut |bytes| bytes.fill(0));
    }
}

fn hasher() -> PageHasher {
    PageHasher::new(&MoveTicket::from_bytes([7; 32]))
}

/// Sends `memory`'s listed pages through encoder and decoder, the stream cut into pieces of `piece` bytes.
fn send(
    encoder: &mut BatchEncoder,
    decoder: &mut FrameDecoder,
    known: &KnownPages,
    memory: &[u8],
    list: &[u64],
    piece: usize,
    sink: &Memory,
) -> usize {
    let wire = WireCost::default();
    let mut stream = Vec::new();
    let drain = |encoder: &mut BatchEncoder, stream: &mut Vec<u8>| {
        for part in encoder.finish(&wire).into_iter().flatten() {
            stream.extend_from_slice(&part);
        }
    };
    for &index in list {
        let start = usize::try_from(index).unwrap() * PAGE;
        encoder.push(index, known, |page| page.copy_from_slice(&memory[start..start + PAGE]));
        if encoder.is_full() {
            drain(encoder, &mut stream);
        }
    }
    drain(encoder, &mut stream);
    stream.extend_from_slice(&encoder.mark(42));
    let mut marks = Vec::new();
    for chunk in stream.chunks(piece) {
        decoder.feed(chunk, sink, &mut |value| marks.push(value)).unwrap();
    }
    assert_eq!(marks, [42]);
    assert!(decoder.is_idle());
    stream.len()
}

fn content(kind: u8, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut step = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33).to_le_bytes()[0]
    };
    match kind {
        0 => vec![0; PAGE],
        1 => (0..PAGE).map(|_| b"etaoin shrdlu cmfwyp"[usize::from(step()) % 20]).collect(),
        _ => (0..PAGE).map(|_| step()).collect(),
    }
}

proptest! {
    #[test]
    fn memory_arrives_as_it_was_whatever_the_codec_and_the_pieces(
        kinds in prop::collection::vec((0u8..3, any::<u64>()), 1..200),
        rewrites in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u64>()), 0..50),
        piece in 1usize..20_000,
        codec in prop::option::of(prop::sample::select(Codec::ALL.to_vec())),
    ) {
        let mut memory: Vec<u8> = kinds.iter().flat_map(|(kind, seed)| content(*kind, *seed)).collect();
        let sink = Memory::new(kinds.len());
        let known = KnownPages::all_zero(kinds.len() as u64, &hasher());
        let mut encoder = BatchEncoder::new(hasher(), codec);
        let mut decoder = FrameDecoder::new(hasher());
        let all: Vec<u64> = (0..kinds.len() as u64).collect();
        send(&mut encoder, &mut decoder, &known, &memory, &all, piece, &sink);
        prop_assert_eq!(&*sink.0.borrow(), &memory);

        let mut list = Vec::new();
        for (pick, kind, seed) in rewrites {
            let index = pick.index(kinds.len());
            memory[index * PAGE..(index + 1) * PAGE].copy_from_slice(&content(kind, seed));
            list.push(index as u64);
        }
        send(&mut encoder, &mut decoder, &known, &memory, &list, piece, &sink);
        prop_assert_eq!(&*sink.0.borrow(), &memory);
    }

    #[test]
    fn hostile_bytes_are_refused_or_wait_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let sink = Memory::new(16);
        let _ = FrameDecoder::new(hasher()).feed(&bytes, &sink, &mut |_| ());
    }

    #[test]
    fn a_flipped_bit_never_arrives_unnoticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let memory: Vec<u8> = (0..4).flat_map(|seed| content(1, seed)).collect();
        let known = KnownPages::all_zero(4, &hasher());
        let mut encoder = BatchEncoder::new(hasher(), Some(Codec::Lz4));
        for index in 0..4u64 {
            let start = usize::try_from(index).unwrap() * PAGE;
            encoder.push(index, &known, |page| page.copy_from_slice(&memory[start..start + PAGE]));
        }
        let mut stream: Vec<u8> = encoder.finish(&WireCost::default()).unwrap().concat();
        let at = at.index(stream.len());
        stream[at] ^= 1 << bit;
        let sink = Memory::new(4);
        let mut decoder = FrameDecoder::new(hasher());
        let result = decoder.feed(&stream, &sink, &mut |_| ());
        let arrived_right = *sink.0.borrow() == memory;
        prop_assert!(result.is_err() || !decoder.is_idle() || arrived_right);
    }
}

#[test]
fn a_page_that_did_not_change_is_not_sent_again() {
    let memory = content(2, 9);
    let known = KnownPages::all_zero(1, &hasher());
    let mut encoder = BatchEncoder::new(hasher(), None);
    assert_eq!(encoder.push(0, &known, |page| page.copy_from_slice(&memory)), PageFate::Gathered);
    assert!(encoder.finish(&WireCost::default()).is_some());
    assert_eq!(encoder.push(0, &known, |page| page.copy_from_slice(&memory)), PageFate::Unchanged);
    assert!(encoder.finish(&WireCost::default()).is_none());
}

#[test]
fn zero_pages_of_a_fresh_target_need_no_bytes_at_all() {
    let known = KnownPages::all_zero(1000, &hasher());
    let mut encoder = BatchEncoder::new(hasher(), None);
    for index in 0..1000 {
        encoder.push_zero(index, &known);
    }
    assert!(encoder.finish(&WireCost::default()).is_none());
    assert_eq!(encoder.take_counts().zero, 1000);
}

#[test]
fn a_repeated_frame_is_refused() {
    let known = KnownPages::all_zero(1, &hasher());
    let mut encoder = BatchEncoder::new(hasher(), None);
    encoder.push(0, &known, |page| page.fill(1));
    let frame: Vec<u8> = encoder.finish(&WireCost::default()).unwrap().concat();
    let sink = Memory::new(1);
    let mut decoder = FrameDecoder::new(hasher());
    decoder.feed(&frame, &sink, &mut |_| ()).unwrap();
    assert_eq!(decoder.feed(&frame, &sink, &mut |_| ()), Err(FrameError::Sequence { expected: 1, found: 0 }));
}

struct Expecting {
    memory: Memory,
    expected: RefCell<Vec<(u64, u64)>>,
}

impl PageSink for Expecting {
    fn total_pages(&self) -> u64 {
        self.memory.total_pages()
    }
    fn with_pages(&self, first: u64, pages: u64, use_bytes: &mut dyn FnMut(&mut [u8])) {
        self.memory.with_pages(first, pages, use_bytes);
    }
    fn expect_pages(&self, first: u64, pages: u64) {
        self.expected.borrow_mut().push((first, pages));
    }
    fn zero_pages(&self, first: u64, pages: u64) {
        self.memory.zero_pages(first, pages);
    }
}

#[test]
fn announced_pages_are_expected_before_they_come_and_count_once() {
    let sink = Expecting { memory: Memory::new(1024), expected: RefCell::default() };
    let known = KnownPages::all_zero(1024, &hasher());
    let mut encoder = BatchEncoder::new(hasher(), Some(Codec::Raw));
    encoder.announce(512, 512);
    encoder.push(512, &known, |page| page.fill(1));
    let mut decoder = FrameDecoder::new(hasher());
    for part in encoder.finish(&WireCost::default()).into_iter().flatten() {
        decoder.feed(&part, &sink, &mut |_| ()).unwrap();
    }
    assert_eq!(*sink.expected.borrow(), [(512, 512), (512, 1)]);
    assert_eq!(decoder.pages(), 1);
}

#[test]
fn more_pages_announced_at_once_than_a_huge_page_has_are_refused() {
    let run = super::format::Run { first: 0, pages: 513, content: super::format::Content::Announced };
    let error = super::format::Run::parse(&run.to_bytes(), 1 << 20).unwrap_err();
    assert_eq!(error, FrameError::Announced { pages: 513 });
}

/// Memory that is in use: what is placed must have been verified.
struct Live(Memory);

impl PageSink for Live {
    fn total_pages(&self) -> u64 {
        self.0.total_pages()
    }
    fn with_pages(&self, _: u64, _: u64, _: &mut dyn FnMut(&mut [u8])) {
        panic!("memory in use must not be written before its bytes are verified");
    }
    fn zero_pages(&self, first: u64, pages: u64) {
        self.0.zero_pages(first, pages);
    }
    fn is_live(&self) -> bool {
        true
    }
    fn place_verified(&self, first: u64, bytes: &[u8]) {
        self.0.with_pages(first, (bytes.len() / PAGE) as u64, &mut |target| target.copy_from_slice(bytes));
    }
}

fn frame_of(pages: &[(u64, u8)], codec: Codec) -> Vec<u8> {
    let known = KnownPages::all_zero(64, &hasher());
    let mut encoder = BatchEncoder::new(hasher(), Some(codec));
    for (index, kind) in pages {
        let bytes = content(*kind, *index);
        encoder.push(*index, &known, |page| page.copy_from_slice(&bytes));
    }
    encoder.finish(&WireCost::default()).into_iter().flatten().flatten().collect()
}

#[test]
fn memory_in_use_gets_whole_verified_pages() {
    for codec in Codec::ALL {
        let sink = Live(Memory::new(64));
        let mut decoder = FrameDecoder::new(hasher());
        // Scattered runs, and a page of zeros between them.
        let pages = [(3, 1), (4, 2), (5, 0), (9, 1)];
        for piece in frame_of(&pages, codec).chunks(1000) {
            decoder.feed(piece, &sink, &mut |_| ()).unwrap();
        }
        for (index, kind) in pages {
            let first = usize::try_from(index).unwrap() * PAGE;
            assert_eq!(sink.0.0.borrow()[first..first + PAGE], content(kind, index), "{codec:?} page {index}");
        }
    }
}

#[test]
fn a_damaged_frame_leaves_memory_in_use_as_it_was() {
    for codec in Codec::ALL {
        let sink = Live(Memory::new(64));
        let mut frame = frame_of(&[(3, 1), (9, 1)], codec);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        assert!(FrameDecoder::new(hasher()).feed(&frame, &sink, &mut |_| ()).is_err(), "{codec:?}");
        assert!(sink.0.0.borrow().iter().all(|byte| *byte == 0), "{codec:?}");
    }
}
