//! Assignment ids that say by themselves that they are ours.
//!
//! A worker forgets nothing it has seen for 4,096 assignments, and a result may come years late. So an id
//! is a UUID (version 4 in form) made of the task's number, the attempt and a keyed checksum. A result
//! whose id is ours and whose task is no longer open was counted before: "exactly once, for ever" needs no
//! memory of old ids.

use std::fmt;

/// The key of a store; made once, kept in its first event.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct IdKey(pub u64, pub u64);

impl IdKey {
    /// Names the log that has this key, and does not give the key away.
    #[must_use]
    pub fn tag(self) -> String {
        format!("{:016x}", siphash(self, b"the log of tasks"))
    }
}

/// Which delivery of which task.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct AssignmentId {
    /// From 1; below 2^48.
    pub number: u64,
    /// From 0; a new one where a worker that had the old one must take it for new. Below 1,024.
    pub attempt: u16,
}

const NUMBER_BITS: u32 = 48;
const ATTEMPT_BITS: u32 = 10;

impl AssignmentId {
    /// As it goes over the wire.
    #[must_use]
    pub fn encode(self, key: IdKey) -> String {
        let plain = (self.number << ATTEMPT_BITS) | u64::from(self.attempt);
        let check = siphash(key, &plain.to_le_bytes());
        // 58 bits of number and attempt, 64 of checksum: the 122 free bits of a version 4 UUID.
        let bits = (u128::from(plain) << 64) | u128::from(check);
        let high = bits >> 74; // 48 bits before the version
        let middle = (bits >> 62) & 0xfff;
        let low = bits & ((1 << 62) - 1);
        let uuid = (high << 80) | (4 << 76) | (middle << 64) | (2 << 62) | low;
        let text = format!("{uuid:032x}");
        format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
    }

    /// What an id of ours says; `None` for everybody else's.
    #[must_use]
    pub fn decode(text: &str, key: IdKey) -> Option<Self> {
        let raw = text.as_bytes();
        if raw.len() != 36 || [8, 13, 18, 23].iter().any(|&dash| raw[dash] != b'-') {
            return None;
        }
        let mut uuid: u128 = 0;
        for &byte in raw.iter().filter(|&&byte| byte != b'-') {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'A'..=b'F' => byte - b'A' + 10,
                _ => return None,
            };
            uuid = (uuid << 4) | u128::from(digit);
        }
        // 36 characters with four dashes have 32 digits only when no other place has one.
        if raw.iter().filter(|&&byte| byte == b'-').count() != 4
            || (uuid >> 76) & 0xf != 4
            || (uuid >> 62) & 3 != 2
        {
            return None;
        }
        let bits = ((uuid >> 80) << 74) | (((uuid >> 64) & 0xfff) << 62) | (uuid & ((1 << 62) - 1));
        let plain = u64::try_from(bits >> 64).ok()?;
        let check = u64::try_from(bits & u128::from(u64::MAX)).ok()?;
        if siphash(key, &plain.to_le_bytes()) != check {
            return None;
        }
        let attempt = u16::try_from(plain & ((1 << ATTEMPT_BITS) - 1)).ok()?;
        Some(Self { number: plain >> ATTEMPT_BITS, attempt })
    }

    /// The largest number of a task.
    pub const NUMBER_MAX: u64 = (1 << NUMBER_BITS) - 1;
    /// The largest attempt.
    pub const ATTEMPT_MAX: u16 = (1 << ATTEMPT_BITS) - 1;
}

impl fmt::Display for AssignmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.attempt)
    }
}

/// SipHash-2-4: short input, secret key.
/// A keyed number of anything, the same at every node that has the log.
#[must_use]
pub fn keyed(key: IdKey, input: &[u8]) -> u64 {
    siphash(key, input)
}

fn siphash(IdKey(k0, k1): IdKey, input: &[u8]) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let round = |v: &mut [u64; 4]| {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    };
    let mut words = input.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (u64::from_le_bytes(word), chunk.len())
    });
    let mut last = 0;
    for (word, length) in words.by_ref() {
        if length < 8 {
            last = word;
            break;
        }
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    last |= (input.len() as u64 & 0xff) << 56;
    v[3] ^= last;
    round(&mut v);
    round(&mut v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_siphash_2_4() {
        // The authors' vectors: key 00..0f, inputs 0, 1, 2, … bytes.
        let key = IdKey(0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(key, b""), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(key, &input[..8]), 0x93f5_f579_9a93_2462);
        assert_eq!(siphash(key, &input), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn an_id_comes_back_with_its_key_only() {
        let key = IdKey(1, 2);
        for number in [1, 2, 4096, AssignmentId::NUMBER_MAX] {
            for attempt in [0, 1, AssignmentId::ATTEMPT_MAX] {
                let id = AssignmentId { number, attempt };
                let text = id.encode(key);
                assert_eq!(AssignmentId::decode(&text, key), Some(id), "{text}");
                assert_eq!(AssignmentId::decode(&text.to_uppercase(), key), Some(id));
                assert_eq!(AssignmentId::decode(&text, IdKey(1, 3)), None);
                assert_eq!((&text[14..15], text.len()), ("4", 36));
                assert!("89ab".contains(&text[19..20]), "{text}");
            }
        }
    }

    #[test]
    fn no_changed_digit_passes() {
        let key = IdKey(7, 8);
        let text = AssignmentId { number: 12_345, attempt: 3 }.encode(key);
        for at in 0..text.len() {
            for digit in "0123456789abcdef-gG".chars() {
                let mut other: Vec<char> = text.chars().collect();
                other[at] = digit;
                let other: String = other.into_iter().collect();
                if other != text {
                    assert_eq!(AssignmentId::decode(&other, key), None, "{other}");
                }
            }
        }
        for odd in ["", "x", "4f2a", &text[1..], &format!("{text}0"), &"é".repeat(18)] {
            assert_eq!(AssignmentId::decode(odd, key), None);
        }
    }
}
