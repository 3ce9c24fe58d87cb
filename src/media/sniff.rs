//! What a file is, told by its first bytes and never by its name.
//!
//! Only what is named here is ever handed to ffmpeg, and always with its demuxer pinned: a playlist that calls
//! itself `holiday.mp4` must not be able to make ffmpeg open anything else.

use serde::{Deserialize, Serialize};

/// How many bytes at the start of a file are enough to know it.
pub const HEAD_BYTES: usize = 4096;

/// A kind of file that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Mp4,
    QuickTime,
    Matroska,
    Webm,
    Jpeg,
    Png,
    Gif,
    Webp,
}

/// Why a file is not accepted; the text is for the person who uploaded it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SniffError {
    #[error("the file is empty")]
    Empty,
    #[error(
        "the file is a playlist: upload the video itself, as MP4, MOV, MKV or WebM, not a list of where its parts are"
    )]
    Playlist,
    #[error("{0} images are not supported: export the picture as JPEG or PNG")]
    ImageFormat(&'static str),
    #[error("animated WebP is not supported: export it as GIF or MP4")]
    AnimatedWebp,
    #[error("the file is {0}, which is not supported: upload MP4, MOV, MKV, WebM, JPEG, PNG, GIF or WebP")]
    Other(&'static str),
    #[error("the file is not a video or picture we know: upload MP4, MOV, MKV, WebM, JPEG, PNG, GIF or WebP")]
    Unknown,
}

/// Tells the kind from the first bytes ([`HEAD_BYTES`] of them, or the whole of a shorter file).
pub fn sniff(head: &[u8]) -> Result<Kind, SniffError> {
    if head.is_empty() {
        return Err(SniffError::Empty);
    }
    if let Some(brand) = ftyp_brand(head) {
        return match brand {
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
                Err(SniffError::ImageFormat("HEIC"))
            }
            b"avif" | b"avis" => Err(SniffError::ImageFormat("AVIF")),
            b"qt  " => Ok(Kind::QuickTime),
            _ => Ok(Kind::Mp4),
        };
    }
    if is_playlist(head) {
        return Err(SniffError::Playlist);
    }
    match infer::get(head).map(|kind| kind.mime_type()) {
        Some("video/x-matroska") => Ok(Kind::Matroska),
        Some("video/webm") => Ok(Kind::Webm),
        Some("image/jpeg") => Ok(Kind::Jpeg),
        Some("image/png") => Ok(Kind::Png),
        Some("image/gif") => Ok(Kind::Gif),
        Some("image/webp") if is_animated_webp(head) => Err(SniffError::AnimatedWebp),
        Some("image/webp") => Ok(Kind::Webp),
        Some(other) => Err(SniffError::Other(other)),
        None => Err(SniffError::Unknown),
    }
}

impl Kind {
    pub const fn mime(self) -> &'static str {
        match self {
            Self::Mp4 => "video/mp4",
            Self::QuickTime => "video/quicktime",
            Self::Matroska => "video/x-matroska",
            Self::Webm => "video/webm",
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Gif => "image/gif",
            Self::Webp => "image/webp",
        }
    }

    pub const fn extension(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::QuickTime => "mov",
            Self::Matroska => "mkv",
            Self::Webm => "webm",
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::Gif => "gif",
            Self::Webp => "webp",
        }
    }

    /// The one demuxer that may read such a file.
    pub const fn demuxer(self) -> &'static str {
        match self {
            Self::Mp4 | Self::QuickTime => "mov",
            Self::Matroska | Self::Webm => "matroska",
            Self::Jpeg => "jpeg_pipe",
            Self::Png => "png_pipe",
            Self::Gif => "gif",
            Self::Webp => "webp_pipe",
        }
    }

    /// The decoders that may touch such a file. The rarely used ones are where the bugs are.
    pub const fn decoders(self) -> &'static str {
        match self {
            Self::Mp4 | Self::QuickTime | Self::Matroska | Self::Webm => concat!(
                "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4,mjpeg,png,prores,",
                "aac,aac_fixed,mp3,mp3float,opus,libopus,vorbis,libvorbis,ac3,eac3,alac,flac,",
                "pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_f32le,",
                // Subtitles are never used, but the probe opens every stream.
                "mov_text,subrip,srt,ass,webvtt"
            ),
            Self::Jpeg => "mjpeg",
            Self::Png => "png",
            Self::Gif => "gif",
            Self::Webp => "webp",
        }
    }

    /// More pixels in one frame than this are refused by every decoder, whatever the header claims.
    pub const fn max_pixels(self) -> u64 {
        if self.is_video_container() { 40_000_000 } else { 100_000_000 }
    }

    pub const fn is_video_container(self) -> bool {
        matches!(self, Self::Mp4 | Self::QuickTime | Self::Matroska | Self::Webm)
    }

    /// A file whose boxes can be walked (see [`super::boxes`]).
    pub const fn has_boxes(self) -> bool {
        matches!(self, Self::Mp4 | Self::QuickTime)
    }
}

