//! What clients say of deliveries: the `$JS.ACK` subject, the bodies, and pull requests, which may come
//! behind an ack.

use beamlog_router::Sequence;
use beamlog_router::api::request::{AckKind, AckTarget, PullRequest};

use super::json::Fields;

/// Reads the subject that acks a delivery: nine tokens, or eleven and more with the domain and account in
/// front of the stream. `None`: it is none.
pub(super) fn target(subject: &str) -> Option<AckTarget> {
    let tokens: Vec<&str> = subject.split('.').collect();
    let ["$JS", "ACK", rest @ ..] = tokens.as_slice() else { return None };
    let fields = match rest.len() {
        7 => rest,
        9.. => rest.get(2..)?,
        _ => return None,
    };
    let [stream, consumer, delivery_count, stream_sequence, consumer_sequence, _time, _pending, ..] = fields
    else {
        return None;
    };
    Some(AckTarget {
        stream: (*stream).to_owned(),
        consumer: (*consumer).to_owned(),
        delivery_count: delivery_count.parse().ok()?,
        stream_sequence: Sequence(stream_sequence.parse().ok().filter(|&sequence| sequence > 0)?),
        consumer_sequence: consumer_sequence.parse().ok()?,
    })
}

/// Reads the body of an ack. `None`: it says nothing that nats-server would act on.
pub(super) fn kind(body: &[u8]) -> Option<AckKind> {
    match body {
        b"" | b"+ACK" | b"+OK" => return Some(AckKind::Ack),
        b"+WPI" => return Some(AckKind::InProgress),
        _ => {}
    }
    if let Some(request) = body.strip_prefix(b"+NXT") {
        // A malformed request behind the ack does not undo the ack: it pulls one.
        let request = pull(request).unwrap_or_else(|_| single_pull());
        return Some(AckKind::AckNext(request));
    }
    if let Some(delay) = body.strip_prefix(b"-NAK") {
        return Some(AckKind::Nak { delay_nanos: nak_delay(delay.trim_ascii()) });
    }
    let reason = body.strip_prefix(b"+TERM")?;
    Some(AckKind::Terminate { reason: String::from_utf8_lossy(reason.trim_ascii()).into_owned() })
}

/// `{"delay": nanoseconds}` or a duration in Go's words. What is neither is a nak without delay.
fn nak_delay(text: &[u8]) -> Option<u64> {
    if text.first() == Some(&b'{') {
        let delay = Fields::parse(text).and_then(|mut fields| fields.signed("delay")).ok()?;
        return u64::try_from(delay).ok().filter(|&delay| delay > 0);
    }
    go_duration(std::str::from_utf8(text).ok()?).filter(|&delay| delay > 0)
}

/// Reads a duration as Go prints it: `1h15m30.918s`, `300ms`. Only what is not negative.
fn go_duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut place = unit / 10;
        for digit in fraction.chars() {
            total = total.checked_add(u64::from(digit.to_digit(10)?) * place)?;
            place /= 10;
        }
        rest = tail;
    }
    Some(total)
}

/// What a pull without a body asks for.
pub(super) fn single_pull() -> PullRequest {
    PullRequest { batch: 1, ..PullRequest::default() }
}

/// Reads a pull request: JSON, a bare number, or nothing. An error is the reason that the client is told
/// behind "Bad Request - ".
pub(super) fn pull(body: &[u8]) -> Result<PullRequest, String> {
    let body = body.trim_ascii();
    if body.first() != Some(&b'{') {
        let count = std::str::from_utf8(body).ok().and_then(|text| text.parse::<i64>().ok());
        return Ok(PullRequest { batch: at_least_one(count.unwrap_or(1)), ..PullRequest::default() });
    }
    // Not strict, as with nats-server: members of priority groups may stand here, and nothing refuses them.
    let mut fields = Fields::parse(body).map_err(|error| error.to_string())?;
    let mut signed = |name| fields.signed(name).map_err(|error| error.to_string());
    let (expires, batch) = (signed("expires")?, signed("batch")?);
    let (max_bytes, heartbeat) = (signed("max_bytes")?, signed("idle_heartbeat")?);
    let no_wait = fields.boolean("no_wait").map_err(|error| error.to_string())?;
    if heartbeat > 0 && heartbeat.saturating_mul(2) > expires {
        return Err("heartbeat value too large".to_owned());
    }
    let positive = |value: i64| u64::try_from(value).ok().filter(|&value| value > 0);
    Ok(PullRequest {
        batch: at_least_one(batch),
        max_bytes: positive(max_bytes),
        no_wait,
        expires_nanos: positive(expires),
        idle_heartbeat_nanos: positive(heartbeat),
    })
}

