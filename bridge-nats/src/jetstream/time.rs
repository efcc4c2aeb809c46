//! RFC 3339 times with nanoseconds, as nats-server writes and reads them. Nothing else is needed of a
//! calendar, so there is no calendar library.
//!
//! A [`Timestamp`] of 0 is "never" and is written as Go writes its zero time, the year 1. Reading
//! saturates at both ends of what a `Timestamp` can say.

use beamlog_router::Timestamp;

/// How "never" is written.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Appends the time in UTC, with as many digits of a second as it needs.
pub(super) fn write(time: Timestamp, out: &mut String) {
    if time == Timestamp(0) {
        out.push_str(NEVER);
        return;
    }
    out.push_str(&crate::rfc3339(time.0));
}

/// The time as text.
pub(super) fn text(time: Timestamp) -> String {
    let mut out = String::with_capacity(30);
    write(time, &mut out);
    out
}

/// Reads a time with any offset. `None`: it is not RFC 3339. Before 1970 is 0.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let year = digits(bytes, 0..4)?;
    let (month, day) = (digits(bytes, 5..7)?, digits(bytes, 8..10)?);
    let (hour, minute, second) = (digits(bytes, 11..13)?, digits(bytes, 14..16)?, digits(bytes, 17..19)?);
    let separators =
        [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')].iter().all(|&(at, byte)| bytes.get(at) == Some(&byte));
    if !separators || !matches!(bytes.get(10), Some(b'T' | b't')) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 59 || day == 0 || day > days_in(year, month)? {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0;
    if bytes.get(at) == Some(&b'.') {
        at += 1;
        let count = bytes.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return None;
        }
        // Digits beyond the ninth are cut off, as Go does it.
        let used = count.min(9);
        nanos = digits(bytes, at..at + used)?;
        for _ in used..9 {
            nanos *= 10;
        }
        at += count;
    }
    let offset = match (bytes.get(at)?, bytes.len() - at) {
        (b'Z' | b'z', 1) => 0,
        (sign @ (b'+' | b'-'), 6) if bytes.get(at + 3) == Some(&b':') => {
            let (hours, minutes) = (digits(bytes, at + 1..at + 3)?, digits(bytes, at + 4..at + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = i64::try_from(hours * 3600 + minutes * 60).ok()?;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let of_day = i64::try_from(hour * 3600 + minute * 60 + second).ok()?;
    let seconds = days_since_epoch(year, month, day)? * 86_400 + of_day - offset;
    let seconds = u64::try_from(seconds).unwrap_or(0);
    if seconds == 0 && year < 1970 {
        return Some(Timestamp(0));
    }
    Some(Timestamp(seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(nanos)))
}

/// A length of time as Go prints a `Duration`: `1s`, `1m30s`, `2h0m0s`, `1.5ms`.
pub(super) fn duration(nanos: u64) -> String {
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < NANOS_PER_SECOND {
        let (unit, name) = if nanos < 1_000 {
            (1, "ns")
        } else if nanos < 1_000_000 {
            (1_000, "µs")
        } else {
            (1_000_000, "ms")
        };
        return format!("{}{name}", decimal(nanos, unit));
    }
    let minutes = nanos / NANOS_PER_SECOND / 60;
    let seconds = decimal(nanos - minutes * 60 * NANOS_PER_SECOND, NANOS_PER_SECOND);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / unit` with the digits it needs. `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let mut text = (value / unit).to_string();
    let mut rest = value % unit;
    if rest > 0 {
        text.push('.');
        let mut place = unit / 10;
        while rest > 0 {
            text.push_str(&(rest / place).to_string());
            rest %= place;
            place /= 10;
        }
    }
    text
}

/// Days between 1970-01-01 and a legal date, negative before.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<i64> {
    // Leap days before a year: one every 4, none every 100, one every 400.
    let leaps = |year: u64| (year / 4 + year / 400).saturating_sub(year / 100);
    let before = year.saturating_sub(1);
    let mut days = year * 365 + leaps(before);
    for earlier in 1..month {
        days += days_in(year, earlier)?;
    }
    // What the same sum gives for 1970-01-01.
    let epoch = 1970 * 365 + leaps(1969);
    Some(i64::try_from(days + day - 1).ok()? - i64::try_from(epoch).ok()?)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in(year: u64, month: u64) -> Option<u64> {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 => Some(if is_leap(year) { 29 } else { 28 }),
        _ => None,
    }
}

fn digits(bytes: &[u8], range: std::ops::Range<usize>) -> Option<u64> {
    bytes
        .get(range)?
        .iter()
        .try_fold(0_u64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_the_digits_they_need() {
        for (nanos, written) in [
            (0, "0001-01-01T00:00:00Z"),
            (1, "1970-01-01T00:00:00.000000001Z"),
            (1_000_000_000, "1970-01-01T00:00:01Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00Z"),
            (1_767_323_045_678_000_000, "2026-01-02T03:04:05.678Z"),
            (1_795_232_651_002_946_888, "2026-11-21T03:44:11.002946888Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(text(Timestamp(nanos)), written);
            assert_eq!(parse(written), Some(Timestamp(nanos)), "{written}");
        }
    }

    #[test]
    fn every_day_of_eight_centuries_is_read_as_written() {
        for day in 1..213_500 {
            let time = Timestamp(day * 86_400 * NANOS_PER_SECOND);
            assert_eq!(parse(&text(time)), Some(time), "day {day}");
        }
    }

    #[test]
    fn offsets_and_odd_fractions_are_understood() {
        for (written, same) in [
            ("2026-01-02T05:04:05+02:00", "2026-01-02T03:04:05Z"),
            ("2026-01-01T21:34:05.5-05:30", "2026-01-02T03:04:05.5Z"),
            ("2026-01-02t03:04:05.1234567899z", "2026-01-02T03:04:05.123456789Z"),
            ("1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z"),
            ("0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(parse(written), parse(same), "{written}");
            assert!(parse(written).is_some(), "{written}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "x",
            "2026",
            "2026-01-02",
            "2026-01-02T03:04:05",
            "2026-01-02 03:04:05Z",
            "2026-13-02T03:04:05Z",
            "2026-02-29T03:04:05Z",
            "2026-01-00T03:04:05Z",
            "2026-01-02T24:04:05Z",
            "2026-01-02T03:60:05Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05+2:00",
            "2026-01-02T03:04:05ZZ",
            "2026-01-02T03:04:05+25:00",
            "2026-01-0aT03:04:05Z",
            "2026-00-02T03:04:05Z",
            "+026-01-02T03:04:05Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_printed_as_go_prints_them() {
        for (nanos, printed) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (1_000_000, "1ms"),
            (1_500_000_000, "1.5s"),
            (90_000_000_000, "1m30s"),
            (7_200_000_000_000, "2h0m0s"),
        ] {
            assert_eq!(duration(nanos), printed);
        }
    }
}
