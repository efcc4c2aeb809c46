//! Sizes and durations as people write them: `"64MiB"`, `"30s"`. A number without a unit is refused
//! for durations (of what?) and is bytes for sizes only when it says so (`"512B"`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A number of bytes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

/// A length of time that prints as it is written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum UnitError {
    #[error(
        "{text:?} is not a size: write a whole number and a unit, B, KiB, MiB, GiB or TiB, like \"64MiB\""
    )]
    Size { text: String },
    #[error("{text:?} is not a duration: write whole numbers with units, ms, s, m, h or d, like \"30s\"")]
    Duration { text: String },
}

const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The leading whole number and the rest.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let (count, unit) = number(text.trim())?;
            let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit.trim())?;
            count.checked_mul(*factor)
        };
        parse().map(Self).ok_or_else(|| UnitError::Size { text: text.to_owned() })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 >= factor && self.0.is_multiple_of(factor);
        let (unit, factor) = SIZES.iter().find(|(_, factor)| fits(*factor)).unwrap_or(&SIZES[4]);
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let parse = || {
            let mut rest = text.trim();
            let mut millis = 0_u64;
            if rest.is_empty() {
                return None;
            }
            while !rest.is_empty() {
                let (count, tail) = number(rest)?;
                let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
                let (unit, tail) = tail.split_at(end);
                let (_, factor) = DURATIONS.iter().find(|(name, _)| *name == unit)?;
                millis = millis.checked_add(count.checked_mul(*factor)?)?;
                rest = tail;
            }
            Some(Duration::from_millis(millis))
        };
        parse().map(Self).ok_or_else(|| UnitError::Duration { text: text.to_owned() })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, factor) in DURATIONS {
            if millis >= factor {
                write!(f, "{}{unit}", millis / factor)?;
                millis %= factor;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for ByteSize {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl TryFrom<String> for Span {
    type Error = UnitError;

    fn try_from(text: String) -> Result<Self, UnitError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_needs_a_unit() {
        assert_eq!("64MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("1 GiB".parse(), Ok(ByteSize(1 << 30)));
        assert_eq!("512B".parse(), Ok(ByteSize(512)));
        for bad in ["", "64", "64MB", "-1MiB", "1.5MiB", "18446744073709551615KiB", "MiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!("30s".parse(), Ok(Span(Duration::from_secs(30))));
        assert_eq!("1m30s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("250ms".parse(), Ok(Span(Duration::from_millis(250))));
        for bad in ["", "30", "s", "30 s", "-1s", "1.5s", "1y"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for bytes in [0, 1, 1000, 1024, 3 << 20, (1 << 30) + 1, 1 << 40] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        for millis in [0, 1, 999, 1000, 90_000, 86_400_000, 90_061_001] {
            let span = Span(Duration::from_millis(millis));
            assert_eq!(span.to_string().parse(), Ok(span));
        }
    }
}
