//! A frame of arbitrary records behind the valid ones, as raw bytes and with valid checksums.

use crate::store;

pub const WORDS: &[&[u8]] =
    &[b"BFR1", &[12, 0, 0, 0, 2], &[0; 4], &[0xff; 4], &[1, 0, 0, 0], &[40, 0, 0, 0, 1, 1, 5, 0]];

/// The first byte chooses: 0 raw bytes at the place of the next frame, 1 a body under a valid header,
/// 2 the same and valid records; then flags, then the bytes.
pub fn run(data: &[u8]) {
    let [mode, flags, bytes @ ..] = data else { return };
    let forged = mode % 3 > 0;
    let disk = store::disk();
    let bytes = &bytes[..bytes.len().min(16 << 10)];
    disk.alter(store::newest(), |segment| {
        let (end, last) = store::last_frame(segment);
        let mut frame = Vec::new();
        if forged {
            frame.extend_from_slice(&last);
            frame[5] = *flags;
            let body_bytes = u32::try_from(bytes.len()).expect("bounded above");
            frame[48..52].copy_from_slice(&body_bytes.to_le_bytes());
            let index = u64::from_le_bytes(*last[24..].first_chunk().expect("a header")).wrapping_add(1);
            frame[24..32].copy_from_slice(&index.to_le_bytes());
            frame[52..56].copy_from_slice(&last[56..60]);
            let records = if mode % 3 == 2 { count(bytes) } else { u32::from(*flags) };
            frame[12..16].copy_from_slice(&records.to_le_bytes());
        }
        frame.extend_from_slice(bytes);
        if forged {
            let keep = frame.clone();
            store::forge_frame(&mut frame, None);
            if mode % 3 == 1 {
                // Records as they came; the frame around them valid.
                frame[64..].copy_from_slice(&keep[64..]);
                reseal(&mut frame);
            }
        }
        for (target, byte) in segment[end..].iter_mut().zip(frame) {
            *target = byte;
        }
    })
    .expect("the store has this file");
    if let Ok(opened) = store::open(&disk) {
        store::use_everything(opened, forged);
    }
}

/// Records, if the bytes are some.
fn count(mut bytes: &[u8]) -> u32 {
    let mut records = 0;
    while let Some(len) = bytes.get(4..8).and_then(<[u8]>::first_chunk::<4>) {
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        match bytes.get(len..) {
            Some(rest) if len >= 12 => bytes = rest,
            Some(_) | None => break,
        }
        records += 1;
    }
    records
}

fn reseal(frame: &mut [u8]) {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..56]);
    hasher.update(&frame[64..]);
    frame[56..60].copy_from_slice(&hasher.finalize().to_le_bytes());
    let own = crc32fast::hash(&frame[..60]);
    frame[60..64].copy_from_slice(&own.to_le_bytes());
}

pub fn seeds() -> Vec<Vec<u8>> {
    let record = |kind: u8, subject: u16, body: &[u8]| {
        let len = u32::try_from(12 + body.len()).expect("small");
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&[kind, 0]);
        bytes.extend_from_slice(&subject.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let message = |stream: u32, sequence: u64, headers: u32, text: &str| {
        let mut body = stream.to_le_bytes().to_vec();
        body.extend_from_slice(&sequence.to_le_bytes());
        body.extend_from_slice(&5_u64.to_le_bytes());
        body.extend_from_slice(&headers.to_le_bytes());
        body.extend_from_slice(text.as_bytes());
        record(1, 3, &body)
    };
    let bodies = [
        vec![],
        message(1, 61, 0, "a.bpayload"),
        message(1, 61, 500, "a.bpayload"),
        message(7, u64::MAX, 0, "a.b"),
        message(1, 5, 0, "a.bagain"),
        [message(1, 61, 0, "a.bx"), message(1, 62, 0, "a.by"), record(2, 0, b"control")].concat(),
        record(3, 0, b"snapshot row"),
        record(4, 0, &9_u64.to_le_bytes()),
        record(5, 0, &1_u64.to_le_bytes()),
        record(5, 0, b"odd"),
        record(9, 0, b"unknown kind"),
        record(2, 0, &[0; 600]),
    ];
    let mut seeds = Vec::new();
    for body in &bodies {
        for (mode, flags) in [(0, 0), (1, 1), (2, 0), (2, 1), (2, 3), (2, 4), (2, 16)] {
            seeds.push([&[mode, flags][..], body].concat());
        }
    }
    seeds
}
