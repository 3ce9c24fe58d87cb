//! Walks the boxes of an MP4 or MOV file: ffprobe shows neither their order nor edit lists.
//!
//! Reads headers only and trusts none of them: sizes are checked against what encloses them, and the number of
//! boxes looked at is bounded.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// No honest file needs more boxes than this outside its sample tables, which are not entered.
const MAX_BOXES: u32 = 20_000;

/// What the boxes of a file say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxFacts {
    pub major_brand: String,
    /// `ftyp`, then `moov`, and no `mdat` before it: playable while it arrives.
    pub moov_first: bool,
    pub has_moov: bool,
    /// Edit lists that say something else than "play all of it".
    pub edit_lists: u32,
    /// Fragments, as live streams have them.
    pub fragmented: bool,
    /// Boxes known to carry where or by whom it was made.
    pub personal: Vec<String>,
    /// Whether every box fits into its parent and the file ends where its last box does.
    pub intact: bool,
}

/// Walks the file. An error is the disk's; a broken file shows in [`BoxFacts::intact`].
pub fn walk(path: &Path) -> io::Result<BoxFacts> {
    let mut file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut walker =
        Walker { facts: BoxFacts { intact: true, ..BoxFacts::default() }, left: MAX_BOXES, mdat_seen: false };
    walker.level(&mut file, 0, end, Level::Top)?;
    Ok(walker.facts)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Top,
    Moov,
    Trak,
    Edts,
    Udta,
    Meta,
}

struct Walker {
    facts: BoxFacts,
    left: u32,
    mdat_seen: bool,
}

struct Header {
    kind: [u8; 4],
    body: u64,
    end: u64,
}

impl Walker {
    fn level(&mut self, file: &mut File, mut at: u64, end: u64, level: Level) -> io::Result<()> {
        while at < end {
            // Four zero bytes close a QuickTime user-data list.
            if level == Level::Udta && end - at == 4 {
                return Ok(());
            }
            let Some(header) = self.header(file, at, end, level)? else {
                self.facts.intact = false;
                return Ok(());
            };
            self.look(file, &header, level)?;
            at = header.end;
        }
        Ok(())
    }

    fn header(&mut self, file: &mut File, at: u64, end: u64, level: Level) -> io::Result<Option<Header>> {
        if end - at < 8 || self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let mut head = [0; 16];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut head[..8])?;
        let kind = [head[4], head[5], head[6], head[7]];
        let (size, body) = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            // "To the end of the file", which only the last box at the top may say.
            0 if level == Level::Top => (end - at, 8),
            1 if end - at >= 16 => {
                file.read_exact(&mut head[8..])?;
                (u64::from_be_bytes(head[8..].try_into().expect("eight bytes")), 16)
            }
            size => (u64::from(size), 8),
        };
        let fits = size >= body && size <= end - at;
        Ok(fits.then(|| Header { kind, body: at + body, end: at + size }))
    }

    fn look(&mut self, file: &mut File, header: &Header, level: Level) -> io::Result<()> {
        let mut enter = |walker: &mut Self, level| walker.level(file, header.body, header.end, level);
        match (level, &header.kind) {
            (Level::Top, b"ftyp") => self.facts.major_brand = brand(file, header)?,
            (Level::Top, b"mdat") => self.mdat_seen = true,
            (Level::Top, b"moof") => self.facts.fragmented = true,
            (Level::Top, b"moov") => {
                self.facts.has_moov = true;
                self.facts.moov_first = !self.mdat_seen && !self.facts.major_brand.is_empty();
                enter(self, Level::Moov)?;
            }
            (Level::Moov, b"mvex") => self.facts.fragmented = true,
            (Level::Moov, b"trak") => enter(self, Level::Trak)?,
            (Level::Trak, b"edts") => enter(self, Level::Edts)?,
            (Level::Edts, b"elst") => self.facts.edit_lists += 1,
            (Level::Top | Level::Moov | Level::Trak, b"udta") => enter(self, Level::Udta)?,
            (Level::Top | Level::Moov | Level::Trak | Level::Udta, b"meta") => {
                let body = header.body + meta_prefix_bytes(file, header)?;
                self.level(file, body, header.end, Level::Meta)?;
            }
            // ffmpeg writes a list of items even when there is none: an empty one says nothing.
            (Level::Meta, b"hdlr") => {}
            (Level::Top | Level::Moov | Level::Trak, b"uuid") => self.personal(header),
            (Level::Udta | Level::Meta, _) if header.end > header.body => self.personal(header),
            _ => {}
        }
        Ok(())
    }

    fn personal(&mut self, header: &Header) {
        const ENOUGH: usize = 32;
        if self.facts.personal.len() < ENOUGH {
            // 0xA9 starts QuickTime's international text boxes, such as the place ("(c)xyz").
            let name = header.kind.iter().map(|&byte| match byte {
                0xa9 => '\u{a9}',
                byte if byte.is_ascii_graphic() => char::from(byte),
                _ => '?',
            });
            self.facts.personal.push(name.collect());
        }
    }
}

