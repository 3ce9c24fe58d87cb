//! Time as the twins tell it: milliseconds of the Unix epoch, and its written forms.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-11-22T21:18:00.123Z`.
pub fn iso(time_ms: u64) -> String {
    i64::try_from(time_ms)
        .ok()
        .and_then(DateTime::<Utc>::from_timestamp_millis)
        .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
        .unwrap_or_else(|| String::from("1970-01-01T00:00:00.000Z"))
}

/// Reads an RFC 3339 instant back; `None` when it is not one or lies before 1970.
pub fn parse_iso(text: &str) -> Option<u64> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(time.timestamp_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_instant_reads_back() {
        assert_eq!(parse_iso(&iso(1_764_000_000_123)), Some(1_764_000_000_123));
        assert_eq!(parse_iso("yesterday"), None);
    }
}
