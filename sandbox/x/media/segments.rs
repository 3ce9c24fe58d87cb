//! Segments of an upload (A3): read from a request, and joined when the upload is finalized.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose};
use bytes::{Bytes, BytesMut};
use serde_json::Value;

use crate::{
    exchange::{Answer, Call, Part},
    x::{refusals, schema::Reader},
};

const LAST_SEGMENT: u64 = 999;

/// A segment as a form or as JSON with base64 (A3).
pub fn read(call: &Call) -> Result<(u32, Bytes), Answer> {
    if call.content_type() == "application/json" {
        let mut body = Reader::of(call)?;
        let index = body.whole("segment_index", 0, LAST_SEGMENT);
        let media = body.text("media");
        if index.is_none() || media.is_none() {
            body.problem("segment_index", Value::Null, "segment_index and media are required");
        }
        body.finish()?;
        let bytes = general_purpose::STANDARD.decode(media.unwrap_or_default());
        let bytes = bytes.map_err(|_| refusals::invalid_one("media", Value::Null, "media is not valid base64"))?;
        return Ok((index.and_then(|index| u32::try_from(index).ok()).unwrap_or_default(), bytes.into()));
    }
    let parts = call.parts.as_ref().ok_or_else(|| {
        refusals::invalid_one(
            "media",
            Value::Null,
            "A multipart/form-data body with segment_index and media is required.",
        )
    })?;
    if let Some(unknown) = parts.iter().find(|part| !["segment_index", "media"].contains(&part.name.as_str())) {
        return Err(refusals::invalid_one(&unknown.name, Value::Null, "is not a field of append"));
    }
    let index = call.part("segment_index").map(word).and_then(|index| index.parse::<u64>().ok());
    let index = index.filter(|index| *index <= LAST_SEGMENT).and_then(|index| u32::try_from(index).ok());
    // A3: from 0 to 999.
    let index = index.ok_or_else(|| {
        refusals::invalid_one("segment_index", Value::Null, "segment_index must be between 0 and 999")
    })?;
    let media = call.part("media").filter(|part| !part.bytes.is_empty());
    let media = media.ok_or_else(|| refusals::invalid_one("media", Value::Null, "media is missing or empty"))?;
    Ok((index, media.bytes.clone()))
}

pub fn word(part: &Part) -> String {
    String::from(String::from_utf8_lossy(&part.bytes).trim())
}

/// All segments from 0 on, none missing, of the stated size together.
pub fn joined(segments: &BTreeMap<u32, Bytes>, total_bytes: u64) -> Result<Bytes, Answer> {
    let gapless = segments.keys().zip(0..).all(|(index, expected)| *index == expected);
    let size: u64 = segments.values().map(|part| part.len() as u64).sum();
    if !gapless || size != total_bytes {
        let message = "Segments do not add up to provided total file size.";
        return Err(refusals::invalid_one("id", Value::Null, message)); // A9: segment order and size
    }
    if let (1, Some(only)) = (segments.len(), segments.get(&0)) {
        return Ok(only.clone());
    }
    let mut bytes = BytesMut::new();
    segments.values().for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes.freeze())
}