fn ftyp_brand(head: &[u8]) -> Option<&[u8; 4]> {
    (head.get(4..8)? == b"ftyp").then(|| head.get(8..12)?.try_into().ok())?
}

/// A playlist is text; ffmpeg would look for its marker even behind a byte order mark or blank lines.
fn is_playlist(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']);
    ["#EXTM3U", "ffconcat version", "<MPD", "v=0\r\n", "v=0\n", "[playlist]"].iter().any(|mark| text.starts_with(mark))
        || (text.starts_with("<?xml") && text.contains("<MPD"))
}

fn is_animated_webp(head: &[u8]) -> bool {
    const ANIMATION: u8 = 0b10;
    head.get(12..16) == Some(b"VP8X") && head.get(20).is_some_and(|flags| flags & ANIMATION != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        assert_eq!(sniff(b"\0\0\0\x20ftypisom\0\0\x02\0"), Ok(Kind::Mp4));
        assert_eq!(sniff(b"\0\0\0\x14ftypqt  \0\0\x02\0"), Ok(Kind::QuickTime));
        assert_eq!(sniff(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), Ok(Kind::Png));
        assert_eq!(sniff(b"GIF89a\x01\0\x01\0"), Ok(Kind::Gif));
        assert_eq!(sniff(b"\xff\xd8\xff\xe0\0\x10JFIF"), Ok(Kind::Jpeg));
    }

    #[test]
    fn a_playlist_is_refused_whatever_it_calls_itself() {
        assert_eq!(sniff(b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), Err(SniffError::Playlist));
        assert_eq!(sniff(b"ffconcat version 1.0\nfile other.mp4\n"), Err(SniffError::Playlist));
        assert_eq!(sniff("\u{feff}\n#EXTM3U\n".as_bytes()), Err(SniffError::Playlist));
        assert_eq!(sniff(b"<?xml version=\"1.0\"?>\n<MPD xmlns=\"u\">"), Err(SniffError::Playlist));
    }

    #[test]
    fn what_a_phone_makes_but_no_platform_takes_is_named() {
        assert_eq!(sniff(b"\0\0\0\x18ftypheic\0\0\0\0"), Err(SniffError::ImageFormat("HEIC")));
        assert_eq!(sniff(b"\0\0\0\x18ftypavif\0\0\0\0"), Err(SniffError::ImageFormat("AVIF")));
        let mut webp = *b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0";
        assert_eq!(sniff(&webp), Err(SniffError::AnimatedWebp));
        webp[20] = 0;
        assert_eq!(sniff(&webp), Ok(Kind::Webp));
    }

    #[test]
    fn junk_and_nothing_are_refused() {
        assert_eq!(sniff(b""), Err(SniffError::Empty));
        assert_eq!(sniff(b"hello, I am a movie"), Err(SniffError::Unknown));
        assert_eq!(sniff(b"%PDF-1.7\n"), Err(SniffError::Other("application/pdf")));
        assert_eq!(sniff(&[0; 4096]), Err(SniffError::Unknown));
    }
}
