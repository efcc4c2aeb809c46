//! Mutations, blind to coverage: small changes of inputs that are almost right.

use beamlog_log::SeededRandom;

/// Longest input made.
const BYTES_MAX: usize = 64 * 1024;

/// Values at which lengths and positions break.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 60,
    u64::MAX >> 1,
    u64::MAX,
];

/// Makes inputs from a corpus and words. The same seed makes the same inputs.
#[derive(Debug)]
pub struct Mutator<'a> {
    random: SeededRandom,
    inputs: &'a [Vec<u8>],
    words: &'a [&'a [u8]],
}

impl<'a> Mutator<'a> {
    #[must_use]
    pub const fn new(seed: u64, inputs: &'a [Vec<u8>], words: &'a [&'a [u8]]) -> Self {
        Self { random: SeededRandom::new(seed), inputs, words }
    }

    /// The next input, into a buffer that is used again.
    pub fn next_into(&mut self, bytes: &mut Vec<u8>) {
        bytes.clear();
        if let Some(input) = self.inputs.get(self.random.index(self.inputs.len())) {
            bytes.extend_from_slice(input);
        }
        // Mostly one or two changes: what is far from well-formed dies at the first check.
        let changes = 1 + (self.random.next().trailing_zeros() as usize).min(7);
        for _ in 0..changes {
            self.change(bytes);
        }
        bytes.truncate(BYTES_MAX);
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.index(bytes.len() + 1);
        let end = (at + 1 + random.index(16)).min(bytes.len());
        match random.below(10) {
            0 | 1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next().to_le_bytes()[0];
                }
            }
            3 => drop(bytes.drain(at..end.max(at))),
            4 => {
                let copied = bytes.get(at..end).unwrap_or_default().to_vec();
                let to = random.index(bytes.len() + 1);
                bytes.splice(to..to, copied);
            }
            5 => bytes.truncate(at),
            6 => {
                // A number in the place of bytes, in either order.
                let number = NUMBERS[random.index(NUMBERS.len())].wrapping_add(random.below(3));
                let width = [1, 2, 4, 8][random.index(4)];
                let written = if random.one_in(4) {
                    number.to_be_bytes()[8 - width..].to_vec()
                } else {
                    number.to_le_bytes()[..width].to_vec()
                };
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, written);
            }
            7 => {
                // The beginning of this, the end of another.
                if let Some(other) = self.inputs.get(random.index(self.inputs.len())) {
                    let from = random.index(other.len() + 1);
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
            }
            _ => {
                let word = self.words.get(random.index(self.words.len())).copied().unwrap_or_default();
                // Put in, or in the place of as many bytes.
                let end = if random.one_in(2) { (at + word.len()).min(bytes.len()) } else { at };
                bytes.splice(at..end, word.iter().copied());
            }
        }
    }
}
