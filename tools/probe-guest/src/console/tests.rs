use proptest::prelude::*;

use super::*;

fn lines(text: &str) -> Vec<ConsoleLine> {
    let events = ConsoleReader::new().push(text.as_bytes());
    events
        .into_iter()
        .filter_map(|event| if let ConsoleEvent::Line(line) = event { Some(line) } else { None })
        .collect()
}

#[test]
fn start_line_is_read() {
    let line = "PROBE 1 cpus=2 ram=536476672 ws=134217728 rate=max tsc_khz=2596136 clock=kvmclock wall=kvmclock \
                wall_ms=1795309027952 timer_khz=999983 idle=hlt hb=1 beat=byte disks=1 seed=0x4eac57e31878a82a";
    let expected = Start {
        cpus: 2,
        ram_bytes: 536_476_672,
        ws_bytes: 134_217_728,
        rate_bytes: None,
        tsc_khz: 2_596_136,
        clock: "kvmclock".to_owned(),
        beat_bytes: true,
        disks: 1,
    };
    assert_eq!(ConsoleLine::parse(line), ConsoleLine::Start(expected));
}

#[test]
fn heartbeat_and_second_are_read() {
    let text = "H 5956 6662492 185168 0\nS 1528222 wall_ms=1795309029480 wall=kvmclock written=53717 verified=10474 \
                corrupt=0 tsc_back=0 dropped=0 gap_us=7958 gap_max_us=7959 cpu0=26964/5290 cpu1=26753/5184 \
                disk0=50/49/0/0\n";
    let [heartbeat, second] = lines(text).try_into().expect("two lines");
    let expected = ConsoleLine::Heartbeat { sequence: 5956, time_us: 6_662_492, written: 185_168, errors: 0 };
    assert_eq!(heartbeat, expected);
    assert!(!second.is_failure());
    let ConsoleLine::Second(second) = second else { panic!("not a second: {second:?}") };
    assert_eq!(second.cpus[1], CpuCounters { written: 26753, verified: 5184 });
    assert_eq!(second.disks, [DiskCounters { writes: 50, reads: 49, failed: 0, corrupt: 0 }]);
    assert_eq!((second.gap_us, second.gap_max_us), (7958, 7959));
}

#[test]
fn touches_are_read() {
    let expected = Touches { time_us: 1_528_222, buckets: vec![(0, 900), (5, 7), (1024, 1)] };
    assert_eq!(ConsoleLine::parse("T 1528222 0:900 5:7 1024:1"), ConsoleLine::Touches(expected));
    assert_eq!(ConsoleLine::parse("T 1 0:9 5"), ConsoleLine::Unknown("T 1 0:9 5".to_owned()));
}

#[test]
fn corrupt_page_is_read_and_is_a_failure() {
    let line = "CORRUPT page=12 cpu=0 address=0x400000 expected_gen=5 found_gen=4 found_page=12 magic=ok sum=ok zero=0 \
                written_us=1 at_us=2";
    let parsed = ConsoleLine::parse(line);
    assert!(parsed.is_failure());
    let ConsoleLine::Corrupt(page) = parsed else { panic!("not corrupt: {parsed:?}") };
    assert_eq!((page.page, page.address, page.expected_generation, page.found_generation), (12, 0x40_0000, 5, 4));
    assert!(page.checksum_fits && !page.all_zero);
}

#[test]
fn beats_inside_a_line_do_not_tear_it() {
    let events = ConsoleReader::new().push(b"H 1 2\x85 3 4\x86\n");
    let line = ConsoleLine::Heartbeat { sequence: 1, time_us: 2, written: 3, errors: 4 };
    assert_eq!(events, [ConsoleEvent::Beat(5), ConsoleEvent::Beat(6), ConsoleEvent::Line(line)]);
}

#[test]
fn missing_beats_are_counted_across_the_wrap() {
    let mut tracker = BeatTracker::default();
    assert_eq!([126, 127, 0, 3].map(|beat| tracker.observe(beat)), [0, 0, 0, 2]);
}

#[test]
fn partial_lines_are_unknown() {
    for text in ["", "H", "H 1 2 3", "H 1 2 3 x", "S 12 wall_ms=3", "PROBE 2 cpus=1", "17 wall=rtc"] {
        assert_eq!(ConsoleLine::parse(text), ConsoleLine::Unknown(text.to_owned()));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_tolerated_and_pieces_make_no_difference(bytes: Vec<u8>, cut in 0_usize..64) {
        let whole = ConsoleReader::new().push(&bytes);
        let cut = cut.min(bytes.len());
        let mut reader = ConsoleReader::new();
        let mut pieces = reader.push(&bytes[..cut]);
        pieces.extend(reader.push(&bytes[cut..]));
        prop_assert_eq!(whole, pieces);
    }
}
