//! The messages: what publisher `p` sends as its `n`-th is known to everyone, so that a stored message
//! can be judged by its bytes alone.

/// `"<publisher> <number> "` and bytes that follow from both.
pub fn payload(publisher: u32, number: u64, bytes: usize, out: &mut Vec<u8>) {
    use std::io::Write;
    out.clear();
    write!(out, "{publisher} {number} ").expect("writing to memory does not fail");
    let mut state = (u64::from(publisher) << 40) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.push(b"abcdefghijklmnopqrstuvwxyz0123456789_-ABCDEFGHIJKLMNOPQRSTUVWXYZ"[(state >> 58) as usize]);
    }
}

/// A header block with the message id.
pub fn headers(publisher: u32, number: u64, out: &mut Vec<u8>) {
    use std::io::Write;
    out.clear();
    write!(out, "NATS/1.0\r\nNats-Msg-Id: p{publisher}-{number}\r\n\r\n")
        .expect("writing to memory does not fail");
}

/// Who sent this payload as its how-manieth; nothing when the bytes are not what that one sends.
#[must_use]
pub fn identify(received: &[u8], scratch: &mut Vec<u8>) -> Option<(u32, u64)> {
    let text = |part: &[u8]| std::str::from_utf8(part).ok().map(str::to_owned);
    let mut parts = received.splitn(3, |byte| *byte == b' ');
    let publisher: u32 = text(parts.next()?)?.parse().ok()?;
    let number: u64 = text(parts.next()?)?.parse().ok()?;
    payload(publisher, number, received.len(), scratch);
    (scratch == received).then_some((publisher, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_tells_its_origin_and_a_flipped_bit_is_seen() {
        let (mut sent, mut scratch) = (Vec::new(), Vec::new());
        payload(3, 41, 128, &mut sent);
        assert_eq!(sent.len(), 128);
        assert_eq!(identify(&sent, &mut scratch), Some((3, 41)));
        for bit in 0..sent.len() * 8 {
            let mut flipped = sent.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(identify(&flipped, &mut scratch), None, "bit {bit}");
        }
    }
}
