//! Counts the frames of a GIF (A5: at most 350, and 300 million pixels together).

use super::image::Image;

pub fn read(bytes: &[u8]) -> Option<Image> {
    let two = |at: usize| Some(u32::from(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let (width, height) = (two(6)?, two(8)?);
    let mut at = 13 + color_table(*bytes.get(10)?);
    let mut frames = 0;
    loop {
        match *bytes.get(at)? {
            // An extension: a label, then blocks.
            0x21 => at = blocks(bytes, at + 2)?,
            // A frame: a descriptor, perhaps a table, the code size, then blocks.
            0x2c => {
                frames += 1;
                at = blocks(bytes, at + 10 + color_table(*bytes.get(at + 9)?) + 1)?;
            }
            0x3b => break,
            _ => return None,
        }
    }
    (frames > 0).then_some(Image { content_type: "image/gif", width, height, frames })
}

fn color_table(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 0x07) + 1) }
}

/// The place after a run of data blocks.
fn blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gif(frames: usize) -> Vec<u8> {
        let mut file = b"GIF89a".to_vec();
        file.extend([10, 0, 20, 0, 0x80, 0, 0]);
        file.extend([0; 6]);
        for _ in 0..frames {
            file.extend([0x21, 0xf9, 4, 0, 0, 0, 0, 0]);
            file.extend([0x2c, 0, 0, 0, 0, 10, 0, 20, 0, 0, 2, 2, 0x4c, 0x01, 0]);
        }
        file.push(0x3b);
        file
    }

    #[test]
    fn frames_are_counted() {
        let image = Image { content_type: "image/gif", width: 10, height: 20, frames: 3 };
        assert_eq!(read(&gif(3)), Some(image));
        assert_eq!(read(&gif(0)), None);
        let whole = gif(2);
        assert_eq!(read(&whole[..whole.len() - 3]), None);
    }
}
