//! The headers with which a publisher tells a stream what to do. One pass over the block.
//!
//! A value that should be a number and is none becomes one that never matches, so that a mistyped
//! expectation refuses the publish instead of being ignored.

/// The headers of contract 1.4 that a publish may carry; absent ones are `None`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct PublishHeaders<'a> {
    pub(crate) message_id: Option<&'a [u8]>,
    pub(crate) expected_stream: Option<&'a [u8]>,
    pub(crate) expected_last: Option<u64>,
    pub(crate) expected_last_on_subject: Option<u64>,
    pub(crate) expected_subject: Option<&'a [u8]>,
    pub(crate) expected_last_id: Option<&'a [u8]>,
    pub(crate) rollup: Option<&'a [u8]>,
    pub(crate) ttl: Option<&'a [u8]>,
    pub(crate) unsupported: Option<Unsupported>,
    batch_id: Option<&'a [u8]>,
    batch_sequence: Option<Option<u64>>,
    batch_commit: Option<&'a [u8]>,
    /// Where a link brought it from.
    pub(crate) origin: Option<&'a [u8]>,
}

/// Of a message of an atomic batch: which batch, its number in it from 1, and whether it is the last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct BatchHeaders<'a> {
    pub(crate) id: &'a [u8],
    /// `None` when there is none, or none that is a number.
    pub(crate) sequence: Option<u64>,
    pub(crate) commit: Option<&'a [u8]>,
}

/// What a publish asks of its stream that no stream here can be configured for. Storing it as a plain
/// message would do something else than was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unsupported {
    Counter,
    Schedule,
}

/// How long a message lives, by its own header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TimeToLive {
    Never,
    Seconds(u64),
}

impl<'a> PublishHeaders<'a> {
    /// Reads a block; the first of equal names counts, as in nats-server.
    pub(crate) fn parse(block: &'a [u8]) -> Self {
        let mut headers = Self::default();
        if block.is_empty() {
            return headers;
        }
        for line in block.split(|byte| *byte == b'\n').skip(1) {
            let Some(rest) = line.strip_prefix(b"Nats-") else {
                if let Some(value) = line.strip_prefix(b"Beamlog-Origin:") {
                    first(&mut headers.origin, value.trim_ascii());
                }
                continue;
            };
            let Some(colon) = rest.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (&rest[..colon], rest[colon + 1..].trim_ascii());
            if value.is_empty() {
                continue;
            }
            match name {
                b"Msg-Id" => first(&mut headers.message_id, value),
                b"Expected-Stream" => first(&mut headers.expected_stream, value),
                b"Expected-Last-Sequence" => first(&mut headers.expected_last, number(value)),
                b"Expected-Last-Subject-Sequence" => {
                    first(&mut headers.expected_last_on_subject, number(value));
                }
                b"Expected-Last-Subject-Sequence-Subject" => first(&mut headers.expected_subject, value),
                b"Expected-Last-Msg-Id" => first(&mut headers.expected_last_id, value),
                b"Rollup" => first(&mut headers.rollup, value),
                b"TTL" => first(&mut headers.ttl, value),
                b"Batch-Id" => first(&mut headers.batch_id, value),
                b"Batch-Sequence" => first(&mut headers.batch_sequence, decimal(value)),
                b"Batch-Commit" => first(&mut headers.batch_commit, value),
                b"Incr" => first(&mut headers.unsupported, Unsupported::Counter),
                b"Schedule" => first(&mut headers.unsupported, Unsupported::Schedule),
                _ => {}
            }
        }
        headers
    }

    /// The batch it belongs to, if it does.
    pub(crate) fn batch(&self) -> Option<BatchHeaders<'a>> {
        let (sequence, commit) = (self.batch_sequence.flatten(), self.batch_commit);
        self.batch_id.map(|id| BatchHeaders { id, sequence, commit })
    }

    /// The time to live: `Err` when there is one and it cannot be read.
    pub(crate) fn time_to_live(&self) -> Result<Option<TimeToLive>, InvalidTtl> {
        self.ttl.map(parse_ttl).transpose()
    }
}

/// A `Nats-TTL` that is neither "never", nor seconds, nor a duration of at least one second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InvalidTtl;

fn first<T>(slot: &mut Option<T>, value: T) {
    if slot.is_none() {
        *slot = Some(value);
    }
}

fn number(value: &[u8]) -> u64 {
    decimal(value).unwrap_or(u64::MAX)
}

fn decimal(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
}

fn parse_ttl(value: &[u8]) -> Result<TimeToLive, InvalidTtl> {
    let text = std::str::from_utf8(value).map_err(|_unreadable| InvalidTtl)?;
    if text.eq_ignore_ascii_case("never") {
        return Ok(TimeToLive::Never);
    }
    if text != "0" && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map(TimeToLive::Seconds).map_err(|_unreadable| InvalidTtl);
    }
    let nanos = duration_nanos(text).ok_or(InvalidTtl)?;
    if nanos < 1_000_000_000 { Err(InvalidTtl) } else { Ok(TimeToLive::Seconds(nanos / 1_000_000_000)) }
}

/// A duration as Go writes it: "1h30m", "90s", "1.5h".
fn duration_nanos(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (whole, fraction) = rest[..digits].split_once('.').unwrap_or((&rest[..digits], ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let after = &rest[digits..];
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let unit: u64 = match &after[..unit_end] {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.bytes().take(9) {
            scale /= 10;
            total = total.checked_add(u64::from(digit.checked_sub(b'0')?) * scale)?;
        }
        rest = &after[unit_end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_of_a_publish_are_found_among_others() {
        let block =
            b"NATS/1.0\r\nX: 1\r\nNats-Msg-Id: a b\r\nNats-Expected-Last-Sequence:7\r\nNats-TTL: 1h\r\n\
                      Nats-Rollup: sub\r\nNats-Msg-Id: second\r\n\r\n";
        let headers = PublishHeaders::parse(block);
        assert_eq!(headers.message_id, Some(&b"a b"[..]));
        assert_eq!(headers.expected_last, Some(7));
        assert_eq!(headers.rollup, Some(&b"sub"[..]));
        assert_eq!(headers.time_to_live(), Ok(Some(TimeToLive::Seconds(3600))));
        assert_eq!(headers.expected_stream, None);
    }

    #[test]
    fn an_unreadable_number_never_matches() {
        let block = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: -1\r\n\r\n";
        assert_eq!(PublishHeaders::parse(block).expected_last_on_subject, Some(u64::MAX));
    }

    #[test]
    fn a_time_to_live_is_seconds_or_a_duration_or_never() {
        let check = |text: &str, expected| assert_eq!(parse_ttl(text.as_bytes()), expected, "{text}");
        check("never", Ok(TimeToLive::Never));
        check("10", Ok(TimeToLive::Seconds(10)));
        check("1m30s", Ok(TimeToLive::Seconds(90)));
        check("1.5h", Ok(TimeToLive::Seconds(5400)));
        check("500ms", Err(InvalidTtl));
        check("-1", Err(InvalidTtl));
        check("soon", Err(InvalidTtl));
        // Go reads a bare 0 as a duration, which is shorter than a second.
        check("0", Err(InvalidTtl));
    }
}
