//! Frames in the streams between nodes, however the streams are cut.

use beamlog_net::transport::{Frames, decode_answer};
use bytes::Bytes;

pub const WORDS: &[&[u8]] = &[&[0, 0, 0, 0], &[4, 0, 0, 0], &[0, 1, 0, 0], &[1, 1, 0, 0], &[0xff; 4]];
const MAX: usize = 256;

/// The first byte says how the rest is cut. Both ways must give the same frames, or the same end.
pub fn run(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else { return };
    let whole = read(stream, stream.len().max(1));
    assert_eq!(read(stream, usize::from(*cut) + 1), whole);
    for frame in whole.0 {
        assert!(frame.len() <= MAX);
        if let Some((status, body)) = frame.split_first() {
            // Whatever it is, it is one of the three.
            drop(decode_answer(*status, Bytes::copy_from_slice(body)));
        }
    }
}

/// The frames, and how the stream ended: violated, or between two frames.
fn read(stream: &[u8], size: usize) -> (Vec<Vec<u8>>, bool, bool) {
    let mut frames = Frames::new();
    let mut found = Vec::new();
    for piece in stream.chunks(size) {
        frames.feed(Bytes::copy_from_slice(piece));
        loop {
            match frames.frame(MAX) {
                Ok(Some(frame)) => found.push(frame.to_vec()),
                Ok(None) => break,
                Err(_) => return (found, true, false),
            }
        }
    }
    (found, false, frames.is_between())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let frame = |body: &[u8]| {
        let length = u32::try_from(body.len()).expect("small");
        [&length.to_le_bytes()[..], body].concat()
    };
    let many = [frame(b"\x00yes"), frame(b""), frame(b"\x01\x07\x00not the leader"), frame(&[9; 200])].concat();
    vec![[&[0][..], &many].concat(), [&[6][..], &many].concat(), [&[3][..], &frame(&[1; 300])].concat()]
}
