//! Media upload, version 2 (A3): initialize, append, finalize, status, one-shot images, alt texts.

mod describe;
mod judge;
mod segments;

use std::collections::BTreeMap;

use bytes::Bytes;
use describe::described;
pub use judge::Verdict;
use segments::{joined, word};
use serde_json::{Value, json};

use super::{
    X,
    access::Caller,
    refusals,
    schema::{Reader, is_id},
    store::{Failure, Kind, Media, Stage, World},
};
use crate::{
    clock,
    exchange::{Answer, Call},
    faults::Twist,
};

pub const TWISTS: [&str; 2] = ["processing_failed", "processing_stuck"];

const TYPES: [&str; 13] = [
    "video/mp4",
    "video/webm",
    "video/mp2t",
    "video/quicktime",
    "image/jpeg",
    "image/png",
    "image/gif",
    "image/webp",
    "image/bmp",
    "image/pjpeg",
    "image/tiff",
    "text/srt",
    "text/vtt",
];
const CATEGORIES: [&str; 8] =
    ["tweet_image", "tweet_gif", "tweet_video", "amplify_video", "dm_image", "dm_gif", "dm_video", "subtitles"];
/// A3: the largest `total_bytes` there is, and A5's limits by kind.
const LARGEST: u64 = 17_179_869_184;
const IMAGE_BYTES: u64 = 5 * 1024 * 1024;
const GIF_BYTES: u64 = 15 * 1024 * 1024;
const VIDEO_BYTES: u64 = 8 * 1024 * 1024 * 1024;
const ALT_TEXT_CHARS: usize = 1_000;
/// A2: each media object bills like a create, alt text less.
const UPLOAD_COST: u64 = 15_000;
const ALT_TEXT_COST: u64 = 5_000;

/// `POST /2/media/upload/initialize`
pub fn initialize(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let user = caller.user()?;
    let mut body = Reader::of(call)?;
    for name in ["media_type", "total_bytes"] {
        if !body.has(name) {
            body.problem(name, Value::Null, "is missing but it is required");
        }
    }
    let content_type = body.word("media_type", &TYPES);
    let total_bytes = body.whole("total_bytes", 1, LARGEST);
    let category = body.word("media_category", &CATEGORIES);
    let additional_owners = body.ids("additional_owners", 0, 100).unwrap_or_default();
    body.flag("shared");
    body.finish()?;
    let (Some(content_type), Some(total_bytes)) = (content_type, total_bytes) else {
        return Err(refusals::invalid_one("media_type", Value::Null, "media_type and total_bytes are required"));
    };
    let category = category.unwrap_or_else(|| default_category(&content_type));
    let kind = kind_of(&category, &content_type)?;
    let most = match kind {
        Kind::Image | Kind::Subtitles => IMAGE_BYTES,
        Kind::Gif => GIF_BYTES,
        Kind::Video if user.premium => LARGEST,
        Kind::Video => VIDEO_BYTES,
    };
    if total_bytes > most {
        // A5: sizes by kind.
        return Err(refusals::invalid_one("total_bytes", total_bytes, format!("File size exceeds {most} bytes.")));
    }
    let mut world = x.world();
    let media = new_media(&mut world, &user.id, additional_owners, kind, category, content_type, total_bytes);
    let body = json!({"data": {
        "id": media.id.to_string(), "media_key": media.key(), "expires_after_secs": world.settings.media_lifetime_s,
    }});
    let id = media.id;
    world.media.insert(id, media);
    Ok(Answer::ok(body).committing(id.to_string()))
}

/// `POST /2/media/upload/:id/append`
pub fn append(x: &X, call: &Call, caller: &Caller, id: &str) -> Result<Answer, Answer> {
    let user = caller.user()?;
    let (index, chunk) = segments::read(call)?;
    let mut world = x.world();
    if chunk.len() > world.settings.segment_max_bytes {
        return Err(Answer::empty(413)); // A3: the edge refuses with a bare 413
    }
    let media = own_media(&mut world, &user.id, id)?;
    if media.stage != Stage::Uploading {
        return Err(refusals::invalid_one("id", id, "The upload was finalized already."));
    }
    let others: u64 =
        media.segments.iter().filter(|(known, _)| **known != index).map(|(_, part)| part.len() as u64).sum();
    if others + chunk.len() as u64 > media.total_bytes {
        return Err(refusals::invalid_one("media", Value::Null, "The segments exceed the total_bytes of the upload."));
    }
    // A3: sending a segment again is the documented recovery.
    media.segments.insert(index, chunk);
    let expires_at = media.expires_ms / 1000;
    if world.settings.append_answers_empty {
        return Ok(Answer::empty(204)); // A3: older answers have no body
    }
    Ok(Answer::ok(json!({"data": {"expires_at": expires_at}})))
}

