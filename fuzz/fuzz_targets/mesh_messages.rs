//! What a host of a spanning machine sends on a stream, cut anywhere: whole messages in order or a refusal, never a panic, and the same
//! however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmotion_transport::mesh::{MESSAGE_BYTES_MAX, MessageReader, STREAMS_MAX};

/// The messages, and whether the stream was refused.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, bool) {
    let (mut reader, mut messages) = (MessageReader::default(), Vec::new());
    for piece in pieces {
        let fed = reader.feed(piece, |number, message| {
            assert!(number.0 < STREAMS_MAX && message.len() <= MESSAGE_BYTES_MAX);
            messages.push(message.to_vec());
            Ok(())
        });
        if fed.is_err() {
            return (messages, true);
        }
    }
    let _ = reader.end();
    (messages, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = read(std::iter::once(stream));
    let pieces = read(stream.chunks(usize::from(*cut) + 1));
    assert_eq!(whole, pieces);
});
