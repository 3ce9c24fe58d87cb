//! How a connection begins. HTTP/1.1 alone is spoken here.
//!
//! The server underneath would also speak HTTP/2 with whoever begins so, and then one connection carries any number of
//! calls and a client that takes nothing stays alive by pings: nothing that [`super::connection`] counts would hold.
//! Whoever begins so is told, and left.

/// How every connection of HTTP/2 without TLS begins (RFC 9113, 3.4): so much of it is no request of HTTP/1.1, and it
/// ends before the server underneath takes it for HTTP/2.
const HTTP_2: &[u8] = b"PRI * HTTP/2.0\r\n";
/// What whoever begins so is told.
pub const NOT_SPOKEN: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n\
    content-type: text/plain\r\ncontent-length: 24\r\n\r\nSpeak HTTP/1.1 to here.\n";

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// So much of the beginning of HTTP/2, and nothing else yet.
    Unsaid(usize),
    Http1,
    Http2,
}

impl Opening {
    pub const UNSAID: Self = Self::Unsaid(0);

    pub fn after(self, bytes: &[u8]) -> Self {
        let Self::Unsaid(said) = self else { return self };
        let rest = &HTTP_2[said..];
        let compared = rest.len().min(bytes.len());
        match rest[..compared] == bytes[..compared] {
            true if compared == rest.len() => Self::Http2,
            true => Self::Unsaid(said + compared),
            false => Self::Http1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_2_is_known_by_its_beginning_in_whatever_pieces() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for size in 1..=preface.len() {
            let seen = preface.chunks(size).fold(Opening::UNSAID, |seen, piece| seen.after(piece));
            assert_eq!(seen, Opening::Http2, "in pieces of {size}");
        }
        for other in ["GET / HTTP/1.1\r\n", "PRI * HTTP/1.1\r\n", "PRI /a HTTP/1.1\r\n", "P", "POST / HTTP/1.1\r\n"] {
            let seen = other.as_bytes().chunks(1).fold(Opening::UNSAID, |seen, piece| seen.after(piece));
            assert_ne!(seen, Opening::Http2, "{other}");
        }
        assert_eq!(Opening::Http1.after(preface), Opening::Http1, "in the middle of a connection it is a body's");
    }
}
