//! What an image's own bytes say (A5: an image is really an image): its type, its size, whether it is whole.
//! Reads headers and end marks only; decodes no pixels.

use super::gif;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    pub content_type: &'static str,
    pub width: u32,
    pub height: u32,
    /// More than one for an animated GIF.
    pub frames: u32,
}

/// `None` when it is no image, a broken one or one that stops early.
pub fn read(bytes: &[u8]) -> Option<Image> {
    let image = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        png(bytes)
    } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        jpeg(bytes)
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        gif::read(bytes)
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        webp(bytes)
    } else {
        None
    };
    image.filter(|image| image.width > 0 && image.height > 0)
}

fn still(content_type: &'static str, width: u32, height: u32) -> Image {
    Image { content_type, width, height, frames: 1 }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_be_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes)
}

/// Walks the chunks from IHDR to IEND; there must be pixel data between.
fn png(bytes: &[u8]) -> Option<Image> {
    let mut at = 8;
    let mut size = None;
    let mut has_pixels = false;
    loop {
        let length = usize::try_from(be32(bytes, at)?).ok()?;
        let end = at.checked_add(length)?.checked_add(12)?;
        if end > bytes.len() {
            return None;
        }
        match bytes.get(at + 4..at + 8)? {
            b"IHDR" if length == 13 => size = Some((be32(bytes, at + 8)?, be32(bytes, at + 12)?)),
            b"IDAT" => has_pixels = true,
            b"IEND" => break,
            _ => {}
        }
        at = end;
    }
    let (width, height) = size?;
    has_pixels.then(|| still("image/png", width, height))
}

/// Walks the segments to the frame header; the file must go on to an end mark.
fn jpeg(bytes: &[u8]) -> Option<Image> {
    let tail = &bytes[bytes.len().saturating_sub(4096)..];
    if !tail.windows(2).any(|pair| pair == [0xff, 0xd9]) {
        return None;
    }
    let mut at = 2;
    loop {
        if *bytes.get(at)? != 0xff {
            return None;
        }
        let marker = *bytes.get(at + 1)?;
        if marker == 0xff {
            at += 1;
            continue;
        }
        let length = usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]));
        match marker {
            0xd8 | 0x01 | 0xd0..=0xd7 => at += 2,
            0xda | 0xd9 => return None,
            // The frame headers, all but the tables that share their range.
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => {
                let two = |at: usize| Some(u32::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
                return Some(still("image/jpeg", two(at + 7)?, two(at + 5)?));
            }
            _ => at += 2 + length.max(2),
        }
    }
}

fn webp(bytes: &[u8]) -> Option<Image> {
    let stated = usize::try_from(le32(bytes, 4)?).ok()?.checked_add(8)?;
    if stated > bytes.len() {
        return None;
    }
    let three = |at: usize| {
        let part = bytes.get(at..at + 3)?;
        Some(u32::from_le_bytes([part[0], part[1], part[2], 0]))
    };
    let (width, height) = match bytes.get(12..16)? {
        b"VP8X" => (three(24)? + 1, three(27)? + 1),
        b"VP8L" => {
            let bits = le32(bytes, 21)?;
            ((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1)
        }
        b"VP8 " if bytes.get(23..26) == Some(&[0x9d, 0x01, 0x2a]) => {
            let bits = le32(bytes, 26)?;
            (bits & 0x3fff, (bits >> 16) & 0x3fff)
        }
        _ => return None,
    };
    Some(still("image/webp", width, height))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A whole PNG as far as its chunks go; check sums are nobody's business here.
    pub fn tiny_png(width: u32, height: u32) -> Vec<u8> {
        let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
        let mut chunk = |name: &[u8; 4], data: &[u8]| {
            file.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
            file.extend(name);
            file.extend(data);
            file.extend([0; 4]);
        };
        let mut header = Vec::new();
        header.extend(width.to_be_bytes());
        header.extend(height.to_be_bytes());
        header.extend([8, 2, 0, 0, 0]);
        chunk(b"IHDR", &header);
        chunk(b"IDAT", &[0; 16]);
        chunk(b"IEND", &[]);
        file
    }

    #[test]
    fn a_png_tells_its_size_and_must_be_whole() {
        let file = tiny_png(640, 480);
        assert_eq!(read(&file), Some(still("image/png", 640, 480)));
        assert_eq!(read(&file[..file.len() - 13]), None);
        assert_eq!(read(&tiny_png(0, 480)), None);
    }

    #[test]
    fn a_jpeg_tells_its_size_and_must_have_an_end() {
        let mut file = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 0, 0];
        file.extend([0xff, 0xc2, 0, 11, 8, 0x01, 0xe0, 0x02, 0x80, 1, 1, 0x11, 0]);
        assert_eq!(read(&file), None);
        file.extend([0xff, 0xd9]);
        assert_eq!(read(&file), Some(still("image/jpeg", 640, 480)));
    }

    #[test]
    fn text_with_an_image_name_is_no_image() {
        for bytes in [&b"<svg/>"[..], b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff", b""] {
            assert_eq!(read(bytes), None, "{bytes:?}");
        }
    }
}
