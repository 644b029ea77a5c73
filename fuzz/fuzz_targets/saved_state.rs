//! A saved state from a hostile source: refused or read, bounded, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64;

fuzz_target!(|data: &[u8]| {
    let _ = vmotion_machine::inspect_state(data);
    // The same with a right checksum, so that what lies behind it is reached too.
    if let Some(body) = data.len().checked_sub(8).map(|end| &data[..end]) {
        let mut sealed = body.to_vec();
        sealed.extend_from_slice(&xxh3_64(body).to_le_bytes());
        let _ = vmotion_machine::inspect_state(&sealed);
    }
});
