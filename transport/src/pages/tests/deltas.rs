//! Pages that are sent by what changed in them.

use super::*;

const PAGES: usize = 40;
/// A flow's share of a slow link: deltas pay.
const SLOW: u64 = 10_000_000;

fn slow() -> WireCost {
    let wire = WireCost::default();
    wire.set_link_rate(Some(SLOW));
    wire
}

/// Both ends of a flow with deltas.
struct Flow {
    encoder: BatchEncoder,
    decoder: FrameDecoder,
    known: KnownPages,
    wire: WireCost,
    sink: Memory,
    /// Where frames are cut.
    piece: usize,
}

impl Flow {
    fn new(codec: Option<Codec>, budget_bytes: u64) -> Self {
        Self {
            encoder: BatchEncoder::new(hasher(), codec).with_deltas(budget_bytes),
            decoder: FrameDecoder::new(hasher()),
            known: KnownPages::all_zero(PAGES as u64, &hasher()),
            wire: slow(),
            sink: Memory::new(PAGES),
            piece: 7000,
        }
    }

    fn frame(&mut self) -> Vec<u8> {
        self.encoder.finish(&self.wire).into_iter().flatten().flatten().collect()
    }

    fn take(&mut self, frame: &[u8]) -> Result<(), FrameError> {
        frame.chunks(self.piece).try_for_each(|piece| self.decoder.feed(piece, &self.sink, &mut |_| ()))
    }

    /// Pages of `list`, as `memory` has them, arrive; how many bytes that took.
    fn send(&mut self, memory: &[u8], list: impl IntoIterator<Item = usize>) -> usize {
        let mut bytes = 0;
        for index in list {
            self.encoder.push(index as u64, &self.known, |page| page.copy_from_slice(page_of(memory, index)));
            if self.encoder.is_full() {
                let frame = self.frame();
                bytes += frame.len();
                self.take(&frame).unwrap();
            }
        }
        let mut rest = self.frame();
        rest.extend_from_slice(&self.encoder.mark(1));
        self.take(&rest).unwrap();
        bytes + rest.len()
    }

    /// A flow whose target holds `memory`, and whose source keeps it.
    fn primed(codec: Option<Codec>, memory: &mut [u8]) -> Self {
        let mut flow = Self::new(codec, 1 << 20);
        flow.send(memory, 0..PAGES);
        touch(memory);
        flow.send(memory, 0..PAGES);
        touch(memory);
        flow
    }
}

fn page_of(memory: &[u8], index: usize) -> &[u8] {
    &memory[index * PAGE..(index + 1) * PAGE]
}

fn memory_of(kind: u8) -> Vec<u8> {
    (0..PAGES as u64).flat_map(|seed| content(kind, seed)).collect()
}

/// A few bytes of each page change.
fn touch(memory: &mut [u8]) {
    for page in memory.chunks_mut(PAGE) {
        page[100] = page[100].wrapping_add(1);
        page[3000..3064].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(5).wrapping_add(3));
    }
}

#[test]
fn what_changed_travels_instead_of_the_page_whatever_the_codec() {
    for codec in [None, Some(Codec::Raw), Some(Codec::Lz4), Some(Codec::Zstd)] {
        let mut memory = memory_of(2);
        let mut flow = Flow::primed(codec, &mut memory);
        flow.encoder.take_counts();
        let bytes = flow.send(&memory, 0..PAGES);
        assert_eq!(flow.encoder.take_counts().delta, PAGES as u64, "{codec:?}");
        assert!(bytes < PAGES * 100, "{codec:?}: {bytes}");
        assert!(*flow.sink.0.borrow() == memory, "{codec:?}");
    }
}

#[test]
fn without_memory_or_on_a_fast_link_whole_pages_travel() {
    let no_budget = Flow::new(Some(Codec::Raw), 0);
    let fast = Flow::new(Some(Codec::Raw), 1 << 20);
    fast.wire.set_link_rate(Some(10_000_000_000));
    for mut flow in [no_budget, fast] {
        let mut memory = memory_of(2);
        for _ in 0..3 {
            flow.send(&memory, 0..PAGES);
            touch(&mut memory);
        }
        let counts = flow.encoder.take_counts();
        assert_eq!((counts.delta, counts.raw), (0, 3 * PAGES as u64));
    }
}

