//! Server-sent events as language models send them: read tolerantly, since proxies rewrap them at will.
//!
//! Pieces may be cut anywhere, also within a character. Lines may end in LF, CR LF or CR; names other than `data`
//! and comments are passed over.

/// Longest line that is still an event and not an attack on memory.
const LONGEST_LINE_BYTES: usize = 1 << 20;

/// Puts events together from the pieces of a stream.
#[derive(Debug, Default)]
pub struct EventReader {
    line: Vec<u8>,
    data: Option<String>,
    after_cr: bool,
    started: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is longer than {LONGEST_LINE_BYTES} bytes")]
pub struct LineTooLong;

impl EventReader {
    /// The data of every event that `piece` completes.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<String>, LineTooLong> {
        let mut events = Vec::new();
        for &byte in piece {
            let lf_of_cr_lf = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            if lf_of_cr_lf {
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                events.extend(self.end_line());
                continue;
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) >= LONGEST_LINE_BYTES {
                return Err(LineTooLong);
            }
            self.line.push(byte);
        }
        Ok(events)
    }

    /// What was left when the stream ended: some servers leave out the last blank line.
    pub fn finish(mut self) -> Option<String> {
        let event = if self.line.is_empty() { None } else { self.end_line() };
        event.or(self.data)
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let mut line = String::from_utf8_lossy(&line).into_owned();
        if !std::mem::replace(&mut self.started, true)
            && let Some(rest) = line.strip_prefix('\u{feff}')
        {
            line = rest.to_owned();
        }
        if line.is_empty() {
            return self.data.take();
        }
        if let Some(value) = line.strip_prefix("data:") {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut reader = EventReader::default();
        let mut events: Vec<_> = pieces.iter().flat_map(|piece| reader.push(piece).unwrap()).collect();
        events.extend(reader.finish());
        events
    }

    #[test]
    fn events_are_read_whatever_ends_their_lines() {
        for end in ["\n", "\r\n", "\r"] {
            let stream = [": hello", "event: x", "data: one", "", "data:two", "", "id: 3", "", "data: [DONE]", "", ""];
            assert_eq!(read(&[stream.join(end).as_bytes()]), ["one", "two", "[DONE]"], "{end:?}");
        }
    }

    #[test]
    fn a_last_event_without_its_blank_line_counts() {
        assert_eq!(read(&[b"data: one\n\ndata: [DONE]"]), ["one", "[DONE]"]);
        assert_eq!(read(&[b"data: one\n"]), ["one"]);
    }

    #[test]
    fn data_over_several_lines_is_one_event_and_a_mark_at_the_start_is_passed_over() {
        assert_eq!(read(&["\u{feff}data: a\ndata: b\n\n".as_bytes()]), ["a\nb"]);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = EventReader::default();
        assert_eq!(reader.push(&vec![b'a'; LONGEST_LINE_BYTES + 1]), Err(LineTooLong));
    }

    proptest! {
        #[test]
        fn where_a_stream_is_cut_does_not_matter(cuts in prop::collection::vec(0usize..60, 0..6)) {
            let stream = "data: {\"a\":\"äöü 🎉\"}\r\n\r\ndata: 日本\n\ndata: [DONE]\n\n".as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(&pieces), read(&[stream]));
        }
    }
}
