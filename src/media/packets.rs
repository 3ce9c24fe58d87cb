//! What the list of packets says that no header does: whether groups of pictures are closed, how far key frames
//! are apart, whether frames come evenly, and whether all of them are there.
//!
//! Fed line by line, so that a film of hours takes no more memory than a clip.

use std::collections::BTreeMap;

#[derive(Debug, Clone, Default)]
pub struct Packets {
    pub video: u64,
    pub audio: u64,
    pub starts_with_key: bool,
    /// Most frames from one key frame to the next, or to the end.
    pub longest_group: u32,
    /// Frames after a key frame that are shown before it: a cut at that key frame would lose them.
    pub open_groups: u64,
    /// How often each duration occurs; bounded, since more than a few are wrong already.
    durations: BTreeMap<i64, u64>,
    group: u32,
    key_pts: i64,
    first_pts: Option<i64>,
    last_pts: i64,
}

impl Packets {
    /// One line of `codec_type,pts,duration,flags`.
    pub fn line(&mut self, line: &str) {
        let mut fields = line.trim().split(',');
        match fields.next() {
            Some("audio") => self.audio += 1,
            Some("video") => {
                let pts = fields.next().and_then(|pts| pts.parse().ok());
                let duration = fields.next().and_then(|duration| duration.parse().ok());
                let is_key = fields.next().is_some_and(|flags| flags.contains('K'));
                self.video_packet(pts, duration, is_key);
            }
            _ => {}
        }
    }

    fn video_packet(&mut self, pts: Option<i64>, duration: Option<i64>, is_key: bool) {
        const ENOUGH: usize = 8;
        if self.video == 0 {
            self.starts_with_key = is_key;
        }
        self.video += 1;
        // Without a time nothing can be said about order, which is as bad as a wrong one.
        let Some(pts) = pts else {
            self.open_groups += 1;
            return;
        };
        self.first_pts = Some(self.first_pts.map_or(pts, |first| first.min(pts)));
        self.last_pts = self.last_pts.max(pts);
        if is_key {
            self.longest_group = self.longest_group.max(self.group);
            (self.group, self.key_pts) = (0, pts);
        } else if pts < self.key_pts {
            self.open_groups += 1;
        }
        self.group += 1;
        let duration = duration.unwrap_or(0);
        if self.durations.len() < ENOUGH || self.durations.contains_key(&duration) {
            *self.durations.entry(duration).or_default() += 1;
        }
    }

    /// Call after the last line.
    pub fn finish(&mut self) {
        self.longest_group = self.longest_group.max(self.group);
    }

    /// Whether every frame lasts equally long, and their times agree with it.
    pub fn has_one_duration(&self) -> bool {
        let [(duration, _)] = *self.durations().as_slice() else { return false };
        let frames = i64::try_from(self.video).unwrap_or(i64::MAX);
        let span = self.last_pts - self.first_pts.unwrap_or(0);
        duration > 0 && span == duration.saturating_mul(frames - 1)
    }

    pub fn durations(&self) -> Vec<(i64, u64)> {
        self.durations.iter().map(|(duration, count)| (*duration, *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(lines: &[&str]) -> Packets {
        let mut packets = Packets::default();
        lines.iter().for_each(|line| packets.line(line));
        packets.finish();
        packets
    }

    #[test]
    fn a_closed_even_stream_is_seen_as_one() {
        let found = packets(&[
            "video,0,512,K_",
            "audio,0,1024,K_",
            "video,1024,512,__",
            "video,512,512,__",
            "video,1536,512,K_",
            "video,2048,512,__",
        ]);
        assert_eq!((found.video, found.audio, found.open_groups, found.longest_group), (5, 1, 0, 3));
        assert!(found.starts_with_key && found.has_one_duration());
    }

    #[test]
    fn a_frame_that_reaches_back_over_a_key_frame_opens_its_group() {
        let found = packets(&["video,0,512,K_", "video,1536,512,K_", "video,1024,512,__", "video,512,512,__"]);
        assert_eq!(found.open_groups, 2);
    }

    #[test]
    fn uneven_frames_and_gaps_are_not_constant() {
        assert!(!packets(&["video,0,512,K_", "video,512,600,__"]).has_one_duration());
        assert!(!packets(&["video,0,512,K_", "video,5120,512,__"]).has_one_duration());
        assert!(!packets(&["video,0,512,K_", "video,N/A,512,__"]).has_one_duration());
        assert!(!packets(&[]).has_one_duration());
    }

    #[test]
    fn the_last_group_counts_too() {
        let found = packets(&["video,0,1,K_", "video,1,1,K_", "video,2,1,__", "video,3,1,__"]);
        assert_eq!(found.longest_group, 3);
    }
}
