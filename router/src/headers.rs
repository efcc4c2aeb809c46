//! The raw header block of a message: `NATS/1.0[ <status>[ <text>]]`, lines `Name: value`, an empty line.
//!
//! The router stores and forwards blocks as they came; these functions look into one without copying.
//! Names are compared exactly, as nats-server does it; a peer's block may be malformed anywhere, which
//! ends the search and nothing else.

use std::ops::Range;

/// How every block begins.
pub const VERSION: &[u8] = b"NATS/1.0";

const LINE_END: &[u8] = b"\r\n";

/// The value of the first header of exactly this name, without the blanks before it.
#[must_use]
pub fn find<'a>(block: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    iter(block).find(|(have, _)| *have == name).map(|(_, value)| value)
}

/// As [`find`], without regard to the case of ASCII letters.
#[must_use]
pub fn find_ignore_case<'a>(block: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    iter(block).find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// All headers in order: name and value without the blanks before it.
pub fn iter(block: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(block).filter_map(|line| split(block.get(line)?))
}

/// Whether the block is whole: the version line, lines with a name, an empty line at the end and only there.
#[must_use]
pub fn is_well_formed(block: &[u8]) -> bool {
    let Some(rest) = block.strip_prefix(VERSION) else { return false };
    (rest.starts_with(LINE_END) || rest.first() == Some(&b' '))
        && block.windows(4).position(|four| four == b"\r\n\r\n") == block.len().checked_sub(4)
        && lines(block).all(|line| block.get(line).is_some_and(|line| split(line).is_some()))
}

/// The status in the version line, if it has one.
#[must_use]
pub fn status(block: &[u8]) -> Option<u16> {
    let text = block.strip_prefix(VERSION)?.strip_prefix(b" ")?;
    let digits = text.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The block without the headers that `unwanted` names.
#[must_use]
pub fn without(block: &[u8], mut unwanted: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut kept = Vec::with_capacity(block.len());
    let mut copied = 0;
    for line in lines(block) {
        let drop = block.get(line.clone()).and_then(split).is_some_and(|(name, _)| unwanted(name));
        if drop {
            kept.extend_from_slice(block.get(copied..line.start).unwrap_or_default());
            copied = line.end + LINE_END.len();
        }
    }
    kept.extend_from_slice(block.get(copied..).unwrap_or_default());
    kept
}

/// Writes one block.
#[derive(Clone, Debug)]
pub struct Builder(Vec<u8>);

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A block without a status.
    #[must_use]
    pub fn new() -> Self {
        Self([VERSION, LINE_END].concat())
    }

    /// A block with a status; an empty text is left out.
    #[must_use]
    pub fn status(code: u16, text: &str) -> Self {
        let mut block = VERSION.to_vec();
        block.extend_from_slice(format!(" {code}").as_bytes());
        if !text.is_empty() {
            block.push(b' ');
            push_text(&mut block, text.as_bytes());
        }
        block.extend_from_slice(LINE_END);
        Self(block)
    }

    /// Continues a block that came from a peer. One that is not whole is begun anew.
    #[must_use]
    pub fn append_to(block: &[u8]) -> Self {
        match block.strip_suffix(LINE_END) {
            Some(open) if is_well_formed(block) => Self(open.to_vec()),
            Some(_) | None => Self::new(),
        }
    }

    /// Adds a header. CR and LF in the value become blanks: a value never ends its line.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        push_text(&mut self.0, name.as_bytes());
        self.0.extend_from_slice(b": ");
        push_text(&mut self.0, value.as_ref());
        self.0.extend_from_slice(LINE_END);
        self
    }

    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(LINE_END);
        self.0
    }
}