#[test]
fn pages_written_as_a_whole_travel_as_a_whole() {
    let mut memory = memory_of(2);
    let mut flow = Flow::primed(None, &mut memory);
    flow.encoder.take_counts();
    memory.reverse();
    flow.send(&memory, 0..PAGES);
    let counts = flow.encoder.take_counts();
    assert_eq!((counts.delta, counts.total()), (0, PAGES as u64));
    assert!(*flow.sink.0.borrow() == memory);
}

#[test]
fn a_delta_that_is_no_smaller_than_the_compressed_page_is_not_used() {
    let mut memory: Vec<u8> = (0..PAGES * PAGE).map(|at| if at % PAGE == 0 { 1 } else { 0 }).collect();
    let mut flow = Flow::primed(Some(Codec::Zstd), &mut memory);
    flow.encoder.take_counts();
    flow.send(&memory, 0..PAGES);
    assert_eq!(flow.encoder.take_counts().delta, 0, "a page of zeros takes less than 20 bytes");
}

#[test]
fn a_page_that_became_zero_or_was_forgotten_has_no_base() {
    let mut memory = memory_of(2);
    let mut flow = Flow::primed(None, &mut memory);
    flow.encoder.take_counts();
    flow.encoder.push_zero(3, &flow.known);
    flow.known.forget(4);
    flow.send(&memory, 0..PAGES);
    let counts = flow.encoder.take_counts();
    assert_eq!((counts.delta, counts.zero), (PAGES as u64 - 2, 1));
    assert!(*flow.sink.0.borrow() == memory);
}

#[test]
fn no_version_is_a_base_any_more_once_they_are_forgotten() {
    let mut memory = memory_of(2);
    let mut flow = Flow::primed(None, &mut memory);
    flow.encoder.take_counts();
    flow.encoder.forget_versions();
    flow.send(&memory, 0..PAGES);
    assert_eq!(flow.encoder.take_counts().delta, 0);
    assert!(*flow.sink.0.borrow() == memory);
}

#[test]
fn a_delta_against_what_the_target_does_not_hold_is_found() {
    let mut memory = memory_of(1);
    let mut flow = Flow::primed(None, &mut memory);
    flow.encoder.push(7, &flow.known, |page| page.copy_from_slice(page_of(&memory, 7)));
    let frame = flow.frame();
    // In a byte that the delta does not touch.
    flow.sink.0.borrow_mut()[7 * PAGE + 50] ^= 1;
    let error = flow.take(&frame).unwrap_err();
    assert!(matches!(error, FrameError::Digest { .. }), "{error}");
}

#[test]
fn memory_in_use_takes_no_deltas() {
    let mut memory = memory_of(1);
    let mut flow = Flow::primed(None, &mut memory);
    flow.encoder.push(7, &flow.known, |page| page.copy_from_slice(page_of(&memory, 7)));
    let frame = flow.frame();
    let live = Live(Memory::new(PAGES));
    let error = flow.decoder.feed(&frame, &live, &mut |_| ()).unwrap_err();
    assert!(matches!(error, FrameError::DeltaOfLive { .. }), "{error}");
    assert!(live.0.0.borrow().iter().all(|byte| *byte == 0));
}

#[test]
fn a_payload_that_does_not_end_with_its_last_delta_is_refused() {
    let mut memory = memory_of(2);
    let mut flow = Flow::primed(Some(Codec::Raw), &mut memory);
    flow.encoder.push(7, &flow.known, |page| page.copy_from_slice(page_of(&memory, 7)));
    let mut frame = flow.frame();
    frame.push(0);
    frame[4] += 1;
    let error = flow.take(&frame).unwrap_err();
    assert!(matches!(error, FrameError::Delta { .. }), "{error}");
}

