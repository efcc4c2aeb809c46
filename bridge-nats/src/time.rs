//! Points in time as NATS writes them.

/// Nanoseconds since the Unix epoch as RFC 3339 in UTC with nanoseconds, without trailing zeros, as Go
/// prints them.
#[must_use]
pub fn rfc3339(nanos: u64) -> String {
    beamlog_router::timestamp::rfc3339(beamlog_router::Timestamp(nanos))
}

/// Nanoseconds since 1970 of a time in RFC 3339, with any offset; before 1970 is 0.
#[must_use]
pub fn rfc3339_nanos(text: &str) -> Option<u64> {
    crate::jetstream::parse_time(text).map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_232_503_226_258_149), "2026-11-21T03:41:43.226258149Z");
        assert_eq!(rfc3339(1_704_067_199_500_000_000), "2023-12-31T23:59:59.5Z");
    }
}
