//! XXH64 (seed 0) of a stream of bytes: the wide hash in a segment's footer.
//!
//! CRC-32 guards each frame; this one says of a whole segment, in 64 bits, what it holds.

const P1: u64 = 0x9e37_79b1_85eb_ca87;
const P2: u64 = 0xc2b2_ae3d_27d4_eb4f;
const P3: u64 = 0x1656_67b1_9e37_79f9;
const P4: u64 = 0x85eb_ca77_c2b2_ae63;
const P5: u64 = 0x27d4_eb2f_1656_67c5;
const STRIPE: usize = 32;

/// The hash of what was given so far.
#[derive(Clone, Debug)]
pub(crate) struct ContentHash {
    lanes: [u64; 4],
    waiting: [u8; STRIPE],
    waiting_len: usize,
    total: u64,
}

impl ContentHash {
    pub(crate) const fn new() -> Self {
        Self {
            lanes: [P1.wrapping_add(P2), P2, 0, 0u64.wrapping_sub(P1)],
            waiting: [0; STRIPE],
            waiting_len: 0,
            total: 0,
        }
    }

    /// The hash of these bytes alone.
    pub(crate) fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::new();
        hash.update(bytes);
        hash.value()
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u64);
        if self.waiting_len > 0 {
            let wanted = (STRIPE - self.waiting_len).min(bytes.len());
            let (head, rest) = bytes.split_at(wanted);
            self.waiting[self.waiting_len..self.waiting_len + wanted].copy_from_slice(head);
            self.waiting_len += wanted;
            bytes = rest;
            if self.waiting_len < STRIPE {
                return;
            }
            self.lanes = stripes(self.lanes, &[self.waiting]);
            self.waiting_len = 0;
        }
        let (whole, rest) = bytes.as_chunks::<STRIPE>();
        self.lanes = stripes(self.lanes, whole);
        self.waiting[..rest.len()].copy_from_slice(rest);
        self.waiting_len = rest.len();
    }

    pub(crate) fn value(&self) -> u64 {
        let [a, b, c, d] = self.lanes;
        let mut hash = if self.total >= STRIPE as u64 {
            let sum = a
                .rotate_left(1)
                .wrapping_add(b.rotate_left(7))
                .wrapping_add(c.rotate_left(12))
                .wrapping_add(d.rotate_left(18));
            self.lanes
                .iter()
                .fold(sum, |hash, lane| (hash ^ round(0, *lane)).wrapping_mul(P1).wrapping_add(P4))
        } else {
            P5
        };
        hash = hash.wrapping_add(self.total);
        let (words, rest) = self.waiting[..self.waiting_len].as_chunks::<8>();
        for word in words {
            hash ^= round(0, u64::from_le_bytes(*word));
            hash = hash.rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for half in halves {
            hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(P1);
            hash = hash.rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        }
        for byte in rest {
            hash ^= u64::from(*byte).wrapping_mul(P5);
            hash = hash.rotate_left(11).wrapping_mul(P1);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
        hash ^ (hash >> 32)
    }
}

/// The lanes after these stripes. They are values here and not fields, so that they stay in registers: every byte
/// that is stored passes through this loop.
fn stripes([mut a, mut b, mut c, mut d]: [u64; 4], stripes: &[[u8; STRIPE]]) -> [u64; 4] {
    for stripe in stripes {
        let (words, _) = stripe.as_chunks::<8>();
        let [first, second, third, fourth] = words else { unreachable!("a stripe is four words") };
        a = round(a, u64::from_le_bytes(*first));
        b = round(b, u64::from_le_bytes(*second));
        c = round(c, u64::from_le_bytes(*third));
        d = round(d, u64::from_le_bytes(*fourth));
    }
    [a, b, c, d]
}

const fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors() {
        assert_eq!(ContentHash::of(b""), 0xef46_db37_51d8_e999);
        assert_eq!(ContentHash::of(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(ContentHash::of(b"abc"), 0x44bc_2cf5_ad77_0999);
    }

    #[test]
    fn pieces_do_not_matter() {
        let bytes: Vec<u8> = (0..1000u32).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
        for cut in 0..bytes.len() {
            let mut hash = ContentHash::new();
            hash.update(&bytes[..cut]);
            hash.update(&bytes[cut..]);
            assert_eq!(hash.value(), ContentHash::of(&bytes));
        }
    }
}
