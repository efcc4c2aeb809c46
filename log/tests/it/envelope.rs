//! The envelope's bytes are bincode 1's (differential and golden), and hostile bytes are refused.

use std::collections::BTreeMap;

use beamlog_log::{
    SeededRandom,
    envelope::{self, DecodeError, Enveloped, HEADER_BYTES},
};
use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

/// One of every shape that our records use.
#[derive(Clone, Debug, Deserialize, PartialEq, SchemaRead, SchemaWrite, Serialize)]
struct Everything {
    small: u8,
    short: u16,
    word: u32,
    long: u64,
    signed: i64,
    flag: bool,
    id: [u8; 16],
    name: String,
    bytes: Vec<u8>,
    maybe: Option<u64>,
    list: Vec<Choice>,
    pairs: Vec<(u64, u32)>,
    map: BTreeMap<String, u32>,
    nested: Nested,
}

#[derive(Clone, Debug, Deserialize, PartialEq, SchemaRead, SchemaWrite, Serialize)]
struct Nested(Option<String>, Option<Vec<u8>>);

#[derive(Clone, Debug, Deserialize, PartialEq, SchemaRead, SchemaWrite, Serialize)]
enum Choice {
    Nothing,
    One(u64),
    Two(u8, String),
    Named { at: i64, which: Vec<u32> },
}

impl Enveloped for Everything {
    const KIND: u16 = 0xfffe;
    const VERSION: u8 = 3;
}

impl Enveloped for Choice {
    const KIND: u16 = 0xfffd;
    const VERSION: u8 = 1;
}

fn text(random: &mut SeededRandom) -> String {
    let alphabet = ['a', '.', '*', '>', 'ß', '語', '\0', '🦀'];
    (0..random.index(12)).map(|_| alphabet[random.index(alphabet.len())]).collect()
}

fn blob(random: &mut SeededRandom) -> Vec<u8> {
    let mut bytes = vec![0; random.index(40)];
    random.fill(&mut bytes);
    bytes
}

fn choice(random: &mut SeededRandom) -> Choice {
    match random.below(4) {
        0 => Choice::Nothing,
        1 => Choice::One(random.next()),
        2 => Choice::Two(random.next().to_le_bytes()[0], text(random)),
        _ => Choice::Named {
            at: random.next().cast_signed(),
            which: (0..random.below(5)).map(|n| u32::try_from(n).unwrap()).collect(),
        },
    }
}

fn everything(random: &mut SeededRandom) -> Everything {
    let [small, s0, s1, w0, w1, w2, w3, flag] = random.next().to_le_bytes();
    let mut id = [0; 16];
    random.fill(&mut id);
    Everything {
        small,
        short: u16::from_le_bytes([s0, s1]),
        word: u32::from_le_bytes([w0, w1, w2, w3]),
        long: random.next(),
        signed: random.next().cast_signed(),
        flag: flag & 1 == 1,
        id,
        name: text(random),
        bytes: blob(random),
        maybe: random.one_in(2).then(|| random.next()),
        list: (0..random.below(4)).map(|_| choice(random)).collect(),
        pairs: (0..random.below(4)).map(|n| (random.next(), u32::try_from(n).unwrap())).collect(),
        map: (0..random.below(4)).map(|n| (text(random), u32::try_from(n).unwrap())).collect(),
        nested: Nested(random.one_in(2).then(|| text(random)), random.one_in(2).then(|| blob(random))),
    }
}

#[test]
fn bodies_are_bincode_1_byte_for_byte() {
    let mut random = SeededRandom::new(1);
    for _ in 0..5_000 {
        let record = everything(&mut random);
        let bytes = envelope::encode(&record).unwrap();
        assert_eq!(bytes[HEADER_BYTES..], bincode::serialize(&record).unwrap());
        assert_eq!(envelope::decode::<Everything>(&bytes).unwrap(), record);
    }
}

/// bincode 1 on a whole slice: its default encoding, trailing bytes refused, lengths not believed.
fn bincode_exact<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    use bincode::Options;
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_limit(1 << 21)
        .reject_trailing_bytes()
        .deserialize(bytes)
        .ok()
}