/// `POST /2/media/upload/:id/finalize`
pub fn finalize(x: &X, caller: &Caller, id: &str, twist: Option<&Twist>) -> Result<Answer, Answer> {
    let user = caller.user()?;
    let (media_id, kind, total_bytes, segments) = {
        let mut world = x.world();
        own_media(&mut world, &user.id, id)?;
        let media = id.parse().ok().and_then(|id: u64| world.media.get(&id)).ok_or_else(|| unknown(id))?;
        if media.stage != Stage::Uploading {
            return Ok(Answer::ok(json!({"data": described(media, &world)})));
        }
        (media.id, media.kind, media.total_bytes, media.segments.clone())
    };
    // Joining and judging may take a while for a large video, so nobody else is kept waiting for it.
    let bytes = joined(&segments, total_bytes)?;
    let verdict = judge::judge(kind, &bytes)?;
    let mut world = x.world();
    settle(&mut world, media_id, verdict, bytes, twist)
}

/// `POST /2/media/upload`: a whole image at once.
pub fn one_shot(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let user = caller.user()?;
    let Some(parts) = &call.parts else {
        return Err(refusals::invalid_one(
            "media",
            Value::Null,
            "A multipart/form-data body with media and media_category is required.",
        ));
    };
    if call.query("command").is_some() || parts.iter().any(|part| part.name == "command") {
        // A3: the previous protocol is gone.
        return Err(refusals::invalid_one(
            "command",
            Value::Null,
            "The command parameter is only supported for STATUS, with GET.",
        ));
    }
    const FIELDS: [&str; 5] = ["media", "media_category", "media_type", "shared", "additional_owners"];
    if let Some(unknown) = parts.iter().find(|part| !FIELDS.contains(&part.name.as_str())) {
        return Err(refusals::invalid_one(&unknown.name, Value::Null, "is not a field of this upload"));
    }
    let (Some(media), Some(category)) = (call.part("media"), call.part("media_category")) else {
        return Err(refusals::invalid_one("media", Value::Null, "media and media_category are required.")); // A3: both required
    };
    let category = word(category);
    if !["tweet_image", "dm_image"].contains(&category.as_str()) {
        return Err(refusals::invalid_one("media_category", category, "Only images can be uploaded at once."));
    }
    let total_bytes = media.bytes.len() as u64;
    if total_bytes > IMAGE_BYTES {
        return Err(refusals::invalid_one("media", Value::Null, format!("File size exceeds {IMAGE_BYTES} bytes."))); // A5
    }
    let verdict = judge::judge(Kind::Image, &media.bytes)?;
    let mut world = x.world();
    let content_type = verdict.content_type.clone();
    let made = new_media(&mut world, &user.id, Vec::new(), Kind::Image, category, content_type, total_bytes);
    let id = made.id;
    world.media.insert(id, made);
    settle(&mut world, id, verdict, media.bytes.clone(), None)
}

/// `GET /2/media/upload?command=STATUS&media_id=`
pub fn status(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let user = caller.user()?;
    if call.query("command") != Some("STATUS") {
        return Err(refusals::invalid_one(
            "command",
            call.query("command").unwrap_or_default(),
            "The command must be STATUS.",
        ));
    }
    let mut world = x.world();
    let id = call.query("media_id").unwrap_or_default();
    own_media(&mut world, &user.id, id)?;
    let media = id.parse().ok().and_then(|id: u64| world.media.get(&id));
    media.map(|media| Answer::ok(json!({"data": described(media, &world)}))).ok_or_else(|| unknown(id))
}

/// `POST /2/media/metadata`: alt text, after finalize and before the post.
pub fn metadata(x: &X, call: &Call, caller: &Caller) -> Result<Answer, Answer> {
    let user = caller.user()?;
    let mut body = Reader::of(call)?;
    if !body.has("id") {
        body.problem("id", Value::Null, "is missing but it is required");
    }
    let id = body.id("id");
    let text =
        body.inside("metadata", |metadata| metadata.inside("alt_text", |alt| alt.text("text"))).flatten().flatten();
    let text = text.unwrap_or_default();
    if text.is_empty() || text.chars().count() > ALT_TEXT_CHARS {
        // A3: at most 1000 characters.
        body.problem(
            "metadata.alt_text.text",
            Value::Null,
            &format!("must have from 1 to {ALT_TEXT_CHARS} characters"),
        );
    }
    body.finish()?;
    let id = id.unwrap_or_default();
    let mut world = x.world();
    // A2: only after finalize.
    if matches!(own_media(&mut world, &user.id, &id)?.stage, Stage::Uploading) {
        return Err(refusals::invalid_one("id", id.as_str(), "The media upload is not finalized."));
    }
    world.spend(ALT_TEXT_COST)?;
    world.revision += 1;
    own_media(&mut world, &user.id, &id)?.alt_text = Some(text.clone());
    Ok(Answer::ok(json!({"data": {"id": id, "associated_metadata": {"alt_text": {"text": text}}}})))
}

