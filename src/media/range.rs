//! `Range` of a request for bytes: one range, as players ask for it.

use std::ops::Range;

use poem::http::StatusCode;

use crate::http::Problem;

/// `Ok(None)`: send everything, which is also the answer to what is not a single range of bytes.
pub fn parse(header: Option<&str>, size_bytes: u64) -> Result<Option<Range<u64>>, Problem> {
    let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else { return Ok(None) };
    let Some((first, last)) = spec.split_once('-') else { return Ok(None) };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let range = match (first.trim(), last.trim()) {
        // The last so many bytes.
        ("", suffix) => number(suffix).map(|length| size_bytes.saturating_sub(length)..size_bytes),
        (first, "") => number(first).map(|first| first..size_bytes),
        (first, last) => number(first)
            .zip(number(last))
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| first..last.saturating_add(1).min(size_bytes)),
    };
    match range {
        None => Ok(None),
        Some(range) if range.start < range.end => Ok(Some(range)),
        Some(_) => Err(Problem::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "range_not_satisfiable",
            "There is no such part",
            format!("The file has {size_bytes} bytes. Ask for a part of it, or leave the Range header out."),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_read_and_anything_else_means_everything() {
        let range = |header| parse(Some(header), 100).unwrap();
        assert_eq!(range("bytes=0-9"), Some(0..10));
        assert_eq!(range("bytes=90-"), Some(90..100));
        assert_eq!(range("bytes=90-1000"), Some(90..100));
        assert_eq!(range("bytes=-10"), Some(90..100));
        assert_eq!(range("bytes=-1000"), Some(0..100));
        for other in ["items=0-1", "bytes=0-1,5-6", "bytes=9-1", "bytes=a-b", "bytes=", ""] {
            assert_eq!(range(other), None, "{other}");
        }
        assert_eq!(parse(None, 100).unwrap(), None);
    }

    #[test]
    fn a_part_beyond_the_end_is_refused() {
        for header in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(parse(Some(header), 100).unwrap_err().status(), StatusCode::RANGE_NOT_SATISFIABLE, "{header}");
        }
        assert!(parse(Some("bytes=0-"), 0).is_err());
    }
}