/// `meta` starts with four bytes of version in MP4 and without them in QuickTime.
fn meta_prefix_bytes(file: &mut File, header: &Header) -> io::Result<u64> {
    let mut start = [0; 8];
    if header.end - header.body < 8 {
        return Ok(0);
    }
    file.seek(SeekFrom::Start(header.body))?;
    file.read_exact(&mut start)?;
    Ok(if &start[4..] == b"hdlr" { 0 } else { 4 })
}

fn brand(file: &mut File, header: &Header) -> io::Result<String> {
    let mut brand = [0; 4];
    if header.end - header.body < 4 {
        return Ok(String::new());
    }
    file.seek(SeekFrom::Start(header.body))?;
    file.read_exact(&mut brand)?;
    Ok(brand.iter().filter(|byte| byte.is_ascii_graphic()).map(|&byte| char::from(byte)).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn boxed(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len() + 8).unwrap();
        [&size.to_be_bytes()[..], kind, body].concat()
    }

    fn facts(bytes: &[u8]) -> BoxFacts {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        walk(file.path()).unwrap()
    }

    fn ftyp() -> Vec<u8> {
        boxed(b"ftyp", b"isom\0\0\x02\0")
    }

    #[test]
    fn the_order_of_moov_and_mdat_is_seen() {
        let (moov, mdat) = (boxed(b"moov", b""), boxed(b"mdat", &[0; 64]));
        let fast = facts(&[ftyp(), boxed(b"free", b""), moov.clone(), mdat.clone()].concat());
        assert!(fast.moov_first && fast.intact && fast.major_brand == "isom");
        let slow = facts(&[ftyp(), mdat, moov].concat());
        assert!(!slow.moov_first && slow.has_moov && slow.intact);
    }

    #[test]
    fn edit_lists_places_and_fragments_are_found() {
        let edts = boxed(b"edts", &boxed(b"elst", &[0; 20]));
        let udta = boxed(b"udta", &boxed(b"\xa9xyz", b"\0\x12\x15\xc7+48.1-011.5/"));
        let moov = boxed(b"moov", &[boxed(b"trak", &edts), boxed(b"mvex", b""), udta].concat());
        let found = facts(&[ftyp(), moov].concat());
        assert_eq!(found.edit_lists, 1);
        assert_eq!(found.personal, ["\u{a9}xyz"]);
        assert!(found.fragmented && found.intact);
    }

    #[test]
    fn an_empty_list_of_items_tells_nothing_and_a_full_one_does() {
        let hdlr = boxed(b"hdlr", &[0; 25]);
        let with = |items: &[u8]| {
            let meta = boxed(b"meta", &[&[0; 4][..], &hdlr, &boxed(b"ilst", items)].concat());
            facts(&[ftyp(), boxed(b"moov", &boxed(b"udta", &meta))].concat())
        };
        assert!(with(b"").personal.is_empty());
        assert_eq!(with(&boxed(b"\xa9nam", b"x")).personal, ["ilst"]);
        // The QuickTime form, without a version.
        let meta = boxed(b"meta", &[hdlr, boxed(b"keys", b"\0\0\0\0\0\0\0\x01com.apple.make")].concat());
        assert_eq!(facts(&[ftyp(), boxed(b"moov", &meta)].concat()).personal, ["keys"]);
    }

    #[test]
    fn a_box_larger_than_its_parent_and_a_cut_file_are_not_intact() {
        let mut moov = boxed(b"moov", &boxed(b"trak", &[]));
        moov[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(!facts(&[ftyp(), moov].concat()).intact);
        let whole = [ftyp(), boxed(b"moov", b""), boxed(b"mdat", &[0; 64])].concat();
        assert!(!facts(&whole[..whole.len() - 10]).intact);
    }

    #[test]
    fn a_bomb_of_boxes_ends() {
        let bomb = boxed(b"moov", &boxed(b"trak", b"").repeat(MAX_BOXES as usize + 10));
        assert!(!facts(&[ftyp(), bomb].concat()).intact);
    }

    #[test]
    fn a_64_bit_size_is_read_and_an_impossible_one_refused() {
        let large = [&1_u32.to_be_bytes()[..], b"mdat", &80_u64.to_be_bytes(), &[0; 64]].concat();
        assert!(facts(&[ftyp(), boxed(b"moov", b""), large].concat()).intact);
        let lying = [&1_u32.to_be_bytes()[..], b"mdat", &u64::MAX.to_be_bytes(), &[0; 64]].concat();
        assert!(!facts(&[ftyp(), boxed(b"moov", b""), lying].concat()).intact);
    }
}
