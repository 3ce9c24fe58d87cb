//! The form that carries a file: read as a stream, described as what it is.

use poem::{Request, RequestBody, Result, error::ParseMultipartError, http::StatusCode, web::Multipart};
use poem_openapi::{
    impl_apirequest_for_payload,
    payload::{ParsePayload, Payload},
    registry::{MetaSchema, MetaSchemaRef},
};

use crate::http::{Problem, gate::TooLarge};

/// A multipart form with one part, `file`.
pub struct MediaForm(pub Multipart);

impl Payload for MediaForm {
    const CONTENT_TYPE: &'static str = "multipart/form-data";

    fn check_content_type(content_type: &str) -> bool {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case(Self::CONTENT_TYPE)
    }

    fn schema_ref() -> MetaSchemaRef {
        let file = MetaSchema {
            format: Some("binary"),
            description: Some("A video (MP4, MOV, MKV, WebM) or a picture (JPEG, PNG, GIF, WebP)."),
            ..MetaSchema::new("string")
        };
        MetaSchemaRef::Inline(Box::new(MetaSchema {
            required: vec!["file"],
            properties: vec![("file", MetaSchemaRef::Inline(Box::new(file)))],
            ..MetaSchema::new("object")
        }))
    }
}

impl ParsePayload for MediaForm {
    const IS_REQUIRED: bool = true;

    async fn from_request(request: &Request, body: &mut RequestBody) -> Result<Self> {
        Ok(Self(<Multipart as poem::FromRequest>::from_request(request, body).await?))
    }
}

impl_apirequest_for_payload!(MediaForm);

/// A form that cannot be read to its next part.
pub fn broken_form(error: ParseMultipartError) -> Problem {
    match limit_in(&error) {
        Some(limit_bytes) => Problem::payload_too_large(limit_bytes),
        None => Problem::bad_request("malformed_form", "The multipart body is broken or ended early. Send it again."),
    }
}

/// A file that broke off on its way: it grew too large, or its sender went away.
pub fn broken_body(error: &std::io::Error) -> Problem {
    match limit_in(error) {
        Some(limit_bytes) => Problem::payload_too_large(limit_bytes),
        None => Problem::new(
            StatusCode::BAD_REQUEST,
            "body_cut_off",
            "The request could not be understood",
            "The file ended before it was complete. Send it again.",
        ),
    }
}

/// The gate's limit, wherever in the chain of causes it stands; an `io::Error` hides what it wraps from `source`.
fn limit_in(error: &(dyn std::error::Error + 'static)) -> Option<u64> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(limit) = error.downcast_ref::<TooLarge>() {
            return Some(limit.limit_bytes);
        }
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_found_behind_whatever_wraps_it() {
        let deep = std::io::Error::other(std::io::Error::other(TooLarge { limit_bytes: 7 }));
        assert_eq!(broken_body(&deep).status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(broken_body(&std::io::Error::other("gone")).code(), "body_cut_off");
    }
}
