//! A file that is part of the program, as it is and packed. Whoever takes gzip gets it packed: that is done once for a
//! process, not for each who asks.
//!
//! Only what is the same for everybody is packed: the length of a packed answer says what is in it, and where something
//! secret stands beside what a stranger chose, he learns it by guessing (BREACH). Answers of calls are sent as they are.

use std::{io::Write, sync::OnceLock};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use poem::{
    Request, Response,
    http::{HeaderMap, StatusCode, header},
};
use sha2::{Digest, Sha256};

use super::etag;

pub struct File {
    plain: Form,
    packed: OnceLock<Form>,
}

/// The same file in one of its forms. Each has a tag of its own, which names exactly these bytes.
struct Form {
    bytes: Bytes,
    etag: String,
}

impl Form {
    fn of(bytes: Bytes) -> Self {
        Self { etag: format!("\"{}\"", hex::encode(&Sha256::digest(&bytes)[..12])), bytes }
    }
}

impl File {
    pub fn new(bytes: Bytes) -> Self {
        Self { plain: Form::of(bytes), packed: OnceLock::new() }
    }

    /// As it is.
    pub fn bytes(&self) -> &[u8] {
        &self.plain.bytes
    }

    pub fn is_packed(&self) -> bool {
        self.packed.get().is_some()
    }

    /// Some megabytes take a tenth of a second: not to be done where calls are answered.
    pub fn pack(&self) {
        self.packed();
    }

    fn packed(&self) -> &Form {
        self.packed.get_or_init(|| {
            let mut packer = GzEncoder::new(Vec::with_capacity(self.plain.bytes.len() / 3), Compression::default());
            packer.write_all(&self.plain.bytes).expect("memory takes everything");
            Form::of(packer.finish().expect("memory takes everything").into())
        })
    }

    /// The form that whoever asks takes, or that they have it already.
    pub fn answer(&self, request: &Request, kind: &'static str) -> Response {
        let is_packed = takes_gzip(request.headers());
        let form = if is_packed { self.packed() } else { &self.plain };
        let known = request.header(header::IF_NONE_MATCH).is_some_and(|known| etag::knows(known, &form.etag));
        let response = Response::builder()
            .header(header::ETAG, &form.etag)
            .header(header::CACHE_CONTROL, "no-cache")
            .header(header::VARY, "Accept-Encoding");
        if known {
            return response.status(StatusCode::NOT_MODIFIED).finish();
        }
        let response = if is_packed { response.header(header::CONTENT_ENCODING, "gzip") } else { response };
        response.content_type(kind).body(form.bytes.clone())
    }
}

/// Whether `Accept-Encoding` allows gzip (RFC 9110, 12.5.3): by its name, or else by the star, and not with a weight of 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let fields = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|field| field.to_str().ok());
    let codings = fields.flat_map(|field| field.split(',')).map(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").or_else(|| weight.trim().strip_prefix("Q="));
        // A weight that cannot be read is no leave.
        let is_taken = weight.is_none_or(|weight| weight.trim().parse::<f32>().is_ok_and(|weight| weight > 0.0));
        (name.trim(), is_taken)
    });
    let mut by_star = false;
    for (name, is_taken) in codings {
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            return is_taken;
        }
        by_star |= name == "*" && is_taken;
    }
    by_star
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    fn asked(headers: &[(&'static str, &str)]) -> Request {
        headers.iter().fold(Request::builder(), |request, (name, value)| request.header(*name, *value)).finish()
    }

    #[test]
    fn gzip_is_sent_to_whoever_says_that_they_take_it_and_to_nobody_else() {
        let takes = |text: &str| takes_gzip(asked(&[("accept-encoding", text)]).headers());
        for text in ["gzip", "GZIP", "br, gzip", "deflate, gzip;q=0.5", "x-gzip", "*", "br;q=1, *;q=0.1", "gzip;Q=1"] {
            assert!(takes(text), "{text}");
        }
        for text in ["", "br", "identity", "gzip;q=0", "gzip; q=0.000", "*;q=0", "gzip;q=0, *", "gzip;q=x", "gzippy"] {
            assert!(!takes(text), "{text}");
        }
        assert!(!takes_gzip(asked(&[]).headers()));
    }

    #[tokio::test]
    async fn both_forms_hold_the_same_and_each_is_known_by_its_own_tag_alone() {
        let text = "the same words, again and again. ".repeat(500);
        let file = File::new(text.clone().into());
        let plain = file.answer(&asked(&[]), "text/plain");
        let packed = file.answer(&asked(&[("accept-encoding", "gzip")]), "text/plain");
        let tag = |response: &Response| response.headers()[header::ETAG].to_str().unwrap().to_owned();
        let (plain_tag, packed_tag) = (tag(&plain), tag(&packed));
        assert_ne!(plain_tag, packed_tag);
        assert!(plain_tag.starts_with('"') && packed_tag.starts_with('"'), "a strong tag names bytes");
        for answer in [&plain, &packed] {
            assert_eq!(answer.headers()[header::VARY], "Accept-Encoding");
        }
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        for (tag, takes, status) in [
            (&plain_tag, "identity", 304),
            (&packed_tag, "gzip", 304),
            (&plain_tag, "gzip", 200),
            (&packed_tag, "identity", 200),
        ] {
            let answer = file.answer(&asked(&[("accept-encoding", takes), ("if-none-match", tag)]), "text/plain");
            assert_eq!(
                (answer.status().as_u16(), answer.headers()[header::VARY].to_str().unwrap()),
                (status, "Accept-Encoding")
            );
        }
        assert_eq!(plain.into_body().into_string().await.unwrap(), text);
        let bytes = packed.into_body().into_vec().await.unwrap();
        assert!(bytes.len() * 10 < text.len());
        let mut unpacked = String::new();
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, text);
    }
}
