//! Reads what ffmpeg says on `-progress pipe:1`: lines of `key=value`, a block each half second.

use super::ffmpeg::Line;

#[derive(Debug, Clone)]
pub struct ProgressReader {
    duration_us: Option<u64>,
    out_time_us: u64,
    frame: u64,
    total_size: u64,
    ended: bool,
}

impl ProgressReader {
    /// Without a duration the fraction stays at zero until the end.
    pub fn new(duration_ms: Option<u64>) -> Self {
        let duration_us = duration_ms.map(|ms| ms.saturating_mul(1000)).filter(|us| *us > 0);
        Self { duration_us, out_time_us: 0, frame: 0, total_size: 0, ended: false }
    }

    /// Takes one line; says whether it shows that the work moved on.
    pub fn line(&mut self, line: &str) -> Line {
        let Some((key, value)) = line.split_once('=') else { return Line::Same };
        // Early values are "N/A", and times before the first frame are negative.
        let number = value.trim().parse::<u64>();
        let moved = match (key.trim(), number) {
            // "out_time_ms" is in microseconds too, in spite of its name, and is not needed.
            ("out_time_us", Ok(us)) => raise(&mut self.out_time_us, us),
            ("frame", Ok(frame)) => raise(&mut self.frame, frame),
            ("total_size", Ok(size)) => raise(&mut self.total_size, size),
            ("progress", _) if value.trim() == "end" => {
                self.ended = true;
                return Line::Finishing;
            }
            _ => false,
        };
        if moved { Line::Moved } else { Line::Same }
    }

    pub fn fraction(&self) -> f64 {
        match self.duration_us {
            _ if self.ended => 1.0,
            Some(duration) => (self.out_time_us as f64 / duration as f64).min(1.0),
            None => 0.0,
        }
    }
}

fn raise(current: &mut u64, new: u64) -> bool {
    let moved = new > *current;
    *current = (*current).max(new);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_follows_the_time_written() {
        let mut reader = ProgressReader::new(Some(10_000));
        assert_eq!(reader.line("out_time_us=N/A"), Line::Same);
        assert_eq!(reader.line("out_time_us=2500000"), Line::Moved);
        assert_eq!(reader.fraction(), 0.25);
        assert_eq!(reader.line("out_time_us=2500000"), Line::Same);
        assert_eq!(reader.line("out_time_us=99000000"), Line::Moved);
        assert_eq!(reader.fraction(), 1.0);
    }

    #[test]
    fn a_length_nobody_knows_is_done_only_at_the_end() {
        let mut reader = ProgressReader::new(None);
        assert_eq!(reader.line("frame=10"), Line::Moved);
        assert_eq!(reader.fraction(), 0.0);
        assert_eq!(reader.line("progress=end"), Line::Finishing);
        assert_eq!(reader.fraction(), 1.0);
    }

    #[test]
    fn noise_is_no_progress() {
        let mut reader = ProgressReader::new(Some(1));
        for line in ["", "speed=1.2x", "progress=continue", "out_time_us=-20000", "garbage"] {
            assert_eq!(reader.line(line), Line::Same, "{line}");
        }
    }
}
