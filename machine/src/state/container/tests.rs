//! The envelope under damage.

use super::*;
use proptest::prelude::*;

fn sample() -> Vec<u8> {
    let mut writer = SectionWriter::default();
    writer.put("machine", 1, &(7u32, "text")).unwrap();
    writer.put_bytes("device.x", 3, &[1, 2, 3]).unwrap();
    writer.finish()
}

#[test]
fn sections_come_back_once() {
    let state = sample();
    let mut reader = SectionReader::open(&state).unwrap();
    assert_eq!(reader.take::<(u32, String)>("machine", 1).unwrap(), (7, "text".to_owned()));
    assert_eq!(reader.take_bytes("machine"), Err(StateError::Missing("machine".to_owned())));
    assert_eq!(reader.take_bytes("device.x").unwrap(), (3, &[1, 2, 3][..]));
    reader.finish().unwrap();
}

#[test]
fn leftovers_versions_and_duplicates_are_refused() {
    let state = sample();
    let mut reader = SectionReader::open(&state).unwrap();
    assert!(matches!(reader.take::<(u32, String)>("machine", 2), Err(StateError::SectionVersion { version: 1, .. })));
    assert_eq!(reader.finish(), Err(StateError::Leftover("device.x".to_owned())));
    let mut writer = SectionWriter::default();
    writer.put_bytes("a", 1, &[]).unwrap();
    writer.put_bytes("a", 1, &[]).unwrap();
    assert_eq!(SectionReader::open(&writer.finish()).unwrap_err(), StateError::Duplicate("a".to_owned()));
}

#[test]
fn a_section_too_long_to_be_true_allocates_nothing() {
    let mut state = sample();
    state.truncate(state.len() - CHECKSUM_BYTES);
    // The length field of the last section: 3 payload bytes before the end.
    let at = state.len() - 3 - 4;
    state[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let checksum = xxh3_64(&state);
    state.extend_from_slice(&checksum.to_le_bytes());
    assert_eq!(SectionReader::open(&state).unwrap_err(), StateError::Limit("section length"));
}

proptest! {
    #[test]
    fn damage_is_noticed(at in 0usize..sample().len(), bit in 0u8..8) {
        let mut state = sample();
        state[at] ^= 1 << bit;
        prop_assert!(SectionReader::open(&state).is_err());
    }

    #[test]
    fn a_cut_is_noticed(length in 0usize..sample().len()) {
        prop_assert!(SectionReader::open(&sample()[..length]).is_err());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut state = MAGIC.to_vec();
        state.extend_from_slice(&STATE_VERSION.to_le_bytes());
        state.extend_from_slice(&bytes);
        let checksum = xxh3_64(&state);
        state.extend_from_slice(&checksum.to_le_bytes());
        if let Ok(mut reader) = SectionReader::open(&state) {
            let _ = reader.take::<Vec<String>>("", 0);
            let _ = reader.finish();
        }
    }
}