pub fn check_twist(name: &str, value: &Value) -> Result<(), String> {
    match (name, value) {
        (_, Value::Null) => Ok(()),
        ("processing_failed", Value::Object(fields)) => {
            let known = ["code", "name", "message"];
            match fields.keys().find(|key| !known.contains(&key.as_str())) {
                Some(unknown) => {
                    Err(format!("`processing_failed` has no field `{unknown}`; it takes code, name and message"))
                }
                None => Ok(()),
            }
        }
        _ => Err(format!("`{name}` does not take this value")),
    }
}

fn default_category(content_type: &str) -> String {
    String::from(match content_type {
        "image/gif" => "tweet_gif",
        other if other.starts_with("image/") => "tweet_image",
        other if other.starts_with("text/") => "subtitles",
        _ => "tweet_video",
    })
}

/// A3, A5: what a category holds.
fn kind_of(category: &str, content_type: &str) -> Result<Kind, Answer> {
    let (kind, fits) = match category {
        "tweet_image" | "dm_image" => (Kind::Image, content_type.starts_with("image/")),
        "tweet_gif" | "dm_gif" => (Kind::Gif, content_type == "image/gif"),
        "subtitles" => (Kind::Subtitles, content_type.starts_with("text/")),
        _ => (Kind::Video, content_type.starts_with("video/")),
    };
    if !fits {
        let message = format!("The media_category {category} does not take the media_type {content_type}.");
        return Err(refusals::invalid_one("media_category", category, message));
    }
    Ok(kind)
}

fn new_media(
    world: &mut World,
    owner: &str,
    additional_owners: Vec<String>,
    kind: Kind,
    category: String,
    content_type: String,
    total_bytes: u64,
) -> Media {
    Media {
        id: world.snowflake(),
        owner: String::from(owner),
        additional_owners,
        kind,
        category,
        content_type,
        total_bytes,
        expires_ms: clock::now_ms() + world.settings.media_lifetime_s * 1000,
        width: 0,
        height: 0,
        duration_ms: 0,
        alt_text: None,
        stage: Stage::Uploading,
        refused_at_post: false,
        segments: BTreeMap::new(),
        bytes: None,
    }
}

fn unknown(id: &str) -> Answer {
    refusals::invalid_one("id", id, "Your media IDs are invalid.")
}

/// A3: one's own media that has not expired.
fn own_media<'a>(world: &'a mut World, user: &str, id: &str) -> Result<&'a mut Media, Answer> {
    let now_ms = clock::now_ms();
    let media = id.parse().ok().filter(|_| is_id(id)).and_then(|id: u64| world.media.get_mut(&id));
    media.filter(|media| media.owned_by(user) && media.expires_ms > now_ms).ok_or_else(|| unknown(id))
}

/// Writes the verdict down and answers with what the media is now.
fn settle(world: &mut World, id: u64, verdict: Verdict, bytes: Bytes, twist: Option<&Twist>) -> Result<Answer, Answer> {
    world.spend(UPLOAD_COST)?;
    let now_ms = clock::now_ms();
    let ends_ms = now_ms + world.settings.processing_ms;
    let media = world.media.get_mut(&id).ok_or_else(|| unknown(&id.to_string()))?;
    media.stage = match twist.map(|twist| (twist.name.as_str(), &twist.value)) {
        Some(("processing_failed", value)) => {
            Stage::Processing { started_ms: now_ms, ends_ms: Some(ends_ms), failure: Some(failure(value)) }
        }
        Some(_) => Stage::Processing { started_ms: now_ms, ends_ms: None, failure: None },
        None if matches!(media.kind, Kind::Gif | Kind::Video) => {
            Stage::Processing { started_ms: now_ms, ends_ms: Some(ends_ms), failure: verdict.failure }
        }
        None => Stage::Ready,
    };
    media.content_type = verdict.content_type;
    (media.width, media.height, media.duration_ms) = (verdict.width, verdict.height, verdict.duration_ms);
    media.refused_at_post = verdict.refused_at_post;
    media.segments.clear();
    world.keep_bytes(id, bytes);
    let data = world.media.get(&id).map(|media| described(media, world));
    Ok(Answer::ok(json!({"data": data})).committing(id.to_string()))
}

fn failure(value: &Value) -> Failure {
    let text = |name: &str, default: &str| String::from(value[name].as_str().unwrap_or(default));
    Failure {
        code: value["code"].as_u64().unwrap_or(1),
        name: text("name", "InvalidMedia"),
        message: text("message", "Unsupported video format"),
    }
}
