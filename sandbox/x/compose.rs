//! Reads the body of a new post by the schema of A2. Knows the form only; what it refers to is checked when
//! the post is made.

use serde_json::{Value, json};

use super::{refusals, schema::Reader, text};
use crate::exchange::{Answer, Call};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Draft {
    pub text: String,
    pub media_ids: Vec<String>,
    pub reply_to: Option<String>,
    pub quote_of: Option<String>,
    pub poll: Option<Vec<String>>,
    pub reply_settings: Option<String>,
    pub previous_post: Option<String>,
}

const FLAGS: [&str; 5] =
    ["share_with_followers", "for_super_followers_only", "nullcast", "made_with_ai", "paid_partnership"];
const EXCLUSIVE: [&str; 5] = ["poll", "quote_tweet_id", "direct_message_deep_link", "media", "card_uri"];
const REPLY_SETTINGS: [&str; 4] = ["following", "mentionedUsers", "subscribers", "verified"];

pub fn read(call: &Call) -> Result<Draft, Answer> {
    let mut body = Reader::of(call)?;
    let exclusive: Vec<&str> = EXCLUSIVE.into_iter().filter(|name| body.has(name)).collect();
    let has_other_content = body.has("media") || body.has("card_uri") || body.has("direct_message_deep_link");
    let written = body.text("text");
    let draft = Draft {
        text: text::normalised(written.as_deref().unwrap_or_default()),
        media_ids: body.inside("media", media).flatten().unwrap_or_default(),
        reply_to: body.inside("reply", reply).flatten(),
        quote_of: body.id("quote_tweet_id"),
        poll: body.inside("poll", poll).flatten(),
        reply_settings: body.word("reply_settings", &REPLY_SETTINGS),
        previous_post: body.inside("edit_options", |edit| required(edit, "previous_post_id")).flatten(),
    };
    body.id("community_id");
    body.text("card_uri");
    body.text("direct_message_deep_link");
    body.inside("geo", |geo| geo.text("place_id"));
    for flag in FLAGS {
        body.flag(flag);
    }
    if draft.text.trim().is_empty() && !has_other_content {
        // A2: text is required unless there is media.
        body.problem("text", Value::Null, "text is missing or empty, and nothing else is to be posted");
    }
    if let Some(character) = text::forbidden_character(&draft.text) {
        // A5: invalid characters.
        body.problem("text", Value::Null, &format!("the character U+{:04X} is not allowed", u32::from(character)));
    }
    body.finish()?;
    if exclusive.len() > 1 {
        // A2: 400, mutually exclusive.
        let message = format!("{} are mutually exclusive.", exclusive.join(", "));
        return Err(refusals::invalid_one("", Value::Null, message));
    }
    Ok(draft)
}

fn required(fields: &mut Reader, name: &str) -> Option<String> {
    if !fields.has(name) {
        fields.problem(name, Value::Null, "is missing but it is required");
    }
    fields.id(name)
}

// A2: 1 to 4 ids; at most 10 tagged users.
fn media(media: &mut Reader) -> Option<Vec<String>> {
    media.ids("tagged_user_ids", 0, 10);
    if !media.has("media_ids") {
        media.problem("media_ids", Value::Null, "is missing but it is required");
    }
    let ids = media.ids("media_ids", 1, 4)?;
    let mut distinct = ids.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if distinct.len() < ids.len() {
        media.problem("media_ids", json!(ids), "must be unique");
        return None;
    }
    Some(ids)
}

fn reply(reply: &mut Reader) -> Option<String> {
    reply.ids("exclude_reply_user_ids", 0, 100);
    reply.flag("auto_populate_reply_metadata"); // A2: accepted but ignored
    required(reply, "in_reply_to_tweet_id")
}

// A2: 2 to 4 options of 1 to 25 characters, open for 5 to 10080 minutes.
fn poll(poll: &mut Reader) -> Option<Vec<String>> {
    for name in ["options", "duration_minutes"] {
        if !poll.has(name) {
            poll.problem(name, Value::Null, "is missing but it is required");
        }
    }
    poll.whole("duration_minutes", 5, 10_080);
    let options = poll.texts("options", 2, 4)?;
    if options.iter().any(|option| !(1..=25).contains(&option.chars().count())) {
        poll.problem("options", json!(options), "each option must have from 1 to 25 characters");
        return None;
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use poem::http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::exchange::Payload;

    fn draft(body: &Value) -> Result<Draft, String> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let call = Call {
            method: Method::POST,
            path: String::from("/2/tweets"),
            query: Vec::new(),
            headers,
            body: Bytes::from(body.to_string()),
            parts: None,
            origin: String::new(),
        };
        read(&call).map_err(|answer| match answer.payload {
            Payload::Json(body) => body.to_string(),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn a_full_draft_is_read() {
        let read = draft(&json!({
            "text": "cafe\u{301}", "media": {"media_ids": ["17"]}, "reply": {"in_reply_to_tweet_id": "5"},
            "reply_settings": "following", "made_with_ai": true,
        }));
        let expected = Draft {
            text: String::from("café"),
            media_ids: vec![String::from("17")],
            reply_to: Some(String::from("5")),
            reply_settings: Some(String::from("following")),
            ..Draft::default()
        };
        assert_eq!(read, Ok(expected));
    }

    #[test]
    fn what_the_schema_does_not_allow_is_refused() {
        let cases = [
            (json!({}), "text is missing"),
            (json!({"text": "a", "colour": "red"}), "$.colour: is not defined"),
            (json!({"text": "a", "media": {"media_ids": []}}), "from 1 to 4 items"),
            (json!({"text": "a", "media": {"media_ids": ["1", "2", "3", "4", "5"]}}), "from 1 to 4 items"),
            (json!({"text": "a", "media": {"media_ids": ["3_17"]}}), "regex pattern"),
            (json!({"text": "a", "media": {"media_ids": ["1", "1"]}}), "unique"),
            (json!({"text": "a", "media": {"media_ids": [17]}}), "array of strings expected"),
            (json!({"text": "a", "reply": {}}), "reply.in_reply_to_tweet_id: is missing"),
            (json!({"text": "a", "poll": {"options": ["a"], "duration_minutes": 5}}), "from 2 to 4 items"),
            (json!({"text": "a", "poll": {"options": ["a", "b"], "duration_minutes": 4}}), "between 5 and 10080"),
            (json!({"text": "a", "poll": {"options": ["a", ""], "duration_minutes": 5}}), "from 1 to 25 characters"),
            (json!({"text": "a", "reply_settings": "nobody"}), "is not one of"),
            (json!({"text": "a\u{feff}"}), "U+FEFF"),
            (json!({"text": "a", "card_uri": "c", "media": {"media_ids": ["1"]}}), "mutually exclusive"),
        ];
        for (body, expected) in cases {
            let problem = draft(&body).expect_err("refused");
            assert!(problem.contains(expected), "{body}: {problem}");
        }
    }
}