fn push_text(block: &mut Vec<u8>, text: &[u8]) {
    block.extend(text.iter().map(|&byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
}

/// Where the header lines are: after the version line, up to the empty line, without their ends.
fn lines(block: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = line_end(block, 0).map_or(block.len(), |end| end + LINE_END.len());
    std::iter::from_fn(move || {
        let end = line_end(block, at)?;
        if end == at {
            return None;
        }
        let line = at..end;
        at = end + LINE_END.len();
        Some(line)
    })
}

fn line_end(block: &[u8], from: usize) -> Option<usize> {
    let rest = block.get(from..)?;
    let mut at = 0;
    loop {
        at += rest.get(at..)?.iter().position(|&byte| byte == b'\r')?;
        if rest.get(at + 1) == Some(&b'\n') {
            return Some(from + at);
        }
        at += 1;
    }
}

fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':').filter(|&at| at > 0)?;
    let (name, value) = line.split_at_checked(colon)?;
    let value = value.get(1..)?;
    let blanks = value.iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
    Some((name, value.get(blanks..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &[u8] = b"NATS/1.0\r\nA: one\r\nNats-Msg-Id:two \r\nA: three\r\nEmpty:\r\n\r\n";

    #[test]
    fn values_are_found_by_exact_name_and_the_first_counts() {
        assert_eq!(find(BLOCK, b"A"), Some(&b"one"[..]));
        assert_eq!(find(BLOCK, b"Nats-Msg-Id"), Some(&b"two "[..]));
        assert_eq!(find(BLOCK, b"nats-msg-id"), None);
        assert_eq!(find_ignore_case(BLOCK, b"nats-msg-id"), Some(&b"two "[..]));
        assert_eq!(find(BLOCK, b"Empty"), Some(&b""[..]));
        assert_eq!(find(BLOCK, b"Nats-Msg"), None);
        assert_eq!(find(BLOCK, b"one"), None);
    }

    #[test]
    fn a_name_inside_a_value_is_no_header() {
        assert_eq!(find(b"NATS/1.0\r\nX: Nats-Msg-Id: 1\r\n\r\n", b"Nats-Msg-Id"), None);
    }

    #[test]
    fn the_status_line_is_no_header() {
        let block = b"NATS/1.0 100 Idle: Heartbeat\r\nK: v\r\n\r\n";
        assert_eq!(status(block), Some(100));
        assert_eq!(iter(block).count(), 1);
        assert_eq!(status(BLOCK), None);
    }

    #[test]
    fn malformed_blocks_are_told_from_whole_ones() {
        assert!(is_well_formed(BLOCK));
        assert!(is_well_formed(b"NATS/1.0\r\n\r\n"));
        assert!(is_well_formed(b"NATS/1.0 503\r\n\r\n"));
        for broken in [
            &b""[..],
            b"NATS/1.0",
            b"NATS/1.0\r\n",
            b"NATS/1.0\r\nA: b\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\n: no name\r\n\r\n",
            b"HTTP/1.1\r\nA: b\r\n\r\n",
            b"NATS/1.01\r\n\r\n",
            b"NATS/1.0\r\nA: b\r\n\r\nB: c\r\n\r\n",
        ] {
            assert!(!is_well_formed(broken), "{:?}", String::from_utf8_lossy(broken));
        }
    }

    #[test]
    fn what_is_built_is_read_back() {
        let block = Builder::status(503, "").header("Nats-Subject", "a\r\nX: b").finish();
        assert_eq!(block, b"NATS/1.0 503\r\nNats-Subject: a  X: b\r\n\r\n");
        assert!(is_well_formed(&block));
        let longer = Builder::append_to(&block).header("K", "v").finish();
        assert_eq!(find(&longer, b"K"), Some(&b"v"[..]));
        assert_eq!(status(&longer), Some(503));
        assert_eq!(Builder::append_to(b"").header("K", "v").finish(), b"NATS/1.0\r\nK: v\r\n\r\n");
    }

    #[test]
    fn headers_are_taken_out_by_name() {
        let rest = without(BLOCK, |name| name == b"A");
        assert_eq!(rest, b"NATS/1.0\r\nNats-Msg-Id:two \r\nEmpty:\r\n\r\n");
        assert_eq!(without(BLOCK, |_| false), BLOCK);
    }
}
