//! What an MP4's own boxes say (A5): duration, frame size, frame rate, codec. Reads `moov` only.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Video {
    pub duration_ms: u64,
    pub width: u32,
    pub height: u32,
    /// Frames a second, times a thousand.
    pub frame_rate_milli: u64,
    pub is_h264: bool,
    /// AAC, or no sound at all.
    pub sound_is_aac: bool,
}

/// `None` when it is no MP4 or QuickTime file with a video track.
pub fn read(bytes: &[u8]) -> Option<Video> {
    let first = children(bytes).next()?;
    if first.name != *b"ftyp" {
        return None;
    }
    // All of the file has to be there: the last box must end where the file ends.
    let end = children(bytes).map(|part| part.end).last()?;
    if end != bytes.len() {
        return None;
    }
    let moov = find(bytes, b"moov")?;
    let header = find(moov, b"mvhd")?;
    let mut video = Video { sound_is_aac: true, duration_ms: duration_ms(header)?, ..Video::default() };
    let mut has_picture = false;
    for track in children(moov).filter(|part| part.name == *b"trak") {
        let media = find(track.body, b"mdia")?;
        let handler = find(media, b"hdlr")?.get(8..12)?;
        let table = find(find(media, b"minf")?, b"stbl")?;
        let codec = find(table, b"stsd")?.get(12..16)?;
        match handler {
            b"vide" if !has_picture => {
                has_picture = true;
                let size = find(track.body, b"tkhd")?;
                let at = size.len().checked_sub(8)?;
                (video.width, video.height) = (be32(size, at)? >> 16, be32(size, at + 4)? >> 16);
                video.is_h264 = codec == b"avc1" || codec == b"avc3";
                let track_ms = duration_ms(find(media, b"mdhd")?)?.max(1);
                video.frame_rate_milli = samples(table)? * 1_000_000 / track_ms;
            }
            b"soun" => video.sound_is_aac &= codec == b"mp4a",
            _ => {}
        }
    }
    has_picture.then_some(video)
}

struct Part<'a> {
    name: [u8; 4],
    body: &'a [u8],
    /// Where it ends, counted from the start of what was walked.
    end: usize,
}

/// The boxes directly inside; stops at the first that does not fit.
fn children(bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let short = usize::try_from(be32(bytes, at)?).ok()?;
        let name = bytes.get(at + 4..at + 8)?.try_into().ok()?;
        let (head, size) = match short {
            0 => (8, bytes.len() - at),
            1 => (16, usize::try_from(be64(bytes, at + 8)?).ok()?),
            size => (8, size),
        };
        let end = at.checked_add(size).filter(|end| size >= head && *end <= bytes.len())?;
        let body = &bytes[at + head..end];
        at = end;
        Some(Part { name, body, end })
    })
}

fn find<'a>(bytes: &'a [u8], name: &[u8; 4]) -> Option<&'a [u8]> {
    children(bytes).find(|part| part.name == *name).map(|part| part.body)
}

/// From `mvhd` or `mdhd`, which begin alike but for the width of their times.
fn duration_ms(header: &[u8]) -> Option<u64> {
    let long = *header.first()? == 1;
    let (scale_at, duration) = if long { (20, be64(header, 24)?) } else { (12, u64::from(be32(header, 16)?)) };
    let scale = u64::from(be32(header, scale_at)?);
    if scale == 0 {
        return None;
    }
    Some(u64::try_from(u128::from(duration) * 1000 / u128::from(scale)).unwrap_or(u64::MAX))
}

/// The number of frames, from the time-to-sample table.
fn samples(table: &[u8]) -> Option<u64> {
    let times = find(table, b"stts")?;
    let entries = usize::try_from(be32(times, 4)?).ok()?;
    let runs = times.get(8..)?.chunks_exact(8).take(entries);
    Some(runs.filter_map(|run| be32(run, 0)).map(u64::from).sum())
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?).and_then(|four| four.try_into().ok()).map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?).and_then(|eight| eight.try_into().ok()).map(u64::from_be_bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn part(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 8).expect("short").to_be_bytes().to_vec();
        bytes.extend(name);
        bytes.extend(body);
        bytes
    }

    /// The boxes of a silent video without its frames.
    pub fn tiny_mp4(duration_ms: u32, frames: u32, codec: &[u8; 4]) -> Vec<u8> {
        let mut times = vec![0; 12];
        times.extend(1000_u32.to_be_bytes());
        times.extend(duration_ms.to_be_bytes());
        let mut size = vec![0; 76];
        size.extend((1280_u32 << 16).to_be_bytes());
        size.extend((720_u32 << 16).to_be_bytes());
        let mut handler = vec![0; 8];
        handler.extend(b"vide");
        let mut description = vec![0; 12];
        description.extend(codec);
        let mut stts = vec![0, 0, 0, 0, 0, 0, 0, 1];
        stts.extend(frames.to_be_bytes());
        stts.extend(1_u32.to_be_bytes());
        let table = part(b"stbl", &[part(b"stsd", &description), part(b"stts", &stts)].concat());
        let media = [part(b"mdhd", &times), part(b"hdlr", &handler), part(b"minf", &table)].concat();
        let track = [part(b"tkhd", &size), part(b"mdia", &media)].concat();
        let moov = [part(b"mvhd", &times), part(b"trak", &track)].concat();
        [part(b"ftyp", b"isom"), part(b"moov", &moov), part(b"mdat", &[0; 32])].concat()
    }

    #[test]
    fn a_video_tells_what_it_is() {
        let expected = Video {
            duration_ms: 2_000,
            width: 1280,
            height: 720,
            frame_rate_milli: 30_000,
            is_h264: true,
            sound_is_aac: true,
        };
        assert_eq!(read(&tiny_mp4(2_000, 60, b"avc1")), Some(expected));
        assert_eq!(read(&tiny_mp4(2_000, 60, b"hvc1")).map(|video| video.is_h264), Some(false));
    }

    #[test]
    fn a_file_that_stops_early_is_no_video() {
        let whole = tiny_mp4(2_000, 60, b"avc1");
        assert_eq!(read(&whole[..whole.len() - 1]), None);
        assert_eq!(read(b"not a video at all"), None);
        assert_eq!(read(&[]), None);
    }
}
