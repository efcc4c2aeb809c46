//! The envelope of control records, and the codec behind its checksum.

use std::collections::BTreeMap;

use beamlog_log::envelope::{self, Enveloped, HEADER_BYTES};
use wincode::{SchemaRead, SchemaWrite};

pub const WORDS: &[&[u8]] = &[&[0, 0, 0, 0, 0, 0, 0, 0], &[0xff; 8], "ß".as_bytes(), &[1, 0, 0, 0]];

#[derive(Clone, Debug, PartialEq, SchemaRead, SchemaWrite)]
enum Shape {
    Nothing,
    Plain { number: u64, small: u8, signed: i64, flag: bool, id: [u8; 16] },
    Long { text: String, bytes: Vec<u8>, maybe: Option<u32> },
    Many { list: Vec<(u64, String)>, map: BTreeMap<String, u32>, nested: Vec<Option<Vec<u8>>> },
}

impl Enveloped for Shape {
    const KIND: u16 = 0xfff0;
    const VERSION: u8 = 1;
}

/// The input as an envelope, and as a body under a valid header.
pub fn run(data: &[u8]) {
    check(data);
    if data.len() <= envelope::BODY_BYTES_MAX {
        check(&sealed(data));
    }
}

fn check(bytes: &[u8]) {
    let Ok(record) = envelope::decode::<Shape>(bytes) else { return };
    let again = envelope::encode(&record).expect("what was decoded is in bounds");
    let decoded = envelope::decode::<Shape>(&again).expect("what was encoded decodes");
    assert_eq!(decoded, record);
    // A map may hold a key twice on the wire; everything else has one spelling.
    assert!(again.len() <= bytes.len());
}

fn sealed(body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, Shape::VERSION];
    bytes.extend_from_slice(&Shape::KIND.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).expect("bounded by the caller").to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher.update(body);
    bytes.extend_from_slice(&hasher.finalize().to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let shapes = [
        Shape::Nothing,
        Shape::Plain { number: u64::MAX, small: 3, signed: -5, flag: true, id: [7; 16] },
        Shape::Long { text: "orders.*.ß".into(), bytes: vec![0; 33], maybe: Some(9) },
        Shape::Long { text: String::new(), bytes: vec![], maybe: None },
        Shape::Many {
            list: vec![(1, "one".into()), (2, String::new())],
            map: BTreeMap::from([("key".into(), 1), ("other".into(), 2)]),
            nested: vec![None, Some(vec![1, 2, 3])],
        },
    ];
    let whole = shapes.iter().map(|shape| envelope::encode(shape).expect("small"));
    whole.flat_map(|bytes| [bytes[HEADER_BYTES..].to_vec(), bytes]).collect()
}