/// Puts any body under a valid header, so that the parser behind the checksum is reached.
fn sealed<T: Enveloped>(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, T::VERSION];
    bytes.extend_from_slice(&T::KIND.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher.update(body);
    bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn damaged_bodies_mean_to_both_codecs_the_same() {
    let mut random = SeededRandom::new(2);
    let mut accepted = 0;
    for _ in 0..60_000 {
        let mut body = bincode::serialize(&everything(&mut random)).unwrap();
        for _ in 0..=random.below(2) {
            let at = random.index(body.len());
            body[at] = random.next().to_le_bytes()[0];
        }
        if random.one_in(4) {
            body.truncate(random.index(body.len()));
        }
        let ours = envelope::decode::<Everything>(&sealed::<Everything>(&body)).ok();
        let theirs = bincode_exact::<Everything>(&body);
        accepted += u32::from(ours.is_some());
        // Compared by their bytes: a map may hold a key twice on the wire.
        assert_eq!(
            ours.map(|record| bincode::serialize(&record).unwrap()),
            theirs.map(|record| bincode::serialize(&record).unwrap()),
        );
    }
    assert!(accepted > 1_000, "the test must also see bodies that still parse");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = envelope::encode(&everything(&mut SeededRandom::new(3))).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(envelope::decode::<Everything>(&damaged).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(envelope::decode::<Everything>(&bytes[..len]).is_err(), "length {len}");
    }
}

#[test]
fn a_hostile_length_is_an_error_and_no_allocation() {
    // `list` of a Choice::Named claims 2^60 numbers.
    let mut body = 3_u32.to_le_bytes().to_vec();
    body.extend_from_slice(&0_i64.to_le_bytes());
    body.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    let refused = envelope::decode::<Choice>(&sealed::<Choice>(&body));
    assert!(matches!(refused, Err(DecodeError::Malformed { .. })), "{refused:?}");
}

#[test]
fn what_it_is_not_is_said() {
    let bytes = envelope::encode(&Choice::One(1)).unwrap();
    assert!(matches!(
        envelope::decode::<Everything>(&bytes),
        Err(DecodeError::Kind { expected: 0xfffe, found: 0xfffd })
    ));
    let mut newer = sealed::<Choice>(&bytes[HEADER_BYTES..]);
    newer[1] = 9;
    let header_and_body: Vec<u8> = [&newer[..8], &newer[HEADER_BYTES..]].concat();
    newer[8..12].copy_from_slice(&crc32fast::hash(&header_and_body).to_le_bytes());
    assert_eq!(envelope::peek(&newer).unwrap().version, 9);
    assert!(matches!(
        envelope::decode::<Choice>(&newer),
        Err(DecodeError::Version { known: 1, found: 9, .. })
    ));
    assert!(matches!(envelope::peek(&[2]), Err(DecodeError::Format { found: 2 })));
    assert!(matches!(envelope::peek(&[]), Err(DecodeError::Truncated { bytes: 0 })));
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(envelope::peek(&longer), Err(DecodeError::Length { .. })));
}

#[test]
fn a_body_over_the_limit_is_refused_on_the_way_in() {
    let too_large = Choice::Two(0, "x".repeat(envelope::BODY_BYTES_MAX));
    assert!(matches!(envelope::encode(&too_large), Err(envelope::EncodeError::TooLarge { .. })));
}

/// The bytes of version 1, written down once; a change here is a change of the format.
#[test]
fn golden_vectors_hold() {
    let golden = [
        ("nothing", Choice::Nothing),
        ("one", Choice::One(0x0102_0304_0506_0708)),
        ("two", Choice::Two(7, "orders.*.ß".into())),
        ("named", Choice::Named { at: -2, which: vec![1, 2, u32::MAX] }),
    ];
    let file = include_str!("../../testdata/envelope-1.hex");
    let mut lines = file.lines().filter(|line| !line.starts_with('#'));
    for (name, record) in golden {
        let bytes = envelope::encode(&record).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(lines.next(), Some(format!("{name} {hex}").as_str()));
        assert_eq!(envelope::decode::<Choice>(&bytes).unwrap(), record);
    }
    assert_eq!(lines.next(), None);
}