proptest! {
    #[test]
    fn memory_is_the_same_at_both_ends_after_every_round_of_partial_writes(
        rounds in prop::collection::vec(
            prop::collection::vec((0..PAGES, 0u8..8, any::<u64>(), 0..PAGE, 1..200usize), 0..150), 1..10),
        budget in prop::sample::select(vec![0u64, 40_000, 100_000, 1 << 20]),
        piece in 1usize..20_000,
        codec in prop::option::of(prop::sample::select(Codec::ALL.to_vec())),
    ) {
        let mut memory = memory_of(1);
        let mut flow = Flow::new(codec, budget);
        flow.piece = piece;
        flow.send(&memory, 0..PAGES);
        flow.send(&memory, 0..PAGES);
        for writes in rounds {
            let mut list = std::collections::BTreeSet::new();
            for (index, kind, seed, from, length) in writes {
                let page = &mut memory[index * PAGE..(index + 1) * PAGE];
                match kind {
                    0..=2 => page.copy_from_slice(&content(kind, seed)),
                    // Something else has happened to the page.
                    3 => flow.known.forget(index as u64),
                    _ => {
                        let to = (from + length).min(PAGE);
                        let bytes = content(2, seed);
                        page[from..to].copy_from_slice(&bytes[from..to]);
                    }
                }
                list.insert(index);
            }
            flow.send(&memory, list);
            prop_assert!(*flow.sink.0.borrow() == memory);
        }
    }

    #[test]
    fn a_frame_with_deltas_that_was_tampered_with_never_arrives_unnoticed(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 1..40),
        codec in prop::sample::select(Codec::ALL.to_vec()),
    ) {
        let mut memory = memory_of(1);
        let mut flow = Flow::primed(Some(codec), &mut memory);
        for index in 0..PAGES {
            flow.encoder.push(index as u64, &flow.known, |page| page.copy_from_slice(page_of(&memory, index)));
        }
        let mut frame = flow.frame();
        let at = at.index(frame.len());
        let end = frame.len().min(at + bytes.len());
        frame[at..end].copy_from_slice(&bytes[..end - at]);
        let result = flow.take(&frame);
        prop_assert!(result.is_err() || !flow.decoder.is_idle() || *flow.sink.0.borrow() == memory);
    }
}

/// Not an assertion: prints what a page costs the source with deltas and without, and what the target, for
/// `cargo test -p vmotion-transport -- --ignored --nocapture what_a_page_costs`.
#[test]
#[ignore = "a measurement, run by hand"]
fn what_a_page_costs_with_deltas_and_without() {
    const MANY: usize = 16_384;
    type Write = fn(&mut [u8], u64);
    let whole: Write = |page, seed| page.copy_from_slice(&content(2, seed));
    let line: Write = |page, seed| page[640..704].copy_from_slice(&content(2, seed)[..64]);
    for (what, write) in [("whole pages", whole), ("lines of pages", line)] {
        for budget in [0, 128 << 20] {
            let mut memory: Vec<u8> = (0..MANY as u64).flat_map(|seed| content(2, seed)).collect();
            let (sink, wire) = (Memory::new(MANY), slow());
            let known = KnownPages::all_zero(MANY as u64, &hasher());
            let mut encoder = BatchEncoder::new(hasher(), Some(Codec::Raw)).with_deltas(budget);
            let mut decoder = FrameDecoder::new(hasher());
            for round in 0..5u64 {
                let mut spent = [std::time::Duration::ZERO; 2];
                let mut bytes = 0;
                for index in 0..MANY {
                    let begun = std::time::Instant::now();
                    encoder.push(index as u64, &known, |page| page.copy_from_slice(page_of(&memory, index)));
                    let frame = (encoder.is_full() || index + 1 == MANY).then(|| encoder.finish(&wire));
                    spent[0] += begun.elapsed();
                    for part in frame.into_iter().flatten().flatten() {
                        bytes += part.len();
                        let begun = std::time::Instant::now();
                        decoder.feed(&part, &sink, &mut |_| ()).unwrap();
                        spent[1] += begun.elapsed();
                    }
                }
                decoder.feed(&encoder.mark(round), &sink, &mut |_| ()).unwrap();
                let [source, target] = spent.map(|spent| spent.as_nanos() as f64 / MANY as f64);
                println!(
                    "{what}, {} MiB, round {}: source {source:.0} ns, target {target:.0} ns a page, {} bytes",
                    budget >> 20,
                    round + 1,
                    bytes / MANY
                );
                for (index, page) in memory.chunks_mut(PAGE).enumerate() {
                    write(page, (round + 1) << 32 | index as u64);
                }
            }
        }
    }
}