fn at_least_one(count: i64) -> u32 {
    u32::try_from(count.max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_ack_subject_are_read() {
        let expected = AckTarget {
            stream: "s".to_owned(),
            consumer: "c".to_owned(),
            delivery_count: 2,
            stream_sequence: Sequence(33),
            consumer_sequence: 4,
        };
        for subject in [
            "$JS.ACK.s.c.2.33.4.1700000000000000000.5",
            "$JS.ACK._.hash.s.c.2.33.4.1700000000000000000.5",
            "$JS.ACK.domain.hash.s.c.2.33.4.1700000000000000000.5.random",
        ] {
            assert_eq!(target(subject).as_ref(), Some(&expected), "{subject}");
        }
        for subject in [
            "$JS.ACK",
            "$JS.ACK.s.c",
            "$JS.ACK.s.c.2.33.4.17",
            "$JS.ACK.x.s.c.2.33.4.17.5",
            "$JS.ACK.s.c.x.33.4.17.5",
            "$JS.ACK.s.c.2.0.4.17.5",
            "$JS.ACK.s.c.2.-3.4.17.5",
            "$JS.NAK.s.c.2.33.4.17.5",
        ] {
            assert_eq!(target(subject), None, "{subject}");
        }
    }

    #[test]
    fn every_body_of_an_ack_has_its_meaning() {
        let nak = |delay_nanos| Some(AckKind::Nak { delay_nanos });
        let terminate = |reason: &str| Some(AckKind::Terminate { reason: reason.to_owned() });
        for (body, meaning) in [
            ("", Some(AckKind::Ack)),
            ("+ACK", Some(AckKind::Ack)),
            ("+OK", Some(AckKind::Ack)),
            ("+WPI", Some(AckKind::InProgress)),
            ("-NAK", nak(None)),
            ("-NAK {\"delay\":1500}", nak(Some(1500))),
            ("-NAK {\"delay\":\"x\"}", nak(None)),
            ("-NAK 1.5s", nak(Some(1_500_000_000))),
            ("-NAK 5", nak(None)),
            ("+TERM", terminate("")),
            ("+TERM  bad row ", terminate("bad row")),
            ("+NXT", Some(AckKind::AckNext(single_pull()))),
            ("+NXT 5", Some(AckKind::AckNext(PullRequest { batch: 5, ..PullRequest::default() }))),
            ("+NXT {\"batch\":\"x\"}", Some(AckKind::AckNext(single_pull()))),
            ("hello", None),
            ("+ACK ", None),
            ("+wpi", None),
        ] {
            assert_eq!(kind(body.as_bytes()), meaning, "{body:?}");
        }
    }

    #[test]
    fn pull_requests_are_read_in_all_their_forms() {
        let batch = |batch| PullRequest { batch, ..PullRequest::default() };
        for (body, request) in [
            ("", batch(1)),
            ("7", batch(7)),
            (" 7\n", batch(7)),
            ("x", batch(1)),
            ("-3", batch(1)),
            ("{}", batch(1)),
            ("{\"batch\":9,\"group\":\"g\",\"id\":\"x\"}", batch(9)),
            ("{\"batch\":5000000000}", batch(u32::MAX)),
            (
                "{\"batch\":2,\"no_wait\":true,\"expires\":10,\"max_bytes\":20,\"idle_heartbeat\":5}",
                PullRequest {
                    batch: 2,
                    max_bytes: Some(20),
                    no_wait: true,
                    expires_nanos: Some(10),
                    idle_heartbeat_nanos: Some(5),
                },
            ),
        ] {
            assert_eq!(pull(body.as_bytes()), Ok(request), "{body:?}");
        }
        assert_eq!(pull(b"{\"idle_heartbeat\":5}"), Err("heartbeat value too large".to_owned()));
        assert!(pull(b"{\"batch\":\"x\"}").is_err());
        assert!(pull(b"{").is_err());
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("5s", Some(5_000_000_000)),
            ("1h2m3.5s", Some(3_723_500_000_000)),
            ("10us", Some(10_000)),
            (".5s", Some(500_000_000)),
            ("+1ns", Some(1)),
            ("", None),
            ("5", None),
            ("5x", None),
            (".s", None),
            ("1..5s", None),
            ("-5s", None),
            ("99999999999999h", None),
        ] {
            assert_eq!(go_duration(text), nanos, "{text:?}");
        }
    }
}
